"""Figures of what perturbations, media and batches do to genes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from pyrocell.errors import ScreenError
from pyrocell.plotting._style import (
    BLUE,
    COLUMN,
    LFC,
    ORANGE,
    certain,
    chosen,
    describe,
    forest,
    grid,
    heat_map,
    mark_own_genes,
    new_axes,
    one_place,
    rows_height,
    strongest,
    together,
    where,
)
from pyrocell.plotting.comparisons import volcano

__all__ = ["batch_effects", "effect_intervals", "effects", "gains"]


def effects(
    table: pd.DataFrame,
    perturbation: str | None = None,
    n_genes: int = 40,
    probability: float = 0.95,
    ax: Axes | None = None,
    n_perturbations: int = 80,
) -> Axes:
    """Effects of all perturbations as a heat map, or of one perturbation gene by gene.

    Parameters
    ----------
    table
        From :meth:`pyrocell.PyroCell.perturbation_effects`; one medium and time.
    perturbation
        Draw only this one: log-fold change against probability of direction, every gene a point.
    n_genes
        Genes of the heat map: those with the largest effect, by the bound of the interval that is
        nearer to zero. In the figure of one perturbation, a fourth of these are named.
    probability
        Effects whose direction is at least this probable are marked.
    ax
        Where to draw.
    n_perturbations
        Rows of the heat map: where there are more, those with the largest effect.

    Returns
    -------
    matplotlib Axes. In the heat map, rows and genes that are alike stand together; a dot marks a
    probable direction, a frame the gene that the row's perturbation targets, and grey a value that
    is missing.
    """
    table = one_place(table)
    if perturbation is not None:
        return volcano(table, perturbation, 1 - probability, n_genes // 4, ax)
    every = table["perturbation"].nunique()
    table = strongest(strongest(table, "perturbation", n_perturbations), "gene", n_genes)
    mean = together(grid(table, "perturbation", "mean"))
    sure = grid(table, "perturbation", "prob_direction").reindex(mean.index, columns=mean.columns)
    ax = new_axes(ax, 3 + COLUMN * mean.shape[1], 1.8 + rows_height(len(mean)))
    heat_map(ax, mean, LFC, of=("perturbations", "genes"))
    y, x = np.nonzero(sure.to_numpy() >= probability)
    ax.scatter(x, y, s=4, color="black", linewidths=0)
    framed = mark_own_genes(ax, [*mean.index], [*mean.columns])
    of = f"{len(mean)}" if len(mean) == every else f"the {len(mean)} strongest of {every}"
    head = f"Effects of {of} perturbations on the {mean.shape[1]} genes they change most"
    signs = f"dot: P(direction) ≥ {probability:g}" + ("; frame: own gene" if framed else "")
    describe(ax, head, "; ".join(filter(None, [where(table), signs])))
    return ax


def effect_intervals(
    table: pd.DataFrame,
    perturbations: str | Sequence[str] | None = None,
    genes: str | Sequence[str] | None = None,
    n: int = 25,
    ax: Axes | None = None,
) -> Axes:
    """Effects with their credible intervals, strongest on top.

    Parameters
    ----------
    table
        From :meth:`pyrocell.PyroCell.perturbation_effects`; one medium and time.
    perturbations, genes
        Draw only these; default: all.
    n
        At most this many intervals: those farthest from zero.
    ax
        Where to draw.

    Returns
    -------
    matplotlib Axes. Orange: the interval excludes zero.
    """
    table = chosen(chosen(one_place(table), "perturbation", perturbations), "gene", genes)
    rows = table.loc[certain(table).dropna().nlargest(n).index]
    several = rows["perturbation"].nunique() > 1, rows["gene"].nunique() > 1
    names = [
        " → ".join(part for part, shown in zip((p, g), several) if shown) or f"{p} → {g}"
        for p, g in zip(rows["perturbation"].astype(str), rows["gene"].astype(str))
    ]
    ax = new_axes(ax, 5.5, 1.2 + rows_height(len(rows)))
    forest(ax, rows, names, np.where(certain(rows) > 0, ORANGE, BLUE).tolist())
    ax.axvline(0, color="black", linewidth=0.8)
    ax.set_xlabel(LFC)
    fixed = [str(rows[c].iloc[0]) for c, many in zip(("perturbation", "gene"), several) if not many]
    shown = f"{len(rows)} effects" + (" farthest from zero" if len(rows) == n else "")
    head = " → ".join(fixed) if len(fixed) == 2 else ": ".join([*fixed, shown])
    describe(ax, _title(head, rows), "orange: the interval excludes zero")
    return ax


def batch_effects(table: pd.DataFrame, n_genes: int = 40, ax: Axes | None = None) -> Axes:
    """η of every batch and gene as a heat map; genes with the largest η first.

    Parameters
    ----------
    table
        From :meth:`pyrocell.PyroCell.batch_effects`.
    n_genes
        Genes shown.
    ax
        Where to draw.

    Returns
    -------
    matplotlib Axes. A dot marks an interval that excludes zero.
    """
    strength = table["mean"].abs().groupby(table["gene"], sort=False, observed=True).max()
    table = table[table["gene"].isin(strength.nlargest(n_genes).index)]
    mean = grid(table, "batch", "mean")
    order = mean.abs().max().sort_values(ascending=False).index
    ax = new_axes(ax, 3 + COLUMN * mean.shape[1], 1.8 + rows_height(len(mean)))
    heat_map(ax, mean[order], "η (natural log)", of=("batches", "genes"))
    outside = grid(table.assign(outside=certain(table)), "batch", "outside")[order]
    y, x = np.nonzero(outside.to_numpy() > 0)
    ax.scatter(x, y, s=4, color="black", linewidths=0)
    head = f"Batch noise of {len(mean)} batches in the {mean.shape[1]} genes with most of it"
    describe(ax, head, "dot: the interval excludes zero")
    return ax


def gains(table: pd.DataFrame, media: str | None = None, ax: Axes | None = None) -> Axes:
    """Gain of each perturbation on a medium's response with its interval, lowest on top.

    Parameters
    ----------
    table
        From :meth:`pyrocell.PyroCell.media_gains`.
    media
        Which medium; may be left out if the table has one.
    ax
        Where to draw.

    Returns
    -------
    matplotlib Axes. Lines at 0 (the perturbation blocks the response) and 1 (it leaves it as it
    is); orange: the interval excludes 1.
    """
    names = list(table["media"].unique())
    if media is None and len(names) > 1:
        raise ScreenError(f"the table has {len(names)} media; say media= one of {names}")
    rows = chosen(table, "media", media).sort_values("mean")
    ax = new_axes(ax, 5, 1.2 + rows_height(len(rows)))
    changed = (rows["upper"] < 1) | (rows["lower"] > 1)
    forest(ax, rows, rows["perturbation"].tolist(), np.where(changed, ORANGE, BLUE).tolist())
    describe(
        ax,
        f"How much of the response to {rows['media'].iloc[0]} is left",
        "orange: the interval excludes 1",
    )
    for value, style in ((0, "--"), (1, "-")):
        ax.axvline(value, color="black", linewidth=0.8, linestyle=style)
    ax.set_xlabel("gain (0: blocked, 1: as in controls)")
    return ax


def _title(head: str, table: pd.DataFrame) -> str:
    return "; ".join(part for part in (head, where(table)) if part)
