"""Rare subtypes: planted ones are found, tails are not taken for them, and labels fit the cells."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import pyrocell
from pyrocell.diagnostics.one_mode import OneMode, g_and_h
from pyrocell.diagnostics.rare_clusters import jaccard, rare_clusters
from pyrocell.diagnostics.subtypes import subtypes_of_states
from pyrocell.errors import ScreenError, UnknownLabelError

QUICK = {"n_null": 19, "n_draws": 4}


def planted(seed: int, n: int = 600, share: float = 0.07) -> tuple[np.ndarray, np.ndarray]:
    """Normal states of five axes, and a cluster of them six sd away."""
    rng = np.random.default_rng(seed)
    x, member = rng.standard_normal((n, 5)), np.arange(n) < share * n
    x[member] = 0.6 * x[member] + 6 * np.array([0.6, 0.8, 0, 0, 0])
    return x, member


@given(st.floats(-1.5, 1.5), st.floats(0, 0.6))
def test_the_null_has_one_mode_whatever_its_skewness_and_tails(skewness, tails):
    z = np.linspace(-3.5, 3.5, 1401)
    x = g_and_h(z, np.array(skewness), np.array(tails))
    slope = np.diff(x)
    assert (slope > 0).all()
    density = stats.norm.pdf((z[1:] + z[:-1]) / 2) / slope
    turns = np.sign(np.diff(density))
    assert (np.diff(turns[turns != 0]) != 0).sum() <= 1  # up, then down


def test_the_null_has_the_covariance_and_the_tails_of_the_states():
    rng = np.random.default_rng(1)
    turn = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    x = (rng.gamma(2, 1, (4000, 3)) - 2) * [2.0, 1.0, 0.5] @ turn
    drawn = OneMode.fit(x).sample(4000, rng)
    np.testing.assert_allclose(np.cov(drawn.T), np.cov(x.T), atol=0.5)
    along = turn[0]  # of the widest axis
    assert stats.skew(drawn @ along) == pytest.approx(stats.skew(x @ along), abs=0.4)


def test_a_planted_cluster_is_found_with_its_cells():
    x, member = planted(2)
    found = subtypes_of_states(x, **QUICK)
    assert found.table["stable"].tolist().count(True) == 1
    assert jaccard((found.cells == "S1").to_numpy(), member) > 0.9
    first = found.table.iloc[0]
    assert first["p"] <= 0.05 and first["jaccard"] > 0.9 > first["jaccard_null"]
    assert first["distance"] == pytest.approx(6, abs=1)
    assert first["top_axes"].startswith(("z2 +", "z1 +"))


@pytest.mark.parametrize("kind", ["heavy", "skewed"])
def test_tails_are_not_taken_for_clusters_as_the_published_rule_does(kind):
    claimed = published = 0
    for seed in range(4):
        rng = np.random.default_rng(seed)
        draw = {
            "heavy": lambda r: r.standard_t(3, (600, 5)),
            "skewed": lambda r: r.gamma(1, 1, (600, 5)),
        }
        x = draw[kind](rng)
        claimed += _any_stable(subtypes_of_states(x, seed=seed, **QUICK))
        published += _any_stable(subtypes_of_states(x, seed=seed, n_draws=4, rule="jaccard"))
    assert claimed <= 1  # 5% each: two or more of four in one of 70 such tests
    assert published >= claimed


def _any_stable(found: pyrocell.diagnostics.subtypes.Subtypes) -> bool:
    return bool(found.table["stable"].any())


def test_draws_far_apart_hide_a_cluster():
    x, _ = planted(3)
    noise = np.random.default_rng(0).standard_normal((4, *x.shape))
    sure = subtypes_of_states(x + 0.05 * (noise - noise.mean(0)), n_null=19)
    unsure = subtypes_of_states(x + 6 * (noise - noise.mean(0)), n_null=19)
    assert _any_stable(sure) and not _any_stable(unsure)


def test_a_pruned_axis_and_the_order_of_cells_do_not_matter():
    x, _ = planted(4)
    more = np.column_stack([x, np.zeros(len(x))])
    a, b = subtypes_of_states(x, **QUICK), subtypes_of_states(more, **QUICK)
    pd.testing.assert_frame_equal(a.table, b.table)
    order = np.random.default_rng(0).permutation(len(x))
    turned = subtypes_of_states(x[order], **QUICK)
    assert jaccard((turned.cells == "S1").to_numpy(), (a.cells == "S1").to_numpy()[order]) > 0.95


def test_no_cluster_is_larger_than_asked_nor_listed_twice():
    x, _ = planted(5)
    clusters = rare_clusters(x, 0.1, 10, 0)
    assert all(10 <= c.member.sum() <= 60 for c in clusters)
    pairs = [(a, b) for i, a in enumerate(clusters) for b in clusters[:i]]
    assert all(jaccard(a.member, b.member) < 0.3 for a, b in pairs)


def test_states_that_cannot_be_clustered_are_refused():
    with pytest.raises(ScreenError, match="100 cells"):
        subtypes_of_states(np.zeros((20, 3)))
    with pytest.raises(ScreenError, match="max_share=0.5"):
        subtypes_of_states(np.zeros((200, 3)), max_share=0.5)


@pytest.mark.filterwarnings("ignore::pyrocell.errors.ScreenWarning", "ignore::UserWarning")
def test_a_model_is_asked_about_all_cells_or_those_of_a_perturbation(make_screen, build):
    adata = make_screen(n_cells_per_condition=120)
    model = build(adata)
    model.train(max_epochs=3, progress_bar=False, gene_level=False)
    before = adata.obs.copy()
    found = pyrocell.subtypes(model, n_draws=2, n_null=9)
    assert list(found.cells.index) == list(adata.obs_names)
    assert {"top_genes", "largest_batch", "p", "stable"} <= set(found.table)
    name = model.screen.perturbations[0]
    some = pyrocell.subtypes(model, name, n_draws=2, n_null=9)
    assert (adata.obs.loc[some.cells.index, "perturbation"] == name).all()
    with pytest.raises(UnknownLabelError, match=f'did you mean "{name}"'):
        pyrocell.subtypes(model, name.lower() + "x")
    pd.testing.assert_frame_equal(adata.obs, before)
