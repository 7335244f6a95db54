"""Counts of genes and guides as Cell Ranger writes them, one lane or several."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from pyrocell._compat import var_table
from pyrocell._core.messages import join_names
from pyrocell.data.hdf5_probe import check_hdf5
from pyrocell.errors import PyrocellError
from pyrocell.preprocess.steps import Step, add_step

__all__ = ["read_10x", "split_features"]

GENES, GUIDES = "Gene Expression", "CRISPR Guide Capture"
_H5 = "filtered_feature_bc_matrix.h5"
_MATRICES = ("matrix.mtx.gz", "matrix.mtx")
_WITHIN = ("filtered_feature_bc_matrix", "outs", "count", "sample_filtered_feature_bc_matrix")
_GEM_WELL = re.compile(r"-(\d+)$")  # what `cellranger aggr` appends to barcodes


def read_10x(path: str | Path) -> AnnData:
    """Read what Cell Ranger counted: genes, and guides where they were captured.

    Parameters
    ----------
    path
        A file `filtered_feature_bc_matrix.h5`; a folder with such a file, with `matrix.mtx.gz`,
        `features.tsv.gz` and `barcodes.tsv.gz`, or with one of Cell Ranger's folders that holds
        them; or a folder of lanes, in which each subfolder, or each file whose name ends so, is
        one.

    Returns
    -------
    AnnData
        Raw counts of genes (cells × genes, CSR, int32). `.obs["batch"]` is the lane: the name of
        the subfolder, or the beginning of the file's name; in a single matrix, the number that
        `cellranger aggr` appends to barcodes. Cells of several folders are named
        `<lane>_<barcode>`. `.obsm["guides"]` has the counts of guides (cells × guides, CSR, int32)
        and `.uns["guides"]` a row for each of its columns, named after the guide; both are absent
        where no guide was captured. A guide that a lane lacks has no counts in it. Other kinds of
        features, such as antibodies, are left out, and the first line of
        `pyrocell.preprocess.steps` says which.

    Raises
    ------
    PyrocellError
        If there is nothing to read, a file is damaged, or lanes were counted against different
        genes.
    """
    path = Path(path)
    if not path.exists():
        raise PyrocellError(f"{path} is not a file or folder; name one that Cell Ranger wrote")
    lanes = _lanes(path)
    read = {name: _read(file) for name, file in lanes.items()}
    adata = _joined(read, lanes) if len(read) > 1 else _single(next(iter(read.values())))
    return split_features(adata, path)


def _lanes(path: Path) -> dict[str, Path]:
    """What to read, by the name of the lane."""
    own = _matrix_of(path)
    if own is not None:
        return {path.stem: own}
    files = sorted(path.glob(f"*{_H5}"))
    if len(files) == 1:
        return {path.name: files[0]}
    if files:
        return {file.name.removesuffix(_H5).rstrip("_.-") or file.name: file for file in files}
    found = {folder.name: _matrix_of(folder) for folder in sorted(path.iterdir())}
    lanes = {name: file for name, file in found.items() if file is not None}
    if not lanes:
        raise PyrocellError(
            f"{path} holds no {_H5} and no {_MATRICES[0]}, and no subfolder does; name the folder "
            'that Cell Ranger calls "outs", or one with a subfolder for each lane'
        )
    return lanes


def _matrix_of(path: Path) -> Path | None:
    """The file or folder of the counts of one lane, or None."""
    if path.is_file():
        return path if path.suffix == ".h5" else None
    for name in (_H5, f"sample_{_H5}"):
        if (path / name).is_file():
            return path / name
    if any((path / name).is_file() for name in _MATRICES):
        return path
    inner = [_matrix_of(path / name) for name in _WITHIN if (path / name).is_dir()]
    return next((found for found in inner if found is not None), None)


def _read(file: Path) -> AnnData:
    import scanpy as sc  # takes seconds

    try:
        if file.is_file():
            check_hdf5(file)
            adata = sc.read_10x_h5(file, gex_only=False)
        else:
            adata = sc.read_10x_mtx(file, gex_only=False)
    except PyrocellError:
        raise
    except Exception as error:  # whatever a damaged file makes its readers raise
        raise PyrocellError(f"{file} cannot be read as Cell Ranger writes it: {error}") from error
    counts = sp.csr_matrix(adata.X)
    values = counts.data
    if len(values) and not (np.all(values >= 0) and np.array_equal(values, np.rint(values))):
        raise PyrocellError(f"{file} holds values that are no counts; give what Cell Ranger wrote")
    adata.X = counts.astype(np.int32)
    if "feature_types" not in adata.var:  # files of Cell Ranger 2 have genes alone
        adata.var["feature_types"] = GENES
    adata.var_names_make_unique()  # symbols of genes are not
    return adata


def _single(adata: AnnData) -> AnnData:
    wells = [_GEM_WELL.search(str(name)) for name in adata.obs_names]
    adata.obs["batch"] = pd.Categorical([well[1] if well else "1" for well in wells])
    return adata


def _joined(lanes: dict[str, AnnData], files: dict[str, Path]) -> AnnData:
    """Lanes below one another; genes have to be the same, guides need not be."""
    first = next(iter(lanes))
    reference = _of_kind(lanes[first], GENES)
    for name, lane in lanes.items():
        genes = _of_kind(lane, GENES)
        differ = reference.symmetric_difference(genes)
        if len(differ):
            raise PyrocellError(
                f"{files[name]} and {files[first]} differ in {len(differ)} genes, such as "
                f'"{differ[0]}"; count all lanes against the same reference'
            )
    features = pd.concat([var_table(lane) for lane in lanes.values()])
    features = features[~features.index.duplicated()]
    rows, obs = [], []
    for name, lane in lanes.items():
        column = features.index.get_indexer(lane.var_names)
        place = sp.csr_matrix(
            (np.ones(len(column), np.int32), (np.arange(len(column)), column)),
            shape=(len(column), len(features)),
        )
        rows.append(sp.csr_matrix(lane.X) @ place)
        obs.append(pd.DataFrame({"batch": name}, index=[f"{name}_{n}" for n in lane.obs_names]))
    adata = AnnData(sp.csr_matrix(sp.vstack(rows)), pd.concat(obs), features)
    adata.obs["batch"] = pd.Categorical(adata.obs["batch"], categories=list(lanes))
    return adata


def _of_kind(adata: AnnData, kind: str) -> pd.Index:
    return adata.var_names[(adata.var["feature_types"] == kind).to_numpy()]


def split_features(adata: AnnData, path: Path, batch_key: str | None = "batch") -> AnnData:
    """Genes as the matrix, guides beside it; the first step says so."""
    kinds = adata.var["feature_types"].astype(str).to_numpy()
    if not (kinds == GENES).any():
        raise PyrocellError(f'{path} has no features of type "{GENES}"; it has {set(kinds)}')
    counts = sp.csr_matrix(adata.X)
    genes = adata[:, kinds == GENES].copy()
    is_guide = kinds == GUIDES
    if is_guide.any():
        genes.obsm["guides"] = sp.csr_matrix(counts[:, np.flatnonzero(is_guide)])
        table = var_table(adata).loc[is_guide].drop(columns="feature_types")
        genes.uns["guides"] = table.fillna("").astype(str)
    others = pd.Series(kinds[(kinds != GENES) & ~is_guide]).value_counts()
    left_out = [f"{n:,} features of {kind}" for kind, n in others.items()]
    known = batch_key is not None and batch_key in genes.obs
    lanes = list(pd.unique(np.asarray(genes.obs[batch_key]).astype(str))) if known else []
    rule = f"{path}: {join_names(lanes)} as batches" if len(lanes) > 1 else f"{path}: one batch"
    rule += f"; {genes.n_vars:,} genes, {int(is_guide.sum()):,} guides"
    rule += f"; left out: {join_names(left_out)}" if left_out else ""
    return add_step(genes, Step("read", rule, genes.n_obs, genes.n_obs))
