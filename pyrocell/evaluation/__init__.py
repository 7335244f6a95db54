"""Evaluation by conditions that were held out, with anchors beside every score.

What of it is public is found under `pyrocell.metrics`, where scores are looked for; it lives here,
above the model, because it trains models and asks them.
"""

from __future__ import annotations

from pyrocell.evaluation.embeddings import embedding_score, expression_anchors
from pyrocell.evaluation.external import external_scores
from pyrocell.evaluation.held_out import Evaluation, evaluate
from pyrocell.evaluation.network import network_generalisation
from pyrocell.evaluation.pairs import auroc_by_gene, predict_pairs
from pyrocell.evaluation.perturbqa import perturbqa, perturbqa_sets
from pyrocell.evaluation.splits import splits
from pyrocell.evaluation.treatment_effects import average_treatment_effect

__all__ = [
    "Evaluation",
    "auroc_by_gene",
    "average_treatment_effect",
    "embedding_score",
    "evaluate",
    "expression_anchors",
    "external_scores",
    "network_generalisation",
    "perturbqa",
    "perturbqa_sets",
    "predict_pairs",
    "splits",
]
