"""Draws are joint, repeatable, and the same whatever else is asked."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from pyrocell.errors import ScreenError
from pyrocell.posterior.batch_effects import eta_draws
from pyrocell.posterior.draws import Posterior, summarise
from pyrocell.posterior.effects import effect_draws

N = 12


def test_a_draw_is_the_same_whatever_else_is_asked(fitted):
    alone = fitted.posterior_samples(N, ["P.effect"])["P.effect"]
    torch.rand(7)
    fitted.get_latent_representation()
    fitted.posterior_predictive_check(n_samples=3)
    with_others = fitted.posterior_samples(N)
    np.testing.assert_array_equal(alone, with_others["P.effect"])
    np.testing.assert_array_equal(alone[:5], fitted.posterior_samples(5)["P.effect"])
    drawn = fitted.posterior_samples(N, ["V.baseline"])["V.baseline"]
    assert len(np.unique(drawn[:, 0])) == N


def test_answers_leave_torch_s_random_state_alone(fitted):
    state = torch.random.get_rng_state()
    fitted.posterior_samples(2)
    fitted.perturbation_effects(n_samples=2)
    fitted.counterfactual(n_samples=2)
    fitted.posterior_predictive_check(n_samples=2)
    fitted.get_marginal_ll(n_mc_samples=2)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_another_seed_of_the_posterior_gives_other_draws(fitted):
    module = fitted.module
    first, again, other = (
        Posterior(module.model, module.guide, seed).samples(2, ["V.baseline"])["V.baseline"]
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).all()


def test_effects_of_one_query_are_joint_with_those_of_another(fitted):
    """The same draw has the same globals, so differences within a draw mean something."""
    fit, names = fitted.fitted, list(fitted.screen.perturbations)
    together = effect_draws(fit, names, "baseline", 2.0, N)
    for k, name in enumerate(names):
        apart = effect_draws(fit, [name], "baseline", 2.0, N)
        np.testing.assert_allclose(together[:, [k]], apart, atol=1e-5)


def test_effects_are_computed_from_the_draws_of_the_sites(fitted):
    fit, model = fitted.fitted, fitted.module.model
    name = fitted.screen.perturbations[0]
    effect = effect_draws(fit, [name], "baseline", 2.0, N)[:, 0]
    screen = fitted.screen
    rows = [screen.condition_of(label, "baseline", 2.0) for label in (screen.control, name)]
    slope = fitted.module.gene_level.array("slope")  # of log mean counts on logits, with dropout
    for s, values in enumerate(fitted.posterior.draws(N)):
        shift = model.shift(values, model.conditions)[rows].detach().numpy()
        np.testing.assert_allclose(effect[s], slope * (shift[1] - shift[0]), atol=1e-3)


def test_draws_of_predictions_are_joint_with_those_of_effects(fitted):
    """The log ratio of two predictions is the effect draw by draw, but for what all genes share."""
    name = fitted.screen.perturbations[0]
    frame = pd.DataFrame({"perturbation": ["control", name], "media": "baseline", "time": 2.0})
    draws = fitted.predict(frame, n_samples=60, return_draws=True)
    change = np.log(draws[:, 1] / draws[:, 0]).to_numpy()
    effect = effect_draws(fitted.fitted, [name], "baseline", 2.0, 60)[:, 0]
    change, effect = (x - x.mean(1, keepdims=True) for x in (change, effect))
    correlation = [np.corrcoef(change[:, g], effect[:, g])[0, 1] for g in range(effect.shape[1])]
    assert min(correlation) > 0.9


def test_eta_of_every_draw_sums_to_zero_over_batches(fitted, make_screen, build):
    several = build(make_screen(n_batches=4, n_controls=40))
    for model in (fitted, several):
        samples = Posterior(model.module.model, model.module.guide).samples(5)["eta"]
        np.testing.assert_allclose(samples.sum(1), 0.0, atol=1e-6)
    table = fitted.batch_effects(n_samples=20).pivot(index="batch", columns="gene", values="mean")
    np.testing.assert_allclose(table.sum(), 0.0, atol=1e-6)


def test_batch_effects_are_in_the_softmax_gauge(fitted):
    baseline = fitted.posterior_samples(5)["V.baseline"]
    weight = np.exp(baseline) / np.exp(baseline).sum(1, keepdims=True)
    for s, eta in enumerate(eta_draws(fitted.fitted, 5)):
        np.testing.assert_allclose(eta @ weight[s], 0.0, atol=1e-5)


def test_samples_of_sites_not_there_name_them(fitted):
    with pytest.raises(KeyError, match="P.nothing"):
        fitted.posterior_samples(2, ["P.nothing"])


def test_summaries_are_those_of_the_draws():
    draws = np.random.default_rng(0).normal([0.0, 2.0], 1.0, (20_000, 2))
    summary = summarise(draws, credible_level=0.8)
    np.testing.assert_allclose(summary["mean"], [0, 2], atol=0.03)
    np.testing.assert_allclose(summary["sd"], 1.0, atol=0.03)
    np.testing.assert_allclose(summary["lower"], [-1.2816, 0.7184], atol=0.04)
    np.testing.assert_allclose(summary["upper"], [1.2816, 3.2816], atol=0.04)
    np.testing.assert_allclose(summary["prob_direction"], [0.5, 0.9772], atol=0.02)
    assert (summarise(draws[:1])["sd"] == 0).all()


def test_what_cannot_be_summarised_is_refused_by_name(fitted):
    with pytest.raises(ScreenError, match="0 posterior draws"):
        fitted.posterior_samples(0)
    for level in (0.0, 1.0, 95):
        with pytest.raises(ScreenError, match=f"credible_level={level}"):
            fitted.batch_effects(n_samples=3, credible_level=level)


@pytest.mark.parametrize("n", [30, 50, 200])
def test_intervals_of_few_draws_hold_their_share_of_new_ones(n):
    rng = np.random.default_rng(n)
    found = summarise(rng.random((n, 20_000)), 0.9)  # exact where draws are uniform
    new = rng.random(20_000)
    held = ((found["lower"] <= new) & (new <= found["upper"])).mean()
    assert held == pytest.approx(0.9, abs=0.007)  # three standard errors
