"""The mixture of responders and escapers is a likelihood with the cells' indicators summed out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp

from pyrocell.posterior.strength.cell_evidence import STRENGTHS
from pyrocell.posterior.strength.mixture import EFFICACIES, ESCAPERS, GuideMixture, response_of


def cells_at(strength: np.ndarray, information: float, seed: int = 0) -> np.ndarray:
    """Log evidence of cells whose effect is told with a normal error, (n, S)."""
    seen = strength + np.random.default_rng(seed).normal(size=len(strength)) / information**0.5
    return -0.5 * information * (seen[:, None] - STRENGTHS) ** 2


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.integers(2, 12))
def test_likelihood_of_a_guide_is_the_sum_over_who_responded(seed, n):
    rng = np.random.default_rng(seed)
    log = cells_at(rng.random(n) < 0.7, 5.0, seed)
    mixture = GuideMixture(log, np.zeros(n, np.int64), np.zeros(1, np.int64))
    a, r = rng.integers(len(EFFICACIES)), rng.integers(len(ESCAPERS))
    total = []
    for code in range(2**n):  # every assignment of responders
        on = np.array([(code >> i) & 1 for i in range(n)], bool)
        each = np.where(on, np.log1p(-ESCAPERS[r]) + mixture.ratio[:, a], np.log(ESCAPERS[r]))
        total.append(each.sum())
    assert mixture.log_likelihood[0, a, r] == pytest.approx(logsumexp(total), abs=1e-8)


def test_cells_that_say_nothing_leave_efficacies_and_escapers_at_their_prior():
    n = 200
    guide = np.repeat(np.arange(4), n // 4)
    flat = GuideMixture(np.zeros((n, len(STRENGTHS))), guide, np.array([0, 0, 1, 1]))
    found = flat.draw(400, np.random.default_rng(1))
    alone = GuideMixture(np.zeros((0, len(STRENGTHS))), guide[:0], np.array([0, 0, 1, 1]))
    prior = alone.draw(400, np.random.default_rng(2))
    for name in ("efficacy", "escapers"):
        here, there = getattr(found, name), getattr(prior, name)
        error = 4 * there.std() / np.sqrt(400 / 8)  # draws share the screen's spreads
        assert here.mean() == pytest.approx(there.mean(), abs=error)
    assert found.responded.std() < 0.05


def test_efficacy_and_escapers_are_found_where_cells_tell():
    rng = np.random.default_rng(3)
    truth, escaped = np.array([1.2, 0.6, 1.0, 1.0]), np.array([0.3, 0.3, 0.1, 0.5])
    guide = np.repeat(np.arange(4), 150)
    strength = truth[guide] * (rng.random(600) > escaped[guide])
    mixture = GuideMixture(cells_at(strength, 40.0), guide, np.array([0, 0, 1, 1]))
    found = mixture.draw(200, rng)
    low, high = np.quantile(found.efficacy, [0.005, 0.995], axis=0)
    assert ((low < truth) & (truth < high)).all() and (high - low).max() < 0.3
    np.testing.assert_allclose(found.escapers.mean(0), escaped, atol=0.12)
    assert np.corrcoef(found.responded, strength > 0)[0, 1] > 0.9
    assert np.abs(found.indicator - found.responded).mean() < 0.2


def test_the_order_of_guides_and_cells_does_not_matter():
    rng = np.random.default_rng(4)
    guide = rng.integers(0, 3, 90)
    log = cells_at((rng.random(90) < 0.8).astype(float), 10.0)
    one = GuideMixture(log, guide, np.array([0, 0, 1])).log_likelihood
    order = rng.permutation(90)
    other = GuideMixture(log[order], 2 - guide[order], np.array([1, 0, 0])).log_likelihood
    np.testing.assert_allclose(one, other[::-1], atol=1e-8)


def test_a_cell_is_judged_alike_by_the_fit_and_afterwards():
    log = cells_at(np.array([0.0, 1.0, 0.4]), 20.0)
    mixture = GuideMixture(log, np.zeros(3, np.int64), np.zeros(1, np.int64))
    place, share = 20, 0.25
    odds = mixture.ratio[:, place] + np.log(1 - share) - np.log(share)
    efficacy, escapers = np.full((1, 3), EFFICACIES[place]), np.full((1, 3), share)
    np.testing.assert_allclose(
        response_of(log, efficacy, escapers), 1 / (1 + np.exp(-odds)), atol=1e-6
    )
