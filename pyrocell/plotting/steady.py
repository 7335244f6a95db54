"""Figure of the steady-state screen: raw change beside what is left without noise."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from pyrocell.plotting._style import BLUE, GREY, ORANGE, plain_log

__all__ = ["steady_screen"]


def steady_screen(
    table: pd.DataFrame, n_named: int = 10, axes: Sequence[Axes] | None = None
) -> np.ndarray:
    """Change between consecutive times against 1/n: raw with its baseline, and corrected.

    Parameters
    ----------
    table
        From :meth:`pyrocell.PyroCell.steady_state_screen`; rows of the controls are left out.
    n_named
        Conditions named: those whose interval is farthest above zero.
    axes
        Two Axes to draw into.

    Returns
    -------
    (2,) matplotlib Axes. Orange: the interval lies above zero. Hollow: batch noise was not removed.
    The correlation r of each with 1/n is in the titles; a measure of motion should have none.
    """
    table = table[table["reference"] == "control"]
    if axes is None:
        _, axes = plt.subplots(1, 2, figsize=(8, 3.6), layout="constrained", sharex=True)
    left, right = panels = np.asarray(axes)
    inverse = 1 / table["n_from"] + 1 / table["n_to"]
    left.scatter(inverse, table["raw"], s=14, color=BLUE, linewidths=0, label="condition")
    left.scatter(
        inverse, table["raw_baseline"], s=14, color=GREY, marker="x", label="controls, same n"
    )
    left.set_ylabel("mean |change| of log1p expression")
    left.set_title(f"raw change{_correlation(inverse, table['raw'])}", fontsize=8)
    left.legend(frameon=False, fontsize=8)

    moving = table["lower"] > 0
    colors = np.where(moving, ORANGE, BLUE)
    filled = np.where(table["batch_removed"], colors, "white")
    right.vlines(inverse, table["lower"], table["upper"], color=colors, linewidth=1)
    right.scatter(inverse, table["rms"], s=14, c=filled, edgecolors=colors, zorder=3)
    # Names of neighbours would overlap: they go down a ladder beside the points.
    named = table.loc[table.loc[moving, "lower"].nlargest(n_named).index]
    named = named.sort_values("rms", ascending=False)
    for step, i in enumerate(named.index):
        row = table.loc[i]
        right.annotate(
            f"{row['perturbation']} {row['time_from']:g}→{row['time_to']:g}",
            (inverse[i], row["rms"]),
            (1.02, 1 - 0.06 * step),
            textcoords="axes fraction",
            va="top",
            fontsize=7,
            arrowprops={"arrowstyle": "-", "color": GREY, "linewidth": 0.4},
        )
    right.set_ylim(bottom=-0.02 * table["upper"].max() if table["upper"].max() > 0 else None)
    right.set_ylabel("RMS log-fold change, relative to control")
    right.set_title(
        f"noise and controls' change removed{_correlation(inverse, table['squared'], 'square, ')}",
        fontsize=8,
    )
    for ax in panels:
        ax.set_xscale("log")
        ax.set_xlabel("1 / cells earlier + 1 / cells later")
        plain_log(ax.xaxis)
    return panels


def _correlation(x: pd.Series, y: pd.Series, of: str = "") -> str:
    """Text with the correlation where there is one."""
    known = y.notna()
    if known.sum() < 3 or x[known].nunique() < 2:
        return ""
    return f" ({of}r = {np.corrcoef(x[known], y[known])[0, 1]:.2f})"
