"""The pages on evaluation and on the three questions: their code runs, and says what they say."""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pytest

import pyrocell

DOCS = Path(__file__).parents[2] / "docs"


def blocks(page: str) -> list[str]:
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pyrocell.errors.ScreenWarning")
def test_the_three_questions_have_the_answers_on_the_page():
    names: dict = {}
    for block in blocks("ladder"):
        exec(block, names)
    means = names["answers"].mean()
    text = (DOCS / "ladder.md").read_text(encoding="utf-8")
    assert "| observe | .38, r −.03 |" in text and "| intervene | .14, r .90 |" in text
    assert means["observe"] == pytest.approx(0.38, abs=0.03)
    assert means["intervene"] == pytest.approx(0.14, abs=0.03)
    assert means["intervene"] < means["nothing"] < means["observe"]
    found = [names["distance"](names[x]) for x in ("population", "imagined")]
    assert found == pytest.approx([0.86, 0.67], abs=0.06)
    assert "`predict` | .86" in text and "`counterfactual` | .67" in text


@pytest.mark.filterwarnings("ignore::pyrocell.errors.ScreenWarning", "ignore::UserWarning")
def test_the_calls_on_the_page_of_evaluation_run(make_screen, build):
    adata = make_screen(n_perturbations=4, n_cells_per_condition=14, times=(1.0, 2.0))
    model = build(adata)
    model.train(max_epochs=2, progress_bar=False)
    names = {"pyrocell": pyrocell, "model": model}
    for block in blocks("evaluation"):
        exec(block.replace('"SOX2"', repr(model.screen.perturbations[0])), names)
    plt.close("all")
    assert "pyrocell" in names["found"].summary.index
