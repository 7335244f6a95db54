"""Levels of conditions: their errors are as large as they say, with few cells or many batches."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from pyrocell.contrasts.levels import condition_levels
from pyrocell.errors import UnknownLabelError

GENES, CONDITIONS = 300, 8


def draw(rng, cells: int, batches: int, balanced: bool = True, sd: float = 0.2, theta: float = 1.0):
    """Negative binomial counts of conditions in batches, and their true log levels."""
    condition = np.repeat(np.arange(CONDITIONS), cells)
    batch = np.tile(np.arange(batches), -(-len(condition) // batches))[: len(condition)]
    if not balanced:
        batch = np.where(rng.random(len(batch)) < 0.7, condition % batches, batch)
    level = rng.normal(1.0, 0.7, GENES) + rng.normal(0, 0.3, (CONDITIONS, GENES))
    eta = rng.normal(0, sd, (batches, GENES)) if batches > 1 else np.zeros((1, GENES))
    size = np.exp(rng.normal(0, 0.3, len(condition)))
    mean = size[:, None] * np.exp(level[condition] + eta[batch])
    counts = rng.poisson(mean * rng.gamma(theta, 1 / theta, mean.shape))
    return sp.csr_matrix(counts), size, condition, batch, level


@pytest.mark.parametrize(
    ("cells", "batches", "balanced"),
    [(12, 1, True), (24, 3, True), (100, 4, True), (60, 4, False), (200, 2, False)],
)
def test_errors_of_contrasts_have_the_variance_stated(cells, batches, balanced):
    rng = np.random.default_rng(cells)
    scores = []
    for _ in range(4):
        *data, level = draw(rng, cells, batches, balanced)
        levels = condition_levels(*data, np.full(GENES, 0.2))
        for c in range(1, CONDITIONS):
            weights = {c: 1.0, 0: -1.0}
            found = levels.contrast(weights)
            variance = found.variance + levels.batch_variance(weights)
            judged = levels.expected.min(0) >= 5
            scores.append(((found.value - level[c] + level[0])[judged]) / np.sqrt(variance[judged]))
    scores = np.concatenate(scores)
    # rows share condition 0, and the draws the law of η: about 4 × 300 × 4 independent errors
    assert (scores**2).mean() == pytest.approx(1, abs=0.1)
    assert abs(scores.mean()) < 0.06


def test_batch_noise_common_to_two_conditions_leaves_their_contrast():
    rng = np.random.default_rng(0)
    *data, level = draw(rng, 200, 2, sd=2.0)
    levels = condition_levels(*data, np.full(GENES, 2.0))
    weights = {1: 1.0, 0: -1.0}
    found = levels.contrast(weights)
    error = (found.value - level[1] + level[0]) ** 2 / found.variance
    assert error[levels.expected.min(0) >= 5].mean() == pytest.approx(1, abs=0.25)
    assert levels.batch_variance(weights).max() < 1e-5


def test_a_contrast_across_batches_carries_the_noise_of_batches():
    rng = np.random.default_rng(1)
    counts, size, condition, _, _ = draw(rng, 100, 1)
    levels = condition_levels(counts, size, condition, condition % 2, np.full(GENES, 0.3))
    # each of two batches was seen in four conditions with free levels: nothing is known of η
    np.testing.assert_allclose(levels.batch_variance({1: 1.0, 0: -1.0}), 2 * 0.09, rtol=1e-6)
    assert levels.batch_variance({2: 1.0, 0: -1.0}).max() < 1e-12


def test_the_number_of_cells_is_what_spreads_shared_noise():
    counts, size, condition, batch, _ = draw(np.random.default_rng(2), 50, 1)
    levels = condition_levels(counts, np.ones_like(size), condition, batch, np.ones(GENES))
    assert levels.contrast({3: 1.0, 4: -0.5}).spread == pytest.approx(1.25 / 50)


def test_genes_without_counts_have_no_information_and_no_infinity():
    counts, size, condition, batch, _ = draw(np.random.default_rng(3), 30, 2)
    counts = counts.tolil()
    counts[:, 0] = 0
    counts[condition == 2, 1] = 0
    levels = condition_levels(counts.tocsr(), size, condition, batch, np.full(GENES, 0.2))
    assert np.isfinite(levels.value).all() and np.isfinite(levels.variance).all()
    assert (levels.expected[:, 0] < 1e-6).all() and (levels.expected[:, 1] > 0).all()


def test_a_few_very_deep_cells_of_another_kind_do_not_decide():
    rng = np.random.default_rng(4)
    counts, size, condition, batch, level = draw(rng, 100, 1)
    counts = counts.toarray()
    deep = np.flatnonzero(condition == 1)[:3]
    other = np.exp(rng.normal(1.0, 1.0, GENES))
    counts[deep], size[deep] = rng.poisson(20 * other, (3, GENES)), 20.0
    levels = condition_levels(sp.csr_matrix(counts), size, condition, batch, np.ones(GENES))
    contrast = levels.contrast({1: 1.0, 0: -1.0})
    error = contrast.value - level[1] + level[0]
    pooled = np.log(counts[condition == 1].sum(0) / size[condition == 1].sum()) - level[1]
    assert (error**2).mean() < 0.25 * (pooled**2).mean()


@pytest.mark.filterwarnings("ignore")  # of a model that was not trained: none is needed
def test_counts_alone_leave_a_true_zero_out_one_time_in_twenty(make_screen, build):
    adata = make_screen(
        n_perturbations=40, n_genes=60, silent_fraction=1.0, on_target=None,
        n_cells_per_condition=60, n_controls=1200, mean_library=600.0,
    )  # fmt: skip
    model = build(adata, {})
    table = model.perturbation_effects(shrunken=False, credible_level=0.95)
    outside = ((table.lower > 0) | (table.upper < 0)).mean()
    # 2,400 effects whose errors share eight axes of cell state: some 800 independent ones
    assert outside == pytest.approx(0.05, abs=0.023)
    shown = model.perturbation_effects(n_samples=2)
    names = {"lfsr": "p", "fdr": "q"}
    assert set(table.columns) == set(shown.rename(columns=names).columns)
    assert (table.perturbation == shown.perturbation).all() and (table.gene == shown.gene).all()


def test_counts_alone_say_nothing_of_what_was_not_measured(fitted):
    pair = next(label for label in fitted.screen.conditions.perturbation if "+" in label)
    asked = {"media": "medium0", "time": 2.0, "shrunken": False}
    one = fitted.perturbation_effects(pair, **asked, credible_level=0.5)
    wide = fitted.perturbation_effects(pair, **asked)
    assert (wide.upper - wide.lower).gt(one.upper - one.lower).all()
    first, *_, last = fitted.screen.perturbations
    with pytest.raises(UnknownLabelError):
        fitted.perturbation_effects(f"{first}+{last}", **asked)
