"""Laws of W (eq. 3): identity at zero, semigroup, inverse, the differential equation itself."""

from __future__ import annotations

from dataclasses import dataclass

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from pyrocell.operators import (
    onset_curve,
    reference_curve,
    relative_curve,
    relative_onset,
    relax,
    unwait,
    wait,
)
from pyrocell.operators.state import State
from pyrocell.operators.waiting import average_decay

DURATIONS = st.floats(0, 20)


@dataclass
class Flow:
    """A state and everything W needs, float64."""

    state: State
    rate: Tensor
    drive: Tensor
    decay: Tensor
    media_drive: Tensor
    limit: Tensor
    turnover: Tensor

    def wait(self, duration: float, state: State | None = None) -> State:
        state = state or self.state
        return wait(state, state.y.new_full((len(state.y),), duration), *self.arguments())

    def rewind(self, duration: float, state: State) -> State:
        return wait(state, state.y.new_full((len(state.y),), -duration), *self.arguments())

    def arguments(self) -> tuple[Tensor, ...]:
        return self.rate, self.drive, self.decay, self.media_drive, self.limit, self.turnover


@st.composite
def flows(draw: st.DrawFn) -> Flow:
    conditions, media, axes = draw(st.integers(1, 4)), draw(st.integers(0, 3)), 3
    perturbations = draw(st.integers(0, 3))
    rng = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    exposure = (normal(conditions, media) > 0).double()
    rate = normal(conditions, draw(st.sampled_from([1, axes]))).exp()
    decay = normal(perturbations).exp() * draw(st.sampled_from([1e-9, 1.0, 1e6]))
    if perturbations and draw(st.booleans()):
        decay[0] = rate[0, 0] * (1 + draw(st.sampled_from([0.0, 1e-12, 1e-6, 1e-3])))
    turnover = normal(media).exp() * draw(st.sampled_from([0.0, 1e-9, 1.0]))
    if media and draw(st.booleans()):
        turnover[0] = rate[0, 0] * (1 + draw(st.sampled_from([0.0, 1e-12, 1e-6, 1e-3])))
    genotype = (normal(conditions, perturbations) > 0).double()
    per_condition = (conditions,) if draw(st.booleans()) else ()
    return Flow(
        state=State(
            y=normal(conditions, axes),
            genotype=genotype,
            dose=genotype * normal(conditions, perturbations).sigmoid(),
            exposure=exposure,
            gain=exposure * normal(conditions, media).exp(),
        ),
        rate=rate,
        drive=normal(*per_condition, perturbations, axes),
        decay=decay,
        media_drive=normal(*per_condition, media, axes),
        limit=normal(conditions, media).abs(),
        turnover=turnover,
    )


def assert_same(a: State, b: State, tolerance: float = 1e-10) -> None:
    for field in ("y", "genotype", "dose", "exposure", "gain"):
        assert_close(getattr(a, field), getattr(b, field), rtol=tolerance, atol=tolerance)


@given(flows())
def test_waiting_no_time_changes_nothing(flow):
    assert_same(flow.wait(0.0), flow.state, tolerance=0)


@given(flows(), DURATIONS, DURATIONS)
def test_waiting_twice_is_waiting_the_sum_gains_included(flow, s, t):
    assert_same(flow.wait(t, flow.wait(s)), flow.wait(s + t))


@given(flows(), st.floats(0, 2))
def test_waiting_can_be_undone(flow, t):
    flow.decay = flow.decay.clamp(max=flow.rate.max())
    growth = float((flow.rate.max() * t).exp())
    assert_same(flow.rewind(t, flow.wait(t)), flow.state, tolerance=1e-12 * max(1.0, growth**2))


@given(flows(), st.floats(0, 3))
def test_a_relaxed_response_can_be_undone(flow, t):
    duration, plateau = flow.state.y.new_full((len(flow.state.y),), t), 3 - flow.state.y
    after = relax(flow.state.y, plateau, flow.rate, duration)
    growth = float((flow.rate.max() * t).exp())
    assert_close(
        unwait(after, plateau, flow.rate, duration),
        flow.state.y,
        rtol=0,
        atol=1e-13 * max(1.0, growth),
    )


