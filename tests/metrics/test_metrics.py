"""Laws of scores: what perfect, constant and calibrated forecasters get."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrocell import metrics

outcomes = st.lists(st.tuples(st.booleans(), st.floats(0, 1)), min_size=1, max_size=60).map(
    lambda pairs: tuple(map(np.array, zip(*pairs)))
)


@given(outcomes)
def test_a_perfect_forecast_gets_the_best_scores(drawn):
    happened, _ = drawn
    assert metrics.brier(happened, happened.astype(float)) == 0
    assert metrics.expected_calibration_error(happened, happened.astype(float)) == 0
    if len(set(happened)) == 2:
        assert metrics.auroc(happened, happened.astype(float)) == 1


@given(outcomes)
def test_the_base_rate_is_calibrated_and_ranks_nothing(drawn):
    happened, _ = drawn
    rate = happened.mean()
    forecast = np.full(len(happened), rate)
    assert metrics.brier(happened, forecast) == pytest.approx(rate * (1 - rate))
    assert metrics.expected_calibration_error(happened, forecast) == pytest.approx(0, abs=1e-12)
    if len(set(happened)) == 2:
        assert metrics.auroc(happened, forecast) == 0.5


@given(outcomes, st.randoms(use_true_random=False))
def test_scores_do_not_depend_on_the_order(drawn, random):
    happened, probability = drawn
    order = random.sample(range(len(happened)), len(happened))
    for score in (metrics.auroc, metrics.brier, metrics.expected_calibration_error):
        before, after = score(happened, probability), score(happened[order], probability[order])
        assert before == pytest.approx(after, nan_ok=True)


@given(outcomes)
def test_auroc_sees_the_ranks_only_and_reverses_with_them(drawn):
    happened, probability = drawn
    if len(set(happened)) < 2:
        assert np.isnan(metrics.auroc(happened, probability))
        return
    rank = np.unique(probability, return_inverse=True)[1]
    area = metrics.auroc(happened, probability)
    assert metrics.auroc(happened, rank) == pytest.approx(area)
    assert metrics.auroc(happened, -rank) == pytest.approx(1 - area)


def test_calibration_error_of_a_calibrated_forecaster_goes_to_zero():
    rng = np.random.default_rng(0)
    errors = []
    for n in (100, 10_000, 1_000_000):
        probability = rng.random(n)
        errors.append(metrics.expected_calibration_error(rng.random(n) < probability, probability))
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.002


def test_the_reliability_table_counts_every_forecast_once():
    happened, probability = np.array([0, 1, 1, 0]), np.array([0.0, 0.2, 1.0, 0.99])
    table = metrics.reliability_table(happened, probability, n_bins=5)
    assert table["n"].tolist() == [1, 1, 0, 0, 2]
    assert table["observed"].tolist()[:2] == [0, 1]
    assert table.loc[4, "forecast"] == pytest.approx(0.995)
    assert table.loc[4, "standard_error"] == pytest.approx(np.sqrt(0.125))
    assert table.loc[[2, 3], ["forecast", "observed", "standard_error"]].isna().all(axis=None)


def test_coverage_of_nominal_intervals_is_nominal_within_its_error():
    rng = np.random.default_rng(1)
    truth = rng.standard_normal(4000)
    estimate = truth + rng.standard_normal(4000)
    found = metrics.coverage(estimate - 1.645, estimate + 1.645, truth)
    assert found.n == 4000
    assert abs(found.share - 0.9) < 3 * found.standard_error
    assert found.standard_error == pytest.approx(np.sqrt(0.09 / 4000), rel=0.1)


@pytest.mark.parametrize(
    ("score", "arguments", "says"),
    [
        (metrics.brier, ([True], [1.2]), "must lie in"),
        (metrics.brier, ([True, False], [0.5]), "one length"),
        (metrics.auroc, ([], []), "not empty"),
        (metrics.auroc, ([0, 2], [0.1, 0.2]), "booleans"),
        (metrics.auroc, ([0, 1], [0.1, np.nan]), "1 forecasts are NaN"),
        (metrics.reliability_table, ([True], [0.5], 0), "n_bins=0"),
        (metrics.coverage, ([], [], []), "no intervals"),
        (metrics.coverage, ([1], [0], [0]), "lie above"),
        (metrics.coverage, ([0], [np.nan], [0]), "NaN"),
    ],
)
def test_what_cannot_be_scored_is_refused(score, arguments, says):
    with pytest.raises(ValueError, match=says):
        score(*arguments)
