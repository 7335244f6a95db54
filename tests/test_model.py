"""The user's door: every kind of screen trains and answers, and answers mean what they say."""

from __future__ import annotations

import copy

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from pyrocell import Protocol, PyroCell, Wait
from pyrocell.errors import ScreenError, UnknownLabelError

pytestmark = pytest.mark.filterwarnings("ignore::pyrocell.errors.ScreenWarning")

MEAN_SD = ["mean", "sd", "lower", "upper"]


def own_columns(adata):
    rng = np.random.default_rng(0)
    adata.obs["donor"] = pd.Categorical(rng.choice(["d1", "d2", "d3"], adata.n_obs))
    adata.obs["age"] = rng.normal(40.0, 9.0, adata.n_obs)
    adata.obs["depth"] = np.asarray(adata.X.sum(1), dtype=float).ravel()
    return adata


def without_gene(adata):
    """No count of one gene in one batch, and of another gene anywhere but in one cell."""
    dense = adata.X.toarray()
    dense[adata.obs["batch"] == "batch0", 2] = 0
    dense[1:, 3], dense[0, 3] = 0, 1
    adata.X = sp.csr_matrix(dense)
    return adata


def one_cell(adata):
    names = sorted(set(adata.obs["perturbation"]) - {"control"})
    mine = np.flatnonzero(adata.obs["perturbation"] == names[0])
    return adata[np.setdiff1d(np.arange(adata.n_obs), mine[1:])].copy()


def two_types(adata):
    kind = np.where(np.arange(adata.n_obs) % 2, "CRISPRi", "CRISPRa")
    adata.obs["kind"] = pd.Categorical(kind)
    return adata


def dense(adata):
    adata.X = adata.X.toarray().astype(np.float64)
    return adata


# name: changes of the screen, what is done to it, arguments of setup, options of the model
CASES = {
    "combinations": ({"combinations": True}, None, {}, {}),
    "combinations, interactions": ({"combinations": True}, None, {}, {"interactions": True}),
    "media and times": ({"media": 2, "times": (0.5, 1.0, 3.0)}, None, {}, {}),
    "one time": ({"times": (2.0,)}, None, {}, {}),
    "one batch": ({"n_batches": 1}, None, {}, {}),
    "no batch column": ({}, None, {"batch_key": None}, {}),
    "uneven batches": ({"n_batches": 4, "balanced": False, "media": 1}, None, {}, {}),
    "one perturbation": ({"n_perturbations": 1, "media": 1}, None, {}, {}),
    "a perturbation with one cell": ({"media": 1}, one_cell, {}, {}),
    "targets not measured": ({"on_target": None}, None, {}, {}),
    "two types on each gene": ({}, two_types, {"perturbation_type_key": "kind"}, {}),
    "genes without counts": ({}, without_gene, {}, {}),
    "covariates": (
        {},
        own_columns,
        {"categorical_covariate_keys": ["donor"], "continuous_covariate_keys": ["age"]},
        {},
    ),
    "size factor": ({"media": 1}, own_columns, {"size_factor_key": "depth"}, {}),
    "dense counts": ({}, dense, {}, {}),
    "no own axes": ({"media": 1, "times": (1.0, 2.0)}, None, {}, {"n_response": 0}),
    "more axes than genes": ({"n_genes": 4}, None, {}, {"n_latent": 6, "n_response": 7}),
    "negative binomial": ({"media": 1}, None, {}, {"likelihood": "nb"}),
    "dropout free per cell": ({"media": 1}, None, {}, {"dropout": "cell"}),
    "linear decoder": ({"media": 1}, None, {}, {"decoder": "linear"}),
    "noise by content": (
        {"n_batches": 4, "balanced": False, "media": 1},
        None,
        {},
        {"content_dependent_noise": True},
    ),
    "noise by content, the same in all": ({}, None, {}, {"content_dependent_noise": True}),
    "no gene residual": ({"media": 1, "combinations": True}, None, {}, {"gene_residual": False}),
    "no gene residual, times": ({"times": (1.0, 2.0)}, None, {}, {"gene_residual": False}),
}


