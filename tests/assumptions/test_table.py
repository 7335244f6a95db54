"""Posteriors of assumptions: where nothing can be told, nothing moves, and something does."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
import torch

import pyrocell
from pyrocell import Assume
from pyrocell.assumptions.constraints import imposed_contrasts
from pyrocell.assumptions.table import assumption_table
from pyrocell.contrasts.levels import condition_levels
from pyrocell.errors import ScreenError, ScreenWarning, UnknownLabelError
from pyrocell.screen.screen import Screen

OPTIONS = {
    "region": 0.05,
    "prior": 0.5,
    "concentration": 20.0,
    "min_count": 5.0,
    "min_cells": 10.0,
    "credible_level": 0.9,
}


def screen_of(adata) -> Screen:
    obs = adata.obs
    labels = {name: obs[name] for name in ("media", "time") if name in obs}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScreenWarning)
        return Screen.from_labels(
            list(adata.var_names), obs["perturbation"], batch=obs["batch"], **labels
        )


def table_of(adata, screen=None, assume=(), **changes) -> pd.DataFrame:
    """Posteriors with the truth of cell state and of batch noise in place of a fitted model's."""
    screen = screen_of(adata) if screen is None else screen
    counts = adata.X.tocsr()
    size = np.asarray(counts.sum(1)).ravel() / counts.sum() * len(adata)
    levels = condition_levels(
        counts, size, screen.cell_condition, screen.cell_batch, np.full(adata.n_vars, 0.2)
    )
    truth = adata.uns["truth"]
    share = np.asarray(truth["expression"], dtype=float).ravel()
    loading = np.asarray(truth["resting_loading"], dtype=float)
    loading = loading - loading @ (share / share.sum())[:, None]  # counts show shares only
    return assumption_table(
        screen, [levels], loading, pyrocell.Priors(), assume=assume, **OPTIONS | changes
    )


def simulated(seed: int = 1, **changes):
    settings = {"n_perturbations": 16, "n_genes": 100, "n_cells_per_condition": 80, "n_batches": 3}
    return pyrocell.simulate.screen(seed=seed, **settings | changes)


def only(table: pd.DataFrame, assumption: str) -> pd.DataFrame:
    return table[table.assumption == assumption].set_index("perturbation")


def silent(adata) -> pd.Series:
    truth = adata.uns["truth"]
    return pd.Series(np.asarray(truth["silent"]).ravel() > 0, truth["effect"].index)


def test_active_and_silent_perturbations_are_told_apart():
    adata = simulated(effect_rms=0.2)
    table, truth = only(table_of(adata), "silent_at_baseline"), silent(adata)
    assert table.posterior[truth].min() > table.posterior[~truth].max()
    assert table.posterior[truth].mean() > 0.7 > 0.05 > table.posterior[~truth].max()
    assert table["size"][~truth].between(0.15, 0.26).all()
    assert (table.lower <= table["size"]).all() and (table["size"] <= table.upper).all()


@pytest.mark.parametrize("cells", [15, 60, 400])
def test_nothing_is_claimed_where_nothing_moves_however_many_cells(cells):
    tables = [
        only(
            table_of(simulated(seed, n_cells_per_condition=cells, silent_fraction=1.0)),
            "silent_at_baseline",
        )
        for seed in (1, 2, 3)
    ]
    posterior = pd.concat(tables).posterior
    assert (posterior < 0.1).mean() <= 0.05
    assert posterior.mean() > 0.5


def test_effects_below_what_the_cells_can_show_leave_the_prior():
    weak = {"n_cells_per_condition": 12, "effect_rms": 0.06}
    tables = [only(table_of(simulated(s, **weak)), "silent_at_baseline") for s in range(4)]
    assert pd.concat(tables).posterior.mean() == pytest.approx(0.5, abs=0.1)


def test_a_handful_of_cells_says_nothing():
    table = only(table_of(simulated(n_cells_per_condition=4, effect_rms=0.3)), "silent_at_baseline")
    assert (table.log_bayes_factor == 0).all() and (table.n_genes == 0).all()
    assert table.posterior.to_numpy() == pytest.approx(0.5, abs=1e-3) and table["size"].isna().all()


def test_what_the_layout_cannot_test_keeps_its_prior_to_the_last_digit():
    adata = simulated(times=[1.0, 2.0, 4.0], n_perturbations=4, n_cells_per_condition=30)
    adata.obs["batch"] = adata.obs["time"].astype(str)  # each time is a batch
    given = Assume.steady("target0", probability=0.123)
    table = table_of(adata, prior=0.37, assume=[given])
    rows = table[~table.testable]
    assert set(rows.assumption) == {"necessary", "steady"}
    pd.testing.assert_series_equal(rows.posterior, rows.prior, check_names=False, check_exact=True)
    assert only(rows, "steady").prior["target0"] == 0.123
    assert only(rows, "necessary").prior["control"] == 0.37
    assert (rows.log_bayes_factor == 0).all() and rows.p_rope.isna().all()
    assert only(table, "steady_vs_control").testable.all()


def test_blocked_responses_are_found_and_steady_and_moving_conditions_told_apart():
    adata = simulated(
        media=1, media_rms=0.5, times=[0.5, 1.0, 8.0, 16.0], rate=1.0, effect_rms=0.3,
        blocked_fraction=0.25, n_perturbations=8, n_batches=2,
    )  # fmt: skip
    adata = adata[adata.obs["time"] >= 1.0].copy()
    table = table_of(adata)
    gains = only(table, "no_response")
    blocked = pd.Series(np.asarray(adata.uns["truth"]["blocked"]).ravel() > 0, silent(adata).index)
    assert gains.posterior[blocked].min() > 0.9 > 0.1 > gains.posterior[~blocked].max()
    assert ((gains["size"] - ~blocked).abs() < 0.3).all()
    assert only(table, "steady").posterior.median() > 0.5  # nothing moves from 8 to 16
    early = adata[adata.obs["time"] < 9].copy()
    moving = only(table_of(early), "steady")
    moving = moving[moving.media != "baseline"]
    assert moving.posterior.drop(blocked.index[blocked]).max() < 0.05  # from 1 to 8 all do


