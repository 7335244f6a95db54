r"""The terms of one draw: what each step of the experiment adds to the log level of every gene.

With :math:`f(c)` the log level of condition :math:`c` in a draw, 0 for unperturbed cells in the
baseline medium at the same time, :math:`P_1, P_2, \ldots` its perturbations and :math:`m` its
medium,

.. math:: f(c) = \sum_i f(P_i) + f(m) + \mathrm{gain} + \mathrm{interaction} + \mathrm{together},

where gain is what changes when the draw's gains take the place of 1, interaction what was measured
beside additivity, and together what is left: drivers that share one pace, and the field of a neural
ODE, which is no sum of parts. Each :math:`f(P_i)` is a sum over axes of response, single genes and
the own transcript. Nothing is approximated, so that the terms of every draw add up to its answer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyrocell.generative.response import COMMON
from pyrocell.posterior.explain.conditions import Asked
from pyrocell.posterior.fitted_screen import FittedScreen
from pyrocell.posterior.new_batches import RequestedBatchNoise, requested_batch_noise
from pyrocell.posterior.populations import moments, resting_states
from pyrocell.screen.conditions import Conditions

__all__ = ["STEPS", "Side", "Term", "base_levels", "gain_of", "terms_of"]

OWN, ITSELF, MEDIUM, ON_MEDIUM = "own transcript", "by itself", "medium", "response to the medium"
COMBINED, PACE, TIME, BATCH = "combination", "pace", "time", "batch"
UNSEEN, READING = "not measured", "read-out"
STEPS = (OWN, ITSELF, COMBINED, MEDIUM, ON_MEDIUM, PACE, TIME, BATCH, UNSEEN, READING)


class Term(NamedTuple):
    """One term: its step, what it is, and the driver that it is of.

    `driver` is the position of a perturbation, -1 where it is of no single one.
    """

    step: str
    kind: str
    driver: int = -1


Terms = dict[Term, Tensor]  # (G,) each


@dataclass(frozen=True)
class Side:
    """A condition, asked for or compared with, ready for any number of draws.

    Attributes
    ----------
    asked
        What it is.
    whole, not_measured
        The condition itself as `fit.conditions` has it.
    rows, protocols
        See `Asked.rows`.
    noise
        Noise of its batch.
    """

    asked: Asked
    whole: Conditions
    not_measured: Tensor
    rows: Conditions
    protocols: list | None
    noise: RequestedBatchNoise

    @classmethod
    def of(cls, fit: FittedScreen, asked: Asked) -> Side:
        """Encode a condition."""
        whole, not_measured = fit.conditions(asked.frame)
        noise = requested_batch_noise(fit.posterior, fit.screen, asked.frame, None)
        return cls(asked, whole, not_measured, *asked.rows(fit), noise)

    @property
    def several(self) -> bool:
        """Whether there is more than one driver."""
        return len(self.rows.duration) > 3


def gain_of(values: dict[str, Tensor], asked: Asked) -> float:
    """How much of its medium's response a condition has, in one draw; 1 without perturbation."""
    if asked.medium < 0 or not asked.perturbations:
        return 1.0
    return float(values["M.gain"][list(asked.perturbations), asked.medium].prod())


def base_levels(
    fit: FittedScreen, values: dict[str, Tensor], side: Side, draw: int, level: Levels
) -> Tensor:
    """Log level of unperturbed cells in the baseline medium at the time of a condition, (G,)."""
    rows = side.rows.select(side.rows.duration.new_zeros(1).long())
    first = None if side.protocols is None else side.protocols[:1]
    found = _evaluate(fit, values, rows, first)
    return level(values, draw, rows, first, found[1])[0]


Levels = Callable[..., Tensor]


