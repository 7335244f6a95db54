"""Overdispersion of counts between cells of a condition, from all conditions together.

A count has the variance f μ + μ² / θ about its mean μ = ℓ exp(level of its condition and batch).
θ of a gene is found by maximum likelihood of the negative binomial over every cell, and shrunk to a
quadratic in the gene's log mean by as much as the likelihoods of all genes say that θ varies about
it: bounded on both sides, so that a gene with a handful of counts takes the value of others of its
expression. f is 1, and below it where counts vary less than Poisson counts (depth-corrected ones).

What decides the error of a sum over cells is the variance, and counts need not be negative
binomial: the θ that fits the zeros of a gene may be far from the one that fits its variance. So the
excess variance found within conditions is set against the one that θ implies, for genes of like
expression together and for each gene as far as its own cells can tell, and 1 / θ is scaled by it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp

from pyrocell._core.threading import parallel_for
from pyrocell.distributions.kernels.fastmath import jit

__all__ = [
    "LOG_THETA",
    "Overdispersion",
    "draw_log_theta",
    "overdispersion_of_cells",
    "pooled_overdispersion",
]

LOG_THETA = np.arange(-7.0, 6.01, 0.25)  # grid of log θ; at its end counts are Poisson
_BIN = 0.1  # of log μ, within which cells count as alike
_LOWEST, _BINS = -16.0, 300
_TABLE = 64  # counts up to this are summed from a table
_FEWEST_COUNTS = 20.0  # of a gene that helps to set the trend
_LEAST_POISSON = 0.05
_ROUNDS = 30
_BIN_GENES, _MOST_BINS = 50, 20  # genes of like expression whose excess variance is pooled
_SCALE_SD = 0.7  # of the logarithm of what θ is off by, before it is looked at
_SCALES = (0.1, 10.0)
_NEGLIGIBLE = 15.0  # nats below the most probable θ at which others are left out


@jit("nsz", "contract", "arcp", "reassoc")
def _likelihoods(first, last, indptr, cells, counts, log_size, group, level, grid, out, spread):
    """Log likelihood (grid, G) of log θ, and Σ(x − μ)², Σμ in `spread` (2, G), of some genes."""
    n_cells = log_size.size
    cell_count = np.empty(_BINS)
    count_sum = np.empty(_BINS)
    above = np.empty(_TABLE + 1)
    for g in range(first, last):
        cell_count[:] = 0.0
        count_sum[:] = 0.0
        above[:] = 0.0
        squares, means = 0.0, 0.0
        for n in range(n_cells):
            log_mu = log_size[n] + level[group[n], g]
            b = int((log_mu - _LOWEST) / _BIN)
            b = min(max(b, 0), _BINS - 1)
            cell_count[b] += 1.0
        for b in range(_BINS):
            if cell_count[b] > 0:
                mu = math.exp(_LOWEST + (b + 0.5) * _BIN)
                squares += cell_count[b] * mu * mu
                means += cell_count[b] * mu
        for i in range(indptr[g], indptr[g + 1]):
            n, x = cells[i], counts[i]
            log_mu = log_size[n] + level[group[n], g]
            b = int((log_mu - _LOWEST) / _BIN)
            b = min(max(b, 0), _BINS - 1)
            count_sum[b] += x
            squares += x * (x - 2.0 * math.exp(_LOWEST + (b + 0.5) * _BIN))
            whole = min(int(x), _TABLE)
            for k in range(whole):
                above[k] += 1.0
        spread[0, g], spread[1, g] = squares, means
        for j in range(grid.size):
            theta = math.exp(grid[j])
            total = 0.0
            for b in range(_BINS):
                if cell_count[b] > 0:
                    u = math.exp(_LOWEST + (b + 0.5) * _BIN - grid[j])
                    total -= (theta * cell_count[b] + count_sum[b]) * math.log1p(u)
                    total -= count_sum[b] * grid[j]
            for k in range(_TABLE):
                if above[k] > 0:
                    total += above[k] * math.log(theta + k)
            for i in range(indptr[g], indptr[g + 1]):
                if counts[i] > _TABLE:
                    total += math.lgamma(counts[i] + theta) - math.lgamma(_TABLE + theta)
            out[j, g] = total


@dataclass(frozen=True)
class Overdispersion:
    """What the cells of all conditions say of θ and f.

    Attributes
    ----------
    theta, factor
        (G,) θ at the posterior mean of its logarithm, and f.
    log_weight
        (grid, G) float32 log posterior of log θ on `LOG_THETA`, up to a constant.
    scale
        (G,) excess variance over that which θ implies.
    """

    theta: np.ndarray
    factor: np.ndarray
    log_weight: np.ndarray
    scale: np.ndarray

    @property
    def inverse(self) -> np.ndarray:
        """(G,) relative variance of a cell's count beyond counting, `scale` / θ."""
        return self.scale / self.theta


