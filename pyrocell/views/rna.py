"""V for RNA: counts with dropout, the zero-inflated negative binomial (section 3, App. B.1).

A count is zero with the probability of dropout, and otherwise negative binomial with mean μ and
inverse dispersion θ (variance μ + μ²/θ). Everything is on the log or logit scale.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

__all__ = ["count_variance", "dropout_logits", "mean_counts", "pseudobulk", "zero_probability"]


def dropout_logits(log_mu: Tensor, intercept: Tensor, slope: Tensor) -> Tensor:
    """Logit of the probability of dropout, a line in log μ.

    Parameters
    ----------
    log_mu
        Log mean before dropout; shape (..., G).
    intercept, slope
        Per gene; shape (G,). Below zero the slope says what App. B.1 does: detection is biased
        towards highly expressed genes.
    """
    return intercept + slope * log_mu


def mean_counts(log_mu: Tensor, gate_logits: Tensor | None = None) -> Tensor:
    """Mean count, dropout included; shapes broadcast, no dropout when `gate_logits` is None."""
    return torch.exp(log_mu + _log_kept(log_mu, gate_logits))


def count_variance(log_mu: Tensor, log_theta: Tensor, gate_logits: Tensor | None = None) -> Tensor:
    """Variance of a count, dropout included.

    Parameters
    ----------
    log_mu
        Log mean before dropout; shape (..., G).
    log_theta
        Log inverse dispersion; shape (G,).
    gate_logits
        Logit of dropout π; shape (..., G). None: no dropout.

    Notes
    -----
    (1 - π) μ (1 + μ (1/θ + π)).
    """
    mu = log_mu.exp()
    log_kept = _log_kept(log_mu, gate_logits)
    dropped = -torch.expm1(log_kept)
    return torch.exp(log_mu + log_kept) * (1 + mu * (torch.exp(-log_theta) + dropped))


def zero_probability(
    log_mu: Tensor, log_theta: Tensor, gate_logits: Tensor | None = None
) -> Tensor:
    """Probability of a zero; arguments as in :func:`count_variance`.

    π + (1 - π) (1 + μ/θ)^(-θ), which goes to π + (1 - π) exp(-μ) in the Poisson limit.
    """
    log_zero = -log_theta.exp() * softplus(log_mu - log_theta)  # of the negative binomial
    log_kept = _log_kept(log_mu, gate_logits)
    return -torch.expm1(log_kept) + torch.exp(log_kept + log_zero)


def _log_kept(log_mu: Tensor, gate_logits: Tensor | None) -> Tensor:
    """Log probability of no dropout."""
    return torch.zeros_like(log_mu) if gate_logits is None else logsigmoid(-gate_logits)


def pseudobulk(
    mean: np.ndarray, variance: np.ndarray, cells: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Mean count of n cells: a negative binomial total with the sum's mean and variance."""
    n = cells[:, None]
    total, spread = n * mean, n * variance
    excess = np.maximum(spread - total, 1e-9 * total + 1e-12)
    shape = total**2 / excess
    return rng.poisson(rng.gamma(shape, total / shape)) / n
