"""What scanpy and ArviZ users expect of a fitted model: their forms, their names, our numbers."""

from __future__ import annotations

import arviz as az
import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scanpy as sc

from pyrocell.errors import ScreenError, UnknownLabelError

SCVI_COLUMNS = [
    *("proba_de", "proba_not_de", "bayes_factor", "scale1", "scale2", "pseudocounts", "delta"),
    *("lfc_mean", "lfc_median", "lfc_std", "lfc_min", "lfc_max", "raw_mean1", "raw_mean2"),
    *("non_zeros_proportion1", "non_zeros_proportion2", "raw_normalized_mean1"),
    *("raw_normalized_mean2", "is_de_fdr_0.05", "comparison", "group1", "group2"),
]


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def effects(fitted):
    return fitted.effects_adata(media="baseline", n_samples=40)


def posterior_of(data):
    return data["posterior"] if "posterior" in getattr(data, "children", {}) else data.posterior


# ---------------------------------------------------------------------- scanpy
def test_effects_adata_holds_the_table_of_effects(fitted, effects):
    table = fitted.perturbation_effects(media="baseline", n_samples=40)
    for layer, column in (("lfc", "mean"), ("sd", "sd"), ("lfsr", "lfsr"), ("count", "count")):
        wide = table.pivot(index="perturbation", columns="gene", values=column)
        wide = wide.loc[effects.obs_names, effects.var_names].to_numpy()
        np.testing.assert_array_equal(
            effects.layers[layer], wide.astype(effects.layers[layer].dtype)
        )
    np.testing.assert_array_equal(effects.X, effects.layers["lfc"])
    conditions = fitted.screen.conditions
    here = conditions[(conditions["media"] == "baseline") & (conditions["time"] == 2.0)]
    cells = here.groupby("perturbation")["n_cells"].sum()
    assert effects.obs["n_cells"].to_dict() == cells[effects.obs_names].to_dict()


def test_effects_adata_goes_through_scanpy_and_a_file(effects, tmp_path):
    effects = effects.copy()
    sc.pp.pca(effects, n_comps=2)
    sc.pp.neighbors(effects, n_neighbors=2)
    sc.tl.dendrogram(effects, groupby="perturbation")
    genes, options = list(effects.var_names[:4]), {"dendrogram": True, "show": False}
    sc.pl.matrixplot(effects, genes, "perturbation", layer="log2fc", **options)
    sc.pl.heatmap(effects, genes, "perturbation", show=False)
    effects.write_h5ad(tmp_path / "effects.h5ad")
    again = sc.read_h5ad(tmp_path / "effects.h5ad")
    np.testing.assert_array_equal(again.layers["lfsr"], effects.layers["lfsr"])


def test_decoupler_takes_effects(effects):
    decoupler = pytest.importorskip("decoupler")
    net = pd.DataFrame({"source": "S", "target": list(effects.var_names[:6]), "weight": 1.0})
    scores, _ = decoupler.mt.ulm(effects.to_df(layer="lfc"), net, tmin=3)
    assert list(scores.index) == list(effects.obs_names)


def test_ranked_genes_are_what_scanpy_reads_and_draws(fitted, tmp_path):
    adata = fitted.adata.copy()
    before = set(adata.uns)
    fitted.to_rank_genes_groups(adata, media="baseline", n_samples=40)
    assert set(adata.uns) - before == {"rank_genes_groups"}
    table = fitted.perturbation_effects(media="baseline", n_samples=40).set_index("gene")
    for name in fitted.screen.perturbations:
        found = sc.get.rank_genes_groups_df(adata, group=name).set_index("names")
        mine = table[table["perturbation"] == name].loc[found.index]
        np.testing.assert_allclose(found["logfoldchanges"], mine["log2fc"], rtol=1e-6)
        np.testing.assert_allclose(found["pvals_adj"], mine["fdr"], rtol=1e-6)
        assert found["scores"].is_monotonic_decreasing
    sc.pl.rank_genes_groups(adata, n_genes=3, show=False)
    options = {"n_genes": 2, "dendrogram": False, "show": False}
    for kind in ("dotplot", "matrixplot", "heatmap", "stacked_violin", "tracksplot"):
        getattr(sc.pl, f"rank_genes_groups_{kind}")(adata, **options)
    # scanpy colours a dot plot by fold changes where each group of cells has some, control has none
    ranked = adata[adata.obs["perturbation"].isin(fitted.screen.perturbations)]
    sc.pl.rank_genes_groups_dotplot(ranked, values_to_plot="logfoldchanges", **options)
    adata.write_h5ad(tmp_path / "cells.h5ad")


