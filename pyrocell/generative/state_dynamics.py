"""How resting states move on their own: parameters, and the distribution of states in a condition.

Sites: `W.flow` weighs the features of the field, `P.flow` and `M.flow` are the codes of what bends
it, `W.noise` drives branching, `X.path` is a cell's way to where it was measured (`X.z`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrocell.distributions.paths import GaussianChain, TransportedNormal
from pyrocell.operators import ResponseParameters, decay_rate
from pyrocell.operators.dynamics.flow import (
    NOISY_STEPS,
    Segment,
    StateField,
    arm_segments,
    code_in_arm,
    integrate_ode,
    integrate_sde,
    sde_step,
)
from pyrocell.screen.conditions import Conditions

__all__ = [
    "BackwardChain",
    "StateDynamics",
    "arm_path",
    "draw_past",
    "draw_state",
    "invert_path",
    "propagate",
    "state_log_prob",
]

_WIDTH = 32  # features of the field
_CODES = 4  # numbers by which a perturbation or a medium changes it
_SHORTEST = 1e-3  # wait, of the clock, that noise is given at least
_START = 0.2  # width of the weights' prior, units of state per mean measured time


class StateDynamics(nn.Module):
    """Point parameters of the field of states.

    Parameters
    ----------
    n_latent
        Axes d of resting state.
    clock
        Unit of time of the field: the mean of the measured times.
    """

    def __init__(self, n_latent: int, clock: float):
        super().__init__()
        random = torch.Generator().manual_seed(1)  # the same counts give the same start
        normal = lambda *shape: torch.randn(*shape, generator=random)  # noqa: E731
        self.direction = nn.Parameter(normal(n_latent, _WIDTH) / n_latent**0.5)  # A
        self.code_direction = nn.Parameter(normal(_CODES, _WIDTH) / _CODES**0.5)  # B
        self.offset = nn.Parameter(normal(_WIDTH))  # b
        self.code_gain = nn.Parameter(normal(_CODES, _WIDTH) / _CODES**0.5)  # C
        # width of the weights' prior; learned, so that a feature nobody needs is pruned
        self.log_scale = nn.Parameter(torch.full((_WIDTH, 1), _START).log())
        # where cells start: the axes of state have unit spread over all times, less at the first
        self.start = nn.Parameter(torch.zeros(n_latent))
        self.log_start_scale = nn.Parameter(torch.zeros(n_latent))
        self.clock, self.n_codes = clock, _CODES

    def field(self, values: dict[str, Tensor]) -> StateField:
        """The field under sampled sites."""
        return StateField(
            direction=self.direction,
            code_direction=self.code_direction,
            offset=self.offset,
            code_gain=self.code_gain,
            weight=values["W.flow"],
            code=values["P.flow"],
            media_code=values.get("M.flow", self.offset.new_zeros(0, _CODES)),
            clock=self.clock,
            noise=values.get("W.noise"),
        )

    def at_start(self, n: int) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the states of n cells at time 0, (n, d) each."""
        shape = (n, len(self.start))
        return self.start.expand(shape), self.log_start_scale.exp().expand(shape)

    def sites(self, n_perturbations: int, n_media: int, noise: tuple[float, float] | None) -> dict:
        """Sample the field's sites from their priors."""
        zeros = self.offset.new_zeros
        scale = self.log_scale.exp().expand(-1, len(self.direction))
        values = {"W.flow": _normal("W.flow", torch.zeros_like(scale), scale)}
        one = self.offset.new_ones(())
        values["P.flow"] = _normal("P.flow", zeros(n_perturbations, _CODES), one)
        if n_media:
            values["M.flow"] = _normal("M.flow", zeros(n_media, _CODES), one)
        if noise is not None:
            median, spread = noise
            loc = zeros(len(self.direction)) + math.log(median)
            values["W.noise"] = pyro.sample("W.noise", dist.LogNormal(loc, spread).to_event(1))
        return values


class BackwardChain(nn.Module):
    """Where a cell came from, step by step: the guide's chain from `X.z` back to its start.

    The drift back is −v + σ² ∇log p: against the field where cells are on their way, along it where
    noise and field balance. So a small network of state, step and code says how much of v, what
    beyond it, and how wide; it starts at standing still.
    """

    def __init__(self, n_latent: int, n_codes: int = _CODES):
        super().__init__()
        self.inner = nn.Linear(n_latent + n_codes + 2, 2 * _WIDTH)
        self.outer = nn.Linear(2 * _WIDTH, 3 * n_latent)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)
        self.log_ratio = nn.Parameter(torch.zeros(NOISY_STEPS, n_latent))

    def forward(self, end: Tensor, segment: Segment, field: StateField) -> GaussianChain:
        """Chain of the NOISY_STEPS states before `end` (n, d), the start first."""
        loc, scale = self._back(end, -1, segment, field)
        return GaussianChain(
            loc, scale, lambda z, i: self._back(z, i, segment, field), NOISY_STEPS, backwards=True
        )

    def _back(
        self, z: Tensor, i: int, segment: Segment, field: StateField
    ) -> tuple[Tensor, Tensor]:
        step = NOISY_STEPS - 2 - i  # undone is the step from here to the next
        share = (step + 0.5) / NOISY_STEPS
        loc, spread = sde_step(z, step, NOISY_STEPS, segment, field)
        span = segment.spans(z) / field.clock
        code = segment.codes(z.new_tensor(share), z)
        place = torch.cat([z, code, torch.full_like(span, share), span * share], -1)
        share_of_v, beyond, log_ratio = self.outer(torch.tanh(self.inner(place))).chunk(3, -1)
        scale = spread * (self.log_ratio[step] + log_ratio).exp()
        return z + share_of_v * (loc - z) + beyond * span / NOISY_STEPS, scale


