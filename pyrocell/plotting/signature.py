"""Figure of a signature: what a panel predicts, and what is known of each of its genes."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from pyrocell.errors import ScreenError
from pyrocell.plotting._style import (
    BLUE,
    GREY,
    LFC,
    ORANGE,
    describe,
    forest,
    page,
    rows_height,
)

__all__ = ["signature"]

_Z = 1.645  # of a 90% interval


def signature(table: pd.DataFrame, axes: np.ndarray | None = None) -> np.ndarray:
    """Held-out AUROC as genes are added, and the posterior of each gene beside.

    Parameters
    ----------
    table
        From :meth:`pyrocell.PyroCell.signature`.
    axes
        Two Axes, where to draw.

    Returns
    -------
    array of two matplotlib Axes: prediction (AUROC of the panel up to each gene with its interval,
    by as many genes with the largest |z|, and with labels shuffled), and inference (mean and 90%
    interval of each gene's effect, orange where its sign is sure, lfsr < .05).
    """
    if table["perturbation"].nunique() != 1:
        raise ScreenError("pl.signature draws one perturbation; give the rows of one")
    n = len(table)
    if axes is None:
        size = page(8.0, 1.6 + rows_height(n))
        _, axes = plt.subplots(1, 2, figsize=size, sharey=True, layout="constrained")
    left, right = np.asarray(axes).ravel()
    y = np.arange(n)
    left.fill_betweenx(y, 0.5, table["shuffled_upper"], color=GREY, alpha=0.25, linewidth=0)
    left.plot(table["auroc_shuffled"], y, color=GREY, linewidth=0.8, label="labels shuffled")
    left.plot(table["auroc_top_z"], y, color="black", linestyle=":", label="largest |z|")
    left.hlines(y, table["lower"], table["upper"], color=BLUE, alpha=0.5)
    left.plot(table["auroc_with"], y, "o-", color=BLUE, label="panel so far")
    left.axvline(table["auroc_all"].iloc[0], color=BLUE, linestyle="--", linewidth=0.8)
    left.set_ylim(n - 0.5, -0.5)
    left.set_xlabel("held-out AUROC (dashed: all genes)")
    left.legend(loc="lower left", frameon=False, fontsize="small")
    interval = pd.DataFrame(
        {
            "mean": table["mean"],
            "lower": table["mean"] - _Z * table["sd"],
            "upper": table["mean"] + _Z * table["sd"],
        }
    )
    colours = np.where(table["lfsr"] < 0.05, ORANGE, BLUE).tolist()
    forest(right, interval, table["gene"].astype(str).tolist(), colours, of="genes")
    right.axvline(0, color="black", linewidth=0.8)
    right.set_xlabel(LFC)
    describe(left, f"Prediction: {table['perturbation'].iloc[0]}")
    describe(right, "Inference: posterior of each gene", "orange: lfsr < .05")
    return np.array([left, right])
