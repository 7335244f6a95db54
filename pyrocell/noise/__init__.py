"""Batch noise η: contrasts of batches that sum to zero, and its dependence on content (eq. 19)."""

from pyrocell.noise.contrasts import (
    batch_fractions,
    centre,
    content_effect,
    content_fractions,
    contrast_matrix,
    sum_to_zero,
)

__all__ = [
    "batch_fractions",
    "centre",
    "content_effect",
    "content_fractions",
    "contrast_matrix",
    "sum_to_zero",
]
