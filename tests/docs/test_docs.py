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


def test_the_api_page_lists_what_is_public(monkeypatch):
    render = script("render_api", monkeypatch)
    text = render.PAGE.read_text(encoding="utf-8")
    assert render.rendered(text) == text, "run python scripts/render_api.py"
