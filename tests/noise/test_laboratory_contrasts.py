"""Laws of nested batch noise: contrasts of batches in laboratories, batches never measured."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from pyrocell.noise.contrasts import contrast_matrix
from pyrocell.noise.laboratories import LaboratoryContrasts, new_batch_moments

SIZES = st.lists(st.integers(1, 5), min_size=1, max_size=6).filter(lambda sizes: sum(sizes) > 1)


def nested(sizes: list[int]) -> tuple[LaboratoryContrasts, torch.Tensor]:
    """In double precision, and Z, which batch is of which laboratory (B, L)."""
    codes = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    codes = codes[torch.randperm(len(codes), generator=torch.Generator().manual_seed(0))]
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        return LaboratoryContrasts.of(codes), torch.nn.functional.one_hot(codes).double()
    finally:
        torch.set_default_dtype(before)


@given(SIZES)
def test_contrasts_sum_to_zero_over_batches_and_within_each_laboratory(sizes):
    nesting, member = nested(sizes)
    contrast, n = nesting.contrast, sum(sizes)
    assert_close(contrast.T @ contrast, torch.eye(n - 1, dtype=torch.float64))
    assert_close(contrast.sum(0), torch.zeros(n - 1, dtype=torch.float64))
    between, within = contrast[:, : len(sizes) - 1], contrast[:, len(sizes) - 1 :]
    assert_close(member.T @ within, torch.zeros_like(member.T @ within))
    assert_close(member @ (nesting.mean @ between), between)  # one value per laboratory


@given(SIZES)
def test_contrasts_are_independent_under_both_levels(sizes):
    nesting, member = nested(sizes)
    covariance = nesting.contrast.T @ member @ member.T @ nesting.contrast
    assert_close(covariance, torch.diag(nesting.between))


@given(st.integers(2, 12))
def test_one_laboratory_has_the_contrasts_of_batches(n):
    nesting, _ = nested([n])
    assert torch.equal(nesting.contrast, contrast_matrix(n, dtype=torch.float64))
    assert not nesting.between.any()


@given(SIZES, st.integers(0, 2**31), st.booleans())
def test_new_batches_have_the_moments_of_the_joint_normal(sizes, seed, two_levels):
    """Brute force: all batches, seen and new, against the mean of those seen, given contrasts."""
    nesting, member = nested(sizes)
    n_batches, n_laboratories = member.shape
    rng = torch.Generator().manual_seed(seed)
    own, common = 0.2, 0.5 * two_levels
    origin = torch.randint(0, n_laboratories + 2, (3,), generator=rng)
    whole = torch.zeros(n_batches + 3, n_laboratories + 2, dtype=torch.float64)
    whole[:n_batches, :n_laboratories] = member
    whole[torch.arange(3) + n_batches, origin] = 1
    prior = common**2 * whole @ whole.T + own**2 * torch.eye(n_batches + 3)
    against = torch.cat([-torch.ones(3, n_batches) / n_batches, torch.eye(3)], 1).double()
    told = torch.nn.functional.pad(nesting.contrast.T, (0, 3))
    gain = against @ prior @ told.T @ torch.linalg.inv(told @ prior @ told.T)
    expected = (against - gain @ told) @ prior @ against.T
    free = torch.randn(n_batches - 1, 2, generator=rng, dtype=torch.float64)
    scale = torch.full((2,), own, dtype=torch.float64)
    mean, covariance = new_batch_moments(nesting, free, scale, scale * 0 + common, origin)
    assert_close(mean, gain @ free)
    assert_close(covariance, expected.expand(2, 3, 3))


def test_with_one_level_a_new_batch_is_wider_than_a_measured_one_by_the_mean_s_error():
    nesting, _ = nested([4])
    free, scale = torch.zeros(3, 1).double(), torch.full((1,), 0.3).double()
    mean, covariance = new_batch_moments(nesting, free, scale, 0 * scale, torch.tensor([1]))
    assert mean.item() == 0
    assert_close(covariance.squeeze(), torch.tensor(0.3**2 * (1 + 1 / 4)).double())
