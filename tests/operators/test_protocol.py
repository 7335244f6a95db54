"""Protocols: order, composition, inverse and counterfactual, and what bad steps are told."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from designs import GENES, MEDIA, TIMES, assert_same, designs, parameters, rest
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from pyrocell.errors import ConflictingTypesError, ProtocolError, UnknownLabelError
from pyrocell.operators import (
    Media,
    Perturb,
    Protocol,
    ResponseParameters,
    Wait,
    condition_rate,
    counterfactual,
    forward,
    gain_limit,
    inverse,
    respond,
    run,
)
from pyrocell.operators.state import State


@given(parameters(), designs())
def test_effects_are_the_response_at_the_reference_time(params, design):
    genotype, exposure, duration = design
    state = respond(genotype, exposure, torch.full_like(duration, params.reference_time), params)
    gain = exposure * gain_limit(genotype, params.gain)
    assert_close(state.y, genotype @ params.effect + gain @ params.media_effect)


@given(parameters(), designs())
def test_the_default_screen_is_forward_from_rest(params, design):
    genotype, exposure, duration = design
    assert_same(
        respond(genotype, exposure, duration, params),
        forward(rest(len(genotype)), genotype, exposure, duration, params),
    )


@given(parameters(), TIMES)
def test_running_p_m_w_is_the_default_screen(params, t):
    protocol = Protocol([Perturb("A"), Perturb("B", "CRISPRi"), Media("n"), Wait(t)])
    genotype = torch.tensor([[1.0, 1.0, 0.0, 0.0]], dtype=torch.float64)
    exposure = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    duration = torch.tensor([t], dtype=torch.float64)
    assert_same(run(protocol, params, GENES, MEDIA), respond(genotype, exposure, duration, params))


@given(parameters(), TIMES, TIMES)
def test_splitting_a_wait_changes_nothing_in_any_order(params, s, t):
    start = [Media("m"), Wait(0.7), Perturb("A")]
    whole = run(Protocol([*start, Wait(s + t)]), params, GENES, MEDIA)
    split = run(Protocol([*start, Wait(s), Wait(t)]), params, GENES, MEDIA)
    assert_same(split, whole)


@given(parameters(), TIMES)
def test_a_protocol_continues_from_the_state_another_left(params, t):
    first, second = [Perturb("C"), Wait(t)], [Media("m"), Wait(1.0)]
    halfway = run(Protocol(first), params, GENES, MEDIA)
    assert_same(
        run(Protocol(second), params, GENES, MEDIA, halfway),
        run(Protocol(first + second), params, GENES, MEDIA),
    )


def blocking(turnover: float, w: float = 0.0) -> ResponseParameters:
    """Perturbation A multiplies the response to medium m by w and does nothing else."""
    one = torch.ones(1, 1)
    return ResponseParameters(0 * one, one, w * one, one[0] * turnover, torch.zeros(2), one[0, 0])


def final(steps: list, params: ResponseParameters) -> float:
    return run(Protocol(steps), params, {"A": 0}, {"m": 0}).y.item()


def test_a_receptor_lost_before_the_ligand_stops_the_cascade_lost_after_it_does_not():
    params = blocking(turnover=0.0)
    assert final([Perturb("A"), Media("m"), Wait(1)], params) == 0.0
    assert final([Media("m"), Perturb("A"), Wait(1)], params) == pytest.approx(1.0)


def testwith_turnover_a_cascade_fades_once_its_receptor_is_lost():
    late = [Media("m"), Perturb("A"), Wait(30)]
    assert final(late, blocking(turnover=1.0)) == pytest.approx(0.0, abs=1e-6)
    assert final(late, blocking(turnover=0.0)) == pytest.approx(1 / (1 - math.exp(-1)))


@given(st.floats(0, 3), st.floats(0, 2))
def test_order_matters_exactly_when_the_gain_is_not_one(w, turnover):
    early = final([Perturb("A"), Media("m"), Wait(1)], blocking(turnover, w))
    late = final([Media("m"), Perturb("A"), Wait(1)], blocking(turnover, w))
    if w == 1:
        assert early == pytest.approx(late)
    elif abs(w - 1) > 1e-2:
        assert early != pytest.approx(late, rel=1e-4)


@given(parameters(), TIMES)
def test_unperturbed_cells_in_baseline_medium_stay_at_rest(params, t):
    after = run(Protocol([Wait(t)]), params, GENES, MEDIA)
    assert_same(after, rest(1), tolerance=0)


def forgotten(params: ResponseParameters) -> float:
    """Rounding of what is rewound; a product lost a million times faster is forgotten."""
    return 1e-8 if params.log_decay is not None else 1e-4


@given(parameters(), designs())
def test_the_inverse_brings_every_condition_back_to_rest(params, design):
    genotype, exposure, duration = design
    after = respond(genotype, exposure, duration, params)
    assert_same(inverse(after, duration, params), rest(len(genotype)), forgotten(params))


@given(parameters(), designs(), designs())
def test_the_counterfactual_is_what_the_other_screen_would_have_shown(params, fact, other):
    n = min(len(fact[0]), len(other[0]))
    duration = fact[2][:n]
    observed = respond(fact[0][:n], fact[1][:n], duration, params)
    imagined = counterfactual(observed, other[0][:n], other[1][:n], duration, params)
    expected = respond(other[0][:n], other[1][:n], duration, params)
    assert_same(imagined, expected, forgotten(params))
    back = counterfactual(imagined, fact[0][:n], fact[1][:n], duration, params)
    assert_same(back, observed, 100 * forgotten(params))


def test_what_has_relaxed_for_ages_comes_back_finite():
    params = blocking(turnover=5.0)
    one = torch.ones(1, 1)
    after = respond(one, one, torch.tensor([1e4]), params)
    before = inverse(after, torch.tensor([1e4]), params)
    assert before.y.isfinite().all()


def test_the_rate_is_the_geometric_mean_of_the_drivers_present():
    params = blocking(0.0)
    rates = torch.tensor([0.5, 8.0])
    params = ResponseParameters(
        params.effect,
        params.media_effect,
        params.gain,
        params.turnover,
        rates.log(),
        torch.zeros(()),
    )
    genotype, exposure = (
        torch.tensor([[0.0, 1.0, 0.0, 1.0]]).T,
        torch.tensor([[0.0, 0.0, 1.0, 1.0]]).T,
    )
    assert_close(condition_rate(genotype, exposure, params), torch.tensor([[1.0, 0.5, 8.0, 2.0]]).T)


@pytest.mark.parametrize("log_rate", [-200.0, -30.0, 0.0, 30.0, 200.0])
@pytest.mark.parametrize("duration", [0.0, 3.0, 1e4])
def test_absurd_rates_leave_float32_responses_and_gradients_finite(log_rate, duration):
    rate = torch.full((2,), log_rate, requires_grad=True)
    turnover = torch.full((1,), 0.3, requires_grad=True)
    one = torch.ones(1, 1)
    params = ResponseParameters(one, one, one, turnover, rate, torch.zeros(()), reference_time=3.0)
    ran = run(Protocol([Media("m"), Perturb("A"), Wait(duration)]), params, {"A": 0}, {"m": 0})
    short = respond(one, one, torch.tensor([duration]), params)
    assert_close(ran.y, short.y, rtol=1e-4, atol=1e-6)
    (ran.y + short.y).sum().backward()
    assert rate.grad.isfinite().all() and turnover.grad.isfinite().all()


def test_draws_of_the_parameters_give_draws_of_the_response():
    one = torch.rand(5, 2, 3)
    params = ResponseParameters(
        effect=one, media_effect=torch.rand(5, 1, 3), gain=torch.rand(5, 2, 1),
        turnover=torch.rand(5, 1), log_rate=torch.randn(5, 3), base_log_rate=torch.randn(5),
    )  # fmt: skip
    genotype, exposure = torch.tensor([[0.0, 0.0], [1.0, 1.0]]), torch.tensor([[1.0], [1.0]])
    together = respond(genotype, exposure, torch.tensor([1.0, 2.0]), params)
    assert together.y.shape == (5, 2, 3)
    by_steps = forward(State.rest(2, 2, 1, 3), genotype, exposure, torch.tensor([1.0, 2.0]), params)
    assert_close(by_steps.y, together.y)


def test_a_screen_without_media_or_perturbations_runs():
    params = ResponseParameters(
        torch.ones(1, 2), torch.ones(0, 2), torch.ones(1, 0), torch.ones(0),
        torch.zeros(1), torch.zeros(()),
    )  # fmt: skip
    protocol = Protocol([Perturb("A"), Wait(1)])
    assert_close(run(protocol, params, {"A": 0}, {}).y, torch.ones(1, 2))


def test_protocols_are_hashable_equal_by_content_and_print_as_python():
    protocol = Protocol([Perturb("TGFBR1"), Media("TGFB1"), Wait(3), Wait(np.float32(0.5))])
    assert eval(repr(protocol)) == protocol
    assert len({protocol, Protocol(list(protocol.steps))}) == 1
    assert repr(Protocol([Wait(3)])) == "Protocol([Wait(3)])"


def test_a_protocol_tells_what_it_perturbs_adds_and_waits():
    protocol = Protocol([Wait(1), Perturb("A"), Media("m"), Perturb("A"), Media("m"), Wait(2)])
    assert protocol.perturbations == (Perturb("A"),)
    assert protocol.media == ("m",)
    assert protocol.duration == 3.0


@pytest.mark.parametrize("time", [-1, math.nan, math.inf, "3", None, True])
def test_a_wait_must_be_a_finite_duration(time):
    with pytest.raises(ProtocolError, match="finite number, zero or more"):
        Wait(time)


def test_a_type_nobody_has_is_refused_with_those_that_exist():
    with pytest.raises(ProtocolError, match='has the value "knockdown"'):
        Perturb("A", "knockdown")


def test_usual_spellings_of_a_type_are_one_type():
    assert Perturb("A", "KO") == Perturb("A")
    assert Perturb("A", "crispri").type == "CRISPRi"


@pytest.mark.parametrize("make", [Perturb, Media])
@pytest.mark.parametrize("name", ["", "  ", None, 3])
def test_names_must_be_names(make, name):
    with pytest.raises(ProtocolError, match="is not a name"):
        make(name)


def test_steps_must_be_steps():
    with pytest.raises(ProtocolError, match="step 2 of the protocol is 'IFNG'"):
        Protocol([Perturb("A"), "IFNG"])
    with pytest.raises(ProtocolError, match="list of steps"):
        Protocol(Wait(3))


def test_one_gene_takes_one_type():
    with pytest.raises(ConflictingTypesError, match="'knockout'"):
        Protocol([Perturb("A"), Wait(1), Perturb("A", "CRISPRi")])
    params = blocking(0.0)
    wide = ResponseParameters(
        torch.ones(2, 1), params.media_effect, torch.ones(2, 1), params.turnover,
        torch.zeros(3), torch.zeros(()),
    )  # fmt: skip
    names = {"A (knockout)": 0, "A (CRISPRi)": 1}
    halfway = run(Protocol([Perturb("A")]), wide, names, {"m": 0})
    with pytest.raises(ConflictingTypesError):
        run(Protocol([Perturb("A", "CRISPRi")]), wide, names, {"m": 0}, halfway)


def test_unknown_names_are_refused_with_close_ones():
    params = blocking(0.0)
    with pytest.raises(UnknownLabelError, match='no perturbation "STAT2"; did you mean "STAT1"'):
        run(Protocol([Perturb("STAT2")]), params, {"STAT1": 0}, {"IFNG": 0})
    with pytest.raises(UnknownLabelError, match='no medium "TNF"'):
        run(Protocol([Media("TNF")]), params, {"STAT1": 0}, {"IFNG": 0})
    with pytest.raises(UnknownLabelError, match="by knockout, not by CRISPRa"):
        run(Protocol([Perturb("A", "CRISPRa")]), params, {"A": 0}, {"m": 0}, types=["knockout"])


def test_effects_need_a_reference_time():
    params = blocking(0.0)
    with pytest.raises(ProtocolError, match=r"reference_time=0\.0"):
        ResponseParameters(
            params.effect, params.media_effect, params.gain, params.turnover,
            params.log_rate, params.base_log_rate, reference_time=0.0,
        )  # fmt: skip
