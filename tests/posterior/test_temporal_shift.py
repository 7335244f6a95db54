"""Shifts of perturbations: what is asked, what is refused, what adds up, and what is drawn."""

from __future__ import annotations

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest

import pyrocell
from pyrocell.errors import ScreenError, UnknownLabelError
from pyrocell.posterior.temporal_shift import aligned_courses

pytestmark = pytest.mark.filterwarnings(
    "ignore::pyrocell.errors.ScreenWarning", "ignore::UserWarning"
)


@pytest.fixture(scope="module")
def timed(make_screen, build):
    """A screen of three times whose first perturbation has the cells of the time before."""
    adata = make_screen(
        times=(1.0, 2.0, 3.0), n_cells_per_condition=60, n_controls=300, mean_library=600.0, seed=3
    )
    label, time = adata.obs["perturbation"].astype(str), adata.obs["time"]
    counts = adata.X.toarray()
    rng = np.random.default_rng(0)
    course = rng.standard_normal(adata.n_vars)  # of controls: steady in time
    late = (label == sorted(set(label) - {"control"})[0]).to_numpy()
    moved = np.exp(0.7 * np.outer(time.to_numpy() - late, course))
    adata.X = type(adata.X)(rng.poisson(3 + counts.mean(0) * moved / moved.mean()).astype(np.int32))
    model = build(adata)
    model.train(max_epochs=2, progress_bar=False, gene_level=False)
    return model


@pytest.fixture(scope="module")
def short(make_screen, build):
    """A screen of two times."""
    model = build(make_screen(times=(1.0, 2.0)))
    model.train(max_epochs=1, progress_bar=False, gene_level=False)
    return model


def test_a_delay_is_told_from_none(timed):
    table = timed.temporal_shift(n_samples=20).set_index("perturbation")
    late, *others = sorted(timed.screen.perturbations)
    assert table.loc[late, "p_delayed"] > 0.99
    assert table.loc[late, "lower"] < 1.1 and table.loc[late, "upper"] > 0.9
    assert table.loc[late, "explained"] > 0.8
    assert (table.loc[others, "explained"] < table.loc[late, "explained"]).all()
    assert (table.loc[others, "shift"].abs() < 0.3).all()


def test_columns_are_consistent(timed):
    table = timed.temporal_shift(n_samples=10)
    total = table["p_delayed"] + table["p_advanced"] + table["p_none"]
    np.testing.assert_allclose(total, 1)
    assert (table["lower"] <= table["shift"]).all() and (table["shift"] <= table["upper"]).all()
    for name in ("explained", "explained_lower", "explained_upper"):
        assert table[name].between(0, 1).all()
    assert table["testable"].all() and (table["n_times"] == 3).all()


def test_what_cannot_be_tested_says_why(make_screen, build, short):
    table = short.temporal_shift()
    assert not table["testable"].any() and table["shift"].isna().all()
    assert table["reason"].str.contains("controls at 2 times").all()
    still = build(make_screen(times=(1.0, 2.0, 3.0), n_cells_per_condition=40, n_controls=200))
    still.train(max_epochs=2, progress_bar=False, gene_level=False)
    reasons = still.temporal_shift(n_samples=5)["reason"]
    assert reasons.str.contains("genes with 20 counts|controls move by less than").all()


def test_labels_that_do_not_exist_are_refused(timed):
    name = timed.screen.perturbations[0]
    with pytest.raises(UnknownLabelError, match=f'did you mean "{name}"'):
        timed.temporal_shift([name + "x"])
    with pytest.raises(UnknownLabelError, match='media="IFNG"'):
        timed.temporal_shift(media="IFNG")


def test_aligned_courses_are_moved_back_by_the_shift(timed, short):
    name = timed.screen.perturbations[0]
    found = aligned_courses(timed.fitted, name, 0.5, timed.screen.baseline_media, 3)
    assert found["gene"].nunique() == 3
    theirs = found["group"] == name
    np.testing.assert_allclose((found["time"] - found["aligned"])[theirs], 0.5)
    np.testing.assert_allclose(found["time"][~theirs], found["aligned"][~theirs])
    with pytest.raises(ScreenError, match="controls at 2 times"):
        media = short.screen.baseline_media
        aligned_courses(short.fitted, short.screen.perturbations[0], 0.5, media, 3)


def test_the_figure_draws_a_panel_for_each_gene(timed):
    table = timed.temporal_shift(n_samples=5)
    axes = pyrocell.pl.temporal_shift(timed, table, n_genes=4)
    assert len(axes) == 4
    axes[0].figure.draw_without_rendering()
    _, own = plt.subplots(1, 2)
    axes = pyrocell.pl.temporal_shift(timed, table, timed.screen.perturbations[1], 2, axes=own)
    assert axes[0] is own[0]
    plt.close("all")
