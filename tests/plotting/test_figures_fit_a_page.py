"""Figures fit a page with one perturbation and with 300, with long names and missing values."""

from __future__ import annotations

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

import pyrocell
from pyrocell.errors import ScreenError
from pyrocell.plotting._style import PAGE, palette

LONG = "a_perturbation_with_a_name_that_nobody_would_type_by_hand_in_a_lab_"


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


def effects_table(n: int, n_genes: int = 12, seed: int = 0) -> pd.DataFrame:
    """A table of effects; the first perturbation targets the first gene."""
    rng = np.random.default_rng(seed)
    names = ["gene0", *(f"{LONG if i % 50 == 1 else 'p'}{i}" for i in range(1, n))]
    genes = [f"gene{g}" for g in range(n_genes)]
    table = pd.MultiIndex.from_product([names, genes], names=["perturbation", "gene"])
    table = table.to_frame(index=False).assign(media="baseline", time=2.0)
    mean = rng.normal(0, 0.5, len(table))
    lfsr = np.minimum(0.5, np.exp(-10 * np.abs(mean)))
    return table.assign(
        mean=mean, lower=mean - 0.3, upper=mean + 0.3, lfsr=lfsr, prob_direction=1 - lfsr
    )


def tables(n: int) -> dict[str, tuple]:
    """Arguments of every function whose size follows the number of perturbations."""
    effects = effects_table(n)
    names = effects["perturbation"].unique()
    one = pd.DataFrame({"perturbation": names, "media": "IFNG", "mean": np.linspace(0, 1, n)})
    one = one.assign(lower=one["mean"] - 0.2, upper=one["mean"] + 0.2)
    held = one.assign(
        assumption="no_response", testable=True, reason="", prior=0.2, posterior=0.5, size=0.4
    )
    errors = pd.concat(one.assign(term=t, time=np.nan) for t in ("total", "own", "propagated"))
    errors = pd.concat([errors, one.assign(term="bound", time=np.nan)])
    differences = one.rename(columns={"mean": "difference"}).assign(
        difference_lower=-0.1, difference_upper=0.3, shuffled_lower=-0.1, shuffled_upper=0.1
    )
    bins = pd.concat(differences.assign(bin=b, start=b / 5, end=(b + 1) / 5) for b in range(5))
    moved = pd.DataFrame({"reference": "control", "perturbation": names, "n_from": 20})
    moved = moved.assign(n_to=np.arange(n) + 10, time_from=2.0, time_to=3.0, batch_removed=True)
    moved = moved.assign(raw=0.3, raw_baseline=0.2, rms=0.2, lower=0.1, upper=0.4, squared=0.04)
    course = pd.concat([effects, effects.assign(time=3.0)])
    batches = effects.rename(columns={"perturbation": "batch"})
    guides = one.rename(columns={"mean": "efficacy"}).assign(
        guide=names + "_1", response_share=0.8, response_lower=0.7, response_upper=0.9, agree=0.4
    )
    terms = one.rename(columns={"perturbation": "term"}).assign(gene="gene0", step="by itself")
    panel = effects[effects["perturbation"] == "gene0"].assign(sd=0.2, auroc_all=0.9)
    names = [f"{LONG}{i}" for i in range(n)]
    panel = panel.iloc[np.arange(n) % len(panel)].assign(gene=names, auroc_with=0.8)
    panel = panel.assign(auroc_top_z=0.7, auroc_shuffled=0.5, shuffled_upper=0.6)
    panel = panel.assign(lower=0.7, upper=0.85)
    edges = effects.rename(columns={"perturbation": "regulator", "gene": "target"})
    return {
        "explain": (terms,),
        "signature": (panel,),
        "guides": (guides,),
        "network": (edges.assign(probability=0.7, rests_on="timed"),),
        "effects": (effects,),
        "volcano": (effects, "gene0"),
        "effect_intervals": (effects,),
        "similarity": (effects,),
        "time_course": (course, "gene3"),
        "batch_effects": (batches,),
        "gains": (one,),
        "assumption_map": (held,),
        "prior_posterior": (held, "no_response"),
        "error_analysis": (errors,),
        "trajectory": (bins,),
        "retention": (differences,),
        "steady_screen": (moved,),
    }


