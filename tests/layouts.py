"""Small layouts as tables of cells, for the tests of screens and of what they can tell apart."""

from __future__ import annotations

import itertools
import warnings

import pandas as pd

from pyrocell.errors import ScreenWarning
from pyrocell.screen.screen import Screen

GENES = ["A", "B", "C", "D"]


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
