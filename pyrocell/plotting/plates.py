"""Figures of arrayed screens: what is, or was seen, in each well, and what the edge did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, TwoSlopeNorm
from matplotlib.patches import Patch

from pyrocell._core.messages import did_you_mean, join_names
from pyrocell.arrayed.edge_effects import locate
from pyrocell.arrayed.plates import PLATES
from pyrocell.errors import ScreenError, UnknownLabelError
from pyrocell.plotting._style import (
    BLUE,
    DIVERGING,
    GREY,
    LFC,
    describe,
    forest,
    new_axes,
    palette,
)

if TYPE_CHECKING:
    from pyrocell.model import PyroCell

__all__ = ["edge_effects", "plate_map"]

_CATEGORIES = 20  # labels; beyond, they have no legend


def plate_map(
    values: PyroCell | pd.Series | pd.DataFrame,
    plate: str | None = None,
    *,
    gene: str | None = None,
    color: str = "perturbation",
    edges: pd.DataFrame | None = None,
    wells: Mapping[str, str] | Sequence[str] | None = None,
    plates: Mapping[str, str] | Sequence[str] | None = None,
    plate_size: int | None = None,
    n_samples: int = 100,
    ax: Axes | None = None,
) -> Axes:
    """A plate as it lies on the bench: one coloured square per well.

    Parameters
    ----------
    values
        A fitted model whose batches are wells: the posterior mean of η, of one gene or along the
        direction in which η varies most. Or a Series of numbers or labels by well. Or a layout
        from `design.plate_map`.
    plate
        Which plate, where there are several.
    gene
        Of a model.
    color
        Column of a layout: "perturbation" or "media".
    edges
        From `arrayed.edge_effects`, for the title: size of the edge effect with its interval.
    wells, plates, plate_size
        As in `arrayed.edge_effects`.
    n_samples
        Posterior draws of a model.
    ax
        Where to draw.

    Returns
    -------
    matplotlib Axes.
    """
    label = color
    if isinstance(values, pd.DataFrame):
        names = values["plate"].astype(str) + "_" + values["well"].astype(str)
        values = pd.Series(values[color].to_numpy(), names)
    elif not isinstance(values, pd.Series):
        values, label = _noise(values, gene, n_samples)
    names, position = locate(values.index, wells, plates, plate_size)
    present: list[str] = list(dict.fromkeys(names))
    if plate is None and len(present) > 1:
        raise ScreenError(f"several plates: {join_names(present)}; choose one by plate=")
    plate = present[0] if plate is None else plate
    if plate not in present:
        raise UnknownLabelError(f'plate "{plate}" is not there{did_you_mean(plate, present)}')
    mine = np.flatnonzero(names == plate)
    rows, columns = PLATES[position.attrs["plate_size"]]
    ax = new_axes(ax, 1.6 + 0.26 * columns, 0.9 + 0.26 * rows)
    shown = np.full((rows, columns), np.nan)
    at = position["row"].to_numpy()[mine], position["column"].to_numpy()[mine]
    if pd.api.types.is_numeric_dtype(values):
        shown[at] = values.to_numpy(float)[mine]
        limit = max(float(np.nanmax(np.abs(shown))), 1e-6)
        norm = TwoSlopeNorm(0.0, -limit, limit)
        image = ax.imshow(np.ma.masked_invalid(shown), cmap=DIVERGING, norm=norm)
        ax.figure.colorbar(image, ax=ax, label=values.name or label, shrink=0.8)
    else:
        _labelled(ax, shown, at, values.iloc[mine].astype(str))
    ax.set_xticks(range(columns), [str(c) for c in range(1, columns + 1)], fontsize=7)
    ax.set_yticks(range(rows), [chr(ord("A") + r) for r in range(rows)], fontsize=7)
    ax.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    describe(ax, _title(plate, edges))
    return ax


def edge_effects(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Size of every effect of position with its interval; blue where it is probable.

    Parameters
    ----------
    table
        From `arrayed.edge_effects`.
    ax
        Where to draw.

    Returns
    -------
    matplotlib Axes.
    """
    ax = new_axes(ax, 5.0, 1.2 + 0.22 * len(table))
    several = table["plate"].nunique() > 1
    names = [
        f"{row.effect}{f', {row.plate}' if several else ''}  (P = {row.posterior:.2f})"
        for row in table.itertuples()
    ]
    colors = [BLUE if p > 0.5 else GREY for p in table["posterior"]]
    forest(ax, table.rename(columns={"size": "mean"}), names, colors, "effects of position")
    describe(ax, "What the position on a plate does", "blue: probable")
    ax.set_xlim(left=0)
    ax.set_xlabel(f"size, RMS {LFC}")
    return ax


def _noise(model: PyroCell, gene: str | None, n_samples: int) -> tuple[pd.Series, str]:
    """Posterior mean of η by well: of a gene, or along its first principal axis of unit RMS."""
    table = model.batch_effects(n_samples).pivot(index="batch", columns="gene", values="mean")
    if gene is not None:
        if gene not in table:
            raise UnknownLabelError(f'gene "{gene}" is not in the model{did_you_mean(gene, table)}')
        return table[gene], f"η of {gene}\n{LFC}"
    axis = np.linalg.svd(table.to_numpy(), full_matrices=False)[2][0]
    axis *= np.sign(axis[np.abs(axis).argmax()])
    return table @ axis / np.sqrt(len(axis)), "η along its main axis\n(log-fold change)"


def _labelled(ax: Axes, shown: np.ndarray, at: tuple, labels: pd.Series) -> None:
    code, names = pd.factorize(labels)
    shown[at] = code
    colors = palette(len(names))
    highest = len(names) - 0.5
    ax.imshow(np.ma.masked_invalid(shown), cmap=ListedColormap(colors), vmin=-0.5, vmax=highest)
    if len(names) <= _CATEGORIES:
        keys = [Patch(color=c, label=name) for c, name in zip(colors, names, strict=True)]
        ax.legend(handles=keys, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5),
                  fontsize=7)  # fmt: skip


def _title(plate: str, edges: pd.DataFrame | None) -> str:
    if edges is None:
        return plate
    row = edges[(edges["plate"] == plate) & (edges["effect"] == "edge")]
    if row.empty:
        raise UnknownLabelError(f'the table of effects has no edge effect of plate "{plate}"')
    row = row.iloc[0]
    return (
        f"{plate}: edge effect {row['size']:.2f} [{row['lower']:.2f}, {row['upper']:.2f}], "
        f"P = {row['posterior']:.2f}"
    )
