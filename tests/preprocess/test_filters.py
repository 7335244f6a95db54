"""Cells and genes that are kept, and the record of what went."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

from pyrocell.errors import PyrocellError
from pyrocell.preprocess import choose_genes, filter_cells, filter_genes, steps


@pytest.fixture
def adata() -> AnnData:
    """200 cells × 50 genes in two batches, the last two genes mitochondrial."""
    rng = np.random.default_rng(0)
    counts = rng.poisson(6.0, (200, 50))
    counts[:, -2:] = rng.poisson(2.0, (200, 2))
    genes = [*(f"g{i}" for i in range(48)), "MT-CO1", "MT-ND1"]
    obs = pd.DataFrame({"batch": np.repeat(["a", "b"], 100)}, [f"c{i}" for i in range(200)])
    return AnnData(sp.csr_matrix(counts), obs, pd.DataFrame(index=genes))


def changed(adata: AnnData, rows: dict[int, np.ndarray | int]) -> AnnData:
    counts = adata.X.toarray()
    for cell, value in rows.items():
        counts[cell] = value
    adata.X = sp.csr_matrix(counts)
    return adata


def test_cells_go_by_the_rule_that_they_break(adata):
    mito = np.r_[np.full(48, 4), 60, 60]
    few = np.r_[200, 100, np.zeros(48, int)]
    kept = filter_cells(changed(adata, {0: 0, 1: mito, 2: few, 3: 60}))
    assert set(adata.obs_names) - set(kept.obs_names) == {"c0", "c1", "c2", "c3"}
    rule = steps(kept)["rule"].iloc[0]
    for said in ("counts below 50: 1", "genes below 5: 2", "above 20%: 1", "batch: 1"):
        assert said in rule


def test_a_cell_is_compared_with_its_own_batch(adata):
    counts = adata.X.toarray()
    counts[100:] *= 10
    adata.X = sp.csr_matrix(counts)
    assert filter_cells(adata).n_obs == 200
    assert filter_cells(changed(adata, {0: counts[150]})).n_obs == 199


def test_a_cell_without_counts_goes_even_with_all_rules_off(adata):
    kept = filter_cells(changed(adata, {7: 0}), min_counts=0, min_genes=0, max_mito=1, mads=0)
    assert kept.n_obs == 199


def test_genes_of_few_cells_go(adata):
    counts = adata.X.toarray()
    counts[:, 3] = 0
    counts[:5, 4], counts[5:, 4] = 1, 0
    adata.X = sp.csr_matrix(counts)
    kept = filter_genes(adata)
    assert set(adata.var_names) - set(kept.var_names) == {"g3", "g4"}


def test_genes_that_vary_and_those_that_were_perturbed_are_chosen(adata):
    counts = adata.X.toarray()
    counts[::2, :5] *= 8
    adata.X = sp.csr_matrix(counts)
    kept = choose_genes(adata, 5, keep=["g20", "absent"])
    assert list(kept.var_names) == ["g0", "g1", "g2", "g3", "g4", "g20"]
    assert "perturbed and not measured: 1" in steps(kept)["rule"].iloc[0]
    assert choose_genes(adata, 50).n_vars == 50


def test_input_is_not_changed_and_the_record_survives_a_file(adata, tmp_path):
    before = adata.copy()
    kept = choose_genes(filter_genes(filter_cells(adata)), 10)
    assert not adata.uns and list(adata.obs) == ["batch"]
    assert (adata.X != before.X).nnz == 0
    table = steps(kept)
    assert list(table["name"]) == ["filter cells", "filter genes", "choose genes"]
    assert list(table["after"]) == [200, 50, 10]
    kept.write_h5ad(tmp_path / "kept.h5ad")
    pd.testing.assert_frame_equal(steps(anndata.read_h5ad(tmp_path / "kept.h5ad")), table)


def test_a_filter_that_leaves_nothing_says_what_the_cells_are_like(adata):
    with pytest.raises(PyrocellError, match=r"200 have counts below 5,000; the median cell has"):
        filter_cells(adata, min_counts=5000)
    with pytest.raises(PyrocellError, match="none has counts in 201 cells"):
        filter_genes(adata, min_cells=201)
