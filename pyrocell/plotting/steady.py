"""Figure of the steady-state screen: raw change beside what is left without noise."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from pyrocell.plotting._style import BLUE, GREY, ORANGE

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
        _, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained", sharex=True)
    left, right = panels = np.asarray(axes)
    inverse = 1 / table["n_from"] + 1 / table["n_to"]
    left.scatter(inverse, table["raw"], s=14, color=BLUE, linewidths=0, label="condition")
    left.scatter(
        inverse, table["raw_baseline"], s=14, color=GREY, marker="x", label="controls, same n"
    )
    left.set_ylabel("mean |change| of log1p expression")
    left.set_title(f"raw{_correlation(inverse, table['raw'])}", fontsize=9)
    left.legend(frameon=False, fontsize=8)

    moving = table["lower"] > 0
    colors = np.where(moving, ORANGE, BLUE)
    filled = np.where(table["batch_removed"], colors, "white")
    right.vlines(inverse, table["lower"], table["upper"], color=colors, linewidth=1)
    right.scatter(inverse, table["rms"], s=14, c=filled, edgecolors=colors, zorder=3)
    for i in table.loc[moving, "lower"].nlargest(n_named).index:
        row = table.loc[i]
        name = f"{row['perturbation']} {row['time_from']:g}→{row['time_to']:g}"
        right.annotate(
            name,
            (inverse[i], row["rms"]),
            (3, 3),
            textcoords="offset points",
            fontsize=7,
        )
    right.set_ylim(bottom=-0.02 * table["upper"].max() if table["upper"].max() > 0 else None)
    right.set_ylabel("RMS log-fold change, relative to control")
    right.set_title(
        f"noise and controls' change removed{_correlation(inverse, table['squared'], 'square, ')}",
        fontsize=9,
    )
    for ax in panels:
        ax.set_xscale("log")
        ax.set_xlabel("1 / cells at earlier time + 1 / cells at later time")
    return panels


def _correlation(x: pd.Series, y: pd.Series, of: str = "") -> str:
    """Text with the correlation where there is one."""
    known = y.notna()
    if known.sum() < 3 or x[known].nunique() < 2:
        return ""
    return f" ({of}r = {np.corrcoef(x[known], y[known])[0, 1]:.2f})"
