"""Pseudotime of controls and of perturbed cells: in the order of the truth, at the right stage."""

from __future__ import annotations

import builtins

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy.stats import spearmanr

from pyrocell import PyroCell, pl
from pyrocell.errors import CountError, ScreenError, ScreenWarning, UnknownLabelError
from pyrocell.pseudotime import (
    assign_pseudotime,
    pseudotime_stages,
    retention,
    trajectory_distribution,
)
from pyrocell.simulate import differentiation

ROOT = ("stage", "early")


@pytest.fixture(scope="module", params=[1, 2], ids=["linear", "branching"])
def screen(request) -> AnnData:
    return differentiation(n_lineages=request.param, seed=3)


@pytest.fixture(scope="module")
def placed(screen) -> AnnData:
    adata = screen.copy()
    assign_pseudotime(adata, ROOT, inplace=True)
    return adata


def is_control(adata: AnnData) -> np.ndarray:
    return (adata.obs["perturbation"] == "control").to_numpy()


def test_cells_come_in_the_order_in_which_they_differentiated(placed):
    truth, control = placed.uns["truth"]["progress"], is_control(placed)
    for cells in (control, ~control):
        assert spearmanr(placed.obs["pseudotime"][cells], truth[cells]).statistic > 0.9
    within = placed.obs["pseudotime_dpt"][control]
    assert spearmanr(within, truth[control]).statistic > 0.9
    assert within.max() == 1 and placed.obs["pseudotime_dpt"][~control].isna().all()


def test_perturbed_cells_are_ordered_as_well_as_controls(placed):
    truth = placed.uns["truth"]["progress"]
    inert = placed.obs["perturbation"].str.startswith("INERT").to_numpy()
    error = [
        1 - spearmanr(placed.obs["pseudotime"][cells], truth[cells]).statistic
        for cells in (is_control(placed), inert)
    ]
    assert error[1] < 1.5 * error[0]


def test_inert_cells_are_spread_as_controls_are(placed):
    # Were controls not smoothed like perturbed cells, extremes would be theirs alone.
    table = trajectory_distribution(placed, n_bins=5)
    inert = table[table["perturbation"].str.startswith("INERT")]
    truth = placed.uns["truth"]["progress"]
    edges = np.quantile(truth[is_control(placed)], np.arange(1, 5) / 5)
    for name, rows in inert.groupby("perturbation"):
        cells = placed.obs["perturbation"] == name
        true = np.bincount(np.digitize(truth[cells], edges), minlength=5) / cells.sum()
        # Cells near an edge change sides; more than a tenth of all would be a bias.
        assert np.abs(rows["share"].to_numpy() - true).max() < 0.1


def test_a_knockout_that_holds_cells_back_shows_more_retention(placed):
    table = retention(placed).set_index("perturbation")
    held = table.loc[["HOLDS", "LEAKY"]]
    assert (held["difference_lower"] > held["shuffled_upper"]).all()
    assert table.loc["HOLDS", "retained"] > table.loc["LEAKY", "retained"]
    # Of cells held before .35 at random, 5 in 7 lie before the quarter of the controls.
    for name, share in (("HOLDS", 0.8), ("LEAKY", 0.4)):
        expected = 0.25 * (1 - share) + share * (0.25 + 0.65 * 0.25 / 0.35)
        assert abs(table.loc[name, "retained"] - expected) < 3 * np.sqrt(expected / 150)


def test_shuffled_labels_show_no_retention(placed):
    outside = []
    for seed in range(10):
        shuffled = placed.obs.copy()
        order = np.random.default_rng(seed).permutation(len(shuffled))
        shuffled["perturbation"] = shuffled["perturbation"].to_numpy()[order]
        rows = retention(shuffled, n_draws=200).dropna(subset="difference")
        outside += ((rows["difference_lower"] > 0) | (rows["difference_upper"] < 0)).tolist()
    # Nominal: a tenth of 40 rows, which share controls four by four.
    assert np.mean(outside) < 0.25


def test_neighbours_far_apart_in_pseudotime_make_it_uncertain(screen):
    # Without counts enough to tell stages apart, the nearest controls are of any stage.
    faint = differentiation(mean_library=15.0, seed=3)
    sd = [assign_pseudotime(a, ROOT)["pseudotime_sd"].median() for a in (screen, faint)]
    assert sd[1] > 1.2 * sd[0]


