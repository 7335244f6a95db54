"""Figures of what batch noise does: to the map, and to what is concluded of contrasts."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from pyrocell._core.messages import join_names
from pyrocell.design.error_analysis import ALL
from pyrocell.errors import DesignError
from pyrocell.plotting._style import (
    BLUE,
    GREY,
    ORANGE,
    describe,
    forest,
    name_ticks,
    new_axes,
    rows_height,
)

__all__ = ["error_analysis", "noise_sensitivity"]

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
            raise DesignError(f"time={time} is not in the table: {join_names(times)}")
        table = table[table["time"] == time]
    labels = table["perturbation"] + np.where(table["media"] == ALL, "", " | " + table["media"])
    table = table.assign(label=labels)
    whole = table[table["term"] == "total"].sort_values("mean", ascending=False)
    whole = pd.concat([whole[whole["perturbation"] == ALL], whole[whole["perturbation"] != ALL]])
    ax = new_axes(ax, 6.6, 1.2 + rows_height(len(whole)))
    roots = whole[["mean", "lower", "upper"]].clip(lower=0) ** 0.5
    forest(ax, roots, list(whole["label"]), "black")
    for term, (color, marker) in _MARKS.items():
        values = table[table["term"] == term].set_index("label")["mean"].loc[whole["label"]]
        x = values.clip(lower=0) ** 0.5
        ax.scatter(x, np.arange(len(x)), color=color, marker=marker, s=22, label=term)
    name_ticks(ax, list(whole["label"]), "y", "conditions")
    at = f" at time {time:g}" if times else ""
    describe(ax, f"What batch noise adds to the error of each condition{at}; black: in all")
    ax.set_xlim(left=0)
    ax.set_xlabel("error by batch noise, RMS (log-fold change)")
    ax.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return ax


def noise_sensitivity(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Share of genes with a direction against how wide batch noise is taken to be.

    Parameters
    ----------
    table
        From `design.noise_sensitivity`.
    ax
        Where to draw.

    Returns
    -------
    matplotlib Axes; a line per contrast, darker the more batch noise inflates its variance, dashed
    and orange where it is aliased. Width 1 is the fitted one.
    """
    if table.empty:
        raise DesignError("the table is empty: batch noise inflates no contrast of this screen")
    ax = new_axes(ax, 5.5, 3.4)
    finite = table["inflation"].where(np.isfinite(table["inflation"]))
    most = max(float(np.log(finite.max())), 1e-3) if finite.notna().any() else 1.0
    keys = ["contrast", "perturbation", "media", "time"]
    named = set()
    for _, part in table.groupby(keys, dropna=False, sort=False):
        part = part.sort_values("ratio")
        aliased = not bool(part["estimable"].iloc[0])
        kind = "aliased with batches" if aliased else "estimable"
        shade = 0.3 + 0.6 * np.log(part["inflation"].iloc[0]) / most if not aliased else 1.0
        ax.plot(
            part["ratio"],
            part["called"],
            color=ORANGE if aliased else plt.get_cmap("Blues")(shade),
            linestyle="--" if aliased else "-",
            marker="o",
            markersize=3,
            label=None if kind in named else kind,
        )
        named.add(kind)
    ax.axvline(1.0, color=GREY, linewidth=1, linestyle=":")
    ratios = sorted(table["ratio"].unique())
    ax.set_xscale("log")
    ax.set_xticks(ratios, [f"{r:g}" for r in ratios])
    ax.minorticks_off()
    ax.set_ylim(bottom=0)
    ax.set_xlabel("width of batch noise, relative to the fitted one")
    ax.set_ylabel("share of genes with a direction")
    describe(ax, "How much of what is concluded hangs on the width of batch noise")
    ax.legend(frameon=False, fontsize=8)
    return ax
