"""Starting values read off the counts in one pass: controls' mean, axes of cell state, responses.

A slow decoder bias gives every perturbation the same false effect; starting at the
controls' mean and at the pseudobulk responses removes the cause.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
from scipy.sparse.linalg import svds
from torch import Tensor

from pyrocell.data.statistics import CountStatistics
from pyrocell.generative.config import ModelConfig
from pyrocell.generative.effects import EFFECT_PRIORS
from pyrocell.screen.screen import Screen

__all__ = ["ScreenStatistics", "starting_values"]

_PSEUDO_COUNT = 0.5
_LOW = 10  # percentile of a feature's counts that is their low end
_TURNS, _STARTS = 300, 10  # of a rotation to sparse axes
_MAX_DENSE = 500  # perturbations and media, or genes, up to which all singular vectors are found


class ScreenStatistics(NamedTuple):
    """Starting values read off the counts, one pass."""

    baseline: Tensor  # (G,) log relative expression of controls
    baseline_scale: Tensor  # (G,) its standard error
    mean: Tensor  # (G,) mean count
    relative_variance: Tensor  # (G,) Var(x / size) / mean(x / size)²
    log_dispersion: Tensor  # (G,) log θ by moments
    loading: Tensor  # (d, G) axes on which resting cells differ
    response: Tensor  # (r, G) axes of the pseudobulk responses, unit RMS
    effect: Tensor  # (K, d + r)
    media_effect: Tensor  # (J, d + r)
    low: Tensor  # (G,) low end of the counts, where features are of several views
    usual: Tensor  # (V,) log depth of a usual cell


def starting_values(
    sums: CountStatistics, screen: Screen, config: ModelConfig, seed: int = 0
) -> ScreenStatistics:
    """Read starting values for the model from sums of raw counts.

    Parameters
    ----------
    sums
        Of the screen's cells.
    screen, config
        The screen and the model's shape.
    seed
        Seed of the axes that the counts leave free.
    """
    totals: Any = sums.condition  # (C, G), sparse where sets of perturbations are many
    control = screen.is_control & (screen.exposure.sum(1) == 0)
    if not control.any():
        control = screen.is_control
    if not control.any():  # cells with many guides each: all of them are near rest
        control = np.ones(len(control), bool)
    found = [
        _of_view(sums, part, size, totals[:, part], screen, control) for part, size in sums.parts
    ]
    whole = {name: np.concatenate([each[name] for each in found], -1) for name in found[0]}
    effects, media = whole.pop("effects"), whole.pop("media")
    loading = _resting_axes(sums, screen, config.n_latent, seed)
    response, effect, media_effect = _own_axes(effects, media, config.n_response, seed)
    pooled = whole.pop("pooled")
    if EFFECT_PRIORS[config.effect_prior].prefers_axes:
        response, effect, media_effect = _simple_axes(response, effect, media_effect, seed)
    along = _along_resting_axes(loading, media - media_effect @ response, pooled)
    effect = np.concatenate([np.zeros((len(effect), config.n_latent)), effect], 1)
    media_effect = np.concatenate([along, media_effect], 1)
    whole |= {"loading": loading, "response": response, "effect": effect}
    whole |= {"media_effect": media_effect, "usual": _usual_depths(sums)}
    return ScreenStatistics(
        **{
            name: torch.as_tensor(np.ascontiguousarray(value), dtype=torch.float32)
            for name, value in whole.items()
        }
    )


def _of_view(
    sums: CountStatistics,
    part: slice,
    size: np.ndarray,
    totals: Any,
    screen: Screen,
    control: np.ndarray,
) -> dict[str, np.ndarray]:
    """Starting values of the features of a view, from cells of depth `size` (N,), 0 of no cell."""
    sizes = np.bincount(screen.cell_condition, size, totals.shape[0])
    measured = size > 0
    n_cells, summed = int(measured.sum()), totals.sum(0)
    pooled = summed + 1e-3
    rate = pooled / size.sum()  # (G,)
    control_total, control_size = totals[control].sum(0), sizes[control].sum()
    relative_variance = _relative_variance(sums, part, n_cells)
    n_control = int((control[screen.cell_condition] & measured).sum())
    of = _responses_of_sums if screen.many_sets else _responses
    effects, media = of(totals, sizes, rate, screen)
    sampled = sums.sample[:, part][np.flatnonzero(measured[sums.rows])]
    several = sums.views is not None  # what none but these ask for takes time for many genes
    low = np.percentile(sampled.toarray(), _LOW, axis=0) if several else np.zeros(len(rate))
    return {
        "baseline": _log_level(control_total[None], np.array([control_size]), rate)[0],
        "baseline_scale": np.sqrt(np.minimum(relative_variance / max(n_control, 1), 1.0)),
        "mean": summed / n_cells,
        "relative_variance": relative_variance,
        "log_dispersion": _log_dispersion(relative_variance, rate, size[measured]),
        "low": low,
        "effects": effects,
        "media": media,
        "pooled": pooled,
    }


def _usual_depths(sums: CountStatistics) -> np.ndarray:
    """(V,) median log depth of the cells of each view."""
    return np.array([np.log(np.median(size[size > 0])) for _, size in sums.parts])


def _log_level(totals: np.ndarray, sizes: np.ndarray, rate: np.ndarray) -> np.ndarray:
    """log of the rate per unit size, shrunk by half a count towards the pooled rate."""
    return np.log((totals + _PSEUDO_COUNT) / (sizes[:, None] + _PSEUDO_COUNT / rate))


def _relative_variance(sums: CountStatistics, part: slice, n_cells: int) -> np.ndarray:
    mean, square = sums.scaled[part] / n_cells, sums.scaled_squares[part] / n_cells
    return np.clip((square - mean**2) / np.maximum(mean, 1e-12) ** 2, 1e-4, 1e6)


def _log_dispersion(relative: np.ndarray, rate: np.ndarray, size: np.ndarray) -> np.ndarray:
    """log θ by moments: what counting noise does not explain of the relative variance, (G,)."""
    excess = relative - (1 / size).mean() / rate
    return -np.log(np.clip(excess, 0.02, 20.0))


def _contrast(a: np.ndarray, b: np.ndarray, size: np.ndarray, rate: np.ndarray) -> np.ndarray:
    """Shrunken log-fold change of counts a (G,) against b (G,) at depths (2,)."""
    level = _log_level(np.stack([a, b]), size, rate)
    change, noise = level[0] - level[1], 1 / (a + 1) + 1 / (b + 1)
    signal = max(float(np.median(np.maximum(change**2 - noise, 0))), 1e-4)
    return change * signal / (signal + noise)


def _responses_of_sums(
    totals: Any, sizes: np.ndarray, rate: np.ndarray, screen: Screen
) -> tuple[np.ndarray, np.ndarray]:
    """What cells with a perturbation, or in a medium, have beside those without it.

    Of cells with many guides each, whose others are about the same on both sides.
    """

    def of(present: Any) -> np.ndarray:
        """Changes (n, G) where `present` (C, n) says so."""
        summed = present.T @ totals
        with_it = summed.toarray() if sp.issparse(summed) else np.asarray(summed)
        deep = np.asarray(present.T @ sizes)
        whole, depth = np.asarray(totals.sum(0)).ravel(), sizes.sum()
        rows = [
            _contrast(a, whole - a, np.array([s, depth - s]), rate)
            for a, s in zip(with_it, deep, strict=True)
        ]
        return np.array(rows).reshape(len(deep), len(rate))

    return of(screen.membership.astype(float)), of(sp.csr_array(screen.exposure.astype(float)))


def _responses(
    totals: np.ndarray, sizes: np.ndarray, rate: np.ndarray, screen: Screen
) -> tuple[np.ndarray, np.ndarray]:
    """Shrunken pseudobulk log-fold changes of perturbations (K, G) and media (J, G)."""
    exposure, none = screen.exposure, screen.is_control

    def contrast_of(a: np.ndarray, b: np.ndarray, size: np.ndarray) -> np.ndarray:
        return _contrast(a, b, size, rate)

    def pooled(rows: np.ndarray) -> tuple[np.ndarray, float]:
        return totals[rows].sum(0), sizes[rows].sum()

    def number(*columns: str) -> np.ndarray:
        return screen.conditions.groupby(list(columns), dropna=False).ngroup().to_numpy()

    arm, by_perturbation = number("media", "time"), screen.membership.tocsc()
    drivers, references = np.diff(screen.membership.indptr), {}
    effects = np.zeros((len(screen.perturbations), totals.shape[1]))
    for k in range(len(effects)):
        rows = by_perturbation.indices[slice(*by_perturbation.indptr[k : k + 2])]
        alone = rows[drivers[rows] == 1]
        rows = alone if len(alone) else rows
        arms = frozenset(arm[rows].tolist())
        if arms not in references:
            reference = none & np.isin(arm, list(arms))
            references[arms] = pooled(reference if reference.any() else none)
        (a, size), (b, other) = pooled(rows), references[arms]
        effects[k] = contrast_of(a, b, np.array([size, other])) / drivers[rows].mean()
    media = np.zeros((exposure.shape[1], totals.shape[1]))
    for j in range(len(media)):
        met, unmet = exposure[:, j] > 0, exposure.sum(1) == 0
        pairs = _matched(number("perturbation", "time"), sizes, met, unmet)
        if pairs.any():
            media[j] = contrast_of(pairs[0] @ totals, pairs[1] @ totals, pairs @ sizes)
        elif unmet.any():
            (a, size), (b, other) = pooled(met), pooled(unmet)
            media[j] = contrast_of(a, b, np.array([size, other]))
    return effects, media


def _matched(key: np.ndarray, sizes: np.ndarray, met: np.ndarray, unmet: np.ndarray) -> np.ndarray:
    """Weights of conditions with and without a medium, of equal keys in both, (2, C).

    Most knockouts leave a response as it is, and a screen has few controls: all cells say where a
    response starts, each genotype, at each time, by the harmonic mean of its two arms.
    """
    out = np.zeros((2, len(sizes)))
    for k in np.unique(key[met]):
        arms = met & (key == k), unmet & (key == k)
        total = [sizes[arm].sum() for arm in arms]
        if min(total) > 0:
            harmonic = 2 / (1 / total[0] + 1 / total[1])
            for row, arm, size in zip(out, arms, total):
                row[arm] = harmonic / size
    return out


def _resting_axes(sums: CountStatistics, screen: Screen, rank: int, seed: int) -> np.ndarray:
    """Leading axes on which cells of one condition and batch differ, log scale, (d, G)."""
    rng, rows, n_genes = np.random.default_rng(seed), sums.rows, len(sums.scaled)
    group = np.unique(
        screen.cell_condition[rows] * len(screen.batches) + screen.cell_batch[rows],
        return_inverse=True,
    )[1]
    level = sums.sample.toarray()
    measured = np.ones((len(sums.parts), len(rows)), bool)
    for v, (part, size) in enumerate(sums.parts):
        own, measured[v] = size[rows], size[rows] > 0
        level[:, part] = (
            level[:, part] / np.maximum(own, 1e-12)[:, None] * np.median(size[size > 0])
        )
        level[~measured[v], part] = 0.0
    mean = level.mean(0)
    logged = torch.as_tensor(np.log1p(level), dtype=torch.float32)
    groups = torch.as_tensor(group)
    total = torch.zeros(int(groups.max()) + 1, logged.shape[1]).index_add_(0, groups, logged)
    if measured.all():
        centred = logged - (total / torch.bincount(groups)[:, None])[groups]
    else:
        centred = logged
        for (part, _), has in zip(sums.parts, torch.as_tensor(measured), strict=True):
            n = torch.zeros(len(total)).index_add_(0, groups, has.float()).clamp_min(1.0)
            usual = (total[:, part] / n[:, None])[groups]
            centred[:, part] = (logged[:, part] - usual) * has[:, None]
    generator_state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    _, scale, axes = torch.svd_lowrank(centred, q=min(rank, min(centred.shape)), niter=4)
    torch.random.set_rng_state(generator_state)
    to_log = np.minimum((1 + mean) / np.maximum(mean, 1e-6), 3.0)
    found = (axes * scale / len(rows) ** 0.5).T.numpy() * to_log * 0.5
    out = rng.normal(0, 0.01, (rank, n_genes))
    out[: len(found)] = found
    return out


def _along_resting_axes(loading: np.ndarray, change: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Coordinates of log-fold changes (J, G) on the axes of cell state, weighted by expression."""
    weighted = loading * (weight / weight.sum())
    least = 0.01 * np.trace(weighted @ loading.T) / len(loading)
    ridge = max(least, 1e-12) * np.eye(len(loading))  # the loading may be zero: one cell each
    return np.linalg.solve(weighted @ loading.T + ridge, weighted @ change.T).T


