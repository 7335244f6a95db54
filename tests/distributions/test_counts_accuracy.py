"""NB and ZINB log probabilities and gradients against 60 digits, by every path."""

from __future__ import annotations

import itertools
import math

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from pyrocell.distributions import NegativeBinomial, ZeroInflatedNegativeBinomial
from pyrocell.distributions.counts import likelihood_path

PATHS = ("rows", "analytic", "reference")
COUNTS = (0, 1, 2, 16, 17, 10**4, 10**5)
LOG_MEANS = (math.log(1e-8), -3.0, 0.1, math.log(16), 9.2, math.log(1e5))
LOG_THETAS = (-12.0, -4.0, -0.5, 0.0, 1.0, 9.0, 20.0)
GATES = (-30.0, -3.0, 1.0, 30.0)


def exact_entry(x: int, log_mu: float, log_theta: float, gate: float | None) -> list[float]:
    """Log probability and its slopes in log μ, log θ and the gate, to 60 digits."""
    mp = mpmath.mp
    with mpmath.workdps(60):
        mu, theta = mp.exp(log_mu), mp.exp(log_theta)
        zero = -theta * mp.log1p(mu / theta)
        zero_theta = zero + theta * mu / (theta + mu)
        thinner = theta / (theta + mu)
        p, q = (0, 1) if gate is None else (1 / (1 + mp.exp(-gate)), 1 / (1 + mp.exp(gate)))
        if x == 0:
            total = p + q * mp.exp(zero)
            kept = q * mp.exp(zero) / total
            found = [mp.log(total), -kept * mu * thinner, kept * zero_theta]
            found.append(-p * q * mp.expm1(zero) / total)
        else:
            grow = mp.loggamma(x + theta) - mp.loggamma(theta) - mp.loggamma(x + 1)
            value = zero + grow + x * (mp.log(mu) - mp.log(theta + mu)) + mp.log(q)
            digammas = theta * (mp.digamma(x + theta) - mp.digamma(theta))
            found = [value, (x - mu) * thinner, zero_theta + digammas - x * thinner, -p]
        return [float(v) for v in found]


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("path", PATHS)
def test_value_and_gradient_are_exact_from_bursts_to_the_poisson_limit(
    path: str, gated: bool
) -> None:
    cases = list(itertools.product(COUNTS, LOG_MEANS, GATES if gated else [0.0]))
    x, log_mu, gate = torch.tensor(cases).T
    for log_theta in LOG_THETAS:
        # one gene per entry, so that every slope can be read off
        inputs = [log_mu[None], torch.full_like(log_mu, log_theta), gate[None]]
        s, t, g = (v.clone().requires_grad_() for v in inputs)
        if gated:
            family = ZeroInflatedNegativeBinomial(s, t, gate_logits=g, composition=False)
        else:
            family = NegativeBinomial(s, t, composition=False)
        with likelihood_path(path):
            family.log_prob(x[None]).backward()
            alone = (
                ZeroInflatedNegativeBinomial(s.T, t[:1], gate_logits=g.T, composition=False)
                if gated
                else NegativeBinomial(s.T, t[:1], composition=False)
            ).log_prob(x[:, None])
        expected = torch.tensor(
            [
                exact_entry(int(c), m, log_theta, p if gated else None)
                for c, m, p in zip(x.tolist(), log_mu.tolist(), gate.tolist(), strict=True)
            ],
            dtype=torch.float64,
        ).T
        assert (alone <= 0).all()
        assert_close(alone.double(), expected[0], rtol=1e-5, atol=1e-12)
        # slopes in log μ and log θ are differences of terms of the size of a thinned count
        terms = torch.where(x > 0, (x + log_mu.exp()) / (1 + (log_mu - log_theta).exp()), 0)
        assert_slopes(s.grad[0], expected[1], terms)
        assert_slopes(t.grad, expected[2], x.clamp(max=1))
        if gated:
            assert_slopes(g.grad[0], expected[3], torch.zeros_like(x))


def assert_slopes(found: Tensor, expected: Tensor, terms: Tensor) -> None:
    error = (found.double() - expected).abs()
    allowed = 1e-5 * expected.abs() + 1e-6 * terms + 1e-8
    assert (error <= allowed).all(), (found[error > allowed], expected[error > allowed])


@settings(max_examples=60)
@given(
    st.floats(-18, 12), st.floats(-12, 20), st.floats(-30, 30), st.integers(0, 10**5),
    st.sampled_from(PATHS),
)  # fmt: skip
def test_log_probability_is_never_positive(
    log_mu: float, log_theta: float, gate: float, count: int, path: str
) -> None:
    s, t, g = (torch.tensor([[v]]) for v in (log_mu, log_theta, gate))
    with likelihood_path(path):
        for family in (
            NegativeBinomial(s, t[0], composition=False),
            ZeroInflatedNegativeBinomial(s, t[0], gate_logits=g, composition=False),
        ):
            value = family.log_prob(torch.tensor([[count]]))
            assert torch.isfinite(value).all()
            assert (value <= 0).all()


@settings(max_examples=30)
@given(
    st.floats(-6, 3), st.floats(-1, 18), st.floats(-4, 4), st.floats(-1, 1),
    st.sampled_from(PATHS),
)  # fmt: skip
def test_probabilities_of_all_counts_sum_to_one(
    log_mu: float, log_theta: float, intercept: float, slope: float, path: str
) -> None:
    counts = torch.arange(1500.0)[:, None]
    s, t, a, b = (torch.tensor([v]) for v in (log_mu, log_theta, intercept, slope))
    s = s.expand(len(counts), 1)
    with likelihood_path(path):
        plain = NegativeBinomial(s, t, composition=False).log_prob(counts)
        gated = ZeroInflatedNegativeBinomial(s, t, a, b, composition=False).log_prob(counts)
    for log_prob in (plain, gated):
        assert_close(log_prob.double().exp().sum().item(), 1.0, rtol=0, atol=2e-6)


@pytest.mark.parametrize("path", PATHS)
def test_large_theta_is_the_poisson_distribution(path: str) -> None:
    counts = torch.tensor([0.0, 1.0, 5.0, 16.0, 30.0, 100.0]).repeat(4, 1)
    log_mu = torch.tensor([-8.0, 0.0, 3.0, 4.5])[:, None].expand(4, 6)
    family = NegativeBinomial(log_mu, torch.full((6,), 30.0), composition=False)
    with likelihood_path(path):
        found = family.log_prob(counts)
    expected = torch.distributions.Poisson(log_mu.double().exp()).log_prob(counts.double()).sum(-1)
    assert_close(found.double(), expected, rtol=1e-6, atol=0)
