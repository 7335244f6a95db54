"""How good forecasts are: against what happened, against the truth, against populations of cells.

`forecasts`: probabilities and intervals. `populations`: predicted cells against those observed.
"""

from __future__ import annotations

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
    "expected_calibration_error",
    "reliability_table",
]
