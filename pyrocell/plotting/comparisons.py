"""Figures that compare: genes of a perturbation, perturbations, and times of a gene."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from pyrocell.errors import ScreenError
from pyrocell.plotting._style import (
    BLUE,
    GREY,
    LFC,
    MARKERS,
    ORANGE,
    certain,
    chosen,
    describe,
    grid,
    heat_map,
    new_axes,
    one_place,
    palette,
    rows_height,
    short,
    strongest,
    together,
    where,
)

__all__ = ["similarity", "time_course", "volcano"]

_LEAST = 1e-10  # of lfsr or p that is drawn
_COURSES = 8  # at most
_SHOWN = 6  # where none are named


def volcano(
    table: pd.DataFrame,
    perturbation: str,
    threshold: float = 0.05,
    n_named: int = 10,
    ax: Axes | None = None,
) -> Axes:
    """Size of a perturbation's effect on every gene against how sure its sign is.

    Parameters
    ----------
    table
        From :meth:`pyrocell.PyroCell.perturbation_effects`; one medium and time.
    perturbation
        Which.
    threshold
        Local false sign rate (p-value where the table is of `shrunken=False`) below which genes
        are coloured.
    n_named
        Genes named: of those below the threshold, the ones with the largest effect.
    ax
        Where to draw.

    Returns
    -------
    matplotlib Axes. The vertical axis is -log10 and ends at 10: smaller rates are drawn there.
    Blue: down, orange: up, a square: the gene that is targeted itself.
    """
    rows = chosen(one_place(table), "perturbation", perturbation)
    column = "lfsr" if "lfsr" in rows else "p"
    rows = rows[rows["mean"].notna() & rows[column].notna()]
    height = -np.log10(rows[column].clip(lower=_LEAST))
    found = rows[column] < threshold
    own = rows["gene"].astype(str).isin(perturbation.split("+"))
    ax = new_axes(ax, 6, 4.4)
    for mask, color in (
        (~found, GREY),
        (found & (rows["mean"] < 0), BLUE),
        (found & (rows["mean"] >= 0), ORANGE),
    ):
        ax.scatter(rows["mean"][mask & ~own], height[mask & ~own], s=14, color=color, linewidths=0)
        ax.scatter(rows["mean"][mask & own], height[mask & own], s=34, color=color, marker="s")
    named = rows.loc[rows["mean"][found].abs().nlargest(n_named).index]
    for direction in (-1, 1):
        # Names of genes that are certain would overlap: they go down the sides, by height.
        side = named[np.sign(named["mean"]) == direction]
        side = side.assign(height=height).sort_values("height", ascending=False, kind="stable")
        for step, row in enumerate(side.itertuples()):
            ax.annotate(
                str(row.gene),
                (row.mean, row.height),
                (1.0 + 0.02 if direction > 0 else 0.01, 0.97 - 0.06 * step),
                textcoords="axes fraction",
                fontsize=7,
                va="center",
                ha="left",
                arrowprops={"arrowstyle": "-", "color": GREY, "linewidth": 0.4},
            )
    limit = 1.1 * max(float(rows["mean"].abs().max()) if len(rows) else 0.0, 0.1)
    ax.set_xlim(-1.6 * limit if (named["mean"] < 0).any() else -limit, limit)
    top = max(float(height.max()) if len(rows) else 0.0, 2.0)
    ax.set_ylim(-0.02 * top, 1.06 * top)
    ax.axvline(0, color="black", linewidth=0.8)
    ax.axhline(-np.log10(threshold), color=GREY, linewidth=0.8, linestyle=":")
    ax.set_xlabel(LFC)
    name = "local false sign rate" if column == "lfsr" else "p-value"
    ax.set_ylabel(f"−log10 {name}")
    of = f"{int(found.sum())} of {len(rows)} genes below {threshold:g}"
    describe(ax, "; ".join(filter(None, [f"{perturbation}: {of}", where(rows)])))
    return ax


def similarity(
    table: pd.DataFrame,
    n_perturbations: int = 60,
    ax: Axes | None = None,
) -> Axes:
    """How alike the effects of perturbations are: correlation over genes, like ones together.

    Parameters
    ----------
    table
        From :meth:`pyrocell.PyroCell.perturbation_effects`; one medium and time.
    n_perturbations
        At most this many: those with the effects farthest from zero.
    ax
        Where to draw.

    Returns
    -------
    matplotlib Axes. Pearson correlation of posterior means, without the genes that either of the
    two targets. Perturbations share their controls, and means are shrunken: where no interval of a
    perturbation excludes zero its name is grey, and its correlations say nothing.
    """
    table = strongest(one_place(table), "perturbation", n_perturbations)
    mean = grid(table, "perturbation", "mean")
    values = mean.to_numpy(float, copy=True)
    genes = {str(gene): g for g, gene in enumerate(mean.columns)}
    for row, name in enumerate(mean.index):
        values[row, [genes[g] for g in str(name).split("+") if g in genes]] = np.nan
    names = [str(name) for name in mean.index]
    alike = pd.DataFrame(values.T, columns=names).corr(min_periods=3)
    order = together(alike).index
    alike = alike.loc[order, order]
    strength = certain(table).groupby(table["perturbation"].astype(str), sort=False).max()
    size = 2.4 + rows_height(len(alike))
    ax = new_axes(ax, max(4.0, size + 0.8), max(3.4, size))
    heat_map(ax, alike, "correlation of effects", limit=1.0, of=("perturbations", "perturbations"))
    nothing = [name for name in order if not strength[name] > 0]
    for label in [*ax.get_xticklabels(), *ax.get_yticklabels()]:
        if label.get_text() in nothing:
            label.set_color("0.6")
    ax.set_aspect("equal")
    grey = f"grey: no effect found ({len(nothing)})" if nothing else ""
    head = f"How alike the effects of {len(alike)} perturbations are, over {mean.shape[1]} genes"
    describe(ax, head, "; ".join(filter(None, [where(table), grey])))
    return ax


def time_course(
    table: pd.DataFrame,
    gene: str,
    perturbations: str | Sequence[str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Effects of perturbations on one gene at each time, with their intervals.

    Parameters
    ----------
    table
        Effects at several times, one medium: tables of
        :meth:`pyrocell.PyroCell.perturbation_effects` under each other,
        ``pd.concat(model.perturbation_effects(time=t) for t in model.screen.times)``.
    gene
        Which.
    perturbations
        At most eight; default: the six whose effect on the gene is farthest from zero at any
        time, of those whose interval excludes zero.
    ax
        Where to draw.

    Returns
    -------
    matplotlib Axes. Bars are credible intervals; zero is the control of the same time.

    Raises
    ------
    ScreenError
        If the table has fewer than two times, or more than eight perturbations are asked for.
    """
    rows = chosen(one_place(table, ("media",)), "gene", gene)
    times = np.sort(rows["time"].dropna().unique())
    if len(times) < 2:
        raise ScreenError(
            f"the table has {len(times)} time, and a course needs two or more: "
            "pd.concat(model.perturbation_effects(time=t) for t in model.screen.times)"
        )
    every = rows["perturbation"].nunique()
    rows = chosen(rows, "perturbation", perturbations)
    if perturbations is None:
        moved = rows[certain(rows) > 0]["perturbation"].unique()
        rows = rows[rows["perturbation"].isin(moved)] if len(moved) else rows
        rows = strongest(rows, "perturbation", _SHOWN)
    courses = rows.groupby(rows["perturbation"].astype(str), sort=False)
    if courses.ngroups > _COURSES:
        raise ScreenError(f"{courses.ngroups} courses are too many; pass {_COURSES} or fewer")
    ax = new_axes(ax, 6, 3.8)
    step = 0.08 * np.diff(times).min() / max(courses.ngroups, 1) * 4
    for i, ((name, course), color, marker) in enumerate(
        zip(courses, palette(courses.ngroups), MARKERS)
    ):
        course = course.sort_values("time")
        # Side by side, so that intervals at one time can be told apart.
        at = course["time"].to_numpy(float) + step * (i - (courses.ngroups - 1) / 2)
        ax.vlines(at, course["lower"], course["upper"], color=color, linewidth=1.2, alpha=0.7)
        ax.plot(at, course["mean"], marker=marker, markersize=4, color=color, label=short(name))
    ax.axhline(0, color="black", linewidth=0.8)
    ax.set_xticks(times, [f"{t:g}" for t in times])
    ax.set_xlabel("time")
    ax.set_ylabel(LFC)
    most = f"{courses.ngroups} of {every} perturbations that change it most"
    who = most if perturbations is None and courses.ngroups < every else ""
    medium = rows["media"].dropna().unique() if "media" in rows else []
    place = f"in medium {medium[0]}" if len(medium) == 1 else ""
    describe(ax, "; ".join(filter(None, [f"{gene}, relative to control", place])), who)
    ax.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return ax
