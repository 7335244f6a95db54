"""From what Cell Ranger writes to a screen that can be registered: guides, cells, genes."""

from __future__ import annotations

from pyrocell.preprocess.filters import choose_genes, filter_cells, filter_genes
from pyrocell.preprocess.guides import GuideCalls, assign_guides
from pyrocell.preprocess.labels import guide_matrix, guide_targets, label_cells
from pyrocell.preprocess.reading import read_10x
from pyrocell.preprocess.steps import Step, steps

__all__ = [
    "GuideCalls",
    "Step",
    "assign_guides",
    "choose_genes",
    "filter_cells",
    "filter_genes",
    "guide_matrix",
    "guide_targets",
    "label_cells",
    "read_10x",
    "steps",
]
