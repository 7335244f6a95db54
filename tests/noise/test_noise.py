"""Laws of η: contrasts, sums over batches, gauge, dependence on content (eqs. 15, 19)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from pyrocell.noise.contrasts import (
    centre,
    content_effect,
    content_fractions,
    contrast_matrix,
    sum_to_zero,
)

BATCHES = st.integers(1, 40)
SEEDS = st.integers(0, 2**31)


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(BATCHES)
def test_contrasts_are_orthonormal_and_sum_to_zero(n):
    contrasts = contrast_matrix(n, dtype=torch.float64)
    assert_close(contrasts.T @ contrasts, torch.eye(n - 1, dtype=torch.float64))
    assert_close(contrasts.sum(0), torch.zeros(n - 1, dtype=torch.float64))


@given(st.integers(2, 40))
def test_contrasts_treat_all_batches_alike(n):
    covariance = contrast_matrix(n, dtype=torch.float64) @ contrast_matrix(n, dtype=torch.float64).T
    expected = torch.eye(n, dtype=torch.float64) - 1 / n
    assert_close(covariance, expected)


def test_contrasts_are_float32_by_default_and_need_a_batch():
    assert contrast_matrix(3).dtype == torch.float32
    with pytest.raises(ValueError, match="n_batches=0"):
        contrast_matrix(0)


@given(SEEDS, BATCHES)
def test_eta_sums_to_zero_over_the_realised_batches(seed, n):
    eta = sum_to_zero(normal(seed, 2, n - 1, 5))
    assert eta.shape == (2, n, 5)
    assert_close(eta.sum(-2), torch.zeros(2, 5, dtype=torch.float64), rtol=0, atol=1e-10)


def test_one_batch_has_no_batch_effect():
    assert_close(sum_to_zero(torch.zeros(0, 4)), torch.zeros(1, 4))


@given(SEEDS, BATCHES)
def test_the_gauge_is_invisible_to_softmax_and_keeps_the_sum_over_batches(seed, n):
    eta = sum_to_zero(normal(seed, n - 1, 6))
    weights = normal(seed + 1, 6).exp()
    centred = centre(eta, weights)
    zeros = torch.zeros(n, dtype=torch.float64)
    assert_close(centred @ weights, zeros, rtol=0, atol=1e-9)
    assert_close(centred.sum(0), torch.zeros(6, dtype=torch.float64), rtol=0, atol=1e-9)
    bias = normal(seed + 2, 6)
    assert_close((bias + centred).softmax(-1), (bias + eta).softmax(-1))
    assert_close(centre(centred, weights), centred)


@given(SEEDS, BATCHES)
def test_the_content_part_of_eta_sums_to_zero(seed, n):
    rng = torch.Generator().manual_seed(seed)
    batch = torch.cat([torch.arange(n), torch.randint(0, n, (50,), generator=rng)])
    control = torch.rand(len(batch), generator=rng) < 0.3
    exposure = (torch.rand(len(batch), 2, generator=rng) < 0.5).float()
    content = content_fractions(batch, n, control, exposure)
    assert content.shape == (n, 3)
    omega = torch.randn(4, 3, 5, generator=rng)
    effect = content_effect(content, omega)
    assert effect.shape == (4, n, 5)
    assert_close(effect.sum(-2), torch.zeros(4, 5), rtol=0, atol=1e-4)


def test_content_is_the_fraction_of_cells_against_the_average_batch():
    batch = torch.tensor([0, 0, 0, 0, 1, 1])
    control = torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0, 0.0])
    assert_close(content_fractions(batch, 2, control), torch.tensor([[-0.125], [0.125]]))


def test_batches_alike_in_content_have_no_content_effect():
    batch = torch.arange(12) % 3
    control = torch.arange(12) < 3
    assert_close(content_fractions(batch, 3, control), torch.zeros(3, 1))
