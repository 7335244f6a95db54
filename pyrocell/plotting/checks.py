"""Figures that say whether a fit is good."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from pyrocell.errors import ScreenError
from pyrocell.plotting._style import BLUE, GREY, ORANGE, describe, new_axes, plain_log
from pyrocell.training.best_epoch import KEPT

if TYPE_CHECKING:
    from pyrocell.model import PyroCell

__all__ = ["history", "predictive_check"]

_PANELS = {"mean": "mean", "variance": "variance", "zero_fraction": "fraction of zeros"}


def history(model: PyroCell | pd.DataFrame, ax: Axes | None = None) -> Axes:
    """ELBO per cell by epoch: on the training cells, and of the cells held out.

    Parameters
    ----------
    model
        A trained model, or its `history`.
    ax
        Where to draw.

    Returns
    -------
    matplotlib Axes. The vertical axis leaves out the first tenth of training, which is steep. The
    two curves differ by the globals' part of the ELBO, which the held-out one does not have. A
    dashed line marks the epoch whose parameters the model has, where the history says it.
    """
    table = model if isinstance(model, pd.DataFrame) else model.history
    if not len(table):
        raise ScreenError("there is no history: train the model first, model.train()")
    ax = new_axes(ax, 5, 3.5)
    curves = {"training cells": -table["train_loss"]}
    if "validation_elbo" in table:
        held_out = table["validation_elbo"]
        # Between two checks the history repeats the last value.
        curves["held-out cells"] = held_out[held_out.ne(held_out.shift())].dropna()
    for (name, curve), color in zip(curves.items(), (GREY, ORANGE)):
        ax.plot(curve.index, curve, color=color, label=name, linewidth=1.5)
    late = pd.concat([curve[curve.index >= 0.1 * table.index[-1]] for curve in curves.values()])
    margin = 0.05 * (late.max() - late.min()) or 1.0
    ax.set_ylim(late.min() - margin, late.max() + margin)
    kept = table.index[table[KEPT] > 0] if KEPT in table else []
    for epoch in kept[:1]:
        label = f"parameters kept (epoch {epoch})"
        ax.axvline(epoch, color="black", linewidth=0.8, linestyle="--", label=label)
    ax.set_xlabel("epoch")
    ax.set_ylabel("ELBO (nats per cell)")
    describe(ax, "How well cells are explained as training goes on")
    ax.legend(frameon=False, fontsize=8)
    return ax


def predictive_check(table: pd.DataFrame, axes: Sequence[Axes] | None = None) -> np.ndarray:
    """Observed against replicated mean, variance and fraction of zeros, a point for each gene.

    Parameters
    ----------
    table
        From :meth:`pyrocell.PyroCell.posterior_predictive_check`.
    axes
        Three Axes to draw in.

    Returns
    -------
    Array of three Axes. Bars are the predictive bands; orange: the observed value lies outside.
    """
    if axes is None:
        _, axes = plt.subplots(1, 3, figsize=(8, 3.1), layout="constrained")
    panels = np.asarray(axes)
    for ax, (statistic, label) in zip(panels, _PANELS.items()):
        rows = table[table["statistic"] == statistic]
        log = statistic != "zero_fraction"
        share = f"{rows['inside'].mean():.0%}" if len(rows) else "none"
        ax.set_title(f"{label}\n{share} of {len(rows)} genes in the band", fontsize=9)
        if log:
            rows = rows[(rows["observed"] > 0) & (rows["expected"] > 0)]
        inside = rows["inside"].to_numpy(bool)
        floor = rows["expected"].min() / 10 if log else 0.0
        lower = np.maximum(rows["lower"], floor)
        color = np.where(inside, BLUE, ORANGE)
        ax.vlines(rows["observed"], lower, rows["upper"], color=color, linewidth=1, alpha=0.6)
        ax.scatter(rows["observed"], rows["expected"], s=8, color=color, zorder=3, linewidths=0)
        if rows.empty:
            continue
        ends = [rows["observed"].min(), rows["observed"].max()]
        ax.plot(ends, ends, color="black", linewidth=0.8)
        if log:
            ax.set(xscale="log", yscale="log")
            plain_log(ax.xaxis)
            plain_log(ax.yaxis)
        ax.set_xlabel(f"observed {label}")
        ax.set_ylabel(f"replicated {label}")
    return panels
