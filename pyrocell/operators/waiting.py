r"""W, waiting (eq. 3): response, doses and gains relax, in closed form.

While genotype and media stay as they are,

.. math::

    dd_k/ds = \mu_k (p_k - d_k), \qquad dg_j/ds = \rho_j (L_j - g_j), \qquad
    dy/ds = \lambda (\sum_k d_k e_k + \sum_j g_j c_j - y),

with :math:`p` the genotype, :math:`d` the dose (the product of an edited gene decays at
:math:`\mu`), :math:`L` the gain that the genotype allows, :math:`e_k` and :math:`c_j` the drives of
perturbations and media. All are linear, so W is exact: no step size, no solver, and
W(X, 0) = X, W(W(X, s), t) = W(X, s + t), W(·, -t) = W(·, t)⁻¹ hold to rounding.

Notes
-----
Eq. 8 as printed waits t from :math:`X_{m,t}` and arrives at :math:`X_{m,s+t}`; it has to start from
:math:`X_{m,s}`. The semigroup law above is what it then says. That "F(X, ·, ·, t)" keeps the
medium and the perturbation that X has met is why the state carries genotype and exposure.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pyrocell.operators.state import State

__all__ = [
    "average_decay",
    "onset_curve",
    "reference_curve",
    "relative_curve",
    "relative_onset",
    "relax",
    "unwait",
    "wait",
    "weighted_drive",
]

# Below this a quotient cancels and three terms of its series do not; relative errors stay below
# 1e-11 in float64, 1e-5 where there is none.
NEAR = {torch.float64: 1e-4}, 0.03
REMEMBERED = 40.0  # e-foldings back; by then rounding in float64 has grown to more than 1


def average_decay(x: Tensor) -> Tensor:
    """Mean of exp(-u) for u from 0 to x: (1 - exp(-x)) / x, smooth through x = 0, any sign."""
    with torch.no_grad():
        wide = _wide(x)
        value = _average_decay(wide)
        slope = -_weighted_decay(wide, value)
    return _Known.apply(value.to(x), slope.to(x), x)


class _Known(torch.autograd.Function):
    """A value whose slopes are known, in place of what automatic gradients make of many steps.

    Takes the value, and a slope for each of the tensors after that; all of one shape.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, *slopes_and_inputs: Tensor) -> Tensor:
        """The value."""
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Keep the slopes."""
        n = len(inputs) // 2
        ctx.save_for_backward(*inputs[1 : n + 1])
        ctx.save_for_forward(*inputs[1 : n + 1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradient times slopes."""
        slopes = ctx.saved_tensors
        return (*[None] * (len(slopes) + 1), *(gradient * slope for slope in slopes))

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor | int:
        """Slopes times tangents."""
        slopes, moved = ctx.saved_tensors, tangents[len(ctx.saved_tensors) + 1 :]
        return sum(slope * t for slope, t in zip(slopes, moved, strict=True) if t is not None)


def _wide(x: Tensor) -> Tensor:
    """In float64 if that is wider and there is such: what cancels is then below rounding."""
    return x.double() if x.dtype == torch.float32 and x.device.type != "mps" else x


def _average_decay(x: Tensor) -> Tensor:
    backwards = -(x + torch.finfo(x.dtype).tiny)  # not 0 / 0
    return torch.expm1(backwards) / backwards


def _weighted_decay(x: Tensor, average: Tensor) -> Tensor:
    """∫ u exp(-x u) du for u from 0 to 1, from that of exp(-x u): (average - exp(-x)) / x."""
    near = x.abs() < _near(x)
    series = 0.5 - x * (1 / 3 - x / 8)
    return torch.where(near, series, (average - 1) / torch.where(near, 1.0, x) + average)


def _near(x: Tensor) -> float:
    return NEAR[0].get(x.dtype, NEAR[1])


def reference_curve(rate: Tensor, reference_time: float | Tensor) -> Tensor:
    """Share 1 - exp(-λ t) of a response reached at the reference time, accurate for slow rates."""
    return -torch.expm1(-_elapsed(rate, reference_time))


def relative_curve(rate: Tensor, duration: Tensor, reference_time: float) -> Tensor:
    """Response after a duration in units of its value at the reference time.

    (1 - exp(-λ t)) / (1 - exp(-λ t_ref)), which is t / t_ref where λ = 0.

    Parameters
    ----------
    rate
        λ, per unit of time; any shape.
    duration
        t; broadcasts against `rate`.
    reference_time
        t_ref, above zero.
    """
    both = _with_reference(duration, reference_time, rate.dim())
    reached, whole = both * average_decay(rate * both)
    return reached / whole


def onset_curve(rate: Tensor, decay: Tensor, duration: Tensor) -> Tensor:
    """Share of a response reached after a duration, its dose rising from zero as 1 - exp(-μ t).

    1 - (μ exp(-λ t) - λ exp(-μ t)) / (μ - λ): λ μ t² / 2 at first, symmetric in both rates.

    Parameters
    ----------
    rate, decay
        λ of the response and μ of the product, per unit of time, not negative; any shapes that
        broadcast.
    duration
        t, not negative; broadcasts against them.
    """
    first, second = torch.broadcast_tensors(rate * duration, decay * duration)
    with torch.no_grad():
        low, high = _wide(torch.minimum(first, second)), _wide(torch.maximum(first, second))
        value, *slopes = (x.to(first) for x in _onset(low, high))
        ordered = first <= second
        along = torch.where(ordered, *slopes), torch.where(ordered, *slopes[::-1])
    return _Known.apply(value, *along, first, second)