def arm_path(
    conditions: Conditions,
    params: ResponseParameters,
    field: StateField,
    rows: Tensor | None = None,
) -> tuple[Segment, ...]:
    """Legs of conditions from rest to their measurement; `rows` as in `Segment`."""
    events = conditions.perturbed_at, conditions.exposed_at
    code = code_in_arm(
        conditions.genotype,
        conditions.exposure,
        *events,
        params.gain,
        params.turnover,
        decay_rate(params),
        field,
    )
    return arm_segments(conditions.duration, *events, code, rows)


def whole(segments: Sequence[Segment], clock: float) -> Segment:
    """One leg over all of them, as noisy steps take it; long enough for a density to exist."""
    first = segments[0]
    span = first.span
    for segment in segments[1:]:
        span = span + segment.span
    return Segment(first.start, span.clamp_min(_SHORTEST * clock), first.code, first.rows)


def draw_state(
    segments: Sequence[Segment], field: StateField, start: tuple[Tensor, Tensor]
) -> Tensor:
    """Sample `X.z`, and with noise `X.path`, in the plate of cells; (n, d).

    `start` is the mean and standard deviation of their states at time 0, (n, d) each.
    """
    if field.noise is None:
        law = TransportedNormal(*start, lambda z, back: integrate_ode(z, segments, field, back))
        return pyro.sample("X.z", law)
    segment = whole(segments, field.clock)

    def step(z: Tensor, i: int) -> tuple[Tensor, Tensor]:
        return sde_step(z, i, NOISY_STEPS, segment, field)

    path = pyro.sample("X.path", GaussianChain(*start, step, NOISY_STEPS))
    loc, scale = step(path[..., -1, :], NOISY_STEPS - 1)
    return pyro.sample("X.z", dist.Normal(loc, scale.expand_as(loc)).to_event(1))


def state_log_prob(
    z: Tensor,
    segments: Sequence[Segment],
    field: StateField,
    start: tuple[Tensor, Tensor],
    reversal: BackwardChain | None = None,
) -> Tensor:
    """Log density of the states z (n, d) of cells measured, (n,).

    With noise: an unbiased estimate of the density by one way back drawn from the guide's chain.
    """
    if field.noise is None:
        law = TransportedNormal(*start, lambda z, back: integrate_ode(z, segments, field, back))
        return law.log_prob(z)
    assert reversal is not None
    segment = whole(segments, field.clock)
    back = reversal(z, segment, field)
    path = back.rsample()

    def step(z: Tensor, i: int) -> tuple[Tensor, Tensor]:
        return sde_step(z, i, NOISY_STEPS, segment, field)

    forth = GaussianChain(*start, step, NOISY_STEPS + 1)
    return forth.log_prob(torch.cat([path, z[:, None]], 1)) - back.log_prob(path)


def draw_past(
    reversal: BackwardChain, z: Tensor, segments: Sequence[Segment], field: StateField
) -> Tensor:
    """Sample `X.path` given where cells are, in the plate of cells; (n, NOISY_STEPS, d)."""
    return pyro.sample("X.path", reversal(z, whole(segments, field.clock), field))


def invert_path(
    z: Tensor, segments: Sequence[Segment], field: StateField, reversal: BackwardChain | None
) -> tuple[Tensor, Tensor | None]:
    """Where cells at states z (n, d) came from, and the luck they had (steps, n, d) if there is."""
    if reversal is None:
        return integrate_ode(z, segments, field, back=True)[0], None
    segment = whole(segments, field.clock)
    path = torch.cat([reversal(z, segment, field).rsample(), z[:, None]], 1).unbind(1)
    driving_noise = []
    for i in range(NOISY_STEPS):
        loc, scale = sde_step(path[i], i, NOISY_STEPS, segment, field)
        driving_noise.append((path[i + 1] - loc) / scale)
    return path[0], torch.stack(driving_noise)


def propagate(
    z: Tensor, segments: Sequence[Segment], field: StateField, driving_noise: Tensor | None = None
) -> Tensor:
    """Where cells that start at z (C, n, d) are at the end; luck (steps, C, n, d) if any."""
    if field.noise is None:
        return integrate_ode(z, segments, field)[0]
    assert driving_noise is not None
    return integrate_sde(z, whole(segments, field.clock), field, driving_noise)[-1]


def _normal(name: str, loc: Tensor, scale: Tensor) -> Tensor:
    normal = dist.Normal(loc, scale)
    return pyro.sample(name, normal.to_event(len(normal.batch_shape)))
