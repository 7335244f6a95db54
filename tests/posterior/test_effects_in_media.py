"""What a perturbation does in a medium is against control cells of that medium."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

SCREEN = {
    "n_perturbations": 4,
    "n_genes": 80,
    "n_cells_per_condition": 50,
    "n_controls": 150,
    "media": 1,
    "media_rms": 0.6,
    "blocked_fraction": 0.5,
    "effect_rms": 0.05,
    "silent_fraction": 1.0,
    "mean_library": 3000.0,
    "on_target": None,
}


@pytest.fixture(scope="module")
def stimulated(make_screen, build):
    model = build(make_screen(**SCREEN))
    model.train(max_epochs=25, progress_bar=False)
    return model


def slope_on_counts(model, label: str, medium: str) -> float:
    """Of effects on what the well-counted genes alone say."""
    asked = {"perturbations": [label], "media": medium}
    both = model.perturbation_effects(**asked).merge(
        model.perturbation_effects(**asked, shrunken=False), on="gene", suffixes=("", "_counts")
    )
    well = both[(both["count_counts"] > 200) & (both["count_control_counts"] > 200)]
    return float((well["mean"] * well["mean_counts"]).sum() / (well["mean_counts"] ** 2).sum())


def test_a_response_that_is_blocked_is_an_effect_in_that_medium(stimulated):
    gains = stimulated.media_gains().set_index("perturbation")["mean"]
    assert (gains < 0.3).sum() == 2
    medium = stimulated.screen.media[0]
    for label in gains.index[gains < 0.3]:
        assert slope_on_counts(stimulated, label, medium) > 0.85
        found = stimulated.perturbation_effects([label], media=medium)
        assert (found["fdr"] <= 0.05).sum() > 10
        baseline = stimulated.perturbation_effects([label])
        assert (baseline["fdr"] <= 0.05).sum() <= 2


def test_effects_in_a_medium_are_those_of_prediction(stimulated):
    """Counts of a blocker and of a control in the medium differ as the table says."""
    medium = stimulated.screen.media[0]
    gains = stimulated.media_gains().set_index("perturbation")["mean"]
    label = gains.idxmin()
    frame = pd.DataFrame({"perturbation": ["control", label], "media": medium})
    counts = np.asarray(stimulated.predict(frame).X)
    table = stimulated.perturbation_effects([label], media=medium).set_index("gene")["mean"]
    change = np.log(counts[1] / counts[0])
    change = change - np.median(change - table[stimulated.screen.genes].to_numpy())
    assert np.corrcoef(change, table[stimulated.screen.genes])[0, 1] > 0.97


def test_a_gain_near_one_lists_no_gene(stimulated):
    medium = stimulated.screen.media[0]
    gains = stimulated.media_gains().set_index("perturbation")["mean"]
    for label in gains.index[gains > 0.8]:
        found = stimulated.perturbation_effects([label], media=medium)
        assert (found["fdr"] <= 0.1).sum() <= 1