def _onset(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Onset and its slopes along both rates times duration."""
    apart, lost = high - low, torch.expm1(-low)
    kept, average = lost + 1, _average_decay(apart)
    weighted = kept * _weighted_decay(apart, average)
    average = kept * average
    # λ μ t² times the divided difference of average_decay, by complete homogeneous polynomials
    total, product = low + high, low * high
    series = product * (0.5 - total / 6 + (total.square() - product) / 24)
    value = torch.where(high < _near(high), series, -lost - low * average)
    return value, high * (average - weighted), low * weighted


def relative_onset(rate: Tensor, decay: Tensor, duration: Tensor, reference_time: float) -> Tensor:
    """:func:`onset_curve` in units of its value at the reference time, which is above zero."""
    dims = max(rate.dim(), decay.dim())
    then, whole = onset_curve(rate, decay, _with_reference(duration, reference_time, dims))
    return then / whole


def _with_reference(duration: Tensor, reference_time: float, dims: int) -> Tensor:
    """Durations, and the reference time in their place: (2, ...), to be computed at once."""
    both = torch.stack([duration, torch.full_like(duration, reference_time)])
    return both.reshape(2, *(1,) * (dims - duration.dim()), *duration.shape)


def relax(y: Tensor, drive: Tensor, rate: Tensor, duration: Tensor) -> Tensor:
    """Solve dy/ds = λ (drive - y) from y over a duration.

    Parameters
    ----------
    y, drive
        Response at the start and the value it tends to; shape (C, D).
    rate
        λ, per unit of time; shape (C, 1) or (C, D).
    duration
        Shape (C,).

    Returns
    -------
    Tensor
        Shape (C, D).
    """
    # Not y·kept + drive·lost: what is at its limit must stay there exactly, forth and back.
    return y + (drive - y) * reference_curve(rate, duration.unsqueeze(-1))


def unwait(y: Tensor, drive: Tensor, rate: Tensor, duration: Tensor) -> Tensor:
    """Undo :func:`relax`: the response a duration ago (F⁻¹ of eq. 6).

    Rounding of `y` grows by exp(λ t), up to exp(40): what has relaxed for long has forgotten where
    it came from.
    """
    return relax(y, drive, rate, -duration)


def wait(
    state: State,
    duration: Tensor,
    rate: Tensor,
    drive: Tensor,
    decay: Tensor,
    media_drive: Tensor,
    limit: Tensor,
    turnover: Tensor,
) -> State:
    """Let response, doses and gains relax for a duration, exactly.

    Parameters
    ----------
    state
        Cells at the start.
    duration
        Shape (C,). Zero leaves the state as it is; negative undoes a wait (W⁻¹), rounding as in
        :func:`unwait`.
    rate
        λ of the response, per unit of time; shape (C, 1) or (C, D).
    drive
        What a perturbation of dose 1 adds to the value the response tends to; shape (K, D) or
        (C, K, D).
    decay
        μ, rate at which the product of a perturbed gene is lost, per unit of time; shape (K,).
    media_drive
        What a medium of gain 1 adds; shape (J, D) or (C, J, D).
    limit
        Gain that the present genotype allows, from ``gain_limit``; shape (C, J).
    turnover
        ρ, rate at which the gain goes to its limit, per unit of time; shape (J,). Zero: a cascade
        once started is never lost (``memory``).

    Notes
    -----
    Eq. 3. With g(s) = L + (g - L) exp(-ρ s) the response gains, for each medium,
    L (1 - exp(-λ t)) + (g - L) λ (exp(-ρ t) - exp(-λ t)) / (λ - ρ), and the same for each dose,
    which goes to 1 at μ. The last quotient is computed as t exp(-min(λ, ρ) t) times
    :func:`average_decay`, smooth where the rates meet.
    """
    t = duration.unsqueeze(-1)  # (C, 1)
    limit = state.exposure * limit  # a medium not met has no cascade
    plateau = weighted_drive(state.genotype, drive) + weighted_drive(limit, media_drive)  # (C, D)
    on_the_way = weighted_drive(state.dose - state.genotype, drive, _carry_over(rate, decay, t))
    on_the_way = on_the_way + weighted_drive(
        state.gain - limit, media_drive, _carry_over(rate, turnover, t)
    )
    return replace(
        state,
        y=relax(state.y, plateau, rate, duration) + on_the_way,
        dose=relax(state.dose, state.genotype, decay.unsqueeze(-2), duration),
        gain=relax(state.gain, limit, turnover.unsqueeze(-2), duration),
    )


def weighted_drive(level: Tensor, drive: Tensor, carried: Tensor | float = 1.0) -> Tensor:
    """Σ_n level[c, n] carried[c, n, d] drive[c, n, d]; (C, D)."""
    return (level.unsqueeze(-1) * carried * drive).sum(-2)


def _carry_over(rate: Tensor, turnover: Tensor, t: Tensor) -> Tensor:
    """λ ∫₀ᵗ exp(-λ (t - u)) exp(-ρ u) du; (C, J, 1 | D) from (C, 1 | D), (J,) and (C, 1)."""
    rate, turnover, t = rate.unsqueeze(-2), turnover.unsqueeze(-1).unsqueeze(-3), t.unsqueeze(-1)
    slower = torch.minimum(rate, turnover)
    difference = (rate - turnover).abs()
    return rate * t * torch.exp(-_elapsed(slower, t)) * average_decay(_elapsed(difference, t))


def _elapsed(rate: Tensor, t: float | Tensor) -> Tensor:
    """λ t, bounded backwards so that rewinding what is forgotten stays finite."""
    return (rate * t).clamp(min=-REMEMBERED)
