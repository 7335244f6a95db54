"""Shares along a trajectory: against controls of the same batch, with intervals that cover."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from pyrocell.errors import ScreenError, ScreenWarning, UnknownLabelError
from pyrocell.metrics import coverage
from pyrocell.pseudotime import retention, trajectory_distribution, trajectory_quantiles

N = {"control": 400, "KO": 100, "inert": 100}
FUNCTIONS = [trajectory_distribution, trajectory_quantiles, retention]


def cells(seed: int = 0, power: float = 2.0, n: dict[str, int] = N) -> pd.DataFrame:
    """Pseudotime uniform in controls, and nearer to 0 in KO: P(early quarter) = ¼^(1 / power)."""
    rng = np.random.default_rng(seed)
    label = np.repeat(list(n), list(n.values()))
    value = rng.random(len(label)) ** np.where(label == "KO", power, 1.0)
    return pd.DataFrame({"perturbation": label, "pseudotime": value})


def in_two_batches(obs: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """KO mostly in the batch that lags; the batch, not KO, holds cells back."""
    rng = np.random.default_rng(seed)
    obs = obs.copy()
    late = rng.random(len(obs)) < np.where(obs["perturbation"] == "KO", 0.8, 0.2)
    obs["animal"] = np.where(late, "m2", "m1")
    obs["pseudotime"] = rng.random(len(obs)) ** np.where(late, 3.0, 1.0)
    return obs


def in_clones(seed: int, n_clones: int = 10) -> pd.DataFrame:
    """No effect, but the cells of a clone are at one stage."""
    rng = np.random.default_rng(seed)
    obs = cells(seed)
    obs["clone"] = [f"{p}_{rng.integers(n_clones)}" for p in obs["perturbation"]]
    stage = {clone: rng.random() for clone in obs["clone"].unique()}
    obs["pseudotime"] = 0.9 * obs["clone"].map(stage) + 0.1 * rng.random(len(obs))
    return obs


def row(table: pd.DataFrame, name: str) -> pd.Series:
    return table.set_index("perturbation").loc[name]


def test_the_controls_come_first_and_are_what_was_asked_for():
    table = retention(cells(), early=0.25)
    assert table["perturbation"].tolist() == ["control", "KO", "inert"]
    control = row(table, "control")
    assert control["retained"] == 0.25 and control["n"] == 400 and control["n_early"] == 100
    assert np.isnan([control["difference"], control["shuffled_lower"]]).all()


def test_retention_is_the_share_that_was_held():
    table = retention(cells())
    ko, inert = row(table, "KO"), row(table, "inert")
    assert ko["lower"] < 0.5 < ko["upper"]  # ¼^½
    assert ko["difference_lower"] > ko["shuffled_upper"]
    assert inert["shuffled_lower"] < inert["difference"] < inert["shuffled_upper"]
    assert ko["difference"] == pytest.approx(ko["retained"] - ko["control"])


def test_intervals_cover_the_truth_as_often_as_they_say():
    lower, upper, truth = [], [], []
    for seed in range(150):
        table = retention(cells(seed, n={"control": 300, "KO": 40, "inert": 40}), n_draws=300)
        for name, true in (("KO", 0.25), ("inert", 0.0)):
            lower.append(row(table, name)["difference_lower"])
            upper.append(row(table, name)["difference_upper"])
            truth.append(true)
    found = coverage(lower, upper, truth)
    assert abs(found.share - 0.9) < 3 * found.standard_error


def test_a_share_of_no_cells_has_an_interval():
    obs = cells(n={"control": 400, "inert": 12})
    obs.loc[obs["perturbation"] == "inert", "pseudotime"] = 0.9
    inert = row(retention(obs), "inert")
    assert inert["retained"] == 0 and inert["upper"] > 0.1


def test_a_batch_that_lags_does_not_pass_for_retention():
    obs = in_two_batches(cells(n={"control": 600, "KO": 300}))
    confounded, adjusted = (row(retention(obs, batch_key=key), "KO") for key in (None, "animal"))
    assert confounded["difference_lower"] > confounded["shuffled_upper"]
    assert adjusted["difference_lower"] < 0 < adjusted["difference_upper"]
    assert adjusted["shuffled_lower"] < adjusted["difference"] < adjusted["shuffled_upper"]
    shift = row(trajectory_quantiles(obs, (0.5,), batch_key="animal"), "KO")
    assert shift["shift_lower"] < 0 < shift["shift_upper"]


def test_clones_counted_as_cells_find_effects_that_are_not_there():
    excluded = {None: [], "clone": []}
    for seed in range(25):
        for key, found in excluded.items():
            table = retention(in_clones(seed), unit_key=key, n_draws=200).dropna()
            found += ((table["difference_lower"] > 0) | (table["difference_upper"] < 0)).tolist()
    assert np.mean(excluded[None]) > 0.5
    # A bootstrap of ten units is somewhat narrow: 10% nominal, two rows per screen share controls.
    assert np.mean(excluded["clone"]) < 0.25


def test_shuffling_whole_clones_gives_wider_anchors():
    obs = in_clones(0)
    cell, clone = (row(retention(obs, unit_key=key), "KO") for key in (None, "clone"))
    width = [r["shuffled_upper"] - r["shuffled_lower"] for r in (cell, clone)]
    assert width[1] > 2 * width[0]


def test_guides_that_are_in_every_batch_are_shuffled_across_them():
    obs = in_two_batches(cells())
    obs["guide"] = [f"{p}_{i % 12}" for i, p in enumerate(obs["perturbation"])]
    ko = row(retention(obs, batch_key="animal", unit_key="guide", confidence_level=0.99), "KO")
    assert ko["shuffled_lower"] < 0 < ko["shuffled_upper"]
    assert ko["difference_lower"] < 0 < ko["difference_upper"]


def test_early_states_may_be_those_of_marked_cells():
    obs = cells()
    obs["day"] = np.where(obs["pseudotime"] < 0.1, 0, 14)
    table = retention(obs, early=("day", 0))
    assert table.attrs["threshold"] == pytest.approx(0.095, abs=0.01)
    assert row(table, "control")["retained"] == pytest.approx(0.095, abs=0.02)


def test_shares_of_stretches_sum_to_one_and_controls_fill_them_evenly():
    table = trajectory_distribution(cells(), n_bins=8)
    wide = table.pivot(index="perturbation", columns="bin", values="share")
    assert np.allclose(wide.sum(axis=1), 1)
    assert np.allclose(wide.loc["control"], 1 / 8)
    assert (table["lower"] <= table["share"]).all() and (table["share"] <= table["upper"]).all()
    ends = table[table["perturbation"] == "KO"]
    assert np.allclose(ends["end"].iloc[:-1], ends["start"].iloc[1:])
    assert table.groupby("perturbation")["n"].sum().to_dict() == N


def test_quantiles_are_those_of_numpy_and_shifts_say_who_is_behind():
    obs = cells()
    asked = (0.1, 0.5, 0.9)
    table = trajectory_quantiles(obs, asked)
    for name in N:
        value = obs["pseudotime"][obs["perturbation"] == name]
        here = table[table["perturbation"] == name]
        assert np.allclose(here["value"], np.quantile(value, asked), atol=0.02)
    median = table[(table["perturbation"] == "KO") & (table["quantile"] == 0.5)].iloc[0]
    assert median["shift_upper"] < 0
    # The truth is ½²; the standard error of a median is ½ / (√n f), with a density f of 1 there.
    assert abs(median["value"] - 0.25) < 3 * 0.5 / 100**0.5
    assert median["lower"] < median["value"] < median["upper"]


def test_intervals_of_quantiles_cover_the_truth():
    lower, upper = [], []
    for seed in range(60):
        table = trajectory_quantiles(cells(seed), (0.5,), n_draws=200)
        lower.append(row(table, "KO")["shift_lower"])
        upper.append(row(table, "KO")["shift_upper"])
    found = coverage(lower, upper, np.full(60, 0.25 - 0.5))
    assert found.share > 0.9 - 3 * (0.09 / 60) ** 0.5


@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_same_seed_gives_the_same_table_and_cells_without_pseudotime_are_left_out(function):
    obs = cells()
    first = function(obs)
    extra = cells(seed=9).iloc[-5:].assign(pseudotime=np.nan)
    pd.testing.assert_frame_equal(function(pd.concat([obs, extra], ignore_index=True)), first)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"key": "dpt"}, UnknownLabelError, 'key="dpt" is not in .obs'),
        ({"perturbation_key": "gene"}, UnknownLabelError, 'perturbation_key="gene"'),
        ({"control": "NT"}, UnknownLabelError, 'did you mean "control"'),
        ({"batch_key": "lane"}, UnknownLabelError, 'batch_key="lane"'),
        ({"unit_key": "clone"}, UnknownLabelError, 'unit_key="clone"'),
        ({"confidence_level": 90}, ScreenError, "confidence_level=90"),
        ({"n_draws": 5}, ScreenError, "n_draws=5"),
    ],
)
def test_what_cannot_be_asked_is_refused(function, options, error, says):
    with pytest.raises(error, match=says):
        function(cells(), **options)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: retention(cells(), early=1.0), "early=1.0 must lie"),
        (lambda: retention(cells(), early=("day", 0)), 'early column "day"'),
        (lambda: retention(cells(), early=("perturbation", "KO")), 'no control cell .* has "KO"'),
        (lambda: trajectory_distribution(cells(), n_bins=0), "n_bins=0"),
        (lambda: trajectory_quantiles(cells(), (0.5, 1.0)), "must lie between 0 and 1"),
    ],
)
def test_options_out_of_range_are_refused(call, says):
    with pytest.raises(ScreenError, match=says):
        call()


def test_batches_without_controls_and_units_of_both_arms_are_refused():
    obs = in_two_batches(cells())
    with pytest.raises(ScreenError, match="2 units .* hold both controls and perturbed .* m1, m2"):
        retention(obs, unit_key="animal")
    obs.loc[obs["perturbation"] == "KO", "animal"] = "m3"
    with pytest.raises(ScreenError, match='batch_key="animal" have no control cells .* m3'):
        retention(obs, batch_key="animal")


def test_few_units_are_warned_of():
    obs = cells()
    obs["guide"] = [f"{p}_{i % 3}" for i, p in enumerate(obs["perturbation"])]
    with pytest.warns(ScreenWarning, match='fewer than 5 different "guide"'):
        retention(obs, unit_key="guide")
