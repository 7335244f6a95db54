"""report.html opens from a disk, answers to clicks, and says what its tables say."""

from __future__ import annotations

import base64
import html
import json
import re
import shutil
import subprocess
import zlib

import numpy as np
import pandas as pd
import pytest

from pyrocell.errors import PyrocellError
from pyrocell.posterior.explain import sentences
from pyrocell.report import write
from pyrocell.report.content import content
from pyrocell.report.explanations import steps_in_words
from pyrocell.report.gene_sets import enrichment, read_sets
from pyrocell.report.html import render
from pyrocell.report.perturbations import _differs, measured_effects, perturbation_table
from pyrocell.report.sentences import assumption_sections, changed_genes
from pyrocell.report.tables import collect

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
needs_browser = pytest.mark.skipif(BROWSER is None, reason="Chromium is not installed")
NASTY = '<script>document.title="x"</script>&"\''


@pytest.fixture(scope="module")
def tables(fitted):
    return collect(fitted, 20)


@pytest.fixture(scope="module")
def verdicts():
    row = {"check": "training", "value": "1", "level": "good", "verdict": "converged"}
    return pd.DataFrame([row | {"reason": "It stood still.", "remedy": ""}])


@pytest.fixture(scope="module")
def said(fitted, tables, verdicts):
    sentence = ("good", "The fit can be believed.")
    steps = pd.DataFrame([{"name": "cells", "rule": NASTY, "before": 9, "after": 8}])
    return content(fitted, tables, verdicts, sentence, title=NASTY, command="fit x", steps=steps)


@pytest.fixture(scope="module")
def page(said, tmp_path_factory):
    file = tmp_path_factory.mktemp("page") / "report.html"
    file.write_text(render(said), encoding="utf-8")
    return file


def data_of(text: str) -> dict:
    """What the page holds."""
    found = re.search(r'<script type="application/octet-stream" id="data">(.*?)</script>', text)
    assert found
    return json.loads(zlib.decompress(base64.b64decode(found[1])))


PROBE = """
<pre id="probe"></pre><script>
const problems = [];
window.addEventListener("error", (e) => problems.push(e.message));
(async () => {
  const wait = (ms) => new Promise((r) => setTimeout(r, ms));
  for (let i = 0; i < 600 && !document.body.dataset.ready; i++) await wait(50);
  const $ = (q) => document.querySelector(q), all = (q) => [...document.querySelectorAll(q)];
  const first = () => all("#perturbation-table tbody tr").map((r) => r.cells[0].textContent);
  const found = { ready: document.body.dataset.ready, title: $("h1").textContent, names: first() };
  const head = $("#perturbation-table th");
  head.click(); await wait(200); found.sorted = first();
  head.click(); await wait(200); found.reversed = first();
  const search = $("#gene-table input"), genes = "#gene-table tbody tr";
  found.gene = $(genes).cells[0].textContent;
  search.value = found.gene;
  for (const kind of ["input", "keyup"]) search.dispatchEvent(new Event(kind));
  await wait(400);
  found.genes = all(genes).map((r) => r.textContent);
  const row = all("#perturbation-table tbody tr")[1], chosen = row.cells[0].textContent;
  row.cells[0].click(); await wait(800);
  found.clicked = chosen; found.chosen = $("#choose").value;
  found.line = $("#one-line").textContent;
  found.figures = all("figure svg").length; found.nav = all("nav a").length;
  found.answers = $("#answer-list").textContent;
  found.overall = $("#overall").textContent;
  found.scripts = all("main script").length; found.steps = $("#read-text").textContent;
  found.wider = document.documentElement.scrollWidth - window.innerWidth;
  const size = (e) => parseFloat(getComputedStyle(e).fontSize);
  found.letters = Math.min(...all("main p, main dd, main td").map(size));
  found.problems = problems;
  $("#probe").textContent = JSON.stringify(found);
})();
</script></body>"""


def opened(page, width: int) -> tuple[dict, str]:
    """What a browser without a network makes of the page, and what it complains of."""
    probed = page.with_name(f"probed-{width}.html")
    probed.write_text(page.read_text(encoding="utf-8").replace("</body>", PROBE), encoding="utf-8")
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    options += ["--enable-logging=stderr", "--host-resolver-rules=MAP * ~NOTFOUND"]
    options += [f"--window-size={width},1400", "--virtual-time-budget=60000", "--dump-dom"]
    options += [f"--user-data-dir={page.parent / f'profile-{width}'}"]
    command = [str(BROWSER), *options, probed.as_uri()]
    run = subprocess.run(command, capture_output=True, text=True, timeout=180)
    found = re.search(r'<pre id="probe">(.*?)</pre>', run.stdout, flags=re.DOTALL)
    assert found and found[1], run.stderr[-2000:]
    lines = [line for line in run.stderr.splitlines() if "CONSOLE" in line or "ERR_NAME" in line]
    return json.loads(html.unescape(found[1])), "\n".join(lines)


