"""V for proteins: background, or background and foreground."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch.testing import assert_close

from pyrocell.views.protein import AntibodyCounts

LOGS, THETAS, LOGITS = st.floats(-3, 6), st.floats(-1, 4), st.floats(-8, 8)


def scalar(value: float) -> torch.Tensor:
    return torch.tensor([[value]], dtype=torch.float64)


def counts(low: float, fore: float, gate: float, a: float, b: float) -> AntibodyCounts:
    one = lambda x: torch.tensor([x], dtype=torch.float64)  # noqa: E731
    return AntibodyCounts(scalar(low), scalar(fore), scalar(gate), one(a), one(b))


@given(LOGS, LOGS, LOGITS, THETAS, THETAS, st.integers(0, 500))
def test_a_count_is_a_mixture_of_two_negative_binomials(low, fore, gate, a, b, x):
    mean = np.exp(low), np.exp(low) + np.exp(fore)
    parts = [stats.nbinom(np.exp(t), np.exp(t) / (np.exp(t) + m)) for t, m in zip((a, b), mean)]
    weight = stats.logistic.cdf(gate), stats.logistic.cdf(-gate)
    mine = counts(low, fore, gate, a, b)
    expected = np.logaddexp(*(np.log(w) + p.logpmf(x) for w, p in zip(weight, parts)))
    assert mine.log_prob(scalar(float(x))).item() == pytest.approx(expected, rel=1e-6, abs=1e-6)
    first = sum(w * p.mean() for w, p in zip(weight, parts))
    second = sum(w * (p.var() + p.mean() ** 2) for w, p in zip(weight, parts))
    assert mine.mean.item() == pytest.approx(first, rel=1e-6)
    assert mine.variance.item() == pytest.approx(second - first**2, rel=1e-5)


def test_draws_have_the_moments():
    torch.manual_seed(0)
    mine = counts(1.5, 2.5, -1.0, 1.0, 2.0)
    drawn = mine.sample((40_000,)).squeeze()
    error = (mine.variance / 40_000).sqrt().item()
    assert drawn.mean().item() == pytest.approx(mine.mean.item(), abs=4 * error)
    assert drawn.var().item() == pytest.approx(mine.variance.item(), rel=0.1)


def test_without_foreground_the_state_does_not_matter():
    x = torch.tensor([[3.0]], dtype=torch.float64)
    both = [counts(1.0, -40.0, gate, 1.0, 1.0).log_prob(x) for gate in (-5.0, 5.0)]
    assert_close(*both)


@given(LOGS, LOGS, LOGITS, THETAS, THETAS, st.integers(0, 500))
@settings(max_examples=25)
def test_the_gradient_is_that_of_the_value(low, fore, gate, a, b, x):
    inputs = [scalar(v).requires_grad_() for v in (low, fore, gate)]
    inputs += [torch.tensor([v], dtype=torch.float64, requires_grad=True) for v in (a, b)]
    assert torch.autograd.gradcheck(
        lambda *each: AntibodyCounts(*each).log_prob(scalar(float(x))), inputs, rtol=1e-3, atol=1e-5
    )
