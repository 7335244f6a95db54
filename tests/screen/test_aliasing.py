"""Aliased contrasts: what a layout can tell apart, from labels alone."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st
from layouts import GENES, crossed, estimable, row, screen_of

from pyrocell.errors import ScreenWarning
from pyrocell.screen.aliasing import Layout, _design, aliased_table
from pyrocell.screen.screen import Screen

# ---------------------------------------------------------------- layout graph, aliasing


def test_a_crossed_layout_estimates_everything():
    screen = screen_of(
        crossed(
            perturbation=["control", "A", "B", "A+B"],
            media=["baseline", "M", "N"],
            time=[1.0, 2.0, 3.0],
            batch=["x", "y"],
        )
    )
    assert screen.aliased["estimable"].all()
    assert len(screen.aliased) == 2 + 2 + 4 + 2
    assert len(screen.aliased_contrasts) == 0 and len(screen.components()) == 1


def test_a_medium_that_is_a_lane_is_aliased_with_it_by_name():
    cells = crossed(perturbation=["control", "A", "B"], batch=["lane1", "lane2"])
    cells["media"] = np.where(cells["batch"] == "lane2", "IFNG", "baseline")
    with pytest.warns(ScreenWarning, match="medium IFNG was measured only in batch lane2"):
        screen = Screen.from_labels(
            GENES, cells["perturbation"], media=cells["media"], batch=cells["batch"]
        )
    found = row(screen, "media", "IFNG")
    assert not found["estimable"] and found["aliased_with"] == "lane2"
    assert all(estimable(screen, "perturbation").values())
    assert all(estimable(screen, "gain").values())  # a difference of differences
    assert len(screen.components()) == 2


def test_time_that_is_batch_hides_the_drift_and_not_the_knockouts():
    cells = crossed(perturbation=["control", "A", "B"], time=[2.0, 3.0, 4.0])
    cells["batch"] = "sample_" + (cells["time"] - 1).astype(int).astype(str)
    screen = screen_of(cells)
    assert estimable(screen, "time") == {"3": False, "4": False}
    assert all(estimable(screen, "perturbation").values())
    found = row(screen, "time", "3")
    assert found["aliased_with"] == "sample_2"
    assert found["reason"].startswith(
        "time 3 was measured only in batch sample_2, which holds no other time: drift of the "
        "control and batch noise cannot be told apart; only their sum is identified"
    )


def test_one_shared_time_per_neighbouring_batch_links_all_times():
    pairs = [(1.0, "x"), (2.0, "x"), (2.0, "y"), (3.0, "y")]
    cells = pd.concat(
        [crossed(perturbation=["control", "A"], time=[t], batch=[b]) for t, b in pairs]
    )
    assert all(estimable(screen_of(cells), "time").values())


def test_perturbations_in_a_batch_of_their_own_are_aliased_with_it():
    here = crossed(perturbation=["control", "A"], batch=["x", "y"])
    alone = crossed(perturbation=["C", "D"], batch=["z"])
    screen = screen_of(pd.concat([here, alone]))
    assert estimable(screen, "perturbation") == {"A": True, "C": False, "D": False}
    found = row(screen, "perturbation", "C")
    assert (
        found["aliased_with"] == "z" and "batch z, which holds no control cell" in found["reason"]
    )
    parts = screen.components()
    assert [part.batches for part in parts] == [("x", "y"), ("z",)]


def test_a_batch_without_control_is_estimable_through_shared_perturbations():
    here = crossed(perturbation=["control", "A"], batch=["x"])
    linked = crossed(perturbation=["A", "B"], batch=["y"])
    cells = pd.concat([here, linked])
    with pytest.warns(ScreenWarning, match="batch y has no control cells"):
        screen = Screen.from_labels(GENES, cells["perturbation"], batch=cells["batch"])
    assert all(estimable(screen, "perturbation").values())


def test_a_perturbation_never_seen_at_baseline_is_mixed_with_its_gain():
    cells = pd.concat(
        [
            crossed(perturbation=["control", "A"], media=["baseline", "M"], batch=["x"]),
            crossed(perturbation=["B"], media=["M"], batch=["x"]),
        ]
    )
    screen = screen_of(cells)
    assert estimable(screen, "perturbation") == {"A": True, "B": False}
    assert estimable(screen, "gain") == {"A × M": True, "B × M": False}
    assert row(screen, "perturbation", "B")["aliased_with"] == "B × M"
    assert "never measured in medium baseline" in row(screen, "gain", "B × M")["reason"]


def test_a_gain_without_cells_is_not_estimable():
    cells = pd.concat(
        [
            crossed(perturbation=["control", "A"], media=["baseline", "M"], batch=["x"]),
            crossed(perturbation=["B"], media=["baseline"], batch=["x"]),
        ]
    )
    found = row(screen_of(cells), "gain", "B × M")
    assert not found["estimable"] and found["reason"] == "B was never measured in medium M"


def test_a_medium_without_control_cells_is_not_estimable():
    cells = pd.concat(
        [
            crossed(perturbation=["control", "A", "B"], media=["baseline"], batch=["x"]),
            crossed(perturbation=["A", "B"], media=["M"], batch=["x"]),
        ]
    )
    screen = screen_of(cells)
    for contrast, name in (("media", "M"), ("gain", "A × M"), ("gain", "B × M")):
        found = row(screen, contrast, name)
        assert not found["estimable"] and "no control cell received medium M" in found["reason"]


def test_genes_always_perturbed_together_are_aliased_with_each_other():
    cells = crossed(perturbation=["control", "A", "B+C"], batch=["x", "y"])
    screen = screen_of(cells)
    assert estimable(screen, "perturbation") == {"A": True, "B": False, "C": False}
    assert row(screen, "perturbation", "B")["aliased_with"] == "C"


def test_doubles_with_one_single_seen_are_additive_and_estimable():
    screen = screen_of(crossed(perturbation=["control", "A", "A+B"], batch=["x", "y"]))
    assert all(estimable(screen, "perturbation").values())


def test_one_medium_that_is_not_the_baseline_serves_as_the_reference():
    cells = crossed(perturbation=["control", "A"], media=["IFNG"], batch=["x", "y"])
    with pytest.warns(ScreenWarning, match="every cell was in medium IFNG"):
        screen = Screen.from_labels(
            GENES,
            cells["perturbation"],
            media=cells["media"],
            baseline_media=None,
            batch=cells["batch"],
        )
    assert screen.media == () and screen.baseline_media == "IFNG" and not screen.baseline_observed
    assert estimable(screen, "media") == {"IFNG": False}
    assert estimable(screen, "perturbation") == {"A": True}


@st.composite
def layouts(draw) -> Layout:
    """A layout of two genes, two media, two times and three batches, with cells anywhere."""
    conditions = list(itertools.product([(), (0,), (1,), (0, 1)], [-1, 0, 1], [0, 1]))
    n = draw(st.integers(2, len(conditions)))
    chosen = [conditions[i] for i in draw(st.permutations(range(len(conditions))))[:n]]
    genotype = np.array([[float(k in g) for k in range(2)] for g, _, _ in chosen])
    present = np.array(
        draw(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=n, max_size=n))
    )
    present[:, 0] |= ~present.any(axis=1)
    kept = present.any(axis=0)
    return Layout(
        membership=sp.csr_array(genotype),
        exposure=np.array([[float(m == j) for j in range(2)] for _, m, _ in chosen]),
        time_index=np.array([t for _, _, t in chosen]),
        present=present[:, kept],
        perturbations=("A", "B"),
        media=("M", "N"),
        baseline_media="baseline",
        times=(1.0, 2.0),
        batches=tuple(np.array(["x", "y", "z"])[kept]),
    )


@given(layouts())
def test_estimable_means_in_the_row_space_of_the_design(layout):
    design, columns = _design(layout)
    dense = design.toarray()
    table = aliased_table(layout).set_index(["contrast", "name"])
    rank = np.linalg.matrix_rank(dense)
    names = {
        "perturbation": lambda i, j: layout.perturbations[i],
        "media": lambda i, j: layout.media[i],
        "gain": lambda i, j: f"{layout.perturbations[i]} × {layout.media[j]}",
        "time": lambda i, j: f"{layout.times[i]:g}",
    }
    for position, (kind, i, j) in enumerate(columns):
        if kind == "batch":
            continue
        unit = np.eye(len(columns))[position]
        in_row_space = np.linalg.matrix_rank(np.vstack([dense, unit])) == rank
        found = table.loc[(kind, names[kind](i, j))]
        assert found["estimable"] == in_row_space
        assert in_row_space == (found["reason"] == "")
