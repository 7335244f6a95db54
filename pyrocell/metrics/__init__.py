"""How good forecasts are: against what happened, against the truth, against populations of cells.

`forecasts`: probabilities and intervals. `populations`: predicted cells against those observed.
`distances`: how far two populations of cells are apart, as differentiable functions of tensors.
"""

from __future__ import annotations

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

__all__ = [
    "Coverage",
    "auroc",
    "brier",
    "coverage",
    "distribution_distance",
    "energy_distance",
    "expected_calibration_error",
    "matched_distance",
    "mmd",
    "moment_distance",
    "reliability_table",
    "sinkhorn_divergence",
]
