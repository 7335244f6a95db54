"""What was registered, in a few numbers: whether an AnnData has changed since."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData

from pyrocell._compat import obs_table
from pyrocell.data.guide_matrix import matrix_checksum
from pyrocell.errors import ScreenError

__all__ = ["Fingerprint"]

_SEED, _WEIGHT, _BLOCK = 0, 2**20, 2**22


class Fingerprint(NamedTuple):
    """Checksums of cells, genes, labels and counts.

    Attributes
    ----------
    shape
        Cells and genes.
    genes
        Of the names of genes.
    columns
        Of each registered column of `.obs`, by its name.
    counts
        Of a weighted sum over genes of each cell's counts, whose weights differ by gene; None for
        counts in a file, which are read when they are needed.
    matrix_key, matrix
        Entry of `.obsm` with the guides of cells, and a checksum of it; None where there is none.
    """

    shape: tuple[int, int]
    genes: int
    columns: Mapping[str, int]
    counts: int | None
    matrix_key: str | None = None
    matrix: int | None = None

    @classmethod
    def of(
        cls, adata: AnnData, matrix: Any, columns: Sequence[str], guides: str | None = None
    ) -> Fingerprint:
        """Of an AnnData as it is now; `matrix` None leaves its counts out.

        `guides` names the entry of `.obsm` with the guides of cells.
        """
        counts = None
        if matrix is not None:
            counts = zlib.crc32(_weighted_sums(matrix).tobytes())
        obs = obs_table(adata)
        found = {name: _checksum(obs[name]) for name in columns if name in obs}
        of_guides = None
        if guides is not None and guides in adata.obsm:
            of_guides = zlib.crc32(matrix_checksum(adata.obsm[guides]).tobytes())
        return cls(adata.shape, _checksum(adata.var_names), found, counts, guides, of_guides)

    def check(self, now: Fingerprint) -> None:
        """Raise ScreenError, saying what, if anything has changed since."""
        changed = [name for name, value in self.columns.items() if now.columns.get(name) != value]
        what = None
        if now.shape != self.shape:
            what = (
                f"had {self.shape[0]} cells × {self.shape[1]} genes and has "
                f"{now.shape[0]} × {now.shape[1]}"
            )
        elif now.genes != self.genes:
            what = "has other names of genes, or in another order"
        elif changed:
            what = f'has other values in the column "{changed[0]}"'
        elif now.matrix != self.matrix:
            what = f'has other guides in .obsm["{self.matrix_key}"]'
        elif self.counts is not None and now.counts != self.counts:
            what = "has other counts, or its cells in another order"
        if what is not None:
            raise ScreenError(
                f"adata {what} since setup_anndata was called; run setup_anndata again, on raw "
                "counts, when nothing is to be changed any more"
            )


def _weighted_sums(matrix: Any) -> np.ndarray:
    """(N,) sums of each cell's counts, weighted by gene: alike in whatever form counts are held.

    Weights are whole numbers so small that sums of counts are exact in whatever order.
    """
    n, n_genes = matrix.shape
    weights = np.random.default_rng(_SEED).integers(1, _WEIGHT, n_genes).astype(np.float64)
    if not isinstance(matrix, np.ndarray):
        return np.asarray(matrix @ weights, np.float64).ravel()
    step = max(1, _BLOCK // max(1, n_genes))  # numpy multiplies in double precision, in a copy
    parts = [matrix[start : start + step] @ weights for start in range(0, n, step)]
    return np.concatenate(parts).astype(np.float64, copy=False)


def _checksum(values: pd.Series | pd.Index) -> int:
    text = pd.Series(np.asarray(values.astype(str)))
    return zlib.crc32(pd.util.hash_pandas_object(text, index=False).to_numpy().tobytes())
