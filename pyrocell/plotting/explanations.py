"""Figures of what a change is made of: terms one after the other, and steps by their size."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from pyrocell.errors import ScreenError
from pyrocell.plotting._style import (
    BLUE,
    GREY,
    LFC,
    ORANGE,
    chosen,
    describe,
    forest,
    name_ticks,
    new_axes,
    rows_height,
)

__all__ = ["explain"]

_TOTAL = "total"


def explain(table: pd.DataFrame, gene: str | None = None, ax: Axes | None = None) -> Axes:
    """What the change of a gene is made of, term after term, or how large each step is.

    Parameters
    ----------
    table
        From :meth:`pyrocell.PyroCell.explain`, by gene or by step.
    gene
        Of a table by gene with several: which to draw.
    ax
        Where to draw.

    Returns
    -------
    matplotlib Axes. By gene: each bar begins where the one above ends, posterior means, with the
    interval of the term at its end; the total last, from zero. By step: the root mean square over
    genes with its interval. Orange: the interval excludes zero, or the step is seen.

    Raises
    ------
    ScreenError
        If the table has several genes and none is named.
    UnknownLabelError
        If the gene is not in the table.
    """
    if "term" not in table:
        return _steps(table, ax)
    rows = chosen(table, "gene", gene)
    if (n := rows["gene"].nunique()) != 1:
        some = str(rows["gene"].iloc[0])
        raise ScreenError(f'the table has {n:,} genes; name one, such as gene="{some}"')
    return _waterfall(rows.reset_index(drop=True), ax)


def _waterfall(rows: pd.DataFrame, ax: Axes | None) -> Axes:
    ax = new_axes(ax, 6.0, 1.4 + 1.3 * rows_height(len(rows)))
    mean, total = rows["mean"].to_numpy(float), (rows["term"] == _TOTAL).to_numpy()
    end = np.where(total, mean, np.cumsum(np.where(total, 0.0, mean)))
    start = end - mean
    sure = ((rows["lower"] > 0) | (rows["upper"] < 0)).to_numpy()
    y = np.arange(len(rows))
    colors = np.where(sure, ORANGE, BLUE).tolist()
    ax.barh(y, mean, left=start, color=colors, height=0.6, alpha=0.75)
    low, high = (start + rows[column].to_numpy(float) for column in ("lower", "upper"))
    ax.hlines(y, low, high, color="black", linewidth=1.2, zorder=3)
    ax.vlines(end[:-1], y[:-1], y[1:], color=GREY, linewidth=0.7)
    ax.axvline(0, color="black", linewidth=0.8)
    name_ticks(ax, rows["term"], "y", "terms")
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.set_xlabel(LFC)
    describe(ax, _head(rows, f"{rows['gene'].iloc[0]}: "), _legend(sure, "excludes zero"))
    return ax


def _steps(table: pd.DataFrame, ax: Axes | None) -> Axes:
    ax = new_axes(ax, 6.0, 1.4 + rows_height(len(table)))
    drawn = table[["lower", "upper"]].assign(mean=table["rms"])
    seen = (table["prob_seen"] >= 0.9).to_numpy()
    forest(ax, drawn, table["step"].tolist(), np.where(seen, ORANGE, BLUE).tolist(), of="steps")
    ax.set_xlim(0, 1.35 * float(table["upper"].max()))
    said = zip(table["upper"], table["value_of"], table["value"], strict=True)
    for y, (end, of, value) in enumerate(said):
        if of:
            ax.text(end, y, f"  {of} {value:.2f}", va="center", fontsize=7)
    ax.set_xlabel("root mean square over genes of log-fold changes")
    describe(ax, _head(table, ""), "orange: seen" if seen.any() else "")
    return ax


def _head(table: pd.DataFrame, what: str) -> str:
    said = table.attrs
    return f"{what}{said.get('condition', '')} against {said.get('against', 'control')}"


def _legend(sure: np.ndarray, what: str) -> str:
    return f"orange: the interval {what}" if sure.any() else ""