@pytest.mark.parametrize("n", [1, 2, 300])
@pytest.mark.parametrize("name", list(tables(1)))
def test_a_figure_fits_a_page_and_its_labels_do_not_leave_it(name, n):
    axes = np.atleast_1d(getattr(pyrocell.pl, name)(*tables(n)[name]))
    figure = axes[0].figure
    assert tuple(figure.get_size_inches()) <= PAGE and figure.get_figheight() <= PAGE[1]
    figure.draw_without_rendering()
    inside = figure.get_tightbbox()
    width, height = figure.get_size_inches()
    assert inside.x0 > -0.1 and inside.x1 < width + 0.1, name
    assert inside.y0 > -0.1 and inside.y1 < height + 0.1, name
    for ax in axes:
        box = ax.get_position()
        assert box.width > 0.15 and box.height > 0.15, "labels leave no room for what is drawn"


@pytest.mark.parametrize("name", ["effects", "volcano", "effect_intervals", "similarity"])
def test_missing_effects_leave_a_gap_and_no_error(name):
    table = effects_table(4)
    columns = ["mean", "lower", "upper", "lfsr", "prob_direction"]
    table.loc[table["gene"] == "gene3", columns] = np.nan
    table.loc[table["perturbation"] == "p2", columns] = np.nan
    table.loc[3, columns] = np.nan
    arguments = (table, "gene0") if name == "volcano" else (table,)
    ax = getattr(pyrocell.pl, name)(*arguments)
    ax.figure.draw_without_rendering()
    assert "nan" not in " ".join(text.get_text() for text in ax.texts)


def test_like_rows_stand_together_and_the_gene_that_is_targeted_is_framed():
    table = effects_table(4).set_index(["perturbation", "gene"])
    for column in ("mean", "lower", "upper"):
        table.loc["p3", column] = table.loc["gene0", column].to_numpy()
    ax = pyrocell.pl.effects(table.reset_index())
    rows = [label.get_text() for label in ax.get_yticklabels()]
    assert abs(rows.index("p3") - rows.index("gene0")) == 1
    columns = [label.get_text() for label in ax.get_xticklabels()]
    (frame,) = ax.patches
    assert frame.get_xy() == (columns.index("gene0") - 0.5, rows.index("gene0") - 0.5)
    assert "frame: own gene" in ax.get_title()


def test_of_many_perturbations_the_strongest_are_drawn_and_the_title_says_so():
    ax = pyrocell.pl.effects(effects_table(100), n_perturbations=7)
    assert ax.images[0].get_array().shape[0] == 7
    assert "7 strongest of 100" in ax.get_title()


def test_a_volcano_has_every_gene_at_its_effect_and_false_sign_rate():
    table = effects_table(3)
    rows = table[table["perturbation"] == "gene0"]
    ax = pyrocell.pl.volcano(table, "gene0")
    points = np.concatenate([c.get_offsets() for c in ax.collections if len(c.get_offsets())])
    expected = np.column_stack([rows["mean"], -np.log10(rows["lfsr"].clip(1e-10))])
    np.testing.assert_allclose(points[points[:, 0].argsort()], expected[expected[:, 0].argsort()])
    ax = pyrocell.pl.volcano(table.rename(columns={"lfsr": "p"}), "gene0")
    assert "p-value" in ax.get_ylabel()


def test_similarity_is_the_correlation_without_own_genes_and_greys_what_has_no_effect():
    table = effects_table(3)
    silent = table["perturbation"] == "p2"
    table.loc[silent, ["lower", "upper"]] = [-1.0, 1.0]
    ax = pyrocell.pl.similarity(table)
    names = [label.get_text() for label in ax.get_yticklabels()]
    shown = pd.DataFrame(ax.images[0].get_array(), names, names)
    wide = table.pivot(index="gene", columns="perturbation", values="mean").drop("gene0")
    assert shown.at["gene0", "p2"] == pytest.approx(wide["gene0"].corr(wide["p2"]))
    grey = [t.get_text() for t in ax.get_yticklabels() if t.get_color() == "0.6"]
    assert grey == ["p2"]


