"""Simulation-based calibration: exact posteriors pass, narrow and shifted ones are told."""

from __future__ import annotations

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

import pyrocell
from pyrocell.diagnostics.calibration import (
    coverage_table,
    ecdf_band,
    ecdf_difference,
    rank_table,
    simulation_based_calibration,
)
from pyrocell.errors import ScreenError
from pyrocell.metrics import reliability_table

N_DRAWS = 99


def conjugate(n: int, entries: int = 1, width: float = 1.0, bias: float = 0.0, seed: int = 0):
    """Normal mean with a normal prior: draws of the exact posterior, or of a wrong one.

    The entries of a fit share half of their error, as genes share a control.
    """
    rng = np.random.default_rng(seed)
    for _ in range(n):
        truth = rng.standard_normal(entries)
        noise = np.sqrt(0.5) * (rng.standard_normal() + rng.standard_normal(entries))
        mean, sd = (truth + noise) / 2, np.sqrt(0.5)  # by entry: prior 1, noise 1
        draws = mean + bias + width * sd * rng.standard_normal((N_DRAWS, entries))
        yield {"mean": (truth, draws)}


@pytest.mark.parametrize("entries", [1, 40])
def test_exact_posteriors_stay_in_the_band_and_cover(entries):
    ranks = rank_table(conjugate(200, entries))
    assert ecdf_difference(ranks)["inside"].all()
    for row in coverage_table(ranks).itertuples():
        assert abs(row.share - row.level) < 3 * row.standard_error
        assert (row.n, row.n_replicates) == (200 * entries, 200)


@pytest.mark.parametrize(("entries", "n"), [(1, 200), (40, 30)])
@pytest.mark.parametrize("wrong", [{"width": 0.6}, {"width": 1.8}, {"bias": 0.6}])
def test_wrong_posteriors_leave_the_band(entries, n, wrong):
    assert not ecdf_difference(rank_table(conjugate(n, entries, **wrong)))["inside"].all()


def test_narrow_posteriors_cover_too_little():
    table = coverage_table(rank_table(conjugate(200, width=0.6))).set_index("level")
    assert table.share[0.9] < 0.9 - 4 * table.standard_error[0.9]


@pytest.mark.parametrize("n", [20, 200])
def test_the_band_of_independent_ranks_has_its_level(n):
    band, rng = ecdf_band(n, N_DRAWS), np.random.default_rng(1)
    ranks = rng.integers(0, N_DRAWS + 1, (1000, n))
    below = (ranks[:, :, None] < np.arange(1, N_DRAWS + 1)).mean(1) - band["z"].to_numpy()
    inside = (below >= band["lower"].to_numpy() - 1e-9) & (below <= band["upper"].to_numpy() + 1e-9)
    assert 0.93 <= inside.all(1).mean() <= 0.98


def test_the_band_of_clustered_ranks_has_about_its_level():
    exact = [rank_table(conjugate(30, 20, seed=seed)) for seed in range(30)]
    inside = np.mean([ecdf_difference(ranks)["inside"].all() for ranks in exact])
    assert inside >= 0.85
    independent = [ranks.assign(replicate=np.arange(len(ranks))) for ranks in exact]
    naive = np.mean([ecdf_difference(ranks)["inside"].all() for ranks in independent])
    assert naive < inside  # taking them for independent would cry wolf


def test_ranks_count_the_draws_below_the_truth():
    draws = np.arange(10.0)[:, None] + [0.0, 100.0]
    ranks = rank_table([{"a": (np.array([4.5, 4.5]), draws)}])
    assert ranks["rank"].tolist() == [5, 0] and (ranks["n_draws"] == 10).all()
    with pytest.raises(ScreenError, match="no replicates"):
        rank_table([])


@pytest.mark.filterwarnings("ignore::pyrocell.errors.ScreenWarning")
def test_a_model_is_calibrated_on_screens_of_its_own_layout(make_screen, build):
    model = build(make_screen(media=1, times=(1.0, 2.0), n_batches=3))
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    state = torch.random.get_rng_state()
    options = {"n_replicates": 2, "n_draws": 9, "max_epochs": 2, "progress_bar": False}
    ranks = simulation_based_calibration(model, **options)
    numbers = ranks[ranks.replicate == 0].groupby("quantity").size().to_dict()
    assert numbers == {"effect": 36, "eta": 36, "gain": 3, "log_rate": 4}
    assert ranks["rank"].between(0, 9).all() and ranks["replicate"].nunique() == 2
    assert ranks.groupby("quantity").truth.nunique().min() > 1
    for name, value in model.module.state_dict().items():
        torch.testing.assert_close(value, before[name], equal_nan=True)
    assert torch.equal(torch.random.get_rng_state(), state)
    again = simulation_based_calibration(model, **options)
    assert again["rank"].equals(ranks["rank"])


def test_figures_draw_what_the_tables_say():
    ranks = rank_table(conjugate(50))
    for draw in (pyrocell.pl.rank_histogram, pyrocell.pl.ecdf_difference):
        axes = draw(ranks)
        assert axes[0].get_title().startswith("mean")
        _, own = plt.subplots()
        assert draw(ranks, "mean", axes=[own])[0] is own
        own.figure.draw_without_rendering()
        with pytest.raises(ScreenError):
            draw(ranks, axes=[])
        with pytest.raises(ScreenError, match="rank"):
            draw(ranks.drop(columns="rank"))
    heights = [patch.get_height() for patch in pyrocell.pl.rank_histogram(ranks)[0].patches]
    assert sum(heights[-20:]) == 50
    rng = np.random.default_rng(0)
    forecast = rng.random(200)
    table = reliability_table(rng.random(200) < forecast, forecast)
    ax = pyrocell.pl.reliability(table)
    np.testing.assert_allclose(ax.lines[1].get_ydata(), table["observed"])
    with pytest.raises(ScreenError, match="reliability_table"):
        pyrocell.pl.reliability(ranks)
    plt.close("all")
