"""Panels of genes that tell a perturbation: found where planted, at chance where there is none."""

from __future__ import annotations

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData
from hypothesis import given
from hypothesis import strategies as st

import pyrocell
from pyrocell.errors import ScreenError, UnknownLabelError
from pyrocell.posterior.signature import auroc

GENES = [f"g{i}" for i in range(30)]


def planted(seed: int = 0, effect: float = 1.2, n: int = 60, n_batches: int = 4) -> AnnData:
    """Knockout A moves g1, its copy g2, and g3; batches move all genes; B and its like nothing."""
    rng = np.random.default_rng(seed)
    label = np.repeat(["control", "g0", "B"], [3 * n, n, n])
    batch = np.concatenate([np.arange(k) % n_batches for k in (3 * n, n, n)])
    log = rng.normal(1, 0.5, 30) + 0.4 * rng.normal(size=(n_batches, 30))[batch]
    hit = label == "g0"
    cell = rng.normal(0, 0.3, len(label))
    log[:, 2] = log[:, 1] = 1.5 + cell + effect * hit
    log[:, 3] = 1.5 - effect * hit
    log[:, 0] = 1.5 - 3 * hit  # the perturbed gene itself
    counts = sp.csr_matrix(rng.poisson(np.exp(log)).astype(np.float32))
    obs = pd.DataFrame({"perturbation": label, "batch": [f"b{b}" for b in batch]})
    obs.index = [f"cell{i}" for i in range(len(label))]
    adata = AnnData(counts, obs, pd.DataFrame(index=GENES))
    return adata


@pytest.fixture(scope="module")
def model(build):
    out = build(planted())
    out.train(max_epochs=5, progress_bar=False)
    return out


def test_a_planted_panel_is_found_and_told_on_batches_that_were_held_out(model):
    found = model.signature("g0", n_genes=4, n_shuffles=5)
    assert list(found["rank"]) == [1, 2, 3, 4]
    assert {"g1", "g2"} & set(found["gene"][:2]) and "g3" in set(found["gene"][:2])
    assert found["auroc_with"].iloc[1] > 0.9
    assert found["held_out"].iloc[0].startswith("batches b")
    assert (found["lower"] <= found["auroc_with"]).all()
    assert (found["auroc_with"] <= found["upper"]).all()
    # the perturbed gene tells more than any other, and is left out unless it is asked for
    assert "g0" not in set(found["gene"])
    assert model.signature("g0", n_genes=2, n_shuffles=1, own_gene=True)["gene"][0] == "g0"


def test_labels_that_mean_nothing_are_at_chance(model):
    found = model.signature("B", n_genes=3, n_shuffles=20)
    # 20 held-out cells against 60 controls: standard deviation .075, of the mean of 20 shuffles .02
    assert found["auroc_shuffled"].to_numpy() == pytest.approx(0.5, abs=0.07)
    assert found["auroc_with"].to_numpy() == pytest.approx(0.5, abs=0.2)
    assert (found["lower"] < 0.5).any() and (found["upper"] > 0.5).all()


def test_chance_is_one_half_over_many_splits(model):
    aurocs = [
        model.signature("B", 3, n_shuffles=1, n_samples=2, seed=s)["auroc_with"].iloc[-1]
        for s in range(12)
    ]
    assert np.mean(aurocs) == pytest.approx(0.5, abs=0.1)  # the same cells in every split


def test_one_batch_is_split_by_cells(build):
    adata = planted(1, n_batches=1)
    model = build(adata)
    model.train(max_epochs=1, progress_bar=False)
    found = model.signature("g0", 2, n_shuffles=1)
    assert set(found["held_out"]) == {"cells"} and found["auroc_with"].iloc[-1] > 0.85
    assert found["n_train"].iloc[0] + found["n_test"].iloc[0] == 60


def test_the_same_seed_gives_the_same_panel_and_figures_show_it(model):
    first, again = (model.signature("g0", 3, n_shuffles=2) for _ in range(2))
    pd.testing.assert_frame_equal(first, again)
    axes = pyrocell.pl.signature(first)
    assert len(axes) == 2
    with pytest.raises(ScreenError, match="rows of one"):
        pyrocell.pl.signature(pd.concat([first, first.assign(perturbation="B")]))


def test_what_cannot_be_asked_is_refused_by_name(model):
    with pytest.raises(UnknownLabelError):
        model.signature("nobody")
    with pytest.raises(ScreenError, match="is the control"):
        model.signature("control")
    with pytest.raises(ScreenError, match="has 0 cells"):
        model.signature("g0+B")
    with pytest.raises(ScreenError, match="test_size=1.5"):
        model.signature("g0", test_size=1.5)


@given(st.integers(0, 2**31), st.floats(-5, 5))
def test_what_a_batch_adds_does_not_change_an_auroc(seed, shift):
    rng = np.random.default_rng(seed)
    batch, responds = rng.integers(0, 3, 60), rng.random(60) < 0.4
    score = rng.normal(size=60).round(1)
    moved = score + shift * batch
    assert auroc(moved.round(6), responds, batch) == pytest.approx(
        auroc(score, responds, batch), abs=1e-9
    )
    assert 1 - auroc(-score, responds, batch) == pytest.approx(auroc(score, responds, batch))