@needs_browser
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_opens_sorts_searches_and_shows_what_is_chosen(page, said, width):
    found, console = opened(page, width)
    assert found["ready"] == "yes" and not found["problems"] and not console
    assert found["title"] == NASTY and found["scripts"] == 0 and NASTY in found["steps"]
    names = [p["perturbation"] for p in said["perturbations"]]
    assert sorted(found["names"]) == sorted(names)
    assert found["sorted"] != found["reversed"] and found["sorted"] == found["reversed"][::-1]
    assert 0 < len(found["genes"]) < len(said["genes"])
    assert all(found["gene"] in row for row in found["genes"])
    assert found["chosen"] == found["clicked"] and found["line"].startswith(found["clicked"])
    assert found["figures"] >= 6 and found["nav"] >= 10
    assert "block the response" in found["answers"]
    assert found["overall"].strip() == "The fit can be believed."
    assert found["wider"] <= 0 and found["letters"] >= 12


def test_the_page_asks_nothing_of_a_network(page):
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"""<(script|link|img)[^>]+(src|href)=["']?(https?:)?//""", text)
    assert not re.search(r"@import|url\(\s*['\"]?https?:", text.split("<main>")[0])
    assert "schema" not in json.dumps(data_of(text)["charts"])
    assert len(text) < 5e6


def test_effects_on_the_page_are_those_of_the_table(page, fitted, tables):
    held = data_of(page.read_text(encoding="utf-8"))["content"]["effects"]
    effects = measured_effects(fitted.screen, tables)
    for place in held["places"]:
        for name, mine in place["of"].items():
            rows = effects[(effects["media"] == place["media"]) & (effects["perturbation"] == name)]
            rows = rows.set_index(rows["gene"].astype(str))
            genes = [held["genes"][g] for g in mine["g"]]
            assert set(genes) == set(rows.index)
            for key, column in (("m", "mean"), ("l", "lower"), ("u", "upper")):
                expected = rows.loc[genes, column] / np.log(2)
                np.testing.assert_allclose(mine[key], expected, atol=6e-4)
            assert mine["c"] == rows.loc[genes, "count"].tolist()
            assert [place["control"][g] for g in mine["g"]] == rows.loc[
                genes, "count_control"
            ].tolist()


def test_what_was_not_measured_in_a_medium_is_not_shown_there(fitted, tables):
    effects = measured_effects(fitted.screen, tables)
    shown = set(effects[["perturbation", "media"]].itertuples(index=False, name=None))
    conditions = fitted.screen.conditions[["perturbation", "media"]]
    assert shown == set(conditions.itertuples(index=False, name=None)) - {
        ("control", m) for m in conditions["media"]
    }


def test_each_perturbation_and_combination_has_a_row_that_sums_up_its_tables(fitted, tables):
    table = perturbation_table(fitted, tables).set_index("perturbation")
    cells = fitted.screen.conditions.groupby("perturbation")["n_cells"].sum()
    assert table["n_cells"].to_dict() == cells.drop("control").to_dict()
    effects = measured_effects(fitted.screen, tables)
    first = effects[effects["media"] == "baseline"]
    listed = first[(first["fdr"] <= 0.1) & (first["mean"] > 0)]
    expected = listed.groupby("perturbation").size().reindex(table.index).fillna(0)
    assert table["up"].tolist() == expected.tolist()
    assert (table["flags"].str.contains("only") == (table["n_cells"] < 20)).all()


def test_large_screens_keep_the_surest_genes_and_the_own_one(fitted, tables, verdicts, monkeypatch):
    monkeypatch.setattr("pyrocell.report.content._PAIRS", 10)
    monkeypatch.setattr("pyrocell.report.content._FEWEST", 4)
    held = content(fitted, tables, verdicts, ("good", ""), title="x")["effects"]
    assert held["most"] == 4 and not held["all_genes"]
    for place in held["places"]:
        for name, mine in place["of"].items():
            assert 4 <= len(mine["g"]) <= 5
            own = held["own"].get(name)
            assert own is None or own in mine["g"]


