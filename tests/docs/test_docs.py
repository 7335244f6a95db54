"""The code in the README and on the model page runs as it stands, in small sizes."""

from __future__ import annotations

import argparse
import importlib
import json
import re
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest

import pyrocell

ROOT = Path(__file__).parents[2]


def run(page: str, tmp_path, monkeypatch, but: str | None = None) -> tuple[list[str], dict]:
    """Run the Python of a page on a fortieth of the embedded screen; its blocks and names."""
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    adata, train = pyrocell.datasets.hipsc_timecourse()[::40], pyrocell.PyroCell.train
    monkeypatch.setattr(pyrocell.datasets, "hipsc_timecourse", adata.copy)
    monkeypatch.setattr(
        pyrocell.PyroCell, "train", lambda self: train(self, max_epochs=2, progress_bar=False)
    )
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for block in blocks:
        if but is None or but not in block:
            exec(block, names)
    plt.close("all")
    return blocks, names


@pytest.mark.filterwarnings("ignore::pyrocell.errors.ScreenWarning")
@pytest.mark.parametrize("page", ["README.md", "docs/model.md", "docs/report.md", "docs/run.md"])
def test_the_code_on_a_page_runs_as_it_stands(page, tmp_path, monkeypatch):
    run(page, tmp_path, monkeypatch, but="media_gains")  # the embedded screen has one medium
    assert (tmp_path / "fitted").is_dir() or (tmp_path / "results" / "report.html").is_file()


