"""Files of cells that the shell reads: .h5ad, .zarr, .h5mu, and what Cell Ranger writes."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import anndata
import pandas as pd
from anndata import AnnData

from pyrocell._core.messages import join_names
from pyrocell.cli.words import FILES
from pyrocell.data.backed import check_chunks
from pyrocell.data.hdf5_probe import check_hdf5
from pyrocell.errors import PyrocellError, ScreenWarning

if TYPE_CHECKING:
    from mudata import MuData

__all__ = ["add_labels", "read_cells", "read_modalities", "read_table"]

_TAB = (".tsv", ".txt", ".tab")


def read_cells(file: Path, labels: Path | None = None) -> AnnData:
    """Read cells and, from a table of theirs, labels.

    Parameters
    ----------
    file
        See `pyrocell.cli.words.FILES`; of a .h5mu the modality "rna", or the only one.
    labels
        Table (.csv, or with tabs .tsv) whose first column names cells; its columns join `.obs`.

    Raises
    ------
    PyrocellError
        If one cannot be read, whatever the reason, or does not name the same cells.
    """
    if not file.exists():
        raise PyrocellError(f"{file} is not a file or folder")
    kind, read = _reader(file)
    if file.is_file():
        check_hdf5(file)
    try:
        with warnings.catch_warnings():
            # Readers warn of what the check of labels then refuses.
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", ScreenWarning)
            adata = read(file)
    except PyrocellError:
        raise
    except Exception as error:  # whatever a damaged file makes its readers raise
        raise PyrocellError(f"{file} cannot be read as {kind}: {error}") from error
    if labels is not None:
        add_labels(adata, labels)
    return adata


def _reader(file: Path) -> tuple[str, Callable[[Path], AnnData]]:
    if file.is_dir() and (file / ".zattrs").exists() | (file / "zarr.json").exists():
        return ".zarr", _read_zarr
    if file.is_dir():
        return "a folder of Cell Ranger", _read_mtx
    known = {
        ".h5ad": anndata.read_h5ad,
        ".h5mu": _read_h5mu,
        ".h5": _read_10x,
        ".loom": _read_loom,
        ".zarr": _read_zarr,
    }
    if file.suffix.casefold() not in known:
        raise PyrocellError(f"{file} is no file of cells by its name; readable are {FILES}")
    return file.suffix.casefold(), known[file.suffix.casefold()]


def _read_zarr(folder: Path) -> AnnData:
    adata = anndata.read_zarr(folder)
    check_chunks(folder)
    return adata


def _read_h5mu(file: Path) -> AnnData:
    import mudata  # takes a second, and only this needs it

    found = mudata.read_h5mu(file)
    names = list(found.mod)
    if "rna" not in names and len(names) != 1:
        raise PyrocellError(
            f'{file} has {join_names(names)} and no modality "rna"; name the one with the counts '
            "so, or write it as .h5ad"
        )
    name = "rna" if "rna" in names else names[0]
    adata = found.mod[name]
    shared = found.obs.reindex(adata.obs_names)
    for column in shared:  # labels are often kept once for all modalities
        if column not in adata.obs and ":" not in str(column):
            adata.obs[column] = shared[column]
    return adata


def read_modalities(file: Path) -> MuData:
    """Read a .h5mu whole, or raise PyrocellError."""
    import mudata

    if file.suffix.casefold() != ".h5mu":
        raise PyrocellError(f"{file} has one view; --view is for modalities of a .h5mu")
    if not file.exists():
        raise PyrocellError(f"{file} is not a file or folder")
    check_hdf5(file)
    try:
        return mudata.read_h5mu(file)
    except Exception as error:  # whatever a damaged file makes its reader raise
        raise PyrocellError(f"{file} cannot be read as .h5mu: {error}") from error


def _read_10x(file: Path) -> AnnData:
    import scanpy as sc

    return _with_unique_names(sc.read_10x_h5(file, gex_only=True))


def _read_mtx(folder: Path) -> AnnData:
    import scanpy as sc

    if not any((folder / name).is_file() for name in ("matrix.mtx", "matrix.mtx.gz")):
        raise PyrocellError(f"{folder} is a folder without matrix.mtx or matrix.mtx.gz")
    return _with_unique_names(sc.read_10x_mtx(folder, gex_only=True))


def _with_unique_names(adata: AnnData) -> AnnData:
    """Symbols are not unique in Cell Ranger's files; a repeated one gets a number."""
    adata.var_names_make_unique()
    return adata


def _read_loom(file: Path) -> AnnData:
    if importlib.util.find_spec("loompy") is None:  # which anndata reads the file with
        raise PyrocellError(
            f"{file} needs loompy, which is not installed: pip install loompy; or convert it to "
            ".h5ad where it is"
        )
    return anndata.io.read_loom(file)


def read_table(file: Path) -> pd.DataFrame:
    """A table of text, .csv or with tabs .tsv, or PyrocellError."""
    try:
        return pd.read_csv(file, sep="\t" if file.suffix in _TAB else ",", dtype=str)
    except Exception as error:
        raise PyrocellError(f"{file} cannot be read as a table: {error}") from error


def add_labels(adata: AnnData | MuData, file: Path) -> None:
    """Join a table of labels to `.obs`, in place."""
    try:
        table = pd.read_csv(file, sep="\t" if file.suffix in _TAB else ",", index_col=0)
    except Exception as error:
        raise PyrocellError(f"{file} cannot be read as a table: {error}") from error
    table.index = table.index.astype(str)
    if not table.index.is_unique:
        twice = table.index[table.index.duplicated()].unique()
        raise PyrocellError(f"{file} names {len(twice)} cells more than once: {join_names(twice)}")
    missing = adata.obs_names.difference(table.index)
    if len(missing):
        raise PyrocellError(
            f"{file} lacks {len(missing)} of {adata.n_obs} cells, such as "
            f'"{missing[0]}" (its first is "{table.index[0] if len(table) else ""}"); its first '
            "column must name every cell as the counts do"
        )
    for column in table:
        adata.obs[column] = table.loc[adata.obs_names, column].to_numpy()
