"""The regression in closed form: what it nests, what it learns, what it says of shuffled names."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest, spearmanr

from pyrocell.knowledge import EffectRegression, Knowledge, permutation_evidence
from pyrocell.knowledge.regression import (
    NO_KNOWLEDGE,
    covariance,
    fit_shares,
    left_out,
    share_grid,
    weights_of,
)


def groups(n: int, size: int, rng: np.random.Generator) -> tuple[np.ndarray, list[str]]:
    """A kernel of n genes in groups of like genes, and their names."""
    kernel = np.kron(np.eye(n // size), np.ones((size, size)))
    return 0.9 * kernel + 0.1 * np.eye(n), [f"g{i}" for i in rng.permutation(n)]


def knowledge_of(kernel: np.ndarray, names: list[str]) -> Knowledge:
    return Knowledge.from_kernel(pd.DataFrame(kernel, index=names, columns=names))


def effects_of(kernel: np.ndarray, share: float, axes: int, rng: np.random.Generator):
    root = np.linalg.cholesky(share * kernel + (1 - share) * np.eye(len(kernel)))
    return root @ rng.normal(size=(len(kernel), axes)) + rng.normal(size=axes)


@pytest.mark.parametrize("n_sources", [0, 1, 2, 3, 5])
def test_half_of_the_prior_is_that_nobody_knows_anything(n_sources):
    points, log_prior = share_grid(n_sources)
    assert (points[0] == 0).all() and np.exp(log_prior).sum() == pytest.approx(1)
    assert np.exp(log_prior[0]) == pytest.approx(NO_KNOWLEDGE if n_sources else 1)
    assert (points.sum(1) <= 0.95 + 1e-9).all()
    for s in range(n_sources):  # every source alone, and each left out
        assert (points[:, s] == points.sum(1))[1:].any() and (points[1:, s] == 0).sum() >= 0


@given(st.integers(0, 2**31), st.integers(4, 12))
@settings(max_examples=15)
def test_without_knowledge_the_prediction_is_the_mean_of_the_others(seed, n):
    rng = np.random.default_rng(seed)
    effects = rng.normal(size=(n, 5)) * rng.gamma(1.0, 1.0, (n, 1))
    fit = EffectRegression(effects @ effects.T, [f"g{i}" for i in range(n)], None)
    found = fit.predict(["new"])
    assert np.allclose(found.weights, 1 / n)
    assert np.allclose(fit.left_out().weights, (1 - np.eye(n)) / (n - 1))


@given(st.integers(0, 2**31))
@settings(max_examples=15)
def test_leaving_one_out_is_what_predicting_it_from_the_others_says(seed):
    rng = np.random.default_rng(seed)
    n = 8
    a = rng.normal(size=(2, n, n + 2))
    kernels = np.stack([m @ m.T for m in a])
    size = np.sqrt(np.diagonal(kernels, axis1=1, axis2=2))
    kernels /= size[:, :, None] * size[:, None]
    effects = rng.normal(size=(n, 4))
    gram = effects @ effects.T
    fit = fit_shares(gram, kernels, rng.gamma(1.0, 0.3, n))
    weights, variance = left_out(fit, kernels)
    for i in range(n):
        others = np.delete(np.arange(n), i)
        part = replace(fit, noise=fit.noise[others])
        cross = kernels[:, [i]][:, :, others]
        found = weights_of(part, kernels[np.ix_([0, 1], others, others)], cross)
        assert np.allclose(found.weights[0], weights[i, others])
        assert found.variance[0] == pytest.approx(variance[i])
    assert np.allclose(weights.sum(1), 1) and np.allclose(np.diag(weights), 0)


def test_the_evidence_is_that_of_effects_whose_mean_and_scale_are_integrated_out():
    """A change of all effects by one vector, and of their unit, changes nothing."""
    rng = np.random.default_rng(1)
    kernel, _ = groups(12, 3, rng)
    effects = effects_of(kernel, 0.6, 4, rng)
    moved = 3 * (effects + rng.normal(size=4))
    a, b = (fit_shares(e @ e.T, kernel[None], dimensions=4.0) for e in (effects, moved))
    assert np.allclose(a.weights, b.weights)
    assert b.scale == pytest.approx(9 * a.scale)


def test_knowledge_that_holds_is_weighed_and_helps_where_shuffled_names_do_not():
    rng = np.random.default_rng(2)
    kernel, names = groups(60, 4, rng)
    effects = effects_of(kernel, 0.8, 6, rng)
    seen, new = np.arange(60) % 4 < 3, np.arange(60) % 4 == 3
    gram = effects[seen] @ effects[seen].T
    labels = [n for n, s in zip(names, seen, strict=True) if s]
    wanted = [n for n, s in zip(names, new, strict=True) if s]
    mixed = knowledge_of(kernel, [names[i] for i in rng.permutation(60)])
    error, share = {}, {}
    for kind, knowledge in {"true": knowledge_of(kernel, names), "shuffled": mixed}.items():
        fit = EffectRegression(gram, labels, knowledge)
        found = fit.predict(wanted)
        error[kind] = ((found.weights @ effects[seen] - effects[new]) ** 2).mean()
        share[kind] = fit.fit.mean_share()[0]
    mean = ((effects[seen].mean(0) - effects[new]) ** 2).mean()
    assert error["true"] < 0.6 * mean and share["true"] > 0.5
    assert error["shuffled"] < 1.05 * mean and share["shuffled"] < 0.1


def test_stated_errors_are_of_the_right_size_and_rank_true_ones():
    """Strength is a function of the gene, too: silent families are known to be silent."""
    rng = np.random.default_rng(3)
    kernel, names = groups(120, 6, rng)
    size = np.exp(np.repeat(rng.normal(0, 0.8, 20), 6) + rng.normal(0, 0.2, 120))
    effects = effects_of(kernel, 0.6, 6, rng)
    effects = size[:, None] * (effects - effects.mean(0))
    fit = EffectRegression(effects @ effects.T, names, knowledge_of(kernel, names))
    found = fit.left_out()
    error = ((found.weights @ effects - effects) ** 2).sum(1)
    assert spearmanr(found.error, error)[0] > 0.4
    assert 0.7 < error.mean() / found.error.mean() < 1.4


def test_measurement_error_takes_weight_from_a_neighbour():
    kernel = np.eye(6)
    kernel[0, 1] = kernel[1, 0] = 0.9
    kernel[2, 3] = kernel[3, 2] = 0.9
    effects = np.diag([1.0, 1, 1, 1, 1, 1]) @ np.ones((6, 6)) + 3 * covariance(
        kernel[None], np.ones(1)
    )
    gram = effects @ effects.T
    error = np.zeros(6)
    cross = np.zeros((1, 1, 6))
    cross[0, 0, 0] = 0.9
    weights = []
    for e in (0.0, 50.0):
        error[0] = e
        weights.append(weights_of(fit_shares(gram, kernel[None], error), kernel[None], cross))
    assert weights[1].weights[0, 0] < weights[0].weights[0, 0]
    assert weights[1].variance[0] > weights[0].variance[0]


def test_effects_that_are_all_alike_are_no_failure():
    names = [f"g{i}" for i in range(5)]
    knowledge = knowledge_of(np.eye(5), names)
    for effects in (np.zeros((5, 3)), np.ones((5, 3))):
        found = EffectRegression(effects @ effects.T, names, knowledge).predict(["g0", "other"])
        assert np.isfinite(found.weights).all() and np.allclose(
            found.weights @ effects, effects[:2]
        )
        assert np.isfinite(found.error).all()


# ---------------------------------------------------------------------- permutations
def test_the_evidence_of_a_source_stands_beside_that_of_shuffled_names():
    rng = np.random.default_rng(4)
    kernel, _ = groups(40, 4, rng)
    effects = effects_of(kernel, 0.7, 5, rng)
    gram, covered = effects @ effects.T, np.ones(40, bool)
    found = permutation_evidence(gram, kernel, covered, 0.0, 99, rng)
    assert found.p == pytest.approx(0.01) and found.log_bayes_factor > found.shuffled.max()
    fit = fit_shares(gram, kernel[None])
    alone = np.log(np.exp(fit.log_evidence[1:] - fit.log_evidence[0]).mean())
    assert found.log_bayes_factor == pytest.approx(alone, rel=1e-6)


def test_p_is_uniform_where_names_mean_nothing():
    rng = np.random.default_rng(5)
    kernel, _ = groups(24, 3, rng)
    covered, p = np.arange(24) < 21, []
    for _ in range(60):
        effects = rng.normal(size=(24, 4)) * rng.gamma(1.0, 1.0, (24, 1))
        found = permutation_evidence(effects @ effects.T, kernel, covered, 0.2, 39, rng)
        p.append(found.p)
    assert kstest(p, "uniform").pvalue > 0.01
    assert min(p) >= 1 / 40


def test_nothing_to_explain_is_no_evidence():
    found = permutation_evidence(
        np.zeros((5, 5)), np.eye(5), np.ones(5, bool), 0.0, 9, np.random.default_rng(0)
    )
    assert found.log_bayes_factor == 0 and found.p == 1
