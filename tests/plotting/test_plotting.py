"""Figures: what is drawn is what the tables say, and every option draws."""

from __future__ import annotations

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes

import pyrocell
from pyrocell.errors import ScreenError, UnknownLabelError


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def effects(fitted) -> pd.DataFrame:
    return fitted.perturbation_effects(n_samples=20)


def drawn(axes: Axes | np.ndarray) -> None:
    """Render, so that every artist is laid out."""
    np.atleast_1d(axes)[0].figure.draw_without_rendering()


def names(ax: Axes, axis: str) -> list[str]:
    return [label.get_text() for label in getattr(ax, f"get_{axis}ticklabels")()]


def test_every_function_draws_into_the_axes_it_is_given(fitted, effects):
    table = fitted.batch_effects(n_samples=20)
    conditions = pd.DataFrame({"perturbation": ["control"], "time": [2.0]})
    calls = {
        "history": (fitted,),
        "effects": (effects,),
        "effect_intervals": (effects,),
        "batch_effects": (table,),
        "gains": (fitted.media_gains(n_samples=20),),
        "explain": (fitted.explain(fitted.screen.perturbations[0], by="step", n_samples=5),),
        "latent": (fitted,),
        "layout": (fitted.screen,),
        "prediction": (fitted.predict(conditions, n_samples=5),),
    }
    elsewhere = {"assumption_map", "prior_posterior", "response_curves"}
    elsewhere |= {"ecdf_difference", "rank_histogram", "reliability", "learning_curves"}
    elsewhere |= {"cost_curve", "lane_map", "layout_graph", "retention", "trajectory"}
    elsewhere |= {"guides", "network", "similarity", "time_course", "volcano"}
    elsewhere |= {"edge_effects", "error_analysis", "noise_sensitivity", "plate_map"}
    several = {"predictive_check", "steady_screen", "evaluation", "signature", "temporal_shift"}
    assert set(calls) | several | elsewhere == set(pyrocell.pl.__all__)
    for name, arguments in calls.items():
        _, ax = plt.subplots()
        assert getattr(pyrocell.pl, name)(*arguments, ax=ax) is ax
        drawn(ax)
        assert getattr(pyrocell.pl, name)(*arguments) is not ax
        plt.close("all")
    _, axes = plt.subplots(1, 3)
    check = fitted.posterior_predictive_check(n_samples=5)
    assert list(pyrocell.pl.predictive_check(check, axes=axes)) == list(axes)
    drawn(pyrocell.pl.predictive_check(check))
    _, axes = plt.subplots(1, 2)
    moved = fitted.steady_state_screen(n_draws=20, n_splits=10, min_cells=2)
    assert list(pyrocell.pl.steady_screen(moved, axes=axes)) == list(axes)
    drawn(pyrocell.pl.steady_screen(moved))


def test_the_heat_map_shows_the_table(effects):
    ax = pyrocell.pl.effects(effects, n_genes=5)
    shown = ax.images[0].get_array()
    table = effects.pivot(index="perturbation", columns="gene", values="mean")
    expected = table.loc[names(ax, "y"), names(ax, "x")]
    np.testing.assert_allclose(shown, expected)
    assert shown.shape == (effects["perturbation"].nunique(), 5)


def test_dots_are_where_the_direction_is_probable(effects):
    ax = pyrocell.pl.effects(effects, n_genes=100, probability=0.9)
    assert len(ax.collections[0].get_offsets()) == (effects["prob_direction"] >= 0.9).sum()


def test_one_perturbation_is_every_gene_once(effects):
    label = effects["perturbation"].iloc[0]
    ax = pyrocell.pl.effects(effects, perturbation=label)
    drawn(ax)
    assert sum(len(c.get_offsets()) for c in ax.collections) == effects["gene"].nunique()


def test_intervals_are_the_strongest_and_can_be_chosen(effects):
    gene = effects["gene"].iloc[0]
    ax = pyrocell.pl.effect_intervals(effects, genes=gene)
    assert sorted(names(ax, "y")) == sorted(effects["perturbation"].unique())
    assert gene in ax.get_title()
    ax = pyrocell.pl.effect_intervals(effects, n=3)
    bound = np.maximum(effects["lower"], -effects["upper"])
    best = effects.loc[bound.idxmax()]
    told = names(ax, "y")[0] + ax.get_title()  # what all three share is in the title
    assert best["perturbation"] in told and best["gene"] in told
    assert len(names(ax, "y")) == 3


def test_a_table_of_several_media_is_refused(fitted, effects):
    other = fitted.perturbation_effects(media=fitted.screen.media[0], n_samples=5)
    with pytest.raises(ScreenError, match="2 values of media"):
        pyrocell.pl.effects(pd.concat([effects, other]))


def test_names_not_in_a_table_are_named_with_their_neighbours(fitted, effects):
    with pytest.raises(UnknownLabelError, match="did you mean"):
        pyrocell.pl.effect_intervals(effects, genes="Gene00")
    with pytest.raises(UnknownLabelError, match='color="bath".*did you mean "batch"'):
        pyrocell.pl.latent(fitted, color="bath")


def test_gains_mark_blocked_and_untouched(fitted):
    table = fitted.media_gains(n_samples=20)
    ax = pyrocell.pl.gains(table)
    assert {tuple(line.get_xdata()) for line in ax.lines} == {(0, 0), (1, 1)}
    assert names(ax, "y") == table.sort_values("mean")["perturbation"].tolist()


