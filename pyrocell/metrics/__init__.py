"""How good forecasts are: against what happened, against the truth, against populations of cells.

`forecasts`: probabilities and intervals. `populations`: predicted cells against those observed.
`distances`: how far two populations of cells are apart, as differentiable functions of tensors.
`deltas`: a predicted change of expression against the one observed. What trains or asks a model
lives above it, in `pyrocell.evaluation`, and is loaded from here when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from pyrocell.metrics.deltas import crps, delta_scores, discrimination, weights_of_evidence
from pyrocell.metrics.distances import (
    energy_distance,
    matched_distance,
    mmd,
    moment_distance,
    sinkhorn_divergence,
)
from pyrocell.metrics.forecasts import (
    Coverage,
    auroc,
    brier,
    coverage,
    expected_calibration_error,
    reliability_table,
)
from pyrocell.metrics.populations import distribution_distance

# Above the model: imports point down, so these are found by name, not imported.
_ABOVE = (
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
)

__all__ = sorted(
    (
        "Coverage",
        "auroc",
        "brier",
        "coverage",
        "crps",
        "delta_scores",
        "discrimination",
        "distribution_distance",
        "energy_distance",
        "expected_calibration_error",
        "matched_distance",
        "mmd",
        "moment_distance",
        "reliability_table",
        "sinkhorn_divergence",
        "weights_of_evidence",
        *_ABOVE,
    )
)


def __getattr__(name: str) -> Any:
    """Load what lives above the model when it is first used."""
    if name not in _ABOVE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found = getattr(import_module("pyrocell.evaluation"), name)
    return found
