r"""What makes the waiting operator nonlinear: production beyond the drive (eq. 25).

.. math:: dy/ds = \lambda (\Delta(s) + h(y, \Delta(s)) - y),

a neural ODE of production and decay, solved once per condition. Its linear part is known in closed
form (`waiting.py`), so only the deviation from it is stepped: u' = λ (h(y_lin + u, Δ) - u), by the
exponential Heun method, which takes the decay exactly. Steps are fixed: the answer for a condition
does not depend on what else is asked, no rate is too stiff, and without h nothing changes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import softplus

from pyrocell.errors import StiffFieldError
from pyrocell.operators.waiting import average_decay, reference_curve

__all__ = ["STEPS", "Production", "bounded_weight", "integrate_deviation", "step_times"]

STEPS = 8  # error of the deviation below 1% up to λ t = 8 (tests/test_field.py)


class Production(NamedTuple):
    """h(y, Δ) = φ(u) W, u = (y, Δ) A, with φ(u) = s(u + a) - s(a) - s'(a) u of the softplus s.

    The features φ vanish at rest together with their slope (`CurvedDecoder` has them for states).

    Attributes
    ----------
    direction, offset, weight
        A, (2 D, H); a, (H,); W, (H, D).
    """

    direction: Tensor
    offset: Tensor
    weight: Tensor

    def __call__(self, y: Tensor, drive: Tensor) -> Tensor:
        """h, (..., D)."""
        both = torch.cat([y, drive], -1)
        bent = softplus(both @ self.direction + self.offset) - softplus(self.offset)
        return bent @ self.weight + both @ self.slope()

    def slope(self) -> Tensor:
        """What h would be if s were straight, (2 D, D)."""
        return -(self.direction * self.offset.sigmoid()) @ self.weight


def step_times(duration: Tensor) -> Tensor:
    """Times at which the linear part is needed, from 0 to the duration; (STEPS + 1, C)."""
    grid = torch.linspace(0, 1, STEPS + 1, dtype=duration.dtype, device=duration.device)
    return grid.reshape(-1, *[1] * duration.dim()) * duration


def integrate_deviation(
    linear: Tensor, drive: Tensor, rate: Tensor, duration: Tensor, field: Production
) -> Tensor:
    """Deviation u from the linear solution after a duration, u = 0 at its start.

    Parameters
    ----------
    linear, drive
        y_lin and Δ at :func:`step_times`; shape (STEPS + 1, ..., C, D).
    rate
        λ; shape (..., C, 1).
    duration
        Shape (C,). Negative to go back, where rounding and error grow by exp(λ t).
    field
        h.

    Returns
    -------
    Tensor
        Shape (..., C, D).

    Raises
    ------
    StiffFieldError
        If the solution is not finite.
    """
    elapsed = rate * (duration / STEPS).unsqueeze(-1)
    reached = reference_curve(elapsed, 1.0)  # ∫ λ exp(-λ (ds - s)) ds over a step
    ramp = 1 - average_decay(elapsed)  # the same of a production that grows from 0 to 1
    both, slope, n_axes = torch.cat([linear, drive], -1), field.slope(), linear.shape[-1]
    u = _Deviation.apply(
        both @ field.direction + field.offset,
        both @ slope,
        field.direction[:n_axes],
        slope[:n_axes],
        field.weight,
        softplus(field.offset),
        *torch.broadcast_tensors(reached, ramp),
    )
    if not torch.isfinite(u).all() and torch.isfinite(linear).all():
        raise StiffFieldError(
            'the field of dynamics="node" ran away within a wait of '
            f"{float(duration.abs().max()):g}: keep it contractive with lipschitz below 1, or wait "
            "in shorter steps"
        )
    return u


class _Deviation(torch.autograd.Function):
    """Exponential Heun steps of u and their gradient, both written out: a step has few operations.

    h_i = b_i + w_i S + (softplus(v_i + w_i A) - c) W at w_i = u + r (h_{i-1} - u), and then
    u = w_i + q (h_i - h_{i-1}).
    """

    @staticmethod
    def forward(
        ctx: Any,
        along: Tensor,
        straight: Tensor,
        direction: Tensor,
        slope: Tensor,
        weight: Tensor,
        level: Tensor,
        reached: Tensor,
        ramp: Tensor,
    ) -> Tensor:
        """U at the end; v (n, ..., C, H), b (n, ..., C, D), A (D, H), S (D, D), W, c, r and q."""
        bent = [softplus(along[0]) - level]
        h = straight[0] + bent[0] @ weight
        u = torch.zeros_like(h)
        bends, before, way, change = [along[0]], [h], [u], []
        for v, b in zip(along[1:].unbind(), straight[1:].unbind(), strict=True):
            w = torch.lerp(u, h, reached)
            bends.append(v + w @ direction)
            bent.append(softplus(bends[-1]) - level)
            after = b + w @ slope + bent[-1] @ weight
            change.append(after - h)
            u, h = torch.addcmul(w, ramp, change[-1]), after
            before.append(h)
            way.append(u)
        ctx.save_for_backward(direction, slope, weight, reached, ramp, *map(torch.stack, (
            bends, bent, before, way, change
        )))  # fmt: skip
        return u

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        """Gradients of all that forward takes, last step first."""
        direction, slope, weight, reached, ramp, *kept = ctx.saved_tensors
        bends, bent, before, way, change = kept
        open_ = bends.sigmoid()
        n = len(bends)
        to_h, to_v, to_w, to_u = ([gradient] * n for _ in range(4))  # to be replaced
        next_h: Tensor | float = 0.0
        for i in range(n - 1, 0, -1):
            to_u[i] = gradient
            sent = ramp * gradient
            to_h[i] = sent + next_h
            to_v[i] = (to_h[i] @ weight.mT) * open_[i]
            to_w[i] = gradient + to_h[i] @ slope.mT + to_v[i] @ direction.mT
            back = reached * to_w[i]
            gradient, next_h = to_w[i] - back, back - sent
        assert isinstance(next_h, Tensor)  # there is a step at least
        to_h[0], to_v[0] = next_h, (next_h @ weight.mT) * open_[0]
        to_h, to_v = torch.stack(to_h), torch.stack(to_v)
        to_w, to_u = torch.stack(to_w[1:]), torch.stack(to_u[1:])
        w = torch.lerp(way[:-1], before[:-1], reached)
        rows = lambda x: x.reshape(-1, x.shape[-1])  # noqa: E731
        return (
            to_v,
            to_h,
            rows(w).mT @ rows(to_v[1:]),
            rows(w).mT @ rows(to_h[1:]),
            rows(bent).mT @ rows(to_h),
            -(rows(to_h) @ weight.mT).sum(0),
            (to_w * (before[:-1] - way[:-1])).sum(0).sum(-1, keepdim=True),
            (to_u * change).sum(0).sum(-1, keepdim=True),
        )


def bounded_weight(weight: Tensor, direction: Tensor, bound: float | None) -> Tensor:
    """Scale weights down until h is Lipschitz in y with at most the bound.

    For h(y, Δ) = φ(y A + Δ B) W with features of slope at most 1. Below 1 the whole field is a
    contraction at λ (1 - bound): two solutions under one drive approach each other (App. B.2 asks
    for maps with small constants, errors in the state then fade).

    Parameters
    ----------
    weight, direction
        W, (..., H, D), and A, (D, H).
    bound
        None: none.
    """
    if bound is None:
        return weight
    norm = _largest_stretch(weight) * _largest_stretch(direction)
    return weight * (bound / norm.clamp_min(bound))[..., None, None]


def _largest_stretch(matrix: Tensor) -> Tensor:
    """Spectral norm, (...,), from the smaller Gram matrix: half the time of singular values."""
    wide = matrix.shape[-1] > matrix.shape[-2]
    gram = matrix @ matrix.mT if wide else matrix.mT @ matrix
    return torch.linalg.eigvalsh(gram)[..., -1].clamp_min(torch.finfo(gram.dtype).tiny).sqrt()