def test_a_course_has_every_time_and_one_time_is_refused_with_the_remedy():
    table = effects_table(3)
    course = pd.concat([table, table.assign(time=4.0, mean=table["mean"] + 1)])
    ax = pyrocell.pl.time_course(course, "gene2", "p2")
    rows = course[(course["perturbation"] == "p2") & (course["gene"] == "gene2")]
    np.testing.assert_allclose(ax.lines[0].get_ydata(), rows["mean"])
    with pytest.raises(ScreenError, match=r"1 time, and a course needs two.*pd\.concat"):
        pyrocell.pl.time_course(table, "gene2")
    with pytest.raises(ScreenError, match="9 courses are too many"):
        many = effects_table(10)
        many = pd.concat([many, many.assign(time=4.0)])
        pyrocell.pl.time_course(many, "gene2", list(many["perturbation"].unique()[:9]))


def test_history_marks_the_epoch_whose_parameters_were_kept():
    table = pd.DataFrame({"train_loss": [3.0, 2.0, 1.0], "validation_elbo": [-3.0, -1.0, -2.0]})
    ax = pyrocell.pl.history(table.assign(kept=[0.0, 1.0, 0.0]))
    assert list(ax.lines[-1].get_xdata()) == [1, 1]
    assert "epoch 1" in [text.get_text() for text in ax.get_legend().get_texts()][-1]
    assert len(pyrocell.pl.history(table).lines) == 2


def test_the_share_of_variance_between_groups_is_zero_for_groups_that_mean_nothing(fitted):
    rng = np.random.default_rng(0)
    n = fitted.adata.n_obs
    ax = pyrocell.pl.latent(fitted, pd.Series(rng.integers(0, 3, n).astype(str), name="random"))
    assert float(ax.get_title().split("\n")[-1].split("%")[0]) < 3
    z = fitted.get_latent_representation()
    ax = pyrocell.pl.latent(fitted, pd.Series((z[:, 0] > 0).astype(str), name="side"))
    assert float(ax.get_title().split("\n")[-1].split("%")[0]) > 15


def test_the_layout_of_300_perturbations_at_four_times_fits_a_page(build):
    rng = np.random.default_rng(0)
    n = 4000
    obs = pd.DataFrame({"perturbation": [f"p{i % 301}" for i in range(n)]})
    obs["perturbation"] = obs["perturbation"].replace("p300", "control").astype("category")
    obs["time"] = rng.integers(1, 5, n).astype(float)
    obs["batch"] = pd.Categorical("lane" + pd.Series(rng.integers(0, 6, n)).astype(str))
    adata = AnnData(rng.poisson(3.0, (n, 5)).astype(np.int32), obs.set_index(obs.index.astype(str)))
    ax = pyrocell.pl.layout(build(adata))
    ax.figure.draw_without_rendering()
    assert tuple(ax.figure.get_size_inches()) <= PAGE and ax.figure.get_figheight() <= PAGE[1]
    assert np.nansum(ax.images[0].get_array()) == n
    assert ax.images[0].get_array().shape == (301, 24)
    assert ax.get_ylabel() == "301 perturbations"


def test_colours_of_up_to_eight_categories_differ_in_lightness_or_hue_for_the_colour_blind():
    # Viénot et al. (1999), on linear RGB: what is left for eyes without red or green cones.
    eyes = {
        "protan": [[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]],
        "deutan": [[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]],
    }
    linear = np.array(palette(8)) ** 2.2
    for matrix in eyes.values():
        seen = np.clip(linear @ np.array(matrix).T, 0, 1) ** (1 / 2.2)
        apart = np.linalg.norm(seen[:, None] - seen[None], axis=-1) + np.eye(8)
        assert apart.min() > 0.1


def test_numbers_on_logarithmic_axes_show_where_a_dollar_sign_is_a_letter(fitted):
    """Reports draw so, since labels of cells may hold one."""
    check = fitted.posterior_predictive_check(n_samples=5)
    moved = tables(20)["steady_screen"]
    with plt.rc_context({"text.parse_math": False}):
        for axes in (
            pyrocell.pl.layout(fitted),
            pyrocell.pl.latent(fitted),
            pyrocell.pl.predictive_check(check),
            pyrocell.pl.steady_screen(*moved),
            pyrocell.pl.volcano(effects_table(2), "gene0"),
        ):
            figure = np.atleast_1d(axes)[0].figure
            figure.draw_without_rendering()
            assert not [t for t in figure.findobj(plt.Text) if "$" in t.get_text()]
