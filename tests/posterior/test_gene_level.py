"""Laws of the gene-level posterior: what counts say of effects, and what they do not."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from anndata import AnnData
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import false_discovery_control, nbinom, norm

from pyrocell import PyroCell
from pyrocell.contrasts.levels import condition_levels
from pyrocell.errors import ScreenError, ScreenWarning
from pyrocell.posterior.arviz import labelled
from pyrocell.posterior.effect_checks import common_effect, disagreement, shuffled
from pyrocell.posterior.effects import effect_draws, expected_false_signs
from pyrocell.posterior.gene_level import kernels
from pyrocell.posterior.gene_level.fit import fit_gene_level
from pyrocell.posterior.gene_level.overdispersion import pooled_overdispersion
from pyrocell.posterior.gene_level.prior import SCALES, components, walk_root
from pyrocell.report import convergence
from pyrocell.training.best_epoch import KEPT, BestEpoch, mark

GENES = 60


def counted(
    rng: np.random.Generator,
    effects: np.ndarray,
    n: int = 60,
    n_controls: int = 120,
    n_batches: int = 2,
    vary: float = 0.0,
    depth: float = 600.0,
    theta: float = 3.0,
) -> AnnData:
    """Negative-binomial cells with log-fold changes (P, G) that vary between batches by `vary`."""
    n_perturbations, n_genes = effects.shape
    base = rng.normal(0, 1, n_genes)
    base -= np.log(np.exp(base).sum())
    label = np.r_[np.full(n_controls, -1), np.repeat(np.arange(n_perturbations), n)]
    batch = rng.integers(0, n_batches, len(label))
    eta = rng.normal(0, 0.15, (n_batches, n_genes))
    each = effects + vary * rng.normal(size=(n_batches, *effects.shape))
    level = base + eta[batch] + np.where(label[:, None] >= 0, each[batch, label], 0)
    size = depth * np.exp(rng.normal(0, 0.3, len(label)))
    mean = size[:, None] * np.exp(level)
    counts = rng.poisson(mean * rng.gamma(theta, 1 / theta, mean.shape))
    names = np.array(["control", *(f"P{p}" for p in range(n_perturbations))])
    obs = pd.DataFrame(
        {"perturbation": names[label + 1], "batch": [f"b{b}" for b in batch]},
        index=[f"c{i}" for i in range(len(label))],
    )
    out = AnnData(sp.csr_matrix(counts.astype(np.float32)), obs)
    out.var_names = [f"g{g}" for g in range(n_genes)]
    return out


@pytest.fixture(scope="module")
def known(build) -> SimpleNamespace:
    """A model of 8 perturbations: half move ten genes by .8, half none."""
    rng = np.random.default_rng(0)
    truth = np.zeros((8, GENES))
    for p in range(4):
        moved = rng.choice(GENES, 10, replace=False)
        truth[p, moved] = 0.8 * np.resize([1, -1], 10)
    adata = counted(rng, truth, n=80)
    model = build(adata)
    model.train(max_epochs=10, progress_bar=False)
    return SimpleNamespace(model=model, truth=truth, adata=adata)


def table_of(effects: pd.DataFrame, column: str) -> np.ndarray:
    """A column as (P, G), in the order of the screen."""
    return effects.pivot(index="perturbation", columns="gene", values=column)[
        [f"g{g}" for g in range(GENES)]
    ].to_numpy()


# ---------------------------------------------------------------------- the table
def test_effects_are_found_and_nulls_stay_at_zero(known):
    effects = known.model.perturbation_effects()
    mean, fdr = table_of(effects, "mean"), table_of(effects, "fdr")
    moved = known.truth != 0
    assert np.sqrt(((mean - known.truth) ** 2).mean()) < 0.6 * np.sqrt((known.truth**2).mean())
    assert np.abs(mean[~moved]).mean() < 0.05
    assert (fdr[moved] <= 0.1).mean() > 0.5
    # a list of 40 at 10%: four are expected to be false, and four standard deviations are eight
    assert (fdr[~moved] <= 0.1).sum() <= 12


def test_intervals_of_many_small_effects_hold_them_and_none_is_called_one(build):
    """Nothing can be told of single genes here: that is no certainty that there is nothing."""
    rng = np.random.default_rng(2)
    truth = rng.normal(0, 0.1, (8, GENES))
    model = build(counted(rng, truth, n=30))
    model.train(max_epochs=3, progress_bar=False)
    effects = model.perturbation_effects()
    lower, upper = table_of(effects, "lower"), table_of(effects, "upper")
    truth = truth - np.median(truth, 1, keepdims=True)  # against what most genes do
    held = ((lower <= truth) & (truth <= upper)).mean()
    assert held > 0.8  # .00 with a spike at zero, .4 with one of sd .03
    assert effects["sd"].mean() > 0.06 and not (effects["fdr"] <= 0.1).any()


def test_effects_of_silent_perturbations_stay_surer_than_those_of_perturbations_that_move_all(
    build,
):
    rng = np.random.default_rng(3)
    truth = rng.normal(0, 0.15, (8, GENES)) * (np.arange(8) < 4)[:, None]
    model = build(counted(rng, truth, n=200))
    model.train(max_epochs=3, progress_bar=False)
    effects = model.perturbation_effects()
    sd, mean, fdr = (table_of(effects, c) for c in ("sd", "mean", "fdr"))
    assert sd[:4].mean() > 2 * sd[4:].mean() and np.abs(mean[4:]).max() < 0.05
    sure = fdr[:4] <= 0.1
    right = np.sign(mean[:4]) == np.sign(truth[:4])
    assert sure.sum() > 20 and right[sure].mean() > 0.9 and not (fdr[4:] <= 0.1).any()


def test_the_table_has_the_columns_it_promises(known):
    effects = known.model.perturbation_effects(n_samples=20)
    assert list(effects) == [
        *("perturbation", "media", "time", "gene", "mean", "sd", "lower", "upper", "lfsr"),
        *("fdr", "log2fc", "prob_direction", "count", "count_control", "few_counts"),
    ]
    np.testing.assert_allclose(effects["log2fc"], effects["mean"] / np.log(2), rtol=1e-5)
    np.testing.assert_allclose(effects["prob_direction"], 1 - effects["lfsr"], atol=1e-6)
    assert effects["lfsr"].between(0, 1).all()
    counts = pd.DataFrame.sparse.from_spmatrix(known.adata.X, columns=known.adata.var_names)
    label = known.adata.obs["perturbation"].to_numpy()
    expected = counts[label == "P3"].sum()
    mine = effects[effects["perturbation"] == "P3"].set_index("gene")["count"]
    np.testing.assert_array_equal(mine, expected[mine.index])


@given(arrays(float, st.integers(1, 30), elements=st.floats(0, 1)), st.data())
def test_fdr_is_the_mean_of_lfsr_over_the_list_that_ends_there(lfsr, data):
    usable = data.draw(arrays(bool, len(lfsr)))
    found = expected_false_signs(lfsr, usable)
    for i in np.flatnonzero(usable):
        order = np.flatnonzero(usable)[np.argsort(lfsr[usable], kind="stable")]
        until = order[: list(order).index(i) + 1]
        assert found[i] == pytest.approx(lfsr[until].mean(), abs=1e-6)
    assert (found[~usable] == 1).all()


def test_a_gene_without_counts_is_never_listed(make_screen, build):
    adata = make_screen()
    dense = adata.X.toarray()
    dense[:, -1] = 0
    dense[0, -1] = 1
    adata.X = sp.csr_matrix(dense)
    model = build(adata)
    model.train(max_epochs=1, progress_bar=False)
    effects = model.perturbation_effects(n_samples=10)
    rare = effects[effects["gene"] == adata.var_names[-1]]
    assert rare["few_counts"].all() and (rare["fdr"] == 1).all()
    free = model.perturbation_effects(shrunken=False)
    assert (free.loc[free["few_counts"], "q"] == 1).all()


# ---------------------------------------------------------------------- counts alone
def test_unshrunken_intervals_and_p_values_are_calibrated_with_ten_controls(build):
    rng = np.random.default_rng(1)
    inside, small = [], []
    for _ in range(4):
        adata = counted(rng, np.zeros((6, GENES)), n=10, n_controls=10, n_batches=1)
        free = build(adata).perturbation_effects(shrunken=False)
        well = free["count_control"] >= 20
        inside += ((free["lower"] <= 0) & (0 <= free["upper"]))[well].tolist()
        small += (free["p"] < 0.05)[well].tolist()
        assert free["mean"].abs().max() < 6
    # genes of a control share its error: 4 screens × 60 genes are the sample, not the pairs
    assert np.mean(inside) == pytest.approx(0.9, abs=0.05)
    assert np.mean(small) == pytest.approx(0.05, abs=0.03)


def test_q_is_the_adjusted_p_of_benjamini_and_hochberg(known):
    free = known.model.perturbation_effects(shrunken=False)
    usable = ~free["few_counts"]
    expected = false_discovery_control(free["p"][usable].clip(1e-300, 1))
    np.testing.assert_allclose(free["q"][usable], expected, rtol=1e-9, atol=1e-12)


def test_unshrunken_needs_no_training_and_leaves_out_what_was_not_measured(make_screen, build):
    adata = make_screen(combinations=True)
    label = adata.obs["perturbation"].astype(str)
    alone = [name for name in sorted(set(label)) if name != "control" and "+" not in name]
    first, second = alone[:2]
    label[label == second] = f"{first}+{second}"  # never alone
    adata.obs["perturbation"] = label
    model = build(adata)
    with pytest.warns(ScreenWarning, match=second):
        free = model.perturbation_effects(shrunken=False)
    assert second not in set(free["perturbation"])
    assert np.isfinite(free["mean"]).all()


# ---------------------------------------------------------------------- overdispersion
def test_overdispersion_is_found_and_bounded_for_genes_of_few_counts():
    rng = np.random.default_rng(2)
    theta, n = 2.0, 2000
    mean = np.exp(np.linspace(np.log(0.002), np.log(3.0), 120))
    counts = nbinom.rvs(theta, theta / (theta + mean), size=(n, 120), random_state=rng)
    counts[:, :3] = 0
    counts[:3, 0] = 40  # three cells that burst
    level = np.log(np.maximum(counts.mean(0), 1e-4))[None]
    zeros = np.zeros(n, np.int64)
    noise = pooled_overdispersion(sp.csc_matrix(counts.astype(float)), np.zeros(n), zeros, level)
    well = counts.sum(0) > 200
    assert np.median(noise.theta[well]) == pytest.approx(theta, rel=0.2)
    assert np.isfinite(noise.inverse).all() and noise.inverse.max() < 2000


def test_levels_of_rare_genes_stay_near_what_was_counted():
    rng = np.random.default_rng(3)
    n_conditions, n_batches, n = 8, 6, 15
    cells = n_conditions * n_batches * n
    condition = np.repeat(np.arange(n_conditions), n_batches * n)
    batch = np.tile(np.repeat(np.arange(n_batches), n), n_conditions)
    size = rng.gamma(4, 250, cells)
    counts = rng.poisson(size[:, None] * 1e-2 * rng.gamma(1, 1, (cells, 60)))
    counts[:, :20] = 0
    for g in range(20):  # in cells of groups that no other of its cells is in
        groups = rng.choice(n_conditions * n_batches, 20, False)
        counts[groups * n + rng.integers(0, n, 20), g] = rng.integers(1, 6, 20)
    levels = condition_levels(
        sp.csr_matrix(counts), counts.sum(1).astype(float), condition, batch, np.full(60, 0.1)
    )
    pooled = np.log(counts.sum(0) / counts.sum())
    assert (levels.value - pooled).max() < 3


# ---------------------------------------------------------------------- labels that mean nothing
@pytest.mark.parametrize("n_controls", [20, 200])
def test_without_effects_nothing_is_listed_however_few_the_controls(build, n_controls):
    rng = np.random.default_rng(4)
    model = build(counted(rng, np.zeros((10, GENES)), n=50, n_controls=n_controls))
    model.train(max_epochs=3, progress_bar=False)
    effects = model.perturbation_effects()
    assert (effects["fdr"] <= 0.1).mean() <= 0.002
    assert ((effects["lower"] > 0) | (effects["upper"] < 0)).mean() <= 0.1
    # the controls' error is every effect's, and no effect's own
    assert common_effect(effects) <= 0.05


def test_shuffle_check_finds_nothing_and_leaves_the_cells_alone(make_screen, build):
    adata = make_screen(seed=5, n_genes=30, n_cells_per_condition=30, n_controls=60)
    model = build(adata)
    model.train(max_epochs=1, progress_bar=False)
    before = adata.obs.copy()
    table = model.shuffle_check(max_epochs=1, progress_bar=False)
    pd.testing.assert_frame_equal(adata.obs, before)
    assert model.adata is adata and model.shuffle_check_ is table
    assert (table["verdict"] == "good").all(), table
    with pytest.raises(ScreenError, match="max_epochs=0"):
        model.shuffle_check(max_epochs=0)


def test_labels_are_shuffled_within_batch_and_medium_alone(tiny_adata):
    keys = {"batch_key": "batch", "media_key": "media", "perturbation_key": "perturbation"}
    columns = ["batch", "media", "perturbation"]
    tiny_adata.obs = tiny_adata.obs.astype({column: str for column in [*columns, "guide"]})
    before = tiny_adata.obs[columns].value_counts().sort_index()
    other = shuffled(tiny_adata.copy(), keys | {"guide_key": "guide"}, seed=1)
    pd.testing.assert_series_equal(other.obs[columns].value_counts().sort_index(), before)
    assert (other.obs["perturbation"] != tiny_adata.obs["perturbation"]).any()
    same = other.obs["guide"].astype(str).str.split("_g").str[0]
    assert (same == other.obs["perturbation"].astype(str)).all()


def test_the_two_tables_agree_and_a_common_shift_is_seen(known):
    checks = known.model.effect_checks().set_index("check")
    assert (checks["verdict"] == "good").all()
    effects = known.model.perturbation_effects(n_samples=10)
    free = known.model.perturbation_effects(shrunken=False)
    wrong = effects.assign(mean=np.where(effects["gene"].isin(["g0", "g1", "g2"]), 3.0, 0.0))
    assert disagreement(wrong, free) > disagreement(effects, free)
    assert common_effect(wrong) == pytest.approx(3 * np.sqrt(3 / GENES))


# ---------------------------------------------------------------------- one posterior
def test_draws_of_the_table_are_those_of_the_sites(known):
    model = known.model
    fit, names = model.fitted, list(model.screen.perturbations)
    table = effect_draws(fit, names, "baseline", None, 4)
    for i, values in enumerate(model.posterior.draws(4)):
        found = model.module.model.low_rank(values, "P")[:, 0] + values["P.residual"][:, 0]
        found = (found + values["P.common"]).detach().numpy()
        slope = model.module.gene_level.array("slope")
        np.testing.assert_allclose(found * slope, table[i], atol=2e-3)


def test_a_draw_is_the_same_whoever_asks(known):
    one = known.model.posterior.draw(3)
    known.model.perturbation_effects(n_samples=5)
    two = known.model.posterior.draw(3)
    assert set(one) == set(two)
    for name, value in one.items():
        torch.testing.assert_close(value, two[name], rtol=0, atol=0)


def test_effects_are_saved_with_the_model(known, tmp_path):
    known.model.save(tmp_path / "model")
    loaded = PyroCell.load(tmp_path / "model", known.adata)
    assert loaded.programs_ == known.model.programs_
    pd.testing.assert_frame_equal(
        loaded.perturbation_effects(n_samples=20), known.model.perturbation_effects(n_samples=20)
    )


def test_perturbations_do_nothing_before_they_begin(make_screen, build):
    model = build(make_screen(times=(0.0, 1.0, 2.0)))
    model.train(max_epochs=2, progress_bar=False)
    effects = model.perturbation_effects(time=0.0, n_samples=10)
    assert (effects[["mean", "lower", "upper"]] == 0).all(axis=None)
    assert (effects["lfsr"] == 1).all()


@given(
    st.integers(1, 5),
    st.integers(0, 3),
    st.integers(0, 2),
)
def test_every_component_is_a_pattern_over_times_and_media(n_times, n_media, n_before):
    before = np.arange(n_times) < min(n_before, n_times - 1)
    root = walk_root(np.ones(n_times - 1), np.ones(n_times - 1), 0.3, before)
    found = components(root, np.where(before, 0.0, 1.0), n_media)
    assert found[0].shape == (n_times + n_media, 0)  # the spike
    for f in found:
        assert f.shape[0] == n_times + n_media and np.isfinite(f).all()
        assert not f[:n_times][before].any()  # nothing has happened yet
        assert not f.size or np.linalg.matrix_rank(f) == f.shape[1]


# ---------------------------------------------------------------------- replicates
def test_effects_that_vary_between_batches_widen_intervals_and_new_batches_more(build):
    rng = np.random.default_rng(6)
    truth = rng.normal(0, 0.5, (4, GENES)) * (rng.random((4, GENES)) < 0.5)
    widths = {}
    for vary in (0.0, 0.5):
        adata = counted(rng, truth, n=150, n_controls=300, n_batches=5, vary=vary, depth=2000.0)
        model = build(adata)
        model.train(max_epochs=2, progress_bar=False)
        noise = model.module.gene_level.array("effect_noise")
        asked = pd.DataFrame({"perturbation": ["P1"], "batch": ["new"]})
        spread = [
            np.log(model.predict(rows, n_samples=60, return_draws=True).to_numpy()[:, 0]).std(0)
            for rows in (asked, asked.drop(columns="batch"))
        ]
        widths[vary] = np.median(noise), np.median(model.perturbation_effects()["sd"]), *spread
    assert widths[0.0][0] < 0.1 and widths[0.5][0] == pytest.approx(0.5, rel=0.3)
    assert widths[0.5][1] > 2 * widths[0.0][1]
    assert np.median(widths[0.5][2]) > 1.5 * np.median(widths[0.5][3])


# ---------------------------------------------------------------------- the best epoch
def course(values: list[float]) -> tuple[BestEpoch, torch.nn.Linear]:
    """The callback after checks with these values; the parameter is the number of the check."""
    kept, model = BestEpoch(first_step=0), torch.nn.Linear(1, 1)
    for epoch, value in enumerate(values):
        with torch.no_grad():
            model.weight.fill_(epoch)
        trainer = SimpleNamespace(
            sanity_checking=False,
            global_step=1,
            current_epoch=epoch,
            callback_metrics={"validation_elbo": torch.tensor(value)},
        )
        kept.on_validation_end(trainer, model)
    return kept, model


def test_the_best_epoch_is_given_back_where_the_evidence_falls():
    rng = np.random.default_rng(7)
    up, noise = -100 - 5 * np.exp(-np.arange(30) / 5), 0.02 * rng.normal(size=30)
    kept, model = course((up - 0.1 * np.maximum(0, np.arange(30) - 12) + noise).tolist())
    epoch = kept.give_back(model)
    assert epoch == int(model.weight) and 9 <= epoch <= 16
    history = pd.DataFrame({"validation_elbo": range(30), "train_loss": 0.0})
    verdict = convergence(mark(history, epoch))
    assert verdict.verdict == "best epoch kept" and verdict.good


def test_the_last_epoch_stays_where_the_evidence_only_wavers():
    rng = np.random.default_rng(8)
    up = -100 - 5 * np.exp(-np.arange(30) / 5)
    kept, model = course((up + 0.05 * rng.normal(size=30)).tolist())
    assert kept.give_back(model) is None and int(model.weight) == 29
    assert mark(pd.DataFrame({"validation_elbo": [0.0, 1.0]}), None)[KEPT].tolist() == [0, 1]


def test_what_is_kept_outlives_a_restart():
    kept, _ = course([-5.0, -4.0, -3.0, -2.0])
    other = BestEpoch(first_step=0)
    other.load_state_dict(kept.state_dict())
    assert other.best == kept.best and other.kept.keys() == kept.kept.keys()


# ---------------------------------------------------------------------- the kernel
@given(
    st.integers(0, 400),
    st.floats(0.5, 200),
    st.floats(1e-3, 0.5),
    st.floats(-1.0, 1.0),
    st.sampled_from(SCALES),
)
def test_evidence_and_moments_of_one_row_are_those_of_quadrature(t, d, k, offset, scale):
    # beyond that another size is so much likelier that this one's moments do not matter
    assume(np.log((t + 0.5) / d) - offset < 1 + 5 * scale)
    single = lambda value: np.full(1, value, np.float32)  # noqa: E731
    shared = [single(value) for value in (t, d, k, offset, 0, 0, 0)]
    kernels._spread_one_row(1, *shared)
    out = [single(0) for _ in range(8)]
    kernels._along_one_row(
        1, np.float32(scale), shared[0], shared[2], shared[4], shared[5], shared[6], *out
    )
    w = np.linspace(-12, 12, 20_001)
    e = scale * w
    mean = d * np.exp(offset + e)
    log = t * e - (t + 1 / k) * (np.log1p(k * mean) - np.log1p(k * d * np.exp(offset)))
    log += norm.logpdf(w)
    weight = np.exp(log - log.max())
    evidence = log.max() + np.log(weight.sum() * (w[1] - w[0]))
    expected = (weight * w).sum() / weight.sum()
    sd = np.sqrt((weight * w**2).sum() / weight.sum() - expected**2)
    value, found, variance = (float(out[i][0]) for i in range(3))
    assert value == pytest.approx(evidence, abs=0.08)
    assert found == pytest.approx(expected, abs=0.12 * sd)
    assert np.sqrt(variance) == pytest.approx(sd, rel=0.12)


@given(st.floats(-30, 30))
def test_probability_above_zero_is_that_of_a_normal(z):
    assert kernels._above_zero(z) == pytest.approx(norm.cdf(z), abs=3e-7)


# ---------------------------------------------------------------------- programs
def test_programs_are_axes_with_names_and_answers_are_joint_with_them(build):
    rng = np.random.default_rng(9)
    program = rng.choice([-1, 1], (2, GENES)) * (rng.random((2, GENES)) < 0.4)
    truth = rng.choice([-0.6, 0.0, 0.6], (12, 2)) @ program
    model = build(counted(rng, truth, n=60))
    model.train(max_epochs=2, progress_bar=False, gene_level=False)
    module = model.module
    parts = module.model, module.guide, model.screen, model._cells, model._level_counts
    module.gene_level, model.programs_ = fit_gene_level(*parts, programs=2)
    assert model.programs_.rank == 2
    samples = model.posterior_samples(3)
    draws, coords, dims = labelled(samples, model.screen, module.model, [])
    assert coords["own_axis"] == ["r1", "r2", "p1", "p2"]
    for site, names in dims.items():
        for name, size in zip(names, draws[site].shape[1:], strict=True):
            assert name not in coords or len(coords[name]) == size, site
    table = effect_draws(model.fitted, ["P1"], "baseline", None, 3)[:, 0]
    for i, values in enumerate(model.posterior.draws(3)):
        found = module.model.low_rank(values, "P")[:, 0] + values["P.residual"][:, 0]
        found = (found + values["P.common"]).detach().numpy()
        at = model.screen.perturbations.index("P1")
        slope = module.gene_level.array("slope")
        np.testing.assert_allclose(found[at] * slope, table[i], atol=2e-3)
    effects = model.perturbation_effects()
    order = [int(name[1:]) for name in sorted(set(effects["perturbation"]))]  # as pivoted
    assert np.corrcoef(table_of(effects, "mean").ravel(), truth[order].ravel())[0, 1] > 0.8
