"""Error against epoch, many seeds to a curve (paper, Fig. 4)."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from matplotlib.axes import Axes

from pyrocell._core.messages import did_you_mean
from pyrocell.errors import ScreenError, UnknownLabelError
from pyrocell.plotting._style import GREY, describe, new_axes, palette, plain_log

__all__ = ["learning_curves"]


def learning_curves(
    histories: Mapping[str, pd.DataFrame],
    column: str = "held_out",
    share: float = 0.9,
    anchors: Mapping[str, float] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Mean over seeds by epoch, with the band that holds a share of the seeds.

    Parameters
    ----------
    histories
        From :meth:`pyrocell.PseudobulkODE.fit`, by the name to give each curve.
    column
        Which error: "held_out", "loss" or "steady_state".
    share
        Of the seeds between the edges of the band, as many above as below.
    anchors
        Errors to draw as lines across, by name: of predictors that know no epochs.
    ax
        Where to draw.

    Returns
    -------
    matplotlib Axes, errors on a logarithmic scale.
    """
    ax = new_axes(ax, 6, 4)
    for i, (name, history) in enumerate(histories.items()):
        if column not in history:
            raise UnknownLabelError(
                f'column "{column}" is not in the history{did_you_mean(column, history.columns)}'
            )
        by_epoch = history.groupby("epoch")[column]
        mean = by_epoch.mean()
        if mean.isna().all():
            raise ScreenError(f'"{name}" has no values of {column}: it was fitted without them')
        color = palette(len(histories))[i]
        lower, upper = (by_epoch.quantile(q) for q in ((1 - share) / 2, (1 + share) / 2))
        ax.fill_between(mean.index, lower, upper, color=color, alpha=0.2, linewidth=0)
        ax.plot(mean.index, mean, color=color, linewidth=1.5, label=name)
    styles = ("--", ":", "-.", (0, (1, 3)))
    for (name, error), style in zip((anchors or {}).items(), styles * len(anchors or ())):
        ax.axhline(error, color=GREY, linestyle=style, linewidth=1, label=name)
    ax.set_yscale("log")
    plain_log(ax.yaxis)
    ax.set_xlabel("epoch")
    ax.set_ylabel(f"mean squared error, {column.replace('_', ' ')}")
    describe(ax, f"Error by epoch: mean of the seeds, and the band of {share:.0%} of them")
    ax.legend(frameon=False, fontsize=8)
    return ax
