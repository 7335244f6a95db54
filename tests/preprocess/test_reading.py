"""What Cell Ranger writes, read with its guides."""

from __future__ import annotations

import shutil

import h5py
import numpy as np
import pandas as pd
import pytest

from pyrocell import simulate
from pyrocell.errors import PyrocellError
from pyrocell.preprocess import read_10x, steps

FILE = "filtered_feature_bc_matrix.h5"


def same(a, b) -> bool:
    return (a.X != b.X).nnz == 0 and (a.obsm["guides"] != b.obsm["guides"]).nnz == 0


def test_the_same_counts_are_read_from_h5_and_mtx(pool, lanes, tmp_path):
    folder, truth = lanes
    simulate.write_10x(pool, tmp_path, seed=3, kind="mtx")
    first, second = read_10x(folder), read_10x(tmp_path)
    assert list(first.obs_names) == list(second.obs_names) == list(truth.index)
    assert same(first, second)
    assert list(first.uns["guides"].index) == list(second.uns["guides"].index)


def test_subfolders_are_batches_and_counts_are_those_of_the_droplets(pool, lanes):
    folder, truth = lanes
    adata = read_10x(folder)
    assert (adata.obs["batch"].astype(str) == truth["batch"]).all()
    assert list(adata.var_names) == list(pool.var_names)
    cells = pd.Series(np.asarray(pool.X.sum(1)).ravel(), pool.obs_names)
    expected = [sum(cells[name] for name in both.split("+")) for both in truth["cells"]]
    np.testing.assert_array_equal(np.asarray(adata.X.sum(1)).ravel(), expected)
    assert (truth["n_cells"] == 2).sum() == pytest.approx(0.05 * len(truth), abs=3)


def test_a_file_a_lane_and_outs_are_read_alike(lanes, tmp_path):
    lane = lanes[0] / "batch0"
    (tmp_path / "outs").mkdir()
    shutil.copy(lane / FILE, tmp_path / "outs" / FILE)
    read = [read_10x(path) for path in (lane, lane / FILE, tmp_path, tmp_path / "outs")]
    assert all(same(read[0], other) for other in read[1:])
    assert set(read[0].obs["batch"]) == {"1"}


def test_files_that_begin_with_the_name_of_a_lane_are_lanes(lanes, tmp_path):
    for name in ("batch0", "batch1"):
        shutil.copy(lanes[0] / name / FILE, tmp_path / f"{name}_{FILE}")
    adata = read_10x(tmp_path)
    assert list(adata.obs_names) == list(lanes[1].index)


def test_the_number_that_aggr_appends_is_the_batch(lanes, tmp_path):
    file = shutil.copy(lanes[0] / "batch0" / FILE, tmp_path / FILE)
    with h5py.File(file, "r+") as out:
        names = out["matrix/barcodes"][:]
        names[::2] = [name.replace(b"-1", b"-2") for name in names[::2]]
        out["matrix/barcodes"][...] = names
    batch = read_10x(file).obs["batch"]
    assert list(batch[:4]) == ["2", "1", "2", "1"]


def test_a_guide_that_a_lane_lacks_has_no_counts_there(pool, tmp_path):
    half = pool[(pool.obs["batch"] == "batch0") | (pool.obs["perturbation"] == "control")]
    for batch in ("batch0", "batch1"):
        simulate.write_10x(half[half.obs["batch"] == batch].copy(), tmp_path)
    adata = read_10x(tmp_path)
    names = list(adata.uns["guides"].index)
    assert len(names) == adata.obsm["guides"].shape[1] == 15
    own = [i for i, name in enumerate(names) if not name.startswith("NT")]
    second = np.flatnonzero(adata.obs["batch"] == "batch1")
    assert adata.obsm["guides"][second][:, own].nnz == 0


def test_other_features_are_left_out_and_said(lanes, tmp_path):
    file = shutil.copy(lanes[0] / "batch0" / FILE, tmp_path / FILE)
    with h5py.File(file, "r+") as out:
        kinds = out["matrix/features/feature_type"][:]
        kinds[:2] = b"Antibody Capture"
        out["matrix/features/feature_type"][...] = kinds
        out["matrix/features/target_gene_name"] = np.array([b"X"] * len(kinds))
    adata = read_10x(file)
    assert adata.n_vars == 58 and "2 features of Antibody Capture" in steps(adata)["rule"].iloc[0]
    assert set(adata.uns["guides"]["target_gene_name"]) == {"X"}


def test_unusable_folders_and_files_are_refused_by_name(lanes, tmp_path):
    with pytest.raises(PyrocellError, match="absent is not a file or folder"):
        read_10x(tmp_path / "absent")
    with pytest.raises(PyrocellError, match=f"holds no {FILE} and no matrix.mtx.gz"):
        read_10x(tmp_path)
    (tmp_path / FILE).write_bytes((lanes[0] / "batch0" / FILE).read_bytes()[:3000])
    with pytest.raises(PyrocellError, match=FILE):
        read_10x(tmp_path)


def test_lanes_of_different_references_are_refused(pool, tmp_path):
    simulate.write_10x(pool, tmp_path)
    other = pool[pool.obs["batch"] == "batch1", :50].copy()
    simulate.write_10x(other, tmp_path)
    with pytest.raises(PyrocellError, match="differ in 10 genes"):
        read_10x(tmp_path)
