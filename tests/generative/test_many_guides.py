"""Conditions of many drivers: their nodes as a sparse product."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from pyrocell.generative.config import gather_nodes


@given(st.integers(0, 10_000), st.integers(1, 3), st.booleans())
def test_the_sparse_product_is_the_sum_over_drivers(seed, n_times, fractions):
    generator = torch.Generator().manual_seed(seed)
    weight = (torch.rand(7, 12, generator=generator) < 0.6).float()
    weight[0] = 0.0
    if fractions:
        weight = weight * torch.rand(7, 12, generator=generator)
    walk = torch.randn(12, n_times, 5, generator=generator, requires_grad=True)
    node = torch.randint(0, n_times, (7,), generator=generator)
    found = gather_nodes(weight, walk, node)
    expected = torch.einsum("ck,kcg->cg", weight, walk[:, node])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    pull = torch.randn(7, 5, generator=generator)
    (one,) = torch.autograd.grad((found * pull).sum(), walk, retain_graph=True)
    (other,) = torch.autograd.grad((expected * pull).sum(), walk)
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
