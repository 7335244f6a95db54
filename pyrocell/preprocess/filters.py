"""Which cells and genes are kept, by stated rules."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from pyrocell.errors import PyrocellError
from pyrocell.preprocess.steps import Step, add_step

__all__ = ["choose_genes", "filter_cells", "filter_genes"]

_COUNTS, _GENES, _PART = 500, 200, 0.1  # least counts and genes of a cell; share of few genes
_MITOCHONDRIAL = ("MT-", "mt-", "Mt-")
_MAD = 1.4826  # standard deviations of a normal in a median absolute deviation


def filter_cells(
    adata: AnnData,
    *,
    min_counts: int | None = None,
    min_genes: int | None = None,
    max_mito: float = 0.2,
    mads: float = 5.0,
    batch_key: str | None = "batch",
) -> AnnData:
    """Leave out cells with few counts or genes, many mitochondrial counts, or unlike their batch.

    Parameters
    ----------
    adata
        Raw counts; it stays as it is.
    min_counts
        Least counts of a cell. None: 500, or as many as there are genes where these are fewer.
    min_genes
        Least genes with counts. None: 200, or a tenth of the genes where this is less.
    max_mito
        Largest share of counts of mitochondrial genes (names that begin with MT-, Mt- or mt-).
    mads
        Cells whose logarithms of counts or of genes lie further from the median of their batch than
        so many median absolute deviations, scaled to standard deviations, are left out. 0 for no
        such rule.
    batch_key
        Column of batches; None, or one that is absent, for one batch.

    Returns
    -------
    AnnData
        A copy with the cells that are kept, and `.obs` columns `total_counts`, `n_genes` and
        `mito_share`, before genes are chosen.

    Raises
    ------
    PyrocellError
        If no cell is left.
    """
    counts = _counts(adata)
    total = np.asarray(counts.sum(1)).ravel()
    n_genes = counts.getnnz(1)
    mito = np.array([str(name).startswith(_MITOCHONDRIAL) for name in adata.var_names], bool)
    of_mito = np.asarray(counts[:, np.flatnonzero(mito)].sum(1)).ravel()
    share = of_mito / np.maximum(total, 1)
    if min_counts is None:
        min_counts = min(_COUNTS, adata.n_vars)
    if min_genes is None:
        min_genes = min(_GENES, int(_PART * adata.n_vars))
    by_rule = {
        f"counts below {min_counts:,}": total < max(min_counts, 1),
        f"genes below {min_genes:,}": n_genes < min_genes,
        f"mitochondrial counts above {max_mito:.0%}": share > max_mito,
    }
    kept = ~np.any(list(by_rule.values()), axis=0)
    if mads > 0 and kept.any():
        batch = np.zeros(adata.n_obs, int)
        if batch_key is not None and batch_key in adata.obs:
            batch = pd.factorize(np.asarray(adata.obs[batch_key]))[0]
        odd = np.zeros(adata.n_obs, bool)
        for value in (total, n_genes):
            odd[kept] |= _far(np.log(value[kept]), batch[kept], mads)
        by_rule[f"{mads:g} MAD or further from the median of the batch"] = odd
        kept &= ~odd
    if not kept.any():
        worst = max(by_rule, key=lambda rule: by_rule[rule].sum())
        raise PyrocellError(
            f"no cell is left of {adata.n_obs:,}: {by_rule[worst].sum():,} have {worst}; the "
            f"median cell has {np.median(total):,.0f} counts in {np.median(n_genes):,.0f} genes"
        )
    found = adata[kept].copy()
    for name, value in (("total_counts", total), ("n_genes", n_genes), ("mito_share", share)):
        found.obs[name] = value[kept]
    rule = "; ".join(f"{rule}: {odd.sum():,}" for rule, odd in by_rule.items())
    rule += "" if mito.any() else "; there are no genes named MT-"
    return add_step(found, Step("filter cells", rule, adata.n_obs, found.n_obs))


def _far(value: np.ndarray, batch: np.ndarray, mads: float) -> np.ndarray:
    values = pd.Series(value)
    distance = (values - values.groupby(batch).transform("median")).abs()
    width = _MAD * distance.groupby(batch).transform("median")
    return ((distance > mads * width) & (width > 0)).to_numpy()


def _counts(adata: AnnData) -> sp.csr_matrix:
    """Counts without stored zeros, a copy."""
    counts = sp.csr_matrix(adata.X, copy=True)
    counts.eliminate_zeros()
    return counts


def filter_genes(adata: AnnData, *, min_cells: int = 10) -> AnnData:
    """Leave out genes that few cells have.

    Parameters
    ----------
    adata
        Raw counts; it stays as it is.
    min_cells
        Least cells with a count of the gene.

    Returns
    -------
    A copy with the genes that are kept.

    Raises
    ------
    PyrocellError
        If no gene is left.
    """
    n_cells = _counts(adata).getnnz(0)
    kept = n_cells >= max(min_cells, 1)
    if not kept.any():
        raise PyrocellError(
            f"no gene is left of {adata.n_vars:,}: none has counts in {min_cells:,} cells; the "
            f"most frequent has them in {n_cells.max(initial=0):,}"
        )
    found = adata[:, kept].copy()
    rule = f"genes with counts in fewer than {min_cells:,} cells are left out"
    return add_step(found, Step("filter genes", rule, adata.n_vars, found.n_vars))


def choose_genes(
    adata: AnnData,
    n_genes: int = 2000,
    *,
    keep: Iterable[str] = (),
    batch_key: str | None = "batch",
) -> AnnData:
    """Keep the genes that vary most, and those that were perturbed.

    Parameters
    ----------
    adata
        Raw counts; it stays as it is.
    n_genes
        Genes that vary most, by the variance of Pearson residuals within batches.
    keep
        Genes that are kept beside, such as the perturbed; those that are absent are passed over.
    batch_key
        Column of batches; None, or one that is absent, for one batch.

    Returns
    -------
    A copy with the genes that are kept, in their order. With no more than `n_genes` genes, all.

    Notes
    -----
    The variance of Pearson residuals needs raw counts alone and no package beside scanpy, unlike
    the flavour "seurat_v3". Genes that respond to a few perturbations of many vary little over all
    cells and may be left out; raise `n_genes` where they matter.
    """
    import scanpy as sc  # takes seconds

    wanted = set(map(str, keep))
    own = np.array([str(name) in wanted for name in adata.var_names], bool)
    if adata.n_vars <= n_genes:
        kept, rule = np.ones(adata.n_vars, bool), f"all, as there are no more than {n_genes:,}"
    else:
        key = batch_key if batch_key is not None and batch_key in adata.obs else None
        obs = pd.DataFrame(index=adata.obs_names)
        if key is not None:
            obs[key] = pd.Categorical(np.asarray(adata.obs[key]).astype(str))
        counts = AnnData(sp.csr_matrix(adata.X, dtype=np.float32), obs)
        table = sc.experimental.pp.highly_variable_genes(
            counts, n_top_genes=n_genes, batch_key=key, inplace=False
        )
        assert table is not None  # as it was not asked to write in place
        varies = table["highly_variable"].to_numpy()
        kept = varies | own
        rule = f"the {n_genes:,} with the largest variance of Pearson residuals"
        rule += f", and {int((own & ~varies).sum()):,} more that were perturbed"
    absent = len(wanted) - len(wanted & set(map(str, adata.var_names)))
    rule += f"; perturbed and not measured: {absent:,}" if absent else ""
    found = adata[:, kept].copy()
    return add_step(found, Step("choose genes", rule, adata.n_vars, found.n_vars))
