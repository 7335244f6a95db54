"""Factors of the generalised posterior: unbiased over minibatches, absent at weight 0."""

from __future__ import annotations

import itertools

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO

from pyrocell import PyroCell
from pyrocell.generative.population_objective import DistributionObjective, inclusion_probability
from pyrocell.metrics.distances import METHODS, energy_distance

# 4 controls (-1), 3 cells of condition 0, 2 of condition 1.
CONDITION = torch.tensor([-1, -1, -1, -1, 0, 0, 0, 1, 1])
SIZES = torch.tensor([3, 2])


def cells(n: int, seed: int = 0, shift: float = 0.0) -> torch.Tensor:
    return torch.tensor(shift + np.random.default_rng(seed).standard_normal((n, 2)))


def factor(objective, x, chosen, shift):
    """The factor of one minibatch, with F(control, c) = control + shift of c."""
    chosen = torch.tensor(chosen)
    condition, x = CONDITION[chosen], x[chosen]
    predicted = x[condition < 0] + shift[:, None]
    seen = condition >= 0
    numbers = {"n_controls": 4, "n_total": 9, "n_batch": len(chosen)}
    return objective.log_factor(predicted, x[seen], condition[seen], SIZES, **numbers)


@pytest.mark.parametrize("n_batch", [4, 5, 8])
@pytest.mark.parametrize("method", ["energy", "mmd", "moments"])
def test_the_mean_over_minibatches_is_the_value_of_the_screen(method, n_batch):
    options = {"mmd": {"bandwidth": 1.0}, "moments": {"order": 1}}.get(method, {})
    objective = DistributionObjective(method, weight=0.7, options=options)
    x, shift = cells(9), cells(2, seed=1)
    batches = itertools.combinations(range(9), n_batch)
    mean = torch.stack([factor(objective, x, chosen, shift) for chosen in batches]).mean()
    measure = METHODS[method]
    whole = -0.7 * sum(
        SIZES[c] * measure(x[:4] + shift[c], x[CONDITION == c], **options) for c in range(2)
    )
    assert mean == pytest.approx(float(whole), rel=1e-9)


@pytest.mark.parametrize("n_batch", [2, 3, 6, 9])
def test_the_probability_to_be_held_is_that_of_counting(n_batch):
    kinds = np.array([*CONDITION.numpy()])
    batches = [kinds[list(chosen)] for chosen in itertools.combinations(range(9), n_batch)]
    for c, found in enumerate(inclusion_probability(SIZES.numpy(), 4, 9, n_batch)):
        held = np.mean([(b == c).sum() >= 2 and (b < 0).sum() >= 2 for b in batches])
        assert found == pytest.approx(held, abs=1e-12)


def test_the_probability_stays_finite_in_large_screens():
    held = inclusion_probability(np.array([20, 20_000]), 100_000, 10_000_000, 512)
    assert 0 < held[0] < 1e-5 < held[1] < 1


def test_unpaired_populations_of_unlike_size_tell_the_effect():
    controls, seen = cells(150), cells(90, seed=1, shift=1.5)
    condition = torch.zeros(90, dtype=torch.long)
    objective = DistributionObjective(n_cells=200)
    effect = torch.zeros(2, dtype=torch.double, requires_grad=True)
    optimiser = torch.optim.Adam([effect], lr=0.1)
    for _ in range(60):
        optimiser.zero_grad()
        predicted = (controls + effect)[None]
        numbers = {"n_controls": 150, "n_total": 240, "n_batch": 240}
        loss = -objective.log_factor(predicted, seen, condition, torch.tensor([90]), **numbers)
        loss.backward()
        optimiser.step()
    error = (1 / 150 + 1 / 90) ** 0.5
    assert (effect.detach() - 1.5).abs().max() < 4 * error


def test_a_pyro_model_takes_it_as_a_factor():
    x, shift = cells(9), torch.zeros(2, 2).double()

    def model(weight):
        value = factor(DistributionObjective(weight=weight), x, range(9), shift)
        pyro.factor("distribution", value)

    def log_joint(weight):
        return poutine.trace(model).get_trace(weight).log_prob_sum()

    apart = [SIZES[c] * energy_distance(x[:4], x[CONDITION == c]) for c in range(2)]
    assert log_joint(0.0) == 0
    assert log_joint(2.0) == pytest.approx(-2 * float(sum(apart)))


def test_no_more_cells_are_compared_than_asked_for(monkeypatch):
    sizes = []

    def count(x, y):
        sizes.append((len(x), len(y)))
        return energy_distance(x, y)

    monkeypatch.setitem(METHODS, "energy", count)
    factor(DistributionObjective(n_cells=3), cells(9), range(9), torch.zeros(2, 2).double())
    assert sizes == [(3, 3), (3, 2)]


