"""Screens of several laboratories: registration, prediction into unseen ones, files."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
import torch

from pyrocell import PyroCell, simulate
from pyrocell.contrasts.levels import condition_levels
from pyrocell.errors import ScreenError, ScreenWarning, UnknownLabelError
from pyrocell.noise.laboratories import new_batch_moments
from pyrocell.posterior.new_batches import RequestedBatchNoise, content_of, shared_axes
from pyrocell.screen.requests import encode_noise
from pyrocell.screen.screen import Screen
from pyrocell.transfer import leave_one_laboratory_out

GENES = [f"gene{g}" for g in range(4)]
CONTROLS = pd.DataFrame({"perturbation": "control", "batch": [None, "new"]})


def labels(batch: str, laboratory: str) -> dict:
    return {"perturbation": ["control", "A"] * 2, "batch": list(batch), "laboratory": [*laboratory]}


def screen_of(batch: str, laboratory: str, **more) -> Screen:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScreenWarning)
        return Screen.from_labels(GENES, **labels(batch, laboratory), **more)


@pytest.fixture(scope="module")
def nested(make_screen, build) -> PyroCell:
    """Six batches in laboratories of three, two and one; content differs between batches."""
    adata = make_screen(n_batches=6, laboratories=(3, 2, 1), n_controls=40, balanced=False)
    model = build(adata, {"laboratory_key": "laboratory"}, content_dependent_noise=True)
    model.train(max_epochs=4, progress_bar=False)
    return model


def test_a_batch_in_two_laboratories_is_named_with_what_to_do():
    with pytest.raises(
        ScreenError, match='batch "x" is in 2 laboratories of laboratory .l, m.*"_"'
    ):
        screen_of("xxyy", "lmll")


def test_laboratories_without_batches_are_refused():
    data = labels("xxyy", "llmm")
    with pytest.raises(ScreenError, match="batch_key="):
        Screen.from_labels(GENES, data["perturbation"], laboratory=data["laboratory"])


def test_laboratories_of_one_batch_each_are_warned_of():
    with pytest.warns(ScreenWarning, match="cannot be told apart"):
        Screen.from_labels(GENES, **labels("xxyy", "llmm"))


def test_new_cells_keep_the_laboratories_of_the_screen():
    screen = screen_of("xxyy", "llmm")
    assert screen.laboratories == ("l", "m") and screen.batch_laboratory.tolist() == [0, 1]
    again = Screen.from_labels(GENES, ["A"], batch=["y"], like=screen)
    assert again.laboratories == ("l", "m")
    with pytest.raises(UnknownLabelError, match='batch "y" in laboratory "l".*has it in "m"'):
        Screen.from_labels(GENES, ["A"], batch=["y"], laboratory=["l"], like=screen)


def test_a_screen_without_laboratories_is_saved_as_before():
    data = labels("xxyy", "llmm")
    plain = Screen.from_labels(GENES, data["perturbation"], batch=data["batch"])
    saved = plain.to_dict()
    assert "laboratories" not in saved
    assert Screen.from_dict(saved).batch_laboratory.tolist() == [0, 0]
    nested = screen_of("xxyy", "llmm")
    again = Screen.from_dict(nested.to_dict())
    assert again.laboratories == nested.laboratories
    np.testing.assert_array_equal(again.batch_laboratory, nested.batch_laboratory)


def test_both_levels_of_eta_sum_to_zero(nested):
    draws = nested.posterior_samples(3)
    eta, offset = draws["eta"], draws["eta.laboratory"]
    home = nested.screen.batch_laboratory
    assert offset.shape == (3, 3, 12) and draws["eta.laboratory_scale"].shape == (3, 12)
    np.testing.assert_allclose(eta.sum(1), 0, atol=1e-5)
    np.testing.assert_allclose(offset[:, home].sum(1), 0, atol=1e-5)
    content = nested.module.model.noise.content.numpy() @ draws["eta.content"]
    within = eta - content - offset[:, home]
    for i in range(3):
        np.testing.assert_allclose(within[:, home == i].sum(1), 0, atol=1e-5)


def test_batch_effects_of_laboratories_are_averages_over_their_batches(nested):
    by_batch = nested.batch_effects(20).pivot(index="batch", columns="gene", values="mean")
    by_laboratory = nested.batch_effects(20, by="laboratory")
    table = by_laboratory.pivot(index="laboratory", columns="gene", values="mean")
    home = np.array(nested.screen.laboratories)[nested.screen.batch_laboratory]
    expected = by_batch.loc[list(nested.screen.batches)].groupby(home).mean()
    np.testing.assert_allclose(table, expected, atol=1e-5)
    with pytest.raises(ScreenError, match="lab"):
        nested.batch_effects(2, by="lab")


def test_a_new_batch_widens_and_a_new_laboratory_widens_more(nested):
    home = nested.screen.laboratories[0]
    asked = pd.DataFrame(
        {"perturbation": "control", "laboratory": [None, home, home, "elsewhere"]}
        | {"batch": [None, None, "new", None]}
    )
    out = nested.predict(asked, n_samples=200)
    width = np.median(np.log(out.layers["upper"] / out.layers["lower"]), 1)
    assert width[0] < width[1] < width[2] < width[3]


def test_conditions_of_one_new_batch_share_its_noise(nested):
    gene = nested.screen.perturbations[0]
    asked = pd.DataFrame(
        {"perturbation": ["control", gene] * 2, "batch": ["new", "new", None, None]}
    )
    draws = nested.predict(asked, n_samples=50, return_draws=True).to_numpy()
    log = np.log(draws)
    change = log[:, 1] - log[:, 0]  # η cancels but for the softmax' total
    spread = change.std(0)
    np.testing.assert_allclose(spread, (log[:, 3] - log[:, 2]).std(0), rtol=0.3)
    assert (log[:, 0].std(0) > log[:, 2].std(0)).all()


def test_draws_of_new_batches_have_the_width_and_the_share_that_were_derived(nested):
    """Over seeds at one draw of the globals: two batches of one new laboratory, one of another."""
    model, screen = nested.module.model, nested.screen
    asked = pd.DataFrame(
        {"perturbation": "control", "laboratory": ["u", "u", "v"], "batch": [*"abc"]}
    )
    noise = RequestedBatchNoise(
        model, encode_noise(screen.vocabulary, asked), content_of(screen, None)
    )
    values = nested.posterior.mean()
    n = 400
    draws = torch.stack([noise.draw(values, seed) for seed in range(n)]).detach()
    common, own = values["eta.laboratory_scale"], values["eta.scale"]
    _, covariance = new_batch_moments(
        model.noise.nesting, values["eta.free"], own, common, torch.tensor([3, 3, 4])
    )
    seen = torch.einsum("sig,sjg->gij", draws - draws.mean(0), draws - draws.mean(0)) / n
    tolerance = 5 * covariance.diagonal(dim1=1, dim2=2).mean() * (2 / n) ** 0.5
    torch.testing.assert_close(seen, covariance.detach(), rtol=0, atol=float(tolerance))


def test_genes_of_a_new_batch_vary_together_as_they_did_between_measured_ones(nested):
    """Each as far as on its own; the first two together where contrasts say so."""
    model, screen = nested.module.model, nested.screen
    values = nested.posterior.mean()
    twins = torch.randn(5, 1, generator=torch.Generator().manual_seed(0)) * torch.ones(5, 12)
    twins[:, 6:] = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))
    axes = shared_axes(model, values | {"eta.free": twins * model.noise.scale(values)})
    total = axes.square().sum(0)
    assert (total <= 1).all() and (axes[:, 0] @ axes[:, 1]) > 0.3 > (axes[:, 7] @ axes[:, 8]).abs()
    asked = encode_noise(
        screen.vocabulary, pd.DataFrame({"perturbation": "control", "batch": ["new"]})
    )
    draws = [
        torch.stack([RequestedBatchNoise(model, asked, content_of(screen, None), s).draw(values, i)
                     for i in range(400)])[:, 0].detach()
        for s in (None, axes)
    ]  # fmt: skip
    torch.testing.assert_close(draws[0].std(0), draws[1].std(0), rtol=0.25, atol=0)
    together = [np.corrcoef(x[:, 0], x[:, 1])[0, 1] for x in draws]
    assert abs(together[0]) < 0.25 < together[1]


def test_a_new_batch_is_predicted_where_noise_does_not_follow_content(make_screen, build):
    model = build(make_screen(n_batches=5, n_controls=40), {})
    model.train(max_epochs=2, progress_bar=False)
    out = model.predict(CONTROLS, n_samples=50)
    known, new = np.log(out.layers["upper"] / out.layers["lower"])
    assert np.median(new) > np.median(known)


def test_what_a_new_batch_contains_moves_it(nested):
    asked = CONTROLS.iloc[1:]
    few, many = (
        nested.predict(asked, n_samples=5, batch_content={"control": share}).X for share in (0, 1)
    )
    assert not np.allclose(few, many)
    with pytest.raises(UnknownLabelError, match="controls"):
        nested.predict(asked, n_samples=2, batch_content={"controls": 1.0})
    with pytest.raises(ScreenError, match="from 0 to 1"):
        nested.predict(asked, n_samples=2, batch_content={"control": 20})


def test_requests_that_do_not_fit_name_the_label(nested, fitted):
    first, *_ = nested.screen.batches
    home = nested.screen.laboratories[nested.screen.batch_laboratory[0]]
    other = nested.screen.laboratories[nested.screen.batch_laboratory[-1]]
    assert home != other
    asked = pd.DataFrame({"perturbation": ["control"], "batch": [first], "laboratory": [other]})
    with pytest.raises(UnknownLabelError, match=f'is of laboratory "{home}", not "{other}"'):
        nested.predict(asked)
    with pytest.raises(UnknownLabelError, match='"batch9" is not in the screen.*"new"'):
        nested.predict(asked.assign(batch="batch9", laboratory=home))
    with pytest.raises(ScreenError, match="content_dependent_noise=True"):
        fitted.predict(CONTROLS.assign(time=1.0), batch_content={"control": 0.5})
    with pytest.raises(UnknownLabelError, match="laboratory_key="):
        fitted.predict(asked.assign(batch=None, time=1.0))


def test_laboratories_are_saved_and_loaded(nested, tmp_path):
    nested.save(tmp_path / "model")
    again = PyroCell.load(tmp_path / "model", nested.adata.copy())
    asked = CONTROLS.assign(laboratory="elsewhere")
    one, other = (model.predict(asked, n_samples=3).X for model in (nested, again))
    np.testing.assert_allclose(one, other, rtol=1e-5)
    assert again.screen.laboratories == nested.screen.laboratories


def test_evidence_of_assumptions_knows_both_levels():
    """Batches of one laboratory vary together, so their common offset is not taken for sampling."""
    adata = simulate.screen(n_perturbations=2, n_genes=8, n_batches=4, n_cells_per_condition=80)
    condition = (adata.obs["perturbation"] != "control").to_numpy().astype(int)
    batch, size = adata.obs["batch"].cat.codes.to_numpy(), np.ones(len(adata))
    sd = np.full(8, 0.1)
    args = (adata.X, size, condition, batch, sd)
    one, none = condition_levels(*args), condition_levels(*args, np.array([0, 0, 1, 1]), 0 * sd)
    np.testing.assert_allclose(one.eta_covariance, none.eta_covariance)
    two = condition_levels(*args, np.array([0, 0, 1, 1]), 3 * sd)
    weights = np.array([1, 1, -1, -1])  # between laboratories
    spread = [np.einsum("b,gbd,d->g", weights, x.eta_covariance, weights) for x in (one, two)]
    assert (spread[1] > spread[0]).all()


def test_each_laboratory_is_predicted_from_the_others(make_screen, build):
    adata = make_screen(n_batches=4, laboratories=(2, 1, 1), laboratory_sd=0.5, n_controls=80)
    model = build(adata, {"laboratory_key": "laboratory"})
    with warnings.catch_warnings():
        warnings.simplefilter("error", ScreenWarning)
        table = leave_one_laboratory_out(model, n_samples=40, min_cells=10, max_epochs=4)
    assert table["laboratory"].tolist() == list(model.screen.laboratories)
    assert table[["coverage", "coverage_average"]].to_numpy().min() >= 0
    assert (table["coverage"] >= table["coverage_average"]).all()
    assert np.isfinite(table[["rmse", "rmse_average"]]).all(axis=None)


def test_two_laboratories_are_too_few_to_leave_one_out(make_screen, build):
    adata = make_screen(n_batches=4, laboratories=(2, 2))
    model = build(adata, {"laboratory_key": "laboratory"})
    with pytest.raises(ScreenError, match="has 2 laboratories"):
        leave_one_laboratory_out(model)


def test_one_batch_tells_nothing_of_a_new_one(make_screen, build):
    with pytest.warns(ScreenWarning, match="one batch"):
        model = build(make_screen(n_batches=1))
    model.is_trained_ = True
    with pytest.raises(UnknownLabelError, match="one batch"):
        model.predict(CONTROLS, n_samples=2)
