"""V for RNA: moments of the zero-inflated negative binomial."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch.testing import assert_close

from pyrocell.views.rna import count_variance, dropout_logits, mean_counts, zero_probability

LOG_MEANS = st.floats(-8, 5)
LOG_THETAS = st.floats(-3, 6)
LOGITS = st.floats(-20, 20)


def scalar(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


@given(LOG_MEANS, LOG_THETAS, LOGITS)
def test_moments_are_those_of_the_mixture(log_mu, log_theta, logit):
    mu, theta = np.exp(log_mu), np.exp(log_theta)
    count = stats.nbinom(theta, theta / (theta + mu))
    kept = 1 / (1 + np.exp(logit))
    arguments = scalar(log_mu), scalar(log_theta), scalar(logit)
    second_moment = kept * (count.var() + count.mean() ** 2)
    assert mean_counts(arguments[0], arguments[2]).item() == pytest.approx(kept * mu)
    assert count_variance(*arguments).item() == pytest.approx(second_moment - (kept * mu) ** 2)
    assert zero_probability(*arguments).item() == pytest.approx(1 - kept + kept * count.pmf(0))


@given(LOG_MEANS, LOG_THETAS)
def test_without_a_gate_nothing_drops_out(log_mu, log_theta):
    never = scalar(-60.0)
    m, t = scalar(log_mu), scalar(log_theta)
    assert_close(mean_counts(m), m.exp())
    assert_close(count_variance(m, t), count_variance(m, t, never))
    assert_close(zero_probability(m, t), zero_probability(m, t, never))


def test_the_poisson_limit_is_reached_in_float32():
    log_mu = torch.linspace(-6, 4, 9)
    log_theta = torch.full_like(log_mu, 30.0)
    assert_close(count_variance(log_mu, log_theta), log_mu.exp(), rtol=1e-5, atol=0)
    assert_close(zero_probability(log_mu, log_theta), torch.exp(-log_mu.exp()), rtol=1e-4, atol=0)


def test_gradients_are_finite_at_the_edges_of_float32():
    log_mu = torch.tensor([-40.0, 0.0, 20.0], requires_grad=True)
    log_theta = torch.tensor([-15.0, 0.0, 40.0], requires_grad=True)
    gate = torch.tensor([-80.0, 0.0, 80.0], requires_grad=True)
    for moment in (zero_probability, count_variance):
        moment(log_mu, log_theta, gate).sum().backward()
    mean_counts(log_mu, gate).sum().backward()
    assert all(v.grad.isfinite().all() for v in (log_mu, log_theta, gate))


def test_dropout_falls_with_expression_when_its_slope_is_below_zero():
    logits = dropout_logits(torch.tensor([-2.0, 0.0, 2.0]), torch.tensor(0.5), torch.tensor(-1.0))
    assert_close(logits, torch.tensor([2.5, 0.5, -1.5]))
