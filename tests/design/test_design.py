"""Planning: laws that every layout obeys, and layouts that obey every constraint."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pyrocell import design
from pyrocell.design.inflation import contrast_weights
from pyrocell.errors import DesignError
from pyrocell.noise.contrasts import contrast_matrix

NONE = float("nan")
ARMS = [
    [("baseline", NONE)],
    [("baseline", NONE), ("IFNG", NONE)],
    [("baseline", 1.0), ("baseline", 3.0)],
    [("baseline", 1.0), ("baseline", 3.0), ("IFNG", 1.0), ("IFNG", 3.0)],
]
NOISE = design.Noise(
    cell_variance=1.7, batch_sd=0.3, effect_sd=0.2, gain_sd=0.15, change_sd=0.1, common_sd=0.07,
    media_sd=0.5, drift_sd=0.25,
)  # fmt: skip

FEW = settings(max_examples=30)


def layout_of(cells, arms=None) -> design.Layout:
    cells = np.asarray(cells, float)
    arms = arms or ARMS[0 if cells.shape[1] == 1 else 1]
    names = [f"gene{k}" for k in range(len(cells) - 1)]
    lanes = [f"lane{b}" for b in range(cells.shape[-1])]
    return design.Layout(cells, tuple(names), tuple(design.Arm(*arm) for arm in arms), tuple(lanes))


@st.composite
def layouts(draw, least=0):
    arms = draw(st.sampled_from(ARMS))
    shape = (draw(st.integers(2, 4)), len(arms), draw(st.integers(1, 4)))
    cells = draw(arrays(float, shape, elements=st.integers(least, 9).map(float)))
    if not cells.any():
        cells[0, 0, 0] = 1.0
    return layout_of(cells, arms)


def dense(layout: design.Layout, noise: design.Noise) -> tuple[np.ndarray, np.ndarray]:
    """Covariances (prior, posterior) of all conditions, by one large solve; η sums to zero."""
    n, arms, n_batches = layout.cells.shape
    of = {name: getattr(noise, name)[0] for name in vars(noise)}
    p, a = (i.ravel() for i in np.indices((n, arms)))
    media = np.array([arm.media for arm in layout.arms])
    first = [arm == min((o for o in layout.arms if o.media == arm.media), key=lambda o: o.time)
             for arm in layout.arms]  # fmt: skip
    met = (media[:, None] == media) & (media != "baseline")
    late = np.diag(~np.array(first, bool))
    control = met * of["media_sd"] ** 2 + late * of["drift_sd"] ** 2
    effect = of["effect_sd"] ** 2 + met * of["gain_sd"] ** 2 + late * of["change_sd"] ** 2
    alike = (of["common_sd"] / of["effect_sd"]) ** 2
    cut = (p[:, None] > 0) & (p > 0)
    levels = (
        control[np.ix_(a, a)] + (cut * alike + (cut & (p[:, None] == p))) * (effect[np.ix_(a, a)])
    )
    free = levels + 1e6  # the level that is not asked about
    contrasts = contrast_matrix(n_batches, dtype=None).double().numpy()
    batches = of["batch_sd"] ** 2 * contrasts @ contrasts.T
    p, a, b = np.nonzero(layout.cells)
    row = p * arms + a
    seen = free[np.ix_(row, row)] + batches[np.ix_(b, b)]
    seen += np.diag(of["cell_variance"] / layout.cells[p, a, b])
    known = free[:, row] @ np.linalg.solve(seen, free[row])
    return levels, free - known


@FEW
@given(layouts())
def test_errors_are_those_of_one_large_linear_model(layout):
    prior, posterior = dense(layout, NOISE)
    table = design.score(layout, NOISE).contrasts
    _, weights = contrast_weights(layout)
    for covariance, column in ((prior, "prior_sd"), (posterior, "posterior_sd")):
        expected = np.sqrt(np.maximum((weights @ covariance * weights.toarray()).sum(1), 0))
        np.testing.assert_allclose(table[column], expected, rtol=1e-4, atol=1e-5)


@FEW
@given(layouts(least=1))
def test_inflation_is_that_of_generalised_least_squares(layout):
    _, weights = contrast_weights(layout)
    n, arms, n_batches = layout.cells.shape
    p, a, b = np.nonzero(layout.cells)
    x = np.zeros((len(p), n * arms + n_batches))
    x[np.arange(len(p)), p * arms + a] = 1
    x[np.arange(len(p)), n * arms + b] = 1
    w = layout.cells[p, a, b][:, None]
    ask = np.c_[weights.toarray(), np.zeros((weights.shape[0], n_batches))]
    free = (ask @ np.linalg.pinv(x.T @ (w * x)) * ask).sum(1)
    x = x[:, : n * arms]
    known = (weights.toarray() @ np.linalg.inv(x.T @ (w * x)) * weights.toarray()).sum(1)
    table = design.aliasing(layout)
    np.testing.assert_allclose(table["inflation"], free / known, rtol=1e-6)


@FEW
@given(layouts())
def test_a_contrast_is_aliased_exactly_if_no_number_of_cells_tells_it_from_batch(layout):
    endless = NOISE.at(cell_variance=1e-9)
    table = design.score(layout, endless).contrasts
    aliasing = design.aliasing(layout)
    assert (table["estimable"] == aliasing["estimable"]).all()
    told = table["posterior_sd"] < 1e-3
    assert told[table["estimable"]].all()
    assert not told[~table["estimable"]].any()
    assert (aliasing["reason"].str.len() > 0).equals(~aliasing["estimable"])


def test_an_aliased_contrast_keeps_the_prior_given_its_sum_with_batch_noise():
    cells = np.zeros((2, 2, 2))
    cells[:, 0, 0] = cells[:, 1, 1] = 1e9
    table = design.score(layout_of(cells), NOISE).contrasts.set_index("contrast")
    noise, response = 2 * 0.3**2, 0.5**2
    expected = np.sqrt(noise * response / (noise + response))
    assert table.loc["media", "posterior_sd"] == pytest.approx(expected, rel=1e-4)
    assert not table.loc["media", "estimable"] and table.loc["gain", "estimable"]
    row = design.aliasing(layout_of(cells)).set_index("contrast").loc["media"]
    assert row["inflation"] == np.inf
    assert row["aliased_with"] == "lane1 against lane0"
    assert "control in IFNG in lane1; control in baseline in lane0" in row["reason"]


@FEW
@given(layouts(), st.data())
def test_more_cells_never_raise_an_error(layout, data):
    more = data.draw(arrays(float, layout.cells.shape, elements=st.integers(0, 5).map(float)))
    before = design.score(layout, NOISE).contrasts["posterior_sd"]
    after = design.score(layout_of(layout.cells + more, layout.arms), NOISE).contrasts
    assert (after["posterior_sd"] <= before + 1e-9).all()


@FEW
@given(layouts(least=1), st.integers(1, 50))
def test_controls_in_a_lane_without_never_raise_the_variance_of_an_effect(layout, n):
    without = layout.cells.copy()
    without[0, :, 0] = 0.0
    with_them = without.copy()
    with_them[0, :, 0] = n
    if not without[0].sum(-1).all():
        return
    weights = abs(contrast_weights(layout)[1])

    def variance(cells):
        held = layout_of(cells, layout.arms)
        return design.aliasing(held)["inflation"] * (weights @ (1 / cells.sum(-1).ravel()))

    before, after = variance(without), variance(with_them)
    assert (after <= before * (1 + 1e-9)).all()


@FEW
@given(layouts(), st.randoms(use_true_random=False))
def test_the_order_of_lanes_and_perturbations_does_not_matter(layout, random):
    lanes = random.sample(list(layout.batches), len(layout.batches))
    rows = [0, *random.sample(range(1, len(layout.cells)), len(layout.cells) - 1)]
    before = design.score(layout, NOISE)
    assert design.score(layout.in_order(lanes), NOISE).error == pytest.approx(before.error)
    after = design.score(layout_of(layout.cells[rows], layout.arms), NOISE)
    assert after.error == pytest.approx(before.error)


def test_classes_of_genes_are_averaged():
    layout = layout_of(np.full((3, 2, 2), 5.0))
    noisy, quiet = NOISE.at(cell_variance=9.0), NOISE.at(cell_variance=0.5)
    both = NOISE.at(cell_variance=[9.0, 0.5], share=[1, 3])
    squares = [design.score(layout, noise).error ** 2 for noise in (noisy, quiet, both)]
    assert squares[2] == pytest.approx((squares[0] + 3 * squares[1]) / 4)


def test_noise_that_follows_content_hurts_only_where_content_differs():
    even = layout_of(np.full((3, 2, 2), 50.0))
    split = np.full((3, 2, 2), 50.0)
    split[:, 0, 1] = split[:, 1, 0] = 0.0
    contents = NOISE.at(content_sd=0.5)
    assert design.score(even, contents).error == pytest.approx(design.score(even, NOISE).error)
    before, after = (design.score(layout_of(split), n).kinds["error"] for n in (NOISE, contents))
    assert after["media"] > 1.1 * before["media"]
    assert after["gain"] == pytest.approx(before["gain"], rel=0.01)


# -------------------------------------------------------------------- recommendations
def plan_of(**fields) -> design.Plan:
    apart = [pair for pair in fields.pop("apart") if set(pair) <= set(fields["media"])]
    return design.Plan(apart=apart, **fields)


@settings(max_examples=12)
@given(
    st.fixed_dictionaries(
        {
            "perturbations": st.integers(2, 12),
            "media": st.sampled_from([("baseline",), ("baseline", "IFNG"), ("baseline", "A", "B")]),
            "lanes": st.integers(3, 6),
            "cells_per_lane": st.sampled_from([400, 2000]),
            "hashing": st.booleans(),
            "arms_per_lane": st.sampled_from([None, 1, 2]),
            "apart": st.sampled_from([(), (("baseline", "IFNG"),), (("A", "B"),)]),
            "min_controls": st.sampled_from([0, 30]),
            "min_cells": st.sampled_from([1, 8]),
            "control_share": st.sampled_from([None, 0.2]),
            "libraries": st.sampled_from([1, 2]),
            "libraries_per_lane": st.sampled_from([None, 1]),
        }
    ),
    st.integers(0, 99),
)
def test_recommended_layouts_are_legal_and_beat_random_legal_ones(fields, seed):
    plan = plan_of(**fields)
    try:
        found = design.recommend(plan, NOISE, compared=False)
    except DesignError as error:
        assert "any one of these would do" in str(error)
        return
    other = design.random_layout(plan, seed)
    assert plan.violations(found.layout) == plan.violations(other) == []
    error = found.score.error
    assert error <= design.score(other, NOISE).error * (1 + 1e-6)
    assert error * (1 - found.gap) <= design.score(other, NOISE).error * (1 + 1e-6)
    assert 0 <= found.gap < 0.02


def test_the_recommendation_is_compared_with_what_labs_do():
    plan = design.Plan(30, ["baseline", "IFNG"], lanes=6, hashing=False, min_controls=50)
    found = design.recommend(plan, NOISE)
    table = found.comparison
    assert table.index[0] == "recommended" and table["ratio"].iloc[0] == 1
    assert (table["ratio"].iloc[1:] > 1.02).all()
    assert "expected error" in repr(found)
    apart = design.controls_in_one_lane(plan, found.layout)
    lanes = apart.cells[0].sum(0) > 0  # (lanes,)
    assert lanes.sum() == 2  # one of each medium
    assert not apart.cells[1:][..., lanes].any()
    assert apart.cells.sum() <= found.layout.cells.sum() + 1e-6


def test_random_layouts_are_legal_where_a_lane_can_be_filled_in_hundreds_of_ways():
    plan = design.Plan(10, ["baseline", "A", "B"], [1, 2, 3], lanes=9, arms_per_lane=3)
    layout = design.random_layout(plan, 0)
    assert len(plan.contents) == 84 and not plan.violations(layout)
    np.testing.assert_allclose(layout.cells.sum((0, 1)), plan.cells_per_lane)


def test_hundreds_of_perturbations_cost_no_more_than_a_few():
    plan = design.Plan(500, ["baseline", "IFNG"], lanes=24, hashing=False, min_controls=100)
    found = design.recommend(plan)
    assert found.gap < 0.01 and not plan.violations(found.layout)
    assert len(found.score.contrasts) == 500 * 3 + 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"min_cells": 400}, ["min_cells=400", "lanes=17 (now 8)", "min_cells=199 (now 400)"]),
        ({"min_controls": 9000, "min_cells": 50}, ["lanes=20", "min_controls=7500 (now 9000)"]),
        ({"lanes": 1, "hashing": False}, ["lanes=2 (now 1)", "hashing=False"]),
        ({"min_controls": 20_000}, ["min_controls=9", "(now 20000)"]),
    ],
)
def test_plans_that_nothing_meets_say_which_constraint_and_what_would_do(changes, words):
    plan = design.Plan(**{"perturbations": 200, "media": ["baseline", "IFNG"]} | changes)
    for ask in (design.recommend, lambda plan: design.random_layout(plan, 0)):
        with pytest.raises(DesignError) as error:
            ask(plan)
        assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"perturbations": 0}, "at least one is needed"),
        ({"perturbations": ["A", "A"]}, "A occurs twice"),
        ({"perturbations": ["A", "control"]}, 'control="control"'),
        ({"media": []}, "medium without stimulus"),
        ({"times": [-1]}, "finite numbers ≥ 0"),
        ({"lanes": 0}, "lanes=0 must be at least 1"),
        ({"apart": [("baseline", "IFNG")]}, '"IFNG" is neither a medium nor a time'),
        ({"control_share": 1.5}, "control_share=1.5"),
        ({"libraries": 50}, "libraries=50"),
        ({"media": [str(m) for m in range(15)]}, "plan them in parts"),
    ],
)
def test_plans_that_make_no_sense_are_refused(fields, words):
    with pytest.raises(DesignError, match=None) as error:
        design.Plan(**{"perturbations": 10} | fields)
    assert words in str(error.value)


def test_a_layout_that_breaks_constraints_is_told_which():
    plan = design.Plan(2, ["baseline", "IFNG"], lanes=2, hashing=False, cells_per_lane=100,
                       min_controls=10, min_cells=20)  # fmt: skip
    cells = np.zeros((3, 2, 3))
    cells[:, 0, 0], cells[1:, 1, 1], cells[:, :, 2] = 50, 30, 5
    found = " ".join(plan.violations(plan.layout(cells)))
    for words in ("lanes=2", "hashing=False", "cells_per_lane=100", "min_controls=10",
                  "min_cells=20: 5 of control in IFNG"):  # fmt: skip
        assert words in found


# -------------------------------------------------------------------- layouts in and out
def test_a_screen_and_its_layout_agree(make_screen, build):
    screen = build(make_screen(media=1, times=(1.0, 2.0), combinations=True)).screen
    layout = design.Layout.from_screen(screen)
    assert layout.cells.sum() == screen.n_cells
    assert [len(part.batches) for part in layout.components()] == [2]
    again = design.Layout.from_frame(layout.to_frame())
    np.testing.assert_array_equal(again.conditions.sort_index(), layout.conditions.sort_index())
    planned = layout.to_screen(screen.genes)
    pd.testing.assert_frame_equal(planned.aliased, screen.aliased)


def test_what_a_planned_layout_can_test_is_known_before_any_cell():
    plan = design.Plan(3, ["baseline", "IFNG"], lanes=4, hashing=False)
    screen = design.recommend(plan, compared=False).layout.to_screen()
    media = screen.aliased.set_index("contrast").loc["media"]
    assert not media["estimable"]


def test_a_lane_map_can_be_edited_and_read_again():
    plan = design.Plan(7, ["baseline", "IFNG"], [1, 2], lanes=4, libraries=2)
    layout = design.recommend(plan, compared=False).layout
    table = design.lane_map(layout)
    assert set(table["sample"]) == {"control", "library1", "library2"}
    assert (table.groupby("lane")["cells"].sum() - 10_000).abs().max() <= 12  # rounding
    again = design.read_lane_map(table, plan)
    assert np.abs(again.cells - layout.cells).max() < 1
    for column, value in (("sample", "library3"), ("media", "TNF")):
        with pytest.raises(DesignError, match=value):
            design.read_lane_map(table.assign(**{column: value}), plan)
    with pytest.raises(DesignError, match="cells"):
        design.read_lane_map(table.drop(columns="cells"), plan)


@FEW
@given(arrays(float, (4, 2, 3), elements=st.floats(0, 5)), st.integers(0, 9))
def test_whole_numbers_of_wells_keep_every_sum(cells, seed):
    cells[0, 0, 0] += 1
    layout = layout_of(cells)
    rounded = design.whole(layout, seed).cells
    assert (rounded == np.round(rounded)).all()
    assert (np.abs(rounded - cells) < 1 + 1e-6).all()
    for axis in (-1, (0, 1)):
        assert (np.abs(rounded.sum(axis) - cells.sum(axis)) < 1 + 1e-6).all()


def test_a_plate_map_fills_wells_once_and_spares_the_rim():
    plan = design.Plan(20, ["baseline", "IFNG"], lanes=4, cells_per_lane=60, min_cells=2)
    layout = design.recommend(plan, design.Noise().per_well(500, 0.1), compared=False).layout
    table = design.plate_map(layout)
    assert not table.duplicated(["plate", "well"]).any()
    assert not table["well"].str.contains("A|H|01|12").any()
    assert (table.groupby(["perturbation", "media"]).size() >= 2).all()
    with pytest.raises(DesignError, match="more plates, or edge=True"):
        design.plate_map(layout, rows=6, columns=8)


def test_more_lanes_lower_the_error_and_no_share_beats_the_free_one():
    plan = design.Plan(20, ["baseline", "IFNG"], lanes=4, hashing=False)
    curve = design.cost_curve(plan, NOISE, lanes=[1, 2, 4, 8], control_shares=[0.02, 0.2, 0.8])
    lanes = curve[curve["varied"] == "lanes"]["error"].to_numpy()
    assert np.isnan(lanes[0])  # without hashing two media need two lanes
    assert (np.diff(lanes[1:]) < 0).all()
    shares = curve[curve["varied"] == "control_share"]["error"].to_numpy()
    assert shares[1] < min(shares[0], shares[2])
    assert (shares >= lanes[2] * 0.99).all()


# -------------------------------------------------------------------- noise
def test_noise_is_read_off_a_fitted_model(fitted):
    noise = design.Noise.from_model(fitted, n_samples=20)
    assert len(noise) == 6 and noise.share.sum() == pytest.approx(1)
    assert (np.diff(noise.cell_variance) > 0).all()
    for name in ("batch_sd", "effect_sd", "gain_sd", "change_sd", "media_sd", "drift_sd"):
        assert (getattr(noise, name) > 0).all()
    assert list(noise.to_frame()["cell_variance"]) == list(noise.cell_variance)
    stated = design.Noise.from_model(fitted, n_samples=20, batch_sd=0.7)
    assert (stated.batch_sd == 0.7).all()
    layout = design.Layout.from_screen(fitted.screen)
    assert 0 < design.score(layout, noise).error < 1


def test_a_fit_says_what_batch_noise_costs(fitted):
    table = design.aliasing(fitted)
    measured = table[table["inflation"].notna()]
    assert (measured["inflation_fitted"] >= 1).all()
    assert (measured[["sampling_sd", "batch_sd"]] >= 0).all(axis=None)
    before = design.aliasing(fitted.screen)
    pd.testing.assert_frame_equal(table[list(before)], before)


@pytest.mark.filterwarnings("ignore::pyrocell.errors.ScreenWarning")
def test_one_batch_tells_nothing_of_batch_noise(make_screen, build):
    model = build(make_screen(n_batches=1))
    model.train(max_epochs=1, progress_bar=False)
    with pytest.raises(DesignError, match="batch_sd=0.1"):
        design.Noise.from_model(model, n_samples=5)
    noise = design.Noise.from_model(model, n_samples=5, batch_sd=0.1)
    assert (noise.batch_sd == 0.1).all()


def test_noise_of_counts_is_that_of_simulated_ones():
    rng = np.random.default_rng(0)
    mean, theta, state = 3.0, 2.0, 0.5
    level = mean * np.exp(state * rng.standard_normal(400_000) - state**2 / 2)
    counts = rng.poisson(level * rng.gamma(theta, 1 / theta, level.shape))
    noise = design.Noise.of_counts(mean, theta, state)
    assert noise.cell_variance[0] == pytest.approx(counts.var() / mean**2, rel=0.02)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"batch_sd": -1}, "batch_sd"),
        ({"cell_variance": 0}, "above 0"),
        ({"batch_sd": [0.1, 0.2], "cell_variance": [1, 2, 3]}, "classes"),
        ({"share": [0, 0]}, "share"),
    ],
)
def test_noise_that_makes_no_sense_is_refused(fields, words):
    with pytest.raises(DesignError, match=words):
        design.Noise(**fields)


def test_questions_that_the_arms_do_not_allow_are_refused():
    layout = layout_of(np.ones((2, 1, 2)))
    with pytest.raises(DesignError, match='"gain" needs a second medium'):
        design.score(layout, targets=["gain"])
    with pytest.raises(DesignError, match='did you mean "perturbation"'):
        design.score(layout, targets="perturbations")
