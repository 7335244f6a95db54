"""A question of one's own: which perturbations do alike, with intervals."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd

from pyrocell.posterior import summarise
from pyrocell.posterior.effects import effect_draws
from pyrocell.posterior.fitted_screen import FittedScreen


def similar_perturbations(
    fit: FittedScreen, media: str, time: float | None = None, n_samples: int = 100
) -> pd.DataFrame:
    """Correlation over genes of the effects of every two perturbations.

    Returns
    -------
    DataFrame with first, second, mean, sd, lower, upper, the most alike on top.
    """
    names = list(fit.screen.perturbations)
    draws = effect_draws(fit, names, media, time, n_samples)  # (S, K, G), joint
    pairs = list(combinations(range(len(names)), 2))
    found = np.stack([np.corrcoef(each) for each in draws])  # (S, K, K)
    summary = summarise(np.stack([found[:, i, j] for i, j in pairs], 1))
    table = pd.DataFrame({k: v for k, v in summary.items() if k != "prob_direction"})
    table.insert(0, "first", [names[i] for i, _ in pairs])
    table.insert(1, "second", [names[j] for _, j in pairs])
    return table.sort_values("mean", ascending=False, ignore_index=True)