@pytest.mark.parametrize("name", CASES)
def test_every_kind_of_screen_trains_and_answers(make_screen, build, name):
    changes, edit, setup, options = CASES[name]
    adata = make_screen(**changes)
    model = build(edit(adata) if edit else adata, setup, **options)
    model.train(max_epochs=2, progress_bar=False)
    assert np.isfinite(model.history.to_numpy()).all()
    screen, genes = model.screen, len(model.screen.genes)
    effects = model.perturbation_effects(n_samples=5)
    assert len(effects) == len(screen.perturbations) * genes
    assert np.isfinite(effects[[*MEAN_SD, "prob_direction"]]).all(axis=None)
    if len(model.screen.batches) == 1:
        with pytest.raises(ScreenError, match="one batch"):
            model.batch_effects(n_samples=5)
        return
    batches = model.batch_effects(n_samples=5)
    assert len(batches) == len(screen.batches) * genes
    assert np.isfinite(batches[MEAN_SD]).all(axis=None)
    if screen.media:
        gains = model.media_gains(n_samples=5)
        assert np.isfinite(gains[MEAN_SD]).all(axis=None)
    asked = screen.conditions[["perturbation", "media", *(["time"] if screen.times else [])]]
    predicted = model.predict(asked.assign(n_cells=20), n_samples=5)
    answers = [predicted, model.counterfactual(n_samples=5)]
    assert [a.shape for a in answers] == [(len(asked), genes), model.adata.shape]
    for answer in answers:
        for values in (answer.X, *answer.layers.values()):
            assert np.isfinite(values).all() and (values >= 0).all()
        assert (answer.layers["lower"] <= answer.layers["upper"]).all()
    assert np.isfinite(model.get_latent_representation()).all()
    assert np.isfinite(model.get_normalized_expression()).all(axis=None)
    check = model.posterior_predictive_check(n_samples=3)
    assert np.isfinite(check[["observed", "expected", "lower", "upper"]]).all(axis=None)
    assert np.isfinite(model.get_marginal_ll(n_mc_samples=2)).all()


def test_tables_have_the_columns_of_the_contract(fitted):
    screen = fitted.screen
    effects = fitted.perturbation_effects(n_samples=5)
    said = ["lfsr", "fdr", "log2fc", "prob_direction", "count", "count_control", "few_counts"]
    assert list(effects) == ["perturbation", "media", "time", "gene", *MEAN_SD, *said]
    assert set(effects["media"]) == {screen.baseline_media} and set(effects["time"]) == {2.0}
    assert list(fitted.batch_effects(n_samples=5)) == ["batch", "gene", *MEAN_SD]
    assert list(fitted.media_gains(n_samples=5)) == ["perturbation", "media", *MEAN_SD]
    assert effects["prob_direction"].between(0, 1).all()
    pair = next(label for label in screen.conditions["perturbation"] if "+" in label)
    asked = fitted.perturbation_effects([pair], media="medium0", time=1.5, n_samples=5)
    assert set(asked["perturbation"]) == {pair} and set(asked["time"]) == {1.5}
    assert fitted.perturbation_effects(pair, n_samples=2)["perturbation"].eq(pair).all()


def test_nothing_asked_changes_the_cells_or_the_model(fitted, make_screen):
    before = fitted.adata.copy()
    state = {name: value.clone() for name, value in fitted.module.state_dict().items()}
    fitted.perturbation_effects(n_samples=2)
    fitted.batch_effects(2)
    fitted.media_gains(2)
    fitted.predict(Protocol([Wait(1.0)]), n_samples=2)
    fitted.counterfactual(n_samples=2)
    fitted.get_latent_representation()
    fitted.get_normalized_expression()
    fitted.posterior_predictive_check(n_samples=2)
    fitted.get_marginal_ll(n_mc_samples=2)
    fitted.to_arviz(2)
    after = fitted.adata
    pd.testing.assert_frame_equal(after.obs, before.obs)
    pd.testing.assert_frame_equal(after.var, before.var)
    assert (after.X != before.X).nnz == 0
    for slot in ("obsm", "varm", "layers", "uns", "obsp", "varp"):
        assert set(getattr(after, slot)) == set(getattr(before, slot)), slot
    for name, value in fitted.module.state_dict().items():
        assert value.equal(state[name]), name