def test_what_is_held_of_a_condition_moves_its_odds_and_no_others():
    adata = simulated(n_cells_per_condition=25, effect_rms=0.1)
    free = only(table_of(adata), "silent_at_baseline")
    name = free.posterior.sub(0.5).abs().idxmin()
    held = only(
        table_of(adata, assume=[Assume.silent_at_baseline(name, probability=0.9)]),
        "silent_at_baseline",
    )
    odds = np.log(held.posterior / (1 - held.posterior))[name]
    assert odds == pytest.approx(np.log(9) + held.log_bayes_factor[name], abs=1e-9)
    assert (held.posterior - free.posterior).drop(name).abs().max() < 0.05
    for certain in (0.0, 1.0):
        sure = table_of(adata, assume=[Assume.silent_at_baseline(name, certain)])
        assert only(sure, "silent_at_baseline").posterior[name] == certain


def test_rows_are_those_of_testability():
    adata = simulated(media=1, times=[1.0, 2.0], n_perturbations=3, n_cells_per_condition=12)
    table, layout = table_of(adata), pyrocell.testability.testability(screen_of(adata))
    pd.testing.assert_frame_equal(table[list(layout.columns)], layout)
    assert table.prior[table.assumption == "no_response"].between(0.2, 0.3).all()


def test_the_own_gene_is_left_out():
    adata = simulated(on_target=-3.0, silent_fraction=1.0)
    assert only(table_of(adata), "silent_at_baseline").posterior.min() > 0.3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Assume("stedy"), 'no assumption "stedy"; did you mean "steady"'),
        (lambda: Assume.steady(probability=1.2), "must lie between 0 and 1"),
    ],
)
def test_what_is_no_assumption_is_refused(make, message):
    with pytest.raises(ScreenError, match=message):
        make()


def test_assumptions_about_conditions_that_are_not_there_are_refused():
    adata = simulated(n_perturbations=3, n_cells_per_condition=6)
    with pytest.raises(UnknownLabelError, match='no perturbation "target9"'):
        table_of(adata, assume=[Assume.silent_at_baseline("target9")])
    with pytest.raises(UnknownLabelError, match="no_response speaks of no"):
        table_of(adata, assume=[Assume.no_response("target0")])
    with pytest.raises(ScreenError, match="region=2"):
        table_of(adata, region=2)


# ---------------------------------------------------------------- imposed on the model


def test_imposed_assumptions_are_contrasts_of_the_models_conditions():
    adata = simulated(media=1, times=[1.0, 3.0, 7.0], n_perturbations=2, n_cells_per_condition=6)
    screen = screen_of(adata)
    conditions, contrast, genes = imposed_contrasts(screen, [Assume.steady("target0", "baseline")])
    assert conditions.duration.tolist() == [11.0, 7.0, 3.0]  # as far ahead as the last step
    assert contrast.tolist() == [[1.0, -1.0, 0.0], [0.0, 1.0, -1.0]]
    assert conditions.genotype[:, 0].tolist() == [1.0] * 3 and not conditions.exposure.any()
    assert genes.all()
    conditions, contrast, _ = imposed_contrasts(screen, [Assume.steady_vs_control("target1")])
    assert contrast.sum(1).abs().max() == 0 and len(contrast) == 4
    assert imposed_contrasts(screen, [Assume.steady(probability=0.9)]) is None
    once = screen_of(simulated(n_perturbations=2, n_cells_per_condition=6))
    with pytest.raises(UnknownLabelError):
        imposed_contrasts(once, [Assume.no_response()])


def test_a_model_trained_under_an_assumption_obeys_it_and_says_so(tmp_path):
    adata = simulated(
        n_perturbations=4, n_genes=40, n_cells_per_condition=40, effect_rms=0.5,
        silent_fraction=0.0, n_batches=2,
    )  # fmt: skip
    pyrocell.PyroCell.setup_anndata(adata)
    model = pyrocell.PyroCell(adata, assume=[Assume.silent_at_baseline("target0")])
    model.train(max_epochs=30, progress_bar=False)
    effects = model.perturbation_effects(n_samples=20)
    rms = effects["mean"].pow(2).groupby(effects["perturbation"]).mean().pow(0.5)
    assert rms["target0"] < 0.05 < 0.2 < rms.drop("target0").min()
    table = only(model.assumptions(n_samples=2), "silent_at_baseline")
    assert table.posterior["target0"] == table.prior["target0"] == 1.0
    model.save(tmp_path / "model")
    again = pyrocell.PyroCell.load(tmp_path / "model", adata)
    pd.testing.assert_frame_equal(again.assumptions(n_samples=2), model.assumptions(n_samples=2))


def test_an_imposed_assumption_is_an_observation_in_the_model():
    adata = simulated(n_perturbations=3, n_genes=30, n_cells_per_condition=6, n_batches=1)
    pyrocell.PyroCell.setup_anndata(adata, batch_key=None)
    module = pyrocell.PyroCell(adata, assume=[Assume.silent_at_baseline("target1")]).module.model
    with torch.no_grad():
        values = module.globals()
        change = module.imposed_change(values)
        values["P.effect"][1] = 0.0
        values["P.residual"][1] = 0.0
        assert change.abs().max() > 0 and module.imposed_change(values).abs().max() == 0
