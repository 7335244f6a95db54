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

from pyrocell.operators import reference_curve, relative_curve, relax, rewind, unwait, wait
from pyrocell.operators.waiting import average_decay
from pyrocell.state import State

DURATIONS = st.floats(0, 20)


@dataclass
class Flow:
    """A state and everything W needs, float64."""

    state: State
    rate: Tensor
    drive: Tensor
    media_drive: Tensor
    limit: Tensor
    turnover: Tensor

    def wait(self, duration: float, state: State | None = None) -> State:
        state = state or self.state
        return wait(state, state.y.new_full((len(state.y),), duration), *self.arguments())

    def rewind(self, duration: float, state: State) -> State:
        return rewind(state, state.y.new_full((len(state.y),), duration), *self.arguments())

    def arguments(self) -> tuple[Tensor, ...]:
        return self.rate, self.drive, self.media_drive, self.limit, self.turnover


@st.composite
def flows(draw: st.DrawFn) -> Flow:
    conditions, media, axes = draw(st.integers(1, 4)), draw(st.integers(0, 3)), 3
    rng = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    exposure = (normal(conditions, media) > 0).double()
    rate = normal(conditions, draw(st.sampled_from([1, axes]))).exp()
    turnover = normal(media).exp() * draw(st.sampled_from([0.0, 1e-9, 1.0]))
    if media and draw(st.booleans()):
        turnover[0] = rate[0, 0] * (1 + draw(st.sampled_from([0.0, 1e-12, 1e-6, 1e-3])))
    per_condition = (conditions,) if draw(st.booleans()) else ()
    return Flow(
        state=State(
            y=normal(conditions, axes),
            genotype=torch.zeros(conditions, 1, dtype=torch.float64),
            exposure=exposure,
            gain=exposure * normal(conditions, media).exp(),
        ),
        rate=rate,
        drive=normal(conditions, axes),
        media_drive=normal(*per_condition, media, axes),
        limit=normal(conditions, media).abs(),
        turnover=turnover,
    )


def assert_same(a: State, b: State, tolerance: float = 1e-10) -> None:
    for field in ("y", "genotype", "exposure", "gain"):
        assert_close(getattr(a, field), getattr(b, field), rtol=tolerance, atol=tolerance)


@given(flows())
def test_waiting_no_time_changes_nothing(flow):
    assert_same(flow.wait(0.0), flow.state, tolerance=0)


@given(flows(), DURATIONS, DURATIONS)
def test_waiting_twice_is_waiting_the_sum_gains_included(flow, s, t):
    assert_same(flow.wait(t, flow.wait(s)), flow.wait(s + t))


@given(flows(), st.floats(0, 2))
def test_waiting_can_be_undone(flow, t):
    growth = float((flow.rate.max() * t).exp())
    assert_same(flow.rewind(t, flow.wait(t)), flow.state, tolerance=1e-12 * max(1.0, growth**2))


@given(flows(), st.floats(0, 3))
def test_a_relaxed_response_can_be_undone(flow, t):
    duration = flow.state.y.new_full((len(flow.state.y),), t)
    after = relax(flow.state.y, flow.drive, flow.rate, duration)
    growth = float((flow.rate.max() * t).exp())
    assert_close(
        unwait(after, flow.drive, flow.rate, duration),
        flow.state.y,
        rtol=0,
        atol=1e-13 * max(1.0, growth),
    )


@settings(max_examples=20)
@given(flows(), st.floats(0.1, 3))
def test_waiting_solves_the_differential_equation(flow, t):
    steps = 400
    h = t / steps
    y, gain, met = flow.state.y, flow.state.gain, flow.state.exposure

    def slope(y: Tensor, gain: Tensor) -> tuple[Tensor, Tensor]:
        stimulus = (gain.unsqueeze(-1) * flow.media_drive).sum(-2)
        return flow.rate * (flow.drive + stimulus - y), flow.turnover * (met * flow.limit - gain)

    for _ in range(steps):  # classical Runge-Kutta of order 4
        a, ga = slope(y, gain)
        b, gb = slope(y + h / 2 * a, gain + h / 2 * ga)
        c, gc = slope(y + h / 2 * b, gain + h / 2 * gb)
        d, gd = slope(y + h * c, gain + h * gc)
        y, gain = y + h / 6 * (a + 2 * b + 2 * c + d), gain + h / 6 * (ga + 2 * gb + 2 * gc + gd)
    after = flow.wait(t)
    assert_close(after.y, y, rtol=2e-4, atol=2e-4)
    assert_close(after.gain, gain, rtol=2e-4, atol=2e-4)


@given(flows())
def test_cells_at_rest_without_drive_stay_at_rest(flow):
    rest = State(
        y=torch.zeros_like(flow.state.y),
        genotype=flow.state.genotype,
        exposure=torch.zeros_like(flow.state.exposure),
        gain=torch.zeros_like(flow.state.gain),
    )
    flow.drive = torch.zeros_like(flow.drive)
    assert_same(flow.wait(5.0, rest), rest, tolerance=0)


def test_without_turnover_a_cascade_once_started_is_never_lost():
    state = State(*(torch.ones(1, 1) for _ in range(4)))
    one, zero = torch.ones(1, 1), torch.zeros(1)
    after = wait(state, torch.tensor([50.0]), one, 0 * one, one, limit=0 * one, turnover=zero)
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
    state = State(torch.tensor([[0.4]]), torch.zeros(1, 1), torch.ones(1, 1), torch.tensor([[0.9]]))
    after = wait(state, t, lam, drive, media_drive, limit, rho)

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
        state = State(0 * one, one, one, one)
        return wait(state, 2 * one[0], rate, 0 * one, one, 0.3 * one, turnover).y

    rate = torch.tensor([[1.0]], dtype=torch.float64, requires_grad=True)
    turnover = torch.tensor([1.0 + offset], dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(response, (rate, turnover), eps=1e-5, atol=1e-6)


@given(st.floats(-30, 30))
def test_average_decay_is_the_mean_of_an_exponential(x):
    expected = float(-mpmath.expm1(-x) / x) if x else 1.0
    assert average_decay(torch.tensor(x, dtype=torch.float64)).item() == pytest.approx(
        expected, rel=1e-13
    )


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
    state = State(*(torch.rand(5, n, generator=rng) for n in (3, 1, 2, 2)))
    draws = [torch.rand(4, *s, generator=rng) for s in ((5, 1), (5, 3), (5, 2, 3), (5, 2), (2,))]
    together = wait(state, torch.arange(5.0), *draws)
    for i in range(4):
        alone = wait(state, torch.arange(5.0), *(d[i] for d in draws))
        assert_close(together.y[i], alone.y)
        assert_close(together.gain[i], alone.gain)
