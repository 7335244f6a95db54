"""Assumptions held with a probability: a mixture on the latent state with an indicator for each."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import Predictive

import pyrocell
from pyrocell import Assume
from pyrocell.assumptions.mixture import _log_det_less_form
from pyrocell.errors import ScreenError

HELD = [
    Assume.steady(probability=0.5),
    Assume.steady_vs_control(probability=0.3),
    Assume.silent_at_baseline(probability=0.5),
    Assume.necessary(0.6),
]


@pytest.fixture(scope="module")
def screen(make_screen):
    """Two knockouts and their pair, one medium beside the baseline, two times."""
    return make_screen(n_perturbations=2, media=1, times=(1.0, 3.0), combinations=True)


@pytest.fixture(scope="module")
def model(screen, build):
    return build(screen, assume=[*HELD, Assume.no_response(probability=0.5)])


def rows_of(module, assumption: str) -> list[int]:
    return [i for i, row in enumerate(module.uncertain.rows) if row[0] == assumption]


def ratio(module, scale: float) -> torch.Tensor:
    """Spike over slab at a draw from the prior, at a scale."""
    values = module.globals()
    values["assumed.scale"] = torch.full_like(values["assumed.scale"], scale)
    return module.uncertain_factor(values).exp()


def test_its_prior_expectation_is_one_so_that_the_indicators_prior_is_what_was_said(screen, build):
    module = build(screen, assume=HELD).module.model
    with torch.no_grad():
        torch.manual_seed(1)
        module.log_effect_scale.fill_(np.log(0.1))
        drawn = torch.stack([ratio(module, 0.1) for _ in range(120)])
    error = drawn.std(0) / len(drawn) ** 0.5
    # rates are summed out over 128 draws, whose own error the rows share
    assert ((drawn.mean(0) - 1).abs() < 4 * error + 0.15).all()


def test_a_state_without_change_speaks_for_it_and_a_changed_one_against_it(model):
    module = model.module.model
    with torch.no_grad():
        values = module.globals()
        silent = rows_of(module, "silent_at_baseline")
        rest = values | {"P.effect": torch.zeros_like(values["P.effect"])}
        moved = values | {"P.effect": torch.ones_like(values["P.effect"])}
        still, gone = (module.uncertain_factor(v)[silent] for v in (rest, moved))
        assert (still > 0).all() and (gone < -100).all()
        assert gone.isfinite().all()
        mixture = module.uncertain.log_prior(module.uncertain_factor(moved))[silent]
    assert mixture.numpy() == pytest.approx(np.log(0.5), abs=1e-5)  # the slab: no constraint


def test_a_blocked_response_speaks_for_no_response(model):
    module = model.module.model
    with torch.no_grad():
        values = module.globals()
        values["M.effect"] = torch.ones_like(values["M.effect"])
        values["P.effect"] = torch.zeros_like(values["P.effect"])
        rows = rows_of(module, "no_response")
        blocked, whole = (
            module.uncertain_factor(values | {"M.gain": torch.full_like(values["M.gain"], gain)})
            for gain in (0.0, 1.0)
        )
    assert (blocked[rows] > 0).all() and (whole[rows] < -10).all()


def test_the_factor_enters_the_log_joint_once_and_predictive_runs(model):
    module, arguments = model.module, model.module_arguments(np.arange(6), dense=True)
    with poutine.trace() as traced, torch.no_grad():
        module.model(**arguments)
    site = traced.trace.nodes["assumed.state"]
    values = {k: v["value"] for k, v in traced.trace.nodes.items() if v["type"] == "sample"}
    values |= {"W.log_decay": module.model.log_decay(values)}
    each = module.model.uncertain.log_prior(module.model.uncertain_factor(values))
    traced.trace.compute_log_prob()
    assert site["log_prob_sum"].item() == pytest.approx(each.sum().item(), rel=1e-5)
    drawn = Predictive(module.model, num_samples=2)(**(arguments | {"x": None}))
    assert drawn["assumed.scale"].shape[-1] == 5
    latent = Predictive(module.guide, num_samples=2)(**arguments)
    again = Predictive(module.model, latent)(**(arguments | {"x": None}))
    assert again["x"].shape[-2:] == (6, 12)


def test_scale_and_effects_are_moved_by_it_and_it_is_saved(screen, build, tmp_path):
    model = build(screen, assume=HELD)
    arguments = model.module_arguments(np.arange(20))
    pyro.infer.Trace_ELBO().differentiable_loss(
        model.module.model, model.module.guide, **arguments
    ).backward()
    assert model.module.guide.assumed_loc.grad.abs().min() > 0
    model.train(max_epochs=1, progress_bar=False)
    model.save(tmp_path / "model")
    again = pyrocell.PyroCell.load(tmp_path / "model", screen)
    here, there = (m.module.model.uncertain for m in (model, again))
    assert torch.equal(here.gram, there.gram) and here.rows == there.rows
    pd.testing.assert_frame_equal(again.assumed_indicators(5), model.assumed_indicators(5))


def test_indicators_have_a_row_each(screen, build):
    model = build(screen, assume=HELD[:1])
    model.train(max_epochs=2, progress_bar=False)
    table = model.assumed_indicators(5)
    assert list(table) == ["assumption", "perturbation", "media", "prior", "posterior", "scale"]
    assert (table.prior == 0.5).all() and table.posterior.between(0, 1).all()
    assert set(table.assumption) == {"steady"}


def test_small_matrices_are_eliminated_as_linear_algebra_does():
    draw = torch.randn(5, 3, 3, dtype=torch.double)
    a, b = draw @ draw.mT, torch.randn(5, 3, dtype=torch.double)
    whole = a + torch.eye(3)
    form = (b * torch.linalg.solve(whole, b)).sum(-1)
    torch.testing.assert_close(_log_det_less_form(a, b), torch.logdet(whole) - form)


def test_what_is_certain_excluded_or_out_of_reach_has_no_indicator(make_screen, build):
    screen = make_screen()
    module = build(screen, assume=[Assume.silent_at_baseline()]).module.model
    assert not len(module.uncertain) and module.imposed is not None
    module = build(screen, assume=[Assume.silent_at_baseline(probability=0.0)]).module.model
    assert not len(module.uncertain) and module.imposed is None


def test_a_table_becomes_what_is_held_of_another_replicate():
    table = pd.DataFrame(
        {
            "assumption": ["steady", "steady", "silent_at_baseline", "silent_at_baseline"],
            "perturbation": ["A", "B", "A", "B"],
            "media": ["baseline"] * 4,
            "prior": [0.5, 0.4, 0.5, 1.0],
            "posterior": [0.8, 0.4, 1.0, 1.0],
        }
    )
    steady = Assume.from_table(table, ["steady"])
    assert steady == [
        Assume.steady("A", "baseline", 0.8),
        Assume.steady("B", "baseline", 0.4),
    ]
    rounded, given = Assume.from_table(table, ["silent_at_baseline"])
    assert 0.999 < rounded.probability < 1 and given.probability == 1
    with pytest.raises(ScreenError, match="no column posterior"):
        Assume.from_table(table.drop(columns="posterior"))
