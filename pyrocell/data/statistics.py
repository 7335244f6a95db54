"""What is needed of all counts before training: sums, from one pass in blocks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp

from pyrocell.data.backed import count_blocks
from pyrocell.screen.feature_views import FeatureViews
from pyrocell.screen.screen import Screen

__all__ = ["CountStatistics", "add_by_group", "count_sums"]

_SAMPLED = 5000


@dataclass(frozen=True)
class CountStatistics:
    """Sums over the cells of a screen; those of counts are exact, whatever the blocks.

    Attributes
    ----------
    log_size
        (N,) float32 natural logarithm of depth.
    total
        (N,) counts of each cell.
    condition, batch
        (C, G) and (B, G) counts of each condition and batch; the first is sparse (CSR) where sets
        of perturbations are many, and conditions nearly as many as cells.
    scaled, scaled_squares
        (G,) sums of counts over depth, and of their squares.
    rows, sample
        (n,) positions of some cells, in order, and their counts, (n, G) CSR.
    views, depths
        Of features that several views measure: which of them, and (N, V) log depths of cells in
        each, −inf where it was not measured.
    """

    log_size: np.ndarray
    total: np.ndarray
    condition: np.ndarray | sp.csr_array
    batch: np.ndarray
    scaled: np.ndarray
    scaled_squares: np.ndarray
    rows: np.ndarray
    sample: sp.csr_matrix
    views: FeatureViews | None = None
    depths: np.ndarray | None = None

    @property
    def parts(self) -> list[tuple[slice, np.ndarray]]:
        """Features of each view, and depth of cells there, (N,), 0 where it was not measured."""
        if self.views is None or self.depths is None:
            return [(slice(None), np.exp(self.log_size).astype(np.float64))]
        depths = np.exp(self.depths.astype(np.float64))
        return [(part, depths[:, v]) for v, part in enumerate(self.views.slices)]


def count_sums(
    counts: Any,
    screen: Screen,
    log_size: np.ndarray | None = None,
    look: Callable[[sp.csr_matrix, int], None] | None = None,
    views: tuple[FeatureViews, np.ndarray] | None = None,
) -> CountStatistics:
    """Read all counts once.

    Parameters
    ----------
    counts
        (N, G) CSR, in memory or stored.
    screen
        Conditions and batches of the cells.
    log_size
        (N,) log size factors; default: of the cells' own totals.
    look
        Called with every block and the position of its first cell, to raise if it is not counts.
    views
        Views of the features and (N, V) log depths of cells in each, where there are several.
    """
    n, n_genes = counts.shape
    total, given = np.zeros(n), log_size
    log_size = np.zeros(n, np.float32) if given is None else np.asarray(given, np.float32)
    shape = (len(screen.conditions), n_genes)
    condition = sp.csr_array(shape) if screen.many_sets else np.zeros(shape)
    batch = np.zeros((len(screen.batches), n_genes))
    scaled, squares = np.zeros((2, n_genes))
    rows = np.sort(np.random.default_rng(0).permutation(n)[:_SAMPLED])
    sample = []
    for part, block in count_blocks(counts):
        if look is not None:
            look(block, part.start)
        total[part] = np.asarray(block.sum(axis=1, dtype=np.float64)).ravel()
        if given is None:  # an empty cell is refused once all of them are known
            log_size[part] = np.log(np.maximum(total[part], 1.0))
        if isinstance(condition, np.ndarray):
            add_by_group(condition, screen.cell_condition[part], block)
        else:
            condition = condition + _summed(screen.cell_condition[part], block, shape[0])
        add_by_group(batch, screen.cell_batch[part], block)
        relative = _relative(block, log_size[part], views, part)
        scaled += np.asarray(relative.sum(axis=0)).ravel()
        squares += np.asarray(relative.multiply(relative).sum(axis=0)).ravel()
        sample.append(block[rows[(rows >= part.start) & (rows < part.stop)] - part.start])
    sampled = sp.csr_matrix(sp.vstack(sample, format="csr"))
    features, depths = (None, None) if views is None else views
    sums = log_size, total, condition, batch, scaled, squares, rows, sampled
    return CountStatistics(*sums, features, depths)


def _relative(
    block: sp.csr_matrix,
    log_size: np.ndarray,
    views: tuple[FeatureViews, np.ndarray] | None,
    rows: slice,
) -> sp.csr_matrix:
    """Counts over the depth of their cell, in their view where there are several."""
    if views is None:
        return sp.csr_matrix(sp.diags(1 / np.exp(log_size).astype(np.float64)) @ block)
    features, depths = views
    out = sp.coo_matrix(block, dtype=np.float64)
    log_depth = depths[rows].astype(np.float64)
    view = np.repeat(np.arange(len(features)), features.sizes)[out.col]
    out.data = out.data / np.exp(log_depth[out.row, view])
    return sp.csr_matrix(out)


def add_by_group(out: np.ndarray, group: np.ndarray, values: sp.csr_matrix) -> None:
    """Add the rows of values (n, G) to those rows of `out` (M, G) that their groups (n,) say."""
    part = _summed(group, values, len(out)).tocoo()
    out[part.row, part.col] += part.data


def _summed(group: np.ndarray, values: sp.csr_matrix, n_groups: int) -> sp.csr_array:
    """Sums of the rows of values (n, G) by their groups (n,), (n_groups, G)."""
    n = len(group)
    member = sp.csr_array((np.ones(n), (group, np.arange(n))), shape=(n_groups, n))
    return sp.csr_array(member @ sp.csr_array(values))