def test_differential_expression_has_scvi_tools_columns_and_the_effects(fitted):
    found = fitted.differential_expression(n_samples=200)
    assert list(found.columns) == SCVI_COLUMNS
    table = fitted.perturbation_effects(n_samples=200).set_index(["perturbation", "gene"])
    for name in fitted.screen.perturbations:
        mine = found[found["group1"] == name]
        sd = table.loc[name].loc[mine.index, "sd"] / np.log(2)
        away = (mine["lfc_mean"] - table.loc[name].loc[mine.index, "log2fc"]).abs()
        assert (away < 5 * sd / np.sqrt(200) + 0.02).all()
        assert mine["bayes_factor"].is_monotonic_decreasing
        labels = fitted.adata.obs
        here = (labels["perturbation"] == name) & (labels["media"] == "baseline")
        counts = fitted.adata[here & (labels["time"] == 2.0), list(mine.index)].X.toarray()
        np.testing.assert_allclose(mine["raw_mean1"], counts.mean(0), rtol=1e-5)
        np.testing.assert_allclose(mine["non_zeros_proportion1"], (counts > 0).mean(0))


@pytest.mark.parametrize("media", ["baseline", "medium0"])
def test_no_gene_is_likelier_changed_than_its_effect_has_a_sign(fitted, media):
    """Draws that move within what is usual of a perturbation are no differential expression."""
    table = fitted.perturbation_effects(media=media, n_samples=40)
    lfsr = table.set_index(["perturbation", "gene"])["lfsr"]
    for delta in (0.0, 0.25):
        found = fitted.differential_expression(delta=delta, media=media, n_samples=40)
        found = found.rename_axis("gene").set_index("group1", append=True).swaplevel()
        excess = found["proba_not_de"] - lfsr[found.index]
        assert excess.min() > -1e-6
        assert delta > 0 or excess.max() < 1e-6


def test_shuffled_labels_list_no_gene_whatever_the_least_change(make_screen, build):
    adata = make_screen(seed=5, media=1)
    rng = np.random.default_rng(0)
    for rows in adata.obs.groupby(["media", "batch"], observed=True).indices.values():
        labels = adata.obs["perturbation"].to_numpy().copy()
        labels[rows] = labels[rng.permutation(rows)]
        adata.obs["perturbation"] = labels
    model = build(adata)
    model.train(max_epochs=2, progress_bar=False)
    names = model.screen.perturbations
    for options in ({}, {"groupby": "media"}, {"group1": names[0], "group2": names[1]}):
        found = model.differential_expression(delta=0.0, n_samples=40, **options)
        assert not found["is_de_fdr_0.05"].any()


def test_media_are_compared_as_in_media_effects(fitted):
    found = fitted.differential_expression(groupby="media", delta=0.0)
    table = fitted.media_effects().set_index("gene").loc[found.index]
    assert list(found.columns) == SCVI_COLUMNS
    assert set(found["comparison"]) == {"medium0 vs baseline"}
    np.testing.assert_allclose(found["proba_not_de"], table["lfsr"], atol=1e-6)
    away = (found["lfc_mean"] - table["log2fc"]).abs() * np.log(2)
    assert (away < 5 * table["sd"] / np.sqrt(32)).all()  # as many states are kept
    labels = fitted.adata.obs
    here = (labels["perturbation"] == "control") & (labels["media"] == "medium0")
    counts = fitted.adata[here & (labels["time"] == 2.0), list(found.index)].X.toarray()
    np.testing.assert_allclose(found["raw_mean1"], counts.mean(0), rtol=1e-5)


