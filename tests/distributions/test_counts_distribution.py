"""NB and ZINB over sparse minibatches: one answer by every path, sampling, bad input, Pyro."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numba
import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor
from torch.testing import assert_close

from pyrocell.distributions import NegativeBinomial, ZeroInflatedNegativeBinomial
from pyrocell.distributions.counts import likelihood_path
from pyrocell.distributions.kernels import fastmath as _fastmath

PATHS = ("rows", "analytic", "reference")
KINDS = ("none", "curve", "free")

pytestmark = pytest.mark.filterwarnings("ignore:Sparse:UserWarning")  # torch: CSR is in beta


# ---------------------------------------------------------------------------- one answer
CELLS, GENES = 70, 90  # two blocks of rows, the second one short


def draw_inputs(kind: str, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Parameters of a screen-like minibatch, as leaves; cell 3 has a tiny library."""
    rng = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng)

    inputs = {
        "logits": 1.5 * normal(CELLS, GENES),
        "log_theta": 0.8 * normal(GENES) + 0.5,
        "log_size": 0.3 * normal(CELLS) + 4.5,
    }
    inputs["log_size"][3] = -5.0
    if kind == "curve":
        inputs |= {"gate_intercept": normal(GENES) - 2, "gate_slope": 0.2 * normal(GENES) - 0.3}
    elif kind == "free":
        inputs |= {"gate_logits": 2 * normal(CELLS, GENES) - 1}
    return {k: v.to(dtype).requires_grad_() for k, v in inputs.items()}


def build(inputs: dict[str, Tensor], **options: Any) -> Any:
    gated = any(name.startswith("gate") for name in inputs)
    return (ZeroInflatedNegativeBinomial if gated else NegativeBinomial)(**inputs, **options)


def draw_counts(kind: str) -> Tensor:
    torch.manual_seed(11)
    x = build(draw_inputs(kind)).sample()
    x[5] = 0
    return x


def gradients(inputs: dict[str, Tensor], value: Tensor, weight: Tensor) -> list[Tensor]:
    total = (value * weight.to(value.dtype)).sum()
    return [g.double() for g in torch.autograd.grad(total, list(inputs.values()))]


