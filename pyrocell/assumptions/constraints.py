"""Assumptions that a model is trained under, as contrasts of log means that ought to be zero.

Eq. 9 asks of a condition that waiting longer leaves it where it is, W(X, t) = X; eq. 14 (as its
text has it, see `operators/response.py`) the same after another path. Here both are contrasts of
the model's own conditions, measured or not: a time ahead against the last one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pyrocell.assumptions.spec import Assume, check_assumed
from pyrocell.assumptions.testability import Comparison, comparisons
from pyrocell.errors import ScreenError
from pyrocell.screen.conditions import Conditions
from pyrocell.screen.estimability import LayoutGraph
from pyrocell.screen.screen import Screen

__all__ = ["condition_table", "imposed_contrasts", "uncertain_rows"]

Weights = dict[tuple, float]  # (genotype, exposure, duration, time index, two events) → weight


def imposed_contrasts(
    screen: Screen, assume: Sequence[Assume]
) -> tuple[Conditions, Tensor, Tensor] | None:
    """Conditions (R of them), their contrasts (n, R) and the genes each speaks of (n, G), 0 or 1.

    None if nothing is imposed.

    Raises
    ------
    UnknownLabelError
        If something is assumed of a condition that the screen lacks.
    ScreenError
        If the model has no part that could obey.
    """
    if not assume:
        return None
    certain = [a for a in assume if a.probability == 1]
    rows = comparisons(screen)
    check_assumed(assume, rows)
    contrasts, genes = [], []
    for row in rows:
        if not any(a.covers(row) for a in certain):
            continue
        for weights in _contrasts(screen, row):
            contrasts.append(weights)
            carried = np.array([genotype for genotype, *_ in weights]).any(0)
            speaks = np.ones(len(screen.genes))
            targets = screen.target[carried]
            speaks[targets[targets >= 0]] = 0.0
            genes.append(speaks)
    if not contrasts:
        return None
    conditions, matrix = condition_table(contrasts)
    return conditions, matrix, torch.as_tensor(np.array(genes), dtype=torch.float32)


def uncertain_rows(
    screen: Screen, assume: Sequence[Assume]
) -> list[tuple[Comparison, float, list[Weights]]]:
    """Assumptions held with a probability between 0 and 1, and the contrasts they hold to be zero.

    What is said last of a condition counts, as in the table of assumptions. Left out is what no
    part of the model could obey: memory, and steadiness on a screen of one time.
    """
    out = []
    for row in comparisons(screen) if assume else ():
        held = [a.probability for a in assume if a.covers(row)]
        if not held or not 0 < held[-1] < 1:
            continue
        try:
            out.append((row, held[-1], _contrasts(screen, row)))
        except ScreenError:
            continue
    return out


def condition_table(contrasts: Sequence[Weights]) -> tuple[Conditions, Tensor]:
    """Conditions that contrasts speak of (C of them), and the contrasts as a matrix, (n, C)."""
    table = {key: i for i, key in enumerate(dict.fromkeys(k for w in contrasts for k in w))}
    matrix = torch.zeros(len(contrasts), len(table))
    for i, weights in enumerate(contrasts):
        for key, weight in weights.items():
            matrix[i, table[key]] = weight
    genotype, exposure, duration, time_index, perturbed_at, exposed_at = (
        torch.tensor(np.array(column), dtype=dtype)
        for column, dtype in zip(
            zip(*table, strict=True),
            (torch.float, torch.float, torch.float, torch.long, torch.float, torch.float),
            strict=True,
        )
    )
    conditions = Conditions(
        genotype.reshape(len(table), -1),
        exposure.reshape(len(table), -1),
        duration,
        time_index,
        torch.full((len(table),), -1),
        perturbed_at,
        exposed_at,
    )
    return conditions, matrix


def _contrasts(screen: Screen, row: Comparison) -> list[Weights]:
    """What has to be zero if an assumption holds, one contrast for each time it speaks of."""
    if row.assumption == "guides_agree":
        raise ScreenError(
            "guides_agree cannot be imposed: effects are those of perturbations in any case, and "
            "guides differ in strength alone; give it as a prior to assumptions(assume=)"
        )
    measured = LayoutGraph(screen).arm(row.perturbation, row.media)
    arm = [measured[t] for t in sorted(measured)]
    if row.assumption == "memory" or not len(arm):
        raise ScreenError(
            f"{row.assumption} of {row.perturbation} in medium {row.media} cannot be imposed: no "
            "cells of this screen bear on it"
        )
    keys = [_key(screen, c) for c in arm]
    if row.assumption == "silent_at_baseline":
        return [_less(key, _unedited(key)) for key in keys]
    if row.assumption == "no_response":
        return [_less(key, _unstimulated(key)) for key in keys]
    if len(screen.times) < 2:
        raise ScreenError(
            f"{row.assumption} cannot be imposed on a screen of one time: the model has no waiting"
        )
    *_, last = keys
    step = float(np.diff(screen.times)[-1])
    pairs = [((*last[:2], last[2] + step, *last[3:]), last)]
    pairs += [(last, keys[-2])] if len(keys) > 1 else []
    changes = [_less(later, earlier) for later, earlier in pairs]
    if row.assumption != "steady_vs_control":
        return changes
    return [
        {**change, _unedited(later): -1.0, _unedited(earlier): 1.0}
        for change, (later, earlier) in zip(changes, pairs, strict=True)
    ]


def _key(screen: Screen, condition: int) -> tuple:
    return (
        tuple(screen.genotype[condition].astype(float)),
        tuple(screen.exposure[condition].astype(float)),
        float(screen.duration[condition]),
        int(screen.time_index[condition]),
        float(screen.perturbed_at[condition]),
        float(screen.exposed_at[condition]),
    )


def _less(later: tuple, earlier: tuple) -> Weights:
    return {later: 1.0, earlier: -1.0}


def _unedited(key: tuple) -> tuple:
    return ((0.0,) * len(key[0]), *key[1:])


def _unstimulated(key: tuple) -> tuple:
    return (key[0], (0.0,) * len(key[1]), *key[2:])
