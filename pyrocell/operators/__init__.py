"""P, M and W, and their composition: pure functions of tensors."""

from __future__ import annotations

from pyrocell.operators.medium import expose, gain_limit
from pyrocell.operators.perturbation import on_target_shift, perturb
from pyrocell.operators.protocol import (
    Media,
    Perturb,
    Protocol,
    Wait,
    run,
)
from pyrocell.operators.response import (
    ResponseParameters,
    condition_rate,
    counterfactual,
    forward,
    inverse,
    respond,
)
from pyrocell.operators.waiting import (
    reference_curve,
    relative_curve,
    relax,
    rewind,
    unwait,
    wait,
)

__all__ = [
    "Media",
    "Perturb",
    "Protocol",
    "ResponseParameters",
    "Wait",
    "condition_rate",
    "counterfactual",
    "expose",
    "forward",
    "gain_limit",
    "inverse",
    "on_target_shift",
    "perturb",
    "reference_curve",
    "relative_curve",
    "relax",
    "respond",
    "rewind",
    "run",
    "unwait",
    "wait",
]