def test_a_screen_of_media_alone_has_a_page(make_screen, build, verdicts, tmp_path):
    adata = make_screen(media=1)
    adata = adata[adata.obs["perturbation"] == "control"].copy()
    model = build(adata, {"perturbation_key": None})
    model.train(max_epochs=2, progress_bar=False)
    report = write(model, tmp_path / "out", n_samples=10)
    held = data_of((report.directory / "report.html").read_text(encoding="utf-8"))["content"]
    assert held["perturbations"] == [] and held["effects"] is None


def test_responses_that_differ_are_listed_as_often_as_said_where_nothing_differs():
    rng = np.random.default_rng(0)
    false = 0
    for _ in range(200):
        z = 1.4 * rng.normal(size=20) + rng.normal()  # as with shuffled labels
        gains = pd.DataFrame({"mean": 1 + 0.05 * z, "sd": 0.05})
        false += int(_differs(gains, pd.Series(True, gains.index))[0].any())
    assert false <= 200 * 0.1 + 3 * np.sqrt(200 * 0.1 * 0.9)
    gains.loc[3, "mean"] = 0.6
    listed, _ = _differs(gains, pd.Series(True, gains.index))
    assert listed[3]


def test_the_same_reason_is_said_once():
    rows = [
        {"assumption": "steady", "perturbation": k, "media": "baseline", "testable": False}
        | {"reason": f"{k} in medium baseline was measured once. Next screen: add a time"}
        for k in ("A", "B")
    ]
    (section,) = assumption_sections(pd.DataFrame(rows).assign(posterior=0.5))
    (untested,) = section["untested"]
    assert untested["who"] == "A, B" and untested["remedy"] == "add a time"


def test_changed_genes_are_named_with_their_size():
    effects = pd.DataFrame(
        {
            "perturbation": "K",
            "gene": ["A", "B", "C"],
            "mean": np.log([4.0, 0.5, 1.1]),
            "sd": 0.1,
            "log2fc": np.log2([4.0, 0.5, 1.1]),
            "fdr": [0.01, 0.01, 0.5],
        }
    )
    assert changed_genes(effects) == {"K": "1 up: A (× 4). 1 down: B (-50%)."}


# ---------------------------------------------------------------------- sets of genes
def test_a_set_that_moves_together_is_found_and_labels_of_files_are_kept(tmp_path):
    pytest.importorskip("gseapy")
    rng = np.random.default_rng(0)
    genes = [f"G{i}" for i in range(300)]
    mean = rng.normal(0, 0.1, 300)
    mean[:20] += 0.5
    table = {"gene": genes, "mean": mean, "sd": 0.1, "fdr": np.where(mean > 0.4, 0.01, 1.0)}
    effects = pd.DataFrame({"perturbation": "K"} | table)
    file = tmp_path / "sets.gmt"
    lines = ["moved\t\t" + "\t".join(genes[:20]), "still\t\t" + "\t".join(genes[100:120])]
    file.write_text("\n".join(lines))
    found = enrichment(effects, read_sets([file])).set_index("set")
    assert found.loc["moved", "score"] > 1.5 and found.loc["moved", "fdr"] < 0.05
    assert found.loc["still", "fdr"] > 0.1 and found.loc["moved", "n"] == 20
    effects["fdr"] = 1.0
    assert enrichment(effects, read_sets([file])).empty


def test_files_that_hold_no_sets_are_refused_by_name(tmp_path):
    pytest.importorskip("gseapy")
    file = tmp_path / "genes.gmt"
    file.write_text("one\ntwo\n")
    with pytest.raises(PyrocellError, match="genes.gmt holds no set"):
        read_sets([file])
    effects = pd.DataFrame(
        {"perturbation": "K", "gene": ["A"], "mean": [1.0], "sd": [1.0], "fdr": [0.0]}
    )
    with pytest.raises(PyrocellError, match="same symbols"):
        enrichment(effects, {"s": ["a"] * 9})


def test_what_changes_in_a_medium_is_taken_apart_in_words(fitted, tables):
    effects = measured_effects(fitted.screen, tables)
    medium, name = fitted.screen.media[0], fitted.screen.perturbations[1]
    changed = (effects["media"] == medium) & (effects["perturbation"] == name)
    effects = effects.assign(fdr=np.where(changed, 0.01, 1.0))
    said = steps_in_words(fitted, effects)
    assert list(said) == [medium] and list(said[medium]) == [name]
    steps = fitted.explain(name, media=medium, against={"media": medium}, by="step", n_samples=60)
    assert said[medium][name] == " ".join(sentences(steps))
    assert f"{name} in {medium}" in said[medium][name]