def test_genes_with_few_counts_on_both_sides_are_not_listed(fitted):
    found = fitted.differential_expression(n_samples=40, fdr_target=0.999)
    table = fitted.perturbation_effects(n_samples=40).set_index(["perturbation", "gene"])
    few = [table.loc[(row.group1, gene), "few_counts"] for gene, row in found.iterrows()]
    assert not (found["is_de_fdr_0.999"].to_numpy() & np.array(few)).any()


def test_one_perturbation_against_another_is_the_difference(fitted):
    first, second = fitted.screen.perturbations[:2]
    one = fitted.differential_expression(group1=first, group2=second)
    other = fitted.differential_expression(group1=second, group2=first)
    np.testing.assert_allclose(
        one["lfc_mean"].sort_index(), -other["lfc_mean"].sort_index(), atol=1e-5
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"groupby": "batch"}, "batch_effects"),
        ({"groupby": "media", "group2": "gene03"}, "baseline"),
        ({"groupby": "media", "group1": "baseline"}, "baseline"),
        ({"groupby": "media", "media": "medium0"}, "group1"),
        ({"group1": []}, "nothing"),
        ({"fdr_target": 1.0}, "fdr_target"),
        ({"mode": "vanilla"}, "change"),
        ({"delta": -1.0}, "delta"),
        ({"group1": "nobody"}, "nobody"),
    ],
)
def test_comparisons_that_the_model_does_not_hold_are_refused(fitted, options, words):
    with pytest.raises(ScreenError, match=words):
        fitted.differential_expression(n_samples=5, **options)


def test_normalized_expression_takes_genes_cells_draws_and_depth(fitted, monkeypatch):
    whole = fitted.get_normalized_expression()
    genes = list(whole.columns[[3, 1]])
    some = fitted.get_normalized_expression(indices=[5, 2], gene_list=genes)
    pd.testing.assert_frame_equal(some, whole.iloc[[5, 2]][genes], rtol=1e-5)
    deep = fitted.get_normalized_expression(library_size="latent")
    depth = np.asarray(fitted.adata.X.sum(1)).ravel()
    np.testing.assert_allclose(deep.sum(1), depth, rtol=1e-3)
    draws = fitted.get_normalized_expression(indices=range(4), n_samples=30, return_mean=False)
    assert draws.shape == (30, 4, len(whole.columns))
    np.testing.assert_allclose(draws.sum(2), 1, rtol=1e-4)
    assert draws.std(0).min() > 0
    mean = fitted.get_normalized_expression(indices=range(4), n_samples=30, return_numpy=True)
    np.testing.assert_allclose(mean, draws.mean(0), rtol=1e-5)
    with pytest.raises(UnknownLabelError, match="gene_list|not a gene"):
        fitted.get_normalized_expression(gene_list=["nothing"])
    with pytest.raises(ScreenError, match="batch_size"):
        fitted.get_normalized_expression(batch_size=0, n_samples=2)
    monkeypatch.setattr("pyrocell.model.MEMORY_BUDGET", "1 kB")
    with pytest.raises(ScreenError, match="return_mean"):
        fitted.get_normalized_expression(n_samples=3, return_mean=False)
    assert len(fitted.get_normalized_expression(n_samples=2)) == len(whole)


def test_model_and_screen_say_what_they_are(fitted):
    for thing in (fitted, fitted.screen):
        text, page = repr(thing), thing._repr_html_()
        assert len(text) < 1500 and "control" in text and "batches" in text
        assert page.startswith("<div>") and "<table>" in page
    assert "trained for 8 epochs" in repr(fitted)


# ---------------------------------------------------------------------- ArviZ
def test_arviz_holds_effects_under_their_names_and_summarises_without_nan(fitted):
    data = fitted.to_arviz(40)
    effect = posterior_of(data)["effect"]
    assert effect.dims == ("chain", "draw", "perturbation", "gene")
    table = fitted.perturbation_effects(n_samples=40)
    wide = table.pivot(index="perturbation", columns="gene", values="mean")
    mean = effect.mean(("chain", "draw")).to_pandas()
    sd = table["sd"].max()
    np.testing.assert_allclose(mean, wide.loc[mean.index, mean.columns], atol=5 * sd / np.sqrt(40))
    summary = az.summary(data, var_names=["effect", "M.gain", "eta"])
    moving = summary[summary["sd"].astype(float) > 0]
    assert len(moving) and not moving.isna().any().any()
    az.plot_forest(data, var_names=["effect"], coords={"perturbation": [wide.index[0]]})


