"""V for chromatin: fragments as counts, or whether there are any."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from pyrocell.priors import Priors
from pyrocell.views.chromatin import (
    ChromatinView,
    OpenChromatinView,
    OpenRegions,
    PoissonChromatinView,
)


@given(st.lists(st.floats(-12, 3), min_size=1, max_size=6), st.integers(0, 2**6 - 1))
def test_a_region_is_open_where_a_poisson_count_is_above_zero(log_mu, pattern):
    level = torch.tensor([log_mu], dtype=torch.float64)
    x = torch.tensor([[float(pattern >> i & 1) * 3 for i in range(len(log_mu))]])
    p = -np.expm1(-np.exp(np.array(log_mu)))
    expected = np.where(x[0].numpy() > 0, np.log(p), -np.exp(log_mu)).sum()
    mine = OpenRegions(level)
    assert mine.log_prob(x).item() == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert mine.log_prob(x.to_sparse_csr()).item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("kind", [ChromatinView, PoissonChromatinView, OpenChromatinView])
def test_moments_are_those_of_the_likelihood(kind):
    view = kind(5, 2, Priors(), True)
    values = {site: prior.mean for site, prior in view.priors().items()}
    logits, z = torch.linspace(-1, 1, 5)[None], torch.zeros(1, 2)
    log_size = torch.tensor([3.0])
    likelihood = view.likelihood(values, logits, log_size, z)
    log_mu = view.relative(logits)[:, None] + 3.0
    mean, variance = view.moments(values, log_mu, z)
    assert_close(likelihood.mean, mean[:, 0], rtol=1e-4, atol=1e-6)
    assert_close(likelihood.variance, variance[:, 0], rtol=1e-3, atol=1e-6)
