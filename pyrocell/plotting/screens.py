"""Figures of the screen itself and of its cells."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from pyrocell._compat import obs_table
from pyrocell._core.messages import did_you_mean
from pyrocell.errors import UnknownLabelError
from pyrocell.plotting._style import COLUMN, MAX_TICKS, heat_map, new_axes, palette, rows_height
from pyrocell.screen.screen import Screen

if TYPE_CHECKING:
    from pyrocell.model import PyroCell

__all__ = ["latent", "layout"]

_SPELT_OUT = 4  # reasons for aliasing below the layout
_CATEGORIES = 20  # colours of a legend
_MAX_CELLS = 50_000  # points drawn


def layout(screen: Screen | PyroCell, ax: Axes | None = None) -> Axes:
    """Cells in each condition and batch: the layout graph of the screen (paper, Fig. 6).

    Parameters
    ----------
    screen
        A registered screen, or a model of it.
    ax
        Where to draw.

    Returns
    -------
    matplotlib Axes. Empty squares have no cells. Contrasts that this layout cannot tell from batch
    noise are named below.
    """
    screen = screen if isinstance(screen, Screen) else screen.screen
    order = screen.conditions.sort_values(["media", "time"], kind="stable").index
    counts = screen.layout.set_axis(screen.conditions.index).loc[order].astype(float)
    counts = counts.where(counts > 0).set_axis(_condition_names(screen)[order])
    reasons = _aliasing(screen)
    size = 3.5 + max(COLUMN, 0.4) * min(counts.shape[1], MAX_TICKS)
    lines = textwrap.wrap(reasons, int(14 * size)) if reasons else []
    height = 1.8 + rows_height(len(counts)) + 0.14 * len(lines)
    ax = new_axes(ax, size, height)
    heat_map(ax, counts, "cells", diverging=False)
    if counts.size <= 200:
        for (row, column), n in np.ndenumerate(counts.to_numpy()):
            if np.isfinite(n):
                dark = n > np.nanmax(counts) ** 0.6
                color = "white" if dark else "black"
                ax.text(column, row, f"{n:.0f}", ha="center", va="center", color=color, fontsize=7)
    ax.set_title("conditions × batches", fontsize=9)
    if lines:
        ax.set_xlabel("\n".join(lines), fontsize=7, loc="left")
    return ax


def _condition_names(screen: Screen) -> pd.Series:
    table = screen.conditions
    names = table["perturbation"].astype(str)
    if screen.media:
        names = names + ", " + table["media"].astype(str)
    if len(screen.times) > 1:
        names = names + ", " + table["time"].map("{:g}".format)
    return names


def _aliasing(screen: Screen) -> str:
    mixed = screen.aliased_contrasts
    if mixed.empty:
        return ""
    names = (mixed["contrast"] + " " + mixed["name"].astype(str)).tolist()
    shown = ", ".join(names[:_SPELT_OUT])
    more = f" and {len(names) - _SPELT_OUT} more" if len(names) > _SPELT_OUT else ""
    return f"Not told apart from batch noise: {shown}{more}."


def latent(
    model: PyroCell, color: str | pd.Series | None = None, ax: Axes | None = None, size: float = 6
) -> Axes:
    """Cells by their resting state z: its two main axes of variation.

    Parameters
    ----------
    model
        A trained model.
    color
        A column of `.obs` of the model's AnnData, or one value per cell.
    ax
        Where to draw.
    size
        Area of a point.

    Returns
    -------
    matplotlib Axes. At most 50,000 cells are drawn, in random order.
    """
    z = model.get_latent_representation()
    z = z - z.mean(0)
    _, singular, axes = np.linalg.svd(z.T @ z, hermitian=True)
    points = z @ axes[:2].T
    share = singular / singular.sum()
    rows = np.random.default_rng(0).permutation(len(z))[:_MAX_CELLS]
    ax = new_axes(ax, 5.5, 4.2)
    if color is None:
        ax.scatter(*points[rows].T, s=size, linewidths=0, alpha=0.6)
    else:
        _coloured(ax, points[rows], _cell_values(model, color).iloc[rows], size)
    for axis, i in ((ax.xaxis, 0), (ax.yaxis, 1)):
        axis.set_label_text(f"z, main axis {i + 1} ({share[i]:.0%} of variance)")
    return ax


def _cell_values(model: PyroCell, color: str | pd.Series) -> pd.Series:
    if not isinstance(color, str):
        return pd.Series(np.asarray(color), name=getattr(color, "name", None))
    obs = obs_table(model.adata)
    if color not in obs:
        raise UnknownLabelError(
            f'color="{color}" is not a column of adata.obs{did_you_mean(color, obs.columns)}'
        )
    return obs[color]


def _coloured(ax: Axes, points: np.ndarray, values: pd.Series, size: float) -> None:
    style = {"s": size, "linewidths": 0, "alpha": 0.7}
    many = values.nunique() > _CATEGORIES
    if pd.api.types.is_numeric_dtype(values) and many:
        image = ax.scatter(*points.T, c=values, cmap="viridis", **style)
        ax.figure.colorbar(image, ax=ax, label=values.name)
        return
    frequent = values.astype(str).value_counts().index
    names = sorted(frequent[: _CATEGORIES - 1] if many else frequent)
    colors = dict(zip(names, palette("tab20" if len(names) > 10 else "tab10")))
    ax.scatter(*points.T, c=[colors.get(v, "lightgrey") for v in values.astype(str)], **style)
    for name in names:
        ax.scatter([], [], color=colors[name], label=name, s=20)
    if many:
        ax.scatter([], [], color="lightgrey", label=f"{len(frequent) - len(names)} others", s=20)
    ax.legend(
        title=values.name, frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5)
    )
