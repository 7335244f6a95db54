"""Raw counts: checked before anything long is done with them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from pyrocell._core.messages import did_you_mean, join_names
from pyrocell.data.backed import check_stored, check_structure, is_stored
from pyrocell.errors import CountError, UnknownLabelError, warn

__all__ = [
    "as_csr",
    "batch_totals",
    "check_counts",
    "check_sparse",
    "check_totals",
    "check_values",
    "count_matrix",
    "location",
    "warn_of_absent_genes",
]

_EXACT = 2**24  # whole numbers from which on float32 is not exact
_SAME_DEPTH = 2e-3  # relative spread of totals that no counting has
_LARGE = 500  # counts of a cell from which on their spread is judged
_CHUNK = 1 << 24  # values checked at a time, so that a large screen needs little extra memory


def count_matrix(adata: AnnData, layer: str | None, stored: bool = False) -> Any:
    """Return `.X` or a layer as it is, in a file only if `stored` allows, or raise."""
    if layer is not None and layer not in adata.layers:
        there = did_you_mean(layer, _layers(adata)) or "; adata.layers is empty"
        raise UnknownLabelError(
            f'layer="{layer}" is not in adata.layers{there}; layer=None takes adata.X'
        )
    matrix = _of(adata, layer)
    if isinstance(matrix, np.ma.MaskedArray):
        raise CountError(
            f"{location(layer)} is a masked array, and what is under the mask would be counted; "
            "fill it first: .filled(0) where nothing was seen"
        )
    if matrix is None:
        there = f"; give layer=, one of: {join_names(_layers(adata))}" if _layers(adata) else ""
        raise CountError(f"adata.X is empty{there}")
    if stored and is_stored(matrix):
        check_stored(matrix, location(layer))
    elif not (isinstance(matrix, np.ndarray) or sp.issparse(matrix)):
        kind = f"{type(matrix).__module__}.{type(matrix).__name__}"
        other = ", or leave it in its file, pyrocell.read_backed(path)" if stored else ""
        raise CountError(
            f"{location(layer)} is a {kind}; load it into memory as a numpy array or scipy sparse "
            f"matrix, for example with adata.to_memory(){other}"
        )
    return matrix


def check_sparse(matrix: Any, layer: str | None) -> None:
    """Raise CountError if a matrix in memory is sparse and its indices point outside it."""
    if isinstance(matrix, np.ndarray) or matrix.format not in ("csr", "csc"):
        return
    shape = matrix.shape if matrix.format == "csr" else matrix.shape[::-1]
    check_structure(matrix.indptr, matrix.indices, len(matrix.data), shape, location(layer))


def _of(adata: AnnData, layer: str | None) -> Any:
    return adata.X if layer is None else adata.layers[layer]


def as_csr(matrix: Any) -> sp.csr_matrix:
    """Return counts as a float32 CSR copy in canonical form."""
    counts = sp.csr_matrix(matrix, dtype=np.float32, copy=True)
    counts.sum_duplicates()
    counts.eliminate_zeros()
    return counts


def _layers(adata: AnnData) -> list[str]:
    """Names of the layers; anndata 0.13 lists `.X` among them as None."""
    return [name for name in adata.layers if name is not None]


def location(layer: str | None) -> str:
    """How errors call `.X` or a layer."""
    return "adata.X" if layer is None else f'adata.layers["{layer}"]'


def _chunks(values: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    for start in range(0, len(values), _CHUNK):
        yield start, values[start : start + _CHUNK]


def _position(matrix: Any, index: int) -> tuple[int, int]:
    """Row and column of the index-th stored value."""
    if isinstance(matrix, np.ndarray):
        return divmod(index, matrix.shape[1])
    major = int(np.searchsorted(matrix.indptr, index, side="right")) - 1
    minor = int(matrix.indices[index])
    return (minor, major) if matrix.format == "csc" else (major, minor)


def _first_bad(values: np.ndarray) -> tuple[str, int, int] | None:
    """Return what is wrong with the values, where first, and how often; None if they are counts."""
    kind = values.dtype.kind
    if kind in "ub":
        return None
    for what, wrong in (
        ("NaN or infinite", lambda v: ~np.isfinite(v)),
        ("negative", lambda v: v < 0),
        ("not whole numbers", lambda v: v != np.rint(v)),
    ):
        if kind == "i" and what != "negative":
            continue
        first, n = -1, 0
        for start, chunk in _chunks(values):
            bad = wrong(chunk)
            n_bad = int(bad.sum())
            if n_bad and first < 0:
                first = start + int(np.argmax(bad))
            n += n_bad
        if n:
            return what, first, n
    return None


def _remedy(adata: AnnData, layer: str | None) -> str:
    others = [name for name in _layers(adata) if name != layer]
    if others:
        return (
            f"name the layer that holds the raw counts in layer= (there are: {join_names(others)})"
        )
    if adata.raw is not None:
        return "adata.raw may hold them: adata.raw.to_adata()"
    return "start again from the output of the counting pipeline"


def check_values(adata: AnnData, matrix: Any, layer: str | None, first_cell: int = 0) -> None:
    """Raise CountError unless every value of these cells is a whole number ≥ 0.

    `first_cell` is the position in `adata` of the first row of `matrix`.
    """
    stored: Any = matrix
    if isinstance(matrix, np.ndarray):
        values = matrix.reshape(-1)
    else:
        stored = matrix if matrix.format in ("csr", "csc") else matrix.tocsr()
        values = stored.data
    if values.dtype.kind not in "uibf":
        raise CountError(f"{location(layer)} holds {values.dtype} values; raw counts are numbers")
    largest = float(values.max()) if len(values) else 0.0
    if np.isfinite(largest) and largest >= _EXACT:
        raise CountError(
            f"{location(layer)} has values up to {largest:.3g}, which are not exact in single "
            "precision and no numbers of molecules: pyrocell needs raw counts of molecules in "
            f"cells: {_remedy(adata, layer)}"
        )
    bad = _first_bad(values)
    if bad is None:
        return
    what, first, n = bad
    cell, gene = _position(stored, first)
    part = "" if matrix.shape[0] == adata.n_obs else f" among {matrix.shape[0]} cells of the file"
    raise CountError(
        f"{location(layer)} has {n} values that are {what}{part}, the first {values[first]:g} in "
        f'cell "{adata.obs_names[first_cell + cell]}", gene "{adata.var_names[gene]}"; pyrocell '
        f"needs raw counts, not normalised or log-transformed values: {_remedy(adata, layer)}"
    )


def check_counts(
    adata: AnnData, layer: str | None, *, has_size_factor: bool, warn_of_genes: bool = True
) -> None:
    """Raise or warn about counts that cannot be used.

    Parameters
    ----------
    adata
        Cells × genes.
    layer
        Layer with the counts, None for `.X`.
    has_size_factor
        Whether depth is known from elsewhere; a cell without counts then tells something.
    warn_of_genes
        Whether a gene without counts is worth a warning; not for a few cells of a known screen.

    Raises
    ------
    CountError
        If values are NaN, negative or not whole, or a cell has no counts and no size factor.

    Warns
    -----
    ScreenWarning
        If a gene has no counts in any cell, or a cell none in these genes.
    """
    matrix = count_matrix(adata, layer)
    check_sparse(matrix, layer)
    check_values(adata, matrix, layer)
    of_cells, of_genes = (np.asarray(matrix.sum(axis=axis)).ravel() for axis in (1, 0))
    if warn_of_genes:
        _warn_of_no_counts(matrix, of_cells, of_genes, location(layer))
    check_totals(
        adata,
        layer,
        of_cells,
        of_genes,
        has_size_factor=has_size_factor,
        warn_of_genes=warn_of_genes,
    )


def _warn_of_no_counts(matrix: Any, of_cells: np.ndarray, of_genes: np.ndarray, what: str) -> None:
    """Warn where whole numbers are probably not counts: rounded, or cut off at 1."""
    mean = float(of_cells.mean())
    if len(of_cells) >= 20 and mean >= _LARGE and of_cells.std() < _SAME_DEPTH * mean:
        warn(
            f"all cells have about the same total in {what} ({mean:,.0f}), as after normalisation "
            "to a fixed depth and rounding; pyrocell needs raw counts"
        )
    several = float(len(of_cells) * np.square(of_genes / len(of_cells)).sum() / 2)
    if several > 30 and matrix.max() == 1:
        warn(
            f"{what} holds 0 and 1 alone, where about {several:,.0f} values of 2 or more are to be "
            "expected at these totals: it was made binary, or is no matrix of counts"
        )


def check_totals(
    adata: AnnData,
    layer: str | None,
    of_cells: np.ndarray,
    of_genes: np.ndarray,
    *,
    has_size_factor: bool,
    warn_of_genes: bool,
) -> None:
    """The part of `check_counts` that sums over genes (N,) and over cells (G,) answer."""
    empty = np.flatnonzero(of_cells == 0)
    if len(empty):
        which = (
            f"{len(empty)} of {adata.n_obs} cells have no counts in {location(layer)} (first: "
            f"{join_names(adata.obs_names[empty[:3]])})"
        )
        if not has_size_factor:
            raise CountError(
                f"{which}, so their depth is unknown; remove them with sc.pp.filter_cells(adata, "
                "min_counts=1), or give their depth over all genes in size_factor_key="
            )
        warn(f"{which}; they only tell that counts are low")
    if not warn_of_genes:
        return
    silent = np.flatnonzero(of_genes == 0)
    if len(silent):
        warn(
            f"{len(silent)} of {adata.n_vars} genes have no counts in any cell "
            f"({join_names(adata.var_names[silent])}): what is said about them is the prior; "
            "remove them with sc.pp.filter_genes(adata, min_counts=1)"
        )


def batch_totals(counts: Any, cell_batch: np.ndarray, n_batches: int) -> np.ndarray:
    """(B, G) sums over the cells of each batch, of counts in memory."""
    n = len(cell_batch)
    member = sp.csr_array((np.ones(n), (cell_batch, np.arange(n))), shape=(n_batches, n))
    total = member @ counts
    return total.toarray() if sp.issparse(total) else np.asarray(total)


def warn_of_absent_genes(total: np.ndarray, batches: tuple[str, ...], genes: pd.Index) -> None:
    """Warn of genes that have counts in the screen, and none in one of its batches.

    Parameters
    ----------
    total
        (B, G) sums of counts over the cells of each of the `batches`.
    """
    absent = (total == 0) & (total.sum(axis=0) > 0)
    if len(batches) < 2 or not absent.any():
        return
    found = [
        f"{int(row.sum())} in {batch} ({join_names(genes[row], 3)})"
        for batch, row in zip(batches, absent, strict=True)
        if row.any()
    ]
    warn(
        f"{int(absent.any(axis=0).sum())} genes have no counts in one batch or more: "
        f"{join_names(found)}; how those batches distort those genes is bounded from one side "
        "only, and intervals there are mostly the prior's"
    )
