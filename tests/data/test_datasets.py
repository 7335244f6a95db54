"""The embedded screen: what it holds, where it comes from, what it costs."""

from __future__ import annotations

import time
from importlib.resources import files
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
from scipy import sparse

from pyrocell.datasets import hipsc_timecourse

REFERENCE = Path(__file__).resolve().parents[3] / "shared" / "data" / "renge_ishikawa2023.h5ad"


@pytest.fixture(scope="module")
def adata() -> ad.AnnData:
    return hipsc_timecourse()


def test_counts_are_non_negative_integers_in_csr(adata):
    assert adata.shape == (14945, 103)
    assert sparse.isspmatrix_csr(adata.X)
    assert adata.X.dtype == np.int32
    assert adata.X.nnz == 1_058_409
    assert (adata.X.data > 0).all() and adata.X.data.max() == 138


def test_annotation_has_the_columns_that_registration_reads(adata):
    obs = adata.obs
    for column in ("perturbation", "perturbation_type", "media", "batch"):
        assert obs[column].dtype == "category"
    assert len(obs["perturbation"].cat.categories) == 24
    assert (obs["perturbation"] == "control").sum() == 1182
    assert set(obs["perturbation_type"]) == {"knockout"}
    assert set(obs["media"]) == {"baseline"}
    assert sorted(obs["time"].unique()) == [2.0, 3.0, 4.0, 5.0]
    assert (obs["size_factor"] == 1.0).all()
    assert obs.index.is_unique and adata.var_names.is_unique


def test_every_target_is_measured(adata):
    assert set(adata.obs["perturbation"]) - {"control"} <= set(adata.var_names)


def test_batch_and_day_coincide_as_the_caveats_say(adata):
    pairs = adata.obs[["batch", "time"]].drop_duplicates()
    assert len(pairs) == 4 and pairs["batch"].is_unique and pairs["time"].is_unique


def test_dispersion_is_what_the_caveats_say(adata):
    control = adata[(adata.obs["perturbation"] == "control") & (adata.obs["time"] == 3.0)]
    counts = control.X.toarray()
    ratio = counts.var(axis=0, ddof=1) / counts.mean(axis=0)
    assert np.median(ratio) == pytest.approx(1.18, abs=0.005)
    assert (ratio < 1).sum() == 9


def test_provenance_travels_with_the_data(adata, tmp_path):
    adata.write_h5ad(tmp_path / "screen.h5ad")
    source = ad.read_h5ad(tmp_path / "screen.h5ad").uns["source"]
    assert source == adata.uns["source"]
    assert set(source) == {"citation", "accession", "license", "path", "processing", "caveats"}


def test_calls_do_not_share_state(adata):
    other = hipsc_timecourse()
    other.uns["source"]["citation"] = "changed"
    other.X.data[:] = 0
    again = hipsc_timecourse()
    assert again.uns["source"] == adata.uns["source"]
    assert again.X.data.all()


def test_notice_lies_beside_the_data_and_both_are_small():
    folder = files("pyrocell.datasets")
    assert "Copyright (c) 2022 masastat" in (folder / "hipsc_timecourse.LICENSE").read_text()
    assert len((folder / "hipsc_timecourse.npz").read_bytes()) < 2_000_000


def test_the_file_holds_no_pickle():
    with files("pyrocell.datasets").joinpath("hipsc_timecourse.npz").open("rb") as stream:
        with np.load(stream, allow_pickle=False) as stored:
            assert all(stored[name].dtype.kind in "uiSU" for name in stored.files)


def test_loading_takes_less_than_a_second():
    start = time.perf_counter()
    hipsc_timecourse()
    assert time.perf_counter() - start < 1.0


@pytest.mark.skipif(not REFERENCE.exists(), reason=f"{REFERENCE} is not on this machine")
def test_equals_the_independently_processed_file(adata):
    reference = ad.read_h5ad(REFERENCE)
    assert (adata.X != reference.X).nnz == 0
    assert list(adata.obs_names) == list(reference.obs_names)
    assert list(adata.var_names) == list(reference.var_names)
    for column in ("perturbation", "perturbation_type", "media", "time", "batch"):
        assert list(adata.obs[column]) == list(reference.obs[column])