def test_other_cells_passed_to_a_query_keep_all_but_scvi_s_own_entries(fitted):
    cells = fitted.adata[5:40].copy()
    cells.uns = {"mine": 1}
    before = copy.deepcopy(cells)
    fitted.get_latent_representation(cells)
    own = [column for column in cells.obs if not column.startswith("_scvi")]
    pd.testing.assert_frame_equal(
        cells.obs[own], before.obs[[c for c in before.obs if not c.startswith("_scvi")]]
    )
    assert (cells.X != before.X).nnz == 0
    assert {key for key in cells.uns if not key.startswith("_scvi")} == {"mine"}


@pytest.mark.parametrize("rows", [slice(3, 50, 2), slice(None, None, -3)], ids=["part", "reversed"])
@pytest.mark.parametrize("setup", [False, True], ids=["as it is", "registered on its own"])
def test_cells_of_another_object_get_the_answers_of_the_same_cells(fitted, rows, setup):
    cells = fitted.adata[rows].copy()
    cells.uns = {}
    if setup:
        PyroCell.setup_anndata(cells, media_key="media", time_key="time")
    for answer in (fitted.get_latent_representation, fitted.get_normalized_expression):
        np.testing.assert_allclose(answer(cells), np.asarray(answer())[rows], atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"size_factor_key": "depth"}], ids=["share", "log link"])
def test_cells_of_another_object_need_no_time_or_media(make_screen, build, options):
    model = build(own_columns(make_screen(combinations=True)), options)
    model.train(max_epochs=2, progress_bar=False)
    cells = model.adata[::4].copy()
    np.testing.assert_allclose(
        model.get_latent_representation(cells), model.get_latent_representation()[::4], atol=1e-5
    )


def test_a_pair_never_seen_can_be_asked_about(fitted):
    _, second, third = fitted.screen.perturbations
    pair = f"{second}+{third}"
    assert pair not in set(fitted.screen.conditions["perturbation"])
    cells = fitted.adata[:10].copy()
    cells.obs["perturbation"] = pair
    assert np.isfinite(fitted.get_latent_representation(cells)).all()
    frame = pd.DataFrame({"perturbation": [pair], "media": "baseline", "time": 2.0})
    assert np.isfinite(fitted.predict(frame, n_samples=5).X).all()


@pytest.mark.parametrize(
    ("column", "label"),
    [("perturbation", "gene99"), ("media", "medium9"), ("batch", "batch9")],
)
def test_cells_with_a_label_never_seen_are_refused_by_name(fitted, column, label):
    cells = fitted.adata[:10].copy()
    cells.obs[column] = label
    with pytest.raises(UnknownLabelError, match=label):
        fitted.get_latent_representation(cells)


def test_cells_with_other_genes_are_refused_by_name(fitted):
    cells = fitted.adata[:10, 1:].copy()
    with pytest.raises(UnknownLabelError, match="gene00"):
        fitted.get_latent_representation(cells)
    with pytest.raises(ScreenError, match="order"):
        fitted.get_latent_representation(fitted.adata[:10, ::-1].copy())


def test_normalised_expression_is_a_share_without_batch_noise(fitted):
    corrected = fitted.get_normalized_expression()
    assert list(corrected.index) == list(fitted.adata.obs_names)
    assert list(corrected.columns) == list(fitted.screen.genes)
    np.testing.assert_allclose(corrected.sum(axis=1), 1.0, rtol=1e-5)
    scaled = fitted.get_normalized_expression(library_size=1e4)
    np.testing.assert_allclose(scaled, 1e4 * corrected, rtol=1e-5)
    with_noise = fitted.get_normalized_expression(batch_corrected=False)
    eta = fitted.posterior.mean()["eta"].numpy()
    change = np.log(with_noise / corrected).to_numpy() - eta[fitted.adata.obs["batch"].cat.codes]
    np.testing.assert_allclose(change.std(axis=1), 0.0, atol=1e-5)  # but for the normalisation


def test_marginal_likelihood_is_above_the_elbo(fitted):
    few, many = (fitted.get_marginal_ll(n_mc_samples=n).mean() for n in (1, 40))
    assert many > few
    assert fitted.get_marginal_ll(fitted.adata[:7].copy(), n_mc_samples=2).shape == (7,)


