"""Starting values: where training starts decides what a small screen finds."""

import numpy as np
import pytest

import pyrocell
from pyrocell.generative import starting_values as initial
from pyrocell.simulate import screen


@pytest.mark.parametrize("n_controls", [20, 300])
def test_a_response_to_a_medium_starts_at_that_of_all_cells_however_few_the_controls(n_controls):
    adata = screen(
        n_perturbations=20, n_genes=200, n_cells_per_condition=60, n_controls=n_controls,
        n_batches=2, media=1, blocked_fraction=0.15, media_rms=0.5, mean_library=150.0, seed=1,
    )  # fmt: skip
    truth = adata.uns["truth"]
    pyrocell.PyroCell.setup_anndata(adata, media_key="media")
    guide = pyrocell.PyroCell(adata, n_response=8).module.guide
    centre = guide._centre()
    start = (centre["M.effect"] @ guide.model.axes(centre))[0].detach().numpy()
    expected, weight = truth["media_effect"].to_numpy()[0], truth["expression"]
    start = start - weight @ start
    cosine = (weight * start) @ expected
    cosine /= np.sqrt((weight @ start**2) * (weight @ expected**2))
    assert cosine > 0.95


def test_leading_axes_of_a_large_table_are_those_of_all_its_axes(monkeypatch):
    table = np.random.default_rng(0).normal(size=(40, 6)) @ np.diag([9, 7, 5, 1, 1, 1.0])
    whole = initial._leading(table, 3, seed=0)
    monkeypatch.setattr(initial, "_MAX_DENSE", 0)
    table = np.hstack([table, np.zeros((40, 20))])
    left, scale, right = initial._leading(table, 3, seed=0)
    np.testing.assert_allclose(scale, whole[1][:3])
    found = (left * scale) @ right
    expected = (whole[0][:, :3] * whole[1][:3]) @ whole[2][:3]
    np.testing.assert_allclose(found[:, :6], expected, atol=1e-8)
