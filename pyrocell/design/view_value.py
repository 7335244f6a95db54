"""What measuring a view in more or fewer cells does to the error of effects on its features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from pyrocell.errors import DesignError
from pyrocell.posterior.views import views_of

if TYPE_CHECKING:
    from pyrocell.model import PyroCell

__all__ = ["view_value"]

_FOUND = 2.8  # standard errors that an effect needs to be found with 80% power at 5%


def view_value(
    model: PyroCell, view: str, shares: Sequence[float] = (0.25, 0.5, 1.0)
) -> pd.DataFrame:
    """Errors of effects on the features of a view if some share of all cells has it.

    From the counts of each condition: counting noise and what cells vary fall with the number of
    cells, what an effect varies between batches does not. Needs no training.

    Parameters
    ----------
    model
        A model of several views, whose cells of this one say what they vary.
    view
        Its name.
    shares
        Of all cells of the screen, those that have the view.

    Returns
    -------
    DataFrame with a row per share: share, n_cells (median over perturbations of the cells of a
    condition with the view), error (median standard error of a log-fold change over perturbations
    and features), detectable (size of an effect that is found with 80% power at a p of .05: 2.8
    standard errors), counts (median of a feature in a condition), now (whether
    this is the share that has the view in these data).
    """
    features = views_of(model.module.config, view)
    if features is None:
        raise DesignError("the model has one view; register several with PyroCell.setup_mudata")
    if not len(shares) or min(shares) <= 0 or max(shares) > 1:
        raise DesignError(f"shares={list(shares)} must be above 0 and at most 1")
    v, part = features.of(view), features.slices[features.of(view)]
    depths = model._cells.depths
    assert depths is not None
    has = np.isfinite(depths[:, v])
    screen, counts = model.screen, model._level_counts
    number = np.bincount(screen.cell_condition, has, len(screen.conditions))
    every = np.bincount(screen.cell_condition, minlength=len(screen.conditions))
    control = screen.is_control & (number > 0)
    rows = np.flatnonzero(~screen.is_control & (number > 1))
    if not control.any() or not len(rows):
        raise DesignError(f"no perturbation and its control have cells with the view {view}")
    other = np.flatnonzero(control)[:1]
    theta = counts.noise.theta[part]
    current = has.mean()
    out = []
    for share in sorted({*shares, float(current)}):
        more = share / current

        def variance(c: np.ndarray, more: float = more) -> np.ndarray:
            counted = 1 / (counts.total[c][:, part] * more + 0.5)
            return counted + counts.within[c][:, part] / theta / more + counts.between[c][:, part]

        error = np.sqrt(variance(rows) + variance(other))
        out.append(
            {
                "share": share,
                "n_cells": float(np.median(every[rows] * share)),
                "error": float(np.median(error)),
                "detectable": float(_FOUND * np.median(error)),
                "counts": float(np.median(counts.raw[rows][:, part]) * more),
                "now": bool(share == float(current)),
            }
        )
    return pd.DataFrame(out)
