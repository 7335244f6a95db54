"""Screens from simulators that were not written here: counts, labels, and a truth that is true."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import pyrocell

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
WHY = "{} is not installed; it is in the dependency group 'benchmark'"


@pytest.fixture(scope="module")
def mechanistic():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        module = pytest.importorskip("mechanistic")
        patch.setattr("mechanistic_grnlab.CLONES", 1)  # a fifth of the time
        yield module


@cache
def drawn(layout: str, cells: int = 12, seed: int = 0):
    pytest.importorskip("grnlab", reason=WHY.format("grnlab"))
    import mechanistic

    return mechanistic.screens("grnlab", layout, seed, cells)


def sizes(truth: pd.DataFrame, assumption: str, **where: str) -> pd.Series:
    part = truth[(truth["assumption"] == assumption) & truth["last"]]
    for column, value in where.items():
        part = part[part[column] == value]
    return part.set_index("perturbation")["size"]


def test_a_screen_holds_raw_counts_and_the_labels_that_the_model_asks_for(mechanistic):
    adata, _ = drawn("time")
    counts = adata.X.toarray()
    assert (counts == np.rint(counts)).all() and (counts >= 0).all() and counts.max() > 1
    assert set(adata.obs["media"]) == {"baseline", "stimulus"}
    assert adata.obs.groupby(["perturbation", "media"])["time"].nunique().eq(4).all()
    spread = adata.obs.groupby(["perturbation", "media", "time", "batch"]).size()
    assert spread.min() == 12 // 4  # evenly over batches
    pyrocell.PyroCell.setup_anndata(adata, media_key="media", time_key="time")
    model = pyrocell.PyroCell(adata, n_latent=2, n_response=0, n_hidden=8)
    assert set(model.screen.perturbations) == set(adata.obs["perturbation"]) - {"control"}


def test_truth_has_a_row_for_every_assumption_and_condition(mechanistic):
    _, truth = drawn("time")
    knockouts = len(mechanistic.LAYOUTS["time"].knockouts)
    assert set(truth.columns) == {
        "assumption", "perturbation", "media", "time_from", "time_to", "last", "size", "holds",
    }  # fmt: skip
    last = truth[truth["last"]].groupby("assumption").size()
    assert last.to_dict() == {
        "silent_at_baseline": knockouts,
        "no_response": knockouts,
        "steady": 2 * knockouts + 1,
        "steady_vs_control": 2 * knockouts,
    }
    assert truth["size"].notna().all()
    limit = np.where(truth["assumption"] == "no_response", 0.5, 0.05)
    assert (truth["holds"] == (truth["size"] < limit)).all()


def test_losing_a_gene_that_regulates_nothing_changes_nothing(mechanistic):
    _, truth = drawn("media", 200)
    inert = ["T1", "T3", "V1", "V2", "V3"]
    assert (sizes(truth, "silent_at_baseline")[inert] < 1e-3).all()
    assert sizes(truth, "no_response")[inert].to_numpy() == pytest.approx(1, abs=0.01)
    assert sizes(truth, "silent_at_baseline").max() > 0.1


def test_losing_the_first_gene_of_the_cascade_blocks_the_response(mechanistic):
    _, truth = drawn("media", 200)
    slopes = sizes(truth, "no_response")
    assert abs(slopes["A1"]) < 0.05
    assert slopes["A1"] < slopes["A2"] < slopes["A3"] < slopes["B1"]


def test_the_response_to_a_stimulus_is_no_steady_state_and_is_the_controls_own(mechanistic):
    _, truth = drawn("time")
    assert sizes(truth, "steady", media="stimulus")["control"] > 0.1
    assert sizes(truth, "steady", media="stimulus")["V1"] > 0.1
    assert sizes(truth, "steady_vs_control", media="stimulus")["V1"] < 1e-3
    assert sizes(truth, "steady_vs_control", media="stimulus")["A1"] > 0.1
    assert sizes(truth, "steady", media="baseline")["V1"] < 1e-3


def test_cells_drift_in_some_networks_and_not_in_others(mechanistic):
    for seed in range(4):
        _, truth = drawn("drift", seed=seed)
        size = sizes(truth, "necessary")["control"]
        assert (size < 1e-3) == (truth.attrs["drift"] == 0)
    assert {drawn("drift", seed=s)[1].attrs["drift"] > 0 for s in range(4)} == {True, False}


def test_truth_depends_on_the_seed_and_not_on_the_number_of_cells(mechanistic):
    few, many, other = (drawn("drift", *which)[1] for which in ((4, 0), (40, 0), (4, 1)))
    pd.testing.assert_frame_equal(few, many)
    assert not np.allclose(few["size"], other["size"])


def test_anchors_without_a_model_tell_large_effects_from_none(mechanistic):
    from anchors import anchors

    adata, truth = drawn("media", 200)
    found = truth[truth["last"]].merge(anchors(adata), how="left")
    assert found["estimate"].notna().all()
    effects, gains = (
        found[found["assumption"] == name] for name in ("silent_at_baseline", "no_response")
    )
    clear = effects[(effects["size"] < 0.01) | (effects["size"] > 0.1)]
    assert pyrocell.metrics.auroc(clear["holds"], -clear["estimate"]) > 0.95
    assert pyrocell.metrics.auroc(gains["holds"], -gains["estimate"]) > 0.95
    assert np.sqrt(np.mean((gains["estimate"] - gains["size"]) ** 2)) < 0.15


@pytest.mark.slow  # harissa's sampler is compiled
def test_expected_mrna_in_harissa_is_that_of_its_cells(mechanistic):
    pytest.importorskip("harissa", reason=WHY.format("harissa"))
    from mechanistic_harissa import Harissa
    from networks import draw_network

    rng = np.random.default_rng(0)
    world = Harissa(draw_network(rng), rng)
    n, time = 1500, 6.0
    for knockout, stimulus in ((None, None), ("U1", None), ("A2", 2.0)):
        cells = world.cells(knockout, stimulus, time, n)
        expected = world.expected(knockout, stimulus, (3.0, time))[:, -1]
        assert (cells >= 0).all()
        error = np.sqrt(cells.var(axis=0) / n + expected.var(axis=0) + (0.02 * cells.mean(0)) ** 2)
        z = (cells.mean(axis=0) - expected.mean(axis=0)) / np.maximum(error, 1e-9)
        assert np.abs(z).max() < 4.5
    inert = world.expected("V1", None, (3.0, time)) - world.expected(None, None, (3.0, time))
    own = np.array(world.network.genes) == "V1"
    assert (inert[..., ~own] == 0).all()
