"""Laws of scores of predicted changes: what the truth, noise and constants get."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrocell import metrics

seeds = st.integers(0, 2**16)


def changes(seed: int, n: int = 6, genes: int = 30) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, genes))


@given(seeds)
def test_the_truth_gets_the_best_scores(seed):
    observed = changes(seed)
    weights = metrics.weights_of_evidence(observed[0])
    changed = np.abs(observed[0]) >= np.sort(np.abs(observed[0]))[-8]
    found = metrics.delta_scores(observed[0], observed[0], weights, changed)
    best = {"wmse": 0, "mse": 0} | dict.fromkeys(
        ("spearman", "pearson", "de_overlap", "de_direction", "de_auroc"), 1
    )
    assert found == pytest.approx(best)
    assert metrics.discrimination(observed[0], observed, 0) == 1


@given(seeds, st.floats(0.1, 10))
def test_a_forecast_that_is_the_same_for_all_genes_scores_chance(seed, value):
    observed = changes(seed)
    changed = np.arange(30) < 6
    weights = metrics.weights_of_evidence(observed[0])
    found = metrics.delta_scores(np.zeros(30), observed[0], weights, changed)
    chance = {"spearman": 0, "pearson": 0, "de_overlap": 0.2, "de_direction": 0.5, "de_auroc": 0.5}
    assert {k: found[k] for k in chance} == pytest.approx(chance)
    assert metrics.discrimination(np.zeros(30), observed, 3) == 0.5
    same = metrics.delta_scores(np.full(30, value), observed[0], weights, changed)
    assert same["spearman"] == same["pearson"] == 0 and same["de_overlap"] == pytest.approx(0.2)


@given(seeds, st.floats(0.01, 100))
def test_ranks_do_not_see_the_scale_of_a_forecast(seed, scale):
    observed, forecast = changes(seed), changes(seed + 1)[0]
    changed, weights = np.arange(30) < 6, np.full(30, 1 / 30)
    a, b = (
        metrics.delta_scores(f, observed[0], weights, changed) for f in (forecast, forecast * scale)
    )
    for name in ("spearman", "de_overlap", "de_direction", "de_auroc"):
        assert a[name] == pytest.approx(b[name])
    assert metrics.discrimination(forecast, observed, 0) == pytest.approx(
        metrics.discrimination(scale * forecast, observed, 0)
    )


def test_a_forecast_that_knows_nothing_discriminates_by_chance():
    found = [metrics.discrimination(changes(s + 500)[0], changes(s), 0) for s in range(400)]
    assert np.mean(found) == pytest.approx(0.5, abs=0.05)


@given(seeds)
def test_weights_follow_the_evidence_and_sum_to_one(seed):
    t = changes(seed)[0]
    weights = metrics.weights_of_evidence(t)
    assert weights.sum() == pytest.approx(1) and (weights >= 0).all()
    assert weights.argmax() == np.abs(t).argmax()
    assert metrics.weights_of_evidence(np.zeros(5)) == pytest.approx(0.2)
    assert np.isfinite(metrics.weights_of_evidence([np.nan, np.inf, 1.0, 2.0])).all()


def test_the_probability_score_prefers_the_right_width():
    rng = np.random.default_rng(1)
    truth = rng.normal(size=2000)
    scores = {w: metrics.crps(w * rng.normal(size=(50, 2000)), truth).mean() for w in (0.3, 1, 3)}
    assert scores[1] < scores[0.3] and scores[1] < scores[3]
    assert scores[1] == pytest.approx(np.sqrt(1 / np.pi), abs=0.02)  # E of a calibrated normal
    assert metrics.crps(truth[None] + 1, truth) == pytest.approx(np.ones(2000))


def test_without_changed_genes_their_scores_are_missing():
    found = metrics.delta_scores(np.ones(4), np.arange(4), np.full(4, 0.25), np.zeros(4, bool))
    assert np.isnan(found["de_overlap"]) and np.isfinite(found["mse"])
