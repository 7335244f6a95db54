"""What the posterior and the counts of a screen give to the network: effects, and losses."""

from __future__ import annotations

import numpy as np

from pyrocell.errors import ScreenError
from pyrocell.posterior.effects import effect_draws
from pyrocell.posterior.fitted_screen import FittedScreen
from pyrocell.posterior.gene_level.counts import LevelCounts
from pyrocell.posterior.network.edges import Effects
from pyrocell.screen.screen import Courses

__all__ = ["measured_effects"]

_UNKNOWN = 1e6  # variance of what was not measured
_FEWEST_COUNTS = 20.0  # in the controls; below it a regulator's level says nothing of its loss
_MOVES = np.log(1.25)  # natural log, from which a regulator is seen to be lost
_MOST = np.log(4.0)  # gain of a regulator, natural log, beyond which no more is felt


def measured_effects(
    fit: FittedScreen, counts: LevelCounts, media: str, n_draws: int
) -> tuple[Effects, list[str]]:
    """Effects of all single perturbations in a medium, and their labels.

    Changes are those of the counts, without a prior on effects, against genes that a perturbation
    does not touch; losses of regulators are the posterior's, in joint draws.
    """
    screen = fit.screen
    if screen.many_sets:
        raise ScreenError(
            "cells carry many guides each, and a network is read from perturbations that were made "
            "alone; perturbation_effects() says what each does"
        )
    names, (times, controls, rows) = _conditions(fit, media)
    begun = np.unique(screen.perturbed_at[rows[rows >= 0]])
    if len(begun) > 1:
        raise ScreenError(
            f'in medium "{media}" cells were perturbed at {len(begun)} different times, and a '
            "network needs the time since the perturbation; name another medium"
        )
    spread = counts.spread(np.log(counts.noise.theta))
    total = counts.total.astype(float) + 0.5
    level, variance = np.log(total / counts.depth), 1 / total + spread
    asked = [float(t) if screen.times else None for t in times]
    draws = np.stack([effect_draws(fit, names, media, t, n_draws) for t in asked], 2)
    measured = rows >= 0  # (K, T)
    value = np.where(measured[..., None], level[rows] - level[controls], 0.0)
    error = variance[rows].copy()
    for t, c in enumerate(controls):
        error[:, t] += counts.noise_variance(rows[:, t].tolist(), c)
    weight = 1 / (error + variance[controls])
    away = value - draws.mean(0)
    # depths are shares of all counts, which move with the genes that are touched
    value -= _weighted_median(away, weight)[..., None]
    error[~measured] = _UNKNOWN
    number = [screen.perturbations.index(name) for name in names]
    genes = {name: i for i, name in enumerate(screen.genes)}
    own = np.array([genes.get(screen.perturbation_genes[k], -1) for k in number])
    seen = counts.raw[controls].min(0) >= _FEWEST_COUNTS
    since = times - begun[0]
    lost = np.zeros((n_draws, len(names), len(times), len(names)))
    for r, g in enumerate(own):
        if g >= 0 and seen[g]:
            lost[..., r] = 1 - np.exp(np.minimum(draws[..., g], _MOST))
        alone = draws[:, r, :, g] if g >= 0 and seen[g] else None
        lost[:, r, :, r] = _own_loss(screen.perturbation_types[number[r]], alone)
    return Effects(value, error, variance[controls], lost, own, since), names


def _own_loss(kind: str, draws: np.ndarray | None) -> np.ndarray | float:
    """How far a perturbation takes its own product: (S, T), or 1 for all of it.

    The mRNA of a gene that was knocked out says nothing of its protein; that of one that was
    silenced or activated does, where it is seen to move.
    """
    usual = -1.0 if kind == "CRISPRa" else 1.0
    if kind not in ("CRISPRi", "CRISPRa") or draws is None:
        return usual
    if abs(float(draws.mean())) < _MOVES:
        return usual
    return 1 - np.exp(np.minimum(draws, _MOST))


def _weighted_median(values: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Median over the last axis."""
    order = np.argsort(values, -1)
    values, weight = (np.take_along_axis(a, order, -1) for a in (values, weight))
    below = np.cumsum(weight, -1)
    at = (below >= below[..., -1:] / 2).argmax(-1)
    return np.take_along_axis(values, at[..., None], -1)[..., 0]


def _conditions(fit: FittedScreen, media: str) -> tuple[list[str], Courses]:
    """Labels of perturbations measured alone after time zero, and their conditions."""
    screen = fit.screen
    found = screen.courses(media)
    found = found.some(~(found.times <= 0))  # NaN without times
    if not len(found.times):
        raise ScreenError(f'medium "{media}" has no controls to compare perturbations with')
    kept = (found.rows >= 0).any(1)
    if not kept.any():
        raise ScreenError(
            f'no perturbation was measured alone in medium "{media}": a network needs them'
        )
    names = [screen.perturbations[k] for k in np.flatnonzero(kept)]
    times = np.where(np.isnan(found.times), 1.0, found.times)
    return names, Courses(times, found.control, found.rows[kept])
