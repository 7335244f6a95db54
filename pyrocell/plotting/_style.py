"""What the figures share: axes of a fitting size, colours, short names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, TwoSlopeNorm

from pyrocell._core.messages import did_you_mean
from pyrocell.errors import UnknownLabelError

BLUE, ORANGE, GREY = "#3b6fb6", "#d1622b", "#8a8a8a"
DIVERGING, SEQUENTIAL = "RdBu_r", "Blues"
MAX_TICKS = 120  # names on an axis before they are left out
ROW, COLUMN = 0.2, 0.2  # inches of a labelled row and column
LFC = "log-fold change (natural log)"


def palette(name: str) -> Sequence[tuple[float, float, float]]:
    """Colours of one of matplotlib's qualitative colour maps."""
    return plt.get_cmap(name).colors  # pyright: ignore[reportAttributeAccessIssue] of a subclass


def new_axes(ax: Axes | None, width: float, height: float) -> Axes:
    """The axes given, or new ones of this size in inches."""
    if ax is not None:
        return ax
    _, ax = plt.subplots(figsize=(width, height), layout="constrained")
    return ax


def heat_map(ax: Axes, values: pd.DataFrame, label: str, diverging: bool = True) -> None:
    """Draw a table as coloured cells with its names and a colour bar; counts on a log scale."""
    data = values.to_numpy(float)
    if diverging:
        limit = max(float(np.nanquantile(np.abs(data), 0.99)), 1e-6)
        style = {"cmap": DIVERGING, "norm": TwoSlopeNorm(0.0, -limit, limit)}
    else:
        style = {"cmap": SEQUENTIAL, "norm": LogNorm(1, max(2.0, np.nanmax(data)))}
    image = ax.imshow(data, aspect="auto", interpolation="nearest", **style)
    extend = "both" if diverging else "neither"
    ax.figure.colorbar(image, ax=ax, label=label, shrink=min(0.8, 30 / len(data)), extend=extend)
    name_ticks(ax, values.columns, "x")
    name_ticks(ax, values.index, "y")


def name_ticks(ax: Axes, names: Iterable[str], axis: str) -> None:
    """Name every position of an axis, or say how many there are where names would not fit."""
    names = [str(name) for name in names]
    fits = len(names) <= MAX_TICKS
    positions = range(len(names)) if fits else []
    labels = names if fits else []
    size = 8 if len(names) <= MAX_TICKS // 2 else 6
    if axis == "x":
        ax.set_xticks(positions, labels, rotation=90, fontsize=size)
        ax.set_xlabel("" if fits else f"{len(names)} columns")
    else:
        ax.set_yticks(positions, labels, fontsize=size)
        ax.set_ylabel("" if fits else f"{len(names)} rows")


def forest(ax: Axes, table: pd.DataFrame, names: list[str], colors: list[str] | str = BLUE) -> None:
    """Draw mean, lower and upper of each row as a point on a line, first row on top."""
    y = np.arange(len(table))
    ax.hlines(y, table["lower"], table["upper"], color=colors, linewidth=2)
    ax.scatter(table["mean"], y, color=colors, s=18, zorder=3)
    name_ticks(ax, names, "y")
    ax.set_ylim(len(table) - 0.5, -0.5)
    ax.grid(axis="y", alpha=0.3)


def chosen(table: pd.DataFrame, column: str, names: str | Iterable[str] | None) -> pd.DataFrame:
    """Rows of a table whose column is one of the names; all rows for None.

    Raises
    ------
    UnknownLabelError
        If a name is not in the column, with close matches.
    """
    if names is None:
        return table
    names = [names] if isinstance(names, str) else list(names)
    present = table[column].unique()
    for name in names:
        if name not in present:
            raise UnknownLabelError(
                f'{column} "{name}" is not in the table{did_you_mean(name, present)}'
            )
    return table[table[column].isin(names)]


def grid(table: pd.DataFrame, rows: str, values: str) -> pd.DataFrame:
    """Long table to rows × genes, in the order in which names first occur."""
    wide = table.pivot_table(index=rows, columns="gene", values=values, sort=False, observed=True)
    return pd.DataFrame(wide.loc[table[rows].unique(), table["gene"].unique()])


def rows_height(n: int) -> float:
    """Height in inches of n rows, named ones."""
    return ROW * min(n, MAX_TICKS // 2) + 0.6 * ROW * max(0, min(n, MAX_TICKS) - MAX_TICKS // 2)


def where(table: pd.DataFrame) -> str:
    """Medium and time of a table of effects, for a title; empty where it has neither."""
    parts = []
    if "media" in table and table["media"].nunique() == 1:
        parts.append(f"medium {table['media'].iloc[0]}")
    if "time" in table and table["time"].nunique() == 1:
        parts.append(f"time {table['time'].iloc[0]:g}")
    return ", ".join(parts)