@settings(max_examples=20)
@given(flows(), st.floats(0.1, 3))
def test_waiting_solves_the_differential_equation(flow, t):
    flow.decay = flow.decay.clamp(max=10.0)  # faster is stiff for these steps, not for W
    steps = 400
    h = t / steps
    met = flow.state.exposure

    def slope(now: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        y, dose, gain = now
        driven = (dose.unsqueeze(-1) * flow.drive).sum(-2)
        driven = driven + (gain.unsqueeze(-1) * flow.media_drive).sum(-2)
        return (
            flow.rate * (driven - y),
            flow.decay * (flow.state.genotype - dose),
            flow.turnover * (met * flow.limit - gain),
        )

    def ahead(now: tuple[Tensor, ...], by: tuple[Tensor, ...], h: float) -> tuple[Tensor, ...]:
        return tuple(x + h * dx for x, dx in zip(now, by))

    now = flow.state.y, flow.state.dose, flow.state.gain
    for _ in range(steps):  # classical Runge-Kutta of order 4
        a = slope(now)
        b = slope(ahead(now, a, h / 2))
        c = slope(ahead(now, b, h / 2))
        d = slope(ahead(now, c, h))
        now = ahead(now, tuple(p + 2 * q + 2 * r + s for p, q, r, s in zip(a, b, c, d)), h / 6)
    after = flow.wait(t)
    for found, expected in zip((after.y, after.dose, after.gain), now):
        assert_close(found, expected, rtol=2e-4, atol=2e-4)


@given(flows())
def test_cells_at_rest_without_drive_stay_at_rest(flow):
    rest = State(
        y=torch.zeros_like(flow.state.y),
        genotype=flow.state.genotype,
        dose=flow.state.dose,
        exposure=torch.zeros_like(flow.state.exposure),
        gain=torch.zeros_like(flow.state.gain),
    )
    flow.drive = torch.zeros_like(flow.drive)
    after = flow.wait(5.0, rest)
    assert_close(after.y, rest.y, rtol=0, atol=0)
    assert_close(after.gain, rest.gain, rtol=0, atol=0)


def test_without_turnover_a_cascade_once_started_is_never_lost():
    state = State(*(torch.ones(1, 1) for _ in range(5)))
    one, zero = torch.ones(1, 1), torch.zeros(1)
    after = wait(state, torch.tensor([50.0]), one, 0 * one, one[0], one, 0 * one, zero)
    assert after.gain.item() == 1.0
    assert after.y.item() == pytest.approx(1.0)


@pytest.mark.parametrize("turnover_over_rate", [0.0, 0.5, 1 - 1e-6, 1.0, 1 + 1e-6, 1.001, 30.0])
@pytest.mark.parametrize("rate", [1e-6, 1e-2, 1.0, 50.0])
@pytest.mark.parametrize("duration", [0.0, 1e-4, 1.0, 1e4])
def test_float32_agrees_with_high_precision_and_gradients_are_finite(
    rate, turnover_over_rate, duration
):
    inputs = [
        torch.tensor(v, requires_grad=True)
        for v in ([[rate]], [rate * turnover_over_rate], [duration], [[0.7]], [[1.3]], [[0.2]])
    ]
    lam, rho, t, drive, media_drive, limit = inputs
    one = torch.ones(1, 1)
    state = State(0.4 * one, one, one, one, 0.9 * one)  # the dose is at its limit
    after = wait(state, t, lam, drive, one[0], media_drive, limit, rho)

    with mpmath.workdps(60):
        m_lam, m_rho, m_t, m_e, m_c, m_limit = (mpmath.mpf(v.item()) for v in inputs)
        y, g = mpmath.mpf(state.y.item()), mpmath.mpf(state.gain.item())
        grown = 1 - mpmath.exp(-m_lam * m_t)
        carried = (
            m_t * mpmath.exp(-m_lam * m_t)
            if m_lam == m_rho
            else (mpmath.exp(-m_rho * m_t) - mpmath.exp(-m_lam * m_t)) / (m_lam - m_rho)
        )
        stimulus = m_c * (m_limit * grown + (g - m_limit) * m_lam * carried)
        expected = y * mpmath.exp(-m_lam * m_t) + m_e * grown + stimulus
    assert after.y.item() == pytest.approx(float(expected), rel=1e-5, abs=1e-6)

    (after.y.sum() + after.gain.sum()).backward()
    assert all(v.grad.isfinite().all() for v in inputs)


@pytest.mark.parametrize("offset", [0.0, 1e-7, 1e-3, 0.49, 0.51, -0.51])
def test_gradient_through_meeting_rates_is_exact(offset):
    def response(rate: Tensor, turnover: Tensor) -> Tensor:
        one = rate.new_ones(1, 1)
        state = State(0 * one, one, 0.4 * one, one, one)
        return wait(state, 2 * one[0], rate, one, turnover, one, 0.3 * one, turnover).y

    rate = torch.tensor([[1.0]], dtype=torch.float64, requires_grad=True)
    turnover = torch.tensor([1.0 + offset], dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(response, (rate, turnover), eps=1e-5, atol=1e-6)


@given(st.floats(-30, 30))
def test_average_decay_is_the_mean_of_an_exponential(x):
    expected = float(-mpmath.expm1(-x) / x) if x else 1.0
    assert average_decay(torch.tensor(x, dtype=torch.float64)).item() == pytest.approx(
        expected, rel=1e-13
    )


RATES = st.floats(1e-6, 1e6)


@given(rate=RATES, decay=st.one_of(RATES, st.just(1.0)), t=st.floats(1e-4, 100))
def test_onset_of_a_response_whose_cause_sets_in_is_exact_and_symmetric(rate, decay, t):
    lam, mu, time = (torch.tensor(v, dtype=torch.float64) for v in (rate, decay, t))
    found = onset_curve(lam, mu, time)
    with mpmath.workdps(60):
        a, b = mpmath.mpf(rate), mpmath.mpf(decay)
        if a == b:
            expected = 1 - (1 + a * t) * mpmath.exp(-a * t)
        else:
            expected = 1 - (b * mpmath.exp(-a * t) - a * mpmath.exp(-b * t)) / (b - a)
    assert found.item() == pytest.approx(float(expected), rel=1e-11, abs=1e-300)
    assert_close(onset_curve(mu, lam, time), found, rtol=0, atol=0)
    single = onset_curve(*(v.float() for v in (lam, mu, time)))
    assert single.item() == pytest.approx(float(expected), rel=1e-5, abs=1e-30)


@pytest.mark.parametrize("offset", [0.0, 1e-6, 0.3, 5.0])
@pytest.mark.parametrize("rate", [1e-3, 0.2, 0.25, 3.0])
def test_gradients_of_the_onset_are_exact(rate, offset):
    inputs = [
        torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (rate, rate + offset, 2.0)
    ]
    torch.autograd.gradcheck(onset_curve, inputs, eps=1e-6, atol=1e-6)


@given(rate=RATES, t=st.floats(0, 100), reference=st.floats(0.1, 10))
def test_a_product_lost_at_once_leaves_the_plain_relaxation(rate, t, reference):
    lam, time = torch.tensor([rate, t], dtype=torch.float64)
    late = relative_onset(lam, torch.tensor(1e15, dtype=torch.float64), time, reference)
    assert_close(late, relative_curve(lam, time, reference), rtol=1e-7, atol=1e-7)


@given(rate=st.floats(1e-12, 1e3), t=st.floats(0, 1e4), reference=st.floats(1e-2, 1e2))
def test_relative_curve_is_the_ratio_of_responses(rate, t, reference):
    lam, time = torch.tensor([rate, t], dtype=torch.float64)
    ratio = reference_curve(lam, time) / reference_curve(lam, reference)
    assert_close(relative_curve(lam, time, reference), ratio, rtol=1e-10, atol=1e-12)
    assert relative_curve(lam, torch.tensor(reference).double(), reference) == pytest.approx(1.0)


def test_relative_curve_of_no_relaxation_is_a_line():
    rate = torch.zeros(3, requires_grad=True)
    curve = relative_curve(rate, torch.tensor([0.0, 1.0, 6.0]), 3.0)
    assert_close(curve, torch.tensor([0.0, 1 / 3, 2.0]))
    curve.sum().backward()
    assert rate.grad.isfinite().all()


def test_batches_of_draws_give_what_each_draw_gives():
    rng = torch.Generator().manual_seed(0)
    state = State(*(torch.rand(5, n, generator=rng) for n in (3, 1, 1, 2, 2)))
    shapes = (5, 1), (5, 1, 3), (1,), (5, 2, 3), (5, 2), (2,)
    draws = [torch.rand(4, *shape, generator=rng) for shape in shapes]
    together = wait(state, torch.arange(5.0), *draws)
    for i in range(4):
        alone = wait(state, torch.arange(5.0), *(d[i] for d in draws))
        assert_close(together.y[i], alone.y)
        assert_close(together.gain[i], alone.gain)
