"""States that move on their own (App. C.1): laws of W, densities, what a model does with them."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Normal
from torchdiffeq import odeint

from pyrocell import Media, Perturb, Protocol, Wait
from pyrocell.distributions.paths import GaussianChain, TransportedNormal
from pyrocell.errors import ProtocolError, ScreenError, StiffFieldError
from pyrocell.generative.state_dynamics import BackwardChain, invert_path, propagate, state_log_prob
from pyrocell.operators import ResponseParameters, forward, inverse
from pyrocell.operators.dynamics.flow import (
    NOISY_STEPS,
    Segment,
    StateField,
    arm_segments,
    check_steps,
    code_in_arm,
    integrate_ode,
    integrate_sde,
)
from pyrocell.operators.state import State
from pyrocell.posterior import simulate_cells as simulated

D, M, H, K, J, N = 3, 2, 8, 3, 1, 5
GENOTYPE = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 1]]).double()
EXPOSURE = torch.tensor([[0.0], [1], [1]]).double()


def normal(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def field(seed: int = 0, size: float = 0.5, noise: float | None = None) -> StateField:
    return StateField(
        direction=normal(seed, D, H),
        code_direction=normal(seed + 1, M, H),
        offset=normal(seed + 2, H),
        code_gain=0.3 * normal(seed + 6, M, H),
        weight=size * normal(seed + 3, H, D),
        code=normal(seed + 4, K, M),
        media_code=normal(seed + 5, J, M),
        clock=2.0,
        noise=None if noise is None else torch.full((D,), noise).double(),
    )


def segments(
    duration: Tensor, of: StateField, at: tuple[float, float] = (0.0, 0.0)
) -> tuple[Segment, ...]:
    events = [torch.full_like(duration, time) for time in at]
    gain, rates = normal(9, K, J).abs(), (torch.ones(J).double(), torch.full((K,), 2.0).double())
    code = code_in_arm(GENOTYPE, EXPOSURE, *events, gain, *rates, of)
    return arm_segments(duration, *events, code)


def biology(motion: StateField) -> ResponseParameters:
    return ResponseParameters(
        effect=normal(1, K, 4),
        media_effect=normal(2, J, 4),
        gain=normal(9, K, J).abs(),
        turnover=torch.ones(J).double(),
        log_rate=0.3 * normal(3, K + J),
        base_log_rate=torch.tensor(0.0).double(),
        log_decay=torch.full((K,), math.log(2.0)).double(),
        motion=motion,
    )


def at_rest() -> State:
    z = normal(7, len(GENOTYPE), N, D)
    return State.rest(len(GENOTYPE), K, J, 4, z, dtype=torch.float64)


# ---------------------------------------------------------------- laws of W
@given(st.integers(0, 20))
def test_no_time_moves_nothing(seed):
    for noise in (None, 0.7):
        of = field(seed, noise=noise)
        start, none = at_rest(), torch.zeros(3).double()
        after = forward(start, GENOTYPE, EXPOSURE, none, biology(of))
        assert torch.equal(after.z, start.z)


@pytest.mark.parametrize("seed", range(3))
def test_waiting_twice_is_waiting_for_the_sum(seed):
    params, nothing = biology(field(seed)), (0 * GENOTYPE, 0 * EXPOSURE)
    short, long = torch.full((3,), 0.7).double(), torch.full((3,), 1.8).double()
    once = forward(at_rest(), GENOTYPE, EXPOSURE, short + long, params)
    first = forward(at_rest(), GENOTYPE, EXPOSURE, short, params)
    twice = forward(first, *nothing, long, params)
    way = (once.z - at_rest().z).abs().max()
    assert (twice.z - once.z).abs().max() < 0.01 * way


def test_waiting_with_noise_twice_is_waiting_for_the_sum_in_distribution():
    """Chapman-Kolmogorov: mean and spread over many cells, within three standard errors."""
    of, n = field(3, size=0.2, noise=0.4), 20_000
    driving_noise = [
        normal(20 + i, steps, 1, n, D)
        for i, steps in enumerate((NOISY_STEPS, NOISY_STEPS, 2 * NOISY_STEPS))
    ]

    def segment(span: float) -> Segment:
        return Segment(
            *torch.tensor([[0.0], [span]]).double(), lambda s: torch.zeros(1, M).double()
        )

    start = torch.zeros(1, n, D).double()
    twice = integrate_sde(
        integrate_sde(start, segment(1.0), of, driving_noise[0])[-1],
        segment(1.0),
        of,
        driving_noise[1],
    )[-1]
    once = integrate_sde(start, segment(2.0), of, driving_noise[2])[-1]
    spread = once.std(1)
    assert ((twice.mean(1) - once.mean(1)).abs() < 3 * spread * (2 / n) ** 0.5).all()
    assert ((twice.std(1) / spread - 1).abs() < 3 / n**0.5).all()


def test_the_flow_agrees_with_an_adaptive_solver():
    of, duration = field(1), torch.tensor([0.5, 1.0, 3.0]).double()
    way, start = segments(duration, of), normal(7, 3, D)
    (segment,) = way

    def slope(u: Tensor, z: Tensor) -> Tensor:
        return duration[:, None] * of.velocity(z, segment.code(u * duration))

    exact = odeint(slope, start, torch.tensor([0.0, 1.0]).double(), method="dopri8", rtol=1e-9)[-1]
    error = (integrate_ode(start, way, of)[0] - exact).abs().max()
    assert error < 0.01 * (exact - start).abs().max()


def test_where_a_cell_goes_does_not_depend_on_the_cells_beside_it():
    for noise in (None, 0.5):
        of, duration = field(2, noise=noise), torch.tensor([0.5, 1.0, 3.0]).double()
        start, driving_noise = normal(7, 3, N, D), normal(8, NOISY_STEPS, 3, N, D)
        way = segments(duration, of)
        together = propagate(start, way, of, driving_noise)
        alone = propagate(start[:, [2]], way, of, driving_noise[:, :, [2]])
        torch.testing.assert_close(alone[:, 0], together[:, 2], rtol=1e-10, atol=1e-10)


def test_the_flow_can_be_undone():
    of = field(4)
    way, start = segments(torch.tensor([0.5, 1.0, 2.0]).double(), of), normal(7, 3, N, D)
    there, forth = integrate_ode(start, way, of)
    back, home = integrate_ode(there, way, of, back=True)
    assert (back - start).abs().max() < 1e-3 * (there - start).abs().max()
    torch.testing.assert_close(home, -forth, rtol=1e-2, atol=1e-3)
    params = biology(of)
    after = forward(at_rest(), GENOTYPE, EXPOSURE, torch.ones(3).double(), params)
    before = inverse(after, torch.ones(3).double(), params)
    assert (before.z - at_rest().z).abs().max() < 0.01 * (after.z - at_rest().z).abs().max()


def test_what_moves_with_noise_has_no_single_past():
    params = biology(field(0, noise=0.3))
    after = forward(at_rest(), GENOTYPE, EXPOSURE, torch.ones(3).double(), params)
    with pytest.raises(ProtocolError, match="counterfactual"):
        inverse(after, torch.ones(3).double(), params)


def test_events_cut_the_way_and_are_felt_when_they_happen():
    """Perturbed only at the end, cells go as controls do; cut at its events, the way is smooth."""
    of, duration = field(5), torch.full((3,), 2.0).double()
    start = normal(7, 1, D).expand(3, D)
    late = integrate_ode(start, segments(duration, of, at=(2.0, 2.0)), of)[0]
    torch.testing.assert_close(late, late[:1].expand_as(late))
    coarse, fine = (
        integrate_ode(start, segments(duration, of, at=(0.7, 1.1)), of, steps=n)[0] for n in (8, 64)
    )
    assert (coarse - fine).abs().max() < 0.01 * (fine - start).abs().max()


def test_long_waits_have_finite_gradients_and_a_wild_field_is_named_with_the_remedy():
    of = field(0, size=1.0)
    weight = of.weight.clone().requires_grad_()
    wild = StateField(**{**vars(of), "weight": weight})
    end = integrate_ode(normal(7, 3, D), segments(torch.full((3,), 1e3).double(), wild), wild)[0]
    (gradient,) = torch.autograd.grad(end.square().sum(), weight)
    assert torch.isfinite(end).all() and torch.isfinite(gradient).all()
    with pytest.raises(StiffFieldError, match="shorter steps"):
        check_steps(normal(7, 3, D), segments(torch.full((3,), 60.0).double(), of), of)
    check_steps(normal(7, 3, D), segments(torch.ones(3).double(), of), of)


# ---------------------------------------------------------------- densities
def test_the_density_of_carried_states_is_that_of_a_change_of_variables():
    of = field(6)
    way = segments(torch.tensor([0.5, 1.0, 2.0]).double(), of)
    loc, scale = torch.zeros(3, D).double(), torch.full((3, D), 0.8).double()
    law = TransportedNormal(loc, scale, lambda z, back: integrate_ode(z, way, of, back))
    end = normal(11, 3, D)
    start = integrate_ode(end, way, of, back=True)[0]
    jacobian = torch.autograd.functional.jacobian(lambda z: integrate_ode(z, way, of, True)[0], end)
    log_det = torch.stack([torch.linalg.slogdet(jacobian[i, :, i])[1] for i in range(3)])
    expected = Normal(loc, scale).log_prob(start).sum(-1) + log_det
    torch.testing.assert_close(law.log_prob(end), expected, rtol=1e-3, atol=1e-3)


def test_chains_run_either_way():
    step = lambda z, i: (0.5 * z + i, torch.full_like(z, 0.3))  # noqa: E731
    ends = torch.zeros(4000, D).double(), torch.ones(4000, D).double()
    forth, back = (GaussianChain(*ends, step, 3, backwards=b) for b in (False, True))
    torch.manual_seed(0)
    drawn = back.rsample()
    torch.testing.assert_close(back.log_prob(drawn), forth.log_prob(drawn.flip(1)))
    mean = drawn.mean((0, 2))  # the chain's third state first: .5 (.5 · 0 + 0) + 1
    assert torch.allclose(mean, torch.tensor([1.0, 0.0, 0.0]).double(), atol=3 * 1.1 / 12000**0.5)


def test_without_a_field_noise_alone_spreads_states_and_its_density_is_known():
    """The one-way estimate of the density, averaged, is that of the normal sum of all steps."""
    of = StateField(**{**vars(field(0, noise=0.5)), "weight": torch.zeros(H, D).double()})
    duration = torch.full((3,), 2.0).double()
    way, z = segments(duration, of), 0.5 * normal(3, 3, D)
    start = torch.zeros(3, D).double(), torch.ones(3, D).double()
    torch.manual_seed(0)
    reversal = BackwardChain(D, M).double()
    with torch.no_grad():
        draws = torch.stack([state_log_prob(z, way, of, start, reversal) for _ in range(300)])
    estimate = torch.logsumexp(draws, 0) - math.log(len(draws))
    exact = Normal(0.0, (1 + 0.25) ** 0.5).log_prob(z).sum(-1)  # σ² times the wait over the clock
    error = (draws - estimate).exp().std(0) / len(draws) ** 0.5
    assert ((estimate - exact).abs() < 4 * error).all()


def test_a_cell_sent_back_and_on_again_with_its_luck_arrives_where_it_was():
    for noise in (None, 0.5):
        of = field(2, noise=noise)
        way, z = segments(torch.tensor([0.5, 1.0, 2.0]).double(), of), normal(3, 3, D)
        torch.manual_seed(0)
        reversal = None if noise is None else BackwardChain(D, M).double()
        with torch.no_grad():
            start, driving_noise = invert_path(z, way, of, reversal)
            again = propagate(
                start[:, None],
                way,
                of,
                None if driving_noise is None else driving_noise[:, :, None],
            )
        torch.testing.assert_close(again[:, 0], z, rtol=1e-3, atol=1e-3)


# ---------------------------------------------------------------- models
@pytest.fixture(scope="module", params=["flow", "sde"])
def moving(request, make_screen, build):
    adata = make_screen(media=2, times=(1.0, 2.0))
    adata.obs["fate"] = np.where(np.arange(adata.n_obs) % 2, "left", "right")
    model = build(adata, dynamics=request.param)
    model.train(max_epochs=3, progress_bar=False)
    return model


def test_models_whose_states_move_train_and_survive_a_file(moving, tmp_path):
    sites = set(moving.posterior_samples(2))
    assert {"W.flow", "P.flow", "M.flow"} <= sites
    assert ("W.noise" in sites) == (moving.module.config.dynamics == "sde")
    conditions = moving.screen.conditions[["perturbation", "media", "time"]].head(4)
    before = moving.predict(conditions, n_samples=3).X
    moving.save(tmp_path / "model")
    again = type(moving).load(tmp_path / "model", moving.adata)
    assert (before == again.predict(conditions, n_samples=3).X).all()
    assert np.isfinite(again.get_marginal_ll(n_mc_samples=2)).all()
    assert np.isfinite(again.perturbation_effects(n_samples=3)["mean"]).all()
    assert np.isfinite(moving.history["validation_elbo"]).all()


def test_sites_of_motion_have_named_dimensions(moving):
    group = moving.to_arviz(2)["posterior"]  # InferenceData (ArviZ 0.x) or DataTree (1.x)
    posterior = group.to_dataset() if hasattr(group, "to_dataset") else group
    assert posterior["W.flow"].dims[2:] == ("state_feature", "state_axis")
    assert posterior["P.flow"].dims[2:] == ("perturbation", "code")
    assert posterior["state_axis"].values.tolist() == ["z1", "z2"]
    assert posterior["M.flow"].sizes["code"] == len(posterior["code"]) == 4


def test_moving_cells_are_simulated_and_counted_by_fate(moving):
    medium, gene = moving.screen.media[0], moving.screen.perturbations[0]
    frame = pd.DataFrame({"perturbation": ["control", gene], "media": medium, "time": [1.0, 3.0]})
    cells = moving.simulate_cells(frame, n_cells=5, n_samples=2)
    assert cells.shape == (20, len(moving.screen.genes))
    assert list(cells.obs.groupby(["perturbation", "draw"], observed=True).size()) == [5] * 4
    assert (cells.X.data >= 0).all() and cells.obsm["X_pyrocell"].shape == (20, 2)
    table = moving.fate_proportions(frame, "fate", n_samples=3)
    assert list(table.columns) == [*frame.columns, "fate", "mean", "sd", "lower", "upper"]
    totals = table.groupby("perturbation")["mean"].sum()
    assert np.allclose(totals, 1.0)
    with pytest.raises(ScreenError, match='no column "type"'):
        moving.fate_proportions(frame, "type")


def test_fates_are_learned_from_a_bounded_number_of_cells_and_some_of_each(monkeypatch):
    fates = pd.Series(["A"] * 5000 + ["B"] * 12 + [None] * 100, index=["cell"] * 5112)
    assert (simulated._examples(fates) == fates.notna().to_numpy()).all()
    monkeypatch.setattr(simulated, "_EXAMPLES", 200)
    chosen = simulated._examples(fates)
    assert chosen[fates.isna().to_numpy()].sum() == 0
    assert 200 <= chosen.sum() <= 200 + 2 * simulated._LEAST
    assert fates[chosen].value_counts()["B"] >= simulated._LEAST


def test_populations_set_out_from_their_law_at_time_0(moving):
    frame = pd.DataFrame({"perturbation": ["control"], "media": "baseline", "time": [0.0]})
    z = moving.simulate_cells(frame, n_cells=800, n_samples=3).obsm["X_pyrocell"]
    with torch.no_grad():
        loc, scale = (x.numpy() for x in moving.module.model.motion.at_start(1))
    assert (abs(z.mean(0) - loc) < 4 * scale / len(z) ** 0.5).all()
    assert (abs(z.std(0) / scale - 1) < 4 / (2 * len(z)) ** 0.5).all()


def test_counts_of_two_conditions_are_drawn_apart(moving):
    """Cells at the same states in two rows differ in what was counted of them."""
    frame = pd.DataFrame({"perturbation": ["control"] * 2, "media": "baseline", "time": 1.0})
    cells = moving.simulate_cells(frame, n_cells=50, n_samples=1)
    assert (cells.X[:50] != cells.X[50:]).nnz > 0


def test_orders_of_steps_reach_moving_states(moving):
    medium, gene = moving.screen.media[0], moving.screen.perturbations[0]
    kind = moving.screen.perturbation_types[0]
    usual = Protocol([Perturb(gene, kind), Media(medium), Wait(2)])
    reverse = Protocol([Media(medium), Wait(1), Perturb(gene, kind), Wait(1)])
    one, two = (moving.simulate_cells(p, n_cells=20, n_samples=1) for p in (usual, reverse))
    assert not np.allclose(one.obsm["X_pyrocell"], two.obsm["X_pyrocell"])


def test_a_moving_cell_left_as_it_is_stays_where_it_was(moving):
    """The counterfactual under a cell's own treatment is its own expected expression."""
    row = moving.screen.conditions.iloc[0]
    mine = moving.adata.obs[["perturbation", "media", "time"]].eq(
        row[["perturbation", "media", "time"]].to_list()
    )
    cells = moving.adata[mine.all(axis=1).to_numpy()]
    own = moving.counterfactual(
        cells, perturbation=row.perturbation, media=row.media, time=row.time, n_samples=4
    )
    assert np.isfinite(own.X).all()
    share = own.X / own.X.sum(1, keepdims=True)
    seen = moving.get_normalized_expression(cells, batch_corrected=False).to_numpy()
    assert np.corrcoef(np.log(share).ravel(), np.log(seen).ravel())[0, 1] > 0.9
