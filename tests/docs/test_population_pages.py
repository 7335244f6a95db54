"""The pages on trajectories and on distances: their code runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.filterwarnings("ignore::pyrocell.errors.ScreenWarning")
@pytest.mark.parametrize("page", ["trajectories.md", "distances.md"])
def test_the_code_on_a_page_runs_as_it_stands(page):
    text = (DOCS / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    names: dict = {}
    for block in blocks:
        exec(block, names)
    plt.close("all")
    if page == "trajectories.md":
        first = names["table"].set_index("perturbation").loc["HOLDS"]
        assert first["difference_lower"] > first["shuffled_upper"]
        assert len(names["model"].screen.times) == 4
    else:
        assert names["table"]["explained"].max() > 0.5
