"""Figures of guides: how strong each is and how many of its cells responded."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from pyrocell.plotting._style import BLUE, ORANGE, chosen, describe, forest, new_axes, rows_height

__all__ = ["guides"]

_MOST = 60


def guides(
    table: pd.DataFrame,
    perturbations: str | Sequence[str] | None = None,
    share: bool = False,
    n: int = _MOST,
    ax: Axes | None = None,
) -> Axes:
    """Efficacy of every guide with its interval, guides of a perturbation beside each other.

    Parameters
    ----------
    table
        From :meth:`pyrocell.PyroCell.guides`.
    perturbations
        Draw only these; default: all.
    share
        Draw the share of the guide's cells that responded in place of its efficacy.
    n
        At most this many guides: those of the perturbations whose intervals are narrowest.
    ax
        Where to draw.

    Returns
    -------
    matplotlib Axes. Orange: the guide does something of its own, more likely than not
    (``agree < .5``). The line at 1 is the average responding cell of a perturbation.
    """
    rows = chosen(table, "perturbation", perturbations)
    low, high = ("response_lower", "response_upper") if share else ("lower", "upper")
    if len(rows) > n:
        width = (rows[high] - rows[low]).groupby(rows["perturbation"], sort=False).mean()
        sizes = rows.groupby("perturbation", sort=False).size()
        order = width.sort_values().index
        kept = order[np.cumsum(sizes[order].to_numpy()) <= n]
        rows = rows[rows["perturbation"].isin(kept)]
    mean = rows["response_share" if share else "efficacy"]
    drawn = pd.DataFrame({"mean": mean, "lower": rows[low], "upper": rows[high]})
    ax = new_axes(ax, 5.5, 1.4 + rows_height(len(rows)))
    names = [
        g if g.startswith(p) else f"{p}, {g}"
        for p, g in zip(rows["perturbation"].astype(str), rows["guide"].astype(str))
    ]
    off = (rows["agree"] < 0.5).to_numpy()
    forest(ax, drawn, names, np.where(off, ORANGE, BLUE).tolist(), of="guides")
    label = rows["perturbation"].to_numpy()
    for edge in np.flatnonzero(label[1:] != label[:-1]):
        ax.axhline(edge + 0.5, color="grey", linewidth=0.5)
    if share:
        ax.set_xlim(0, 1)
        ax.set_xlabel("share of cells that responded")
        head = f"Share of the cells of {len(rows)} guides that responded"
    else:
        ax.axvline(1, color="black", linewidth=0.8)
        ax.set_xlim(left=0)
        ax.set_xlabel("efficacy (1: average responding cell)")
        head = f"Efficacy of {len(rows)} guides"
    describe(ax, head, "orange: the guide does something of its own" if off.any() else "")
    return ax
