"""Evidence in closed form: against densities written out, and how it behaves at the extremes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp
from scipy.stats import multivariate_normal, norm

from pyrocell.contrasts import evidence
from pyrocell.contrasts.evidence import (
    ContrastEstimate,
    log_size_evidence,
    log_slope_evidence,
    without_common,
)

SIZES = np.array([0.01, 0.05, 0.2, 0.8])


def contrast(rng: np.random.Generator, genes: int = 12, axes: int = 2) -> ContrastEstimate:
    factor = 0.1 * rng.standard_normal((axes, genes))
    variance = (factor**2).sum(0) + rng.uniform(0.01, 0.1, genes)
    return ContrastEstimate(rng.normal(0, 0.5, genes), variance, factor)


def covariance(noisy: ContrastEstimate) -> np.ndarray:
    return np.diag(noisy.own) + noisy.factor.T @ noisy.factor


def same_up_to_a_constant(found: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    np.testing.assert_allclose(found - found[0], expected - expected[0], atol=tolerance)


@pytest.mark.parametrize("seed", range(3))
def test_an_effect_on_all_genes_has_the_evidence_of_a_gaussian(seed, monkeypatch):
    monkeypatch.setattr(evidence, "SHARES", (1.0,))
    monkeypatch.setattr(evidence, "NOISE_SD", 0.0)
    noisy = contrast(np.random.default_rng(seed))
    exact = [
        multivariate_normal(cov=covariance(noisy) + s**2 * np.eye(12)).logpdf(noisy.value)
        for s in SIZES
    ]
    same_up_to_a_constant(log_size_evidence(noisy, SIZES)[0], np.array(exact), 1e-8)


@pytest.mark.parametrize("seed", range(3))
def test_an_effect_along_axes_has_the_evidence_of_a_gaussian(seed, monkeypatch):
    monkeypatch.setattr(evidence, "SHARES", ())
    monkeypatch.setattr(evidence, "NOISE_SD", 0.0)
    rng = np.random.default_rng(seed)
    noisy, axes = contrast(rng), rng.standard_normal((3, 12))
    shape = 0.2 * np.eye(12) + 0.8 * axes.T @ axes / (axes**2).sum(0).mean()
    exact = [
        multivariate_normal(cov=covariance(noisy) + s**2 * shape).logpdf(noisy.value) for s in SIZES
    ]
    same_up_to_a_constant(log_size_evidence(noisy, SIZES, axes)[0], np.array(exact), 1e-8)


@pytest.mark.parametrize("share", [0.3, 0.03])
def test_a_share_of_moving_genes_is_summed_out(share, monkeypatch):
    monkeypatch.setattr(evidence, "SHARES", (share,))
    monkeypatch.setattr(evidence, "NOISE_SD", 0.0)
    noisy = contrast(np.random.default_rng(1), axes=1)
    alone = ContrastEstimate(noisy.value, noisy.own, np.zeros((1, 12)))
    exact = [
        np.logaddexp(
            np.log1p(-share) + norm(scale=np.sqrt(alone.own)).logpdf(alone.value),
            np.log(share) + norm(scale=np.sqrt(alone.own + s**2 / share)).logpdf(alone.value),
        ).sum()
        for s in SIZES
    ]
    same_up_to_a_constant(log_size_evidence(alone, SIZES)[0], np.array(exact), 1e-8)
    # with a shared factor, Laplace's method against quadrature over it
    f = np.linspace(-8, 8, 4001)[:, None]
    left = noisy.value - f * noisy.factor
    for s, found in zip(SIZES, log_size_evidence(noisy, SIZES)[0], strict=True):
        still = norm(scale=np.sqrt(noisy.own)).logpdf(left)
        moved = norm(scale=np.sqrt(noisy.own + s**2 / share)).logpdf(left)
        inner = np.logaddexp(np.log1p(-share) + still, np.log(share) + moved).sum(1)
        exact = logsumexp(inner + norm.logpdf(f[:, 0])) + np.log(f[1, 0] - f[0, 0])
        assert found == pytest.approx(exact + 6 * np.log(2 * np.pi), abs=0.5)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.floats(1e3, 1e8))
def test_without_information_no_size_is_preferred(seed, noise):
    rng = np.random.default_rng(seed)
    sd = np.full(20, noise)
    noisy = ContrastEstimate(
        rng.normal(0, noise, 20), sd**2, 0.3 * noise * rng.standard_normal((2, 20))
    )
    log, _ = log_size_evidence(noisy, SIZES, rng.standard_normal((2, 20)))
    assert np.ptp(log) < 1e-2


def test_a_gene_without_information_changes_nothing(monkeypatch):
    monkeypatch.setattr(evidence, "NOISE_SD", 0.0)
    noisy = contrast(np.random.default_rng(0), axes=2)
    more = ContrastEstimate(
        np.append(noisy.value, 7.0),
        np.append(noisy.variance, 1e12),
        np.hstack([noisy.factor, np.zeros((2, 1))]),
    )
    # the mean square is over one gene more, the evidence of given sizes the same
    same_up_to_a_constant(
        log_size_evidence(more, SIZES)[0], log_size_evidence(noisy, SIZES)[0], 1e-6
    )


def test_the_slope_of_a_response_is_found_and_noise_in_the_reference_does_not_weaken_it():
    rng = np.random.default_rng(3)
    slopes = np.linspace(-0.5, 2, 101)
    true = rng.normal(0, 0.5, 400)
    reference = true + rng.normal(0, 0.3, 400)
    seen = 0.8 * true + rng.normal(0, 0.1, 400)
    response = ContrastEstimate(seen, np.full(400, 0.01), np.zeros((1, 400)))
    log = log_slope_evidence(response, reference, np.full(400, 0.09), slopes, np.array([0.02, 0.1]))
    p = np.exp(log - log.max())
    mean = (p * slopes).sum() / p.sum()
    sd = np.sqrt((p * (slopes - mean) ** 2).sum() / p.sum())
    assert abs(mean - 0.8) < 3 * sd < 0.2
    assert abs(seen @ reference / (reference @ reference) - 0.8) > 3 * sd  # least squares is weak


def test_rows_that_do_not_move_tell_what_the_controls_are():
    rng = np.random.default_rng(4)
    truth = rng.normal(0, 1, 200)
    control = truth + rng.normal(0, 0.2, 200)
    rows = truth + rng.normal(0, 0.2, (30, 200))
    rows[:10] += rng.normal(0, 1.0, (10, 200))
    weights = np.full(len(SIZES), 0.25)
    variance = np.full((30, 200), 0.04)
    level, error = without_common(rows, variance, control, np.full(200, 0.04), SIZES, weights)
    assert ((level - truth) ** 2).mean() < 0.2 * ((control - truth) ** 2).mean()
    assert ((level - truth) ** 2 / error).mean() == pytest.approx(1, abs=0.25)


def test_a_row_alone_is_compared_with_its_controls():
    rng = np.random.default_rng(5)
    row, control = rng.normal(0, 1, (2, 20))
    level, error = without_common(
        row[None], np.ones((1, 20)), control, np.full(20, 0.5), SIZES, np.full(4, 0.25)
    )
    np.testing.assert_allclose(level[0], control)
    np.testing.assert_allclose(error[0], 0.5)


@pytest.mark.parametrize("q", [0, 1])
def test_the_size_that_an_effect_had_is_that_of_the_effect_not_of_its_law(q):
    rng = np.random.default_rng(6)
    axes = rng.standard_normal((2, 200))
    effect = (0.6 * axes[0]) if q == 0 else np.where(np.arange(200) < 3, 2.0, 0.0)
    seen = ContrastEstimate(
        effect + rng.normal(0, 0.1, 200), np.full(200, 0.01), np.zeros((1, 200))
    )
    sizes = np.exp(np.linspace(np.log(0.01), np.log(3), 40))
    log, moments = log_size_evidence(seen, sizes, axes)
    p = np.exp(log - log.max())
    # noise of .1 in three genes of 2 is 3% of their root mean square
    realised = np.sqrt(moments[0])
    assert p @ realised / p.sum() == pytest.approx(np.sqrt((effect**2).mean()), rel=0.05)


@pytest.mark.parametrize("law", ["all", "few", "along"])
def test_the_spread_of_the_realised_size_is_that_of_its_errors(law, monkeypatch):
    rng, (n, g) = np.random.default_rng(8), (150, 60)
    axes, factor = rng.standard_normal((2, g)), 0.05 * rng.standard_normal((2, g))
    monkeypatch.setattr(evidence, "NOISE_SD", 0.0)
    monkeypatch.setattr(evidence, "SHARES", {"all": (1.0,), "few": (0.1,), "along": ()}[law])
    score, size = [], 0.2
    for _ in range(n):
        if law == "along":
            unit = axes / np.sqrt((axes**2).sum(0).mean())
            part = rng.standard_normal(2) @ unit * np.sqrt(1 - evidence.ISOTROPIC)
            effect = size * (part + np.sqrt(evidence.ISOTROPIC) * rng.standard_normal(g))
        else:
            share = {"all": 1.0, "few": 0.1}[law]
            effect = rng.normal(0, size / np.sqrt(share), g) * (rng.random(g) < share)
        seen = effect + rng.normal(0, 0.15, g) + rng.standard_normal(2) @ factor
        noisy = ContrastEstimate(seen, 0.15**2 + (factor**2).sum(0), factor)
        given = (axes,) if law == "along" else ()
        mean, second = log_size_evidence(noisy, np.array([size]), *given)[1][:, 0]
        score.append(((effect**2).mean() - mean) / np.sqrt(second - mean**2))
    # 150 standardised errors: their mean has a standard error of .08, their spread of .06
    assert abs(np.mean(score)) < 0.25 and np.std(score) == pytest.approx(1, abs=0.2)