def test_arviz_has_a_group_for_sites_that_cannot_vary(fitted):
    data = fitted.to_arviz(16)
    sites, constant = posterior_of(data), data["constant_data"]
    assert not set(sites.data_vars) & set(constant.data_vars)
    for site, values in fitted.posterior_samples(16).items():
        varies = bool((values != values[:1]).any())
        assert (site in sites) == varies and (site in constant) == (not varies)
    site = next(iter(constant.data_vars))
    assert site in posterior_of(fitted.to_arviz(16, [site]))  # it was asked for
    summary = az.summary(data)
    entries = {name.split("[")[0] for name in summary.index[summary.isna().any(axis=1)]}
    assert entries <= {"P.common", "P.interaction"}  # genes without any, in sites that have others


def test_cells_of_arviz_are_the_same_some_at_a_time(fitted, monkeypatch):
    options = {"groups": ("posterior", "observed_data", "log_likelihood"), "cells": 25}
    whole = fitted.to_arviz(16, ["M.gain"], **options)
    monkeypatch.setattr("pyrocell.posterior.arviz._AT_WORK", 7 * 4 * 16 * 12)  # seven cells
    parts = fitted.to_arviz(16, ["M.gain"], **options)
    np.testing.assert_array_equal(
        whole["observed_data"]["counts"], parts["observed_data"]["counts"]
    )
    one, other = (x["log_likelihood"]["cells"].mean(("chain", "draw")) for x in (whole, parts))
    assert float(abs(one - other).max()) < 1.0  # nats, of other random states
    np.testing.assert_allclose(float(one.sum()), float(other.sum()), rtol=0.01)


def test_arviz_checks_and_scores_cells(fitted):
    groups = ("posterior", "observed_data", "posterior_predictive", "log_likelihood")
    data = fitted.to_arviz(40, ["M.gain"], groups=groups, cells=30)
    observed, predicted = data["observed_data"]["counts"], data["posterior_predictive"]["counts"]
    cells = observed["cell"].values
    np.testing.assert_array_equal(observed, fitted.adata.X[cells].toarray())
    assert predicted.dims == ("chain", "draw", "cell", "count_gene")
    assert 0.5 < float(predicted.mean() / observed.mean()) < 2
    found = az.loo(data)
    total = getattr(found, "elpd_loo", None)
    total = found.elpd if total is None else total
    marginal = fitted.get_marginal_ll(n_mc_samples=100).iloc[cells].sum()
    assert np.isfinite(total) and abs(total - marginal) < 0.1 * abs(marginal)
    if hasattr(az, "plot_ppc"):  # ArviZ 0.x
        az.plot_ppc(data, num_pp_samples=5)


def test_arviz_refuses_what_does_not_fit_and_names_the_remedy(fitted):
    with pytest.raises(ScreenError, match=r"most of it V.curvature.*perturbations=.*genes="):
        fitted.to_arviz(40, memory_budget="1 kB")
    for groups in (["posterior_predictive"], ["observed_data"], ["log_likelihood"]):
        with pytest.raises(ScreenError, match="cells="):
            fitted.to_arviz(40, [], groups=groups, cells=30, memory_budget=1000)
    with pytest.raises(ScreenError, match="did you mean"):
        fitted.to_arviz(4, ["P.efect"])
    with pytest.raises(ScreenError, match="position"):
        fitted.to_arviz(4, [], groups="observed_data", cells=[10**6])
    with pytest.raises(ScreenError, match="log_likelihood"):
        fitted.to_arviz(4, groups=("loglik",))
    some = fitted.to_arviz(4, ["effect"], genes=[fitted.screen.genes[2]])
    assert posterior_of(some)["effect"].shape == (1, 4, len(fitted.screen.perturbations), 1)
