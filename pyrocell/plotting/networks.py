"""Figures of networks: which regulators move which genes directly."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm

from pyrocell.plotting._style import (
    DIVERGING,
    chosen,
    describe,
    inches,
    name_ticks,
    new_axes,
    rows_height,
    together,
)

__all__ = ["network"]

_GENES = 40  # named at most
_AREA = 0.8  # of a cell, for a certain edge


def network(
    table: pd.DataFrame,
    regulators: str | Sequence[str] | None = None,
    targets: str | Sequence[str] | None = None,
    n_genes: int = _GENES,
    threshold: float = 0.1,
    ax: Axes | None = None,
) -> Axes:
    """Dots of regulators × targets: area is P(direct edge), colour the size of the effect.

    Parameters
    ----------
    table
        From :meth:`pyrocell.PyroCell.network`.
    regulators, targets
        Draw only these; default: all regulators, and the targets with the likeliest edges.
    n_genes
        At most this many targets.
    threshold
        Probability below which no dot is drawn.
    ax
        Where to draw.

    Returns
    -------
    matplotlib Axes. Grey rings are associations of genes that were not perturbed.
    """
    rows = chosen(chosen(table, "regulator", regulators), "target", targets)
    most = rows.groupby("target", sort=False, observed=True)["probability"].max()
    kept = most.nlargest(n_genes).index
    rows = rows[rows["target"].isin(kept)]
    names = list(rows["regulator"].unique())
    genes = [g for g in rows["target"].unique() if g in set(kept)]
    size = rows.pivot(index="regulator", columns="target", values="mean").loc[names, genes]
    if len(genes) > 2:
        genes = list(together(size.T.fillna(0.0)).index)
    ax = new_axes(ax, 8.0, 1.6 + rows_height(len(names)))
    drawn = rows[rows["probability"] >= threshold]
    at = {g: i for i, g in enumerate(genes)}, {r: i for i, r in enumerate(names)}
    limit = max(float(drawn["mean"].abs().quantile(0.99)) if len(drawn) else 0.0, 1e-6)
    ax.set_xlim(-0.5, max(len(genes), 1) - 0.5)
    ax.set_ylim(max(len(names), 1) - 0.5, -0.5)
    width, height = inches(ax)
    cell = 72 * min(0.82 * width / max(len(genes), 1), height / max(len(names), 1))
    virtual = (drawn["rests_on"] == "virtual").to_numpy()
    dots = ax.scatter(
        drawn["target"].map(at[0]),
        drawn["regulator"].map(at[1]),
        s=drawn["probability"] * _AREA * cell**2,
        c=drawn["mean"],
        cmap=DIVERGING,
        norm=TwoSlopeNorm(0.0, -limit, limit),
        edgecolors=np.where(virtual, "0.5", "none").tolist(),
        linewidths=0.8,
    )
    ax.figure.colorbar(
        dots,
        ax=ax,
        label="direct effect\n(log change when lost)",
        shrink=float(np.clip(3 / height, 0.4, 1)),
    )
    name_ticks(ax, genes, "x", "genes")
    name_ticks(ax, names, "y", "regulators")
    ax.set_xlabel("target")
    ax.set_ylabel("regulator")
    n = int((rows["probability"] > 0.5).sum())
    describe(ax, f"{n} edges more likely than not", "area of a dot: P(direct edge)")
    return ax
