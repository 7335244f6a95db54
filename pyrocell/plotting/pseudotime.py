"""Figures of trajectories: where the cells of each perturbation are, and who stays early."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from pyrocell.plotting._style import (
    BLUE,
    GREY,
    ORANGE,
    chosen,
    describe,
    forest,
    heat_map,
    new_axes,
    rows_height,
)

__all__ = ["retention", "trajectory"]


def trajectory(
    table: pd.DataFrame, perturbations: str | Iterable[str] | None = None, ax: Axes | None = None
) -> Axes:
    """Share of cells along the trajectory less that of controls, a row per perturbation.

    Parameters
    ----------
    table
        From :func:`pyrocell.pseudotime.trajectory_distribution`; rows of the controls are left out.
    perturbations
        Those to draw; all when None.
    ax
        Axes to draw into.

    Returns
    -------
    matplotlib Axes. Rows in the order of how far behind cells are. A dot: the interval of the
    difference does not hold zero.
    """
    table = chosen(table[table["difference"].notna()], "perturbation", perturbations)
    wide = {
        column: table.pivot(index="perturbation", columns="bin", values=column)
        for column in ("difference", "difference_lower", "difference_upper")
    }
    behind = wide["difference"] @ np.arange(wide["difference"].shape[1])
    order = behind.sort_values(kind="stable").index
    shown = wide["difference"].loc[order]
    ends = table.drop_duplicates("bin").sort_values("bin")
    shown.columns = [f"{a:.2f}–{b:.2f}" for a, b in zip(ends["start"], ends["end"])]
    ax = new_axes(ax, 2.5 + 0.45 * shown.shape[1], 2.2 + rows_height(len(shown)))
    heat_map(ax, shown, "share − controls'", of=("perturbations", "stretches"))
    apart = (wide["difference_lower"] > 0) | (wide["difference_upper"] < 0)
    rows, columns = np.nonzero(apart.loc[order].to_numpy())
    ax.scatter(columns, rows, s=12, color="black", edgecolors="white", linewidths=0.7)
    ax.set_xlabel("pseudotime, stretches with equally many controls")
    seen = "Where cells are on the way, against controls"
    describe(ax, seen, "furthest behind on top; dot: the interval excludes zero")
    return ax


def retention(
    table: pd.DataFrame, perturbations: str | Iterable[str] | None = None, ax: Axes | None = None
) -> Axes:
    """How much more of each perturbation than of controls is in early states, with intervals.

    Parameters
    ----------
    table
        From :func:`pyrocell.pseudotime.retention`; the row of the controls is left out.
    perturbations
        Those to draw; all when None.
    ax
        Axes to draw into.

    Returns
    -------
    matplotlib Axes. Grey bars: the difference with shuffled labels. Orange: the interval does not
    hold zero.
    """
    table = chosen(table[table["difference"].notna()], "perturbation", perturbations)
    table = table.sort_values("difference", ascending=False, kind="stable")
    ax = new_axes(ax, 5, 1.6 + rows_height(len(table)))
    rows = np.arange(len(table))
    width = table["shuffled_upper"] - table["shuffled_lower"]
    ax.barh(
        rows,
        width,
        left=table["shuffled_lower"],
        height=0.7,
        color=GREY,
        alpha=0.35,
        label="labels shuffled",
    )
    drawn = table.rename(columns={"difference": "mean"})[["mean"]].assign(
        lower=table["difference_lower"], upper=table["difference_upper"]
    )
    apart = (drawn["lower"] > 0) | (drawn["upper"] < 0)
    forest(ax, drawn, table["perturbation"].tolist(), np.where(apart, ORANGE, BLUE).tolist())
    ax.axvline(0, color="black", linewidth=0.8)
    ax.set_xlabel("share of cells in early states − controls'")
    describe(ax, "Cells that stay in early states, against controls")
    ax.legend(frameon=False, fontsize=8, loc="lower right")
    return ax
