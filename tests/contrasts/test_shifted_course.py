"""Shifts in time: found where they are, none where there are none, and laws of the likelihood."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.special import expit

from pyrocell.contrasts.cell_factors import cell_factors
from pyrocell.contrasts.shifted_course import Levels, ShiftPosterior, fit_course, shift_posterior

TIMES = np.arange(5.0)


def levels(
    seed: int, delay: float, rms: float = 0.0, n_genes: int = 30, sd: float = 0.05
) -> Levels:
    """Levels of genes that switch one after the other, with independent errors."""
    rng = np.random.default_rng(seed)
    switch, size = rng.uniform(-0.5, 4.5, n_genes), 1.2 * rng.standard_normal(n_genes)
    course = lambda t: size * expit((t[:, None] - switch) / 0.7)  # noqa: E731
    other = rms * rng.standard_normal(n_genes) * (rng.random(n_genes) < 0.3)
    value = np.concatenate([course(TIMES), course(TIMES - delay) + other])
    noise = np.tile(sd**2 * np.eye(10), (n_genes, 1, 1))
    value = value + sd * rng.standard_normal(value.shape)
    return Levels(np.tile(TIMES, 2), 5, value, noise, np.zeros((10, 1, n_genes)))


def posterior(seen: Levels, n_samples: int = 20) -> ShiftPosterior:
    return shift_posterior(seen, fit_course(seen), 0.5, n_samples, np.random.default_rng(0))


def explained(found: ShiftPosterior) -> float:
    whole = ((found.moved + found.other) ** 2).sum((1, 2))
    return float((1 - (found.other**2).sum((1, 2)) / whole).mean())


@pytest.mark.parametrize("delay", [-0.6, 0.5, 1.2])
def test_a_pure_shift_is_found_and_explains_the_effect(delay):
    found = posterior(levels(1, delay))
    assert found.quantile(0.005) < delay < found.quantile(0.995)
    assert found.none < 0.01 and explained(found) > 0.85
    assert found.above_zero() == pytest.approx(float(delay > 0), abs=0.01)


def test_other_effects_are_not_taken_for_a_shift():
    found = posterior(levels(2, 0.0, rms=0.5))
    assert found.none > 0.5 and explained(found) < 0.2
    assert found.quantile(0.005) < 0 < found.quantile(0.995)


def test_a_shift_beside_other_effects_is_part_of_the_explanation():
    found = posterior(levels(3, 0.8, rms=0.6))
    assert found.quantile(0.005) < 0.8 < found.quantile(0.995)
    assert 0.1 < explained(found) < 0.9


def test_time_run_backwards_turns_a_delay_into_an_advance():
    seen = levels(4, 0.5, n_genes=12)
    turned = replace(seen, times=4 - seen.times)
    ahead, back = posterior(seen, 2), posterior(turned, 2)
    assert back.quantile(0.5) == pytest.approx(-ahead.quantile(0.5), abs=0.01)
    assert back.none == pytest.approx(ahead.none, abs=1e-3)


def test_the_level_of_a_gene_does_not_matter():
    seen = levels(5, 0.5, n_genes=12)
    raised = replace(seen, value=seen.value + np.linspace(-3, 3, 12))
    a, b = posterior(seen, 2), posterior(raised, 2)
    np.testing.assert_allclose(a.mass, b.mass, atol=1e-6)


def test_errors_that_genes_share_make_a_shift_less_certain():
    seen = levels(6, 0.5, n_genes=20)
    slope = np.gradient(seen.value[:5], axis=0)
    factor = 0.15 * np.concatenate([slope, slope])[:, None]  # cells .15 ahead or behind
    a, b = posterior(seen, 2), posterior(replace(seen, factor=factor), 2)
    width = [each.quantile(0.95) - each.quantile(0.05) for each in (a, b)]
    assert width[1] > 1.5 * width[0]
    # no sample of cells is closer than .15 to the mean of cells: over ten of them, a shift is
    assert width[1] > 2 * 1.645 * 0.5 * 0.15 * np.sqrt(2 / 5)


def test_axes_on_which_cells_differ_are_found_in_their_counts():
    rng = np.random.default_rng(0)
    axis = 0.4 * rng.standard_normal(20)
    group = np.repeat(np.arange(6), 100)
    log = 2 + 0.3 * rng.standard_normal((6, 20))[group] + rng.standard_normal((600, 1)) * axis
    size = np.exp(0.2 * rng.standard_normal(600))
    counts = sp.csr_matrix(rng.poisson(size[:, None] * np.exp(log)))
    found = cell_factors(counts, size, group, 2, 0)
    direction = axis / np.linalg.norm(axis)
    along = ((found @ direction) ** 2).sum()
    assert along == pytest.approx(axis @ axis, rel=0.35)  # expression is convex in the state
    assert along > 0.7 * (found**2).sum()
    assert not cell_factors(counts[:6], size[:6], group[:6], 2, 0).any()