def test_terms_stand_one_after_the_other_and_end_at_the_total(fitted):
    name, medium = fitted.screen.perturbations[0], fitted.screen.media[0]
    table = fitted.explain(name, media=medium, n_samples=20)
    with pytest.raises(ScreenError, match="12 genes; name one"):
        pyrocell.pl.explain(table)
    with pytest.raises(UnknownLabelError, match="gene99"):
        pyrocell.pl.explain(table, "gene99")
    gene = table["gene"].iloc[-1]
    ax = pyrocell.pl.explain(table, gene)
    drawn(ax)
    rows = table[table["gene"] == gene]
    assert names(ax, "y") == list(rows["term"])
    ends = [bar.get_x() + bar.get_width() for bar in ax.patches]
    starts = [bar.get_x() for bar in ax.patches]
    np.testing.assert_allclose(starts[1:-1], ends[:-2], atol=1e-6)  # each begins where one ended
    assert starts[-1] == 0 and np.isclose(ends[-1], ends[-2], atol=1e-4)
    assert gene in ax.get_title() and f"{name} in {medium}" in ax.get_title().replace("\n", " ")


def test_the_layout_shows_counts_and_names_what_is_aliased(fitted):
    ax = pyrocell.pl.layout(fitted)
    assert np.nansum(ax.images[0].get_array()) == fitted.screen.n_cells
    adata = pyrocell.simulate.screen(n_perturbations=2, n_genes=5, n_batches=2)
    adata.obs["time"] = np.where(adata.obs["batch"] == "batch0", 1.0, 2.0)
    with pytest.warns(pyrocell.errors.ScreenWarning):
        pyrocell.PyroCell.setup_anndata(adata, time_key="time")
    ax = pyrocell.pl.layout(pyrocell.PyroCell(adata).screen)
    drawn(ax)
    assert "time 2" in ax.get_xlabel()
    assert np.ma.count(np.ma.masked_invalid(ax.images[0].get_array())) == 6


def test_latent_takes_labels_numbers_and_nothing(fitted):
    for color in (None, "perturbation", pd.Series(np.linspace(0, 1, fitted.adata.n_obs))):
        ax = pyrocell.pl.latent(fitted, color=color)
        drawn(ax)
        points = ax.collections[0]
        shown = points.get_array().sum() if color is None else len(points.get_offsets())
        assert shown == fitted.adata.n_obs


def test_predictions_by_gene_and_over_time(fitted):
    labels = [fitted.screen.control, fitted.screen.perturbations[0]]
    table = pd.DataFrame([(p, t) for p in labels for t in (1.0, 1.5, 2.0)])
    predicted = fitted.predict(table.set_axis(["perturbation", "time"], axis=1), n_samples=10)
    drawn(pyrocell.pl.prediction(predicted, n_genes=4))
    gene = predicted.var_names[2]
    ax = pyrocell.pl.prediction(predicted, gene, over_time=True)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == labels
    np.testing.assert_allclose(ax.lines[0].get_ydata(), predicted[:3, gene].X[:, 0])
    with pytest.raises(UnknownLabelError, match="not in the prediction"):
        pyrocell.pl.prediction(predicted, "no such gene")


def test_the_steady_screen_shows_raw_and_corrected_change_of_every_condition(fitted):
    table = fitted.steady_state_screen(n_draws=20, n_splits=10, min_cells=2)
    rows = table[table["reference"] == "control"]
    left, right = pyrocell.pl.steady_screen(table)
    raw, baseline = (points.get_offsets()[:, 1] for points in left.collections)
    np.testing.assert_allclose(raw, rows["raw"])
    np.testing.assert_allclose(baseline, rows["raw_baseline"])
    bars, points = right.collections
    ends = np.array([segment[:, 1] for segment in bars.get_segments()])
    np.testing.assert_allclose(ends, rows[["lower", "upper"]])
    np.testing.assert_allclose(points.get_offsets()[:, 1], rows["rms"])


def test_a_model_without_training_has_no_history(make_screen, build):
    with pytest.raises(ScreenError, match="train"):
        pyrocell.pl.history(build(make_screen()))


def test_scores_of_held_out_conditions_have_a_panel_for_each_metric():
    rng = np.random.default_rng(0)
    methods = ["pyrocell", "mean of the others", "no change"]
    table = pd.DataFrame({"method": methods * 5, "mse": rng.uniform(0.01, 1, 15)})
    table["spearman"] = np.where(table["method"] == "no change", np.nan, rng.uniform(-1, 1, 15))
    axes = pyrocell.pl.evaluation(table, ["mse", "spearman"])
    drawn(axes)
    assert names(axes[0], "y") == methods and axes[0].get_xscale() == "log"
    means = [c.get_offsets()[0, 0] for c in axes[0].collections[1::2]]
    np.testing.assert_allclose(means, table.groupby("method", sort=False)["mse"].mean())
    _, given = plt.subplots(1, 2)
    assert list(pyrocell.pl.evaluation(table, ["mse", "spearman"], axes=given)) == list(given)
    with pytest.raises(UnknownLabelError, match='did you mean "mse"'):
        pyrocell.pl.evaluation(table, ["msee"])
    with pytest.raises(ScreenError, match="one for each"):
        pyrocell.pl.evaluation(table, ["mse"], axes=given)
    with pytest.raises(ScreenError, match="no score"):
        pyrocell.pl.evaluation(table.iloc[:0], ["mse"])
