"""Evaluation by conditions that were held out, with anchors beside every score.

What of it is public is found under `pyrocell.metrics`, where scores are looked for; it lives here,
above the model, because it trains models and asks them.
"""

from __future__ import annotations

from pyrocell.evaluation.external import external_scores
from pyrocell.evaluation.held_out import Evaluation, evaluate
from pyrocell.evaluation.network import network_generalisation
from pyrocell.evaluation.pairs import auroc_by_gene, predict_pairs
from pyrocell.evaluation.perturbqa import perturbqa, perturbqa_sets
from pyrocell.evaluation.splits import splits

__all__ = [
    "Evaluation",
    "auroc_by_gene",
    "evaluate",
    "external_scores",
    "network_generalisation",
    "perturbqa",
    "perturbqa_sets",
    "predict_pairs",
    "splits",
]
