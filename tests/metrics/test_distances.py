"""Laws of distances between populations: unbiased, blind to order, with finite gradients."""

from __future__ import annotations

import builtins
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from torch.autograd import gradcheck

from pyrocell.metrics.distances import (
    METHODS,
    distance,
    energy_distance,
    matched_distance,
    median_bandwidth,
    mmd,
    moment_distance,
    sinkhorn_divergence,
)

EXACT = {"energy": energy_distance, "mmd": mmd, "moments": moment_distance}
ALL = {**EXACT, "sinkhorn": sinkhorn_divergence, "matched": matched_distance}
methods = pytest.mark.parametrize("method", ALL)
exact_methods = pytest.mark.parametrize("method", EXACT)
seeds = st.integers(0, 2**31 - 1)


@pytest.fixture(autouse=True)
def transport(request):
    parameters = getattr(getattr(request.node, "callspec", None), "params", {})
    if "sinkhorn" in parameters.values():
        pytest.importorskip("ot")


def cells(n: int, d: int = 3, seed: int = 0, shift: float = 0.0, scale: float = 1.0):
    rng = np.random.default_rng(seed)
    return torch.tensor(shift + scale * rng.standard_normal((n, d)))


@exact_methods
@settings(max_examples=10)
@given(seed=seeds, n=st.integers(2, 3), weighted=st.booleans())
def test_the_mean_over_all_splits_of_one_sample_is_zero(method, seed, n, weighted):
    pooled, rng = cells(5, seed=seed) ** 3, np.random.default_rng(seed)  # skewed, with outliers
    w = [torch.tensor(rng.uniform(0.1, 2, k)) if weighted else None for k in (n, 5 - n)]
    orders = map(list, itertools.permutations(range(5)))
    values = [EXACT[method](pooled[i[:n]], pooled[i[n:]], *w) for i in orders]
    values = torch.stack(values)
    assert abs(values.mean()) < 1e-9 * values.abs().max()
    assert values.min() < 0 < values.max()


def test_random_matching_is_unbiased_within_its_standard_error():
    pooled, generator = cells(12, seed=3), torch.Generator().manual_seed(0)
    weights = torch.linspace(0.5, 2, 5).double(), torch.linspace(0.2, 1, 7).double()
    for w in ((None, None), weights):
        values = []
        for _ in range(1000):
            mixed = pooled[torch.randperm(12, generator=generator)]
            value = matched_distance(mixed[:5], mixed[5:], *w, n_matchings=1, generator=generator)
            values.append(value)
        values = torch.stack(values)
        assert abs(values.mean()) < 3 * values.std() / 1000**0.5


@pytest.mark.parametrize("weighted", [False, True])
def test_many_matchings_come_to_the_energy_distance(weighted):
    x, y = cells(6), cells(9, seed=1, shift=0.5)
    w = (torch.linspace(0.2, 2, 6).double(), torch.linspace(1, 3, 9).double()) if weighted else ()
    generator = torch.Generator().manual_seed(1)
    draws = [matched_distance(x, y, *w, n_matchings=50, generator=generator) for _ in range(60)]
    draws = torch.stack(draws)
    assert abs(draws.mean() - energy_distance(x, y, *w)) < 3 * draws.std() / 60**0.5


def test_matching_without_correction_prefers_a_prediction_without_spread():
    truth, twin, collapsed = cells(300), cells(300, seed=1), cells(300, seed=1, scale=1e-3)
    heuristic = [matched_distance(p, truth, corrected=False) for p in (twin, collapsed)]
    assert heuristic[1] < heuristic[0]
    corrected = [matched_distance(p, truth) for p in (twin, collapsed)]
    assert corrected[0] < corrected[1]


@methods
@settings(max_examples=10)
@given(seed=seeds)
def test_a_shifted_population_is_farther_than_its_twin(method, seed):
    x, twin, far = cells(40, seed=seed), cells(40, seed=seed + 1), cells(40, seed=seed + 2, shift=3)
    assert ALL[method](x, far) > ALL[method](x, twin) + 0.1


