"""Effects of genes as a Gaussian process over genes, in closed form.

Of n perturbations with effects e_k (any number of axes or genes), axis a of them is

    t_a ~ Normal(flat mean, s_a² [Σ_s ρ_s K_s + (1 − Σ_s ρ_s) I + noise])

with K_s the kernel of source s (unit diagonal) and ρ_s the share of the variance it explains. The
mean is integrated out under a flat prior and the scale profiled, so that only inner products of
effects are needed. The shares are on a grid whose prior has half of its mass where all are zero:
there the prediction of a new perturbation is the mean of the others. Predictions are averages over
the grid's posterior.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations_with_replacement

import numpy as np
from scipy.linalg import cho_factor, cho_solve, lapack

__all__ = [
    "GRID",
    "NO_KNOWLEDGE",
    "Fit",
    "Weights",
    "centred",
    "effective_dimensions",
    "fit_shares",
    "left_out",
    "share_grid",
    "weights_of",
]

GRID = (0.05, 0.1, 0.2, 0.3, 0.45, 0.6, 0.8, 0.95)  # of the share of all sources together
NO_KNOWLEDGE = 0.5  # prior mass where no source explains anything
_PARTS = {1: 1, 2: 4, 3: 3}  # how finely a share is split between so many sources; 2 for more
_NEGLIGIBLE = 1e-4  # posterior mass of a grid point that predictions leave out


@dataclass(frozen=True)
class Fit:
    """Posterior of the shares given the effects of n perturbations.

    Attributes
    ----------
    shares
        (P, S) points of the grid, the first of which is zero for all sources.
    weights
        (P,) their posterior.
    log_evidence
        (P,) of each point.
    noise
        (n,) measurement error of each perturbation, in units of the variance of an effect.
    scale
        Variance of an effect: expected squared length off the mean, without measurement error.
    """

    shares: np.ndarray
    weights: np.ndarray
    log_evidence: np.ndarray
    noise: np.ndarray
    scale: float

    def mean_share(self) -> np.ndarray:
        """Posterior mean of each source's share, (S,)."""
        return self.weights @ self.shares

    def share_interval(self, credible_level: float = 0.9) -> np.ndarray:
        """Equal-tailed interval of each source's share on the grid, (2, S)."""
        tail = (1 - credible_level) / 2
        out = np.empty((2, self.shares.shape[1]))
        for s, values in enumerate(self.shares.T):
            order = np.argsort(values, kind="stable")
            below = np.cumsum(self.weights[order])
            ends = np.searchsorted(below, [tail, 1 - tail]).clip(max=len(order) - 1)
            out[:, s] = values[order][ends]
        return out


def share_grid(n_sources: int) -> tuple[np.ndarray, np.ndarray]:
    """Points (P, S) of the shares of S sources, and the logarithm of their prior (P,).

    Half of the mass is where all shares are zero. The other half is uniform over the total share
    and over how it is split: in quarters between two sources, thirds between three, halves between
    two of more.
    """
    parts = _PARTS.get(n_sources, 2)
    splits = np.zeros((0, n_sources))
    if n_sources:
        chosen = list(combinations_with_replacement(range(n_sources), parts))
        splits = np.stack([np.bincount(c, minlength=n_sources) / parts for c in chosen])
    some = (np.array(GRID)[:, None, None] * splits).reshape(len(GRID) * len(splits), n_sources)
    points = np.concatenate([np.zeros((1, n_sources)), some])
    prior = np.full(len(points), (1 - NO_KNOWLEDGE) / max(len(some), 1))
    prior[0] = NO_KNOWLEDGE if len(some) else 1.0
    return points, np.log(prior)


def centred(gram: np.ndarray) -> np.ndarray:
    """Inner products (n, n) of effects off their mean."""
    rows = gram - gram.mean(0)
    return rows - rows.mean(1, keepdims=True)


def effective_dimensions(gram: np.ndarray) -> float:
    """Number of axes that effects off their mean vary along: (Σw)² / Σw² of the eigenvalues w."""
    w = np.linalg.eigvalsh(centred(gram)).clip(0.0)
    return max(float(w.sum() ** 2 / max((w**2).sum(), 1e-300)), 1.0)


