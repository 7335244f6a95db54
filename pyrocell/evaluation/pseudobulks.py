"""Levels and changes of conditions from their cells, and how surely genes differ; no model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp
from scipy.stats import false_discovery_control, ttest_ind_from_stats

if TYPE_CHECKING:
    from pyrocell.screen.screen import Screen

__all__ = ["Pseudobulks"]

_CHANGED = 0.05  # false discovery rate below which a gene counts as changed


@dataclass(frozen=True, eq=False)
class Pseudobulks:
    """Cells of a screen, summed as asked.

    The level of some cells is log1p of their mean counts per gene at one depth.

    Attributes
    ----------
    screen
        Whose conditions and batches the cells have.
    counts
        (N, G) CSR.
    size
        (N,) size factors.
    depth
        Size factor at which levels are stated.
    """

    screen: Screen
    counts: sp.csr_matrix
    size: np.ndarray
    depth: float

    def cells(self, conditions: np.ndarray) -> np.ndarray:
        """Positions of the cells of some conditions, given as (C,) bool."""
        return np.flatnonzero(conditions[self.screen.cell_condition])

    def batches(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Batches of some cells, and their numbers of cells."""
        return np.unique(self.screen.cell_batch[rows], return_counts=True)

    def rate(self, rows: np.ndarray) -> np.ndarray:
        """(G,) mean counts at the depth."""
        total = np.asarray(self.counts[rows].sum(0), float).ravel()
        return self.depth * total / self.size[rows].sum()

    def level(self, rows: np.ndarray) -> np.ndarray:
        """(G,) log1p of mean counts."""
        return np.log1p(self.rate(rows))

    def matched(self, pool: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Level of a pool of cells, weighted as the batches of `rows` are, (G,).

        Batch noise is then in both alike. Where the pool has no cell of a batch, its mean over
        batches stands in.
        """
        batch = self.screen.cell_batch
        weight = np.bincount(batch[rows], self.size[rows], len(self.screen.batches))
        total, everywhere = 0.0, None
        for b in np.flatnonzero(weight):
            mine = pool[batch[pool] == b]
            if len(mine):
                rate = self.rate(mine)
            else:
                everywhere = self.rate(pool) if everywhere is None else everywhere
                rate = everywhere
            total = total + weight[b] / weight.sum() * rate
        return np.log1p(total)

    def delta(self, rows: np.ndarray, controls: np.ndarray) -> np.ndarray:
        """(G,) level of some cells less that of controls of their batches."""
        return self.level(rows) - self.matched(controls, rows)

    # ------------------------------------------------------------------ tests
    @cached_property
    def _logged(self) -> sp.csr_matrix:
        """log1p of counts at the depth, cell by cell."""
        out = sp.csr_matrix(self.counts, dtype=np.float64, copy=True)
        out.data *= np.repeat(self.depth / self.size, np.diff(out.indptr))
        np.log1p(out.data, out=out.data)
        return out

    def _moments(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
        values = self._logged[rows]
        mean = np.asarray(values.mean(0)).ravel()
        square = np.asarray(values.multiply(values).mean(0)).ravel()
        n = len(rows)
        return mean, np.sqrt(np.maximum(square - mean**2, 0) * n / max(n - 1, 1)), n

    def _beside(self, pool: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Cells of the pool in the batches of `rows`, if there are two or more; else all."""
        same = pool[np.isin(self.screen.cell_batch[pool], self.screen.cell_batch[rows])]
        return same if len(same) > 1 else pool

    def welch(self, rows: np.ndarray, pool: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Welch's t and p of every gene, (G,) each, between some cells and a pool of others."""
        groups = self._moments(rows), self._moments(self._beside(pool, rows))
        with np.errstate(divide="ignore", invalid="ignore"):
            t, p = ttest_ind_from_stats(*groups[0], *groups[1], equal_var=False)
        same = ~np.isfinite(t)
        return np.where(same, 0.0, t), np.where(same | ~np.isfinite(p), 1.0, p)

    def changed(self, rows: np.ndarray, controls: np.ndarray, among: np.ndarray) -> np.ndarray:
        """(G,) bool: genes that differ from controls at 5% false discoveries `among` some."""
        _, p = self.welch(rows, controls)
        out = np.zeros(len(p), bool)
        out[among] = false_discovery_control(p[among]) < _CHANGED
        return out
