"""What more lanes, or another share of controls, would buy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from pyrocell.design.noise import Noise
from pyrocell.design.plan import Plan
from pyrocell.design.planner import recommend
from pyrocell.design.scoring import Targets, tidy
from pyrocell.errors import DesignError

__all__ = ["cost_curve"]

SHARES = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7)
_POINTS = 7


def cost_curve(
    plan: Plan,
    noise: Noise | None = None,
    targets: Targets = None,
    *,
    lanes: Sequence[int] | None = None,
    control_shares: Iterable[float] = SHARES,
    tolerance: float = 0.02,
    seconds: float = 10.0,
) -> pd.DataFrame:
    """Expected error of the best layout at other numbers of lanes and other shares of controls.

    Parameters
    ----------
    plan, noise, targets
        As in `recommend`.
    lanes
        Numbers of lanes; default: up to twice those of the plan.
    control_shares
        Shares of controls, the same in every lane, at the plan's number of lanes.
    tolerance, seconds
        Of each search, as in `recommend`.

    Returns
    -------
    DataFrame with varied ("lanes" or "control_share"), lanes, control_share, cells, error, and the
    error of each kind of question. Where no layout meets the plan, errors are NaN.
    """
    if lanes is None:
        lanes = sorted({*np.linspace(1, 2 * plan.lanes, _POINTS).round().astype(int), plan.lanes})
    plans = [("lanes", plan.at(lanes=int(n))) for n in lanes]
    plans += [("control_share", plan.at(control_share=float(s))) for s in control_shares]
    rows = []
    for varied, changed in plans:
        row = {"varied": varied, "lanes": changed.lanes, "control_share": changed.control_share}
        try:
            found = recommend(
                changed, noise, targets, tolerance=tolerance, seconds=seconds, compared=False
            )
        except DesignError:
            rows.append({**row, "cells": np.nan, "error": np.nan})
            continue
        cells = found.layout.cells
        row["control_share"] = tidy(cells[0].sum() / cells.sum())
        rows.append(
            {
                **row,
                "cells": tidy(cells.sum()),
                "error": found.score.error,
                **found.score.kinds["error"].to_dict(),
            }
        )
    return pd.DataFrame(rows)
