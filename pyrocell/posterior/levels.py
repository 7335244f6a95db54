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
    nested = (screen.batch_laboratory,) if fit.model.noise.has_laboratories else ()
    if data.views is None:
        size = data.size
        cells = data.counts, size, data.condition, data.batch
        return [
            condition_levels(*cells, own, *(nested or (None,)), *(common or (None,)))
            for own, *common in scales
        ]
    found, parts = [], list(zip(data.parts, data.views.slices, strict=True))
    n_batches = len(screen.batches)
    for own, *common in scales:
        each = []
        for cells, part in parts:
            size = cells.size
            sds = [sd[part] for sd in (own, *common)]
            each.append(
                condition_levels(
                    cells.counts,
                    size,
                    cells.condition,
                    cells.batch,
                    sds[0],
                    nested[0] if nested else None,
                    sds[1] if common else None,
                    n_conditions=len(screen.conditions),
                    n_batches=n_batches,
                )
            )
        found.append(ConditionLevels.side_by_side(each))
    return found
