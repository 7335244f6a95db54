"""Figure of the error analysis: what batch noise does to the map, condition by condition."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from pyrocell.design.error_analysis import ALL
from pyrocell.errors import DesignError
from pyrocell.labels import listed
from pyrocell.plotting._style import BLUE, GREY, ORANGE, forest, name_ticks, new_axes, rows_height

__all__ = ["error_analysis"]

_MARKS = {"own": (BLUE, "o"), "propagated": (ORANGE, "s"), "bound": (GREY, "|")}


def error_analysis(table: pd.DataFrame, time: float | None = None, ax: Axes | None = None) -> Axes:
    """ε of every condition with its interval, its two first terms, and the bound of eq. 22.

    Parameters
    ----------
    table
        From `design.error_analysis`.
    time
        Which time; default: the last.
    ax
        Where to draw.

    Returns
    -------
    matplotlib Axes; roots of mean squares, in log-fold change.
    """
    times = sorted(table["time"].dropna().unique())
    if times:
        time = times[-1] if time is None else time
        if time not in times:
            raise DesignError(f"time={time} is not in the table: {listed(times)}")
        table = table[table["time"] == time]
    labels = table["perturbation"] + np.where(table["media"] == ALL, "", " | " + table["media"])
    table = table.assign(label=labels)
    whole = table[table["term"] == "total"].sort_values("mean", ascending=False)
    whole = pd.concat([whole[whole["perturbation"] == ALL], whole[whole["perturbation"] != ALL]])
    ax = new_axes(ax, 6.0, 0.9 + rows_height(len(whole)))
    roots = whole[["mean", "lower", "upper"]].clip(lower=0) ** 0.5
    forest(ax, roots, list(whole["label"]), "black")
    for term, (color, marker) in _MARKS.items():
        values = table[table["term"] == term].set_index("label")["mean"].loc[whole["label"]]
        x = values.clip(lower=0) ** 0.5
        ax.scatter(x, np.arange(len(x)), color=color, marker=marker, s=22, label=term)
    name_ticks(ax, list(whole["label"]), "y")
    ax.set_xlim(left=0)
    ax.set_xlabel("error by batch noise, RMS (log-fold change)")
    ax.legend(frameon=False, fontsize=8)
    return ax
