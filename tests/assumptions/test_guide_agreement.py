"""Whether guides agree: contrasts that compare like with like, and probabilities that add up."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyrocell import Screen
from pyrocell.assumptions.guide_agreement import guide_contrasts, guide_groups, one_is_off
from pyrocell.assumptions.testability import CELLS_OF_A_GUIDE
from pyrocell.assumptions.testability import testability as what_can_be_tested
from pyrocell.screen.guide_pairs import guide_pairs


def a_screen(seed: int, n: int = 300) -> Screen:
    rng = np.random.default_rng(seed)
    label = rng.choice(["control", "A", "B", "C"], n, p=[0.4, 0.3, 0.2, 0.1])
    guide = [f"{p}_{rng.integers(3)}" if rng.random() < 0.9 else None for p in label]
    return Screen.from_labels(
        pd.Index(["g1", "g2"]),
        label,
        control="control",
        media=rng.choice(["none", "drug"], n),
        baseline_media="none",
        batch=rng.choice(["x", "y"], n),
        guide=guide,
    )


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_a_guide_is_compared_with_other_guides_of_its_perturbation_in_the_same_condition(seed):
    screen = a_screen(seed)
    groups = guide_groups(screen)
    assert np.bincount(groups.of_cell).tolist() == groups.n_cells.tolist()
    for contrast in guide_contrasts(screen, groups):
        rows = list(contrast.weights)
        assert sum(contrast.weights.values()) == pytest.approx(0, abs=1e-12)
        assert sum(contrast.conditions.values()) == pytest.approx(1)
        names = screen.conditions.loc[groups.condition[rows], "perturbation"]
        assert set(names) == {contrast.perturbation} and (groups.guide[rows] >= 0).all()
        assert (groups.n_cells[rows] >= CELLS_OF_A_GUIDE).all()
        for c in contrast.conditions:  # in every condition by itself
            mine = [w for r, w in contrast.weights.items() if groups.condition[r] == c]
            assert sum(mine) == pytest.approx(0, abs=1e-12)
        own = [r for r in rows if groups.guide[r] == contrast.guide]
        assert all(contrast.weights[r] > 0 for r in own)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_what_can_be_compared_is_what_is_said_to_be_testable(seed):
    screen = a_screen(seed)
    table = what_can_be_tested(screen)
    mine = table[table["assumption"] == "guides_agree"]
    seen = {(c.perturbation, c.media) for c in guide_contrasts(screen, guide_groups(screen))}
    said = set(zip(mine["perturbation"], mine["media"], strict=True))
    tested = set(zip(*mine.loc[mine["testable"], ["perturbation", "media"]].to_numpy().T))
    assert seen == {(p, m or "none") for p, m in tested} and tested <= said
    assert all("Next screen: " in reason for reason in mine.loc[~mine["testable"], "reason"])


@given(
    st.lists(st.lists(st.floats(-30, 30), min_size=3, max_size=3), min_size=1, max_size=6),
    st.floats(0.05, 0.95),
)
def test_one_guide_at_most_is_off(against, prior):
    together, agrees = one_is_off([np.array(a) for a in against], prior)
    odds = (1 - prior) / prior * np.exp(together).mean()
    assert (1 - agrees).sum() == pytest.approx(odds / (1 + odds), abs=1e-9)


@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_pairs_of_perturbation_and_guide_hold_every_perturbed_cell_once(seed):
    screen = a_screen(seed)
    pairs = guide_pairs(screen)
    assert pairs is not None and screen.cell_guide is not None
    perturbed = ~screen.is_control[screen.cell_condition]
    assert ((pairs.of_cell >= 0) == perturbed).all()
    assert np.bincount(pairs.of_cell[perturbed]).tolist() == pairs.n_cells.tolist()
    assert (pairs.guide[pairs.of_cell[perturbed]] == screen.cell_guide[perturbed]).all()
    names = screen.conditions["perturbation"].to_numpy()[screen.cell_condition[perturbed]]
    assert (np.array(pairs.labels)[pairs.label[pairs.of_cell[perturbed]]] == names).all()
