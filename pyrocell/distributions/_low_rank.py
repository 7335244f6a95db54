"""Density of a Gaussian whose covariance is diagonal plus a part along given axes."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

__all__ = ["low_rank_log_prob"]

_LOG_2PI = math.log(2 * math.pi)


def low_rank_log_prob(deviation: Tensor, scale: Tensor, axes: Tensor, tau: Tensor) -> Tensor:
    """Log density of N(0, diag(scale²) + A' diag(tau²) A) by the Woodbury identity.

    Shapes: deviation and scale (..., G), axes A (d, G), tau (..., d); returns (...,).
    """
    if axes.requires_grad or deviation.dim() != scale.dim() or scale.dim() != tau.dim():
        return _Terms(deviation, scale, axes, tau, _all_pairs(axes)).log_prob
    return _LowRankLogProb.apply(deviation, scale, axes, tau)


class _Terms:
    """What the density and its gradient share.

    P = scale⁻², F = A P A' and C = I + diag(tau) F diag(tau), all per row.
    """

    def __init__(self, deviation: Tensor, scale: Tensor, axes: Tensor, tau: Tensor, pairs: Tensor):
        d = len(axes)
        self.precision, self.weighted, diagonal = _weigh(deviation, scale)
        self.fisher = _square(self.precision @ pairs.T, d)  # F, (..., d, d)
        capacitance = tau[..., :, None] * tau[..., None, :] * self.fisher
        capacitance = capacitance + torch.eye(d, dtype=axes.dtype, device=axes.device)
        # I plus what has no negative eigenvalue: only a NaN fails, and is found at its site
        self.chol = torch.linalg.cholesky_ex(capacitance).L
        self.along = self.weighted @ axes.T  # A P x, (..., d)
        half = torch.linalg.solve_triangular(self.chol, (tau * self.along)[..., None], upper=False)
        log_det = self.chol.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        self.log_prob = diagonal + 0.5 * half.square().sum((-1, -2)) - log_det


def _weigh(deviation: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Precision P and P x, (..., G), and the log density without axes, (...,)."""
    constant = 0.5 * scale.shape[-1] * _LOG_2PI
    if _in_one_pass(deviation, scale):
        from pyrocell.distributions.kernels import low_rank as rows  # loads numba

        precision, weighted, value = rows.weigh(deviation, scale)
        return precision, weighted, value - constant
    precision = scale.square().reciprocal()
    weighted = deviation * precision
    value = -0.5 * (deviation * weighted).sum(-1) - scale.log().sum(-1)
    return precision, weighted, value - constant


def _in_one_pass(*tensors: Tensor) -> bool:
    """Whether the kernels may be asked: no gradient is recorded, single precision, on the CPU."""
    return not torch.is_grad_enabled() and all(
        t.dtype == torch.float32 and t.device.type == "cpu" for t in tensors
    )


def _all_pairs(axes: Tensor) -> Tensor:
    """Products of all pairs of axes, (d * d, G)."""
    return (axes[:, None] * axes[None]).flatten(0, 1)


def _pairs(axes: Tensor) -> Tensor:
    """Products of axes i <= j, (d (d + 1) / 2, G)."""
    i, j, _, _ = _layout(len(axes), axes.device)
    return axes[i] * axes[j]


@lru_cache(maxsize=8)
def _layout(d: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pairs i <= j of d axes, how often each is in a square, and where each entry is in them."""
    i, j = torch.triu_indices(d, d, device=device)
    position = torch.empty(d, d, dtype=torch.long, device=device)
    position[i, j] = position[j, i] = torch.arange(len(i), device=device)
    return i, j, torch.where(i == j, 1.0, 2.0), position


def _square(packed: Tensor, d: int) -> Tensor:
    """(..., d, d) from all of its entries, or from those on and above the diagonal."""
    if packed.shape[-1] == d * d:
        return packed.reshape(*packed.shape[:-1], d, d)
    position = _layout(d, packed.device)[3]
    return packed[..., position]


class _LowRankLogProb(torch.autograd.Function):
    """The density with its gradient written out, for axes that have none.

    With y = Σ⁻¹ x: slopes −y in x, scale (y² − diag Σ⁻¹) in scale, and
    tau_j ((A y)_j² − (A Σ⁻¹ A')_jj) in tau.
    """

    @staticmethod
    def forward(ctx: Any, deviation: Tensor, scale: Tensor, axes: Tensor, tau: Tensor) -> Tensor:
        """Log density of each row."""
        terms = _Terms(deviation, scale, axes, tau, pairs := _pairs(axes))
        ctx.save_for_backward(deviation, scale, axes, tau)
        ctx.kept = terms, pairs
        return terms.log_prob

    @staticmethod
    def backward(ctx: Any, weight: Tensor) -> tuple[Tensor | None, ...]:
        """Gradient for deviation, scale and tau."""
        deviation, scale, axes, tau = ctx.saved_tensors
        if torch.is_grad_enabled():  # a gradient of higher order is wanted
            value = _Terms(deviation, scale, axes, tau, _all_pairs(axes)).log_prob
            inputs = [t for t in (deviation, scale, tau) if t.requires_grad]
            found = iter(torch.autograd.grad(value, inputs, weight, create_graph=True))
            grad = [next(found) if t.requires_grad else None for t in (deviation, scale, tau)]
            return grad[0], grad[1], None, grad[2]
        terms, pairs = ctx.kept
        d = len(axes)
        inverse = torch.cholesky_inverse(terms.chol)
        inner = tau[..., :, None] * tau[..., None, :] * inverse  # M, Σ⁻¹ = P − P A' M A P
        moved = (inner @ terms.along[..., None])[..., 0]  # (..., d)
        i, j, often, _ = _layout(d, axes.device)
        spread_pairs = (inner[..., i, j] * often.to(inner)) @ pairs  # A' M A, its diagonal
        slopes = _slopes(terms, scale, moved @ axes, spread_pairs, weight)
        seen = terms.along - (terms.fisher @ moved[..., None])[..., 0]  # A y
        spread = terms.fisher.diagonal(dim1=-2, dim2=-1) - (
            (terms.fisher @ inner) * terms.fisher
        ).sum(-1)
        return (*slopes, None, weight[..., None] * tau * (seen.square() - spread))


def _slopes(
    terms: _Terms, scale: Tensor, moved: Tensor, spread: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradient for deviation and scale from A' M A P x and the diagonal of A' M A, (..., G)."""
    if _in_one_pass(scale, moved, weight):
        from pyrocell.distributions.kernels import low_rank as rows  # loads numba

        return rows.slopes(terms.precision, terms.weighted, scale, moved, spread, weight)
    row = weight[..., None]
    solved = torch.addcmul(terms.weighted, terms.precision, moved, value=-1)  # y
    diagonal = terms.precision * (1 - terms.precision * spread)  # of Σ⁻¹
    return -row * solved, row * scale * (solved.square() - diagonal)
