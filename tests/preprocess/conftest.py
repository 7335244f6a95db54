"""Simulated lanes as Cell Ranger writes them."""

from __future__ import annotations

import pytest

from pyrocell import simulate

SMALL = {"n_perturbations": 5, "n_genes": 60, "n_cells_per_condition": 30, "n_controls": 100}


@pytest.fixture(scope="session")
def pool():
    """A screen of 250 cells in two batches whose perturbed genes are measured."""
    return simulate.screen(seed=3, n_batches=2, on_target=-1.0, mean_library=300.0, **SMALL)


@pytest.fixture(scope="session")
def lanes(pool, tmp_path_factory):
    """A folder of two lanes, and the truth of its droplets."""
    folder = tmp_path_factory.mktemp("lanes")
    return folder, simulate.write_10x(pool, folder, seed=3)
