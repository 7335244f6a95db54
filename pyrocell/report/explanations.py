"""What the changes of the most active perturbations in each medium are made of, in sentences."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from pyrocell.posterior.explain import sentences
from pyrocell.report.perturbations import LISTED, last_places, part_of

if TYPE_CHECKING:
    from pyrocell.model import PyroCell

__all__ = ["steps_in_words"]

_MOST = 5  # perturbations of a medium: each takes as long as a prediction
_DRAWS = 60


def steps_in_words(model: PyroCell, effects: pd.DataFrame) -> dict[str, dict[str, str]]:
    """Sentences about steps, by medium and perturbation, against controls in that medium.

    Of the few perturbations that change most genes there; the baseline medium has no steps to tell
    apart.

    Parameters
    ----------
    model
        A trained model.
    effects
        Effects where they were measured, as of `perturbations.measured_effects`.
    """
    screen, found = model.screen, {}
    for media, time in last_places(effects):
        if media == screen.baseline_media or screen.many_sets:
            continue
        part = part_of(effects, (media, time))
        listed = part[part["fdr"] <= LISTED].groupby("perturbation", sort=False).size()
        found[str(media)] = {
            str(name): " ".join(_said(model, str(name), str(media), time))
            for name in listed.nlargest(_MOST).index
        }
    return found


def _said(model: PyroCell, name: str, media: str, time: float) -> list[str]:
    table = model.explain(
        name,
        media=media,
        time=None if np.isnan(time) else float(time),
        against={"media": media},
        by="step",
        n_samples=_DRAWS,
    )
    assert isinstance(table, pd.DataFrame)
    return sentences(table)
