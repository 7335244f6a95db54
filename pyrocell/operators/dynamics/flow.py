r"""W on the resting state itself: differentiating systems, with and without branching (App. C.1).

Where cells move on their own, what differs between cells is carried along a field,

.. math:: dz = v(z, a(s)) \, ds \; [+ \; \mathrm{diag}(\sigma) \, dB_s],

with a code a(s) for what the cells have met: the sum of their perturbations' codes by dose and of
their media's by gain. So two cells of one condition go different ways, which no shared
displacement can say. Without noise it is a neural ODE on z (``dynamics="flow"``): invertible, its
density known through the divergence. With noise (``dynamics="sde"``) cells from one state may reach
several fates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchdiffeq import odeint

from pyrocell.errors import StiffFieldError
from pyrocell.operators.medium import gain_limit
from pyrocell.operators.waiting import relax

__all__ = [
    "NOISY_STEPS",
    "STEPS",
    "Segment",
    "StateField",
    "arm_segments",
    "check_steps",
    "code_in_arm",
    "code_of",
    "integrate_ode",
    "integrate_sde",
    "sde_step",
]

STEPS = 8  # of a leg without noise, by Runge-Kutta of order 4
NOISY_STEPS = 16  # of a wait with noise, by Euler-Maruyama
_TOLERANCE = 0.05  # change of the answer under twice the steps, relative to the way gone
_INSIDE = 1e-4  # an event at the end of a leg belongs to the next

Code = Callable[[Tensor], Tensor]  # time since the start (C,) → code (C, m)


@dataclass(frozen=True, eq=False)
class StateField:
    r"""v(z, a) = [tanh(z A + a B + b) ∘ (1 + a C)] W / clock, and how strongly noise drives z.

    So a code can move the states at which something happens, and turn it down or off.

    Parameters
    ----------
    direction, code_direction, offset, code_gain
        A (d, H), B (m, H), b (H,), C (m, H).
    weight
        W, (H, d), in units of state per `clock`. The field is bounded, so no cell runs away.
    code, media_code
        What each perturbation (K, m) and each medium (J, m) changes in the field.
    clock
        Unit of time in which W is stated.
    noise
        σ, (d,), in units of state per square root of `clock`. None: a flow.
    """

    direction: Tensor
    code_direction: Tensor
    offset: Tensor
    code_gain: Tensor
    weight: Tensor
    code: Tensor
    media_code: Tensor
    clock: float = 1.0
    noise: Tensor | None = None

    def features(self, z: Tensor, code: Tensor) -> Tensor:
        """tanh(z A + a B + b), (..., H)."""
        return torch.tanh(z @ self.direction + (code @ self.code_direction + self.offset))

    def velocity(self, z: Tensor, code: Tensor) -> Tensor:
        """v at states z (..., d) under codes (..., m)."""
        return (self.features(z, code) * self._gain(code)) @ (self.weight / self.clock)

    def velocity_and_divergence(self, z: Tensor, code: Tensor) -> tuple[Tensor, Tensor]:
        """v and Σ_i ∂v_i / ∂z_i, exact: (..., d) and (..., 1)."""
        features, weight = self.features(z, code), self.weight / self.clock
        gain = self._gain(code)
        trace = (self.direction * weight.mT).sum(-2)  # (H,)
        slope = (1 - features.square()) * gain
        return (features * gain) @ weight, slope @ trace.unsqueeze(-1)

    def _gain(self, code: Tensor) -> Tensor:
        return 1 + code @ self.code_gain


@dataclass(frozen=True, eq=False)
class Segment:
    """A stretch of time without events: its start and length (C,), and the code within it.

    `rows` says which of the C conditions each state has, where states are cells in any order.
    """

    start: Tensor
    span: Tensor
    code: Code
    rows: Tensor | None = None

    def spans(self, z: Tensor) -> Tensor:
        """Length beside states z, (..., 1)."""
        return self._beside(self.span.unsqueeze(-1), z)

    def codes(self, u: Tensor, z: Tensor) -> Tensor:
        """Code at a share u of the leg beside states z, (..., m)."""
        inside = u.clamp(_INSIDE, 1 - _INSIDE)
        return self._beside(self.code(self.start + self.span * inside), z)

    def _beside(self, values: Tensor, z: Tensor) -> Tensor:
        if self.rows is not None:
            return values[self.rows]
        return values.unsqueeze(-2) if z.dim() == 3 else values


def integrate_ode(
    z: Tensor,
    segments: Sequence[Segment],
    field: StateField,
    back: bool = False,
    steps: int = STEPS,
) -> tuple[Tensor, Tensor]:
    """Carry states along a flow, or back to where they came from.

    Parameters
    ----------
    z
        States; shape (C, d), or (C, n, d) for n cells of each condition.
    legs
        Stretches of time, the first first.
    field
        The field; its noise is left out.
    back
        From the end of the last leg to the start of the first.
    steps
        Of each leg. They are fixed, so a cell's way does not depend on the cells beside it.

    Returns
    -------
    z, log_det
        Shape of `z`, and (C,) or (C, n): log |∂ new / ∂ old| of what was carried.

    Raises
    ------
    StiffFieldError
        If a state is not finite at the end.
    """
    log_det = z.new_zeros(*z.shape[:-1], 1)
    ends = z.new_tensor([1.0, 0.0] if back else [0.0, 1.0])
    for segment in reversed(segments) if back else segments:

        def slope(
            u: Tensor,
            now: tuple[Tensor, Tensor],
            segment: Segment = segment,
            span: Tensor = segment.spans(z),
        ) -> tuple[Tensor, Tensor]:
            velocity, divergence = field.velocity_and_divergence(now[0], segment.codes(u, now[0]))
            return span * velocity, span * divergence

        path = odeint(slope, (z, log_det), ends, method="rk4", options={"step_size": 1 / steps})
        z, log_det = path[0][-1], path[1][-1]
    if not torch.isfinite(z).all():
        raise StiffFieldError(
            'the field of dynamics="flow" gave states that are not finite: train with a lower '
            "global_lr of TrainingConfig, or wait in shorter steps"
        )
    return z, log_det[..., 0]


def integrate_sde(z: Tensor, segment: Segment, field: StateField, noise: Tensor) -> Tensor:
    """Carry states along the field with noise, by Euler-Maruyama.

    Parameters
    ----------
    z
        States; shape (C, d) or (C, n, d).
    leg
        The time, in as many steps as `noise` has rows.
    field
        The field, with noise.
    noise
        Independent standard normal numbers; shape (steps, *z.shape). The same numbers are the same
        cell's luck: with them a cell can be carried again under another treatment.

    Returns
    -------
    Tensor
        States at every step, the start first; shape (steps + 1, *z.shape).
    """
    path = [z]
    for i, driving_noise in enumerate(noise):
        loc, scale = sde_step(path[-1], i, len(noise), segment, field)
        path.append(loc + scale * driving_noise)
    return torch.stack(path)


def sde_step(
    z: Tensor, i: int, steps: int, segment: Segment, field: StateField
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of where step i (from 0) of so many takes states z."""
    assert field.noise is not None
    step = segment.spans(z) / steps
    u = z.new_tensor((i + 0.5) / steps)  # an event is felt from the nearest step on
    loc = z + step * field.velocity(z, segment.codes(u, z))
    return loc, field.noise * (step / field.clock).sqrt()


