"""Departures from additivity: what they are relative to, and when they set in."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from layouts import ARMS as CELLS

from pyrocell import simulate


def singles_of(adata):
    """Perturbations by themselves, and control."""
    return {name for name in adata.obs["perturbation"] if "+" not in name}


@pytest.fixture(scope="module")
def model(make_screen, build):
    """Untrained, with combinations, a medium and two times."""
    adata = make_screen(media=1, times=(1.0, 2.0), combinations=True)
    return build(adata, interactions=True).module.model


def test_their_prior_is_as_wide_as_the_drivers_respond(model):
    """Twice the responses double the relative part; without a response the constant is left."""
    values = model.globals()
    constant, relative = model.interactions.log_scale.exp()

    def scale(factor):
        drivers = ("P.effect", "M.effect", "P.residual", "M.residual")
        changed = values | {name: factor * values[name] for name in drivers}
        return model.interaction_scale(changed, *model.arms)

    torch.testing.assert_close(scale(0.0), constant.expand(model.n_interactions, model.n_genes))
    relative_part = scale(1.0).square() - constant.square()
    torch.testing.assert_close(scale(2.0).square() - constant.square(), 4 * relative_part)
    assert relative > 0 and relative_part.min() >= 0 and relative_part.max() > 0


def test_they_set_in_with_the_response(model):
    """Nothing at the start, and less at the first measured time than at the second."""
    values, rows = model.globals(), model.conditions
    grown = model.interaction_grown(values, rows)
    assert torch.equal(grown > 0, rows.interaction >= 0)
    start = rows._replace(duration=torch.zeros_like(rows.duration))
    assert (model.interaction_grown(values, start) == 0).all()
    for arm in range(model.n_interactions):
        mine = rows.interaction == arm
        order = rows.duration[mine].argsort()
        assert (grown[mine][order].diff() > 0).all()
    reference = rows._replace(duration=torch.full_like(rows.duration, model.reference_time))
    at_reference = model.interaction_grown(values, reference)
    torch.testing.assert_close(at_reference, (rows.interaction >= 0).float())


def test_with_a_medium_they_grow_from_the_time_it_was_met(build):
    obs = CELLS.rename(columns={"perturbation_time": "perturbed_at", "media_time": "exposed_at"})
    adata = simulate.screen(
        n_perturbations=1, n_genes=8, n_controls=len(obs) - 1, n_cells_per_condition=1, seed=0
    )
    adata.obs = obs.set_index(adata.obs_names)
    events = {"perturbation_time_key": "perturbed_at", "media_time_key": "exposed_at"}
    model = build(adata, events | {"time_key": "time"}, interactions=True).module.model
    rows, values = model.conditions, model.globals()
    several = rows.interaction >= 0
    assert set(np.unique(rows.exposed_at[several])) == {0.0, 1.0}
    shifted = rows._replace(duration=rows.duration - rows.exposed_at)
    none = shifted._replace(exposed_at=torch.zeros_like(rows.exposed_at))
    torch.testing.assert_close(
        model.interaction_grown(values, rows), model.interaction_grown(values, none)
    )


def test_arms_measured_at_the_start_alone_train_to_finite_values(build):
    """Their interaction has not begun, so nothing says what it will be."""
    obs = CELLS.drop(columns=["perturbation_time", "media_time"])
    late = (obs["perturbation"] == "A") & (obs["media"] == "IFNG") & (obs["time"] > 3)
    obs = obs[~late].reset_index(drop=True)
    obs["time"] = obs["time"].map({3.0: 0.0, 6.0: 2.0})
    adata = simulate.screen(
        n_perturbations=1, n_genes=8, n_controls=len(obs) - 1, n_cells_per_condition=1, seed=0
    )
    adata.obs = obs.set_index(adata.obs_names)
    model = build(adata, {"time_key": "time"}, interactions=True)
    model.train(max_epochs=2, progress_bar=False)
    values, inner = model.posterior.mean(), model.module.model
    assert (inner.interaction_grown(values, inner.conditions) == 0).all()
    assert torch.isfinite(values["P.interaction"]).all()


@pytest.mark.parametrize("time", [None, 1.0, 2.0])
def test_one_that_was_not_measured_is_drawn_from_that_prior(make_screen, build, time):
    """Its width in a prediction is the prior's for its drivers, as far as it has grown by then."""
    times = {} if time is None else {"times": (1.0, 2.0)}
    adata = make_screen(combinations=True, **times)
    _, second, third = sorted(name for name in singles_of(adata) if name != "control")
    model = build(adata, interactions=True)
    fit, inner = model.fitted, model.module.model
    row = {"perturbation": f"{second}+{third}"} | ({} if time is None else {"time": time})
    rows, unseen = fit.conditions(pd.DataFrame([row]))
    assert unseen.tolist() == [[1, 0]]
    values = {k: v.detach() for k, v in inner.globals().items()}
    n = 1000
    drawn = torch.stack([fit.shift(values, rows, unseen, s)[0] for s in range(n)])
    several = rows._replace(interaction=torch.zeros_like(rows.interaction))
    grown = inner.interaction_grown(values, several)
    width = grown * inner.interaction_scale(values, rows.genotype, rows.exposure)[0]
    assert (float(grown) == 1) == (time is None)
    error = (drawn.std(0) / width - 1).abs()
    assert error.max() < 5 / (2 * n) ** 0.5  # five standard errors of a standard deviation
