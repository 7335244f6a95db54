"""Mutated screens are read as the clean screen is, warned of, or refused with a remedy."""

from __future__ import annotations

import re
import warnings
from typing import Any

import numpy as np
import pytest
from data.mutations import FORMS, LATER, REFUSED, WARNED, clean_screen

from pyrocell import PyroCell
from pyrocell.data.registration import cell_tensors, register
from pyrocell.errors import PyrocellError, ScreenWarning

SEEDS = 3
PAIRS = 60


def read(cells: Any, setup: dict) -> tuple[dict[str, Any], list[str]]:
    """What a model would be told of each cell, by names; and the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        manager = register(PyroCell, cells, **setup)
        tensors = cell_tensors(manager)
    screen, n = manager.screen, manager.screen.conditions["n_cells"].sum()
    condition = screen.conditions.iloc[screen.cell_condition]
    found = {
        "genes": list(screen.genes),
        "counts": tensors.counts[np.arange(n)].toarray(),
        "depth": tensors.log_size_factor,
        "covariates": tensors.covariates,
        "covariate names": tensors.covariate_names,
        "perturbation": condition["perturbation"].tolist(),
        "media": condition["media"].tolist(),
        "time": condition["time"].tolist(),
        "batch": np.array(screen.batches)[screen.cell_batch].tolist(),
        "own genes": dict(zip(screen.perturbations, screen.target.tolist(), strict=True)),
        "types": screen.perturbation_types,
        "estimable": dict(zip(screen.aliased["name"], screen.aliased["estimable"], strict=True)),
    }
    return found, [str(w.message) for w in caught if issubclass(w.category, ScreenWarning)]


def differences(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    different = []
    for name, value in expected.items():
        if isinstance(value, np.ndarray):
            same = value.shape == found[name].shape and np.allclose(found[name], value, atol=1e-6)
        else:
            same = found[name] == value
        if not same:
            different.append(name)
    return different


def start(seed: int) -> tuple[Any, dict, np.random.Generator]:
    rng = np.random.default_rng(seed)
    cells, setup = clean_screen(rng)
    return cells, setup, rng


@pytest.mark.parametrize("seed", range(SEEDS))
@pytest.mark.parametrize("form", FORMS)
def test_the_same_screen_in_another_form_is_read_as_the_same(form, seed, tmp_path):
    cells, setup, rng = start(seed)
    expected, before = read(cells.copy(), setup)
    found, said = read(*FORMS[form](cells, setup, rng, tmp_path))
    assert not differences(found, expected) and len(said) == len(before)


@pytest.mark.parametrize("seed", range(PAIRS))
def test_two_changes_of_form_are_read_as_the_same(seed, tmp_path):
    cells, setup, rng = start(1000 + seed)
    expected, before = read(cells.copy(), setup)
    for i, name in enumerate(rng.choice(list(FORMS), 2, replace=False)):
        (tmp_path / str(i)).mkdir()
        try:
            cells, setup = FORMS[name](cells, setup, rng, tmp_path / str(i))
        except Exception:  # the first left a form that the second is not made for
            pytest.skip(f"{name} cannot be applied")
    found, said = read(cells, setup)
    assert not differences(found, expected) and len(said) == len(before)


@pytest.mark.parametrize("seed", range(SEEDS))
@pytest.mark.parametrize("name", WARNED)
def test_what_is_probably_not_meant_is_said(name, seed, tmp_path):
    cells, setup, rng = start(seed)
    _, before = read(cells.copy(), setup)
    change, says = WARNED[name]
    _, said = read(*change(cells, setup, rng, tmp_path))
    new = [text for text in said if text not in before]
    assert any(re.search(says, text) for text in new), said


def refusal(cells: Any, setup: dict) -> str:
    before = None if not hasattr(cells, "obs") else (list(cells.obs), list(cells.uns))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(PyrocellError) as refused:
            PyroCell.setup_anndata(cells, **setup)
            PyroCell(cells)
    if before is not None:
        assert before == (list(cells.obs), list(cells.uns))
    return str(refused.value)


@pytest.mark.parametrize("seed", range(SEEDS))
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_refused_and_left_alone(name, seed, tmp_path):
    cells, setup, rng = start(seed)
    change, says = REFUSED[name]
    assert re.search(says, refusal(*change(cells, setup, rng, tmp_path)))


@pytest.mark.parametrize("seed", range(SEEDS))
@pytest.mark.parametrize("name", LATER)
def test_what_changed_after_registration_is_refused(name, seed, tmp_path):
    cells, setup, rng = start(seed)
    change, says = LATER[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        PyroCell.setup_anndata(cells, **setup)
        change(cells, setup, rng, tmp_path)
        with pytest.raises(PyrocellError, match=says):
            PyroCell(cells)
