"""Counts on disk: rows read when asked for, in blocks, one ahead of what is being worked on."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar, cast

import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
import zarr
from anndata import AnnData
from anndata.abc import CSCDataset, CSRDataset
from anndata.io import read_elem, sparse_dataset

from pyrocell._core.messages import join_names
from pyrocell.data.hdf5_probe import check_hdf5
from pyrocell.errors import CountError, PyrocellError, ScreenError, UnknownLabelError, warn

__all__ = [
    "BackedCounts",
    "BackedPart",
    "CachedRows",
    "block_rows",
    "check_chunks",
    "check_stored",
    "check_structure",
    "count_blocks",
    "gene_totals",
    "is_stored",
    "prefetch",
    "read_backed",
]

_VALUES = 1 << 24  # cells times genes of a block
_UNREADABLE = (OSError, RuntimeError, ValueError, KeyError, TypeError)  # of HDF5 and zarr
_OF_VIEWS = (("uns", "pyrocell_views"), ("obsm", "pyrocell_seen"))  # see `joined`
_GAP = 256  # rows between two wanted ones that are read rather than jumped over

Item = TypeVar("Item")
Read = TypeVar("Read")


def is_stored(matrix: Any) -> bool:
    """Whether a matrix is a dataset in a file, of a kind that `BackedCounts` reads or refuses."""
    return isinstance(matrix, CSRDataset | CSCDataset | h5py.Dataset) or _is_zarr_array(matrix)


def _is_zarr_array(matrix: Any) -> bool:
    return isinstance(matrix, zarr.Array) and len(matrix.shape) == 2


def check_stored(matrix: Any, where: str) -> None:
    """Raise CountError if rows of a dataset cannot be read, or are not numbers."""
    if isinstance(matrix, CSCDataset):
        raise CountError(
            f"{where} is stored by genes (CSC), so no cell can be read without reading all; write "
            "it as CSR, for example adata = adata.to_memory(); adata.X = adata.X.tocsr(); "
            "adata.write_h5ad(path)"
        )
    if matrix.dtype.kind not in "uibf":
        raise CountError(f"{where} holds {matrix.dtype} values; raw counts are numbers")


def check_structure(
    indptr: np.ndarray, indices: Any, n_values: int, shape: tuple[int, int], where: str
) -> None:
    """Raise CountError unless compressed rows, or columns, describe a matrix of their shape.

    Products of scipy trust them and read wherever they point.

    Parameters
    ----------
    indptr
        (rows + 1,) where the values of each row begin and end.
    indices
        Columns of the values. Those in a file, which are no array, are only counted here; each
        read of them is checked by `check_indices`.
    n_values
        How many values there are.
    shape
        Rows and columns; of a matrix that is compressed by columns, columns and rows.
    where
        How errors call the matrix.
    """
    whole = (
        len(indptr) == shape[0] + 1
        and int(indptr[0]) == 0
        and bool((np.diff(indptr) >= 0).all())
        and int(indptr[-1]) <= min(indices.shape[0], n_values)
    )
    if not whole:
        raise CountError(
            f"{where} is a damaged matrix: its pointers to rows or columns do not fit {n_values} "
            "values; read it again from where it came from"
        )
    if isinstance(indices, np.ndarray):
        check_indices(indices[: int(indptr[-1])], shape[1], where)


def check_indices(indices: np.ndarray, n: int, where: str) -> None:
    """Raise CountError unless all indices of stored values are from 0 to n - 1."""
    if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < n:
        bad = indices[(indices < 0) | (indices >= n)]
        raise CountError(
            f"{where} is a damaged matrix: {len(bad)} values have an index outside 0 to {n - 1}, "
            f"the first {bad[0]}; read it again from where it came from"
        )


class BackedCounts:
    """Counts in a file; `counts[rows]` reads those rows as float32 CSR in canonical form.

    Parameters
    ----------
    matrix
        CSR dataset of anndata (HDF5 or zarr), or a dense dataset.
    where
        How errors call it.

    Attributes
    ----------
    shape
        Cells, genes.

    Raises
    ------
    CountError
        If it is stored by genes, or a read fails.
    """

    def __init__(self, matrix: Any, where: str = "adata.X"):
        check_stored(matrix, where)
        self.shape = cast("tuple[int, int]", tuple(int(n) for n in matrix.shape))
        self._where, self._indptr, self._process = where, None, os.getpid()
        stored = matrix
        if isinstance(matrix, CSRDataset):
            stored = matrix.group  # pyright: ignore[reportAttributeAccessIssue] a base's
        in_hdf5 = isinstance(stored, h5py.Group | h5py.Dataset)
        self._hdf5 = (stored.file.filename, stored.name) if in_hdf5 else None
        if isinstance(matrix, CSRDataset):
            try:
                self._indptr = np.asarray(stored["indptr"][...], dtype=np.int64)
                values, indices = self._parts(stored)
            except _UNREADABLE as error:
                raise CountError(f"{where} could not be read ({error})") from error
            check_structure(self._indptr, indices, values.shape[0], self.shape, where)
        self._arrays = self._parts(stored)

    def _parts(self, stored: Any) -> tuple[Any, ...]:
        return (stored,) if self._indptr is None else (stored["data"], stored["indices"])

    def __getstate__(self) -> dict[str, Any]:
        # Handles of HDF5 belong to a process; those of zarr are paths.
        ours = {"_arrays": None, "_process": None} if self._hdf5 else {}
        return self.__dict__ | ours

    def _open(self) -> tuple[Any, ...]:
        """Arrays to read, opened again in a process that was started or forked since."""
        if self._hdf5 and self._process != os.getpid():
            path, name = self._hdf5
            self._arrays, self._process = self._parts(h5py.File(path, "r")[name]), os.getpid()
        return self._arrays

    def __getitem__(self, rows: np.ndarray | slice) -> sp.csr_matrix:
        """Rows by slice, mask or position, in the order given."""
        n = self.shape[0]
        if isinstance(rows, slice):
            rows = np.arange(n)[rows]
        rows = np.asarray(rows)
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows.astype(np.int64)
        if not len(rows):
            return sp.csr_matrix((0, self.shape[1]), dtype=np.float32)
        in_order = bool((np.diff(rows) >= 0).all())
        wanted = rows if in_order else np.sort(rows)
        parts = []
        for run in self._runs(wanted):
            start, stop = int(run[0]), int(run[-1]) + 1
            part = self._read(start, stop)
            parts.append(part if len(run) == stop - start else part[run - start])
        found = parts[0] if len(parts) == 1 else sp.csr_matrix(sp.vstack(parts, format="csr"))
        return found if in_order else found[np.argsort(np.argsort(rows, kind="stable"))]

    def _runs(self, wanted: np.ndarray) -> Iterator[np.ndarray]:
        """Sorted rows in pieces of neighbours, none spanning more than a block."""
        most = block_rows(self.shape[1])
        for run in np.split(wanted, np.flatnonzero(np.diff(wanted) > _GAP) + 1):
            piece = (run - run[0]) // most
            yield from np.split(run, np.flatnonzero(np.diff(piece)) + 1)

    def _read(self, start: int, stop: int) -> sp.csr_matrix:
        shape = (stop - start, self.shape[1])
        try:
            arrays = self._open()
            if self._indptr is None:
                return sp.csr_matrix(np.asarray(arrays[0][start:stop], dtype=np.float32))
            ends = self._indptr[start : stop + 1]
            stored = slice(int(ends[0]), int(ends[-1]))
            values = np.asarray(arrays[0][stored]).astype(np.float32, copy=False)
            indices = np.asarray(arrays[1][stored]).astype(np.int32, copy=False)
        except _UNREADABLE as error:
            raise CountError(
                f"cells {start} to {stop - 1} of {self._where} could not be read ({error}); the "
                "file must stay open and where it is as long as the model is used"
            ) from error
        check_indices(indices, self.shape[1], self._where)
        found = sp.csr_matrix((values, indices, ends - ends[0]), shape=shape)
        found.sum_duplicates()
        found.eliminate_zeros()
        return found


class BackedPart(BackedCounts):
    """Some cells and some neighbouring genes of counts in a file.

    Parameters
    ----------
    counts
        All of them.
    rows
        Positions of the cells.
    genes
        The genes.
    """

    def __init__(self, counts: BackedCounts, rows: np.ndarray, genes: slice):
        self._counts, self._rows, self._genes = counts, np.asarray(rows), genes
        self.shape = (len(self._rows), len(range(*genes.indices(counts.shape[1]))))

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__

    def __getitem__(self, rows: np.ndarray | slice) -> sp.csr_matrix:
        """Rows by slice, mask or position, in the order given."""
        return sp.csr_matrix(self._counts[self._rows[rows]][:, self._genes])


class CachedRows:
    """Some rows of counts in memory, asked for by their positions among all of them."""

    def __init__(self, counts: BackedCounts, rows: np.ndarray):
        self.shape, self._rows, self._counts = counts.shape, rows, counts[rows]

    def __getitem__(self, rows: np.ndarray) -> sp.csr_matrix:
        return self._counts[np.searchsorted(self._rows, rows)]


def prefetch(read: Callable[[Item], Read], items: Iterable[Item]) -> Iterator[tuple[Item, Read]]:
    """Items and what a thread read for them, the next one while this one is worked on."""
    with ThreadPoolExecutor(1, thread_name_prefix="pyrocell-read") as reader:
        before = None
        for item in items:
            pending = item, reader.submit(read, item)
            if before is not None:
                yield before[0], before[1].result()
            before = pending
        if before is not None:
            yield before[0], before[1].result()


def block_rows(n_genes: int) -> int:
    """Cells that are worked on at a time."""
    return max(1, _VALUES // max(n_genes, 1))


def count_blocks(counts: Any) -> Iterator[tuple[slice, sp.csr_matrix]]:
    """All rows in blocks whose size depends on the number of genes alone, with their positions."""
    n, n_genes = counts.shape
    step = block_rows(n_genes)
    blocks = (slice(start, min(start + step, n)) for start in range(0, n, step))
    if isinstance(counts, BackedCounts):
        yield from prefetch(counts.__getitem__, blocks)
    else:
        yield from ((rows, counts[rows]) for rows in blocks)


def gene_totals(counts: Any) -> np.ndarray:
    """(G,) float64 sums over all cells."""
    total = np.zeros(counts.shape[1])
    for _, block in count_blocks(counts):
        total += np.asarray(block.sum(axis=0, dtype=np.float64)).ravel()
    return total


def read_backed(path: str | Path) -> AnnData:
    """Open an .h5ad or .zarr file and leave its counts there.

    Columns of cells and genes are read; `.X` and layers stay in the file, and a model of the
    AnnData reads them as it needs them. The file must stay where it is for as long.

    Parameters
    ----------
    path
        File or directory written by ``adata.write_h5ad`` or ``adata.write_zarr``.

    Returns
    -------
    AnnData with `.obs` and `.var` in memory.

    Raises
    ------
    UnknownLabelError
        If there is no such file, or it is not an AnnData.
    ScreenError
        If it cannot be read.

    Warns
    -----
    ScreenWarning
        If a zarr store lacks chunks; see `check_chunks`.
    """
    path = Path(path)
    if not path.exists():
        raise UnknownLabelError(f'there is no file "{path}"')
    if not path.is_dir():
        check_hdf5(path)
    try:
        file = _opened(path)
        missing = [part for part in ("obs", "var") if part not in file]
        if missing:
            raise UnknownLabelError(
                f'"{path}" has no {join_names(missing)}: it was not written by anndata'
            )
        tables: list[Any] = [read_elem(file[part]) for part in ("obs", "var")]
        obs, var = (pd.DataFrame(table) for table in tables)
        layers = {name: _dataset(file["layers"][name]) for name in file.get("layers", ())}
        matrix = _dataset(file["X"]) if "X" in file else None
        adata = AnnData(matrix, obs, var, layers=layers)
        for part, name in _OF_VIEWS:
            if name in file.get(part, ()):
                getattr(adata, part)[name] = read_elem(file[part][name])
    except PyrocellError:
        raise
    except Exception as error:  # whatever a damaged file makes its readers raise
        raise ScreenError(f'"{path}" cannot be read as a file of anndata: {error}') from error
    if path.is_dir():
        check_chunks(path)
    return adata


def _opened(path: Path) -> Any:
    """Root of a file, a group of zarr or of HDF5: both are read alike."""
    return zarr.open_group(path, mode="r") if path.is_dir() else h5py.File(path, "r")


def check_chunks(path: str | Path) -> None:
    """Refuse or warn where chunks of a zarr store are absent, which are read as zeros.

    Chunks that hold zeros alone are not written, so a chunk of a dense matrix or of a column that
    is absent may be right. Sparse counts have no such chunks.

    Parameters
    ----------
    path
        A zarr store of anndata.

    Raises
    ------
    CountError
        If counts of a sparse matrix are absent.

    Warns
    -----
    ScreenWarning
        If other chunks are.
    """
    absent = {}
    arrays = (item for item in zarr.open_group(path, mode="r").members(max_depth=None))
    for name, array in arrays:
        parts = name.split("/")
        if isinstance(array, zarr.Array) and parts[0] in ("X", "layers", "obs"):
            n = array.nchunks - array.nchunks_initialized
            if n > 0 and array.size:
                absent[name] = f"{name} ({n} of {array.nchunks})"
    sparse = [said for name, said in absent.items() if name.endswith(("/data", "/indices"))]
    if sparse:
        raise CountError(
            f"{path} lacks chunks of its counts, which would be read as zeros: "
            f"{join_names(sparse)}; write the store again"
        )
    if absent:
        warn(
            f"{path} lacks chunks of {join_names(list(absent.values()))}, which are read as zeros, "
            "or as the first category: so are chunks kept that hold nothing else, and so do chunks "
            "look that were lost"
        )


def _dataset(element: Any) -> Any:
    """A dense dataset as it is, a group as anndata's sparse dataset."""
    return element if len(getattr(element, "shape", ())) == 2 else sparse_dataset(element)