def covariance(kernels: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Σ ρ K with unit diagonal, (n, n), of kernels (S, n, n)."""
    out = np.tensordot(shares, kernels, 1)
    np.fill_diagonal(out, 1.0)
    return out


def _log_evidence(c: np.ndarray, gram: np.ndarray, dimensions: float) -> float:
    """Log evidence of covariance c, up to a constant; flat mean, profiled scale."""
    n = len(c)
    factor, failed = lapack.dpotrf(c, lower=1)
    if failed:
        return -np.inf
    inverse, _ = lapack.dpotri(factor, lower=1)
    inverse = np.tril(inverse) + np.tril(inverse, -1).T
    of_one = inverse.sum(0)
    whole = of_one.sum()
    trace = (inverse * gram).sum() - of_one @ gram @ of_one / whole
    if not trace > 0:
        return -np.inf
    log_det = 2 * np.log(np.diag(factor)).sum()
    return -0.5 * dimensions * (log_det + np.log(whole) + (n - 1) * np.log(trace))


def fit_shares(
    gram: np.ndarray,
    kernels: np.ndarray,
    error: np.ndarray | None = None,
    dimensions: float | None = None,
) -> Fit:
    """Posterior of the shares of sources.

    Parameters
    ----------
    gram
        (n, n) inner products of the effects, n ≥ 2.
    kernels
        (S, n, n), unit diagonal.
    error
        (n,) expected squared length of the measurement error of each effect; default: none.
    dimensions
        Axes that the evidence counts; default: `effective_dimensions`.
    """
    n = len(gram)
    points, log_prior = share_grid(len(kernels))
    error = np.zeros(n) if error is None else np.asarray(error, float)
    dimensions = effective_dimensions(gram) if dimensions is None else dimensions
    scale = float(np.trace(centred(gram)) / max(n - 1, 1))
    noise = error / scale if scale > 0 else np.zeros(n)
    if not scale > 0:  # no effect differs from another: nothing to explain
        weights = np.exp(log_prior)
        return Fit(points, weights, np.zeros(len(points)), noise, 0.0)
    found = np.empty(len(points))
    for i, shares in enumerate(points):
        c = covariance(kernels, shares)
        c[np.diag_indices(n)] += noise
        found[i] = _log_evidence(c, gram, dimensions)
    log_weights = found + log_prior
    weights = np.exp(log_weights - log_weights.max())
    return Fit(points, weights / weights.sum(), found, noise, scale)


@dataclass(frozen=True)
class Weights:
    """What new perturbations take from measured ones; m new, n measured.

    Attributes
    ----------
    weights
        (m, n), rows sum to one: the prediction is their product with the measured effects.
    by_source
        (S, m, n) parts of `weights` that each source brings; the rest is the mean of all.
    variance
        (m,) relative to the variance of an effect; 1 + 1 / n where nothing is known.
    """

    weights: np.ndarray
    by_source: np.ndarray
    variance: np.ndarray


def weights_of(
    fit: Fit, kernels: np.ndarray, cross: np.ndarray, gram: np.ndarray | None = None
) -> Weights:
    """Kriging weights and variances, averaged over the posterior of the shares.

    Parameters
    ----------
    fit
        See `fit_shares`.
    kernels
        (S, n, n) between measured perturbations.
    cross
        (S, m, n) between new and measured ones.
    gram
        Inner products of the measured effects, by which the variance gets what the points of the
        grid disagree on; without it, that part is left out.
    """
    n_sources, m, n = cross.shape
    total, by_source = np.zeros((m, n)), np.zeros((n_sources, m, n))
    variance, squares = np.zeros(m), np.zeros(m)
    one = np.ones(n)
    kept = np.flatnonzero(fit.weights > _NEGLIGIBLE)
    for p in kept:
        mass = fit.weights[p] / fit.weights[kept].sum()
        shares = fit.shares[p]
        c = covariance(kernels, shares)
        c[np.diag_indices(n)] += fit.noise
        factor = cho_factor(c, lower=True)
        of_one = cho_solve(factor, one)
        k = np.tensordot(shares, cross, 1)  # (m, n)
        plain = cho_solve(factor, k.T).T
        left = 1 - plain.sum(1)  # what the mean of all contributes
        mine = plain + left[:, None] * of_one / of_one.sum()
        total += mass * mine
        for s in np.flatnonzero(shares):
            by_source[s] += mass * shares[s] * cho_solve(factor, cross[s].T).T
        at_point = 1 - (plain * k).sum(1) + left**2 / of_one.sum()
        variance += mass * np.maximum(at_point, 0.0)
        if gram is not None:
            squares += mass * ((mine @ gram) * mine).sum(1)
    if gram is not None and fit.scale > 0:
        spread = squares - ((total @ gram) * total).sum(1)
        variance = variance + np.maximum(spread, 0.0) / fit.scale
    return Weights(total, by_source, variance)


def left_out(
    fit: Fit, kernels: np.ndarray, gram: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Weights (n, n) and variances (n,) of each measured perturbation given all the others.

    The shares are those of `fit`, which has seen all of them.
    """
    n = kernels.shape[1] if len(kernels) else len(fit.noise)
    total, variance, squares = np.zeros((n, n)), np.zeros(n), np.zeros(n)
    kept = np.flatnonzero(fit.weights > _NEGLIGIBLE)
    for p in kept:
        mass = fit.weights[p] / fit.weights[kept].sum()
        c = covariance(kernels, fit.shares[p])
        c[np.diag_indices(n)] += fit.noise
        inverse = np.linalg.inv(c)
        of_one = inverse.sum(0)
        inverse -= np.outer(of_one, of_one) / of_one.sum()
        own = np.diag(inverse)
        mine = -inverse / own[:, None]  # Rasmussen and Williams (2006), eq. 5.12
        np.fill_diagonal(mine, 0.0)
        total += mass * mine
        variance += mass * np.maximum(1 / own - fit.noise, 0.0)
        if gram is not None:
            squares += mass * ((mine @ gram) * mine).sum(1)
    if gram is not None and fit.scale > 0:
        spread = squares - ((total @ gram) * total).sum(1)
        variance = variance + np.maximum(spread, 0.0) / fit.scale
    return total, variance
