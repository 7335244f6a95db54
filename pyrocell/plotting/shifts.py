"""Figures of shifts in time: courses of controls and of a perturbation, as measured and aligned."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from pyrocell.plotting._style import BLUE, GREY, ORANGE, page, short
from pyrocell.posterior.temporal_shift import aligned_courses

if TYPE_CHECKING:
    from pyrocell.model import PyroCell

__all__ = ["temporal_shift"]

_ACROSS = 3
_INTERVAL = 1.645  # standard deviations


def temporal_shift(
    model: PyroCell,
    table: pd.DataFrame,
    perturbation: str | None = None,
    n_genes: int = 6,
    axes: np.ndarray | None = None,
) -> np.ndarray:
    """Courses of controls and of a perturbation, as measured and moved back by its shift.

    Parameters
    ----------
    model
        The model that was asked.
    table
        From :meth:`pyrocell.PyroCell.temporal_shift`.
    perturbation
        Default: that whose shift explains the most.
    n_genes
        Genes drawn: those that move most in controls.
    axes
        Where to draw, as many as genes.

    Returns
    -------
    (n_genes,) matplotlib Axes. Blue: controls. Grey: the perturbation at the times measured.
    Orange: the same at those times less the shift; on the blue line where the shift explains it.
    Bars are 90% intervals of single levels.
    """
    testable = table[table["testable"]]
    if perturbation is None:
        perturbation = str(testable.loc[testable["explained"].idxmax(), "perturbation"])  # pyright: ignore[reportArgumentType, reportCallIssue]
    rows = table[table["perturbation"] == perturbation]
    shift = float(rows["shift"].iloc[0]) if len(rows) else 0.0
    media = str(table["media"].iloc[0])
    levels = aligned_courses(model.fitted, perturbation, shift, media, n_genes)
    genes = levels["gene"].unique()
    if axes is None:
        down = -(-len(genes) // _ACROSS)
        size = page(7.5, 1.0 + 1.9 * down)
        figure, grid = plt.subplots(down, _ACROSS, figsize=size, layout="constrained", sharex=True)
        axes = np.atleast_1d(grid).ravel()
        for unused in axes[len(genes) :]:
            unused.set_visible(False)
        figure.supxlabel("time")
        figure.supylabel("log share of counts")
    for gene, ax in zip(genes, axes):
        mine = levels[levels["gene"] == gene]
        ours = mine[mine["group"] == "control"].sort_values("time")
        theirs = mine[mine["group"] != "control"].sort_values("time")
        for part, at, colour, line in (
            (ours, "time", BLUE, "-"),
            (theirs, "time", GREY, ":"),
            (theirs, "aligned", ORANGE, "none"),
        ):
            bars = _INTERVAL * part["sd"]
            ax.errorbar(
                part[at], part["level"], bars, color=colour, linestyle=line, marker="o", ms=3, lw=1
            )
        ax.set_title(short(str(gene)), fontsize=8)
    if len(rows):
        row = rows.iloc[0]
        text = (
            f"{short(perturbation)}: shift {shift:+.2g} ({row['lower']:.2g} to {row['upper']:.2g})"
        )
        axes[0].figure.suptitle(
            f"{text}, explains {row['explained']:.0%} of its effect", fontsize=9
        )
    return axes[: len(genes)]
