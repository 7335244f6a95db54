"""Count likelihood in torch: the differentiable reference, and an analytic gradient.

Notation, per entry: s = log μ, L = log(1 + μ/θ), r = -θL (log probability of a zero under the
negative binomial), π the logit of dropout. θ is inverse dispersion: variance μ + μ²/θ.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from pyrocell.distributions.kernels.compiled import Compiled

__all__ = [
    "EntryLogProb",
    "dense_counts",
    "gate_curve",
    "log_mean",
    "log_zero_probability",
    "reference_log_prob",
]

SHIFT = 8  # Stirling's series is used from here on; its error is below 1e-11


def log_mean(logits: Tensor, log_size: Tensor | None, composition: bool) -> Tensor:
    """Log mean count, (..., cells, genes)."""
    log_mu = functional.log_softmax(logits, -1) if composition else logits
    return log_mu if log_size is None else log_mu + log_size[..., None]


def gate_curve(log_mu: Tensor, intercept: Tensor, slope: Tensor) -> Tensor:
    """Logit of the dropout probability as a line in log μ."""
    return intercept + slope * log_mu


def dense_counts(row: Tensor, column: Tensor, count: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Counts as a dense matrix from their coordinates."""
    x = torch.zeros(shape, dtype=count.dtype, device=count.device)
    return x.index_put((row, column), count)


def log_zero_probability(log_mu: Tensor, log_theta: Tensor, gate_logits: Tensor | None) -> Tensor:
    """log P(x = 0), accurate relative to itself also where it is near 0."""
    r = -log_theta.exp() * _softplus(log_mu - log_theta)
    return r if gate_logits is None else _dropped_or_zero(r, gate_logits)


def _dropped_or_zero(r: Tensor, gate_logits: Tensor) -> Tensor:
    """log(sig(π) + sig(-π) e^r)."""
    lost = torch.sigmoid(-gate_logits) * torch.expm1(r)  # P(0) - 1
    near = torch.log1p(lost.clamp_min(-0.5))
    return torch.where(lost > -0.5, near, _softplus(r - gate_logits) - _softplus(-gate_logits))


def reference_log_prob(
    log_mu: Tensor, log_theta: Tensor, gate_logits: Tensor | None, x: Tensor
) -> Tensor:
    """Log probability per cell by the textbook formula, in double; differentiable to any order.

    Shapes: log_mu (..., cells, G); the others broadcast against it; returns (..., cells) in the
    dtype of log_mu.
    """
    dtype = log_mu.dtype
    log_mu, log_theta, x = log_mu.double(), log_theta.double(), x.double()
    gate_logits = None if gate_logits is None else gate_logits.double()
    theta = log_theta.exp()
    log1p_u = _softplus(log_mu - log_theta)
    positive = x * (log_mu - log1p_u) - theta * log1p_u + _rising(x, theta, log_theta)
    positive = positive - torch.lgamma(x + 1)
    if gate_logits is not None:
        positive = positive - _softplus(gate_logits)
    zero = log_zero_probability(log_mu, log_theta, gate_logits)
    return torch.where(x > 0, positive, zero).sum(-1).to(dtype)


def _softplus(x: Tensor) -> Tensor:
    return -functional.logsigmoid(-x)  # torch's softplus is cut at 20, and loses 2e-9


def _stirling(z: Tensor) -> Tensor:
    """log Γ(z) less (z - 1/2) log z - z + log(2π)/2, for z >= SHIFT."""
    v = z.reciprocal()
    w = v * v
    return v * (1 / 12 - w * (1 / 360 - w * (1 / 1260 - w / 1680)))


def _rising(x: Tensor, theta: Tensor, log_theta: Tensor) -> Tensor:
    """log Γ(x+θ)/Γ(θ) - x log θ, without the cancellation of two large log Γ."""
    base = theta + SHIFT
    odds = torch.zeros_like(x * theta)
    for k in range(0, SHIFT, 2):  # two factors per logarithm
        odds = odds + torch.log((1 + x / (theta + k)) * (1 + x / (theta + k + 1)))
    top = x + base
    spread = (top - 0.5) * torch.log1p(x / base) - x + _stirling(top) - _stirling(base)
    return spread + x * _softplus(math.log(SHIFT) - log_theta) - odds


def _rising_slope(x: Tensor, theta: Tensor) -> Tensor:
    """x - θ (ψ(x+θ) - ψ(θ)), minus the derivative of `_rising` in log θ."""
    base = theta + SHIFT
    lost = torch.zeros_like(x)
    for k in range(SHIFT):
        lost = lost + x / ((theta + k) * (x + theta + k))
    top = x + base
    gain = torch.log1p(x / base) - _digamma_rest(top) + _digamma_rest(base)
    return x - theta * (gain + lost)


def _digamma_rest(z: Tensor) -> Tensor:
    """Log z - ψ(z), for z >= SHIFT."""
    v = z.reciprocal()
    w = v * v
    return v / 2 + w * (1 / 12 - w * (1 / 120 - w / 252))


