"""Figures that say whether posteriors and forecasts mean what they say."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from scipy.stats import binom

from pyrocell.diagnostics.calibration import ecdf_difference as difference_table
from pyrocell.errors import ScreenError
from pyrocell.plotting._style import BLUE, GREY, ORANGE, chosen, describe, new_axes, page

__all__ = ["ecdf_difference", "rank_histogram", "reliability"]

_WIDE = 3  # panels side by side


def rank_histogram(
    ranks: pd.DataFrame,
    quantity: str | Sequence[str] | None = None,
    n_bins: int = 20,
    axes: Sequence[Axes] | None = None,
) -> np.ndarray:
    """Ranks of true values among posterior draws, a panel for each quantity.

    Parameters
    ----------
    ranks
        From :func:`pyrocell.calibration.simulation_based_calibration`.
    quantity
        Which; default: all.
    n_bins
        Bars; as many as divide the number of possible ranks are best.
    axes
        Axes to draw into, one for each quantity.

    Returns
    -------
    Array of Axes. Grey: where 95% of bars lie if ranks are uniform and independent. High ends:
    posteriors too narrow; a hump: too wide; a slope: biased.
    """
    groups = _groups(ranks, quantity)
    panels = _panels(len(groups), axes)
    for ax, (name, mine) in zip(panels, groups):
        place = (mine["rank"] + 0.5) / (mine["n_draws"] + 1)
        lower, upper = binom.interval(0.95, len(mine), 1 / n_bins)
        ax.axhspan(lower, upper, color=GREY, alpha=0.25, linewidth=0)
        ax.hist(place, bins=np.linspace(0, 1, n_bins + 1), color=BLUE, alpha=0.8)
        ax.axhline(len(mine) / n_bins, color="black", linewidth=0.8)
        ax.set(xlim=(0, 1), xlabel="rank of the truth / draws")
        head = f"{name}: {len(mine)} values, {mine['replicate'].nunique()} fits"
        ax.set_title(head, fontsize=8)
    panels[0].set_ylabel("values")
    return panels


def ecdf_difference(
    ranks: pd.DataFrame,
    quantity: str | Sequence[str] | None = None,
    level: float = 0.95,
    axes: Sequence[Axes] | None = None,
) -> np.ndarray:
    """Distribution of the ranks less the uniform one, with its simultaneous band.

    Parameters
    ----------
    ranks
        From :func:`pyrocell.calibration.simulation_based_calibration`.
    quantity
        Which; default: all.
    level
        Of the band; see :func:`pyrocell.calibration.ecdf_difference`.
    axes
        Axes to draw into, one for each quantity.

    Returns
    -------
    Array of Axes. Orange: outside the band somewhere.
    """
    groups = _groups(ranks, quantity)
    panels = _panels(len(groups), axes)
    for ax, (name, mine) in zip(panels, groups):
        table = difference_table(mine, level)
        color = BLUE if table["inside"].all() else ORANGE
        band = [np.concatenate([[0], table[side], [0]]) for side in ("lower", "upper")]
        z = np.concatenate([[0], table["z"], [1]])
        ax.fill_between(z, *band, color=GREY, alpha=0.25, linewidth=0)
        ax.plot(z, np.concatenate([[0], table["difference"], [0]]), color=color, linewidth=1.5)
        ax.axhline(0, color="black", linewidth=0.8)
        ax.set(xlim=(0, 1), xlabel="rank of the truth / draws")
        where = "inside the band" if color == BLUE else "outside the band"
        ax.set_title(f"{name}: {where}", fontsize=8)
    panels[0].set_ylabel("ECDF − uniform")
    return panels


def reliability(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """How often it happened, by what was forecast.

    Parameters
    ----------
    table
        From :func:`pyrocell.metrics.reliability_table`.
    ax
        Where to draw.

    Returns
    -------
    matplotlib Axes. Points: mean forecast of a bin and the share that happened, with 90% Wilson
    intervals and the number of forecasts; on the diagonal forecasts are calibrated.
    """
    missing = [c for c in ("n", "forecast", "observed") if c not in table]
    if missing:
        raise ScreenError(
            f"the table has no column {missing[0]}; pass pyrocell.metrics.reliability_table(...)"
        )
    table = table[table["n"] > 0]
    ax = new_axes(ax, 4.0, 4.0)
    lower, upper = _wilson(table["observed"].to_numpy(), table["n"].to_numpy())
    ax.plot([0, 1], [0, 1], color="black", linewidth=0.8)
    ax.vlines(table["forecast"], lower, upper, color=BLUE, linewidth=1.5)
    ax.plot(table["forecast"], table["observed"], "o-", color=BLUE, linewidth=1, markersize=5)
    for x, y, n in zip(table["forecast"], upper, table["n"]):
        ax.annotate(f"{n:.0f}", (x, y), (0, 3), textcoords="offset points", ha="center", fontsize=7)
    ax.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.08), xlabel="forecast", ylabel="share that happened")
    ax.set_aspect("equal")
    describe(ax, "How often it happened, by what was forecast", "numbers: forecasts")
    return ax


def _wilson(share: np.ndarray, n: np.ndarray, z: float = 1.645) -> tuple[np.ndarray, np.ndarray]:
    """Wilson interval of a binomial share; 90% by default."""
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    return middle - half, middle + half


def _groups(
    ranks: pd.DataFrame, quantity: str | Sequence[str] | None
) -> list[tuple[str, pd.DataFrame]]:
    if "rank" not in ranks:
        raise ScreenError("the table has no column rank; pass simulation_based_calibration(...)")
    groups = chosen(ranks, "quantity", quantity).groupby("quantity", sort=False)
    return [(str(name), mine) for name, mine in groups]


def _panels(n: int, axes: Sequence[Axes] | None) -> np.ndarray:
    if axes is None:
        wide = min(n, _WIDE)
        rows = -(-n // wide)
        size = page(1 + 2.4 * wide, 0.4 + 2.4 * rows)
        _, drawn = plt.subplots(rows, wide, figsize=size, layout="constrained", squeeze=False)
        for ax in drawn.flat[n:]:
            ax.set_axis_off()
        return drawn.ravel()[:n]
    panels = np.atleast_1d(np.asarray(axes, dtype=object))
    if len(panels) < n:
        raise ScreenError(f"{n} quantities need as many axes, not {len(panels)}")
    return panels[:n]
