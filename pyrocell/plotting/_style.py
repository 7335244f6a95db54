"""What the figures share: axes of a fitting size, colours, short names."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import LogNorm, TwoSlopeNorm, to_rgb
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from scipy.cluster.hierarchy import leaves_list, linkage

from pyrocell._core.messages import did_you_mean
from pyrocell.errors import ScreenError, UnknownLabelError

BLUE, ORANGE, GREY = "#3b6fb6", "#d1622b", "#8a8a8a"
DIVERGING, SEQUENTIAL = "RdBu_r", "Blues"
PAGE = (8.0, 10.0)  # inches, width and height that no figure exceeds
ROW, COLUMN = 0.2, 0.2  # inches of a labelled row and column
LFC = "log-fold change (natural log)"
MARKERS = "osD^vP*X<>"
# Okabe and Ito (2008): told apart with any colour vision.
_DISTINCT = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000", "#F0E442")
_SMALLEST = 4.5  # points, of a name on an axis; smaller ones are left out
_LONGEST = 32  # letters of a name


def palette(n: int) -> list[tuple[float, float, float]]:
    """Colours of n categories that do not rest on telling red from green.

    Up to eight are Okabe and Ito's; more run from dark to light, and need a second sign.
    """
    if n <= len(_DISTINCT):
        return [to_rgb(color) for color in _DISTINCT[:n]]
    return [tuple(color[:3]) for color in plt.get_cmap("viridis")(np.linspace(0, 0.97, n))]


def page(width: float, height: float) -> tuple[float, float]:
    """A size in inches, brought down to what fits a page."""
    return min(width, PAGE[0]), min(height, PAGE[1])


def new_axes(ax: Axes | None, width: float, height: float) -> Axes:
    """The axes given, or new ones of this size in inches, at most a page."""
    if ax is not None:
        return ax
    _, ax = plt.subplots(figsize=page(width, height), layout="constrained")
    return ax


def inches(ax: Axes) -> tuple[float, float]:
    """Width and height of axes."""
    return ax.bbox.width / ax.figure.dpi, ax.bbox.height / ax.figure.dpi


def heat_map(
    ax: Axes,
    values: pd.DataFrame,
    label: str,
    diverging: bool = True,
    limit: float | None = None,
    of: tuple[str, str] = ("rows", "columns"),
) -> None:
    """Draw a table as coloured cells with its names and a colour bar; counts on a log scale.

    `of` says what rows and columns are, where there are too many to name. Empty cells are grey
    in a diverging map and white in a map of counts.
    """
    data = values.to_numpy(float)
    known = np.abs(data[np.isfinite(data)])
    if diverging:
        if limit is None:
            limit = max(float(np.quantile(known, 0.99)) if known.size else 0.0, 1e-6)
        style = {"cmap": DIVERGING, "norm": TwoSlopeNorm(0.0, -limit, limit)}
        ax.set_facecolor("0.85")
    else:
        style = {"cmap": SEQUENTIAL, "norm": LogNorm(1, max(2.0, known.max(initial=0)))}
    image = ax.imshow(data, aspect="auto", interpolation="nearest", **style)
    beyond = diverging and bool((known > limit).any())
    _, height = inches(ax)
    bar = ax.figure.colorbar(
        image,
        ax=ax,
        label=label if height > 1.6 else label.replace(" (", "\n("),
        shrink=float(np.clip(4 / height, 0.3, 1.0)),
        aspect=20 if height > 2 else 10,
        extend="both" if beyond else "neither",
    )
    if not diverging:
        plain_log(bar.ax.yaxis)
    name_ticks(ax, values.columns, "x", of[1])
    name_ticks(ax, values.index, "y", of[0])


def plain_log(axis: Axis) -> None:
    """Write the numbers of a logarithmic axis out, which also shows where "$" is a letter."""
    low, high = sorted(axis.get_view_interval())
    wide = low > 0 and high / low > 1e3
    axis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def name_ticks(ax: Axes, names: Iterable[str], axis: str, of: str = "") -> None:
    """Name every position of an axis, or say how many there are where names would not fit."""
    names = [short(str(name)) for name in names]
    length = inches(ax)[0 if axis == "x" else 1]
    size = min(8.0, 0.85 * 72 * length / max(len(names), 1))
    fits = size >= _SMALLEST
    positions = range(len(names)) if fits else []
    labels = names if fits else []
    of = of or ("columns" if axis == "x" else "rows")
    if axis == "x":
        ax.set_xticks(positions, labels, rotation=90, fontsize=size)
        ax.set_xlabel("" if fits else f"{len(names)} {of}")
    else:
        ax.set_yticks(positions, labels, fontsize=size)
        ax.set_ylabel("" if fits else f"{len(names)} {of}")


def short(name: str) -> str:
    """A name with its middle left out where it is long."""
    half = _LONGEST // 2
    return name if len(name) <= _LONGEST else f"{name[:half]}…{name[1 - half :]}"


def together(values: pd.DataFrame) -> pd.DataFrame:
    """Rows and columns in an order in which like ones are neighbours (average linkage)."""
    data = np.nan_to_num(values.to_numpy(float))
    return values.iloc[_order(data), _order(data.T)]


def _order(rows: np.ndarray) -> np.ndarray:
    if len(rows) < 3:
        return np.arange(len(rows))
    return leaves_list(linkage(rows, "average", optimal_ordering=len(rows) <= 500))


def mark_own_genes(ax: Axes, rows: Iterable[str], columns: Iterable[str]) -> int:
    """Frame the cells of genes that a row's perturbation targets; how many there are."""
    place = {str(gene): x for x, gene in enumerate(columns)}
    cells = [
        (place[gene], y)
        for y, row in enumerate(rows)
        for gene in str(row).split("+")
        if gene in place
    ]
    for x, y in cells:
        ax.add_patch(
            Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, edgecolor="black", linewidth=1.0)
        )
    return len(cells)


