"""Figures of what was held out: methods and anchors by metric."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from pyrocell._core.messages import did_you_mean
from pyrocell.errors import ScreenError, UnknownLabelError
from pyrocell.plotting._style import BLUE, GREY, describe, page, plain_log

if TYPE_CHECKING:
    from pyrocell.evaluation import Evaluation

__all__ = ["evaluation"]

_SHOWN = ("discrimination", "spearman", "de_overlap", "wmse", "mse", "pearson")
_CHANCE = {"discrimination": 0.5, "de_direction": 0.5, "de_auroc": 0.5, "spearman": 0, "pearson": 0}
_SMALLER = ("wmse", "mse", "crps")
_COLUMNS = 3


def evaluation(
    scores: Evaluation | pd.DataFrame,
    metrics: Sequence[str] = _SHOWN,
    axes: np.ndarray | None = None,
) -> np.ndarray:
    """Scores of a model and of anchors without one, metric by metric.

    Parameters
    ----------
    scores
        From :func:`pyrocell.metrics.evaluate`, or its `scores`.
    metrics
        Columns to draw, a panel each.
    axes
        Where to draw, one for each metric.

    Returns
    -------
    Array of matplotlib Axes. Grey: each held-out condition; blue: their mean; dotted: chance.
    Errors are on a logarithmic axis.

    Raises
    ------
    UnknownLabelError
        If a metric is not in the table.
    ScreenError
        If there is nothing to draw, or not as many axes as metrics.
    """
    table = scores if isinstance(scores, pd.DataFrame) else scores.scores
    for name in metrics:
        if name not in table:
            known = [str(column) for column in table]
            raise UnknownLabelError(f'metric "{name}" is not there{did_you_mean(name, known)}')
    if table.empty or not len(metrics):
        raise ScreenError("there is no score to draw; give a table with rows, and a metric")
    methods = list(dict.fromkeys(table["method"]))
    if axes is None:
        n_rows = -(-len(metrics) // _COLUMNS)
        n_columns = min(_COLUMNS, len(metrics))
        size = page(2.3 * n_columns + 1.2, (0.28 * len(methods) + 0.9) * n_rows)
        _, made = plt.subplots(
            n_rows, n_columns, figsize=size, layout="constrained", sharey=True, squeeze=False
        )
        axes = made.ravel()
        for ax in axes[len(metrics) :]:
            ax.set_visible(False)
        axes = axes[: len(metrics)]
    axes = np.atleast_1d(np.asarray(axes, dtype=object)).ravel()
    if len(axes) != len(metrics):
        raise ScreenError(f"{len(axes)} axes for {len(metrics)} metrics; give one for each")
    rng = np.random.default_rng(0)  # of the jitter
    for ax, name in zip(axes, metrics):
        for y, method in enumerate(methods):
            values = table.loc[table["method"] == method, name].dropna().to_numpy(float)
            if len(values):
                jitter = y + rng.uniform(-0.2, 0.2, len(values))
                ax.scatter(values, jitter, s=7, color=GREY, linewidths=0)
                ax.scatter(values.mean(), y, s=34, color=BLUE, zorder=3)
        if name in _SMALLER and (table[name].dropna() > 0).all():
            ax.set_xscale("log")
            plain_log(ax.xaxis)
        if name in _CHANCE:
            ax.axvline(_CHANCE[name], color=GREY, linewidth=0.8, linestyle=":")
        ax.set_yticks(range(len(methods)), methods, fontsize=8)
        ax.set_ylim(len(methods) - 0.5, -0.5)
        ax.tick_params(axis="x", labelsize=7)
        ax.grid(axis="y", alpha=0.3)
        describe(ax, f"{name} ({'smaller' if name in _SMALLER else 'larger'}: better)")
    return axes
