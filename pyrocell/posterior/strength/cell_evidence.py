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
from pyrocell.distributions.kernels.fastmath import exp32, log1p32, summing
from pyrocell.posterior.gene_level.kernels import cholesky, solve

__all__ = ["STRENGTHS", "EffectPath", "log_evidence"]

STRENGTHS = np.array([0.0, 0.25, 0.5, 0.75, 1.0, 1.3, 1.7, 2.2, 3.0])
_CELLS = 256  # of a task
_STEPS, _LONGEST = 3, 2.0  # of Newton's method for z, and length of a step at most


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


@summing
def _of_cells(
    cells, indptr, indices, data, log_size, strengths, condition, group, level, effect, eta,
    loading, theta, shares, out,
):  # fmt: skip
    n_genes, n_axes, n_strengths = level.shape[1], loading.shape[0], strengths.size
    grown = np.empty((n_strengths, n_genes), np.float32)  # exp(s f) of the condition
    rest = np.empty(n_genes, np.float32)  # log expression at rest, without z
    mean = np.empty(n_genes, np.float32)  # exp of the same with z
    mu, pull = np.empty(n_genes, np.float32), np.empty(n_genes, np.float32)
    x = np.zeros(n_genes, np.float32)
    z, gradient, step = np.empty(n_axes), np.empty(n_axes), np.empty(n_axes)
    average, root = np.empty(n_axes), np.empty((n_axes, n_axes))
    held = -1
    for n in cells:
        c, size = condition[n], np.exp(log_size[n])
        if c != held:
            for s in range(n_strengths):
                for g in range(n_genes):
                    grown[s, g] = exp32(strengths[s] * effect[c, g])
            held = c
        for g in range(n_genes):
            rest[g] = level[c, g] + eta[group[n], g]
            mean[g] = exp32(rest[g])
        for i in range(indptr[n], indptr[n + 1]):
            x[indices[i]] = data[i]
        z[:] = 0.0
        # the strength that the counts favour at the usual state, and the mode of z there
        best, at = -np.inf, 0
        for s in range(n_strengths):
            _expect(mean, grown[s], size, shares, mu)
            value = _log_likelihood(n, indptr, indices, data, mu, theta)
            if value > best:
                best, at = value, s
        for turn in range(_STEPS + 1):
            _expect(mean, grown[at], size, shares, mu)
            _gradient(x, mu, loading, theta, size, shares, pull, gradient, average)
            _information(mu, loading, theta, average, pull, root)
            cholesky(root, n_axes)
            if turn == _STEPS:
                break  # the curvature at the mode, for all strengths
            for a in range(n_axes):
                step[a] = gradient[a] - z[a]
            solve(root, step, n_axes)
            length = 0.0
            for a in range(n_axes):
                length += step[a] * step[a]
            length = min(1.0, _LONGEST / np.sqrt(length + 1e-12))
            for a in range(n_axes):
                z[a] += length * step[a]
            pull[:] = rest
            for a in range(n_axes):
                for g in range(n_genes):
                    pull[g] += np.float32(z[a]) * loading[a, g]
            for g in range(n_genes):
                mean[g] = exp32(pull[g])
        for s in range(n_strengths):
            _expect(mean, grown[s], size, shares, mu)
            out[n, s] = _log_likelihood(n, indptr, indices, data, mu, theta)
            _gradient(x, mu, loading, theta, size, shares, pull, gradient, average)
            for a in range(n_axes):
                gradient[a] -= z[a]
                step[a] = gradient[a]
            solve(root, step, n_axes)
            for a in range(n_axes):
                out[n, s] += 0.5 * gradient[a] * step[a]
        for i in range(indptr[n], indptr[n + 1]):
            x[indices[i]] = np.float32(0.0)


@summing
def _expect(mean, grown, size, shares, mu):
    """Expected counts (G,) of a cell of this size, from relative means and their growth."""
    total = np.float32(0.0)
    for g in range(mu.size):
        mu[g] = mean[g] * grown[g]
        total += mu[g]
    scale = np.float32(size / total if shares else size)
    for g in range(mu.size):
        mu[g] *= scale


@summing
def _log_likelihood(n, indptr, indices, data, mu, theta):
    total = np.float32(0.0)
    for g in range(mu.size):
        total -= theta[g] * log1p32(mu[g] / theta[g])
    out = float(total)
    for i in range(indptr[n], indptr[n + 1]):
        g = indices[i]
        out += data[i] * (np.log(mu[g]) - np.log1p(mu[g] / theta[g]))
    return out


@summing
def _gradient(x, mu, loading, theta, size, shares, pull, gradient, average):
    """Of the log likelihood in z, (d,); `average` is the loading of the average count."""
    summed = np.float32(0.0)
    for g in range(mu.size):
        pull[g] = (x[g] - mu[g]) / (np.float32(1.0) + mu[g] / theta[g])
        summed += pull[g]
    for a in range(gradient.size):
        pulled, usual = np.float32(0.0), np.float32(0.0)
        for g in range(mu.size):
            pulled += pull[g] * loading[a, g]
            usual += mu[g] * loading[a, g]
        average[a] = usual / size if shares else 0.0
        gradient[a] = pulled - average[a] * summed


@summing
def _information(mu, loading, theta, average, weight, root):
    """Fisher information of z plus 1, the lower half of `root`."""
    for g in range(mu.size):
        weight[g] = mu[g] / (np.float32(1.0) + mu[g] / theta[g])
    for a in range(average.size):
        for b in range(a + 1):
            total = np.float32(0.0)
            va, vb = np.float32(average[a]), np.float32(average[b])
            for g in range(mu.size):
                total += weight[g] * (loading[a, g] - va) * (loading[b, g] - vb)
            root[a, b] = total
        root[a, a] += 1.0
