"""The code in the README and on the model page runs as it stands, in small sizes."""

from __future__ import annotations

import importlib.util
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
@pytest.mark.parametrize("page", ["README.md", "docs/model.md"])
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
    assert (tmp_path / "fitted").is_dir()


@pytest.mark.parametrize("page", ["README.md", "docs/effects.md"])
def test_figures_of_effects_are_those_of_the_results_file(page):
    path = ROOT / "scripts" / "render_effects.py"
    spec = importlib.util.spec_from_file_location("render_effects", path)
    render = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(render)
    text = (ROOT / page).read_text(encoding="utf-8")
    assert "<!-- effects" in text
    assert render.rendered(text, json.loads(render.RESULTS.read_text())) == text


def test_the_api_page_lists_what_is_public():
    path = ROOT / "scripts" / "render_api.py"
    spec = importlib.util.spec_from_file_location("render_api", path)
    render = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(render)
    text = render.PAGE.read_text(encoding="utf-8")
    assert render.rendered(text) == text, "run python scripts/render_api.py"
