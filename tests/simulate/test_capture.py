"""Simulated lanes with captured guides."""

from __future__ import annotations

import numpy as np
import pytest

from pyrocell import preprocess, simulate
from pyrocell.simulate import GuideCapture, write_10x

SMALL = {"n_perturbations": 3, "n_genes": 20, "n_cells_per_condition": 40, "n_controls": 80}


@pytest.fixture(scope="module")
def pool():
    return simulate.screen(n_batches=2, **SMALL)


def test_without_multiplets_and_ambient_every_droplet_has_its_own_guide(pool, tmp_path):
    capture = GuideCapture(multiplets=0, ambient=0, own=200)
    truth = write_10x(pool, tmp_path, capture)
    adata = preprocess.read_10x(tmp_path)
    names = adata.uns["guides"].index
    counts = adata.obsm["guides"]
    assert (np.diff(counts.tocsr().indptr) <= 1).all() and (truth["n_cells"] == 1).all()
    seen = counts.getnnz(1) == 1
    assert list(names[counts[seen].indices]) == list(truth["guides"][seen])
    assert sorted(truth["cells"]) == sorted(pool.obs_names)


def test_ambient_guides_follow_the_counts_of_the_lane(pool, tmp_path):
    truth = write_10x(pool, tmp_path, GuideCapture(multiplets=0, ambient=50, ambient_sd=0))
    adata = preprocess.read_10x(tmp_path)
    counts, names = adata.obsm["guides"].toarray(), adata.uns["guides"].index
    own = truth["guides"].to_numpy()[:, None] == names.to_numpy()
    # What falls on the guide of the droplet itself is not told apart from its own counts.
    expected = 50 * (1 - (counts.sum(0) / counts.sum())[names.get_indexer(truth["guides"])])
    assert (counts * ~own).sum(1).mean() == pytest.approx(expected.mean(), rel=0.05)
    absent = names == "NT_5"
    assert 0 < counts[:, absent].sum() and not own[:, absent].any()


def test_the_screen_stays_and_the_same_seed_gives_the_same_files(pool, tmp_path):
    before = pool.copy()
    first = write_10x(pool, tmp_path / "a", seed=4)
    second = write_10x(pool, tmp_path / "b", seed=4)
    assert first.equals(second) and (pool.X != before.X).nnz == 0
    a, b = (preprocess.read_10x(tmp_path / name) for name in "ab")
    assert (a.obsm["guides"] != b.obsm["guides"]).nnz == 0


def test_settings_out_of_range_are_refused(pool, tmp_path):
    for change in ({"multiplets": 1.5}, {"own": 0}, {"ambient": -1}, {"control_guides": 0}):
        with pytest.raises(ValueError, match=next(iter(change))):
            GuideCapture(**change)
    with pytest.raises(ValueError, match='neither "h5" nor "mtx"'):
        write_10x(pool, tmp_path, kind="csv")
