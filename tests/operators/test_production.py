"""The neural ODE of production and decay (eq. 25): laws of W, and a solver written elsewhere."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torchdiffeq import odeint

from pyrocell.errors import StiffFieldError
from pyrocell.operators import (
    Production,
    ResponseParameters,
    bounded_weight,
    forward,
    inverse,
    respond,
)
from pyrocell.operators.dynamics.node import integrate_deviation
from pyrocell.operators.response import flow, let_wait
from pyrocell.operators.state import State
from pyrocell.operators.waiting import wait
from pyrocell.views.decoder import CurvedDecoder

K, J, D = 3, 1, 4
GENOTYPE = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 1]]).double()
EXPOSURE = torch.tensor([[1.0], [0], [1], [0], [1]]).double()


def biology(seed: int = 0, size: float = 1.0, bound: float | None = 0.9) -> ResponseParameters:
    generator = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    features = CurvedDecoder(2 * D).double()
    direction = features.direction.detach()
    weight = bounded_weight(size * normal(len(features.offset), D), direction[:D], bound)

    return ResponseParameters(
        effect=normal(K, D),
        media_effect=normal(J, D),
        gain=normal(K, J).abs(),
        turnover=normal(J).exp(),
        log_rate=0.5 * normal(K + J),
        base_log_rate=torch.tensor(0.0, dtype=torch.float64),
        reference_time=1.0,
        log_decay=1.0 + 0.3 * normal(K),
        field=Production(direction, features.offset.detach(), weight),
    )


def reference(state: State, duration: Tensor, params: ResponseParameters) -> Tensor:
    """y after a duration by an adaptive solver of order 8."""
    rate, drive, decay, media_drive, limit, turnover = flow(state, params)
    limit = state.exposure * limit

    def slope(s: Tensor, now: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        y, dose, gain = now
        pull = (dose[..., None] * drive).sum(-2) + (gain[..., None] * media_drive).sum(-2)
        span = duration[:, None]
        return (
            span * rate * (pull + params.field(y, pull) - y),
            span * decay * (state.genotype - dose),
            span * turnover * (limit - gain),
        )

    start = (state.y, state.dose, state.gain)
    times = state.y.new_tensor([0.0, 1.0])
    solution = odeint(slope, start, times, rtol=1e-9, atol=1e-9, method="dopri8")
    return solution[0][-1]


def at_start(params: ResponseParameters, duration: float = 1.0) -> State:
    """Cells that have begun to respond, and meet the first perturbation and the medium now."""
    return respond(GENOTYPE, EXPOSURE, GENOTYPE.new_full((len(GENOTYPE),), duration), params)


@pytest.mark.parametrize("duration", [0.3, 1.0, 3.0, 8.0])
def test_waiting_agrees_with_an_adaptive_solver(duration):
    params = biology()
    state = at_start(params, 0.7)
    t = GENOTYPE.new_full((len(GENOTYPE),), duration)
    exact = reference(state, t, params)
    linear = wait(state, t, *flow(state, params)).y
    error = (let_wait(state, t, params).y - exact).abs().max()
    moved = (linear - exact).abs().max()
    assert moved > 0.01 and error < 0.02 * moved


def test_a_screen_from_rest_is_the_same_solution():
    params = biology()
    t = GENOTYPE.new_tensor([0.5, 1.0, 2.0, 3.0, 4.0])
    rest = State.rest(len(GENOTYPE), K, J, D, dtype=torch.float64)
    step_by_step = forward(rest, GENOTYPE, EXPOSURE, t, params)
    torch.testing.assert_close(respond(GENOTYPE, EXPOSURE, t, params).y, step_by_step.y)


def test_no_time_changes_nothing_and_waits_add_up():
    params = biology()
    state = at_start(params)
    here = GENOTYPE.new_zeros(len(GENOTYPE))
    assert torch.equal(let_wait(state, here, params).y, state.y)
    twice = let_wait(let_wait(state, here + 0.4, params), here + 0.6, params).y
    once = let_wait(state, here + 1.0, params).y
    moved = (once - wait(state, here + 1.0, *flow(state, params)).y).abs().max()
    assert (twice - once).abs().max() < 0.02 * moved


def test_the_answer_for_a_condition_does_not_depend_on_the_others():
    params = biology()
    t = GENOTYPE.new_tensor([0.5, 1.0, 2.0, 3.0, 40.0])
    together = respond(GENOTYPE, EXPOSURE, t, params).y
    for row in range(len(t)):
        alone = respond(GENOTYPE[[row]], EXPOSURE[[row]], t[[row]], params).y
        torch.testing.assert_close(alone[0], together[row], rtol=1e-12, atol=1e-12)


def test_gradients_of_the_deviation_are_exact():
    """Of every input, against differences: the backward pass is written by hand."""
    generator = torch.Generator().manual_seed(3)
    normal = lambda *shape: torch.randn(*shape, generator=generator).double()  # noqa: E731
    path, field = (normal(9, 2, 2), normal(9, 2, 2)), (normal(4, 5), normal(5), normal(5, 2))
    inputs = [x.requires_grad_() for x in (*path, normal(2, 1).exp(), *field)]
    t = torch.tensor([0.7, 2.0]).double()

    def answer(linear, drive, rate, *field):
        return integrate_deviation(linear, drive, rate, t, Production(*field))

    torch.autograd.gradcheck(answer, inputs, eps=1e-6, atol=1e-7)


def test_unperturbed_cells_stay_at_rest():
    zeros = GENOTYPE.new_zeros
    rest = respond(zeros(1, K), zeros(1, J), GENOTYPE.new_tensor([5.0]), biology())
    assert torch.equal(rest.y, zeros(1, D))


def test_the_inverse_takes_a_short_wait_back():
    params = biology()
    t = GENOTYPE.new_full((len(GENOTYPE),), 0.5)
    after = respond(GENOTYPE, EXPOSURE, t, params)
    assert inverse(after, t, params).y.abs().max() < 0.02 * after.y.abs().max()


@pytest.mark.parametrize("seed", range(3))
def test_a_bounded_field_is_a_contraction(seed):
    """Two states under one drive approach each other at the rate λ (1 - bound) or faster."""
    params = biology(seed, size=20.0, bound=0.9)
    state = at_start(params)
    other = State(
        state.y + torch.linspace(-1, 1, state.y.numel()).reshape(state.y.shape),
        state.genotype, state.dose, state.exposure, state.gain,
    )  # fmt: skip
    t = GENOTYPE.new_full((len(GENOTYPE),), 2.0)
    apart = [
        (a.y - b.y).norm(dim=-1)
        for a, b in ((state, other), (let_wait(state, t, params), let_wait(other, t, params)))
    ]
    rate = flow(state, params)[0][:, 0]
    assert (apart[1] <= apart[0] * torch.exp(-0.1 * rate * t) * 1.02).all()


def test_long_waits_and_fast_rates_have_finite_gradients():
    params = biology()
    log_rate = (params.log_rate + 8.0).requires_grad_()
    fast = ResponseParameters(**{**vars(params), "log_rate": log_rate})
    for duration in (1e-6, 1.0, 1e4):
        y = respond(GENOTYPE, EXPOSURE, GENOTYPE.new_full((len(GENOTYPE),), duration), fast).y
        (gradient,) = torch.autograd.grad(y.square().sum(), log_rate)
        assert torch.isfinite(y).all() and torch.isfinite(gradient).all()


def test_a_field_that_runs_away_is_named_with_the_remedy():
    wild = biology(size=1e40, bound=None)
    with pytest.raises(StiffFieldError, match="lipschitz"):
        respond(GENOTYPE, EXPOSURE, GENOTYPE.new_full((len(GENOTYPE),), 50.0), wild)


@pytest.mark.parametrize("dynamics", ["none", "node"])
def test_every_dynamics_trains_saves_and_predicts(make_screen, build, dynamics, tmp_path):
    adata = make_screen(media=1, times=(1.0, 2.0))
    model = build(adata, dynamics=dynamics)
    model.train(max_epochs=2, progress_bar=False)
    sites = set(model.posterior_samples(2))
    assert ("W.field" in sites) == (dynamics == "node")
    assert ("W.log_rate" in sites) == (dynamics == "node")
    conditions = model.screen.conditions[["perturbation", "media", "time"]]
    before = model.predict(conditions, n_samples=5).X
    model.save(tmp_path / "model")
    again = type(model).load(tmp_path / "model", model.adata).predict(conditions, n_samples=5).X
    assert (before == again).all()


def test_without_dynamics_a_response_is_there_at_once(make_screen, build):
    model = build(make_screen(times=(1.0, 2.0)), dynamics="none", gene_residual=False)
    module = model.module.model
    values = {k: v.detach() for k, v in module.globals().items()}
    shift = module.shift(values, module.conditions)
    table = model.screen.conditions
    for _, rows in table.groupby("perturbation").indices.items():
        torch.testing.assert_close(shift[rows[0]], shift[rows[1]])


def test_a_screen_is_refused_a_bound_that_is_none(make_screen, build):
    with pytest.raises(ValueError, match="lipschitz=-1"):
        build(make_screen(times=(1.0, 2.0)), dynamics="node", lipschitz=-1)
    assert math.isclose(float(bounded_weight(torch.eye(3), torch.eye(3), 0.5)[0, 0]), 0.5)
