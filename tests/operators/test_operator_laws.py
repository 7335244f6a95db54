"""Laws of P and M (design section 1): idempotent, commuting, identity, order."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from pyrocell.errors import ConflictingTypesError
from pyrocell.operators import expose, gain_limit, on_target_shift, perturb
from pyrocell.operators.state import State

FIELDS = ("y", "genotype", "dose", "exposure", "gain")


def assert_same(a: State, b: State) -> None:
    for field in FIELDS:
        assert_close(getattr(a, field), getattr(b, field), rtol=0, atol=0)
    assert a.z is b.z


@st.composite
def states(draw: st.DrawFn) -> State:
    sizes = [draw(st.integers(1, 5)) for _ in range(4)]
    conditions, perturbations, media, axes = sizes
    rng = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    exposure = (torch.rand(conditions, media, generator=rng) < 0.5).float()
    genotype = (torch.rand(conditions, perturbations, generator=rng) < 0.3).float()
    return State(
        y=torch.randn(conditions, axes, generator=rng),
        genotype=genotype,
        dose=genotype * torch.rand(conditions, perturbations, generator=rng),
        exposure=exposure,
        gain=exposure * torch.rand(conditions, media, generator=rng),
        z=torch.randn(3, 2, generator=rng),
    )


@st.composite
def perturbed_states(draw: st.DrawFn, n: int) -> tuple[State, list[torch.Tensor]]:
    state = draw(states())
    width = state.genotype.shape[-1]
    bits = st.lists(st.sampled_from([0.0, 1.0]), min_size=width, max_size=width)
    return state, [torch.tensor(draw(bits)) for _ in range(n)]


@given(perturbed_states(1))
def test_perturbing_twice_is_perturbing_once(case):
    state, (p,) = case
    once = perturb(state, p)
    assert_same(perturb(once, p), once)


@given(perturbed_states(2))
def test_perturbations_of_different_genes_commute(case):
    state, (p, q) = case
    assert_same(perturb(perturb(state, p), q), perturb(perturb(state, q), p))


@given(states())
def test_control_perturbation_is_the_identity(state):
    assert_same(perturb(state, torch.zeros_like(state.genotype)), state)


@given(perturbed_states(1))
def test_perturbation_changes_only_the_genotype_and_not_its_argument(case):
    state, (p,) = case
    before = state.genotype.clone()
    after = perturb(state, p)
    assert_close(state.genotype, before, rtol=0, atol=0)
    for field in ("y", "dose", "exposure", "gain", "z"):
        assert getattr(after, field) is getattr(state, field)


def test_two_types_on_one_gene_are_refused_in_one_step_and_in_two():
    genes = torch.tensor([7, 3, 7])
    rest = State.rest(2, 3, 0, 1)
    both = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 1.0]])
    with pytest.raises(ConflictingTypesError, match=r"condition 1 .*\[0, 2\].*one gene"):
        perturb(rest, both, genes)
    knocked_out = perturb(rest, torch.tensor([1.0, 0.0, 0.0]), genes)
    with pytest.raises(ConflictingTypesError):
        perturb(knocked_out, torch.tensor([0.0, 0.0, 1.0]), genes)


def test_types_of_one_gene_are_fine_in_different_conditions():
    apart = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]])
    state = perturb(State.rest(2, 3, 0, 1), apart, torch.tensor([7, 3, 7]))
    assert_close(state.genotype, apart)


@given(states())
def test_no_change_of_medium_is_the_identity(state):
    assert_same(expose(state, torch.zeros_like(state.exposure), torch.ones(1)), state)


@given(states(), st.floats(0, 2))
def test_a_medium_met_before_keeps_its_gain(state, limit):
    again = expose(state, state.exposure, torch.full_like(state.gain, limit))
    assert_same(again, state)


@given(w=st.floats(0, 3).filter(lambda w: abs(w - 1) > 1e-3))
def test_medium_after_perturbation_differs_from_the_reverse_order(w):
    rest, one = State.rest(1, 1, 1, 1), torch.ones(1)
    gain = torch.tensor([[w]])
    knocked_out = perturb(rest, one)
    before = expose(knocked_out, one, gain_limit(knocked_out.genotype, gain))
    after = perturb(expose(rest, one, gain_limit(rest.genotype, gain)), one)
    assert before.gain.item() == pytest.approx(w)
    assert after.gain.item() == 1.0
    assert_close(before.genotype, after.genotype)
    assert_close(before.exposure, after.exposure)


@given(states())
def test_gain_limit_is_the_product_over_the_perturbations_carried(state):
    rng = torch.Generator().manual_seed(1)
    gain = torch.rand(state.genotype.shape[1], state.exposure.shape[1], generator=rng)
    expected = torch.stack([gain[row > 0].prod(0) for row in state.genotype])
    assert_close(gain_limit(state.genotype, gain), expected)


def test_gain_limit_takes_draws_and_blocks_with_finite_gradients():
    genotype = torch.tensor([[1.0, 1.0, 1.0], [0.0, 1.0, 0.0]])
    gain = torch.rand(4, 3, 2)
    gain[:, :2] = 0.0  # two blocking perturbations in one condition
    gain.requires_grad_()
    limit = gain_limit(genotype, gain)
    assert limit.shape == (4, 2, 2)
    limit.sum().backward()
    assert gain.grad.isfinite().all()


def test_screens_without_media_have_no_gain():
    assert gain_limit(torch.eye(3), torch.ones(3, 0)).shape == (3, 0)


def test_on_target_shift_moves_the_own_gene_alone():
    genotype = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    shift = on_target_shift(
        genotype, torch.tensor([-2.0, -1.0, 0.5]), torch.tensor([3, -1, 0]), n_genes=4
    )
    expected = [[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, -2.0], [0.5, 0.0, 0.0, -2.0]]
    assert_close(shift, torch.tensor(expected))
    draws = on_target_shift(genotype, torch.ones(5, 3), torch.tensor([3, -1, 0]), n_genes=4)
    assert draws.shape == (5, 3, 4)