@pytest.mark.parametrize("method", ["energy", "mmd", "moments", "sinkhorn", "matched"])
def test_spread_is_seen_where_means_are_equal(method):
    x, twin, wide = cells(200), cells(200, seed=1), cells(200, seed=1, scale=2.0)
    assert ALL[method](x, wide) > 3 * abs(ALL[method](x, twin))
    assert moment_distance(x, wide, order=1) < moment_distance(x, wide, order=2) / 3


@pytest.mark.parametrize("method", ["energy", "mmd", "moments", "sinkhorn"])
@settings(max_examples=20)
@given(seed=seeds)
def test_rows_may_come_in_any_order_and_populations_in_either(method, seed):
    x, y = cells(8, seed=seed), cells(5, seed=seed + 1, shift=0.3)
    w = torch.linspace(0.5, 2, 8).double()
    order = torch.tensor(np.random.default_rng(seed).permutation(8))
    value = ALL[method](x, y, w)
    assert torch.allclose(ALL[method](x[order], y, w[order]), value, rtol=1e-3)
    assert torch.allclose(ALL[method](y, x, None, w), value, rtol=1e-3)


@methods
def test_equal_weights_of_any_size_change_nothing(method):
    x, y = cells(8), cells(6, seed=1, shift=0.3)
    options = [{"generator": torch.Generator().manual_seed(0)} for _ in range(2)]
    options = options if method == "matched" else [{}, {}]
    weights = torch.full((8,), 7.0), torch.full((6,), 0.1)
    plain = ALL[method](x, y, **options[0])
    assert torch.allclose(ALL[method](x, y, *weights, **options[1]), plain, atol=1e-6)


@pytest.mark.parametrize("method", ["energy", "moments", "sinkhorn"])
def test_cells_of_weight_zero_are_not_there(method):
    x, y = cells(8), cells(6, seed=1, shift=0.3)
    weights = torch.tensor([1.0] * 5 + [0.0] * 3)
    options = {"entropy": 0.5} if method == "sinkhorn" else {}
    if method == "moments":  # the constant about which moments are taken is that of all cells
        x = torch.cat([x[:5], torch.cat([x[:5], y]).mean(0).expand(3, 3)])
    here = ALL[method](x, y, weights, **options)
    assert torch.allclose(here, ALL[method](x[:5], y, **options), atol=1e-6)


@methods
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_finite_where_points_coincide(method, dtype):
    x = torch.tensor([[0.0, 1.0], [0.0, 1.0], [2.0, 0.0]], dtype=dtype, requires_grad=True)
    for y in (x.detach().clone(), x.detach()[:2].clone(), x.detach() + 5):
        (gradient,) = torch.autograd.grad(ALL[method](x, y), x)
        assert gradient.isfinite().all()
    one = torch.zeros(4, 2, dtype=dtype, requires_grad=True)
    value = ALL[method](one, one.detach())
    assert abs(value) < 1e-6
    assert torch.autograd.grad(value, one)[0].abs().max() < 1e-6


@pytest.mark.parametrize("n", [4, 30])  # torch.cdist takes another path beyond 25 rows
def test_gradients_are_the_derivatives(n):
    x, y = cells(n).requires_grad_(), cells(n + 1, seed=1)
    for function in (energy_distance, lambda a, b: mmd(a, b, bandwidth=[0.5, 2.0])):
        assert gradcheck(function, (x, y), fast_mode=True)
    # The pooled mean is a constant to the gradient: compare the first moment, which is blind to it.
    assert gradcheck(lambda a, b: moment_distance(a, b, order=1), (x, y), fast_mode=True)


def test_gradient_of_transport_points_along_the_difference():
    pytest.importorskip("ot")
    x, y = cells(5).requires_grad_(), cells(6, seed=1)
    assert gradcheck(
        lambda a, b: sinkhorn_divergence(a, b, entropy=1.0), (x, y), fast_mode=True, atol=1e-3
    )


