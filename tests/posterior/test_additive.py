"""Effects of targets where cells carry several guides each."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from crowds import crowd, labels_of

from pyrocell import PyroCell
from pyrocell.errors import ScreenWarning, UnknownLabelError
from pyrocell.posterior.gene_level.additive_kernels import draw_genes
from pyrocell.posterior.gene_level.additive_sampler import AdditiveCounts, AdditiveSampler
from pyrocell.posterior.gene_level.prior import SCALES

SMALL = {"n_latent": 2, "n_response": 2, "n_hidden": 16}
pytestmark = pytest.mark.filterwarnings("ignore::pyrocell.errors.ScreenWarning")


def data_of(adata, arms: int = 0) -> AdditiveCounts:
    carried = sp.csr_array(adata.obsm["guides"].astype(np.float32))
    return AdditiveCounts(
        sp.csc_array(adata.X),
        np.log(adata.obs["depth"].to_numpy()),
        (adata.obs["batch"] == "b1").to_numpy().astype(np.int64),
        carried,
        np.full(carried.shape[1], -1),
        carried.shape[1] - arms,
        2,
    )


@pytest.fixture(scope="module")
def asked() -> PyroCell:
    """A model of a crowd, trained for two epochs; to be asked, not changed."""
    adata = crowd(seed=5, n_cells=1200)
    PyroCell.setup_anndata(adata, guide_matrix_key="guides", size_factor_key="depth")
    model = PyroCell(adata, **SMALL)
    model.train(max_epochs=2, progress_bar=False)
    return model


def truth_of(adata, table: pd.DataFrame) -> np.ndarray:
    effect = adata.uns["effect"]
    rows = table["perturbation"].str[1:].astype(int)
    return effect[rows.to_numpy(), table["gene"].astype(str).str[1:].astype(int).to_numpy()]


@pytest.mark.parametrize(
    ("total", "depth", "scale"),
    [(0, 10.0, 1.6), (0, 2.0, 0.4), (1, 1.0, 1.6), (5, 5.0, 0.4), (12, 3.0, 0.1)],
)
def test_a_draw_of_one_effect_follows_its_posterior(total, depth, scale):
    """Of a driver in one cell of known depth, against numbers on a grid; zero counts among them."""
    n_parts, draws = 1 + len(SCALES), 6000
    weights = np.full((1, n_parts), -50.0)
    weights[0, [0, 1 + SCALES.index(scale)]] = np.log(0.5)
    # the other cell carries nothing and fixes the level
    log_size = np.log(np.array([depth, 1e7]))
    carried = sp.csr_array(np.array([[1.0], [0.0]], np.float32))
    by_driver = sp.csc_array(carried)
    counts = sp.csc_array(np.array([[float(total)], [1e7]]))
    level, centre, width = np.zeros((1, 1)), np.zeros(1), np.ones(1)
    effect, component = np.zeros((1, 1), np.float32), np.zeros((1, 1), np.int8)
    found, table = [], np.zeros((4, 1, 1))
    for seed in range(draws):
        draw_genes(
            0, 1, seed, log_size, np.zeros(2, np.int64), by_driver.indptr, by_driver.indices,
            carried.indptr, carried.indices, counts.indptr, counts.indices, counts.data, level,
            centre, width, effect, component, np.zeros(1), weights, weights[0],
            np.array([1.0, *SCALES]) ** -2.0, np.array([0.03**-2]), np.array([-1]), np.zeros(1),
            np.ones(1), np.array([0.03]), np.zeros(1), np.zeros((1, n_parts)), np.zeros((2, 1)),
            np.zeros((1, 1)), table,
        )  # fmt: skip
        found.append(float(effect[0, 0]))
    grid = np.linspace(-8, 8, 20_001)
    prior = sum(np.exp(-0.5 * (grid / s) ** 2) / s for s in (0.03, scale))
    weight = prior * np.exp(total * grid - depth * np.exp(grid) - total * np.log(max(total, 1)))
    weight /= weight.sum()
    mean = weight @ grid
    sd = np.sqrt(weight @ grid**2 - mean**2)
    assert abs(np.mean(found) - mean) < 0.06 * sd + 0.01
    assert np.std(found) == pytest.approx(sd, rel=0.06, abs=0.005)
    assert abs(table[0, 0, 0] / draws - mean) < 0.05 * sd + 0.01


def test_effects_are_found_and_intervals_hold():
    adata = crowd(seed=1, n_cells=2500)
    sampler = AdditiveSampler(data_of(adata), offsets=False, seed=0)
    draws = np.stack([state.effect for state in sampler.run(64, 24)])
    truth = adata.uns["effect"]
    mean = sampler.moments()[0]
    hit = truth != 0
    assert np.sqrt(np.mean((mean - truth) ** 2)) < 0.3 * np.sqrt(np.mean(truth**2))
    lower, upper = np.percentile(draws, [5, 95], axis=0, method="weibull")
    inside = (lower - 0.03 <= truth) & (truth <= upper + 0.03)
    assert inside[hit].mean() > 0.8
    assert inside.mean() > 0.88


def test_permuted_guides_do_nothing():
    adata = crowd(seed=2, n_cells=1500)
    order = np.random.default_rng(0).permutation(adata.n_obs)
    adata.obsm["guides"] = adata.obsm["guides"][order]
    sampler = AdditiveSampler(data_of(adata), offsets=False, seed=0)
    list(sampler.run(50, 24))
    _, _, above, below = sampler.moments()
    assert (np.maximum(above, below) > 0.95).mean() < 0.005


def test_the_same_seed_gives_the_same_draws_on_any_number_of_threads(monkeypatch):
    adata = crowd(seed=3, n_cells=300, n_genes=140)

    def last(n_threads: int) -> np.ndarray:
        monkeypatch.setattr("torch.get_num_threads", lambda: n_threads)
        return list(AdditiveSampler(data_of(adata), seed=4).run(4, 3))[-1].effect

    np.testing.assert_array_equal(last(1), last(2))


def test_the_table_of_effects_is_of_targets(asked):
    table = asked.perturbation_effects(n_samples=100)
    truth = truth_of(asked.adata, table)
    assert len(table) == 26 * 30
    assert np.corrcoef(table["mean"], truth)[0, 1] > 0.9
    carried = np.asarray(asked.adata.obsm["guides"][:, 4].todense()).ravel() > 0
    counted = np.asarray(asked.adata.X[carried].sum(0)).ravel()
    mine = table[table["perturbation"] == "T04"]
    np.testing.assert_array_equal(mine["count"], counted)
    np.testing.assert_array_equal(mine["count_control"], np.asarray(asked.adata.X.sum(0)).ravel())


def test_a_set_is_the_sum_of_its_members_in_every_draw(asked):
    kept = asked.module.gene_level
    both, one, other = (
        kept.columns(kept.request([members], -1, 0), 20).draws[:, 0]
        for members in ((0, 1), (0,), (1,))
    )
    np.testing.assert_allclose(both, one + other, atol=2e-3)
    table = asked.perturbation_effects(["T04+T05", "T04+T05+T06+T07"])
    assert table["mean"].notna().all()
    assert asked.predict(pd.DataFrame({"perturbation": ["control", "T04+T05"]})).n_obs == 2


def test_a_model_file_says_the_same(asked, tmp_path):
    asked.save(tmp_path / "model")
    again = PyroCell.load(tmp_path / "model", asked.adata)
    one, other = (m.perturbation_effects(n_samples=40) for m in (asked, again))
    pd.testing.assert_frame_equal(one, other)


def test_without_a_prior_intervals_hold_and_sets_are_refused(asked):
    table = asked.perturbation_effects(shrunken=False)
    truth = truth_of(asked.adata, table)
    inside = (table["lower"] <= truth) & (truth <= table["upper"])
    assert 0.84 < inside.mean() < 0.95
    assert (table["p"] < 0.05)[truth == 0].mean() < 0.09
    with pytest.raises(UnknownLabelError, match="effects are sums"):
        asked.perturbation_effects(["T04+T05"], shrunken=False)


def test_assumptions_stay_at_their_priors_and_say_why(asked):
    table = asked.assumptions(n_samples=1)
    mine = table[table["perturbation"] == "T04"]
    assert (mine["posterior"] == mine["prior"])[~mine["testable"]].all()


def test_the_shuffle_check_permutes_guides(asked):
    found = asked.shuffle_check(max_epochs=1, n_cells=800, progress_bar=False)
    assert (found["verdict"] == "good").all()


def test_labels_of_sets_are_the_same_screen_as_a_matrix(asked):
    adata = asked.adata.copy()
    adata.obs["perturbation"] = labels_of(adata)
    adata.obs.iloc[:3, adata.obs.columns.get_loc("perturbation")] = "control"
    PyroCell.setup_anndata(adata, size_factor_key="depth")
    model = PyroCell(adata, **SMALL)
    assert model.screen.many_sets
    model.train(max_epochs=1, progress_bar=False)
    one, other = (m.perturbation_effects(n_samples=40)["mean"] for m in (asked, model))
    assert np.corrcoef(one, other)[0, 1] > 0.97


def test_a_set_with_cells_enough_keeps_its_interaction():
    adata = crowd(seed=6, n_cells=1500)
    matrix = adata.obsm["guides"].tolil()
    rows = np.arange(300)
    matrix[rows] = 0
    matrix[rows, 10] = matrix[rows, 11] = 1
    adata.obsm["guides"] = sp.csr_matrix(matrix)
    rng = np.random.default_rng(0)
    level = adata.uns["effect"][10] + adata.uns["effect"][11]
    level[:5] += 1.0  # beyond the sum
    rate = adata.obs["depth"].to_numpy()[rows, None] * np.exp(level)
    rate *= rng.gamma(4, 1 / 4, (300, 30))
    counts = adata.X.tolil()
    counts[rows] = rng.poisson(rate)
    adata.X = sp.csr_matrix(counts)
    PyroCell.setup_anndata(adata, guide_matrix_key="guides", size_factor_key="depth")
    model = PyroCell(adata, **SMALL)
    model.train(max_epochs=1, progress_bar=False)
    assert list(model.module.gene_level._layout.blocks.arms.values()) == [(6, 7)]
    table = model.perturbation_effects(["T10+T11", "T10", "T11"]).set_index("perturbation")["mean"]
    beyond = table["T10+T11"].to_numpy() - table["T10"].to_numpy() - table["T11"].to_numpy()
    assert len(beyond) == 30


def test_several_media_keep_the_variational_posterior_and_say_so():
    adata = crowd(seed=7, n_cells=900)
    adata.obs["media"] = np.where(np.arange(900) % 2, "IFNG", "baseline")
    setup = {"guide_matrix_key": "guides", "size_factor_key": "depth", "media_key": "media"}
    PyroCell.setup_anndata(adata, **setup)
    model = PyroCell(adata, **SMALL)
    with pytest.warns(ScreenWarning, match="variational posterior, whose intervals are too narrow"):
        model.train(max_epochs=1, progress_bar=False)
    assert model.module.gene_level is None
    assert len(model.perturbation_effects(n_samples=5)) == 26 * 30