def test_cells_unlike_any_control_are_far_from_them(screen):
    rep = np.column_stack([screen.uns["truth"]["progress"], np.zeros((screen.n_obs, 2))])
    rep = rep + 0.01 * np.random.default_rng(0).standard_normal(rep.shape)
    odd = np.flatnonzero(~is_control(screen))[:20]
    rep[odd, 1] += 1.0
    adata = AnnData(obs=screen.obs, obsm={"X_mine": rep})
    distance = assign_pseudotime(adata, ROOT, use_rep="X_mine")["pseudotime_distance"].to_numpy()
    usual = np.delete(distance, odd)
    assert distance[odd].min() > 5 > np.quantile(usual, 0.99)
    assert np.median(usual) == pytest.approx(1, abs=0.1)


def test_the_root_may_be_a_cell(screen):
    control = np.flatnonzero(is_control(screen))
    first = screen.obs_names[control[screen.uns["truth"]["progress"][control].argmin()]]
    one, marked = (assign_pseudotime(screen, root)["pseudotime"] for root in (first, ROOT))
    assert spearmanr(one, marked).statistic > 0.9


def test_nothing_of_the_users_is_changed(screen):
    adata = screen.copy()
    before = set(adata.obs), set(adata.uns), set(adata.obsm), set(adata.obsp), set(adata.varm)
    table = assign_pseudotime(adata, ROOT)
    assert (set(adata.obs), *map(set, (adata.uns, adata.obsm, adata.obsp, adata.varm))) == before
    assert (adata.X != screen.X).nnz == 0
    assert list(table.index) == list(adata.obs_names)
    assert assign_pseudotime(adata, ROOT, key_added="s", inplace=True) is None
    assert set(adata.obs) - before[0] == {"s", "s_sd", "s_distance", "s_dpt"}
    assert (set(adata.uns), set(adata.obsm), set(adata.obsp), set(adata.varm)) == before[1:]
    assert np.allclose(adata.obs["s"], table["pseudotime"])


def test_the_order_of_cells_and_the_label_of_controls_do_not_matter(screen):
    table = assign_pseudotime(screen, ROOT)
    order = np.random.default_rng(0).permutation(screen.n_obs)
    other = screen[order].copy()
    other.obs["gene"] = other.obs["perturbation"].astype(str).replace("control", "NT").to_numpy()
    again = assign_pseudotime(other, ROOT, control="NT", perturbation_key="gene")
    assert spearmanr(again["pseudotime"], table["pseudotime"].iloc[order]).statistic > 0.999


def test_depth_does_not_pass_for_progress(screen):
    rng, deep = np.random.default_rng(1), screen.copy()
    half = rng.random(deep.n_obs) < 0.5
    thinned = rng.binomial(deep.X.toarray().astype(int), np.where(half, 0.5, 1.0)[:, None])
    deep.X = thinned
    value = assign_pseudotime(deep, ROOT)["pseudotime"].to_numpy()
    truth = deep.uns["truth"]["progress"]
    bias = np.array(
        [np.mean((value - np.interp(truth, *_curve(truth, value)))[h]) for h in (half, ~half)]
    )
    assert np.abs(bias).max() < 0.03


