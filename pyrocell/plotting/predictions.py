"""Figures of predicted conditions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes

from pyrocell._compat import obs_table
from pyrocell._core.messages import did_you_mean
from pyrocell.errors import ScreenError, UnknownLabelError
from pyrocell.plotting._style import (
    COLUMN,
    MARKERS,
    describe,
    name_ticks,
    new_axes,
    palette,
    plain_log,
    short,
)

__all__ = ["prediction"]

_CONDITIONS = 10  # colours and signs
_WIDTH = 0.7  # of a gene's slot that its conditions fill


def prediction(
    adata: AnnData,
    genes: str | Sequence[str] | None = None,
    n_genes: int = 20,
    over_time: bool = False,
    ax: Axes | None = None,
) -> Axes:
    """Predicted counts of conditions with their intervals.

    Parameters
    ----------
    adata
        From :meth:`pyrocell.PyroCell.predict`: at most ten conditions (or courses, over time).
    genes
        Which genes; default: those that differ most between the conditions.
    n_genes
        Number of genes where none are named.
    over_time
        Draw one gene's course over the times of the conditions instead.
    ax
        Where to draw.

    Returns
    -------
    matplotlib Axes.
    """
    names = _genes(adata, genes, 1 if over_time else n_genes)
    if over_time:
        return _course(adata, names[0], ax)
    if adata.n_obs > _CONDITIONS:
        raise ScreenError(
            f"{adata.n_obs} conditions are too many for one figure; pass {_CONDITIONS} or fewer, "
            "such as adata[:10]"
        )
    ax = new_axes(ax, 3.5 + COLUMN * len(names) * max(1, adata.n_obs / 3), 4)
    shown = adata[:, names]
    offsets = _WIDTH * (np.arange(adata.n_obs) - (adata.n_obs - 1) / 2) / adata.n_obs
    for i, (label, color, marker) in enumerate(zip(_labels(adata), palette(adata.n_obs), MARKERS)):
        x = np.arange(len(names)) + offsets[i]
        ax.vlines(x, shown.layers["lower"][i], shown.layers["upper"][i], color=color, linewidth=2)
        ax.scatter(
            x, shown.X[i], s=14, color=color, marker=marker, label=short(str(label)), zorder=3
        )
    lowest = shown.layers["lower"].min()
    if lowest > 0 and shown.layers["upper"].max() > 30 * lowest:
        ax.set_yscale("log")
        plain_log(ax.yaxis)
    name_ticks(ax, names, "x", "genes")
    ax.set_ylabel("counts per cell")
    ax.grid(axis="x", alpha=0.3)
    describe(ax, f"Predicted counts of {len(names)} genes, with credible intervals")
    ax.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return ax


def _course(adata: AnnData, gene: str, ax: Axes | None) -> Axes:
    """One gene over time, a line and band for each perturbation, medium and batch."""
    if "time" not in adata.obs:
        raise ScreenError("the conditions have no column time, so there is no course to draw")
    ax = new_axes(ax, 5.5, 3.5)
    column = adata[:, gene]
    table = obs_table(adata).assign(
        **{name: np.asarray(column.layers[name])[:, 0] for name in ("lower", "upper")},
        mean=np.asarray(column.X)[:, 0],
    )
    courses = table.groupby(_labels(adata, without="time"), sort=False)
    if courses.ngroups > _CONDITIONS:
        raise ScreenError(f"{courses.ngroups} courses are too many; pass {_CONDITIONS} or fewer")
    for (label, rows), color, marker in zip(courses, palette(courses.ngroups), MARKERS):
        rows = rows.sort_values("time")
        ax.fill_between(rows["time"], rows["lower"], rows["upper"], color=color, alpha=0.2)
        ax.plot(
            rows["time"],
            rows["mean"],
            color=color,
            label=short(str(label)),
            marker=marker,
            markersize=4,
        )
    ax.set_xlabel("time")
    ax.set_ylabel(f"{gene} counts per cell")
    describe(ax, f"Predicted course of {gene}, with credible bands")
    ax.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return ax


def _genes(adata: AnnData, genes: str | Sequence[str] | None, n: int) -> list[str]:
    if genes is None:
        spread = np.ptp(np.log(np.asarray(adata.X) + 1e-3), axis=0)
        chosen = np.sort(np.argsort(-spread)[:n])
        return adata.var_names[chosen].tolist()
    names = [genes] if isinstance(genes, str) else list(genes)
    for name in names:
        if name not in adata.var_names:
            raise UnknownLabelError(
                f'gene "{name}" is not in the prediction{did_you_mean(name, adata.var_names)}'
            )
    return names


def _labels(adata: AnnData, without: str = "") -> list[str]:
    """Names of the conditions by the columns in which they differ."""
    obs = obs_table(adata)
    columns = [c for c in obs.columns if c not in (without, "n_cells")]
    varying = [c for c in columns if obs[c].nunique(dropna=False) > 1] or columns[:1]
    return [", ".join(_text(row[c]) for c in varying) for _, row in obs.iterrows()]


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) and not pd.isna(value) else str(value)