@pytest.mark.parametrize("composition", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_sparse_dense_and_all_paths_agree_also_where_cells_weigh_unequally(
    kind: str, composition: bool
) -> None:
    x = draw_counts(kind)
    double = draw_inputs(kind, torch.float64)
    if not composition:
        double["logits"] = (double["logits"] - 4.0).detach().requires_grad_()
    for weight in (torch.full((CELLS,), -2.5), torch.linspace(0, 2, CELLS)):
        expected = build(double, composition=composition).log_prob(x)
        slopes = gradients(double, expected, weight)
        for path, counts in itertools.product(PATHS, (x, x.to_sparse_csr(), x.int())):
            inputs = {k: v.detach().float().requires_grad_() for k, v in double.items()}
            with likelihood_path(path):
                value = build(inputs, composition=composition).log_prob(counts)
            assert value.dtype == torch.float32
            assert_close(value.double(), expected, rtol=2e-6, atol=1e-6)
            for name, found, wanted in zip(
                inputs, gradients(inputs, value, weight), slopes, strict=True
            ):
                error = (found - wanted).norm() / wanted.norm()
                assert error < 3e-6, (path, counts.layout, name, float(error))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_kernel_answers_in_single_and_the_reference_in_double_precision(
    dtype: torch.dtype,
) -> None:
    x, family = draw_counts("curve"), build(draw_inputs("curve", dtype))
    for counts in (x, x.to_sparse_csr()):
        assert ("RowLogProb" in _history(family.log_prob(counts))) == (dtype == torch.float32)


def _history(value: Tensor) -> str:
    names, waiting = [], [value.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None:
            names.append(type(node).__name__)
            waiting.extend(parent for parent, _ in node.next_functions)
    return " ".join(names)


@pytest.mark.parametrize("path", PATHS)
def test_a_short_last_batch_and_empty_cells_add_up(path: str) -> None:
    x, inputs = draw_counts("curve"), draw_inputs("curve")
    per_cell = {"logits", "log_size"}
    with likelihood_path(path):
        whole = build(inputs).log_prob(x.to_sparse_csr())
        parts = [
            build({k: v[rows] if k in per_cell else v for k, v in inputs.items()}).log_prob(
                x[rows].to_sparse_csr()
            )
            for rows in (slice(0, 64), slice(64, 69), slice(69, 70))
        ]
        empty = build(inputs).log_prob(torch.zeros(CELLS, GENES).to_sparse_csr())
        none = {k: v[:0] if k in per_cell else v for k, v in inputs.items()}
        nobody = build(none, validate_args=False).log_prob(x[:0])
    assert_close(torch.cat(parts), whole, rtol=1e-6, atol=0)
    zero = build(draw_inputs("curve", torch.float64)).zero_probability.log().sum(-1)
    assert_close(empty.double(), zero, rtol=1e-6, atol=0)
    assert nobody.shape == (0,)
    assert all((g == 0).all() for g in torch.autograd.grad(nobody.sum(), list(inputs.values())))


@pytest.mark.parametrize("path", PATHS)
def test_stored_zeros_are_zeros(path: str) -> None:
    stored = torch.sparse_csr_tensor([0, 2, 3], [0, 2, 1], [0.0, 4.0, 0.0], (2, 3))
    family = ZeroInflatedNegativeBinomial(
        torch.randn(2, 3), torch.zeros(3), torch.zeros(3), -torch.ones(3)
    )
    with likelihood_path(path):
        assert_close(family.log_prob(stored), family.log_prob(stored.to_dense()))


@pytest.mark.parametrize("path", ["rows", "analytic"])
def test_gradient_can_be_taken_twice_and_differentiated(path: str) -> None:
    x, inputs = draw_counts("curve").to_sparse_csr(), draw_inputs("curve")
    with likelihood_path(path):
        value = build(inputs).log_prob(x).sum()
    names = list(inputs.values())
    first = torch.autograd.grad(value, names, retain_graph=True)
    again = torch.autograd.grad(value, names, retain_graph=True)
    assert_close(again, first, rtol=1e-6, atol=1e-6)
    slopes = torch.autograd.grad(value, names, create_graph=True)
    curvature = torch.autograd.grad(slopes[1].square().sum(), names)
    double = draw_inputs("curve", torch.float64)
    exact = torch.autograd.grad(
        build(double).log_prob(x).sum(), list(double.values()), create_graph=True
    )
    expected = torch.autograd.grad(exact[1].square().sum(), list(double.values()))
    for found, wanted in zip(curvature, expected, strict=True):
        assert (found - wanted).norm() < 1e-4 * wanted.norm()


def test_answer_does_not_depend_on_the_number_of_threads() -> None:
    x, before = draw_counts("curve").to_sparse_csr(), torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            inputs = draw_inputs("curve")
            value = build(inputs).log_prob(x)
            found.append([value, *gradients(inputs, value, torch.ones(CELLS))])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("path", PATHS)
def test_leading_sample_dimensions_are_independent_draws(path: str) -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, CELLS, GENES)
    log_theta, curve = torch.randn(3, 1, GENES), torch.randn(2, 3, 1, GENES) - 1
    x = draw_counts("curve")
    with likelihood_path(path):
        for counts in (x, x.to_sparse_csr(), x + torch.arange(3)[:, None, None]):
            family = ZeroInflatedNegativeBinomial(logits, log_theta, *curve)
            assert family.batch_shape == (3, CELLS)
            found = family.log_prob(counts)
            for i in range(3):
                alone = ZeroInflatedNegativeBinomial(
                    logits[i], log_theta[i, 0], curve[0, i, 0], curve[1, i, 0]
                )
                own = counts[i] if counts.dim() == 3 else counts
                assert_close(found[i], alone.log_prob(own), rtol=2e-6, atol=1e-6)
        draws = NegativeBinomial(logits[0], log_theta[0, 0]).sample((2,))
        assert draws.shape == (2, CELLS, GENES)
        assert NegativeBinomial(logits[0], log_theta[0, 0]).log_prob(draws).shape == (2, CELLS)
        one = NegativeBinomial(logits[0, 0], log_theta[0, 0])
        assert_close(one.log_prob(x[0]), one.expand((CELLS,)).log_prob(x)[0])


# ---------------------------------------------------------------------------- sampling
@pytest.mark.parametrize("kind", KINDS)
def test_samples_have_the_stated_mean_variance_and_zeros(kind: str) -> None:
    torch.manual_seed(5)
    n = 20_000
    inputs = {k: v.detach()[:1] for k, v in draw_inputs(kind).items() if v.dim() == 2}
    inputs |= {k: v.detach() for k, v in draw_inputs(kind).items() if k not in inputs}
    inputs["log_size"] = inputs["log_size"][:1]
    family = build(inputs)
    draws = family.sample((n,)).squeeze(1).double()
    mean, variance = family.mean[0].double(), family.variance[0].double()
    zero = family.zero_probability[0].double()

    def worst(found: Tensor, wanted: Tensor, error: Tensor) -> float:
        return float(((found - wanted) / (error + 1 / n)).abs().max())

    assert worst(draws.mean(0), mean, (variance / n).sqrt()) < 4.5
    assert worst((draws == 0).double().mean(0), zero, (zero * (1 - zero) / n).sqrt()) < 4.5
    deviation = (draws - mean).square()
    assert worst(deviation.mean(0), variance, deviation.std(0) / n**0.5) < 6  # heavy tails
    assert family.support.check(draws).all()


def test_a_composition_has_means_that_add_up_to_the_size() -> None:
    family = build(draw_inputs("none"))
    assert_close(family.mean.sum(-1), family.log_size.exp())
    assert_close(family.log_mu, family.mean.log())


# ---------------------------------------------------------------------------- trouble
def test_cells_out_of_the_kernel_s_range_get_the_general_formula() -> None:
    logits = torch.zeros(2, 3)
    logits[1, 0] = 70.0
    family = NegativeBinomial(logits, torch.zeros(3), composition=False)
    x = torch.tensor([[0.0, 2.0, 1.0], [5.0, 0.0, 0.0]])
    with likelihood_path("reference"):
        expected = family.log_prob(x)
    assert_close(family.log_prob(x), expected)


@pytest.mark.parametrize("name", ["logits", "log_theta", "gate_slope", "log_size"])
def test_non_finite_parameters_are_not_hidden(name: str) -> None:
    inputs = {k: v.detach() for k, v in draw_inputs("curve").items()}
    inputs[name].view(-1)[7] = torch.nan
    found = build(inputs, validate_args=False).log_prob(draw_counts("curve").to_sparse_csr())
    assert torch.isnan(found).any()


def test_mistakes_are_named() -> None:
    family = build(draw_inputs("curve"), validate_args=True)
    with pytest.raises(ValueError, match="90 genes"):
        family.log_prob(torch.zeros(CELLS, GENES - 1))
    with pytest.raises(ValueError, match=r"0\.5, which is not a count"):
        family.log_prob(torch.full((CELLS, GENES), 0.5).to_sparse_csr())
    with pytest.raises(ValueError, match="-1, which is not a count"):
        family.log_prob(torch.full((CELLS, GENES), -1))
    with pytest.raises(ValueError, match="either gate_intercept and gate_slope or gate_logits"):
        ZeroInflatedNegativeBinomial(torch.zeros(2, 3), torch.zeros(3), torch.zeros(3))
    with pytest.raises(ValueError, match="choose one of"), likelihood_path("fast"):
        pass


def test_column_indices_beyond_the_genes_are_refused() -> None:
    family = NegativeBinomial(torch.zeros(1, 3), torch.zeros(3))
    broken = torch.sparse_csr_tensor([0, 1], [7], [1.0], (1, 3), check_invariants=False)
    with pytest.raises(ValueError, match="not a valid CSR matrix"):
        family.log_prob(broken)


def test_a_read_only_install_compiles_without_a_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = numba.njit

    def refuse(*args: Any, cache: bool = False, **options: Any) -> Any:
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return compiled(*args, **options)

    monkeypatch.setattr(numba, "njit", refuse)
    assert _fastmath.jit("nsz")(lambda x: x + 1)(2) == 3


# ---------------------------------------------------------------------------- Pyro
@pytest.mark.parametrize("sparse", [True, False])
def test_a_subsampled_plate_observes_counts(sparse: bool) -> None:
    pyro.clear_param_store()
    x, inputs = draw_counts("curve"), draw_inputs("curve")
    index = torch.arange(10, 40)
    batch = x[index].to_sparse_csr() if sparse else x[index]
    theta = torch.zeros(GENES, requires_grad=True)

    def model() -> None:
        with pyro.plate("cells", CELLS, subsample=index):
            family = ZeroInflatedNegativeBinomial(
                inputs["logits"][index],
                theta,
                inputs["gate_intercept"],
                inputs["gate_slope"],
                log_size=inputs["log_size"][index],
            )
            pyro.sample("x", family, obs=batch)

    with pyro.validation_enabled(True):
        loss = Trace_ELBO().differentiable_loss(model, lambda: None)
    one = {k: v[index] if v.shape[0] == CELLS else v for k, v in inputs.items()}
    one["log_theta"] = theta
    expected = -build(one).log_prob(x[index]).sum() * CELLS / len(index)
    assert_close(loss, expected)
    loss.backward()
    assert theta.grad is not None and torch.isfinite(theta.grad).all()


def test_vectorised_particles_are_averaged() -> None:
    pyro.clear_param_store()
    x = draw_counts("none")

    def model() -> None:
        scale = pyro.sample("scale", pyro.distributions.Normal(torch.zeros(GENES), 1.0).to_event(1))
        with pyro.plate("cells", CELLS):
            z = pyro.sample("z", pyro.distributions.Normal(0.0, 1.0))
            logits = z[..., None] * torch.linspace(-1, 1, GENES)
            pyro.sample("x", NegativeBinomial(logits, scale), obs=x.to_sparse_csr())

    guide = pyro.infer.autoguide.AutoNormal(model)
    elbo = Trace_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), elbo)
    assert math.isfinite(svi.step())
