"""Prior knowledge of genes as kernels, and what it says of effects; needs no fitted model."""

from __future__ import annotations

from pyrocell.knowledge.effects import EffectRegression, Unseen, damped
from pyrocell.knowledge.evidence import Evidence, permutation_evidence
from pyrocell.knowledge.gene_sets import read_gmt
from pyrocell.knowledge.sources import GeneKernels, Knowledge

__all__ = [
    "EffectRegression",
    "Evidence",
    "GeneKernels",
    "Knowledge",
    "Unseen",
    "damped",
    "permutation_evidence",
    "read_gmt",
]