def _theta_slope(u: Tensor, share: Tensor, log1p_u: Tensor) -> Tensor:
    """L - u/(1+u) = -(dr/dlogθ)/θ; by its series where the difference would cancel."""
    series = u * u * (0.5 - u * (2 / 3 - u * (0.75 - u * (0.8 - u * 5 / 6))))
    return torch.where(u < 0.04, series, log1p_u - share)


class EntryLogProb(torch.autograd.Function):
    """Log probability per cell with its gradient written out: no dense lgamma, one dense pass.

    Inputs: log_mu (..., cells, G); log_theta and gate_logits (or None) broadcastable to it; row,
    column, count: coordinates and values of the non-zero entries; whether it is to be compiled.
    Returns (..., cells).
    """

    @staticmethod
    def forward(
        ctx: Any,
        log_mu: Tensor,
        log_theta: Tensor,
        gate_logits: Tensor | None,
        row: Tensor,
        column: Tensor,
        count: Tensor,
        compiled: bool = False,
    ) -> Tensor:
        """Value per cell; keeps the gradient per entry."""
        inputs = log_mu, log_theta, gate_logits, row, column, count
        ctx.save_for_backward(*inputs)
        ctx.slopes = None
        # torch.compile would make versions of their own for sizes of 0 and 1
        compiled = compiled and min(*log_mu.shape[-2:], len(count)) > 1
        value, slopes = (_compiled_entries if compiled else _entries)(*inputs)
        if any(ctx.needs_input_grad):
            ctx.slopes = slopes
        return value

    @staticmethod
    def backward(ctx: Any, weight: Tensor) -> tuple[Tensor | None, ...]:
        """Gradient for log_mu, log_theta and gate_logits."""
        *inputs, row, column, count = ctx.saved_tensors
        if torch.is_grad_enabled():  # a gradient of higher order is wanted
            x = dense_counts(row, column, count, tuple(inputs[0].shape[-2:]))
            value = reference_log_prob(*inputs, x)
            wanted = [t for t in inputs if t is not None and t.requires_grad]
            found = iter(torch.autograd.grad(value, wanted, weight, create_graph=True))
            slopes = [next(found) if t is not None and t.requires_grad else None for t in inputs]
        else:
            slopes = [
                None if t is None else (slope * weight[..., None]).sum_to_size(t.shape)
                for t, slope in zip(inputs, ctx.slopes, strict=True)
            ]
        return (*slopes, None, None, None, None)


def _entries(
    log_mu: Tensor,
    log_theta: Tensor,
    gate_logits: Tensor | None,
    row: Tensor,
    column: Tensor,
    count: Tensor,
) -> tuple[Tensor, list[Tensor | None]]:
    """Value per cell and slopes per entry in log μ, log θ and π."""
    value, *dense = _zero_entries(log_mu, log_theta, gate_logits)
    where = (..., row, column)
    wide = torch.float32 if log_mu.device.type == "mps" else torch.float64

    def pick(t: Tensor) -> Tensor:
        return t.expand(log_mu.shape)[where].to(wide)  # (..., non-zeros)

    gate = None if gate_logits is None else pick(gate_logits)
    at_counts, *sparse = _positive_entries(pick(log_mu), pick(log_theta), gate, count.to(wide))
    value[where] = 0
    total = value.sum(-1, dtype=wide).index_add(-1, row, at_counts)
    for target, source in zip(dense, sparse, strict=True):
        if target is not None:
            target[where] = source.to(target.dtype)
    return total.to(log_mu.dtype), dense


def _zero_entries(
    s: Tensor, log_theta: Tensor, gate_logits: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """log P(0) and its slopes in s, log θ and π, each of the shape of s."""
    theta = log_theta.exp()
    d = s - log_theta
    log1p_u = functional.softplus(d, threshold=60)
    r = -theta * log1p_u
    ds = -torch.exp(s - log1p_u)  # -μ/(1+u)
    dt = -theta * _theta_slope(d.exp(), torch.sigmoid(d), log1p_u)
    if gate_logits is None:
        return r, ds, dt, None
    value = _dropped_or_zero(r, gate_logits)
    kept = torch.sigmoid(r - gate_logits)  # probability that this zero was counted, not dropped
    dp = -torch.sigmoid(-gate_logits) * torch.sigmoid(gate_logits - r) * torch.expm1(r)
    return value, ds * kept, dt * kept, dp


def _positive_entries(
    s: Tensor, log_theta: Tensor, gate_logits: Tensor | None, x: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Log probability of counts above zero and its slopes, entry by entry."""
    theta = log_theta.exp()
    d = s - log_theta
    log1p_u = functional.softplus(d, threshold=60)
    share = torch.sigmoid(d)  # u/(1+u)
    value = x * (s - log1p_u) - theta * log1p_u + _rising(x, theta, log_theta)
    value = value - torch.lgamma(x + 1)
    ds = (x - s.exp()) * torch.sigmoid(-d)
    dt = x * share - _rising_slope(x, theta) - theta * _theta_slope(d.exp(), share, log1p_u)
    if gate_logits is None:
        return value, ds, dt, None
    return value - _softplus(gate_logits), ds, dt, -torch.sigmoid(gate_logits)


_compiled_entries = Compiled(_entries, "the analytic gradient of the count likelihood")
