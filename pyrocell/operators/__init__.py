"""P, M and W, and their composition: pure functions of tensors."""

from __future__ import annotations

from pyrocell.operators.arms import respond_in_order
from pyrocell.operators.dynamics.node import Production, bounded_weight
from pyrocell.operators.medium import expose, gain_limit
from pyrocell.operators.perturbation import on_target_shift, perturb
from pyrocell.operators.protocol import Media, Perturb, Protocol, Wait, run
from pyrocell.operators.response import (
    ResponseParameters,
    bounded_rate,
    condition_rate,
    counterfactual,
    decay_rate,
    forward,
    inverse,
    let_wait,
    respond,
)
from pyrocell.operators.waiting import (
    onset_curve,
    reference_curve,
    relative_curve,
    relative_onset,
    relax,
    unwait,
    wait,
)

__all__ = [
    "Media",
    "Perturb",
    "Production",
    "Protocol",
    "ResponseParameters",
    "Wait",
    "bounded_rate",
    "bounded_weight",
    "condition_rate",
    "counterfactual",
    "decay_rate",
    "expose",
    "forward",
    "gain_limit",
    "inverse",
    "let_wait",
    "on_target_shift",
    "onset_curve",
    "perturb",
    "reference_curve",
    "relative_curve",
    "relative_onset",
    "relax",
    "respond",
    "respond_in_order",
    "run",
    "unwait",
    "wait",
]
