"""Which perturbations to run next: each tells of genes that those before it said little of."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from pyrocell import Knowledge
from pyrocell.design import next_perturbations
from pyrocell.errors import DesignError, KnowledgeError

pytestmark = pytest.mark.filterwarnings("ignore::pyrocell.errors.ScreenWarning")

NAMES = [f"g{i}" for i in range(12)]


def groups() -> Knowledge:
    """Three groups, of six, four and two genes."""
    kernel = np.eye(12)
    for a, b in ((0, 6), (6, 10), (10, 12)):
        kernel[a:b, a:b] = 0.8
    np.fill_diagonal(kernel, 1.0)
    return Knowledge.from_kernel(pd.DataFrame(kernel, index=NAMES, columns=NAMES))


def group_of(name: str) -> int:
    return int(np.searchsorted([6, 10, 12], int(name[1:]), side="right"))


def test_every_group_is_chosen_from_before_any_is_chosen_from_twice_and_large_ones_first():
    table = next_perturbations(NAMES, groups(), 3)
    assert list(table) == ["rank", "perturbation", "variance_reduction", "expected_error"]
    assert list(table["rank"]) == [1, 2, 3]
    assert [group_of(name) for name in table["perturbation"]] == [0, 1, 2]
    assert table["variance_reduction"].is_monotonic_decreasing
    assert table["variance_reduction"].sum() < 1
    assert table["expected_error"].is_monotonic_decreasing


def test_what_was_measured_is_left_out_and_not_learned_again():
    table = next_perturbations(NAMES, groups(), 2, measured=["g0", "g1"])
    assert not {"g0", "g1"} & set(table["perturbation"])
    assert group_of(table["perturbation"].iloc[0]) == 1
    assert len(next_perturbations(NAMES, groups(), 10, measured=["g0", "g1"])) == 10


def test_targets_decide_what_is_worth_knowing():
    first = next_perturbations(NAMES, groups(), 1, targets=["g10"], measured=["g0"])
    assert first["perturbation"].iloc[0] in ("g10", "g11")


def test_a_model_brings_what_it_measured_and_its_shares(fitted):
    names = list(fitted.screen.perturbations)
    sets = {"a": [names[0], "new0", "x"], "b": ["new1", "new2", "new3"], "c": [names[1], "y", "z"]}
    knowledge = Knowledge.from_gene_sets(sets)
    table = next_perturbations([*names, "new0", "new1", "new2"], knowledge, 2, model=fitted)
    assert not set(names) & set(table["perturbation"])
    assert np.isfinite(table["variance_reduction"]).all()


def test_what_cannot_be_chosen_is_refused():
    for options, words in (
        ({"n": 13}, "12 candidates"),
        ({"n": 0}, "n=0"),
        ({"n": 2, "share": 1.0}, "share=1.0"),
        ({"n": 2, "targets": ["g0"], "measured": ["g0"]}, "all targets are measured"),
    ):
        with pytest.raises(DesignError, match=words):
            next_perturbations(NAMES, groups(), **options)
    with pytest.raises(KnowledgeError, match="none of 2 genes"):
        next_perturbations(["x", "y"], groups(), 1)
