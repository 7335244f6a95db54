"""Predictions and counterfactuals: conditions seen and unseen, protocols, batches, depth."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from pyrocell import Media, Perturb, Protocol, Wait
from pyrocell.errors import ProtocolError, ScreenError, UnknownLabelError
from pyrocell.posterior.cell_state import resting_posterior
from pyrocell.posterior.effects import effect_draws
from pyrocell.posterior.prediction import predicted_draws

pytestmark = pytest.mark.filterwarnings("ignore::pyrocell.errors.ScreenWarning")


def test_predict_names_what_it_does_not_know(fitted):
    for frame, name in [
        ({"perturbation": ["gene99"]}, "gene99"),
        ({"perturbation": ["control"], "media": ["medium9"]}, "medium9"),
        ({"perturbation": ["control"], "batch": ["batch9"]}, "batch9"),
        ({"perturbation": ["control"], "medium": ["medium0"]}, "medium"),
        ({"media": ["medium0"]}, "perturbation"),
    ]:
        frame = pd.DataFrame({"time": [1.0]} | frame)
        with pytest.raises(UnknownLabelError, match=name):
            fitted.predict(frame, n_samples=2)
    with pytest.raises(UnknownLabelError, match="gene99"):
        fitted.predict(Protocol([Perturb("gene99"), Wait(1.0)]), n_samples=2)


def test_predict_refuses_what_cannot_be_predicted_by_name(fitted):
    frame = pd.DataFrame({"perturbation": ["control"], "time": [1.0]})
    for number in (0, np.nan, "many"):
        with pytest.raises(ScreenError, match="n_cells"):
            fitted.predict(frame.assign(n_cells=number), n_samples=2)
    with pytest.raises(ScreenError, match="size_factor=0"):
        fitted.predict(frame, size_factor=0.0)
    for nothing in (["control"], "control", frame.iloc[:0]):
        with pytest.raises(ScreenError, match="perturbation"):
            fitted.predict(nothing)


def test_no_draws_and_no_perturbations_are_refused_by_name(fitted):
    frame = pd.DataFrame({"perturbation": ["control"], "time": [1.0]})
    for question in (
        fitted.perturbation_effects,
        fitted.batch_effects,
        fitted.media_gains,
        fitted.counterfactual,
        lambda n_samples: fitted.predict(frame, n_samples=n_samples),
    ):
        with pytest.raises(ScreenError, match="draws"):
            question(n_samples=0)
    with pytest.raises(ScreenError, match="perturbations"):
        fitted.perturbation_effects([])


def test_a_protocol_and_its_condition_get_the_same_prediction(fitted):
    gene = fitted.screen.perturbation_genes[0]
    protocol = Protocol([Perturb(gene), Media("medium0"), Wait(2.0)])
    frame = pd.DataFrame({"perturbation": [gene], "media": "medium0", "time": 2.0})
    answers = [fitted.predict(asked, n_samples=5) for asked in (protocol, frame)]
    np.testing.assert_array_equal(answers[0].X, answers[1].X)
    with pytest.raises(ProtocolError, match="one at a time"):
        fitted.predict(Protocol([Media("medium0"), Media("medium1"), Wait(1.0)]))


def test_carrying_out_a_protocol_step_by_step_agrees_with_its_condition(fitted):
    gene = fitted.screen.perturbation_genes[0]
    protocol = Protocol([Perturb(gene), Media("medium0"), Wait(2.0)])
    frame = pd.DataFrame({"perturbation": [gene], "media": "medium0", "time": 2.0})
    whole = predicted_draws(fitted.fitted, frame, 5, 100.0)
    steps = predicted_draws(fitted.fitted, frame, 5, 100.0, protocol=protocol)
    np.testing.assert_allclose(steps, whole, rtol=1e-4)


def test_the_order_of_a_protocol_matters_where_a_gain_says_so(fitted):
    gene = fitted.screen.perturbation_genes[0]
    before = Protocol([Perturb(gene), Media("medium0"), Wait(2.0)])
    after = Protocol([Media("medium0"), Wait(1.0), Perturb(gene), Wait(1.0)])
    answers = [fitted.predict(p, n_samples=20, return_draws=True) for p in (before, after)]
    assert np.isfinite(answers[1]).all() and (answers[0] != answers[1]).any()
    waits = [
        Protocol([Media("medium0"), *(Wait(2.0 / n) for _ in range(n))]) for n in (1, 4)
    ]  # waiting twice is waiting longer (eq. 3)
    draws = [fitted.predict(p, n_samples=5, return_draws=True) for p in waits]
    np.testing.assert_allclose(draws[0], draws[1], rtol=1e-3)


def test_predictions_keep_the_rows_and_scale_with_depth(fitted):
    name = fitted.screen.perturbations[0]
    frame = pd.DataFrame(
        {"perturbation": ["control", name, "control"], "time": [1.0, 2.0, 7.5]},
        index=["a", "b", "c"],
    )
    answer = fitted.predict(frame, n_samples=20, size_factor=100.0)
    assert answer.obs["perturbation"].tolist() == ["control", name, "control"]
    assert answer.obs["time"].tolist() == [1.0, 2.0, 7.5] and answer.uns["size_factor"] == 100.0
    assert list(answer.var_names) == list(fitted.screen.genes)
    assert (answer.layers["lower"] <= answer.X).all() and (answer.X <= answer.layers["upper"]).all()
    draws = fitted.predict(frame, n_samples=20, size_factor=100.0, return_draws=True)
    assert draws.dims == ("draw", "condition", "gene") and draws.shape == (20, 3, 12)
    np.testing.assert_allclose(draws.mean("draw"), answer.X, rtol=1e-4)


def test_batches_average_out_and_pseudobulks_add_sampling_noise(fitted):
    batches = list(fitted.screen.batches)
    frame = pd.DataFrame({"perturbation": "control", "time": 1.0, "batch": [*batches, None]})
    draws = np.log(fitted.predict(frame, n_samples=30, return_draws=True).to_numpy())
    eta = np.stack(list(fitted.posterior_samples(30, ["eta"])["eta"]))
    change = draws[:, :2] - draws[:, 2:]
    assert np.corrcoef(change.ravel(), eta.ravel())[0, 1] > 0.95
    few, many = (
        fitted.predict(frame.assign(n_cells=n), n_samples=60).layers["sd"] for n in (5, 5000)
    )
    assert (few > 1.5 * many).all()


def test_an_unknown_future_is_less_certain(fitted):
    name = fitted.screen.perturbations[0]
    frame = pd.DataFrame({"perturbation": name, "media": "baseline", "time": [2.0, 20.0]})
    draws = np.log(fitted.predict(frame, n_samples=60, return_draws=True).to_numpy())
    assert np.median(draws[:, 1].std(0) / draws[:, 0].std(0)) > 1.1


# ---------------------------------------------------------------------- cells


def expectation_at_the_mode(model, rows: np.ndarray) -> np.ndarray:
    """Expected counts of cells in their likeliest state, globals at their posterior means."""
    module, cells = model.module.model, model._cells.rows(rows)
    values = {name: value.detach() for name, value in model.posterior.mean().items()}
    labels = (cells["condition"], cells["batch"])
    start, _ = model.module.guide.encode(values, cells["x"], *labels)
    shift = module.cell_shift(values, *labels)
    x, log_size = cells["x"].to_dense(), cells["log_size"]
    mode, _ = resting_posterior(module, values, start, shift, x, log_size)
    logits = module.resting_logits(values, mode) + shift
    return module.view(values, logits, log_size, mode).mean.detach().numpy()


def test_a_counterfactual_under_the_own_condition_is_the_cell_s_expectation(make_screen, build):
    model = build(make_screen(media=1, times=(1.0, 2.0)), likelihood="nb")
    model.train(max_epochs=6, progress_bar=False)
    obs = model.adata.obs
    name = model.screen.perturbations[1]
    mine = (
        (obs["perturbation"] == name) & (obs["media"] == "medium0") & (obs["time"] == 2)
    ).to_numpy()
    own = model.counterfactual(
        model.adata[mine].copy(), perturbation=name, media="medium0", time=2.0, n_samples=100
    )
    depth = np.asarray(model.adata.X.sum(1), dtype=float)[mine]
    expected = expectation_at_the_mode(model, np.flatnonzero(mine))
    ratio = np.log(own.X / expected)
    # an average of exponentials is above the exponential of an average: by half a variance
    assert np.sqrt((ratio**2).mean()) < 0.1 and np.abs(ratio).max() < 0.5
    inside = (own.layers["lower"] <= expected) & (expected <= own.layers["upper"])
    assert inside.mean() > 0.95
    np.testing.assert_allclose(own.X.sum(1), depth.ravel(), rtol=1e-3)


def test_a_counterfactual_keeps_the_cell_and_changes_its_condition(fitted):
    name = fitted.screen.perturbations[0]
    treated = fitted.counterfactual(perturbation=name, time=2.0, n_samples=200)
    control = fitted.counterfactual(time=2.0, n_samples=200)
    assert list(treated.obs_names) == list(fitted.adata.obs_names)
    assert not [column for column in treated.obs if column.startswith("_scvi")]
    assert treated.uns["counterfactual"]["perturbation"] == name
    change = np.log(treated.X / control.X).mean(0)
    draws = effect_draws(fitted.fitted, [name], "baseline", 2.0, 200)[:, 0]
    effect = np.log(np.exp(draws).mean(0))  # as counts are averaged over draws
    assert np.corrcoef(change, effect)[0, 1] > 0.95
    with pytest.raises(UnknownLabelError, match="gene99"):
        fitted.counterfactual(perturbation="gene99")
