"""Counts of every condition as a likelihood of its level, free of any prior on effects.

With the weighted counts T of a condition and its depth D at the batch noise found, both scaled so
that counting noise has the variance of a Poisson count,

    T ~ NegativeBinomial(mean D exp(x), variance D exp(x) + k (D exp(x))²).

No logarithm is taken of counts, so there is no bias to correct, and the likelihood holds where no
count was seen at all. k is what cells of a condition vary beyond counting, divided by their number,
and what the effect varies between batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.sparse as sp

from pyrocell.data.backed import count_blocks
from pyrocell.data.statistics import add_by_group
from pyrocell.posterior.gene_level.batch_noise import NoiseFit, fit_noise
from pyrocell.posterior.gene_level.overdispersion import Overdispersion, pooled_overdispersion
from pyrocell.posterior.gene_level.replicates import replicate_variance
from pyrocell.screen.feature_views import places_of

__all__ = [
    "CellGroups",
    "LevelCounts",
    "apart",
    "cell_groups",
    "highest_allowed",
    "level_counts",
    "levels_of",
    "moved_by",
    "shared_noise",
    "side_by_side",
]

DEEPEST = 2.0  # weight of a cell at most, in units of the median depth
_RAREST = 1e-12  # rate of a gene without counts
_POOLED = 5.0
_NORMAL = 0.1  # relative variance of a sum up to which its tails are near those of a normal
_TOP = 3  # highest counts of a gene, the lowest of which none may exceed
_CELLS = 50_000  # from which overdispersion is learned
_SHRUNKEN_ROUNDS = 3
_EFFECT_SD = 0.3  # of levels about the pooled rate, where overdispersion is learned
# arrays of `LevelCounts` and of its `noise` whose last dimension is features
_COLUMNS = tuple("total depth within between eta eta_width reference rate raw replicate".split())
_OF_NOISE = ("theta", "factor", "log_weight", "scale")


@dataclass(frozen=True)
class CellGroups:
    """Sums over the cells of every pair of condition and noise group that has cells, R in all.

    A cell counts in proportion to its depth, but no more than `DEEPEST` times the usual one: very
    deep cells are few, are often two cells or of another kind, and would decide what a condition
    looks like. Pairs are in the order of their conditions.

    Attributes
    ----------
    total
        (R, G) float32, sums of weighted counts.
    depth, poisson, square
        (R,) Σwℓ, Σw²ℓ and Σ(wℓ)².
    start
        (C + 1,) first pair of each condition.
    group
        (R,) noise group.
    raw
        (C, G) float32 sums of counts as they were measured.
    """

    total: np.ndarray
    raw: np.ndarray
    depth: np.ndarray
    poisson: np.ndarray
    square: np.ndarray
    start: np.ndarray
    group: np.ndarray

    def rows(self) -> dict[str, np.ndarray]:
        """The arrays by name, as the kernels take them."""
        return {name: value for name, value in self.__dict__.items() if name != "raw"}


@dataclass(frozen=True)
class LevelCounts:
    """Likelihood of the level of every condition; see the module.

    Attributes
    ----------
    total, depth
        (C, G) T and D.
    within, between
        (C, G) parts of k: within / θ is what cells of a condition vary, by their number, and
        between what its level varies between batches.
    per_cell
        (C,) Σ(wℓ)² / (Σwℓ)², the inverse number of cells that count.
    share
        (C, H) share of each noise group in the depth of a condition.
    eta, eta_root
        (H, G) mode of batch noise, its sum over groups zero, and (G, H, H) factor L of its
        posterior covariance LL'.
    eta_width
        (levels, G) standard deviations of batch noise on its levels, the finest first.
    noise
        What cells say of overdispersion, learned at the levels `reference`.
    reference
        (C, G) float32 levels, log expression per unit of size.
    rate
        (G,) pooled counts per unit of size.
    raw
        (C, G) counts as they were measured.
    replicate
        (C, G) variance of the condition's level between batches, contained in k.
    sizes
        (V,) numbers of features of each view, where several are side by side; `per_cell` and
        `share` have then a first dimension of views.
    """

    total: np.ndarray
    depth: np.ndarray
    within: np.ndarray
    between: np.ndarray
    per_cell: np.ndarray
    share: np.ndarray
    eta: np.ndarray
    eta_root: np.ndarray
    eta_width: np.ndarray
    noise: Overdispersion
    reference: np.ndarray
    rate: np.ndarray
    raw: np.ndarray
    replicate: np.ndarray
    sizes: tuple[int, ...] = ()

    def moved(self, eta: np.ndarray) -> np.ndarray:
        """(C, G) how far batch noise (H, G) other than `eta` moves log depths."""
        return moved_by(self.share, eta - self.eta, self.sizes)

    def shared_noise(self, loading: np.ndarray) -> np.ndarray:
        """(C, G) variance of levels that cells' states bring along a loading (d, G)."""
        return shared_noise(self.per_cell, loading, self.sizes)

    def noise_variance(self, rows: Sequence[int], other: int) -> np.ndarray:
        """(n, G) variance that the error of batch noise adds to conditions against another."""
        shares = self.share if self.sizes else self.share[None]
        found = []
        for share, part in zip(shares, places_of(self.sizes or (len(self.eta_root),))):
            away = share[list(rows)] - share[other]  # (n, H)
            batch = np.einsum("nh,ghk->ngk", away, self.eta_root[part])
            found.append((batch**2).sum(-1))
        return np.concatenate(found, 1)

    def of_features(self, features: np.ndarray | slice) -> LevelCounts:
        """The likelihood of some features alone; of views, those of each in their order."""
        noise = self.noise
        sizes = ()
        if self.sizes:
            kept = np.arange(sum(self.sizes))[features]
            sizes = np.diff(np.searchsorted(kept, [0, *np.cumsum(self.sizes)])).tolist()
        return replace(
            self,
            **{name: np.ascontiguousarray(getattr(self, name)[..., features]) for name in _COLUMNS},
            eta_root=self.eta_root[features],
            sizes=tuple(sizes),
            noise=replace(
                noise,
                **{
                    name: np.ascontiguousarray(getattr(noise, name)[..., features])
                    for name in _OF_NOISE
                },
            ),
        )

    def spread(self, log_theta: np.ndarray) -> np.ndarray:
        """k at given overdispersions (G,), (C, G)."""
        return self.within * np.exp(-log_theta) + self.between + 1e-6