def describe(ax: Axes, *lines: str) -> None:
    """Put what is seen above the axes, in lines that fit its width."""
    letters = max(20, int(15 * inches(ax)[0]))
    text = [part for line in lines if line for part in textwrap.wrap(line, letters)]
    ax.set_title("\n".join(text), fontsize=9)


def forest(
    ax: Axes,
    table: pd.DataFrame,
    names: list[str],
    colors: list[str] | str = BLUE,
    of: str = "perturbations",
) -> None:
    """Draw mean, lower and upper of each row as a point on a line, first row on top."""
    y = np.arange(len(table))
    ax.hlines(y, table["lower"], table["upper"], color=colors, linewidth=2)
    ax.scatter(table["mean"], y, color=colors, s=18, zorder=3)
    name_ticks(ax, names, "y", of)
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


def certain(table: pd.DataFrame) -> pd.Series:
    """Distance from zero of the nearer end of the interval; below 0 if it contains zero."""
    return pd.concat([table["lower"], -table["upper"]], axis=1).max(axis=1)


def strongest(table: pd.DataFrame, column: str, n: int) -> pd.DataFrame:
    """Rows of the n names of a column whose effects are farthest from zero, in the same order."""
    strength = certain(table).groupby(table[column], sort=False, observed=True).max()
    return table[table[column].isin(strength.nlargest(n).index)]


def one_place(table: pd.DataFrame, columns: Sequence[str] = ("media", "time")) -> pd.DataFrame:
    """The table, if it has one medium and one time.

    Raises
    ------
    ScreenError
        If it has several, with the expression that keeps one.
    """
    for column in columns:
        values = table[column].dropna().unique()
        if len(values) > 1:
            raise ScreenError(
                f"the table has effects at {len(values)} values of {column}; keep one: "
                f'table[table["{column}"] == {values[-1]!r}]'
            )
    return table.reset_index(drop=True)


def grid(table: pd.DataFrame, rows: str, values: str) -> pd.DataFrame:
    """Long table to rows × genes, in the order in which names first occur."""
    keys = [rows, "gene"]
    wide = table[[*keys, values]].astype(dict.fromkeys(keys, object)).drop_duplicates(keys)
    wide = wide.pivot(index=rows, columns="gene", values=values)
    return pd.DataFrame(wide.loc[table[rows].unique(), table["gene"].unique()])


def rows_height(n: int) -> float:
    """Height in inches of n rows; `new_axes` keeps it to a page."""
    return ROW * n


def where(table: pd.DataFrame) -> str:
    """Medium and time of a table of effects, for a title; empty where it has neither."""
    parts = []
    if "media" in table and table["media"].nunique() == 1:
        parts.append(f"medium {table['media'].iloc[0]}")
    if "time" in table and table["time"].nunique() == 1:
        parts.append(f"time {table['time'].iloc[0]:g}")
    return ", ".join(parts)