def test_minibatches_with_nothing_to_compare_add_nothing():
    shift = torch.zeros(2, 2).double()
    for chosen in ([0, 4, 5], [0, 1, 4, 7], [4, 5, 7, 8]):  # one control; one cell each; none
        assert factor(DistributionObjective(), cells(9), chosen, shift) == 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"method": "energie"}, 'did you mean "energy"'),
        ({"weight": -1.0}, "weight=-1.0"),
        ({"weight": float("nan")}, "weight=nan"),
        ({"n_cells": 1}, "n_cells=1"),
        ({"method": "mmd"}, 'needs options={"bandwidth": ...}'),
    ],
)
def test_settings_out_of_range_are_refused(options, says):
    with pytest.raises(ValueError, match=says):
        DistributionObjective(**options)


# ---------------------------------------------------------------- in the model


def negative_elbo(model, rows) -> torch.Tensor:
    torch.manual_seed(0)
    arguments = model.module_arguments(np.asarray(rows))
    return Trace_ELBO().differentiable_loss(model.module.model, model.module.guide, **arguments)


def test_without_weight_the_elbo_is_the_same_to_the_last_bit(make_screen, build):
    adata = make_screen()
    losses = [
        negative_elbo(build(adata, objective=objective), range(len(adata)))
        for objective in (None, DistributionObjective(weight=0.0))
    ]
    assert torch.equal(*losses)


def test_the_factor_is_that_of_resting_states_and_reaches_the_encoder(make_screen, build):
    adata = make_screen(media=1)
    weight, everyone = 3.0, range(len(adata))
    model = build(adata, objective=DistributionObjective(weight=weight, n_cells=10**6))
    module, arguments = model.module, model.module_arguments()
    torch.manual_seed(0)
    guided = poutine.trace(module.guide).get_trace(**arguments)
    trace = poutine.trace(poutine.replay(module.model, guided)).get_trace(**arguments)
    trace.compute_log_prob()
    z, condition = guided.nodes["X.z"]["value"], arguments["condition"]
    table = model.screen.conditions
    control = (table.perturbation == "control") & (table.media == "baseline")
    assert control.sum() == 1
    rest = z[condition == int(np.flatnonzero(control)[0])]
    expected = -weight * sum(
        (condition == c).sum() * energy_distance(rest, z[condition == c])
        for c in np.flatnonzero(~control)
    )
    found = trace.nodes["distribution"]["log_prob_sum"]
    assert float(found) == pytest.approx(float(expected), rel=1e-4)
    module.zero_grad()
    found.backward()
    assert all(
        p.grad.abs().max() > 0 for p in module.guide.encoder.parameters() if p.grad is not None
    )
    assert any(p.grad is not None for p in module.guide.encoder.parameters())
    assert negative_elbo(model, everyone).isfinite()


def test_minibatches_of_a_screen_give_its_factor_on_average():
    """Also where a random part of the screen is trained on: then that part's share of it."""
    condition = torch.cat([torch.zeros(4), torch.ones(3), torch.full((2,), 2.0)]).long()
    reference, sizes = torch.tensor([True, False, False]), torch.tensor([4, 3, 2])
    z, objective = cells(9), DistributionObjective(weight=0.7)

    def value(chosen, n_trained=9):
        chosen = torch.tensor(chosen)
        return objective.resting_factor(z[chosen], condition[chosen], reference, sizes, n_trained)

    mean = torch.stack([value(c) for c in itertools.combinations(range(9), 5)]).mean()
    assert mean == pytest.approx(float(value(range(9))), rel=1e-9)
    assert value(range(9), n_trained=6) == pytest.approx(float(value(range(9))) * 6 / 9)


def test_resting_populations_come_closer_and_the_objective_is_saved(make_screen, build, tmp_path):
    adata = make_screen(n_cells_per_condition=40, n_controls=80, n_batches=1, effect_rms=0.8)

    def apart(model):
        z, condition = torch.tensor(model.get_latent_representation()), model._cells.condition
        control = model.screen.conditions.perturbation == "control"
        rest = z[torch.tensor(np.asarray(control)[condition])]
        others = (z[torch.tensor(condition == c)] for c in np.flatnonzero(~control))
        return sum(float(energy_distance(rest, z)) for z in others)

    found = {}
    for weight in (0.0, 20.0):
        objective = DistributionObjective(weight=weight, options={})
        model = build(adata, objective=objective)
        model.train(max_epochs=15, progress_bar=False)
        found[weight] = apart(model)
        # the sampler of gene-level effects knows nothing of an objective
        assert (model.module.gene_level is None) == (weight > 0)
    assert found[20.0] < found[0.0]
    model.save(tmp_path / "model")
    again = PyroCell.load(tmp_path / "model", adata)
    assert again.module.model.objective == objective
    assert apart(again) == pytest.approx(found[20.0])
