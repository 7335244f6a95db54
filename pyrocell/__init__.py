"""A generative model of pooled CRISPR screens with a single-cell readout.

Cells are perturbed (P), their medium is changed (M), they wait (W) and are measured in batches
(V, with batch noise eta). pyrocell fits all of it to raw counts and answers with posteriors.

Names are loaded when they are first used: PyTorch and scvi-tools take seconds.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

from pyrocell._core import aliases

# What is public, and where it lives; __init__.pyi says the same to type checkers.
_HOMES = {
    "ASSUMPTIONS": "pyrocell.assumptions.spec",
    "Assume": "pyrocell.assumptions.spec",
    "DistributionObjective": "pyrocell.generative.population_objective",
    "Knowledge": "pyrocell.knowledge",
    "Media": "pyrocell.operators",
    "Perturb": "pyrocell.operators",
    "Priors": "pyrocell.priors",
    "Protocol": "pyrocell.operators",
    "PseudobulkODE": "pyrocell.proof_of_principle.pseudobulk_ode",
    "PyroCell": "pyrocell.model",
    "Screen": "pyrocell.screen",
    "TrainingConfig": "pyrocell.training",
    "Wait": "pyrocell.operators",
    "read_backed": "pyrocell.data.backed",
    "read_checkpoint": "pyrocell.training.checkpoints",
    "subtypes": "pyrocell.diagnostics.subtypes",
}
_ROOMS = (
    "arrayed",
    "datasets",
    "design",
    "metrics",
    "preprocess",
    "pseudotime",
    "report",
    "simulate",
    "transfer",
)

__version__ = version("pyrocell")
__all__ = sorted([*_HOMES, *_ROOMS, *aliases.NAMED])
aliases.install()


def __getattr__(name: str) -> Any:
    """Load a name when it is first used; modules of earlier versions are found, too."""
    full = f"{__name__}.{name}"
    if name in _HOMES:
        found = getattr(import_module(_HOMES[name]), name)
    elif not name.startswith("__") and find_spec(full) is not None:
        found = import_module(full)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if full not in aliases.MOVED:  # those warn each time
        globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