def levels_of(fit: FittedScreen, cells: dict[str, Tensor] | None) -> Levels:
    """A function of values, draw, rows, protocols and plain shifts (R, G): log levels (R, G).

    Where states move on their own a level is a mean over cells, and elsewhere the shift itself, as
    in `perturbation_effects`.
    """
    held: dict[int, Tensor] = {}

    def level(
        values: dict[str, Tensor],
        draw: int,
        rows: Conditions,
        protocols: list | None,
        plain: Tensor,
    ) -> Tensor:
        if cells is None:
            return plain * _slope(fit)
        if draw not in held:
            held.clear()
            seed, table = draw, fit.data.conditions
            held[draw] = resting_states(fit.posterior.guide, values, cells, seed, table)
        out = []
        for i in range(len(plain)):
            row = rows.select(torch.tensor([i], device=plain.device))
            protocol = None if protocols is None else protocols[i]
            z = fit.carried(values, held[draw], row, draw, protocol)
            out.append(moments(fit.model, values, z, plain[i : i + 1], 1.0)[0].log())
        return torch.cat(out)

    return level


def terms_of(
    fit: FittedScreen,
    values: dict[str, Tensor],
    side: Side,
    draw: int,
    level: Levels,
    by_axis: bool,
) -> tuple[Terms, Tensor]:
    """Terms of a condition against unperturbed cells at its time, and their sum by itself, (G,).

    Parameters
    ----------
    values
        One joint draw, with the turnover of gains.
    draw
        Its number.
    level
        From `levels_of`.
    by_axis
        A term for each axis.
    """
    asked, rows, model = side.asked, side.rows, fit.model
    if not (asked.perturbations or asked.medium >= 0):
        out = _beside(fit, values, side, draw)
        zero = torch.zeros_like(values["V.baseline"])
        return out, sum(out.values(), start=zero)
    y, plain = _evaluate(fit, values, rows, side.protocols)
    levels = level(values, draw, rows, side.protocols, plain)
    slope = _slope(fit)
    out: Terms = {}
    common = _common(values, side) * slope if COMMON in values else None
    for i, k in enumerate(asked.perturbations, start=1):
        whole = levels[i] - levels[0]
        for term, change in _along_axes(fit, values, y[i] - y[0], k, by_axis).items():
            out[term] = change * slope
            whole = whole - out[term]
        if common is not None:
            whole = whole - common
        if fit.model.moves_states:
            shift = (plain[i] - plain[0]) * slope
            out[Term(ITSELF, "where cells go", k)] = (levels[i] - levels[0]) - shift
            whole = whole - out[Term(ITSELF, "where cells go", k)]
        target = int(model.target[k])
        if target >= 0:
            own = torch.zeros_like(whole)
            own[target] = whole[target]
            out[Term(OWN, "own target", k)] = own
            whole = whole - own
        out[Term(ITSELF, "single genes", k)] = whole
    if common is not None and asked.perturbations:
        out[Term(ITSELF, "common to perturbations")] = common
    if asked.medium >= 0:
        out[Term(MEDIUM, "medium")] = levels[-2] - levels[0]
    total = levels[-1] - levels[0]
    if side.several:
        out |= _together(fit, values, side, draw, level, levels, out)
    for term, change in _beside(fit, values, side, draw).items():
        out[term] = change
        total = total + change
    return out, total


def _evaluate(
    fit: FittedScreen, values: dict[str, Tensor], rows: Conditions, protocols: list | None
) -> tuple[Tensor, Tensor]:
    """Displacement along axes, drift included, (R, D), and shift of log means, (R, G)."""
    model = fit.model
    if protocols is None:
        state = model.state_of(values, rows)
        return model.displacement(values, state, rows), model.plain_shift(values, state, rows)
    found = []
    for i, protocol in enumerate(protocols):
        row, state = rows.select(torch.tensor([i])), fit.carry_out(protocol, values)
        found.append(
            (model.displacement(values, state, row), model.plain_shift(values, state, row))
        )
    y, plain = (torch.cat(part) for part in zip(*found, strict=True))
    return y, plain


def _common(values: dict[str, Tensor], side: Side) -> Tensor:
    """What all perturbations do, (G,), where one has begun."""
    whole = side.whole
    begun = (whole.duration > whole.perturbed_at) & whole.genotype.any(1)
    return values[COMMON] * begun.to(values[COMMON])