def script(name: str, monkeypatch):
    """A script of the repository as a module."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return importlib.import_module(name)


@pytest.mark.parametrize("page", ["README.md", "docs/effects.md"])
def test_figures_of_effects_are_those_of_the_results_file(page, monkeypatch):
    render = script("render_effects", monkeypatch)
    text = (ROOT / page).read_text(encoding="utf-8")
    assert "<!-- effects" in text
    assert render.rendered(text, json.loads(render.RESULTS.read_text())) == text


def test_figures_of_files_are_those_of_the_results_files(monkeypatch):
    render = script("render_screens", monkeypatch)
    text = render.PAGE.read_text(encoding="utf-8")
    assert "<!-- files: begin" in text and render.rendered(text) == text


def test_tables_of_record_are_those_of_the_results_files(monkeypatch):
    render = script("render_record", monkeypatch)
    pages = render.pages()
    assert {"README.md", "measured.md", "verdicts.md"} <= {page.name for page in pages}
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert render.rendered(text) == text, f"{page.name}: run make figures"


def test_a_figure_says_when_the_code_that_it_measures_has_changed(monkeypatch, tmp_path):
    sources = script("sources", monkeypatch)
    room = tmp_path / "pyrocell" / "views"
    room.mkdir(parents=True)

    def code(text: str) -> str:
        (room / "rna.py").write_text(text)
        return sources.code_of(["views"], tmp_path)

    before = code('"""Words."""\n\ndef f():\n    """Words."""\n    return 1  # words\n')
    assert code('"""Other words."""\n# more\ndef f():\n    return (1)\n') == before
    assert code('"""Words."""\n\ndef f():\n    return 2\n') != before
    with pytest.raises(FileNotFoundError):
        sources.code_of(["view"], tmp_path)
    made = {"commit": "abc", "seeds": [1], "date": "2026-01-01", "machine": "m"}
    line = sources.origin(["a.py"], [made | {"code": {"rooms": ["views"], "hash": "old"}}])
    assert line.endswith("the code has changed since.")
    now = {"rooms": ["views"], "hash": sources.code_of(["views"])}
    line = sources.origin(["a.py"], [made | {"code": now, "seeds": [7, *range(20, 30), 9]}])
    assert line == "`benchmarks/a.py`, seeds 7, 20 to 29, 9; commit abc, 2026-01-01, m."


def test_a_row_shows_the_results_file_once_its_part_is_there(monkeypatch):
    rows = script("readme_rows", monkeypatch)
    made = {"commit": "abc", "code": {"rooms": ["views"], "hash": "old"}}
    found = {"all: screens 1": {"from": made, "figures": {"r": 0.1}}}
    row = rows.Row("r", "a", ("all",), lambda f: (str(f["r"]), ""), ("9", "8", "def"), "", "then")
    assert row.rendered(found) == ["r (then)", "9", "8", "`a.py`", "def †"]
    found["all"] = {"from": made, "figures": {"r": 0.5}}
    assert row.rendered(found) == ["r", "0.5", "", "`a.py`", "abc †"]
    made["code"]["hash"] = script("sources", monkeypatch).code_of(["views"])
    assert row.rendered(found)[-1] == "abc"


def test_a_note_never_gives_the_commit_of_a_rerun_to_figures_written_by_hand(monkeypatch):
    render = script("render_record", monkeypatch)
    text = "Held .9.\n\n<!-- source a, b: n 1 @ abc 2026-01-01: begin -->\n"
    text += "<!-- source a, b: n 1 @ abc 2026-01-01: end -->\n"
    assert "commit abc, 2026-01-01; the code has changed since.*" in render.rendered(text)
    source = {"commit": "def", "seeds": [], "date": "2026-02-02", "machine": "m"}
    source["code"] = {"rooms": ["views"], "hash": "old"}
    part = {"from": source, "figures": {}}
    monkeypatch.setattr(render, "parts_of", lambda name: {"b": part, "b: n 1": part})
    once = render.rendered(text)
    assert "as recorded at commit abc, 2026-01-01. Measured again since" in once
    assert "commit def, 2026-02-02, m; the code has changed since." in once
    assert render.rendered(once) == once
    source["commit"] = "abc"
    assert "`benchmarks/a.py`; commit abc, 2026-02-02, m;" in render.rendered(text)


def test_a_run_with_other_options_leaves_figures_of_record_alone(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    common = importlib.import_module("common")
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, nargs="+", default=(1, 2))
    parser.add_argument("--size", type=float, default=0.5)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--jobs", type=int, default=2)

    def part(*words: str) -> str:
        return common.part_of(parser, parser.parse_args(words))

    assert part() == part("--seeds", "1", "2", "--jobs", "1") == "all"
    assert part("--seeds", "1", "--size", "1", "--quick") == "all: seeds 1, size 1, quick"
    path = tmp_path / "a.json"
    common.write_results("a", {part(): {"r": np.float64(0.123456)}}, [1, 2], path, ["views"])
    common.write_results("a", {part("--quick"): {"r": 1.0}}, [1], path)
    found = json.loads(path.read_text())
    assert found["all"]["figures"] == {"r": 0.1235} and found["all: quick"]["figures"] == {"r": 1}
    made = found["all"]["from"]
    assert made["seeds"] == [1, 2] and made["seconds"] >= 0
    assert made["code"] == {"rooms": ["views"], "hash": common.code_of(["views"])}
    assert json.loads(capsys.readouterr().out.splitlines()[0]) == {
        "benchmark": "a",
        "all": {"r": 0.1235},
    }


def test_the_api_page_lists_what_is_public(monkeypatch):
    render = script("render_api", monkeypatch)
    text = render.PAGE.read_text(encoding="utf-8")
    assert render.rendered(text) == text, "run make figures"


@pytest.mark.filterwarnings("ignore::pyrocell.errors.ScreenWarning")
def test_the_code_of_the_quick_starts_runs_as_it_stands(tmp_path, monkeypatch):
    blocks, names = run("docs/start.md", tmp_path, monkeypatch)
    assert len(blocks) == 2 and (tmp_path / "fitted").is_dir()
    assert names["adata"].obsm["X_pyrocell"].shape[0] == names["adata"].n_obs
    assert {"p", "q"} <= set(names["alone"])


@pytest.mark.filterwarnings("ignore::pyrocell.errors.ScreenWarning", "ignore::UserWarning")
def test_the_code_for_users_of_scanpy_and_arviz_runs_as_it_stands(tmp_path, monkeypatch):
    blocks, names = run("docs/scverse.md", tmp_path, monkeypatch)
    assert len(blocks) == 5 and names["effects"].shape == (23, 103)
    assert names["draws"].shape == (25, 100, 1)


NEW_PAGES = [
    "report",
    "scverse",
    "verdicts",
    "index",
    "start",
    "questions",
    "tutorials",
    "figures",
    "faq",
    "cite",
    "glossary",
]


@pytest.mark.parametrize("page", NEW_PAGES)
def test_what_a_page_names_exists(page):
    """Attributes of the package and of models, files of the repository, other pages, pictures."""
    docs = ROOT / "docs"
    text = (docs / f"{page}.md").read_text(encoding="utf-8")
    for name in re.findall(r"\bmodel\.([a-z]\w*)", text):
        assert hasattr(pyrocell.PyroCell, name) or name == "screen", name
    rooms = r"(?<!sc\.)(?<!sklearn\.)"  # modules of others
    rooms += r"\b(pl|design|arrayed|pseudotime|metrics|transfer|calibration|datasets)\.([a-z]\w+)"
    for room, name in re.findall(rooms, text):
        if name not in ("md", "ipynb", "png"):
            assert hasattr(importlib.import_module(f"pyrocell.{room}"), name), f"{room}.{name}"
    for name in re.findall(r"\{doc\}`(\w+)`|^:link: (\S+)$", text, flags=re.MULTILINE):
        target = name[0] or name[1]
        source = ROOT if target.startswith("tutorials/") else docs
        assert any((source / f"{target}{end}").exists() for end in (".md", ".ipynb")), target
    for picture in re.findall(r"(?:figures/pl/)([\w-]+\.png)", text):
        assert (docs / "figures" / "pl" / picture).exists(), picture
    for path in re.findall(r"`((?:scripts|benchmarks|docs|tests)/[\w/.]*)`", text):
        assert (ROOT / path).exists(), path


def test_every_figure_is_on_the_page_with_a_small_picture_and_its_call(monkeypatch):
    drawing = script("draw_figures", monkeypatch)
    text = drawing.PAGE.read_text(encoding="utf-8")
    assert drawing.rendered(text) == text, "run python scripts/draw_figures.py"
    shown = [name for names in drawing.CHAPTERS.values() for name in names]
    assert sorted(shown) == sorted(pyrocell.pl.__all__)
    assert {figure.split("-")[0] for figure in drawing.FIGURES} == set(shown)
    pictures = {file.stem for file in drawing.FOLDER.glob("*.png")}
    assert pictures == set(drawing.FIGURES)
    assert max(file.stat().st_size for file in drawing.FOLDER.iterdir()) < 60_000


def test_parameters_described_together_each_say_with_whom(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    lines = ["Parameters", "----------", "rows, columns", "    Of a plate.", "edge", "    Rim."]
    importlib.import_module("conf").ungroup_parameters(None, "function", "f", None, None, lines)
    assert lines[2:6] == [
        "rows",
        "    (`rows`, `columns`) Of a plate.",
        "columns",
        "    See `rows`.",
    ]
    assert lines[6:] == ["edge", "    Rim."]
