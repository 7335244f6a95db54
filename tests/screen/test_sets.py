"""Cells with several guides: sets of targets, and which of them are sums."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from pyrocell.assumptions.testability import testability as what_can_be_tested
from pyrocell.errors import ConflictingTypesError, ScreenWarning, UnknownLabelError
from pyrocell.generative.config import number_arms
from pyrocell.screen.screen import Screen
from pyrocell.screen.sets import LEAST_CELLS, MANY_SETS, GuideSets

GENES = ["A", "B", "g0"]
pytestmark = pytest.mark.filterwarnings("ignore::pyrocell.errors.ScreenWarning")


def as_sets(rows: list[list[int]], targets: list[str]) -> GuideSets:
    indptr = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    indices = np.array([k for row in rows for k in row], np.int64)
    shape = (len(rows), len(targets))
    return GuideSets(sp.csr_array((np.ones(len(indices), bool), indices, indptr), shape), targets)


def many_rows(rng: np.random.Generator, n: int, n_guides: int, per_cell: int) -> list[list[int]]:
    return [sorted(rng.choice(n_guides, per_cell, replace=False).tolist()) for _ in range(n)]


@settings(max_examples=25)
@given(
    st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=4, unique=True), min_size=3),
    st.sampled_from(["knockout", "CRISPRi"]),
)
def test_a_matrix_says_what_labels_say(rows, kind):
    targets = ["control", "A", "A", "B", "C"]  # two guides of A
    rows = [[0], [1], *rows]
    sets = [sorted({targets[k] for k in row} - {"control"}) for row in rows]
    labels = ["+".join(found) or "control" for found in sets]
    by_matrix = Screen.from_labels(GENES, as_sets(rows, targets), perturbation_type=kind)
    by_labels = Screen.from_labels(GENES, labels, perturbation_type=kind)
    assert by_matrix.perturbations == by_labels.perturbations
    assert by_matrix.conditions.equals(by_labels.conditions)
    assert (by_matrix.membership != by_labels.membership).nnz == 0
    np.testing.assert_array_equal(by_matrix.cell_condition, by_labels.cell_condition)


def test_a_guide_of_two_genes_and_one_with_a_type_of_its_own():
    screen = Screen.from_labels(GENES, as_sets([[0], [1], [2]], ["control", "A+B", "C (CRISPRa)"]))
    assert list(screen.conditions["perturbation"]) == ["control", "A+B", "C"]
    assert dict(zip(screen.perturbations, screen.perturbation_types))["C"] == "CRISPRa"


def test_two_types_of_a_gene_in_a_cell_are_refused_with_the_number_of_cells():
    sets = as_sets([[0], [1, 2], [1]], ["control", "A (CRISPRa)", "A (CRISPRi)"])
    with pytest.raises(ConflictingTypesError, match='1 cells have guides that give gene "A"'):
        Screen.from_labels(GENES, sets)


def test_cells_with_control_guides_alone_are_controls():
    screen = Screen.from_labels(GENES, as_sets([[0], [0, 1], [0, 2]], ["control", "control", "A"]))
    np.testing.assert_array_equal(screen.is_control[screen.cell_condition], [True, True, False])


def test_few_sets_without_controls_are_refused():
    with pytest.raises(UnknownLabelError, match="guide_targets="):
        Screen.from_labels(GENES, as_sets([[0], [1]], ["A", "B"]))


def test_many_sets_need_no_controls_and_say_so():
    rows = many_rows(np.random.default_rng(0), 600, 30, 6)
    with pytest.warns(ScreenWarning, match="no cell has control guides alone"):
        screen = Screen.from_labels(GENES, as_sets(rows, [f"T{k}" for k in range(30)]))
    assert screen.many_sets


def test_sets_of_few_cells_are_sums_only_where_they_are_many():
    rng = np.random.default_rng(1)
    targets = ["control", *(f"T{k}" for k in range(29))]
    few = Screen.from_labels(GENES, as_sets([[0], *many_rows(rng, MANY_SETS - 1, 30, 6)], targets))
    assert not few.many_sets
    before, now = (number_arms(few.membership, few.exposure, a) for a in (None, few.additive))
    assert now[0] == before[0] == MANY_SETS - 1
    np.testing.assert_array_equal(now[1], before[1])
    many = Screen.from_labels(
        GENES, as_sets([[0], *many_rows(rng, 400, 30, 6), *[[1, 2]] * LEAST_CELLS], targets)
    )
    n_arms, rows = number_arms(many.membership, many.exposure, many.additive)
    assert n_arms == 1  # the set with cells enough
    assert list(many.conditions["perturbation"][rows == 0]) == ["T0+T1"]


def test_assumptions_speak_of_targets_and_not_of_thousands_of_sets():
    rows = [[0], *many_rows(np.random.default_rng(2), 900, 30, 6)]
    screen = Screen.from_labels(GENES, as_sets(rows, ["control", *(f"T{k}" for k in range(29))]))
    table = what_can_be_tested(screen)
    assert len(table) < 5 * 29
    silent = table[(table["assumption"] == "silent_at_baseline") & (table["perturbation"] == "T3")]
    assert "only together with others" in silent["reason"].iloc[0]


def test_a_screen_of_sets_survives_being_written():
    rows = [[0], *many_rows(np.random.default_rng(3), 500, 30, 6)]
    screen = Screen.from_labels(GENES, as_sets(rows, ["control", *(f"T{k}" for k in range(29))]))
    again = Screen.from_dict(screen.to_dict())
    np.testing.assert_array_equal(again.additive, screen.additive)
    assert (again.membership != screen.membership).nnz == 0
