"""Effects of targets from cells with several guides each, without a prior on effects.

Each effect is what the counts of the cells that carry its target say, all others given. Their error
is carried along: variances are multiplied by how much larger those of a regression on all drivers
are than those of each alone, which the design says and no gene.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from pyrocell._core.threading import parallel_for
from pyrocell.posterior.gene_level.additive_kernels import fit_genes
from pyrocell.posterior.gene_level.additive_sampler import AdditiveCounts
from pyrocell.posterior.gene_level.overdispersion import (
    Overdispersion,
    overdispersion_of_cells,
    pooled_overdispersion,
)

__all__ = ["AdditiveFit", "fit_without_prior"]

_PASSES, _AT_ONCE = 12, 64
_NUMBERS = 2**24
_RIDGE = 1e-6  # of the design, in units of its diagonal


@dataclass(frozen=True)
class AdditiveFit:
    """Counts of the cells that carry each driver, and what is expected of them without it.

    Attributes
    ----------
    total, depth
        (n, G) weighted counts T, whose variance is their mean, and the mean D at no effect.
    inflation
        (n,) variance of an effect when all are estimated, over that when the others are known.
    """

    total: np.ndarray
    depth: np.ndarray
    inflation: np.ndarray


def fit_without_prior(data: AdditiveCounts) -> AdditiveFit:
    """Fit all genes; overdispersion is learned at the levels of batches, then at the effects."""
    n, n_genes = data.shape
    size = np.exp(data.log_size)
    rate = np.maximum(np.asarray(data.counts.sum(0)).ravel(), 0.5) / size.sum()
    level = np.tile(np.log(rate), (data.n_batches, 1))
    effect, total, depth = (np.zeros((n, n_genes)) for _ in range(3))
    by_driver = sp.csc_array(data.carried)
    chosen = np.sort(np.random.default_rng(0).permutation(len(size)))
    chosen = np.sort(chosen[: max(1000, _NUMBERS // n_genes)])
    counts = sp.csc_matrix(sp.csr_array(data.counts)[chosen])
    log_size, batch = data.log_size[chosen], data.batch[chosen]
    edges = np.linspace(0, n_genes, max(1, -(-n_genes // _AT_ONCE)) + 1).astype(int)

    def fit(noise: Overdispersion) -> None:
        arguments = (
            _PASSES, data.log_size, data.batch, by_driver.indptr, by_driver.indices,
            data.carried.indptr, data.carried.indices, data.counts.indptr, data.counts.indices,
            data.counts.data, level, effect, total, depth, noise.inverse, noise.factor,
        )  # fmt: skip
        parallel_for(lambda i: fit_genes(edges[i], edges[i + 1], *arguments), len(edges) - 1)

    fit(pooled_overdispersion(counts, log_size, batch, level))
    known = effect.clip(-3.0, 3.0)
    fit(overdispersion_of_cells(counts, log_size, level[batch] + data.carried[chosen] @ known))
    return AdditiveFit(total, depth, _inflation(data, size))


def _inflation(data: AdditiveCounts, size: np.ndarray) -> np.ndarray:
    """(n,) diagonal of the inverse of the design's moments, times that of the moments."""
    n_cells = len(size)
    batch = sp.csr_array(
        (np.ones(n_cells), (np.arange(n_cells), data.batch)), shape=(n_cells, data.n_batches)
    )
    design = sp.csr_array(sp.hstack([data.carried.astype(float), batch], format="csr"))
    weight = np.minimum(size, 2 * np.median(size)) / np.median(size)
    moments = (design.T @ sp.diags_array(weight) @ design).toarray()
    own = np.diag(moments).copy()
    present = own > 0
    moments[np.diag_indices_from(moments)] += _RIDGE * own + 1e-9
    inverse = np.diag(np.linalg.inv(moments))
    out = np.where(present, own * inverse, 1.0)
    return np.maximum(out, 1.0)[: data.shape[0]]
