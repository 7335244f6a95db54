"""Guides of every cell, read from a matrix of cells by guides and a table of their targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from pyrocell._core.messages import did_you_mean, join_names
from pyrocell.data.guide_targets import COLUMNS, plain_targets
from pyrocell.errors import ScreenError, UnknownLabelError
from pyrocell.screen.label_reading import read_perturbations
from pyrocell.screen.sets import GuideSets

__all__ = ["matrix_checksum", "read_guide_sets"]


def read_guide_sets(adata: AnnData, args: Mapping[str, Any], all_occur: bool = True) -> GuideSets:
    """Read which cell has which guides, and what they target.

    Parameters
    ----------
    adata
        Cells.
    args
        Arguments of `setup_anndata`: `guide_matrix_key`, `guide_targets`, `guide_threshold`,
        `control`, `combination_separator`.
    all_occur
        Whether every name of controls has to be the target of a guide.

    Raises
    ------
    UnknownLabelError
        If there is no such entry of `.obsm`, its columns have no names, or a guide no target.
    ScreenError
        If the matrix holds counts and no threshold is given, or a cell has no guide.
    """
    key = args["guide_matrix_key"]
    where = f'guide_matrix_key="{key}"'
    if key not in adata.obsm:
        raise UnknownLabelError(
            f"{where} is not an entry of adata.obsm{did_you_mean(key, list(adata.obsm))}; it is a "
            "matrix of cells by guides, such as pyrocell.preprocess.guide_matrix makes"
        )
    carried = _carried(adata.obsm[key], args.get("guide_threshold"), where)
    names = _names(adata, key, where)
    targets = _targets(adata, key, names, args.get("guide_targets"))
    without = np.diff(carried.indptr) == 0
    if without.any():
        at = args.get("guide_threshold")
        kept = f'adata.obsm["{key}"] > 0' if at is None else f'adata.obsm["{key}"] >= {at:g}'
        raise ScreenError(
            f"{where}: {int(without.sum()):,} of {adata.n_obs:,} cells have no guide, the first at "
            f"position {int(np.argmax(without))}, and nobody knows what was done to them; leave "
            f"them out: adata = adata[np.asarray(({kept}).sum(1)).ravel() > 0].copy()"
        )
    read = read_perturbations(
        pd.Series(targets, dtype=object),
        args["control"],
        args.get("combination_separator", "+"),
        "guide_targets",
        all_occur=all_occur,
    )
    return GuideSets(carried, list(read))


def _carried(matrix: Any, threshold: float | None, where: str) -> sp.csr_array:
    """Which cell has which guide, (N, n) bool without stored zeros."""
    if isinstance(matrix, pd.DataFrame):
        matrix = matrix.to_numpy()
    found = sp.csr_array(matrix)
    values = found.data
    if values.dtype.kind not in "biuf" or not np.isfinite(values).all():
        raise ScreenError(f"{where} holds values that are no numbers; 1 says that a cell has it")
    if threshold is None:
        odd = values[(values != 0) & (values != 1)]
        if len(odd):
            raise ScreenError(
                f"{where} holds {odd[0]:g} beside 0 and 1, counts or probabilities: say from which "
                "on a cell has a guide, guide_threshold=5 (of probabilities .5), or call guides by "
                "pyrocell.preprocess.assign_guides and keep the calls by "
                "pyrocell.preprocess.guide_matrix"
            )
        threshold = 1
    if not threshold > 0:
        raise ScreenError(f"guide_threshold={threshold} must be above 0")
    out = sp.csr_array((values >= threshold, found.indices, found.indptr), shape=found.shape)
    out.sum_duplicates()
    out.eliminate_zeros()
    return out


def _names(adata: AnnData, key: str, where: str) -> list[str]:
    """Names of the columns of the matrix: its own, or those of the entry of `.uns` called alike."""
    matrix = adata.obsm[key]
    names = matrix.columns if isinstance(matrix, pd.DataFrame) else adata.uns.get(key)
    if isinstance(names, Mapping):
        names = list(names)
    names = getattr(names, "index", names) if isinstance(names, pd.DataFrame | pd.Series) else names
    if names is None or len(names) != matrix.shape[1]:
        found = "none" if names is None else f"{len(names)}"
        raise UnknownLabelError(
            f"{where} has {matrix.shape[1]} columns and {found} of their names are known; make it "
            f'a table (DataFrame), or put names into adata.uns["{key}"] in their order'
        )
    out = [str(name) for name in names]
    twice = pd.Index(out)
    if twice.has_duplicates:
        raise ScreenError(
            f"{where} has guides of one name ({join_names(twice[twice.duplicated()].unique())}); "
            "make names unique"
        )
    return out


def _targets(
    adata: AnnData, key: str, names: Sequence[str], given: dict[str, str] | str | None
) -> list[str]:
    """Label of the target of each guide."""
    said = "guide_targets"
    if isinstance(given, str):
        if given not in adata.uns:
            raise UnknownLabelError(
                f'guide_targets="{given}" is not an entry of adata.uns'
                f"{did_you_mean(given, list(adata.uns))}"
            )
        said, given = f'adata.uns["{given}"]', plain_targets(_table(adata.uns[given]))
    elif given is None:
        known = adata.uns.get(key)
        if isinstance(known, pd.DataFrame) and any(name in known for name in COLUMNS):
            said, given = f'adata.uns["{key}"]', plain_targets(known)
    if not isinstance(given, Mapping):
        raise UnknownLabelError(
            "guide_targets= is needed: a table with columns guide and gene, or a dictionary, with "
            "the label of the control for guides that target nothing; "
            "pyrocell.preprocess.guide_targets reads targets from names"
        )
    missing = [name for name in names if not given.get(name)]
    if missing:
        raise UnknownLabelError(
            f"{said} lacks the target of {len(missing)} of {len(names)} guides: "
            f"{join_names(missing)}"
        )
    return [given[name] for name in names]


def _table(entry: Any) -> Any:
    """An entry of `.uns`, which must not be the name of another."""
    return {} if isinstance(entry, str) or entry is None else entry


def matrix_checksum(matrix: Any) -> np.ndarray:
    """(N,) sums over guides of each cell's values, weighted by guide: what has to stay as it is."""
    if isinstance(matrix, pd.DataFrame):
        matrix = matrix.to_numpy()
    weights = np.random.default_rng(0).integers(1, 2**20, matrix.shape[1]).astype(np.float64)
    return np.asarray(matrix @ weights, np.float64).ravel()
