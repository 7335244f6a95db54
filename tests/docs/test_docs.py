"""The code in the README and on the model page runs as it stands, in small sizes."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pytest

import pyrocell

ROOT = Path(__file__).parents[2]


@pytest.mark.filterwarnings("ignore::pyrocell.errors.ScreenWarning")
@pytest.mark.parametrize("page", ["README.md", "docs/model.md", "docs/report.md", "docs/run.md"])
def test_the_code_on_a_page_runs_as_it_stands(page, tmp_path, monkeypatch):
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
        if "media_gains" in block:
            continue  # the embedded screen has one medium
        exec(block, names)
    plt.close("all")
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
    (room / "rna.py").write_text('"""Words."""\n\nx = 1  # words\n')
    before = sources.code_of(["views"], tmp_path)
    (room / "rna.py").write_text('"""Other words."""\n# more\nx = 1  # words\n')
    assert sources.code_of(["views"], tmp_path) == before
    (room / "rna.py").write_text('"""Words."""\n\nx = 2  # words\n')
    assert sources.code_of(["views"], tmp_path) != before
    made = {"commit": "abc", "seeds": [1], "date": "2026-01-01", "machine": "m"}
    line = sources.origin(["a.py"], [made | {"code": "old"}])
    assert line.endswith("the code has changed since.")
    line = sources.origin(["a.py"], [made | {"code": sources.code_of()}])
    assert line == "`benchmarks/a.py`, seeds 1; commit abc, 2026-01-01, m."


def test_the_api_page_lists_what_is_public(monkeypatch):
    render = script("render_api", monkeypatch)
    text = render.PAGE.read_text(encoding="utf-8")
    assert render.rendered(text) == text, "run python scripts/render_api.py"


@pytest.mark.filterwarnings("ignore::pyrocell.errors.ScreenWarning")
def test_the_code_of_the_quick_starts_runs_as_it_stands(tmp_path, monkeypatch):
    text = (ROOT / "docs" / "start.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    adata, train = pyrocell.datasets.hipsc_timecourse()[::40], pyrocell.PyroCell.train
    monkeypatch.setattr(pyrocell.datasets, "hipsc_timecourse", adata.copy)
    monkeypatch.setattr(
        pyrocell.PyroCell, "train", lambda self: train(self, max_epochs=2, progress_bar=False)
    )
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for block in blocks:
        exec(block, names)
    plt.close("all")
    assert len(blocks) == 2 and (tmp_path / "fitted").is_dir()
    assert names["adata"].obsm["X_pyrocell"].shape[0] == adata.n_obs
    assert {"p", "q"} <= set(names["alone"])


@pytest.mark.filterwarnings("ignore::pyrocell.errors.ScreenWarning", "ignore::UserWarning")
def test_the_code_for_users_of_scanpy_and_arviz_runs_as_it_stands(tmp_path, monkeypatch):
    text = (ROOT / "docs" / "scverse.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    adata, train = pyrocell.datasets.hipsc_timecourse()[::40], pyrocell.PyroCell.train
    monkeypatch.setattr(pyrocell.datasets, "hipsc_timecourse", adata.copy)
    monkeypatch.setattr(
        pyrocell.PyroCell, "train", lambda self: train(self, max_epochs=2, progress_bar=False)
    )
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for block in blocks:
        exec(block, names)
    plt.close("all")
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
