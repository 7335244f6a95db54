"""Figures of assumptions: their posteriors, the sizes behind them, and the course of a response."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.patches import Rectangle

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
    page,
    rows_height,
)

if TYPE_CHECKING:
    from pyrocell.model import PyroCell

__all__ = ["assumption_map", "prior_posterior", "response_curves"]

_COLUMN = 0.5  # inches of a medium, wide enough for a number
_NUMBERED = 60  # rows whose posteriors are written into the cells
_PROBABLE = 0.9  # what the guides of a figure call probable; improbable from the other side
_HATCH = "////"
_BLOCKED = 0.5  # slope below which a response is called blocked


# ---------------------------------------------------------------------- map
def assumption_map(
    table: pd.DataFrame, assumption: str | Sequence[str] | None = None, ax: Axes | None = None
) -> Axes:
    """Posteriors by perturbation (rows) and medium (columns), hatched where untestable.

    Parameters
    ----------
    table
        From :meth:`pyrocell.PyroCell.assumptions`.
    assumption
        Which; several stand side by side as panels of one figure. Default: all that the table has
        for a perturbation or for the controls.
    ax
        Where to draw.

    Returns
    -------
    matplotlib Axes. White is the prior of the row, blue above it (the data speak for the
    assumption), red below; numbers are posteriors. Grey and hatched: the layout cannot test it and
    the posterior is the prior. Empty: the assumption does not speak of that condition.
    """
    _check_table(table)
    if assumption is None:
        table = table[table["assumption"] != "memory"]  # of a medium, not of a perturbation
    table = chosen(table, "assumption", assumption)
    rows = pd.Index(table["perturbation"].unique())
    keys = pd.MultiIndex.from_frame(table[["assumption", "media"]])
    columns = keys.unique()
    panel = pd.factorize(columns.get_level_values("assumption"))[0]
    order = np.argsort(panel, kind="stable")  # media of an assumption side by side
    columns, place = columns[order], np.arange(len(order)) + 0.5 * panel[order]
    x, y = place[columns.get_indexer(keys)], rows.get_indexer(pd.Index(table["perturbation"]))
    testable = table["testable"].to_numpy(bool)

    ax = new_axes(ax, max(4.4, 2.8 + _COLUMN * len(columns)), 2.2 + rows_height(len(rows)))
    cells = [Rectangle((a - 0.5, b - 0.5), 1, 1) for a, b in zip(x, y)]
    shade = _against_prior(table["posterior"].to_numpy(), table["prior"].to_numpy())
    shaded = PatchCollection([c for c, t in zip(cells, testable) if t], cmap="RdBu")
    shaded.set(array=shade[testable], clim=(0, 1), edgecolor="white", linewidth=0.5)
    ax.add_collection(shaded)
    hatched = [c for c, t in zip(cells, testable) if not t]
    if hatched:
        ax.add_collection(
            PatchCollection(hatched, facecolor="0.93", edgecolor="0.6", hatch=_HATCH, linewidth=0.0)
        )
    if len(rows) <= _NUMBERED:
        for a, b, p, s in zip(
            x[testable], y[testable], table["posterior"][testable], shade[testable]
        ):
            color = "white" if abs(s - 0.5) > 0.35 else "black"
            ax.text(a, b, f"{p:.2f}", ha="center", va="center", fontsize=6, color=color)
    ax.set_xlim(-0.5, place[-1] + 0.5)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    name_ticks(ax, rows, "y", "perturbations")
    ax.set_xticks(place, _column_names(columns), rotation=90, fontsize=8)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    describe(ax, "Probability that an assumption holds", "hatched: this layout cannot test it")
    _prior_colour_bar(ax, shaded, table["prior"][testable])
    return ax


def _against_prior(posterior: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """Posterior on a scale where the prior is ½, straight on either side of it."""
    below = 0.5 * posterior / np.maximum(prior, 1e-12)
    above = 1 - 0.5 * (1 - posterior) / np.maximum(1 - prior, 1e-12)
    return np.where(posterior < prior, below, np.where(posterior > prior, above, 0.5))


def _column_names(columns: pd.MultiIndex) -> list[str]:
    """Assumption, medium, or both, as far as they differ."""
    kinds, media = (columns.get_level_values(i) for i in (0, 1))
    if media.nunique() == 1:
        return [kind.replace("_", " ") for kind in kinds]
    if kinds.nunique() == 1:
        return list(media)
    return [f"{kind.replace('_', ' ')}: {medium}" for kind, medium in zip(kinds, media)]


def _prior_colour_bar(ax: Axes, shaded: PatchCollection, prior: pd.Series) -> None:
    bar = ax.figure.colorbar(shaded, ax=ax, shrink=0.6, label="posterior", ticks=[0, 0.5, 1])
    same = prior.nunique() == 1
    bar.set_ticklabels(["0", f"prior, {prior.iloc[0]:.2g}" if same else "prior of the row", "1"])


# ---------------------------------------------------------------------- prior and posterior
def prior_posterior(
    table: pd.DataFrame,
    assumption: str,
    media: str | None = None,
    region: float = 0.05,
    axes: Sequence[Axes] | None = None,
) -> np.ndarray:
    """Prior against posterior of each condition, and the size behind it.

    On top is what one looks for: the condition that is least probably steady or silent, or most
    probably blocked.

    Parameters
    ----------
    table
        From :meth:`pyrocell.PyroCell.assumptions`.
    assumption
        Which.
    media
        Only this medium; default: all.
    region
        As given to `model.assumptions`: a line in the right panel. For `no_response` the line is at
        one half.
    axes
        Two Axes to draw into.

    Returns
    -------
    (2,) matplotlib Axes. Left: from the prior (hollow) to the posterior (filled; blue above .9,
    orange below .1). Right: posterior mean of the size (root mean square log-fold change; slope on
    the controls' response for `no_response`) and its interval. A condition that the layout cannot
    test has a hollow point only.
    """
    _check_table(table)
    rows = chosen(chosen(table, "assumption", assumption), "media", media)
    if not rows["testable"].any():
        raise ScreenError(
            f"the layout can test {assumption} for none of {len(rows)} conditions, so there is no "
            f"posterior to draw; for {rows['perturbation'].iloc[0]}: {rows['reason'].iloc[0]}"
        )
    slope = assumption == "no_response"
    rows = rows.sort_values(["testable", "posterior"], ascending=[False, not slope], kind="stable")
    testable = rows["testable"].to_numpy(bool)
    if axes is None:
        height = 1.2 + rows_height(len(rows))
        _, axes = plt.subplots(1, 2, figsize=page(8, height), layout="constrained")
    left, right = panels = np.asarray(axes)
    names = rows["perturbation"].astype(str)
    if rows["media"].nunique() > 1:
        names = names + " | " + rows["media"].astype(str)
    y, posterior = np.arange(len(rows)), rows["posterior"].to_numpy()
    colors = np.select([posterior > _PROBABLE, posterior < 1 - _PROBABLE], [BLUE, ORANGE], GREY)
    moved = testable & (posterior != rows["prior"])
    left.hlines(y[moved], rows["prior"][moved], posterior[moved], color=colors[moved], linewidth=1)
    left.scatter(rows["prior"], y, s=18, facecolors="white", edgecolors=GREY, zorder=3)
    left.scatter(posterior[testable], y[testable], s=18, c=colors[testable], zorder=4)
    for value in (1 - _PROBABLE, _PROBABLE):
        left.axvline(value, color=GREY, linewidth=0.8, linestyle=":")
    left.set(xlim=(-0.02, 1.02), ylim=(len(rows) - 0.5, -0.5))
    left.set_xlabel(f"P({assumption.replace('_', ' ')}); hollow: prior")
    name_ticks(left, names, "y", "conditions")
    left.set_title("from prior to posterior", fontsize=9)
    right.set_title("the size behind it", fontsize=9)
    left.grid(axis="y", alpha=0.3)

    forest(right, rows.assign(mean=rows["size"]), names.tolist(), colors.tolist())
    right.set_yticklabels([])
    right.axvline(_BLOCKED if slope else region, color="black", linewidth=0.8, linestyle="--")
    if slope:
        right.set_xlabel("slope on the controls' response; dashed: ½")
        right.axvline(0, color="black", linewidth=0.8)
    else:
        right.set_xlabel(f"RMS log-fold change; dashed: region {region:g}")
        right.set_xlim(left=0)
    return panels


# ---------------------------------------------------------------------- courses
def response_curves(
    model: PyroCell,
    perturbation: str,
    media: str | None = None,
    genes: str | Sequence[str] | None = None,
    table: pd.DataFrame | None = None,
    region: float = 0.05,
    n_genes: int = 6,
    n_samples: int = 100,
    credible_level: float = 0.9,
    axes: Sequence[Axes] | None = None,
) -> np.ndarray:
    """Effect of a perturbation at each measured time, gene by gene, and where it comes to rest.

    Parameters
    ----------
    model
        A trained model of a screen with at least two times.
    perturbation, media
        The condition; default: baseline medium. Effects are relative to control in that medium.
    genes
        Which genes; default: those farthest from zero at any time, by the bound of the interval
        that is nearer to zero.
    table
        From `model.assumptions()`, for the probability of `steady_vs_control`; worked out when
        None.
    region
        Half the height of the band, as given to `model.assumptions`.
    n_genes
        Number of genes where none are named.
    n_samples, credible_level
        Posterior draws, and mass of the interval.
    axes
        Axes to draw into, one for each gene.

    Returns
    -------
    (genes,) matplotlib Axes. Line and grey band: posterior mean and interval. Blue band: ± region
    around the value at the last time; a condition that has arrived stays inside. The more probable
    that it is steady relative to control, the deeper the blue; hatched where the layout cannot
    test it. The probability speaks of the mean square over all genes, not of one gene.
    """
    screen = model.screen
    if len(screen.times) < 2:
        seen = f"one time ({screen.times[0]:g})" if screen.times else "no times"
        raise ScreenError(
            f"the screen has {seen}, so there is no course to draw; register a time_key with at "
            "least two times"
        )
    media = screen.baseline_media if media is None else media
    effects = pd.concat(
        model.perturbation_effects(
            [perturbation], media, time, n_samples=n_samples, credible_level=credible_level
        )
        for time in screen.times
    )
    probability, testable = _steady(
        model.assumptions() if table is None else table, perturbation, media
    )
    if genes is None:
        bound = np.maximum(effects["lower"], -effects["upper"])
        names = bound.groupby(effects["gene"], sort=False).max().nlargest(n_genes).index.tolist()
    else:
        names = [genes] if isinstance(genes, str) else list(genes)
    effects = chosen(effects, "gene", names)
    new = axes is None
    if axes is None:
        wide = min(3, len(names))
        rows = -(-len(names) // wide)
        _, axes = plt.subplots(
            rows,
            wide,
            figsize=page(1 + 2.3 * wide, 0.8 + 1.9 * rows),
            layout="constrained",
            sharex=True,
            sharey=True,
            squeeze=False,
        )
        for ax in axes.flat[len(names) :]:
            ax.set_axis_off()
    axes = np.ravel(axes)[: len(names)]
    if len(axes) < len(names):
        raise ScreenError(f"{len(names)} genes need as many axes, not {len(axes)}")
    for ax, name in zip(axes, names):
        _course(ax, effects[effects["gene"] == name], region, probability, testable)
        ax.set_title(name, fontsize=9)
    if new:
        axes[0].figure.supylabel(LFC, fontsize=9)
        axes[0].figure.supxlabel("time", fontsize=9)
    else:
        axes[0].set_ylabel(LFC, fontsize=8)
        axes[-1].set_xlabel("time")
    place = f" in {media}" if screen.media else ""
    verdict = f"P(steady vs control) {_rounded(probability)}"
    if not testable:
        verdict += ", the prior: not testable"
    axes[0].figure.suptitle(f"{perturbation}{place}, relative to control; {verdict}", fontsize=9)
    return axes


def _course(
    ax: Axes, effects: pd.DataFrame, region: float, probability: float, testable: bool
) -> None:
    last = effects["mean"].iloc[-1]
    band: dict[str, Any] = {"alpha": 0.6 * probability, "facecolor": BLUE}
    if not testable:
        band = {"facecolor": "none", "edgecolor": GREY, "hatch": _HATCH}
    ax.axhspan(last - region, last + region, linewidth=0, **band)
    for edge in (last - region, last + region):
        ax.axhline(edge, color=BLUE if testable else GREY, linewidth=0.6, linestyle=":")
    ax.axhline(0, color="black", linewidth=0.8)
    ax.fill_between(
        effects["time"], effects["lower"], effects["upper"], color="black", alpha=0.15, linewidth=0
    )
    ax.plot(effects["time"], effects["mean"], "o-", color="black", linewidth=1.2, markersize=3)


def _steady(table: pd.DataFrame, perturbation: str, media: str) -> tuple[float, bool]:
    """P(steady relative to control), and whether it can be tested."""
    _check_table(table)
    rows = chosen(table, "assumption", "steady_vs_control")
    rows = chosen(chosen(rows, "perturbation", perturbation), "media", media)
    return float(rows["posterior"].iloc[0]), bool(rows["testable"].iloc[0])


def _rounded(probability: float) -> str:
    if 0.01 <= probability <= 0.99:
        return f"= {probability:.2f}"
    return "< 0.01" if probability < 0.01 else "> 0.99"


def _check_table(table: pd.DataFrame) -> None:
    """Raise where a table is not that of `model.assumptions()`, such as that of testability."""
    missing = [c for c in ("assumption", "testable", "prior", "posterior") if c not in table]
    if missing:
        raise ScreenError(
            f"the table has no column {missing[0]}; pass the table of model.assumptions()"
        )
