"""F = W ∘ M ∘ P, its inverse and the counterfactual (eqs. 4, 6), for all conditions at once.

Notes
-----
Order matters through the gain alone: M reads it from the genotype of that instant, and it then
goes to what the present genotype allows at the medium's turnover. Section 2.2 illustrates this
with TGFβ; where it says "knocking out TGFB1 after stimulation with TGFB1" it means the receptor,
the ligand comes with the medium.

Eq. 14 as printed feeds :math:`F(X^p, ·, ·, t)` and compares it with :math:`X^p_t`, which repeats
eq. 13. Its text and its count n_p n_M say path 1-1: F(X^p_t, ·, m, t) is compared with X^p_{m,t}.
Here that is :func:`forward` of a state that carries p already, exposed to m.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pyrocell.errors import ProtocolError
from pyrocell.operators.dynamics.flow import (
    NOISY_STEPS,
    Segment,
    StateField,
    code_of,
    integrate_ode,
    integrate_sde,
)
from pyrocell.operators.dynamics.node import Production, integrate_deviation, step_times
from pyrocell.operators.medium import expose, gain_limit
from pyrocell.operators.perturbation import perturb
from pyrocell.operators.state import State
from pyrocell.operators.waiting import (
    onset_curve,
    reference_curve,
    relative_curve,
    relative_onset,
    relax,
    wait,
    weighted_drive,
)

__all__ = [
    "ResponseParameters",
    "bounded_rate",
    "condition_rate",
    "counterfactual",
    "decay_rate",
    "flow",
    "forward",
    "inverse",
    "let_wait",
    "respond",
]

SLOWEST, FASTEST = 1e-6, 1e6  # of λ t_ref: beyond, a response is a straight line or a step


@dataclass(frozen=True, eq=False)
class ResponseParameters:
    """What the operators need to know of the biology. Leading batch dimensions are allowed.

    Parameters
    ----------
    effect
        e, response to each perturbation alone at the reference time; shape (K, D).
    media_effect
        c, response of unperturbed cells to each medium at the reference time; shape (J, D).
    gain
        w, factor on the response to medium j under perturbation k; shape (K, J).
    turnover
        ρ, rate at which a cascade follows a later change of genotype; shape (J,).
    log_rate
        log λ of each perturbation, then of each medium; shape (K + J,).
    base_log_rate
        log λ of cells without perturbation or medium; scalar.
    reference_time
        The time at which `effect` and `media_effect` are stated, above zero, inside the range of
        measured times (design: value and rate then decorrelate).
    log_decay
        log μ, rate at which the product of each perturbed gene is lost; shape (K,). None: at once.
    field
        h(y, Δ), production beyond the drive (eq. 25); None: none, and W has a closed form.
    motion
        The field along which resting states move on their own (App. C.1); None: they stay.
    at_once
        Whether all rates are so fast that a response is there at any time above zero.

    Raises
    ------
    ProtocolError
        If the reference time is not above zero.
    """

    effect: Tensor
    media_effect: Tensor
    gain: Tensor
    turnover: Tensor
    log_rate: Tensor
    base_log_rate: Tensor
    reference_time: float = 1.0
    log_decay: Tensor | None = None
    field: Production | None = None
    motion: StateField | None = None
    at_once: bool = False

    def __post_init__(self) -> None:
        """Refuse a reference time at which every response is zero."""
        if not self.reference_time > 0:
            raise ProtocolError(
                f"reference_time={self.reference_time!r}: effects are stated at this time after "
                "the perturbation, it must be above zero"
            )


def condition_rate(genotype: Tensor, exposure: Tensor, params: ResponseParameters) -> Tensor:
    """Rate of a condition: geometric mean of its drivers' rates, the base rate where there is none.

    Parameters
    ----------
    genotype, exposure
        0 or 1; shapes (C, K) and (C, J).
    params
        Rates and reference time.

    Returns
    -------
    Tensor
        λ per unit of time; shape (C, 1). Kept within 1e-6 and 1e6 per reference time, so that no
        rate, however absurd, gives an infinite drive or gradient.
    """
    drivers = torch.cat([genotype, exposure], -1)  # (C, K + J)
    count = drivers.sum(-1)
    total = (drivers @ params.log_rate.unsqueeze(-1)).squeeze(-1)
    log_rate = torch.where(
        count > 0, total / count.clamp(min=1), params.base_log_rate.unsqueeze(-1)
    )
    return bounded_rate(log_rate, params.reference_time).unsqueeze(-1)


def decay_rate(params: ResponseParameters) -> Tensor:
    """Rate μ at which the product of each perturbed gene is lost, bounded like rates; (K,)."""
    if params.log_decay is None:
        n_perturbations = params.effect.shape[-2]
        return params.effect.new_full((n_perturbations,), FASTEST / params.reference_time)
    return bounded_rate(params.log_decay, params.reference_time)


def bounded_rate(log_rate: Tensor, reference_time: float) -> Tensor:
    """exp of a log rate, kept within 1e-6 and 1e6 per reference time."""
    offset = math.log(reference_time)
    return log_rate.clamp(math.log(SLOWEST) - offset, math.log(FASTEST) - offset).exp()


def respond(
    genotype: Tensor, exposure: Tensor, duration: Tensor, params: ResponseParameters
) -> State:
    """F from rest: the default screen, P then M then W, of every condition at once.

    Parameters
    ----------
    genotype, exposure
        0 or 1; shapes (C, K) and (C, J).
    duration
        Time waited; shape (C,).
    params
        The biology.

    Returns
    -------
    State
        At ``duration == reference_time`` its response is genotype @ effect + gain @ media_effect,
        and what a field adds.

    Notes
    -----
    Eq. 4. Equal to :func:`forward` from rest; shorter, because a gain that starts at its limit
    stays there and every dose starts at zero.
    """
    gain = exposure * gain_limit(genotype, params.gain)  # (C, J)
    if params.at_once and params.field is None:
        begun = (duration > 0).to(gain)[..., None]
        full = genotype * begun
        y = full @ params.effect + (gain * begun) @ params.media_effect
        return State(y=y, genotype=genotype, dose=full, exposure=exposure, gain=gain)
    rate, reference = condition_rate(genotype, exposure, params), params.reference_time
    most = int(genotype.sum(-1).max()) if genotype.numel() else 0
    carried, which = genotype.topk(most, -1)  # (C, most): of many perturbations a cell has few
    effect, decay = params.effect[..., which, :], decay_rate(params)[..., which]

    def linear(t: Tensor) -> Tensor:  # (..., C) to (..., C, D)
        t = t.unsqueeze(-1)
        onset = carried * relative_onset(rate, decay, t, reference)  # (..., C, most)
        grown = gain * relative_curve(rate, t, reference)  # (..., C, J)
        return weighted_drive(onset, effect) + grown @ params.media_effect

    def dose(t: Tensor) -> Tensor:  # (..., C) to (..., C, most)
        return carried * reference_curve(decay, t.unsqueeze(-1))

    if params.field is None:
        y = linear(duration)
    else:
        times = step_times(duration)
        path = linear(times)
        drive, media_drive = _drives(rate, effect, decay, params)
        pull = weighted_drive(dose(times), drive) + weighted_drive(gain, media_drive)
        y = path[-1] + integrate_deviation(path, pull, rate, duration, params.field)
    begun = dose(duration)
    nothing = begun.new_zeros(*begun.shape[:-1], genotype.shape[-1])
    return State(
        y=y,
        genotype=genotype,
        dose=nothing.scatter(-1, which.expand_as(begun), begun),
        exposure=exposure,
        gain=gain,
    )


def forward(
    state: State, genotype: Tensor, exposure: Tensor, duration: Tensor, params: ResponseParameters
) -> State:
    """F = W ∘ M ∘ P on any state (eq. 4): add perturbations, then media, then wait.

    Parameters
    ----------
    state
        Cells before.
    genotype, exposure
        What is added, 0 or 1; shapes (C, K) and (C, J). Zeros for nothing.
    duration
        Shape (C,).
    params
        The biology.
    """
    perturbed = perturb(state, genotype)
    stimulated = expose(perturbed, exposure, gain_limit(perturbed.genotype, params.gain))
    return let_wait(stimulated, duration, params)


def inverse(state: State, duration: Tensor, params: ResponseParameters) -> State:
    """F⁻¹ (eq. 6): the unperturbed cells in baseline medium from which `state` came.

    Rewinds W over the duration, then takes off the media and perturbations that the state records.
    Rounding, and the error of the steps where there is a field, grow by exp(λ t): what has relaxed
    for long has forgotten where it came from.

    Parameters
    ----------
    state
        Cells after P, M and W.
    duration
        Time waited since; shape (C,).
    params
        The biology.
    """
    if params.motion is not None and params.motion.noise is not None and state.z is not None:
        raise ProtocolError(
            "states that move with noise have no single past; model.counterfactual draws one"
        )
    before = let_wait(state, -duration, params)
    return replace(
        before,
        genotype=torch.zeros_like(before.genotype),
        dose=torch.zeros_like(before.dose),
        exposure=torch.zeros_like(before.exposure),
        gain=torch.zeros_like(before.gain),
    )


def counterfactual(
    state: State, genotype: Tensor, exposure: Tensor, duration: Tensor, params: ResponseParameters
) -> State:
    """Where the same cells would be, had they met another perturbation and medium (eq. 6).

    C(X, p, m) = F(F⁻¹(X, ·, ·, t), p, m, t); arguments as in :func:`forward`.
    """
    return forward(inverse(state, duration, params), genotype, exposure, duration, params)


def let_wait(state: State, duration: Tensor, params: ResponseParameters) -> State:
    """W: leave cells for a duration (C,), in closed form or, with a field, beside it (eqs. 3, 25).

    Raises
    ------
    StiffFieldError
        If the field ran away.
    """
    drive = flow(state, params)
    after = wait(state, duration, *drive)
    if params.motion is not None and state.z is not None:
        after = replace(after, z=_carried(state.z, state, duration, params.motion, drive))
    if params.field is None:
        return after
    path = [wait(state, t, *drive) for t in step_times(duration)]
    pull = [weighted_drive(x.dose, drive[1]) + weighted_drive(x.gain, drive[3]) for x in path]
    linear = torch.stack([x.y for x in path])
    moved = integrate_deviation(linear, torch.stack(pull), drive[0], duration, params.field)
    return replace(after, y=after.y + moved)


def _carried(
    z: Tensor, state: State, duration: Tensor, motion: StateField, drive: tuple[Tensor, ...]
) -> Tensor:
    """Resting states z (C, n, d) after a wait, or before it where the duration is negative."""
    decay, limit, turnover = drive[2], state.exposure * drive[4], drive[5]

    def code(s: Tensor) -> Tensor:
        dose = relax(state.dose, state.genotype, decay.unsqueeze(-2), s)
        return code_of(dose, relax(state.gain, limit, turnover.unsqueeze(-2), s), motion)

    segment = Segment(torch.zeros_like(duration), duration, code)
    if motion.noise is None:
        return integrate_ode(z, [segment], motion)[0]
    driving_noise = torch.randn(NOISY_STEPS, *z.shape, dtype=z.dtype, device=z.device)
    return integrate_sde(z, segment, motion, driving_noise)[-1]


def flow(state: State, params: ResponseParameters) -> tuple[Tensor, ...]:
    """What ``wait`` needs after the duration, for what cells carry and have met."""
    return _flow(state.genotype, state.exposure, params)


def _flow(genotype: Tensor, exposure: Tensor, params: ResponseParameters) -> tuple[Tensor, ...]:
    rate, decay = condition_rate(genotype, exposure, params), decay_rate(params)
    effect = params.effect.unsqueeze(-3)
    drive, media_drive = _drives(rate, effect, decay.unsqueeze(-2), params)  # (C, K | J, D)
    return rate, drive, decay, media_drive, gain_limit(genotype, params.gain), params.turnover


def _drives(
    rate: Tensor, effect: Tensor, decay: Tensor, params: ResponseParameters
) -> tuple[Tensor, Tensor]:
    """What perturbations with effects (C, n, D) and media pull towards, (C, n, D) and (C, J, D)."""
    reference = rate.new_tensor(params.reference_time)
    set_in = onset_curve(rate, decay, reference)  # (C, n)
    reached = reference_curve(rate, reference)  # (C, 1)
    media_drive = params.media_effect.unsqueeze(-3) / reached.unsqueeze(-1)
    return effect / set_in.unsqueeze(-1), media_drive
