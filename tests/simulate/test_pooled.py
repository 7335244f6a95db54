"""Simulated screens: reproducible, consistent with their stated truth, writable."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

from pyrocell.simulate import ScreenSettings, screen
from pyrocell.views.rna import count_variance, dropout_logits, mean_counts, zero_probability

SMALL = ScreenSettings(n_perturbations=6, n_genes=30, n_cells_per_condition=30)
EVERYTHING = ScreenSettings(
    n_perturbations=8, n_genes=40, n_cells_per_condition=60, n_batches=4, media=2,
    blocked_fraction=0.25, times=(1.0, 2.0, 4.0), rate=0.5, drift_rms=0.2, on_target=-1.0,
    dropout=(-1.0, -0.5), mean_library=400.0, balanced=False, content_effect_sd=1.0,
)  # fmt: skip


def log_means(adata: anndata.AnnData) -> np.ndarray:
    """Log mean of every count before dropout, put together from the stated truth."""
    truth = adata.uns["truth"]
    keys = [k for k in ("perturbation", "media", "time") if k in adata.obs]
    order = pd.MultiIndex.from_frame(truth["conditions"][keys])
    condition = order.get_indexer(pd.MultiIndex.from_frame(adata.obs[keys].astype(object)))
    logits = truth["bias"] + truth["z"] @ truth["resting_loading"]
    logits = logits + truth["shift"].to_numpy()[condition]
    logits = logits + truth["eta"].loc[adata.obs["batch"]].to_numpy()
    shares = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    return np.log(truth["library"])[:, None] + shares


def test_the_same_seed_gives_the_same_screen_another_seed_another():
    first, again, other = (screen(SMALL, seed=s) for s in (1, 1, 2))
    assert (first.X != again.X).nnz == 0
    pd.testing.assert_frame_equal(first.obs, again.obs)
    pd.testing.assert_frame_equal(first.uns["truth"]["effect"], again.uns["truth"]["effect"])
    assert (first.X != other.X).nnz > 0


def test_settings_can_be_given_whole_changed_or_one_by_one():
    whole = screen(ScreenSettings(n_perturbations=3, n_genes=12, n_batches=2))
    changed = screen(ScreenSettings(n_perturbations=3, n_genes=12), n_batches=2)
    single = screen(n_perturbations=3, n_genes=12, n_batches=2)
    assert (whole.X != changed.X).nnz == (whole.X != single.X).nnz == 0


def test_a_screen_holds_raw_counts_and_the_labels_of_its_cells():
    adata = screen(SMALL, media=1, times=[1, 2])
    assert sp.isspmatrix_csr(adata.X) and np.issubdtype(adata.X.dtype, np.integer)
    assert list(adata.obs) == ["perturbation", "perturbation_type", "media", "time", "batch"]
    n = adata.obs.groupby(["perturbation", "media", "time"], observed=True).size()
    assert set(n["control"]) == {150} and set(n.drop("control")) == {30}
    assert "time" not in screen(SMALL).obs


def test_the_truth_survives_a_file(tmp_path):
    for name, settings in (("small", SMALL), ("everything", EVERYTHING)):
        adata = screen(settings)
        adata.write_h5ad(tmp_path / f"{name}.h5ad")
        read = anndata.read_h5ad(tmp_path / f"{name}.h5ad").uns["truth"]
        truth = adata.uns["truth"]
        assert set(read) == set(truth)
        for key, value in truth.items():
            if isinstance(value, pd.DataFrame) and key != "conditions":
                np.testing.assert_array_equal(read[key], value)
                assert list(read[key].index) == list(value.index)
            elif isinstance(value, np.ndarray):
                np.testing.assert_array_equal(read[key], value)


@pytest.mark.parametrize("settings", [SMALL, EVERYTHING])
def test_eta_sums_to_zero_and_is_in_the_softmax_gauge(settings):
    truth = screen(settings).uns["truth"]
    np.testing.assert_allclose(truth["eta"].sum(0), 0, atol=1e-12)
    for key in ("eta", "effect", "media_effect"):
        np.testing.assert_allclose(truth[key] @ truth["expression"], 0, atol=1e-12)


def test_active_effects_have_the_stated_size_silent_ones_none():
    truth = screen(SMALL, n_perturbations=20, effect_rms=0.3, silent_fraction=0.4).uns["truth"]
    rms = np.sqrt((truth["effect"] ** 2).mean(axis=1))
    assert truth["silent"].sum() == 8
    np.testing.assert_allclose(rms[truth["silent"]], 0)
    np.testing.assert_allclose(rms[~truth["silent"]], 0.3)


@pytest.mark.parametrize("in_rank", [True, False])
def test_effects_are_inside_a_small_rank_only_when_asked(in_rank):
    truth = screen(SMALL, n_perturbations=25, in_rank=in_rank, silent_fraction=0.0).uns["truth"]
    assert (np.linalg.matrix_rank(truth["effect"]) == 3) == in_rank
    outside = (
        truth["effect"].T
        - truth["loading"].T @ np.linalg.lstsq(truth["loading"].T, truth["effect"].T, rcond=None)[0]
    )
    assert (np.abs(outside).to_numpy().max() < 1e-12) == in_rank


def test_balanced_batches_hold_every_condition_equally():
    obs = screen(SMALL, n_cells_per_condition=31, n_batches=4).obs
    n = pd.crosstab(obs["perturbation"], obs["batch"])
    assert (n.max(axis=1) - n.min(axis=1)).max() <= 1


def test_unbalanced_batches_miss_perturbations_but_no_controls():
    adata = screen(SMALL, n_perturbations=20, n_batches=5, balanced=False, media=1)
    n = pd.crosstab([adata.obs["perturbation"], adata.obs["media"]], adata.obs["batch"])
    assert (n.loc["control"] > 0).all(axis=None)
    absent = (n.drop("control", level=0) == 0).groupby(level=0, observed=True).all()
    assert absent.any(axis=None) and (~absent).any(axis=1).all()
    assert (n.sum(axis=1).drop("control", level=0) == 30).all()


def test_blocking_perturbations_do_not_respond_to_the_medium():
    truth = screen(SMALL, media=1, blocked_fraction=0.5, silent_fraction=1.0).uns["truth"]
    conditions, shift = truth["conditions"], truth["shift"].to_numpy()
    stimulated = conditions["media"] == "medium0"
    size = pd.Series(np.abs(shift).max(1)[stimulated], conditions["perturbation"][stimulated])
    blocked = truth["gain"]["medium0"] == 0
    assert blocked.sum() == 3
    np.testing.assert_allclose(size[blocked.index[blocked]], 0)
    assert (size[[*blocked.index[~blocked], "control"]] > 0.1).all()


def test_effects_are_reached_at_the_last_time_and_grow_until_then():
    truth = screen(SMALL, times=[0.0, 1.0, 3.0], silent_fraction=0.0).uns["truth"]
    shift = truth["shift"].set_axis(pd.MultiIndex.from_frame(truth["conditions"])[:])
    for name, effect in truth["effect"].iterrows():
        over_time = shift.xs(name, level="perturbation").to_numpy()
        np.testing.assert_allclose(over_time[0], 0)
        np.testing.assert_allclose(over_time[2], effect)
        assert 0 < np.abs(over_time[1]).max() < np.abs(effect).max()


@pytest.mark.parametrize("dispersion", [2.0, np.inf])
def test_counts_follow_the_stated_truth_within_sampling_error(dispersion):
    adata = screen(EVERYTHING, dispersion=dispersion, seed=3)
    counts = adata.X.toarray().astype(float)
    log_mu = torch.from_numpy(log_means(adata))
    gate = dropout_logits(log_mu, *EVERYTHING.dropout)
    log_theta = torch.full((), min(dispersion, 1e12), dtype=torch.float64).log()
    mean, variance, empty = (
        moment.numpy()
        for moment in (
            mean_counts(log_mu, gate),
            count_variance(log_mu, log_theta, gate),
            zero_probability(log_mu, log_theta, gate),
        )
    )
    groups = [np.ones(adata.n_obs), *pd.get_dummies(adata.obs["batch"]).to_numpy().T]
    groups += list(pd.get_dummies(adata.obs["perturbation"]).to_numpy(float).T)
    select = np.stack(groups).astype(float)
    for observed, expected, spread in (
        (counts, mean, variance),
        (counts == 0, empty, empty * (1 - empty)),
    ):
        z = (select @ (observed - expected)) / np.sqrt(select @ spread)
        assert 0.85 < z.std() < 1.15
        assert np.abs(z).max() < 5
    ratio = ((counts - mean) ** 2 / variance).mean()
    assert ratio == pytest.approx(1, abs=0.03)


def test_a_pseudobulk_of_many_cells_recovers_effects_and_eta():
    adata = screen(
        n_perturbations=5, n_genes=60, n_cells_per_condition=3000, n_batches=3, effect_rms=0.3,
        silent_fraction=0.4, seed=5,
    )  # fmt: skip
    truth = adata.uns["truth"]
    share = adata.X.toarray() / truth["library"][:, None]

    def logs(cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        some = share[cells]
        return np.log(some.mean(0)), some.var(0) / len(some) / some.mean(0) ** 2

    def centred(shift: np.ndarray) -> np.ndarray:
        return shift - (shift @ truth["expression"])[:, None]

    control, noise = logs((adata.obs["perturbation"] == "control").to_numpy())
    each = [logs((adata.obs["perturbation"] == p).to_numpy()) for p in truth["effect"].index]
    effect = centred(np.stack([m for m, _ in each]) - control)
    z = (effect - truth["effect"].to_numpy()) / np.sqrt(np.stack([v for _, v in each]) + noise)
    assert z.std() < 1.2
    assert np.corrcoef(effect.ravel(), truth["effect"].to_numpy().ravel())[0, 1] > 0.98

    means = [logs((adata.obs["batch"] == b).to_numpy())[0] for b in truth["eta"].index]
    eta = centred(np.stack(means) - np.mean(means, axis=0))
    assert np.corrcoef(eta.ravel(), truth["eta"].to_numpy().ravel())[0, 1] > 0.99


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_batches": 0}, "n_batches=0"),
        ({"silent_fraction": 1.5}, "silent_fraction=1.5"),
        ({"rank": 9}, "from 1 to 8"),
        ({"times": [-1.0, 2.0]}, "none below zero"),
        ({"drift_rms": 0.1}, "needs times"),
        ({"dispersion": 0.0}, "above zero"),
        ({"on_target": -1.0, "n_genes": 3}, "a gene per perturbation"),
        ({"balanced": False, "n_controls": 2}, "raise n_controls"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        screen(SMALL, **changes)


def test_a_screen_has_the_cells_that_it_is_given():
    cells = np.random.default_rng(0).integers(0, 6, (2, 7, 1, 3))
    adata = screen(SMALL, media=1, cells=cells)
    n = pd.crosstab([adata.obs["media"], adata.obs["perturbation"]], adata.obs["batch"])
    assert len(adata) == cells.sum()
    np.testing.assert_array_equal(n.loc["baseline"].loc["control"], cells[0, 0, 0])
    np.testing.assert_array_equal(n.loc["medium0"].loc["target5"], cells[1, 6, 0])
    same = screen(SMALL, media=1).uns["truth"]
    pd.testing.assert_frame_equal(adata.uns["truth"]["effect"], same["effect"])
    with pytest.raises(ValueError, match="whole numbers"):
        screen(SMALL, cells=cells)


def test_all_perturbed_cells_share_the_common_effect():
    plain = screen(SMALL, silent_fraction=1.0).uns["truth"]["effect"]
    common = screen(SMALL, silent_fraction=1.0, common_rms=0.2).uns["truth"]["effect"]
    assert not plain.to_numpy().any()
    assert np.sqrt((common.iloc[0] ** 2).mean()) == pytest.approx(0.2)
    assert (common == common.iloc[0]).all(axis=None)