def _along_axes(
    fit: FittedScreen, values: dict[str, Tensor], y: Tensor, k: int, by_axis: bool
) -> Terms:
    """What a displacement (D,) does along the axes."""
    axes, n = fit.model.axes(values), fit.model.config.n_latent
    if fit.gene_level is not None:  # effects along axes are those of programs
        return {Term(ITSELF, "programs", k): y @ axes}
    if not by_axis:
        return {
            Term(ITSELF, "axes of state", k): y[:n] @ axes[:n],
            Term(ITSELF, "axes of response", k): y[n:] @ axes[n:],
        }
    names = [f"axis {a + 1} of state" for a in range(n)]
    names += [f"axis {a + 1} of response" for a in range(len(axes) - n)]
    return {
        Term(ITSELF, name, k): change for name, change in zip(names, y[:, None] * axes, strict=True)
    }


def _together(
    fit: FittedScreen,
    values: dict[str, Tensor],
    side: Side,
    draw: int,
    level: Levels,
    levels: Tensor,
    alone: Terms,
) -> Terms:
    """What several drivers do beside the sum of what each does alone."""
    asked, out = side.asked, {}
    last = side.rows.select(torch.tensor([len(levels) - 1], device=levels.device))
    protocol = None if side.protocols is None else side.protocols[-1:]
    if asked.medium >= 0 and asked.perturbations:
        untouched = values | {"M.gain": torch.ones_like(values["M.gain"])}
        plain = _evaluate(fit, untouched, last, protocol)[1]
        out[Term(ON_MEDIUM, "gain")] = levels[-1] - level(untouched, draw, last, protocol, plain)[0]
    if "P.interaction" in values and int(last.interaction[0]) >= 0:
        grown = fit.model.interaction_grown(values, last) * fit.model.set_in(values, last)
        extra = values["P.interaction"][int(last.interaction[0])] * grown[0]
        step = ON_MEDIUM if asked.medium >= 0 else COMBINED
        out[Term(step, "interaction")] = extra * _slope(fit)
    rest = levels[-1] - levels[0]
    for change in (*alone.values(), *out.values()):
        rest = rest - change
    out[Term(PACE, "together")] = rest
    return out


def _slope(fit: FittedScreen) -> Tensor:
    """By how much log means move with logits, (G,) or a scalar 1."""
    if fit.gene_level is None:
        return fit.model.loading.new_ones(())
    return fit.gene_level.slope.to(fit.model.loading)


def _beside(
    fit: FittedScreen,
    values: dict[str, Tensor],
    side: Side,
    draw: int,
) -> Terms:
    """What no driver does: batch, what was not measured, and what is known of unseen genes."""
    out: Terms = {}
    asked, slope, like = side.asked, _slope(fit), values["V.baseline"][None]
    if bool((side.not_measured > 0).any()):
        shifts = [
            fit.shift(values, side.whole, unseen, draw, asked.order)
            for unseen in (side.not_measured, torch.zeros_like(side.not_measured))
        ]
        out[Term(UNSEEN, "not measured")] = (shifts[0] - shifts[1])[0] * slope
    if asked.unseen is not None:
        out[Term(UNSEEN, "from knowledge")] = asked.unseen(draw, 0, like)[0] * slope
    if "batch" in asked.frame or "laboratory" in asked.frame:
        noise = side.noise.draw(values, draw)[0]
        if fit.gene_level is not None and (side.noise.request.new >= 0).any():
            genotype, exposure = side.whole.genotype, side.whole.exposure
            if fit.model.has_time:
                begun = (side.whole.duration > 0)[:, None]
                genotype, exposure = genotype * begun, exposure * begun
            new = np.asarray(side.noise.request.new)
            noise = noise + fit.gene_level.in_new_batches(draw, genotype, exposure, new)[0]
        out[Term(BATCH, "batch")] = noise * slope
    return out