def _curve(truth: np.ndarray, value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean pseudotime in twenty bins of progress."""
    bins = np.digitize(truth, np.linspace(0, 1, 21)[1:-1])
    grouped = pd.DataFrame({"truth": truth, "value": value}).groupby(bins).mean()
    return grouped["truth"].to_numpy(), grouped["value"].to_numpy()


def test_controls_that_the_root_does_not_reach_have_no_pseudotime(screen):
    rng = np.random.default_rng(0)
    rep = np.column_stack(
        [screen.uns["truth"]["progress"], 0.01 * rng.standard_normal(screen.n_obs)]
    )
    island = np.flatnonzero(is_control(screen) & (screen.obs["stage"] == "later"))[:50]
    rep[island] += 100
    adata = AnnData(obs=screen.obs, obsm={"X_mine": rep})
    with pytest.warns(ScreenWarning, match="50 of 600 control cells cannot be reached"):
        table = assign_pseudotime(adata, ROOT, use_rep="X_mine")
    assert np.flatnonzero(table["pseudotime"].isna()).tolist() == island.tolist()
    assert table["pseudotime_distance"].iloc[island].min() > 100
    island = np.flatnonzero(is_control(screen) & (screen.obs["stage"] == "later"))[:400]
    rep[island] += 1000
    adata.obsm["X_mine"] = rep
    with pytest.raises(ScreenError, match="raise n_neighbors=15"):
        assign_pseudotime(adata, ROOT, use_rep="X_mine")


@pytest.mark.filterwarnings("ignore::pyrocell.errors.ScreenWarning")  # one batch
def test_stages_hold_equally_many_controls_and_serve_as_time(placed):
    adata = placed.copy()
    adata.obs["stage_time"] = pseudotime_stages(adata, n_stages=4)
    assert adata.obs["stage_time"][is_control(adata)].value_counts().tolist() == [150] * 4
    means = adata.obs.groupby("stage_time")["pseudotime"].mean()
    assert (means.diff().dropna() > 0).all()
    PyroCell.setup_anndata(adata, batch_key=None, time_key="stage_time")
    model = PyroCell(adata, n_latent=2, n_response=2, n_hidden=16)
    assert len(model.screen.times) == 4 and not len(model.screen.media)


def test_cells_without_pseudotime_have_no_stage(placed):
    obs = placed.obs.copy()
    obs.iloc[:3, obs.columns.get_loc("pseudotime")] = np.nan
    stages = pseudotime_stages(obs)
    assert stages.isna().sum() == 3 and stages.nunique() == 5


def test_every_figure_draws_into_the_axes_it_is_given(placed):
    _, axes = plt.subplots(1, 2)
    assert pl.trajectory(trajectory_distribution(placed), ax=axes[0]) is axes[0]
    assert pl.retention(retention(placed), ax=axes[1]) is axes[1]
    axes[0].figure.draw_without_rendering()
    for ax in axes:
        names = [label.get_text() for label in ax.get_yticklabels()]
        assert sorted(names) == ["HOLDS", "INERT_A", "INERT_B", "LEAKY"] and names[0] == "HOLDS"
    ax = pl.retention(retention(placed), "LEAKY")
    assert [label.get_text() for label in ax.get_yticklabels()] == ["LEAKY"]
    with pytest.raises(UnknownLabelError, match='perturbation "LEAK"'):
        pl.trajectory(trajectory_distribution(placed), "LEAK")
    plt.close("all")


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"root": "cell_x"}, UnknownLabelError, 'root="cell_x" is no cell'),
        ({"root": "cell700"}, ScreenError, "marks no control cell"),
        ({"root": ("stages", "early")}, UnknownLabelError, 'did you mean "stage"'),
        ({"root": ("stage", "earl")}, UnknownLabelError, 'did you mean "early"'),
        ({"root": ("perturbation", "control")}, ScreenError, "marks every control cell"),
        ({"control": "NT"}, UnknownLabelError, 'did you mean "control"'),
        ({"perturbation_key": "gene"}, UnknownLabelError, 'perturbation_key="gene" is not in'),
        ({"layer": "counts"}, UnknownLabelError, 'layer="counts"'),
        ({"use_rep": "X_pca"}, UnknownLabelError, 'use_rep="X_pca" is not in adata.obsm'),
        ({"n_neighbors": 600}, ScreenError, "600 control cells are too few"),
    ],
)
def test_what_cannot_be_ordered_is_refused(screen, options, error, says):
    with pytest.raises(error, match=says):
        assign_pseudotime(screen, **({"root": ROOT} | options))


def test_normalised_values_are_refused(screen):
    adata = screen.copy()
    adata.X = np.log1p(adata.X.toarray())
    with pytest.raises(CountError, match="not whole numbers"):
        assign_pseudotime(adata, ROOT)


def test_too_many_stages_are_refused(placed):
    with pytest.raises(ScreenError, match="n_stages=1 must"):
        pseudotime_stages(placed, n_stages=1)
    with pytest.raises(UnknownLabelError, match="assign_pseudotime"):
        pseudotime_stages(placed, key="pseudo")


def test_scanpy_is_not_imported_with_the_package(monkeypatch, screen):
    # scvi-tools may import it; pyrocell asks for it only to order controls.
    asked, real = [], builtins.__import__

    def note(name, *args, **kwargs):
        asked.append(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", note)
    pseudotime_stages(assign_pseudotime(screen, ROOT).join(screen.obs))
    assert asked.count("scanpy") >= 1


@pytest.mark.parametrize(
    "options",
    [{"n_lineages": 3}, {"checkpoint": 1.0}, {"held": {"A": 1.5}}, {"held": {"control": 0}}],
)
def test_simulations_of_the_impossible_are_refused(options):
    with pytest.raises(ValueError, match="held=|n_lineages="):
        differentiation(**options)