def test_energy_of_gaussians_is_what_theory_says():
    # N(0, 1) and N(a, 1) in one dimension: 2 E|N(a, √2)| − 2 E|N(0, √2)|.
    a, n = 1.0, 2000
    x, y = cells(n, 1), cells(n, 1, seed=1, shift=a)
    s = 2**0.5
    folded = 2 * s * norm.pdf(a / s) + a * (2 * norm.cdf(a / s) - 1)  # E|N(a, √2)|
    # A cell's influence on the value is below 2a, so its standard error is below 2a √(2 / n).
    error = 2 * a * (2 / n) ** 0.5
    assert energy_distance(x, y) == pytest.approx(2 * folded - 4 / np.pi**0.5, abs=2 * error)


def test_squared_mean_difference_is_estimated_without_bias():
    # Differences 0.3 in 3 features, 5 cells each: the naive square would add 2/5 for the noise.
    values = torch.stack(
        [
            moment_distance(cells(5, seed=i), cells(5, seed=10_000 + i, shift=0.3), order=1)
            for i in range(2000)
        ]
    )
    assert abs(values.mean() - 0.09) < 3 * values.std() / 2000**0.5


def test_transport_between_shifted_twins_is_the_squared_shift():
    pytest.importorskip("ot")
    x = cells(30)
    shift = torch.tensor([0.5, 0.0, -1.0]).double()
    assert sinkhorn_divergence(x, x + shift) == pytest.approx(1.25, rel=1e-3)


def test_more_cells_bring_transport_between_equal_populations_down():
    pytest.importorskip("ot")
    few, many = (
        np.mean([sinkhorn_divergence(cells(n, seed=i), cells(n, seed=50 + i)) for i in range(5)])
        for n in (10, 80)
    )
    assert few > 2 * many > 0


def test_the_median_bandwidth_is_positive_however_many_points_coincide():
    assert median_bandwidth(cells(9), cells(9, seed=1)) > 0
    repeated = torch.tensor([[0.0], [0.0], [0.0], [0.0], [3.0]])
    assert median_bandwidth(repeated, repeated[:3]) == 3
    assert median_bandwidth(repeated[:3], repeated[:2]) == 1


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: energy_distance(cells(1), cells(3)), "x has 1 cells; at least 2"),
        (lambda: energy_distance(cells(3), cells(3, 2)), "x has 3 features and y 2"),
        (lambda: energy_distance(cells(3)[0], cells(3)), r"not \(3,\)"),
        (lambda: energy_distance(cells(3).long(), cells(3)), "floating-point"),
        (lambda: energy_distance(cells(3), cells(3), torch.ones(2)), r"weights_x has shape \(2,\)"),
        (lambda: energy_distance(cells(3), cells(3), None, -torch.ones(3)), "weights_y must be"),
        (lambda: energy_distance(cells(3), cells(3), torch.eye(3)[0]), "positive for at least 2"),
        (lambda: mmd(cells(3), cells(3), bandwidth=0.0), "bandwidth=0.0"),
        (lambda: moment_distance(cells(3), cells(3), order=0), "order=0"),
        (lambda: matched_distance(cells(3), cells(3), n_matchings=0), "n_matchings=0"),
        (lambda: sinkhorn_divergence(cells(3), cells(3), entropy=-1.0), "entropy=-1.0"),
        (lambda: distance("enregy"), 'did you mean "energy"'),
    ],
)
def test_what_has_no_distance_is_refused(call, says):
    with pytest.raises(ValueError, match=says):
        call()


def test_every_method_has_a_name():
    assert METHODS == ALL
    assert distance("energy") is energy_distance


def test_without_its_package_transport_names_the_extra(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "ot":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pyrocell\[transport\]"):
        sinkhorn_divergence(cells(3), cells(3))
