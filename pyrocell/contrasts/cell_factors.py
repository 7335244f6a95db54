"""What errors of levels genes share, because cells of a condition are a sample: by factor analysis.

The error of a condition's level is the mean over its cells of

    e_ig = w_i (x_ig − ℓ_i r_g) / (mean of w ℓ · r_g),

with depths ℓ, the rate r of the condition and the weights w of `levels`. Cells that are further
along a course are so in all genes at once, so a sample of them is. The factors are those of all
cells of a time: at another time other genes are on the move.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
from sklearn.decomposition import FactorAnalysis

from pyrocell.contrasts.levels import DEEPEST

__all__ = ["cell_errors", "cell_factors"]

_LEAST_CELLS = 5  # of a group whose mean is taken out
_CELLS = 4_000  # at most


def cell_factors(
    counts: sp.csr_matrix,
    size: np.ndarray,
    group: np.ndarray,
    n_factors: int,
    seed: int,
) -> np.ndarray:
    """Axes (d, G) of the errors of single cells about the levels of their groups.

    Parameters
    ----------
    counts
        (n, G) of the cells of one time.
    size
        (n,) size factors.
    group
        (n,) condition and batch of each.
    n_factors
        d; zeros where there are too few cells for as many.
    seed
        Of the cells taken where there are very many.
    """
    n_genes = counts.shape[1]  # pyright: ignore[reportOptionalSubscript]
    error = cell_errors(counts, size, group, np.arange(n_genes), _CELLS, seed, 5 * n_factors)
    if not len(error):
        return np.zeros((n_factors, n_genes))
    scale = np.maximum(error.std(0), 1e-9)
    found = FactorAnalysis(min(n_factors, n_genes), max_iter=200, tol=1e-2, random_state=0)
    axes = found.fit(error / scale).components_ * scale
    return np.concatenate([axes, np.zeros((n_factors - len(axes), n_genes))])


def cell_errors(
    counts: Any,
    size: np.ndarray,
    group: np.ndarray,
    genes: np.ndarray,
    most: int,
    seed: int = 0,
    fewest: int = 2,
) -> np.ndarray:
    """Errors e of single cells about the levels of their groups, scaled for the means taken out.

    Parameters
    ----------
    counts
        (n, G) CSR, in memory or stored.
    size, group
        (n,) size factors; condition and batch.
    genes
        Columns that are asked for.
    most, seed
        Cells taken at most, and which.
    fewest
        Degrees of freedom without which nothing is said.

    Returns
    -------
    (cells, genes), of no cells where there are too few.
    """
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.permutation(len(size))[:most])
    _, code, number = np.unique(group[rows], return_inverse=True, return_counts=True)
    kept = number[code] >= _LEAST_CELLS
    rows, code = rows[kept], np.unique(code[kept], return_inverse=True)[1]
    free = len(rows) - (code.max(initial=-1) + 1)
    if free < fewest:
        return np.zeros((0, len(genes)))
    x, depth = counts[rows][:, genes].toarray().astype(float), size[rows].astype(float)
    weight = np.minimum(1.0, DEEPEST * np.median(size) / depth)
    member = sp.csr_array((np.ones(len(rows)), (code, np.arange(len(rows)))))
    whole = member @ (weight * depth)
    rate = (member @ (weight[:, None] * x) + 0.5) / whole[:, None]
    usual = whole / np.bincount(code)
    error = weight[:, None] * (x - depth[:, None] * rate[code])
    error /= usual[code, None] * rate[code]
    return error * np.sqrt(len(rows) / free)