def _leading(table: np.ndarray, rank: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Singular vectors and values, the greatest first; of a large table the leading ones alone."""
    if min(table.shape) <= max(_MAX_DENSE, 2 * rank):
        return np.linalg.svd(table, full_matrices=False)
    start = np.random.default_rng(seed).normal(size=min(table.shape))
    left, scale, right = svds(table, k=rank, v0=start)
    return left[:, ::-1], scale[::-1], right[::-1]  # pyright: ignore[reportOptionalSubscript] svds


def _own_axes(
    effects: np.ndarray, media: np.ndarray, rank: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Own axes of the response (r, G), unit RMS, and coordinates of perturbations and media."""
    n_genes = effects.shape[1]
    axes = np.random.default_rng(seed).normal(size=(rank, n_genes))
    stacked = np.concatenate([effects, media])
    coordinates = np.zeros((len(stacked), rank))
    if rank and len(stacked):
        left, scale, right = _leading(stacked, rank, seed)
        keep = min(rank, len(scale))
        axes[:keep] = right[:keep] * n_genes**0.5
        coordinates[:, :keep] = left[:, :keep] * scale[:keep] / n_genes**0.5
    return axes, coordinates[: len(effects)], coordinates[len(effects) :]


def _simple_axes(
    axes: np.ndarray, effects: np.ndarray, media: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same responses along axes turned so that each perturbation is on few of them.

    The rotation with the least sum of absolute coordinates, by projected gradients from several
    starts. A large perturbation counts by the root of its size, or it alone would say where axes
    lie; varimax, which squares coordinates, finds sparse axes less often.
    """
    used = np.flatnonzero(np.square(effects).sum(0) > 0)
    if len(used) < 2:
        return axes, effects, media
    size = np.sqrt(np.linalg.norm(effects[:, used], axis=1, keepdims=True))
    rows = effects[:, used] / np.maximum(size, 1e-12)
    rows = rows / np.linalg.norm(rows)
    rng = np.random.default_rng(seed)
    starts = [np.eye(len(used)), *rng.normal(size=(_STARTS, len(used), len(used)))]
    found = [_turned(rows, np.linalg.qr(start)[0]) for start in starts]
    turn = min(found, key=lambda t: np.abs(rows @ t).sum())
    out = [a.copy() for a in (axes, effects, media)]
    out[0][used] = turn.T @ axes[used]
    out[1][:, used], out[2][:, used] = effects[:, used] @ turn, media[:, used] @ turn
    return out[0], out[1], out[2]


def _turned(rows: np.ndarray, turn: np.ndarray) -> np.ndarray:
    """A rotation from which no small turn lessens the sum of absolute coordinates."""
    corner = 1e-4 * np.square(rows).mean()  # where an absolute value bends
    for _ in range(_TURNS):
        coordinates = rows @ turn
        slope = rows.T @ (coordinates / np.sqrt(np.square(coordinates) + corner))
        left, _, right = np.linalg.svd(turn - 0.02 * slope)
        turn = left @ right
    return turn
