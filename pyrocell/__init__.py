"""A generative model of pooled CRISPR screens with a single-cell readout.

Cells are perturbed (P), their medium is changed (M), they wait (W) and are measured in batches
(V, with batch noise eta). pyrocell fits all of it to raw counts and answers with posteriors.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.metadata import version
from types import ModuleType

from pyrocell import arrayed, datasets, design, metrics, pseudotime, report, simulate, transfer
from pyrocell import plotting as pl
from pyrocell._core import aliases
from pyrocell.assumptions.spec import ASSUMPTIONS, Assume
from pyrocell.data.backed import read_backed
from pyrocell.diagnostics import calibration
from pyrocell.diagnostics import nuts_check as second_opinion
from pyrocell.generative.population_objective import DistributionObjective
from pyrocell.model import PyroCell
from pyrocell.operators import Media, Perturb, Protocol, Wait
from pyrocell.priors import Priors
from pyrocell.proof_of_principle.pseudobulk_ode import PseudobulkODE
from pyrocell.screen import Screen
from pyrocell.training import TrainingConfig
from pyrocell.training.checkpoints import read_checkpoint

__version__ = version("pyrocell")
# `from pyrocell.pl import effects` works as in scanpy, and so for the others
_NAMED = {"pl": pl, "calibration": calibration, "second_opinion": second_opinion}
sys.modules.update({f"{__name__}.{name}": module for name, module in _NAMED.items()})
aliases.install()


def __getattr__(name: str) -> ModuleType:
    """Modules under the names of earlier versions."""
    if f"{__name__}.{name}" in aliases.MOVED:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "ASSUMPTIONS",
    "Assume",
    "DistributionObjective",
    "Media",
    "Perturb",
    "Priors",
    "Protocol",
    "PseudobulkODE",
    "PyroCell",
    "Screen",
    "TrainingConfig",
    "Wait",
    "arrayed",
    "calibration",
    "datasets",
    "design",
    "metrics",
    "pl",
    "pseudotime",
    "read_backed",
    "read_checkpoint",
    "report",
    "second_opinion",
    "simulate",
    "transfer",
]
