"""How far a cell moved along the effect of its perturbation: evidence of every strength.

A cell at strength s of the effect f of its condition has log means

    log μ_g = log ℓ + log-share of (level_g + η_bg + z' D_g + s f_g),

counts that are negative binomial about them, and a resting state z ~ N(0, 1) along the axes D on
which cells differ. z is integrated out by Laplace's method: the mode is found once, at the strength
that the counts favour, and carried to every other strength by one Newton step.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from pyrocell._core.threading import parallel_for
from pyrocell.distributions.kernels.fastmath import jit

__all__ = ["STRENGTHS", "EffectPath", "log_evidence"]

STRENGTHS = np.array([0.0, 0.25, 0.5, 0.75, 1.0, 1.3, 1.7, 2.2, 3.0])
_CELLS = 256  # of a task


@dataclass(frozen=True)
class EffectPath:
    """Log means that cells pass as the strength of their perturbation grows.

    Attributes
    ----------
    level
        (C, G) log expression per unit of size that cells of a condition have at strength 0.
    effect
        (C, G) what is added at strength 1, natural log.
    eta
        (H, G) batch noise of groups.
    loading
        (d, G) axes D of a standard normal resting state.
    theta
        (G,) inverse overdispersion between cells.
    shares
        Whether size factors are sums over these genes, so that log means are shares of them.
    """

    level: np.ndarray
    effect: np.ndarray
    eta: np.ndarray
    loading: np.ndarray
    theta: np.ndarray
    shares: bool


def log_evidence(
    counts: sp.csr_matrix,
    log_size: np.ndarray,
    condition: np.ndarray,
    group: np.ndarray,
    path: EffectPath,
) -> np.ndarray:
    """Log evidence of `STRENGTHS` in every cell, (n, S), up to a constant of the cell.

    Parameters
    ----------
    counts
        (n, G) CSR counts.
    log_size
        (n,) log size factors.
    condition, group
        (n,) rows of `path.level` and of `path.eta`.
    """
    counts = sp.csr_matrix(counts)
    assert counts.indptr is not None and counts.indices is not None
    order = np.argsort(condition, kind="stable")  # one table of a condition after the other
    out = np.zeros((len(condition), len(STRENGTHS)))
    edges = range(0, len(order), _CELLS)
    single = lambda a: np.ascontiguousarray(a, np.float32)  # noqa: E731
    tables = [single(a) for a in (path.level, path.effect, path.eta, path.loading, path.theta)]
    values = single(counts.data), single(log_size), single(STRENGTHS)

    def work(i: int) -> None:
        mine = order[edges[i] : edges[i] + _CELLS]
        _of_cells(
            mine, counts.indptr, counts.indices, *values, condition, group, *tables, path.shares,
            out,
        )  # fmt: skip

    parallel_for(work, len(edges))
    return out


@jit("nsz", "contract", "arcp", "reassoc")
def _of_cells(
    cells, indptr, indices, data, log_size, strengths, condition, group, level, effect, eta,
    loading, theta, shares, out,
):  # fmt: skip
    n_genes, n_axes, n_strengths = level.shape[1], loading.shape[0], strengths.size
    one = np.float32(1.0)
    grown = np.empty((n_strengths, n_genes), np.float32)  # exp(s f) of the condition
    rest = np.empty(n_genes, np.float32)  # log expression at rest, without z
    mean = np.empty(n_genes, np.float32)
    x = np.zeros(n_genes, np.float32)
    z, gradient, average = np.empty(n_axes), np.empty(n_axes), np.empty(n_axes)
    root = np.empty((n_axes, n_axes))
    held = -1
    for n in cells:
        c, h = condition[n], group[n]
        if c != held:
            for s in range(n_strengths):
                for g in range(n_genes):
                    grown[s, g] = np.exp(strengths[s] * effect[c, g])
            held = c
        for g in range(n_genes):
            rest[g] = level[c, g] + eta[h, g]
        for i in range(indptr[n], indptr[n + 1]):
            x[indices[i]] = data[i]
        for a in range(n_axes):
            z[a] = 0.0
        # the strength that the counts favour at the usual state, and the mode of z there
        for g in range(n_genes):
            mean[g] = np.exp(rest[g])
        best, at = -np.inf, 0
        for s in range(n_strengths):
            value = _log_likelihood(
                n, indptr, indices, data, mean, grown[s], theta, log_size[n], shares
            )
            if value > best:
                best, at = value, s
        for _step in range(3):
            _slopes(
                x, mean, grown[at], loading, theta, log_size[n], shares, gradient, average, root
            )
            for a in range(n_axes):
                gradient[a] -= z[a]
            _solve(root, gradient, True)
            length = 0.0
            for a in range(n_axes):
                length += gradient[a] * gradient[a]
            length = min(1.0, 2.0 / np.sqrt(length + 1e-12))
            for a in range(n_axes):
                z[a] += length * gradient[a]
            for g in range(n_genes):
                log_mean = rest[g]
                for a in range(n_axes):
                    log_mean += np.float32(z[a]) * loading[a, g]
                mean[g] = np.exp(log_mean)
        _slopes(x, mean, grown[at], loading, theta, log_size[n], shares, gradient, average, root)
        _solve(root, gradient, True)  # leaves the factor of the curvature in `root`
        prior = 0.0
        for a in range(n_axes):
            prior -= 0.5 * z[a] * z[a]
        for s in range(n_strengths):
            value = _log_likelihood(
                n, indptr, indices, data, mean, grown[s], theta, log_size[n], shares
            )
            _gradient(x, mean, grown[s], loading, theta, log_size[n], shares, gradient, average)
            for a in range(n_axes):
                gradient[a] -= z[a]
            out[n, s] = value + prior + 0.5 * _solve(root, gradient, False)
        for i in range(indptr[n], indptr[n + 1]):
            x[indices[i]] = 0.0 * one


@jit("nsz", "contract", "arcp", "reassoc")
def _scale(mean, grown, log_size, shares):
    """Factor that makes a table of relative means one of counts."""
    if not shares:
        return np.float32(np.exp(log_size))
    total = np.float32(0.0)
    for g in range(mean.size):
        total += mean[g] * grown[g]
    return np.float32(np.exp(log_size)) / total


@jit("nsz", "contract", "arcp", "reassoc")
def _log_likelihood(n, indptr, indices, data, mean, grown, theta, log_size, shares):
    scale = _scale(mean, grown, log_size, shares)
    total = np.float32(0.0)
    for g in range(mean.size):
        total -= theta[g] * np.log1p(scale * mean[g] * grown[g] / theta[g])
    out = float(total)
    for i in range(indptr[n], indptr[n + 1]):
        g = indices[i]
        mu = scale * mean[g] * grown[g]
        out += data[i] * (np.log(mu) - np.log1p(mu / theta[g]))
    return out


@jit("nsz", "contract", "arcp", "reassoc")
def _gradient(x, mean, grown, loading, theta, log_size, shares, gradient, average):
    """Of the log likelihood in z; `average` is the loading of the average count."""
    n_axes = loading.shape[0]
    scale = _scale(mean, grown, log_size, shares)
    size = np.float32(np.exp(log_size))
    summed = np.float32(0.0)
    for g in range(mean.size):
        mu = scale * mean[g] * grown[g]
        summed += (x[g] - mu) / (np.float32(1.0) + mu / theta[g])
    for a in range(n_axes):
        pulled, usual = np.float32(0.0), np.float32(0.0)
        for g in range(mean.size):
            mu = scale * mean[g] * grown[g]
            pulled += (x[g] - mu) / (np.float32(1.0) + mu / theta[g]) * loading[a, g]
            usual += mu * loading[a, g]
        average[a] = usual / size if shares else 0.0
        gradient[a] = pulled - average[a] * summed


@jit("nsz", "contract", "arcp", "reassoc")
def _slopes(x, mean, grown, loading, theta, log_size, shares, gradient, average, root):
    """Gradient, and the Fisher information plus 1 in `root`."""
    _gradient(x, mean, grown, loading, theta, log_size, shares, gradient, average)
    n_axes = loading.shape[0]
    scale = _scale(mean, grown, log_size, shares)
    for a in range(n_axes):
        for b in range(a + 1):
            total = np.float32(0.0)
            va, vb = np.float32(average[a]), np.float32(average[b])
            for g in range(mean.size):
                mu = scale * mean[g] * grown[g]
                weight = mu / (np.float32(1.0) + mu / theta[g])
                total += weight * (loading[a, g] - va) * (loading[b, g] - vb)
            root[a, b] = total
        root[a, a] += 1.0


@jit("nsz", "contract")
def _solve(root, vector, factor):
    """v'A⁻¹v, and A⁻¹v in `vector`; A is the lower half of `root`, or its factor already."""
    n = vector.size
    if factor:
        for i in range(n):
            for j in range(i + 1):
                total = root[i, j]
                for k in range(j):
                    total -= root[i, k] * root[j, k]
                if i == j:
                    root[i, i] = np.sqrt(max(total, 1e-9))
                else:
                    root[i, j] = total / root[j, j]
    square = 0.0
    for i in range(n):
        total = vector[i]
        for k in range(i):
            total -= root[i, k] * vector[k]
        vector[i] = total / root[i, i]
        square += vector[i] * vector[i]
    for i in range(n - 1, -1, -1):
        total = vector[i]
        for k in range(i + 1, n):
            total -= root[k, i] * vector[k]
        vector[i] = total / root[i, i]
    return square
