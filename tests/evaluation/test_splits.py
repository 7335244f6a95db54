"""Splits of a screen: what is held out, and that nothing of it stays."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pyrocell
from pyrocell import metrics
from pyrocell.errors import ScreenError, UnknownLabelError
from pyrocell.evaluation.splits import as_splits, held_out_of


@pytest.fixture(scope="module")
def screen() -> pyrocell.Screen:
    """Four singles, two doubles and a triple, in two media at two times, one cell each."""
    labels = ["control", "A", "B", "C", "D", "A+B", "C+D", "A+B+C"]
    arms = pd.MultiIndex.from_product([labels, ["baseline", "IFNG"], [1.0, 2.0]])
    label, media, time = (arms.get_level_values(i) for i in range(3))
    return pyrocell.Screen.from_labels(["g1", "g2"], label, media=media, time=time)


def names(screen: pyrocell.Screen, mask: np.ndarray) -> set[str]:
    return set(screen.conditions["perturbation"][mask])


def test_combinations_go_with_a_perturbation_that_is_held_out(screen):
    found = held_out_of(screen, as_splits(["A"])[0])
    assert names(screen, found.asked) == {"A"}
    assert names(screen, found.removed) == {"A", "A+B", "A+B+C"}
    assert found.removed.sum() == 12  # in every medium, at every time


def test_larger_combinations_go_with_one_that_is_held_out_and_its_parts_stay(screen):
    found = held_out_of(screen, as_splits({"combination": ["B+A"]})[0])
    assert names(screen, found.asked) == {"A+B"} and names(screen, found.removed) == {
        "A+B",
        "A+B+C",
    }


def test_kinds_together_hold_out_what_fits_all_of_them(screen):
    found = held_out_of(
        screen, as_splits({"perturbation": ["A"], "time": [2.0], "media": "IFNG"})[0]
    )
    here = screen.conditions[found.asked]
    assert here[["perturbation", "media", "time"]].to_numpy().tolist() == [["A", "IFNG", 2.0]]
    assert found.removed.sum() == 3
    rows = pd.DataFrame({"perturbation": ["A", "B"], "time": [1.0, 2.0]})
    found = held_out_of(screen, as_splits(rows)[0])
    asked = screen.conditions[found.asked][["perturbation", "time"]].drop_duplicates()
    assert set(map(tuple, asked.to_numpy())) == {("A", 1.0), ("B", 2.0)}


@given(st.sampled_from(["perturbation", "combination", "media", "time"]), st.integers(0, 99))
def test_folds_hold_everything_out_once_and_controls_never(screen, by, seed):
    folds = metrics.splits(screen, by, n_folds=2, seed=seed)
    masks = [held_out_of(screen, as_splits(fold)[0]) for fold in folds]
    asked = np.sum([found.asked for found in masks], axis=0)
    assert asked.max() == 1
    for found in masks:
        assert not (found.removed & screen.is_control).any()
        assert (found.removed >= found.asked).all()
        assert (~found.removed & ~screen.is_control).any()
    assert metrics.splits(screen, by, n_folds=2, seed=seed) == folds


def test_media_and_times_leave_every_perturbation_seen_elsewhere(screen):
    for fold in metrics.splits(screen, "media") + metrics.splits(screen, "time"):
        found = held_out_of(screen, as_splits(fold)[0])
        assert names(screen, found.asked) <= names(screen, ~found.removed)


def test_what_cannot_be_held_out_is_said(screen):
    for wrong, message in (
        ([], "empty"),
        ({"medium": ["IFNG"]}, 'did you mean "media"'),
        ({"media": []}, "is empty"),
        ({"media": ["baseline", "IFNG"]}, "nothing to learn from"),
        (["control"], "always stays"),
        (pd.DataFrame({"gene": ["A"]}), "columns among"),
    ):
        with pytest.raises(ScreenError, match=message):
            held_out_of(screen, as_splits(wrong)[0])
    with pytest.raises(UnknownLabelError):
        held_out_of(screen, as_splits(["E"])[0])
    with pytest.raises(UnknownLabelError, match="time 3"):
        held_out_of(screen, as_splits({"time": [3.0]})[0])
    with pytest.raises(ScreenError, match="n_folds"):
        metrics.splits(screen, n_folds=1)
    with pytest.raises(ScreenError, match="is not one of"):
        metrics.splits(screen, "perturbations")
    plain = pyrocell.Screen.from_labels(["g1"], ["control", "A", "B"])
    with pytest.raises(ScreenError, match="combinations"):
        metrics.splits(plain, "combination")
    with pytest.raises(ScreenError, match="media_key"):
        metrics.splits(plain, "media")


def test_an_adata_that_was_not_registered_is_named(tiny_adata):
    with pytest.raises(ScreenError, match="setup_anndata"):
        metrics.splits(tiny_adata)
    pyrocell.PyroCell.setup_anndata(tiny_adata, media_key="media")
    assert metrics.splits(tiny_adata, n_folds=3)
