"""Levels of conditions as the counts alone have them, under draws of the width of batch noise."""

from __future__ import annotations

import numpy as np

from pyrocell.contrasts.levels import ConditionLevels, condition_levels
from pyrocell.errors import ScreenError
from pyrocell.posterior.fitted_screen import FittedScreen

__all__ = ["levels"]


def levels(
    fit: FittedScreen, n_samples: int, ratio: float = 1.0, part: slice = slice(None)
) -> list[ConditionLevels]:
    """Levels of all conditions under draws of the scale of batch noise, times a ratio.

    `part` are the features that the cells have, of those of the model.
    """
    data, screen = fit.data, fit.screen
    if data.conditions is not None:
        raise ScreenError("the cells have conditions that this model was not built for")
    if not len(screen.conditions):  # all of them are sums of others
        return []
    scales = [(np.ones(len(screen.genes)),)]  # of no consequence in one batch
    if len(screen.batches) > 1:
        sites = ["eta.scale", *["eta.laboratory_scale"] * fit.model.noise.has_laboratories]
        draws = fit.posterior.samples(n_samples, sites)
        scales = [
            tuple(ratio * each[part].astype(float) for each in one)
            for one in zip(*draws.values(), strict=True)
        ]
    laboratory = screen.batch_laboratory if fit.model.noise.has_laboratories else None
    places = [slice(None)] if data.views is None else data.views.slices
    by_view = [cells for cells, _ in data.by_view]
    return [
        ConditionLevels.side_by_side(
            [
                condition_levels(
                    cells.counts,
                    cells.size,
                    cells.condition,
                    cells.batch,
                    own[place],
                    laboratory,
                    common[0][place] if common else None,
                    n_conditions=len(screen.conditions),
                    n_batches=len(screen.batches),
                )
                for cells, place in zip(by_view, places, strict=True)
            ]
        )
        for own, *common in scales
    ]
