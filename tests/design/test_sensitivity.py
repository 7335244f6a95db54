"""What is concluded of aliased contrasts, by how wide batch noise is taken to be."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pyrocell import design, pl
from pyrocell.errors import DesignError, ScreenWarning
from pyrocell.posterior.gene_level.batch_noise import _WEIGHT
from pyrocell.posterior.unidentified import resample_unidentified

pytestmark = pytest.mark.filterwarnings("ignore::pyrocell.errors.ScreenWarning")
KEYS = ["contrast", "perturbation", "media"]


@pytest.fixture(scope="module")
def lanes(make_screen, build):
    """Each medium in lanes of its own: its effect and batch noise cannot be told apart."""
    cells = np.zeros((2, 4, 1, 4), int)  # media, control and perturbations, times, batches
    cells[0, :, 0, :2], cells[1, :, 0, 2:] = 40, 40
    with pytest.warns(ScreenWarning, match="medium0"):
        model = build(make_screen(media=1, n_batches=4, batch_sd=0.1, cells=cells, media_rms=0.5))
    model.train(max_epochs=4, progress_bar=False)
    return model


@pytest.fixture(scope="module")
def table(lanes):
    return design.noise_sensitivity(lanes, ratios=(0.25, 1.0, 4.0, 1000.0), least_inflation=1.0)


def test_conclusions_weaken_as_batch_noise_widens_where_it_is_aliased(table):
    aliased = table[~table["estimable"]]
    assert set(aliased["contrast"]) == {"media"}
    called = aliased.sort_values("ratio")["called"].to_numpy()
    assert called[0] > 0 and (np.diff(called) <= 0).all() and called[-1] == 0


def test_with_batch_noise_without_bound_an_aliased_contrast_is_its_prior(table):
    """Between an effect of sd τ and noise of sd n τ the sum tells a share 1 / (1 + n²)."""
    row = table[~table["estimable"]].sort_values("ratio").iloc[-1]
    prior = row["sd"]
    assert row["size"] < 0.01 * prior
    before = table[~table["estimable"]].sort_values("ratio").iloc[0]
    assert before["sd"] < prior


def test_what_is_measured_within_batches_hardly_depends_on_batch_noise(table):
    within = table[table["contrast"] == "perturbation"]
    spread = within.groupby(KEYS)["sd"].agg(["min", "max"])
    assert (spread["max"] < 1.1 * spread["min"]).all()


def test_only_contrasts_that_batch_noise_inflates_are_listed(lanes, table):
    few = design.noise_sensitivity(lanes, ratios=(1.0,), least_inflation=100.0)
    assert set(few["contrast"]) == {"media"} and set(few["ratio"]) == {1.0}
    assert (table["inflation"] >= 1).all()
    assert (table.loc[table["ratio"] == 1, "kept"].dropna() == 1).all()


def test_no_row_of_an_aliased_contrast_is_sure(lanes):
    """The layout names it, and what cannot be tested keeps its prior to the last digit."""
    named = lanes.screen.aliased_contrasts
    assert (named["name"] == "medium0").any()
    found = lanes.assumptions(n_samples=1)
    untold = found[~found["testable"]]
    assert (untold["posterior"] == untold["prior"]).all() and (untold["reason"] != "").all()


def test_sensitivity_needs_batches_and_ratios_above_zero(lanes, make_screen, build):
    with pytest.raises(DesignError, match="ratios"):
        design.noise_sensitivity(lanes, ratios=(0.0, 1.0))
    model = build(make_screen(n_batches=1))
    with pytest.raises(DesignError, match="one batch"):
        design.noise_sensitivity(model)


def test_the_figure_has_a_line_per_contrast(table):
    ax = pl.noise_sensitivity(table)
    contrasts = table.groupby([*KEYS, "time"], dropna=False).ngroups
    assert len(ax.get_lines()) == contrasts + 1
    with pytest.raises(DesignError, match="empty"):
        pl.noise_sensitivity(table.iloc[:0])


def test_draws_move_where_the_counts_are_blind_and_nowhere_else(lanes):
    """Log means of all cells stay, the split of response and batch noise does not."""
    model, guide = lanes.module.model, lanes.module.guide
    assert model.noise.unidentified.shape == (1, 4 + 1 + 3)
    cells = lanes._cells.rows(np.arange(len(lanes.adata)))
    with torch.no_grad():
        before = guide.globals()
        after = resample_unidentified(model, before)
        level = [
            values["V.baseline"] + model.cell_shift(values, cells["condition"], cells["batch"])
            for values in (before, after)
        ]
    torch.testing.assert_close(*level)
    assert (after["eta"] - before["eta"]).abs().max() > 0.01
    torch.testing.assert_close(after["eta"].sum(0), torch.zeros(12), rtol=0, atol=1e-5)


def test_the_posterior_of_an_aliased_response_is_its_prior_given_the_sum(lanes):
    """Response and noise are anticorrelated; between them the sum is split as the priors say."""
    fit = lanes.fitted
    model = lanes.module.model
    rows = [lanes.screen.condition_of("control", m) for m in ("baseline", "medium0")]
    response, noise = [], []
    for values in fit.posterior.draws(300):
        shift = model.shift(values, model.conditions)
        response.append((shift[rows[1]] - shift[rows[0]]).detach().numpy())
        eta = values["eta"].detach().numpy()
        noise.append(eta[2:].mean(0) - eta[:2].mean(0))
    response, noise = np.array(response), np.array(noise)
    # The response's prior is so wide that the noise keeps its own: s, of a mean of two against two,
    # with what four batches leave unknown of it (`NoiseFit.unsure_prior`). Draws take turns among
    # the kept states, which are what a standard deviation is known from.
    freedom = len(lanes.screen.batches) + _WEIGHT
    width = lanes._level_counts.eta_width[-1] * np.sqrt(freedom / (freedom - 2))
    error = 1 / np.sqrt(2 * len(lanes.module.gene_level))
    np.testing.assert_allclose(noise.std(0), width, rtol=4 * error)  # of 12 genes
    assert noise.std(0).mean() == pytest.approx(width.mean(), rel=3 * error / np.sqrt(len(width)))
    apart = [(x - x.mean(0)).ravel() for x in (response, noise)]
    assert np.corrcoef(*apart)[0, 1] < -0.5
    assert (response + noise).std(0).mean() < response.std(0).mean()


def test_where_nothing_is_aliased_draws_are_the_guide_s(fitted):
    assert not fitted.module.model.can_resample
