"""A generative model of pooled CRISPR screens with a single-cell readout.

Cells are perturbed (P), their medium is changed (M), they wait (W) and are measured in batches
(V, with batch noise eta). pyrocell fits all of it to raw counts and answers with posteriors.
"""

from __future__ import annotations

import sys
from importlib.metadata import version

from pyrocell import datasets, design, metrics, pseudotime, report, simulate
from pyrocell import plotting as pl
from pyrocell.assume import ASSUMPTIONS, Assume
from pyrocell.model import PyroCell
from pyrocell.operators import Media, Perturb, Protocol, Wait
from pyrocell.priors import Priors
from pyrocell.pseudobulk_ode import PseudobulkODE
from pyrocell.screen import Screen
from pyrocell.stored import read_backed
from pyrocell.training import TrainingConfig

__version__ = version("pyrocell")
sys.modules[f"{__name__}.pl"] = pl  # so that `from pyrocell.pl import effects` works as in scanpy

__all__ = [
    "ASSUMPTIONS",
    "Assume",
    "Media",
    "Perturb",
    "Priors",
    "Protocol",
    "PseudobulkODE",
    "PyroCell",
    "Screen",
    "TrainingConfig",
    "Wait",
    "datasets",
    "design",
    "metrics",
    "pl",
    "pseudotime",
    "read_backed",
    "report",
    "simulate",
]
