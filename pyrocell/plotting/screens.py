"""Figures of the screen itself and of its cells."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm

from pyrocell._compat import obs_table
from pyrocell._core.messages import did_you_mean
from pyrocell.errors import UnknownLabelError
from pyrocell.plotting._style import (
    COLUMN,
    describe,
    heat_map,
    new_axes,
    page,
    palette,
    plain_log,
    rows_height,
    short,
)
from pyrocell.screen.screen import Screen

if TYPE_CHECKING:
    from pyrocell.model import PyroCell

__all__ = ["latent", "layout"]

_NUMBERED = 200  # squares into which the numbers are written
_SPELT_OUT = 4  # reasons for aliasing below the layout
_CATEGORIES = 20  # colours of a legend
_HEXAGONS = 45  # across
_MAX_CELLS = 50_000  # points drawn


def layout(screen: Screen | PyroCell, ax: Axes | None = None) -> Axes:
    """Cells of each perturbation in each batch, medium and time (paper, Fig. 6).

    Parameters
    ----------
    screen
        A registered screen, or a model of it.
    ax
        Where to draw.

    Returns
    -------
    matplotlib Axes. A row for each perturbation or combination, a column for each batch, medium and
    time that has cells. Empty squares have none. Contrasts that this layout cannot tell from batch
    noise are named below.
    """
    screen = screen if isinstance(screen, Screen) else screen.screen
    counts = _cells(screen)
    reasons = _aliasing(screen)
    width, _ = page(3.5 + max(COLUMN, 0.4) * counts.shape[1], 0)
    lines = textwrap.wrap(reasons, int(14 * width)) if reasons else []
    ax = new_axes(ax, width, 2.0 + rows_height(len(counts)) + 0.14 * len(lines))
    heat_map(ax, counts, "cells", diverging=False, of=("perturbations", "arms of batches"))
    if counts.size <= _NUMBERED:
        for (row, column), n in np.ndenumerate(counts.to_numpy()):
            if np.isfinite(n):
                dark = n > np.nanmax(counts) ** 0.6
                color = "white" if dark else "black"
                ax.text(column, row, f"{n:.0f}", ha="center", va="center", color=color, fontsize=7)
    describe(ax, f"{screen.n_cells:,} cells by perturbation and batch{_arms(screen)}")
    if lines:
        ax.set_xlabel("\n".join([*filter(None, [ax.get_xlabel()]), *lines]), fontsize=7, loc="left")
    return ax


def _cells(screen: Screen) -> pd.DataFrame:
    """Cells, perturbations × batches with medium and time; NaN where there are none.

    Where sets of perturbations are many: cells that carry each, in whatever medium and time.
    """
    if screen.many_sets:
        carried = screen.membership.T @ screen.layout.to_numpy(dtype=float)
        found = pd.DataFrame(carried, list(screen.perturbations), list(screen.batches))
        return found.where(found > 0)
    table = screen.conditions
    layout = screen.layout.set_axis(table.index).stack().rename("n").reset_index(level=1)
    layout.columns = ["batch", "n"]
    cells = table[["perturbation", "media", "time"]].join(layout[layout["n"] > 0], how="inner")
    arms = [c for c in ("media", "time") if cells[c].nunique(dropna=False) > 1]
    names = cells["batch"].astype(str)
    for column in arms:
        names = names + ", " + cells[column].map(_text)
    cells = cells.assign(name=names, perturbation=cells["perturbation"].astype(str))
    rows = cells["perturbation"].unique()
    places = cells.assign(batch=pd.factorize(cells["batch"], sort=True)[0])
    places = places.sort_values(["batch", *arms], kind="stable")["name"].unique()
    counts = pd.crosstab(cells["perturbation"], cells["name"], cells["n"], aggfunc="sum")
    return counts.reindex(index=rows, columns=places).astype(float)


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _arms(screen: Screen) -> str:
    if screen.many_sets:
        return ", a cell in the rows of all it carries"
    shown = ["medium"] * (screen.conditions["media"].nunique() > 1)
    shown += ["time"] * (screen.conditions["time"].nunique(dropna=False) > 1)
    return "".join(f", {name}" for name in shown)


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
        A column of `.obs` of the model's AnnData, or one value per cell. None: how densely cells
        lie, which shows whether there are groups of them.
    ax
        Where to draw.
    size
        Area of a point.

    Returns
    -------
    matplotlib Axes. At most 50,000 points are drawn, in random order; the density is of all cells.
    The title says what share of the variance of z, over all of its axes, lies between the groups
    that `color` names: near 0, z has nothing to do with them.
    """
    z = model.get_latent_representation()
    z = z - z.mean(0)
    _, singular, axes = np.linalg.svd(z.T @ z, hermitian=True)
    points = z @ axes[:2].T
    share = singular / singular.sum()
    ax = new_axes(ax, 5.5, 4.4)
    n = f"{len(z):,} cells by resting state z"
    if color is None:
        cells = ax.hexbin(*points.T, gridsize=_HEXAGONS, mincnt=1, cmap="viridis", norm=LogNorm(1))
        bar = ax.figure.colorbar(cells, ax=ax, label="cells in a hexagon")
        plain_log(bar.ax.yaxis)
        describe(ax, n)
    else:
        rows = np.random.default_rng(0).permutation(len(z))[:_MAX_CELLS]
        values = _cell_values(model, color)
        _coloured(ax, points[rows], values.iloc[rows], size)
        describe(ax, f"{n}, by {values.name}" if values.name else n, _between(z, values))
    for axis, i in ((ax.xaxis, 0), (ax.yaxis, 1)):
        if i < len(share):
            axis.set_label_text(f"z, main axis {i + 1} ({share[i]:.0%} of variance)")
    return ax


def _between(z: np.ndarray, values: pd.Series) -> str:
    """Share of the variance of z that lies between groups, less what random groups would have."""
    code, names = pd.factorize(values)
    numeric = pd.api.types.is_numeric_dtype(values) and len(names) > _CATEGORIES
    known = code >= 0
    n, groups = int(known.sum()), len(names)
    if numeric or groups < 2 or n <= groups:
        return ""
    z, code = z[known] - z[known].mean(0), code[known]
    size = np.bincount(code)
    means = np.stack([np.bincount(code, axis) for axis in z.T], 1) / size[:, None]
    total = float((z**2).sum())
    between = float((size[:, None] * means**2).sum())
    within = (total - between) / (n - groups)
    share = max(0.0, (between - (groups - 1) * within) / (total + within))
    return f"{share:.1%} of the variance of z is between these {groups} groups"


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
    colors = dict(zip(names, palette(len(names))))
    ax.scatter(*points.T, c=[colors.get(v, "lightgrey") for v in values.astype(str)], **style)
    for name in names:
        ax.scatter([], [], color=colors[name], label=short(name), s=20)
    if many:
        ax.scatter([], [], color="lightgrey", label=f"{len(frequent) - len(names)} others", s=20)
    ax.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
