"""Media gains when controls are few: the scale, the blocked ones, and what nothing looks like."""

from __future__ import annotations

import numpy as np
import pytest

from pyrocell import PyroCell

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def stimulated(make_screen):
    """Twelve knockouts with and without a medium, three of which block it; 20 control cells."""
    return make_screen(
        seed=2, n_perturbations=12, n_genes=200, n_cells_per_condition=40, n_controls=20,
        n_batches=2, media=1, blocked_fraction=0.25, media_rms=0.6, effect_rms=0.1,
        mean_library=200.0, dispersion=0.5, on_target=None,
    )  # fmt: skip


def gains_of(adata):
    PyroCell.setup_anndata(adata, media_key="media")
    model = PyroCell(adata, n_latent=5, n_response=4)
    model.train(max_epochs=60, progress_bar=False)
    return model.media_gains(n_samples=300)


def test_gains_keep_their_scale_with_few_controls(stimulated):
    truth = stimulated.uns["truth"]["gain"].to_numpy(dtype=float).ravel()
    table = gains_of(stimulated.copy())
    blocked = truth < 0.5
    assert blocked.sum() == 3
    assert table["mean"][blocked].max() < 0.35
    # the scale is known to the controls' error, about .1 here, and shared by the nine
    assert abs(table["mean"][~blocked].mean() - 1) < 0.25
    error = (table["mean"] - truth) / table["sd"]
    assert error.abs().max() < 3.5  # of twelve


def test_shuffled_labels_block_nothing(stimulated):
    adata = stimulated.copy()
    labels = adata.obs["perturbation"].astype(str).to_numpy()
    rng = np.random.default_rng(0)
    for rows in adata.obs.groupby(["batch", "media"], observed=True).indices.values():
        labels[rows] = labels[rng.permutation(rows)]
    adata.obs["perturbation"] = labels
    table = gains_of(adata)
    spread = ((table["mean"] - table["mean"].mean()) / table["sd"]).std()
    assert spread < 1.5  # chi of 11 degrees of freedom, one in a thousand
    assert table["lower"].min() > 0.5
