"""The screen of App. E: noise and the controls' change are out, intervals say what is left."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy.special import softmax

import pyrocell
from pyrocell.errors import ScreenError

pytestmark = pytest.mark.filterwarnings("ignore::pyrocell.errors.ScreenWarning")

FAST = {"n_draws": 100, "n_splits": 50}


def screened(adata: AnnData, setup: dict | None = None, **options: object) -> pd.DataFrame:
    """The table, from a model that was not trained."""
    pyrocell.PyroCell.setup_anndata(adata, **({"time_key": "time"} | (setup or {})))
    model = pyrocell.PyroCell(adata, n_latent=2, n_response=2, n_hidden=8)
    return model.steady_state_screen(**(FAST | options))


def simulated(seed: int = 0, **changes: object) -> AnnData:
    """6 knockouts and controls at two times in two batches; nothing moves but the controls."""
    settings = {"n_perturbations": 6, "n_genes": 60, "n_cells_per_condition": 40, "n_batches": 2}
    settings |= {"times": (1.0, 2.0), "silent_fraction": 1.0, "mean_library": 300.0}
    return pyrocell.simulate.screen(seed=seed, **(settings | {"on_target": -1.0} | changes))


def conditions(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["reference"] == "control"]


@pytest.fixture(scope="module")
def hipsc() -> pd.DataFrame:
    return screened(pyrocell.datasets.hipsc_timecourse(), {"size_factor_key": "size_factor"})


def test_raw_change_follows_the_number_of_cells_and_corrected_change_does_not(hipsc):
    table = conditions(hipsc)
    inverse = 1 / table["n_from"] + 1 / table["n_to"]
    assert np.corrcoef(inverse, table["raw"])[0, 1] > 0.85
    assert np.corrcoef(inverse, table["raw_baseline"])[0, 1] > 0.95
    assert abs(np.corrcoef(inverse, table["squared"])[0, 1]) < 0.2


def test_pou5f1_and_prdm14_still_move_on_the_last_days(hipsc):
    last = conditions(hipsc).query("time_to == 5").set_index("perturbation")
    assert list(last["rms"].nlargest(2).index) == ["POU5F1", "PRDM14"]
    assert (last.loc[["POU5F1", "PRDM14", "RUNX1T1"], "lower"] > 0).all()


def test_where_nothing_moves_the_square_is_zero_on_average():
    tables = [conditions(screened(simulated(seed, n_cells_per_condition=20))) for seed in range(10)]
    share = pd.concat(tables).eval("squared / noise**2")
    assert (share < 0).any()
    assert abs(share.mean()) < 0.1
    assert np.mean([(table["lower"] > 0).mean() for table in tables]) < 0.15


def true_change(adata: AnnData) -> pd.DataFrame:
    """Perturbations × genes: log change of mean expression beyond that of the controls."""
    truth = adata.uns["truth"]
    z = np.random.default_rng(0).standard_normal((500, len(truth["resting_loading"])))
    rest = truth["bias"] + z @ truth["resting_loading"]
    share = softmax(rest + truth["shift"].to_numpy()[:, None], axis=-1).mean(1)
    at = truth["conditions"].reset_index(drop=True).reset_index()
    at = at.pivot(index="perturbation", columns="time", values="index")
    change = np.log(share[at[2.0]] / share[at[1.0]])
    change = pd.DataFrame(change, at.index, adata.var_names)
    return change - change.loc["control"]


def test_intervals_cover_what_moves():
    tables = []
    for seed in range(12):
        moves = {"silent_fraction": 0.0, "effect_rms": 0.8, "rate": 0.5, "n_perturbations": 3}
        adata = simulated(seed, batch_sd=0.0, **moves)
        change, table = true_change(adata), conditions(screened(adata))
        names = table["perturbation"]
        table["truth"] = [np.sqrt((change.loc[p].drop(p) ** 2).mean()) for p in names]
        tables.append(table)
    table = pd.concat(tables)
    assert table["truth"].min() > 0.1
    inside = (table["lower"] <= table["truth"]) & (table["truth"] <= table["upper"])
    assert inside.mean() > 0.78  # nominal 0.9; 36 conditions, three of which share controls
    assert abs((table["rms"] - table["truth"]).mean()) < 0.03


def test_noise_of_poisson_counts_is_that_of_their_sums():
    rng = np.random.default_rng(0)
    cells, means = 50, np.linspace(1.0, 4.0, 200)
    obs = pd.DataFrame(
        [(p, t) for p in ("control", "A") for t in (1.0, 2.0) for _ in range(cells)],
        columns=["perturbation", "time"],
    )
    obs["depth"], obs["batch"] = 1.0, "b"
    adata = AnnData(
        rng.poisson(means, (len(obs), len(means))).astype(float),
        obs.set_index(obs.index.astype(str)),
    )
    row = conditions(screened(adata, {"size_factor_key": "depth"})).iloc[0]
    assert row["noise"] ** 2 == pytest.approx((4 / (cells * means)).mean(), rel=0.15)
    table = screened(adata, {"size_factor_key": "depth"}, by_gene=True)
    se = table[table["perturbation"] == "A"]["se"]
    np.testing.assert_allclose(se.mean(), np.sqrt(4 / (cells * means)).mean(), rtol=0.1)


def test_what_the_controls_do_is_no_motion_of_a_knockout():
    table = screened(simulated(n_cells_per_condition=100, drift_rms=0.8))
    controls = table[table["reference"] == "none"].iloc[0]
    assert controls["lower"] > 0.2
    assert conditions(table)["control_change"].min() > 0.2
    assert conditions(table)["rms"].max() < 0.15


def test_batch_noise_cancels_where_controls_are_in_the_batch():
    table = conditions(screened(simulated(3, batch_sd=1.5, balanced=False, n_controls=200)))
    assert table["batch_removed"].all()
    assert table["rms"].median() < 0.15


def test_batch_noise_that_stays_is_said():
    adata = simulated(batch_sd=1.5)
    controls = adata.obs["perturbation"] == "control"
    late = adata.obs["time"] == 2.0
    adata.obs["batch"] = np.where(controls, "lane1", np.where(late, "lane3", "lane2"))
    table = conditions(screened(adata))
    assert not table["batch_removed"].any()
    adata.obs["batch"] = np.where(controls, "lane1", "lane2")
    assert conditions(screened(adata))["batch_removed"].all()


def test_the_own_gene_is_left_out():
    adata = simulated()
    table = screened(adata, by_gene=True)
    table = table[table["perturbation"] != "control"]
    assert not (table["gene"] == table["perturbation"]).any()
    counts = screened(adata).set_index("perturbation")["n_genes"]
    assert counts.drop("control").to_dict() == table.groupby("perturbation").size().to_dict()


def test_a_unit_of_the_size_factor_changes_nothing():
    adata = simulated()
    adata.obs["depth"] = np.asarray(adata.X.sum(1)).ravel()
    without = screened(adata)
    with_key = screened(adata, {"size_factor_key": "depth"})
    pd.testing.assert_frame_equal(without, with_key, rtol=1e-4, atol=1e-4)
    adata.obs["depth"] *= 7.0
    scaled = screened(adata, {"size_factor_key": "depth"})
    columns = ["observed", "noise", "squared", "lower", "upper", "n_genes"]
    pd.testing.assert_frame_equal(scaled[columns], with_key[columns], rtol=1e-4, atol=1e-4)


def test_the_same_seed_gives_the_same_table():
    adata = simulated()
    pd.testing.assert_frame_equal(screened(adata, seed=4), screened(adata, seed=4))
    assert not screened(adata, seed=4).equals(screened(adata, seed=5))


def test_luck_with_the_noise_does_not_pass_for_precision():
    table = conditions(pd.concat([screened(simulated(seed)) for seed in range(4)]))
    below = table[table["squared"] < 0]
    assert len(below)
    assert (below["upper"] > 0.3 * below["noise"]).all()
    assert (table["upper"] >= table["lower"]).all()


def test_conditions_without_controls_or_cells_have_the_raw_change_only():
    adata = simulated(times=(1.0, 2.0, 3.0))
    keep = ~((adata.obs["perturbation"] == "control") & (adata.obs["time"] == 3.0))
    table = conditions(screened(adata[keep].copy()))
    late = table[table["time_to"] == 3.0]
    assert late["raw"].notna().all()
    assert late[["squared", "lower", "upper"]].isna().all(axis=None)
    assert table[table["time_to"] == 2.0]["squared"].notna().all()
    few = conditions(screened(simulated(), min_cells=41))
    assert few["raw"].notna().all() and few["squared"].isna().all()


def test_a_screen_without_two_times_is_refused_with_the_remedy():
    with pytest.raises(ScreenError, match="change needs two: register a time_key"):
        screened(pyrocell.simulate.screen(n_perturbations=2, n_genes=10), {"time_key": None})
    with pytest.raises(ScreenError, match="confidence_level=90"):
        screened(simulated(), confidence_level=90)
    with pytest.raises(ScreenError, match="min_cells=1 must be at least 2"):
        screened(simulated(), min_cells=1)
