"""Effects carried from one cell line to another, as far as those measured in both say."""

from __future__ import annotations

import numpy as np
import pytest

from pyrocell.errors import ScreenError
from pyrocell.transfer import transfer_effects

pytestmark = pytest.mark.filterwarnings("ignore::pyrocell.errors.ScreenWarning")
K, HELD = 10, 2


def two_lines(make_screen, build, shared: bool):
    """Perturbations in two lines, the first two in one of them only; and their true effects."""
    changes = {"n_perturbations": K if shared else 2 * K, "n_cells_per_condition": 60}
    changes |= {"n_controls": 200, "silent_fraction": 0.0, "effect_rms": 0.4, "on_target": None}
    adata = make_screen(seed=3, n_genes=30, mean_library=1000.0, **changes)
    truth = adata.uns["truth"]["effect"]
    names, label = list(truth.index), adata.obs["perturbation"].astype(str).to_numpy().copy()
    line = np.where(np.arange(len(label)) % 2, "one", "two")
    if not shared:
        for a, b in zip(names[:K], names[K:], strict=True):
            line[label == a], line[label == b] = "one", "two"
            label[label == b] = a
    adata.obs["perturbation"], adata.obs["media"] = label, line
    adata = adata[~((line == "two") & np.isin(label, names[:HELD]))].copy()
    model = build(adata, {"baseline_media": "one"})
    model.train(max_epochs=2, progress_bar=False)
    return model, truth.to_numpy()[:HELD] if shared else truth.to_numpy()[K : K + HELD]


def error(table, truth: np.ndarray) -> float:
    return float(np.sqrt(np.nanmean((table["mean"].to_numpy().reshape(HELD, -1) - truth) ** 2)))


def test_effects_that_lines_do_not_share_are_predicted_as_no_change(make_screen, build):
    model, truth = two_lines(make_screen, build, shared=False)
    table = transfer_effects(model, "two")
    assert table["perturbation"].nunique() == HELD and abs(table["shared"]).max() < 0.5
    assert error(table, truth) < 1.05 * np.sqrt((truth**2).mean())
    inside = (table["lower"] <= truth.ravel()) & (truth.ravel() <= table["upper"])
    assert inside.mean() > 0.75  # of 90%, with 60 genes of two perturbations


def test_effects_that_lines_share_are_carried_over(make_screen, build):
    model, truth = two_lines(make_screen, build, shared=True)
    table = transfer_effects(model, "two")
    assert (table["shared"] > 0.7).all()
    assert error(table, truth) < 0.7 * np.sqrt((truth**2).mean())


def test_perturbations_that_were_not_measured_there_are_named(make_screen, build):
    model, _ = two_lines(make_screen, build, shared=True)
    missing = model.screen.perturbations[0]
    with pytest.raises(ScreenError, match=f'not measured in "two" .{missing}'):
        transfer_effects(model, "one", "two", perturbations=[missing])