def moved_by(share: np.ndarray, change: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    """(C, G) mean of changes of noise groups (H, G) by shares (C, H), or (V, C, H) of views."""
    if not len(sizes):
        return share @ change
    parts = zip(share, places_of(sizes), strict=True)
    return np.concatenate([own @ change[:, part] for own, part in parts], 1)


def shared_noise(per_cell: np.ndarray, loading: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    """(C, G) variance along a loading (d, G) of means of cells, `per_cell` (C,) or (V, C)."""
    square = (loading**2).sum(0)
    if not len(sizes):
        return per_cell[:, None] * square
    return np.repeat(per_cell.T, sizes, axis=1) * square


def side_by_side(parts: Sequence[LevelCounts]) -> LevelCounts:
    """The likelihood of several views of the same conditions, their features one axis."""
    if len(parts) == 1:
        return parts[0]

    def joined(kind: str, name: str) -> np.ndarray:
        of = [part.noise if kind == "noise" else part for part in parts]
        return np.concatenate([getattr(each, name) for each in of], -1)

    return LevelCounts(
        **{name: joined("counts", name) for name in _COLUMNS},
        eta_root=np.concatenate([part.eta_root for part in parts]),
        per_cell=np.stack([part.per_cell for part in parts]),
        share=np.stack([part.share for part in parts]),
        noise=Overdispersion(**{name: joined("noise", name) for name in _OF_NOISE}),
        sizes=tuple(part.total.shape[1] for part in parts),
    )


def apart(counts: LevelCounts) -> list[LevelCounts]:
    """The views that were put side by side."""
    if not counts.sizes:
        return [counts]
    return [
        replace(counts.of_features(part), per_cell=per_cell, share=share, sizes=())
        for part, per_cell, share in zip(
            places_of(counts.sizes), counts.per_cell, counts.share, strict=True
        )
    ]


def highest_allowed(counts: Any) -> np.ndarray:
    """(G,) the third highest count of every gene, at least 1: what a cell may bring at most.

    The two cells with most counts of a gene then bring no more than a third one does, so that no
    effect hangs on one cell.
    """
    top = np.zeros((_TOP, counts.shape[1]), np.float32)
    for _, block in count_blocks(counts):
        columns = sp.csc_matrix(block)
        for g in np.flatnonzero(np.diff(columns.indptr)):
            mine = columns.data[columns.indptr[g] : columns.indptr[g + 1]]
            if len(mine) > _TOP:
                mine = np.partition(mine, len(mine) - _TOP)[-_TOP:]
            both = np.concatenate([top[:, g], mine])
            top[:, g] = np.partition(both, len(both) - _TOP)[-_TOP:]
    return np.maximum(top.min(0), 1.0)


def _held(block: sp.csr_matrix, most: np.ndarray) -> sp.csr_matrix:
    """Counts no higher than allowed."""
    out = sp.csr_matrix(block, copy=True)
    out.data = np.minimum(out.data, most[out.indices])
    return out


def cell_groups(
    counts: Any,
    size: np.ndarray,
    condition: np.ndarray,
    group: np.ndarray,
    n_conditions: int,
    n_groups: int,
    most: np.ndarray,
    keep: np.ndarray | None = None,
) -> CellGroups:
    """Sum cells by condition and noise group.

    Parameters
    ----------
    counts
        (N, G) CSR counts, in memory or stored.
    size
        (N,) size factors.
    condition, group
        (N,) codes.
    most
        (G,) counts that a cell may bring, see `highest_allowed`.
    keep
        (N,) bool: leave the other cells out; by default none.
    """
    weight = np.minimum(1.0, DEEPEST * np.median(size) / size)
    if keep is not None:
        weight = np.where(keep, weight, 0.0)
    code = condition * n_groups + group
    cells = np.bincount(code, weight > 0, n_conditions * n_groups)
    pairs = np.flatnonzero(cells)
    row = np.full(n_conditions * n_groups, -1)
    row[pairs] = np.arange(len(pairs))
    total = np.zeros((len(pairs), counts.shape[1]), np.float32)
    raw = np.zeros((n_conditions, counts.shape[1]), np.float32)
    for rows, block in count_blocks(counts):
        add_by_group(raw, condition[rows], sp.csr_matrix(block))
        mine = np.flatnonzero(weight[rows] > 0)
        here = weight[rows]
        member = sp.csr_matrix((here[mine], (row[code[rows][mine]], mine)), (len(pairs), len(here)))
        part = sp.coo_matrix(member @ _held(block, most))
        np.add.at(total, (part.row, part.col), part.data)

    def summed(values: np.ndarray) -> np.ndarray:
        return np.bincount(code, values, n_conditions * n_groups)[pairs]

    first = pairs // n_groups
    return CellGroups(
        total=total,
        raw=raw,
        depth=summed(weight * size),
        poisson=summed(weight**2 * size),
        square=summed((weight * size) ** 2),
        start=np.searchsorted(first, np.arange(n_conditions + 1)),
        group=pairs % n_groups,
    )


def level_counts(
    counts: Any,
    size: np.ndarray,
    condition: np.ndarray,
    group: np.ndarray,
    n_conditions: int,
    noise_levels: list[np.ndarray],
    driver: np.ndarray,
    noise_sd: float,
    replicate_sd: float,
) -> LevelCounts:
    """Estimate batch noise, overdispersion and variance between replicates; collect the counts.

    Parameters
    ----------
    counts, size, condition, group
        As in `cell_groups`.
    noise_levels
        Codes (H,) of the groups on every level of noise, the finest first; see `NoiseFit`.
    driver
        (C,) number of the perturbation that makes a condition's level vary between batches, -1 for
        controls.
    noise_sd
        Standard deviation of batch noise at the start.
    replicate_sd
        That of an effect between batches, where no condition was measured in two.
    """
    n_groups, most = len(noise_levels[0]), highest_allowed(counts)
    groups = cell_groups(counts, size, condition, group, n_conditions, n_groups, most)
    rows = groups.rows()
    n_genes = groups.total.shape[1]
    rate = np.maximum(groups.total.sum(0, dtype=float) / groups.depth.sum(), _RAREST)
    ones = np.ones(n_genes)
    noise = Overdispersion(ones, ones, np.zeros((1, n_genes)), ones)
    fit = NoiseFit(noise_levels, n_genes, noise_sd)
    replicate = np.where(driver >= 0, replicate_sd**2, 0.0)[:, None].repeat(n_genes, 1)
    chosen = np.sort(np.random.default_rng(0).permutation(len(size))[:_CELLS])
    sampled = sp.csc_matrix(_held(counts[chosen], most))
    owner = np.repeat(np.arange(n_conditions), np.diff(groups.start))
    pair = np.searchsorted(
        owner * n_groups + groups.group,
        condition[chosen] * n_groups + group[chosen],
    )
    noisy = n_groups > 1
    for round_ in range(_SHRUNKEN_ROUNDS if noisy else 1):
        if noisy:
            fit_noise(fit, rows, rate, noise.factor, noise.inverse, replicate)
        for _ in range((2, 1, 0)[round_]):  # the levels hardly change after that
            level = _shrunken_levels(groups, fit.eta, rate, noise.inverse)
            at = level[owner] + fit.eta[groups.group]
            noise = pooled_overdispersion(sampled, np.log(size[chosen]), pair, at)
        if noisy and round_ != 1:
            final = round_ == _SHRUNKEN_ROUNDS - 1
            replicate = replicate_variance(
                rows, fit.eta, noise.factor, noise.inverse, driver, replicate_sd, final
            )
    if noisy:
        fit_noise(fit, rows, rate, noise.factor, noise.inverse, replicate, learn=False)
    return levels_of(groups, *_centred(fit), fit.width, noise, level, replicate)


def _centred(fit: NoiseFit) -> tuple[np.ndarray, np.ndarray]:
    """η with a sum of zero over groups, and a factor of its covariance: levels take the mean."""
    n_groups, n_genes = fit.eta.shape
    if n_groups == 1:
        return fit.eta, np.zeros((n_genes, 1, 1))
    around = np.eye(n_groups) - 1 / n_groups
    value, vector = np.linalg.eigh(around @ fit.covariance @ around)
    return around @ fit.eta, vector * np.sqrt(np.maximum(value, 0.0))[:, None]


def levels_of(
    groups: CellGroups,
    eta: np.ndarray,
    eta_root: np.ndarray,
    eta_width: np.ndarray,
    noise: Overdispersion,
    reference: np.ndarray,
    replicate: np.ndarray,
) -> LevelCounts:
    """Pool the groups of every condition, each by what its counts tell, given batch noise."""
    n_conditions, n_groups = len(groups.start) - 1, len(eta)
    n_genes = groups.total.shape[1]
    owner = np.repeat(np.arange(n_conditions), np.diff(groups.start))
    gather = sp.csr_matrix((np.ones(len(owner)), (owner, np.arange(len(owner)))))
    gather.resize(n_conditions, len(owner))
    total, depth, within, between = np.zeros((4, n_conditions, n_genes), np.float32)
    rate = np.maximum(groups.total.sum(0, dtype=float) / groups.depth.sum(), _RAREST)
    per_cell = (groups.square / groups.depth**2)[:, None]  # (R, 1)
    counting = (groups.poisson / groups.depth)[:, None]  # (R, 1) 1 without weights
    step = max(1, 2**22 // max(len(owner), 1))
    for first in range(0, n_genes, step):
        g = slice(first, first + step)
        mine = groups.total[:, g].astype(float)
        varies = replicate[owner, g]
        scaled = groups.depth[:, None] * np.exp(eta[groups.group, g] + varies / 2)
        smooth = (gather @ mine + _POOLED) / (gather @ scaled + _POOLED / rate[g])
        mean = scaled * smooth[owner]
        each = noise.factor[g] * counting
        weight = 1 / (each + mean * (per_cell * noise.inverse[g] + np.expm1(varies)))
        told = gather @ (weight**2 * each * mean)
        scale = (gather @ (weight * mean)) / np.where(told > 0, told, 1.0)
        weight *= scale[owner]
        total[:, g] = gather @ (weight * mine)
        depth[:, g] = gather @ (weight * scaled)
        squared = (weight * mean) ** 2
        whole = np.maximum(gather @ (weight * mean), 1e-30) ** 2
        within[:, g] = _scaled((gather @ (squared * per_cell)) / whole, noise, g)
        between[:, g] = gather @ (squared * np.expm1(varies)) / whole
    share = np.zeros((n_conditions, n_groups))
    np.add.at(share, (owner, groups.group), groups.depth)
    whole = share.sum(1, keepdims=True)
    squares = np.bincount(owner, groups.square, n_conditions)
    empty = whole[:, 0] <= 0  # conditions without cells, when some are left out
    within[empty] = 1.0
    return LevelCounts(
        total=total,
        depth=np.maximum(depth, 1e-20),
        within=within,
        between=between,
        per_cell=np.where(empty, 1.0, squares / np.maximum(whole[:, 0], 1e-30) ** 2),
        share=share / np.maximum(whole, 1e-30),
        eta=eta,
        eta_root=eta_root,
        eta_width=eta_width,
        noise=noise,
        reference=reference.astype(np.float32),
        rate=rate,
        raw=groups.raw,
        replicate=replicate,
    )


def _scaled(within: np.ndarray, noise: Overdispersion, genes: slice) -> np.ndarray:
    """Inverse numbers of cells, times how far the variance between cells is off that of θ.

    A variance that is smaller than θ says is believed of sums that many cells make up, whose tails
    are then those of a normal. Of sums that hang on a few bursts θ knows the tails better.
    """
    scale = noise.scale[genes]
    believed = _NORMAL / (_NORMAL + within / noise.theta[genes])
    return within * np.where(scale < 1, 1 + (scale - 1) * believed, scale)


def _shrunken_levels(
    groups: CellGroups, eta: np.ndarray, rate: np.ndarray, inverse: np.ndarray
) -> np.ndarray:
    """Log expression per unit of size of every condition, (C, G), as a posterior mean.

    Under a normal prior about the pooled rate: a burst in a few cells of a rare gene is then part
    of what cells vary, where a free level would explain it away.
    """
    n_conditions = len(groups.start) - 1
    owner = np.repeat(np.arange(n_conditions), np.diff(groups.start))
    gather = sp.csr_matrix((np.ones(len(owner)), (owner, np.arange(len(owner)))))
    gather.resize(n_conditions, len(owner))
    none = np.diff(groups.start) == 0  # conditions that no cell of this view is of
    within = gather @ (groups.depth[:, None] * np.exp(eta[groups.group])) + none[:, None] / rate
    total = gather @ groups.total + 0.5 * none[:, None]
    per_cell = (gather @ groups.square) / np.maximum(gather @ groups.depth, 1e-30) ** 2
    found = np.log((total + 0.5) / within)
    variance = 1 / (rate * within + 0.5) + per_cell[:, None] * inverse
    kept = _EFFECT_SD**2 / (_EFFECT_SD**2 + variance)
    return np.log(rate) + kept * (found - np.log(rate))


def half_of(levels: LevelCounts, groups: CellGroups) -> LevelCounts:
    """The likelihood of some of the cells, with the noise that all have told."""
    some = levels_of(
        groups,
        levels.eta,
        levels.eta_root,
        levels.eta_width,
        levels.noise,
        levels.reference,
        levels.replicate,
    )
    return replace(some, rate=levels.rate)