def pooled_overdispersion(
    counts: sp.csc_matrix, log_size: np.ndarray, group: np.ndarray, level: np.ndarray
) -> Overdispersion:
    """Learn θ and f of every gene.

    Parameters
    ----------
    counts
        (N, G) counts of some cells, by genes.
    log_size
        (N,) log size factors.
    group
        (N,) row of `level` of each cell.
    level
        (R, G) log expression per unit of size: of each condition in each batch.
    """
    n_cells, n_genes = len(log_size), level.shape[1]
    likelihood = np.empty((len(LOG_THETA), n_genes))
    spread = np.empty((2, n_genes))
    edges = np.linspace(0, n_genes, min(n_genes, 64) + 1).astype(int)
    arguments = (
        counts.indptr.astype(np.int64),
        counts.indices.astype(np.int64),
        counts.data.astype(np.float64),
        log_size.astype(np.float64),
        group.astype(np.int64),
        np.ascontiguousarray(level, np.float64),
        LOG_THETA,
        likelihood,
        spread,
    )
    parallel_for(lambda i: _likelihoods(edges[i], edges[i + 1], *arguments), len(edges) - 1)
    total = np.asarray(counts.sum(axis=0)).ravel()
    log_theta, log_weight = _shrunk(likelihood, total, n_cells)
    freedom = n_cells / max(n_cells - len(np.unique(group)), 1)
    poisson = np.divide(spread[0], spread[1], out=np.ones(n_genes), where=spread[1] > 0) * freedom
    under = (log_theta > LOG_THETA[-1] - 1) & (poisson < 1) & (total >= _FEWEST_COUNTS)
    theta = np.exp(log_theta)
    excess, square, second = _excess(counts, log_size, group, level)
    return Overdispersion(
        theta,
        np.where(under, poisson.clip(_LEAST_POISSON, 1.0), 1.0),
        (log_weight - log_weight.max(0)).astype(np.float32),
        np.where(under, 1.0, _scale(excess, square, second, theta, total)),
    )


def overdispersion_of_cells(
    counts: sp.csc_matrix, log_size: np.ndarray, level: np.ndarray
) -> Overdispersion:
    """Learn θ and f of every gene from cells that have each a level of their own, (N, G).

    There is then no mean of a group to take the excess variance about, and it is that about the
    levels given.
    """
    found = pooled_overdispersion(counts, log_size, np.arange(len(log_size)), level)
    mean = np.exp(log_size[:, None] + level)
    excess = (counts.toarray() - mean) ** 2 - mean
    summed = excess.sum(0), (excess**2).sum(0), (mean**2).sum(0)
    scale = _scale(*summed, found.theta, np.asarray(counts.sum(axis=0)).ravel())
    return replace(found, scale=np.where(found.factor < 1, 1.0, scale))