def check_steps(z: Tensor, segments: Sequence[Segment], field: StateField) -> None:
    """Refuse a field that bends too fast for the number of steps.

    Raises
    ------
    StiffFieldError
        If twice the steps change where cells arrive by more than 5% of the way they went.
    """
    ends = [integrate_ode(z, segments, field, steps=n * STEPS)[0] for n in (1, 2)]
    way = (ends[1] - z).square().mean().sqrt()
    error = (ends[1] - ends[0]).square().mean().sqrt()
    if float(error) > _TOLERANCE * float(way) + 1e-3:
        longest = sum((segment.span for segment in segments), torch.zeros(())).max()
        raise StiffFieldError(
            f"the field moves cells by {float(way):.3g} within a wait of "
            f"{float(longest):g} and bends too fast on the way: {STEPS} steps and {2 * STEPS} "
            f"differ by {float(error):.2g}. Wait in shorter steps, or train with fewer epochs or "
            "a lower global_lr of TrainingConfig"
        )


def code_of(dose: Tensor, gain: Tensor, field: StateField) -> Tensor:
    """a = Σ_k d_k a_k + Σ_j g_j a_j; (..., m)."""
    return dose @ field.code + gain @ field.media_code


def code_in_arm(
    genotype: Tensor,
    exposure: Tensor,
    perturbed_at: Tensor,
    exposed_at: Tensor,
    gain: Tensor,
    turnover: Tensor,
    decay: Tensor,
    field: StateField,
) -> Code:
    """Code of conditions at any time on their clock, each with events of its own.

    A dose sets in as the product of the edited gene is lost; a gain is what the genotype allows
    when the medium is met, and follows a later change of genotype at its turnover.

    Parameters
    ----------
    genotype, exposure
        0 or 1; shapes (C, K) and (C, J).
    perturbed_at, exposed_at
        Times of P and M; shape (C,).
    gain, turnover, decay
        w (K, J), ρ (J,) and μ (K,).
    field
        The field.
    """
    limit = gain_limit(genotype, gain)  # (C, J)
    before_loss = torch.where((exposed_at < perturbed_at).unsqueeze(-1), 1.0, limit)

    def code(s: Tensor) -> Tensor:
        since = (s - perturbed_at).clamp_min(0)
        dose = relax(torch.zeros_like(genotype), genotype, decay.unsqueeze(-2), since)
        now = relax(before_loss, limit, turnover.unsqueeze(-2), since)
        return code_of(dose, exposure * now * (s >= exposed_at).unsqueeze(-1), field)

    return code


def arm_segments(
    duration: Tensor,
    perturbed_at: Tensor,
    exposed_at: Tensor,
    code: Code,
    rows: Tensor | None = None,
) -> tuple[Segment, ...]:
    """Time of conditions from 0 to the measurement, cut where something is done; all (C,)."""
    events = torch.stack([perturbed_at, exposed_at]).clamp_min(0).sort(0).values
    cuts = [torch.minimum(event, duration) for event in events if bool((event > 0).any())]
    starts, ends = [torch.zeros_like(duration), *cuts], [*cuts, duration]
    return tuple(Segment(a, b - a, code, rows) for a, b in zip(starts, ends, strict=True))
