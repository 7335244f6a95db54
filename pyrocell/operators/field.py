r"""What makes the waiting operator nonlinear: production beyond the drive (eq. 25).

.. math:: dy/ds = \lambda (\Delta(s) + h(y, \Delta(s)) - y),

a neural ODE of production and decay, solved once per condition. Its linear part is known in closed
form (`waiting.py`), so only the deviation from it is stepped: u' = λ (h(y_lin + u, Δ) - u), by the
exponential Heun method, which takes the decay exactly. Steps are fixed: the answer for a condition
does not depend on what else is asked, no rate is too stiff, and without h nothing changes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import linear as affine
from torch.nn.functional import softplus

from pyrocell.errors import StiffFieldError
from pyrocell.operators.waiting import average_decay, reference_curve

__all__ = ["STEPS", "Field", "bounded_weight", "deviate", "production", "step_times"]

Field = Callable[[Tensor, Tensor], Tensor]  # h(y, Δ), both (..., C, D)
STEPS = 8  # error of the deviation below 1% up to λ t = 8 (tests/test_field.py)


def step_times(duration: Tensor) -> Tensor:
    """Times at which the linear part is needed, from 0 to the duration; (STEPS + 1, C)."""
    grid = torch.linspace(0, 1, STEPS + 1, dtype=duration.dtype, device=duration.device)
    return grid.reshape(-1, *[1] * duration.dim()) * duration


def deviate(linear: Tensor, drive: Tensor, rate: Tensor, duration: Tensor, field: Field) -> Tensor:
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
    before = field(linear[0], drive[0])
    u = torch.zeros_like(before)
    for y, delta in zip(linear[1:].unbind(), drive[1:].unbind(), strict=True):
        u = torch.lerp(u, before, reached)
        after = field(y + u, delta)
        u, before = torch.addcmul(u, ramp, after - before), after
    if not torch.isfinite(u).all() and torch.isfinite(linear).all():
        raise StiffFieldError(
            'the field of dynamics="node" ran away within a wait of '
            f"{float(duration.abs().max()):g}: keep it contractive with lipschitz below 1, or wait "
            "in shorter steps"
        )
    return u


def production(direction: Tensor, offset: Tensor, weight: Tensor) -> Field:
    """h(y, Δ) = φ((y, Δ) A) W with features φ(u) = s(u + a) - s(a) - s'(a) u of the softplus s.

    They vanish at rest together with their slope (`Curvature` has them for states).

    Parameters
    ----------
    direction, offset, weight
        A, (2 D, H); a, (H,); W, (H, D).
    """
    straight = -(direction * offset.sigmoid()) @ weight  # (2 D, D)
    level = -softplus(offset) @ weight

    def h(y: Tensor, drive: Tensor) -> Tensor:
        both = torch.cat([y, drive], -1)
        bent = softplus(affine(both, direction.mT, offset))
        return affine(both, straight.mT, level) + bent @ weight

    return h


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
    norm = torch.linalg.matrix_norm(weight, ord=2) * torch.linalg.matrix_norm(direction, ord=2)
    return weight * (bound / norm.clamp_min(bound))[..., None, None]
