"""Small layouts as tables of cells, for the tests of screens and of what they can tell apart."""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import pandas as pd

from pyrocell.errors import ScreenWarning
from pyrocell.screen.screen import Screen

GENES = ["A", "B", "C", "D"]
# perturbed and exposed at times of their own
ARMS = pd.DataFrame(
    [
        (p, m, t, at, ex, b)
        for t in (3.0, 6.0)
        for b in ("x", "y")
        for p, m, at, ex in [
            ("control", "baseline", np.nan, np.nan),
            ("control", "IFNG", np.nan, 0.0),
            ("control", "IFNG", np.nan, 1.0),
            ("A", "baseline", 0.0, np.nan),
            ("A", "IFNG", 0.0, 1.0),
            ("A", "IFNG", 2.0, 0.0),
        ]
        for _ in range(4)
    ],
    columns=["perturbation", "media", "time", "perturbation_time", "media_time", "batch"],
)


def crossed(**levels) -> pd.DataFrame:
    """Every combination of the levels, three cells each."""
    frame = pd.DataFrame(list(itertools.product(*levels.values())), columns=list(levels))
    return pd.concat([frame] * 3, ignore_index=True)


def screen_of(cells: pd.DataFrame, **kwargs) -> Screen:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScreenWarning)
        return Screen.from_labels(
            GENES, cells["perturbation"], **{c: cells[c] for c in cells.columns[1:]}, **kwargs
        )


def estimable(screen: Screen, contrast: str) -> dict[str, bool]:
    rows = screen.aliased[screen.aliased["contrast"] == contrast]
    return dict(zip(rows["name"], rows["estimable"], strict=True))


def row(screen: Screen, contrast: str, name: str) -> pd.Series:
    table = screen.aliased.set_index(["contrast", "name"])
    return table.loc[(contrast, name)]
