"""Starting values: where training starts decides what a small screen finds."""

import numpy as np
import pytest

import pyrocell
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