@jit("nsz", "contract", "arcp", "reassoc")
def _excesses(first, last, indptr, cells, counts, size, start, order, level, out):  # type: ignore[no-untyped-def]
    """Σ n/(n − 1) (x − μ̂)² − μ̂, the sum of its squares, and Σμ², (3, G), over groups of cells.

    μ̂ is the mean of the group itself, μ that of its level (R, G). `order` are the cells by group,
    `start` the first of each group there.
    """
    dense = np.zeros(size.size)
    for g in range(first, last):
        for i in range(indptr[g], indptr[g + 1]):
            dense[cells[i]] = counts[i]
        total, square, second = 0.0, 0.0, 0.0
        for r in range(start.size - 1):
            n = start[r + 1] - start[r]
            if n < 2:
                continue
            summed, deep, deep2 = 0.0, 0.0, 0.0
            for j in range(start[r], start[r + 1]):
                c = order[j]
                summed += dense[c]
                deep += size[c]
                deep2 += size[c] * size[c]
            second += math.exp(2.0 * level[r, g]) * deep2
            if summed == 0.0:
                continue
            rate = summed / deep
            inflation = n / (n - 1.0)
            for j in range(start[r], start[r + 1]):
                c = order[j]
                mu = size[c] * rate
                e = inflation * (dense[c] - mu) * (dense[c] - mu) - mu
                total += e
                square += e * e
        out[0, g], out[1, g], out[2, g] = total, square, second
        for i in range(indptr[g], indptr[g + 1]):
            dense[cells[i]] = 0.0


def _excess(
    counts: sp.csc_matrix, log_size: np.ndarray, group: np.ndarray, level: np.ndarray
) -> np.ndarray:
    """See `_excesses`."""
    n_genes = level.shape[1]
    order = np.argsort(group, kind="stable")
    present, start = np.unique(group[order], return_index=True)
    out = np.zeros((3, n_genes))
    edges = np.linspace(0, n_genes, min(n_genes, 64) + 1).astype(int)
    arguments = (
        *(counts.indptr.astype(np.int64), counts.indices.astype(np.int64)),
        *(counts.data.astype(np.float64), np.exp(log_size.astype(np.float64))),
        *(np.append(start, len(group)).astype(np.int64), order.astype(np.int64)),
        *(np.ascontiguousarray(level[present], np.float64), out),
    )
    parallel_for(lambda i: _excesses(edges[i], edges[i + 1], *arguments), len(edges) - 1)
    return out


