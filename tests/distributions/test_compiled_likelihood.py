"""The analytic gradient through torch.compile: accuracy, number of versions, what fails."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor
from torch.testing import assert_close

from pyrocell import TrainingConfig
from pyrocell.distributions import NegativeBinomial, ZeroInflatedNegativeBinomial, counts
from pyrocell.distributions import _backends as _paths
from pyrocell.distributions.counts import compiled_likelihood, likelihood_path
from pyrocell.distributions.kernels import counts_torch as _analytic
from pyrocell.distributions.kernels.compiled import Compiled

pytestmark = pytest.mark.filterwarnings("ignore:Sparse:UserWarning")  # torch: CSR is in beta


class Versions:
    """A backend that runs what was traced, and counts how often something was."""

    def __init__(self, fails: bool = False):
        self.traced, self.fails = 0, fails

    def __call__(self, graph: torch.fx.GraphModule, inputs: list) -> Callable:
        self.traced += 1
        if self.fails:
            raise OSError("no compiler on this machine")
        return graph.forward


@pytest.fixture
def compile_by(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Compiled]]:
    """Replace the compiled likelihood of the process by one with options of torch.compile."""
    torch._dynamo.reset()

    def replace(**options: Any) -> Compiled:
        compiled = Compiled(_analytic._entries, "the likelihood", **options)
        monkeypatch.setattr(_analytic, "_compiled_entries", compiled)
        return compiled

    yield replace
    torch._dynamo.reset()


def minibatch(n_cells: int, n_genes: int, seed: int = 0) -> tuple[Any, Tensor, dict[str, Tensor]]:
    """A family with a dropout curve, counts of it, and its parameters as leaves."""
    rng = torch.Generator().manual_seed(seed)
    inputs = {
        "logits": torch.randn(n_cells, n_genes, generator=rng),
        "log_theta": torch.randn(n_genes, generator=rng),
        "gate_intercept": torch.randn(n_genes, generator=rng) - 2,
        "gate_slope": 0.2 * torch.randn(n_genes, generator=rng) - 0.3,
        "log_size": torch.full((n_cells,), 3.0 + seed % 3),
    }
    for value in inputs.values():
        value.requires_grad_()
    x = torch.poisson(inputs["logits"].detach().exp(), generator=rng).to_sparse_csr()
    return ZeroInflatedNegativeBinomial(**inputs, validate_args=False), x, inputs


def answer(path: str, n_cells: int = 20, n_genes: int = 7, seed: int = 0) -> list[Tensor]:
    """Log probabilities and every gradient."""
    family, x, inputs = minibatch(n_cells, n_genes, seed)
    with likelihood_path(path):
        value = family.log_prob(x)
    return [value.detach(), *torch.autograd.grad(value.sum(), list(inputs.values()))]


# ---------------------------------------------------------------------------- accuracy
def table() -> list[Tensor]:
    """log μ, log θ, logit of dropout and counts, (2, n), from bursts to the Poisson limit."""
    x = torch.tensor([0, 1, 2, 16, 17, 1e4, 1e5])
    ranges = ((-18, 11.5, 8), (-12, 20, 9), (-30, 30, 5))
    every = torch.cartesian_prod(*(torch.linspace(*r) for r in ranges), x)
    return [column.reshape(2, -1) for column in every.unbind(1)]


def drawn(low: float, high: float) -> st.SearchStrategy:
    numbers = st.floats(low, high, width=32)
    return arrays(np.float32, (2, 11), elements=numbers).map(torch.from_numpy)


def agree_with_the_reference(s: Tensor, t: Tensor, gate: Tensor | None, x: Tensor) -> None:
    """Values and slopes within what test_counts_accuracy asks of the analytic gradient."""
    found = []
    for path, dtype in (("compiled", torch.float32), ("reference", torch.float64)):
        leaves = [v.to(dtype).requires_grad_() for v in (s, t, gate) if v is not None]
        options = {"composition": False, "validate_args": False}
        if gate is None:
            family = NegativeBinomial(*leaves, **options)
        else:
            family = ZeroInflatedNegativeBinomial(*leaves[:2], gate_logits=leaves[2], **options)
        with likelihood_path(path):
            value = family.log_prob(x)
        found.append([value.detach(), *torch.autograd.grad(value.sum(), leaves)])
    (value, *slopes), (exact, *expected) = found
    assert_close(value.double(), exact, rtol=1e-5, atol=1e-12)
    # slopes in log μ and log θ are differences of terms of the size of a thinned count
    terms = torch.where(x > 0, (x + s.exp()) / (1 + (s - t).exp()), 0)
    for slope, wanted, size in zip(slopes, expected, (terms, x.clamp(max=1), 0 * x)):
        error = (slope.double() - wanted).abs()
        assert (error <= 1e-5 * wanted.abs() + 1e-6 * size + 1e-8).all()


def agree_everywhere(gated: bool, examples: int) -> None:
    @settings(max_examples=examples, suppress_health_check=[HealthCheck.too_slow])
    @given(drawn(-18, 11.5), drawn(-12, 20), drawn(-30, 30), drawn(0, 10**5))
    def check(s: Tensor, t: Tensor, gate: Tensor, x: Tensor) -> None:
        agree_with_the_reference(s, t, gate if gated else None, x.round())

    s, t, gate, x = table()
    agree_with_the_reference(s, t, gate if gated else None, x)
    check()


@pytest.mark.parametrize("gated", [False, True])
def test_what_is_traced_is_the_reference_from_bursts_to_the_poisson_limit(
    gated: bool, compile_by: Callable[..., Compiled]
) -> None:
    # the decompositions that the compiler is handed, without the compiler
    compiled = compile_by(backend="aot_eager_decomp_partition")
    agree_everywhere(gated, examples=20)
    assert not compiled._failed


@pytest.mark.slow
@pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++"))), reason="torch.compile needs a C++ compiler"
)
def test_what_is_compiled_is_the_reference_and_leaves_the_random_state(
    compile_by: Callable[..., Compiled],
) -> None:
    compiled = compile_by()
    state = torch.random.get_rng_state()
    answer("compiled")
    assert torch.equal(torch.random.get_rng_state(), state)
    agree_everywhere(gated=True, examples=100)
    for found, wanted in zip(answer("compiled", 70, 90), answer("analytic", 70, 90)):
        assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert not compiled._failed


def test_gradient_of_the_compiled_gradient_is_that_of_the_reference(
    compile_by: Callable[..., Compiled],
) -> None:
    compile_by(backend="eager")
    found = []
    for path in ("compiled", "reference"):
        family, x, inputs = minibatch(20, 7)
        leaves = list(inputs.values())
        with likelihood_path(path):
            value = family.log_prob(x).sum()
        slopes = torch.autograd.grad(value, leaves, create_graph=True)
        found.append(torch.autograd.grad(slopes[1].square().sum(), leaves))
    for curvature, expected in zip(*found):
        assert (curvature - expected).norm() < 1e-4 * expected.norm()


def test_leading_sample_dimensions_and_double_precision_are_compiled_too(
    compile_by: Callable[..., Compiled],
) -> None:
    compiled = compile_by(backend="eager")
    rng = torch.Generator().manual_seed(1)
    logits, log_theta = torch.randn(3, 6, 5, generator=rng), torch.randn(3, 1, 5, generator=rng)
    x = torch.poisson(torch.ones(6, 5), generator=rng)
    for dtype in (torch.float32, torch.float64):
        family = NegativeBinomial(logits.to(dtype), log_theta.to(dtype))
        for counted in (x, x.to_sparse_csr(), x + torch.arange(3)[:, None, None]):
            with likelihood_path("compiled"):
                found = family.log_prob(counted)
            with likelihood_path("reference"):
                assert_close(found, family.log_prob(counted), rtol=2e-6, atol=1e-6)
    assert not compiled._failed


# ---------------------------------------------------------------------------- versions
def test_two_versions_serve_every_number_of_cells_genes_and_counts(
    compile_by: Callable[..., Compiled],
) -> None:
    versions = Versions()
    compiled = compile_by(backend=versions)
    sizes = [(64, 64), (20, 7), (3, 40), (50, 2), (2, 90), (1, 9), (9, 1), (128, 31)]
    for seed, (n_cells, n_genes) in enumerate(sizes):
        found = answer("compiled", n_cells, n_genes, seed)
        assert_close(found, answer("analytic", n_cells, n_genes, seed))
        for mode in (torch.no_grad, torch.inference_mode):  # held-out evaluation
            with mode(), likelihood_path("compiled"):
                family, x, _ = minibatch(n_cells, n_genes, seed)
                assert_close(family.log_prob(x), found[0])
    # a first minibatch with as many cells as genes may have one of its own
    assert versions.traced <= 2 and not compiled._failed


def test_empty_cells_and_no_cells_are_answered(compile_by: Callable[..., Compiled]) -> None:
    compile_by(backend="eager")
    for n_cells in (0, 4):
        family = minibatch(n_cells, 5)[0]
        empty = torch.zeros(n_cells, 5)
        with likelihood_path("compiled"):
            found = family.log_prob(empty)
        with likelihood_path("analytic"):
            assert_close(found, family.log_prob(empty))


# ---------------------------------------------------------------------------- trouble
def test_without_a_compiler_there_is_one_warning_and_the_same_answer(
    compile_by: Callable[..., Compiled],
) -> None:
    versions = Versions(fails=True)
    compile_by(backend=versions)
    with pytest.warns(
        UserWarning, match="analytic|likelihood.*no compiler on this machine"
    ) as said:
        found = answer("compiled")
    assert len(said) == 1
    assert_close(found, answer("analytic"), rtol=0, atol=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        answer("compiled", 11, 12)
    assert versions.traced == 1  # no second try


def test_a_python_that_torch_cannot_compile_for_is_a_warning(
    compile_by: Callable[..., Compiled], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **options: Any) -> None:
        raise RuntimeError("torch.compile is not supported on Python 4")

    compile_by()
    monkeypatch.setattr(torch, "compile", refuse)
    with pytest.warns(UserWarning, match="not supported on Python 4"):
        found = answer("compiled")
    assert_close(found, answer("analytic"), rtol=0, atol=0)


def test_an_error_of_the_caller_is_raised_and_not_held_against_the_compiler(
    compile_by: Callable[..., Compiled],
) -> None:
    compiled = compile_by(backend="eager")
    s, where = torch.randn(4, 5), torch.tensor([0, 1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeError, match="size"):
            compiled(s, torch.zeros(6), None, where, where, torch.ones(2))
        with likelihood_path("compiled"), pytest.raises(ValueError, match="do not fit"):
            NegativeBinomial(s, torch.zeros(5)).log_prob(torch.ones(4, 6))
        assert not compiled._failed
        value, _ = compiled(s, torch.zeros(5), None, where, where, torch.ones(2))
    assert torch.isfinite(value).all()


# ---------------------------------------------------------------------------- training
def test_auto_compiles_where_asked_to_and_only_off_the_cpu() -> None:
    assert _paths.automatic(double=False, on_cpu=False) == "analytic"
    with compiled_likelihood(True):
        assert _paths.automatic(double=False, on_cpu=False) == "compiled"
        assert _paths.automatic(double=False, on_cpu=True) == "rows"
        assert _paths.automatic(double=True, on_cpu=False) == "reference"
        with compiled_likelihood(False):
            assert _paths.automatic(double=False, on_cpu=False) == "analytic"
    assert _paths.automatic(double=False, on_cpu=False) == "analytic"


def test_training_compiles_once_for_steps_and_held_out_evaluation(
    make_screen: Callable,
    build: Callable,
    compile_by: Callable[..., Compiled],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # a CPU taken for another device
    monkeypatch.setattr(counts, "automatic", lambda double, on_cpu: _paths.automatic(double, False))
    versions = Versions()
    compile_by(backend=versions)
    history = []
    for wanted in (False, True):
        model = build(make_screen(media=1))
        config = TrainingConfig(batch_size=20, compile=wanted)
        model.train(max_epochs=2, config=config, progress_bar=False)
        history.append(model.history)
        assert versions.traced == wanted
    assert np.allclose(*history, rtol=1e-4)