def test_a_predictive_check_covers_data_like_its_own(make_screen, build):
    model = build(make_screen(n_cells_per_condition=60, n_controls=200, mean_library=300.0))
    model.train(max_epochs=25, batch_size=128, progress_bar=False)
    check = model.posterior_predictive_check(n_samples=60)
    assert set(check["statistic"]) == {"mean", "variance", "zero_fraction"}
    assert check.groupby("statistic")["inside"].mean().min() > 0.6
    expected = check[check["statistic"] == "mean"]
    np.testing.assert_allclose(expected["expected"], expected["observed"], rtol=0.15)


# ---------------------------------------------------------------------- the worst failure seen


def test_inert_knockouts_have_no_effect_in_common(make_screen, build):
    """Gauge: a decoder bias that lags behind gives every perturbation the same false effect."""
    adata = make_screen(
        n_perturbations=16, n_genes=60, n_cells_per_condition=40, n_controls=900,
        silent_fraction=0.75, effect_rms=0.3, dispersion=8.0, mean_library=2000.0, on_target=None,
    )  # fmt: skip
    model = build(adata, n_latent=5, n_response=4)
    model.train(max_epochs=60, batch_size=256, progress_bar=False)
    effects = model.perturbation_effects(n_samples=50)
    mean = effects.pivot(index="perturbation", columns="gene", values="mean")
    truth = adata.uns["truth"]
    mean = mean.loc[truth["effect"].index, truth["effect"].columns].to_numpy()
    mean = mean - (mean * truth["expression"]).sum(1, keepdims=True) / truth["expression"].sum()
    common = mean[truth["silent"]].mean(0)
    assert np.sqrt((common**2).mean()) < 0.05
    active = ~truth["silent"]
    found = np.corrcoef(mean[active].ravel(), truth["effect"].to_numpy()[active].ravel())[0, 1]
    assert found > 0.8


# ---------------------------------------------------------------------- options and messages


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"likelihood": "binomial"}, 'likelihood="binomial".*zinb, nb'),
        ({"dynamics": "chaos"}, 'dynamics="chaos".*relaxation'),
        ({"dropout": "none"}, 'dropout="none".*curve, cell'),
        ({"decoder": "deep"}, 'decoder="deep".*curved, linear'),
        ({"n_latent": 0}, "n_latent=0"),
        ({"n_response": -1}, "n_response=-1"),
    ],
)
def test_options_that_do_not_exist_are_refused_by_name(make_screen, build, options, match):
    with pytest.raises(ScreenError, match=match):
        build(make_screen(), **options)


def test_times_are_not_asked_of_a_screen_without(make_screen, build):
    model = build(make_screen())
    model.train(max_epochs=1, progress_bar=False)
    for question in (model.perturbation_effects, model.counterfactual):
        with pytest.raises(UnknownLabelError, match="time"):
            question(time=3.0, n_samples=2)


def test_gains_are_not_asked_of_a_screen_with_one_medium(make_screen, build):
    model = build(make_screen())
    model.train(max_epochs=1, progress_bar=False)
    with pytest.raises(ScreenError, match="media_key"):
        model.media_gains()


def test_aliased_contrasts_are_kept_on_the_model(make_screen, build):
    adata = make_screen()
    name = sorted(set(adata.obs["perturbation"]) - {"control"})[0]
    adata.obs["batch"] = np.where(adata.obs["perturbation"] == name, "b0", "b1")
    model = build(adata)
    aliased = model.screen.aliased_contrasts
    assert name in set(aliased["name"]) and aliased["reason"].str.len().gt(0).all()


def test_a_model_says_what_it_is(fitted):
    text = repr(fitted)
    assert isinstance(text, str)
    assert "3 perturbations, 2 media, 2 times, 2 batches" in fitted._model_summary_string


def test_views_of_cells_can_be_fitted_and_their_parent_stays(make_screen, build):
    parent = make_screen(media=1)
    before = anndata.AnnData.copy(parent)
    model = build(parent[10:80])
    model.train(max_epochs=1, progress_bar=False)
    assert model.get_latent_representation().shape == (70, 2)
    assert set(parent.obs) == set(before.obs) and set(parent.uns) == set(before.uns)
