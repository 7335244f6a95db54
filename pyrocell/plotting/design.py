"""Figures of planned and measured layouts: what is in which lane, and what that links."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from pyrocell.design.export import lane_map as lane_table
from pyrocell.design.layouts import Layout
from pyrocell.plotting._style import (
    BLUE,
    GREY,
    ORANGE,
    describe,
    name_ticks,
    new_axes,
    palette,
    short,
)
from pyrocell.screen.screen import Screen

__all__ = ["cost_curve", "lane_map", "layout_graph"]

_LABELLED = 40  # nodes on either side, in pairs, that are named
_PARTS = 8  # components that have a colour of their own


def lane_map(layout: Layout, ax: Axes | None = None) -> Axes:
    """What is in each lane: cells by medium, time and sample, controls hatched.

    Parameters
    ----------
    layout
        As recommended, or any other.
    ax
        Where to draw.

    Returns
    -------
    matplotlib Axes.
    """
    table = lane_table(layout)
    lanes = list(layout.batches)
    ax = new_axes(ax, 2.5 + 0.35 * len(lanes), 3.6)
    colors = dict(zip((arm.name for arm in layout.arms), palette(len(layout.arms))))
    samples = list(dict.fromkeys([layout.control, *layout.libraries]))
    base = pd.Series(0.0, lanes)
    for arm in layout.arms:
        same = (table["media"] == arm.media) & (
            table["time"].isna() if np.isnan(arm.time) else table["time"] == arm.time
        )
        for sample in samples:
            part = table[same & (table["sample"] == sample)].set_index("lane")["cells"]
            height = part.reindex(lanes, fill_value=0).astype(float)
            style: dict[str, Any] = {"hatch": "////"} if sample == layout.control else {}
            ax.bar(range(len(lanes)), height, 0.85, base, color=colors[arm.name],
                   edgecolor="white", linewidth=0.6, **style)  # fmt: skip
            base += height
    name_ticks(ax, lanes, "x", "lanes")
    total = f"{layout.cells.sum():,.0f} cells in {len(lanes)} lanes"
    describe(ax, f"{total}, by medium and time", f"hatched: {layout.control}")
    ax.set_ylabel("cells")
    keys = [Patch(color=color, label=short(name)) for name, color in colors.items()]
    keys.append(Patch(facecolor="white", edgecolor="black", hatch="////", label=layout.control))
    ax.legend(handles=keys, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
    return ax


def layout_graph(layout: Layout | Screen, ax: Axes | None = None) -> Axes:
    """Which conditions and batches are linked by cells (paper, Fig. 6).

    Parameters
    ----------
    layout
        A planned layout or a registered screen.
    ax
        Where to draw.

    Returns
    -------
    matplotlib Axes. Perturbations of one medium and time that are in the same batches share a
    node. Lines are wider where there are more cells; every connected component has a colour of its
    own, and contrasts between components are aliased with batch noise.
    """
    layout = Layout.from_screen(layout) if isinstance(layout, Screen) else layout
    nodes, cells, part_of = _nodes(layout)
    parts = layout.components()
    batch_part = {b: i for i, part in enumerate(parts) for b in part.batches}
    ax = new_axes(ax, 7.0, 1.2 + 0.26 * min(max(len(nodes), cells.shape[1]), 2 * _LABELLED))
    left = _spread(len(nodes), cells.shape[1])
    right = _spread(cells.shape[1], len(nodes))
    those = palette(min(len(parts), _PARTS))

    def color(part: int) -> object:
        return those[part] if 0 <= part < _PARTS else GREY

    largest = np.log1p(cells.max())
    for n, b in zip(*np.nonzero(cells)):
        width = 0.4 + 2.6 * np.log1p(cells[n, b]) / largest
        ax.plot([0, 1], [left[n], right[b]], color=color(part_of[n]), linewidth=width, alpha=0.6)
    ax.scatter(np.zeros(len(nodes)), left, color=[color(p) for p in part_of], s=25, zorder=3)
    shades = [color(batch_part.get(b, -1)) for b in layout.batches]
    ax.scatter(np.ones(len(right)), right, color=shades, s=45, marker="s", zorder=3)
    sides = ((nodes, -0.03, left, "right"), (layout.batches, 1.03, right, "left"))
    for names, x, y, align in sides:
        for name, height in zip(names, y) if len(names) <= 2 * _LABELLED else ():
            ax.text(x, height, short(name), ha=align, va="center", fontsize=7)
    ax.set_xlim(-0.9, 1.5)
    ax.set_axis_off()
    if len(parts) == 1:
        seen = "contrasts of these conditions can be told from batch noise"
    else:
        seen = "contrasts between colours cannot be told from batch noise"
    plural = "" if len(parts) == 1 else "s"
    linked = f"Conditions linked to batches by cells: {len(parts)} connected component{plural}"
    describe(ax, linked, seen)
    return ax


def _nodes(layout: Layout) -> tuple[list[str], np.ndarray, list[int]]:
    """Names of groups of conditions that are in the same batches, their cells, their component."""
    component = np.full(len(layout.conditions), -1)
    for i, part in enumerate(layout.components()):
        component[part.conditions] = i
    component = component.reshape(layout.cells.shape[:2])
    names, cells, parts = [], [], []
    for a, arm in enumerate(layout.arms):
        groups: dict[object, list[int]] = {}
        for p in np.flatnonzero(layout.cells[:, a].sum(1) > 0).tolist():
            key = (p == 0, (layout.cells[p, a] > 0).tobytes())
            groups.setdefault(key, []).append(p)
        for rows in groups.values():
            alone = (layout.control, *layout.perturbations)[rows[0]]
            who = alone if len(rows) == 1 else f"{len(rows)} perturbations"
            names.append(who if len(layout.arms) == 1 else f"{who}, {arm.name}")
            cells.append(layout.cells[rows, a].sum(0))
            parts.append(int(component[rows[0], a]))
    return names, np.array(cells), parts


def _spread(n: int, other: int) -> np.ndarray:
    """Heights of n nodes, from top to bottom, as tall as the other side."""
    height = max(n, other, 2) - 1
    return np.linspace(height, 0, n) if n > 1 else np.array([height / 2])


def cost_curve(table: pd.DataFrame, axes: Iterable[Axes] | None = None) -> np.ndarray:
    """Expected error against the number of lanes, and against the share of controls.

    Parameters
    ----------
    table
        From `design.cost_curve`.
    axes
        Two Axes to draw into.

    Returns
    -------
    Array of two matplotlib Axes.
    """
    if axes is None:
        _, axes = plt.subplots(1, 2, figsize=(8, 3.4), layout="constrained", sharey=True)
    axes = np.array(list(axes), object)
    fixed = ("varied", "lanes", "control_share", "cells", "error")
    kinds = [column for column in table.columns if column not in fixed]
    others = palette(7)[1:]  # the first is that of the line of all
    for ax, varied, label in zip(axes, ("lanes", "control_share"), ("lanes", "share of controls")):
        part = table[(table["varied"] == varied) & table["error"].notna()]
        for i, kind in enumerate(kinds if len(kinds) > 1 else ()):
            color, style = others[i], ("-", "--", "-.", ":")[i % 4]
            ax.plot(part[varied], part[kind], style, color=color, linewidth=1.2, label=kind)
        ax.plot(part[varied], part["error"], color=BLUE, marker="o", linewidth=2, label="all")
        if varied == "control_share" and len(part):
            best = part.loc[part["error"].idxmin()]
            ax.axvline(best[varied], color=ORANGE, linewidth=1, linestyle=":")
            ax.set_xscale("log")
            names = [f"{share:.0%}" for share in part[varied]]
            ax.set_xticks(part[varied], names, fontsize=7, rotation=45)
            ax.set_title(f"least error with {best[varied]:.0%} of controls", fontsize=9)
            ax.minorticks_off()
        elif len(part):
            ax.set_title("what other numbers of lanes would give", fontsize=9)
        ax.set_xlabel(label)
        ax.set_ylim(bottom=0)
    axes[0].set_ylabel("expected error (log-fold change)")
    axes[-1].legend(frameon=False, fontsize=8)
    return axes
