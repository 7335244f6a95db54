"""F for arms that differ in order: perturbed and exposed at times of their own (eqs. 1-4).

Cells start at rest at time 0 of one clock. A condition is perturbed at one time on it, meets its
medium at another, and is measured at a third. Whichever comes first is applied first; at equal
times P comes before M, as in the default screen.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from pyrocell.operators.medium import expose, gain_limit
from pyrocell.operators.perturbation import perturb
from pyrocell.operators.response import ResponseParameters, let_wait, respond
from pyrocell.operators.state import State

__all__ = ["respond_in_order"]


def respond_in_order(
    genotype: Tensor,
    exposure: Tensor,
    duration: Tensor,
    perturbed_at: Tensor,
    exposed_at: Tensor,
    params: ResponseParameters,
) -> State:
    """F from rest of every condition at once, each in its own order of steps.

    Parameters
    ----------
    genotype, exposure
        0 or 1; shapes (C, K) and (C, J).
    duration
        Time of measurement; shape (C,).
    perturbed_at, exposed_at
        Times of P and M on the same clock, from 0 to the time of measurement; shape (C,). Without
        meaning where a condition has no perturbation, or no medium.
    params
        The biology.

    Notes
    -----
    Rest stays at rest, so the clock of a condition may start at its first event: conditions with
    one event, or both at once, are :func:`respond` after the time since; the others wait between
    their events. With all events at 0 this is :func:`respond`, to the last digit.
    """
    perturbed, exposed = (genotype > 0).any(-1), (exposure > 0).any(-1)  # (C,)
    first = torch.where(perturbed, perturbed_at, exposed_at)
    second = torch.where(exposed, exposed_at, first)
    first, second = torch.minimum(first, second), torch.maximum(first, second)
    apart = second > first
    start = torch.where(perturbed | exposed, first, 0.0)
    if not bool(apart.any()):
        return respond(genotype, exposure, duration - start, params)
    rows, p_first = apart.nonzero()[:, 0], (perturbed_at < exposed_at)[:, None]
    # what came first alone, below all conditions as if both events were at once
    alone = (genotype * p_first)[rows], (exposure * ~p_first)[rows], (second - first)[rows]
    whole = genotype, exposure, duration - start
    genotypes, exposures, waits = (torch.cat(pair) for pair in zip(whole, alone, strict=True))
    both = respond(genotypes, exposures, waits, params)
    state = perturb(_rows(both, slice(len(duration), None)), genotype[rows])
    state = expose(state, exposure[rows], gain_limit(state.genotype, params.gain))
    after = let_wait(state, (duration - second)[rows], params)
    return _put(_rows(both, slice(len(duration))), rows, after)


def _rows(state: State, rows: slice) -> State:
    parts = {f.name: getattr(state, f.name) for f in fields(State)}
    chosen: dict[str, Any] = {n: x if x is None else x[..., rows, :] for n, x in parts.items()}
    return State(**chosen)


def _put(state: State, rows: Tensor, part: State) -> State:
    """The state with some conditions replaced."""
    new = {}
    for field in fields(State):
        old, own = getattr(state, field.name), getattr(part, field.name)
        if old is not None:
            shape = (*old.shape[:-2], len(rows), old.shape[-1])
            new[field.name] = old.index_copy(old.dim() - 2, rows, own.expand(shape))
    return State(**new)