def _scale(
    excess: np.ndarray, square: np.ndarray, second: np.ndarray, theta: np.ndarray, total: np.ndarray
) -> np.ndarray:
    """Excess variance within conditions over that of θ, (G,): by expression, then by gene."""
    implied = np.maximum(second / theta, 1e-12)
    ratio, error = excess / implied, np.sqrt(square) / implied
    seen = second > 0
    order = np.flatnonzero(seen)[np.argsort(total[seen], kind="stable")]
    if not len(order):
        return np.ones(len(theta))
    n_bins = int(np.clip(len(order) // _BIN_GENES, 1, _MOST_BINS))
    out, middle, typical = np.ones(len(theta)), [], []
    bins = np.array_split(order, n_bins)
    for mine in bins:
        mean = max(float(ratio[mine].mean()), _SCALES[0])
        spread = ratio[mine].std() / np.sqrt(len(mine)) / mean
        known = _SCALE_SD**2 / (_SCALE_SD**2 + spread**2) if len(mine) > 1 else 0.0
        typical.append(known * np.log(mean))
        middle.append(np.log(total[mine] + 0.5).mean())
    common = np.exp(np.interp(np.log(total + 0.5), middle, typical))
    for mine in bins:
        own, noise = ratio[mine] / common[mine], error[mine] / common[mine]
        noise = np.maximum(noise, np.median(noise))  # a gene without a burst has a small one
        varies = max(float(np.mean((own - 1) ** 2 - noise**2)), 0.0)
        out[mine] = 1 + varies / (varies + noise**2) * (own - 1)
    return (out * common).clip(*_SCALES)


def _shrunk(
    likelihood: np.ndarray, total: np.ndarray, n_cells: int
) -> tuple[np.ndarray, np.ndarray]:
    """Posterior mean of log θ, (G,), and log posterior on the grid, about a trend in the log mean.

    The width about the trend is learned with it.
    """
    likelihood = likelihood - likelihood.max(0)
    mean = np.log(np.maximum(total, 0.5) / n_cells)
    mean -= mean.mean()
    columns = np.stack([np.ones_like(mean), mean, mean**2], 1)
    sets = total >= min(_FEWEST_COUNTS, np.sort(total)[-min(len(total), 20)])
    best = LOG_THETA[likelihood.argmax(0)]
    trend, width = np.array([np.median(best[sets]), 0.0, 0.0]), 1.0
    for _ in range(_ROUNDS):
        centre = (columns @ trend).clip(LOG_THETA[0], LOG_THETA[-1])
        log = likelihood - 0.5 * ((LOG_THETA[:, None] - centre) / width) ** 2
        weight = np.exp(log - log.max(0))
        weight /= weight.sum(0)
        found = LOG_THETA @ weight
        variance = LOG_THETA**2 @ weight - found**2
        if sets.sum() > 3:
            trend = np.linalg.lstsq(columns[sets], found[sets], rcond=None)[0]
        else:
            trend = np.array([found[sets].mean(), 0.0, 0.0])
        left = (found - (columns @ trend).clip(LOG_THETA[0], LOG_THETA[-1])) ** 2 + variance
        width = float(np.clip(np.sqrt(left[sets].mean()), 0.1, 3.0))
    return found, log


@jit("nsz", "contract", "arcp", "reassoc")
def _weights(first, last, total, depth, within, between, x, reference, grid, log_weight):  # type: ignore[no-untyped-def]
    """Add to log_weight (grid, G) what levels x (C, G) cost against those it was found at."""
    mean, other = np.empty(x.shape[0]), np.empty(x.shape[0])
    for g in range(first, last):
        most = -1e300
        for c in range(x.shape[0]):
            mean[c] = depth[c, g] * math.exp(x[c, g])
            other[c] = depth[c, g] * math.exp(reference[c, g])
        for j in range(grid.size):
            most = max(most, log_weight[j, g])
        for j in range(grid.size):
            if log_weight[j, g] < most - _NEGLIGIBLE:
                continue
            inverse = math.exp(-grid[j])
            value = 0.0
            for c in range(x.shape[0]):
                k = within[c, g] * inverse + between[c, g] + 1e-6
                t = total[c, g]
                value += t * (x[c, g] - reference[c, g])
                value -= (t + 1.0 / k) * math.log((1.0 + k * mean[c]) / (1.0 + k * other[c]))
            log_weight[j, g] += value


def draw_log_theta(
    log_weight: np.ndarray,
    total: np.ndarray,
    depth: np.ndarray,
    within: np.ndarray,
    between: np.ndarray,
    x: np.ndarray,
    reference: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """Draw log θ of every gene, (G,), given the levels of all conditions.

    The cells were asked at the levels `reference`. At others the likelihood of a condition's counts
    changes by what that of their sum does, which depends on θ: a burst in a few cells is an effect
    at a small overdispersion and none at a large one.

    Parameters
    ----------
    log_weight
        (grid, G), see `Overdispersion`.
    total, depth, within, between
        (C, G) see `LevelCounts`.
    x, reference
        (C, G) levels.
    """
    log = log_weight.astype(float)
    n_genes = log.shape[1]
    edges = np.linspace(0, n_genes, min(n_genes, 64) + 1).astype(int)
    arguments = (total, depth, within, between, x, reference, LOG_THETA, log)
    parallel_for(lambda i: _weights(edges[i], edges[i + 1], *arguments), len(edges) - 1)
    share = np.exp(log - log.max(0))
    share /= share.sum(0)
    chosen = (rng.random(n_genes) > share.cumsum(0)).sum(0).clip(max=len(LOG_THETA) - 1)
    within_cell = (rng.random(n_genes) - 0.5) * (LOG_THETA[1] - LOG_THETA[0])
    spread = np.sqrt(np.maximum(LOG_THETA**2 @ share - (LOG_THETA @ share) ** 2, 0))
    sharp = spread < LOG_THETA[1] - LOG_THETA[0]  # finer than the grid: stay at the mean
    return np.where(sharp, LOG_THETA @ share, LOG_THETA[chosen] + within_cell)
