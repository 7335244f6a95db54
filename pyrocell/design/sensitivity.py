"""How conclusions depend on how wide batch noise is taken to be, where a layout leaves that open.

A contrast d of log means is estimated with the error of sampling, variance v, and that of batch
noise, variance b(r) when the noise is r times as wide as it was found to be. Between effects with
sd τ and such errors the posterior of a gene is Normal,

    mean = d τ² / (τ² + v + b),    variance = τ² (v + b) / (τ² + v + b),

so one table shows what a wider or a narrower prior of η would have made of the same counts. Where
condition and batch are aliased, d is their sum and this is the prior of the effect given that sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.stats import norm

from pyrocell.design.inflation import condition_rows, contrast_weights, inflation
from pyrocell.design.layouts import Layout
from pyrocell.errors import DesignError
from pyrocell.posterior.levels import levels

if TYPE_CHECKING:
    from pyrocell.contrasts.levels import ConditionLevels
    from pyrocell.model import PyroCell

__all__ = ["noise_sensitivity"]

RATIOS = (0.25, 0.5, 1.0, 2.0, 4.0)
_LEAST = 1e-3  # log-fold change: the smallest sd of effects


def noise_sensitivity(
    model: PyroCell,
    ratios: Sequence[float] = RATIOS,
    least_inflation: float = 1.25,
    probability: float = 0.95,
    min_count: float = 5.0,
    n_samples: int = 2,
) -> pd.DataFrame:
    """What is concluded of contrasts that are partly or wholly aliased, by width of batch noise.

    Parameters
    ----------
    model
        A trained model of a screen with several batches.
    ratios
        Widths of batch noise, relative to the fitted one.
    least_inflation
        Contrasts whose variance is inflated by less, by not knowing batch noise, are left out.
    probability
        Of the direction, from which on a gene is called.
    min_count
        Counts that a gene needs, at the pooled rate, in both conditions.
    n_samples
        Draws of the fitted width, over which posteriors are averaged.

    Returns
    -------
    DataFrame with a row per contrast and ratio: contrast, perturbation, media, time, estimable and
    inflation as in `design.aliasing`; ratio; noise_ratio, sd of batch noise over that of effects;
    size and sd, root mean squares over genes of posterior mean and standard deviation; called, the
    share of genes with a direction; kept, of those called at the ratio nearest to 1 the share that
    is called here with the same sign (NaN where none was).

    Raises
    ------
    DesignError
        If the screen has one batch, or a ratio is not above zero.

    Notes
    -----
    The sd of effects is that of all contrasts of a kind, estimable ones where there are any: their
    mean square beyond the errors of the fit. Levels are those of `pyrocell.contrasts.levels`, which
    no prior of effects shrinks; the fit itself is not repeated.
    """
    screen = model.screen
    if len(screen.batches) == 1:
        raise DesignError("the screen has one batch, so nothing is known of batch noise")
    if not len(ratios) or min(ratios) <= 0:
        raise DesignError(f"ratios={list(ratios)} must be above 0, such as 0.5, 1, 2")
    layout = Layout.from_screen(screen)
    table, weights = contrast_weights(layout)
    table["inflation"] = inflation(layout, weights)
    table.insert(4, "estimable", np.isfinite(table["inflation"]))
    rows = condition_rows(screen, layout)
    table["used"] = [
        {rows[c]: a for c, a in zip(part.indices, part.data, strict=True) if a}
        for part in (weights[[i]] for i in range(weights.shape[0]))
    ]
    table = table[[-1 not in used for used in table["used"]]].reset_index(drop=True)
    draws = {r: levels(model.fitted, n_samples, r) for r in {*ratios, 1.0}}
    wide = _effect_sd(table, draws[1.0], min_count)
    noise = float(np.sqrt(np.mean([level.eta_sd**2 for level in draws[1.0]])))
    asked = table[table["inflation"] >= least_inflation]
    reference = min(ratios, key=lambda r: abs(np.log(r)))
    found = []
    for i, row in asked.drop(columns="used").iterrows():
        posterior = {r: _posterior(draws[r], table["used"][i], wide[i], min_count) for r in ratios}
        sure = {r: _directions(*posterior[r], probability) for r in ratios}
        first = sure[reference] != 0
        for r in ratios:
            mean, sd = posterior[r]
            numbers = {
                "ratio": r,
                "noise_ratio": r * noise / wide[i],
                "size": np.sqrt(np.mean(mean**2)) if len(mean) else np.nan,
                "sd": np.sqrt(np.mean(sd**2)) if len(sd) else np.nan,
                "called": np.mean(sure[r] != 0) if len(mean) else np.nan,
                "kept": np.mean((sure[r] == sure[reference])[first]) if first.any() else np.nan,
            }
            found.append(row.to_dict() | numbers)
    columns = [*asked.drop(columns="used"), "ratio", "noise_ratio", "size", "sd", "called", "kept"]
    return pd.DataFrame(found, columns=columns)


def _summary(
    draws: Sequence[ConditionLevels], used: dict[int, float], min_count: float
) -> tuple[np.ndarray, np.ndarray]:
    """Estimate and variance of a contrast's error, by gene with enough counts."""
    enough = draws[0].expected[list(used)].min(0) >= min_count
    value = np.mean([level.contrast(used).value for level in draws], 0)
    variance = [level.contrast(used).variance + level.batch_variance(used) for level in draws]
    return value[enough], np.mean(variance, 0)[enough]


def _effect_sd(
    table: pd.DataFrame, draws: Sequence[ConditionLevels], min_count: float
) -> pd.Series:
    """Sd of the effects of each contrast's kind, (rows,)."""
    out = pd.Series(_LEAST, table.index)
    for _, part in table.groupby("contrast", sort=False):
        told = part[part["estimable"]] if part["estimable"].any() else part
        beyond = [
            np.mean(value**2 - variance)
            for value, variance in (_summary(draws, used, min_count) for used in told["used"])
            if len(value)
        ]
        out[part.index] = max(np.sqrt(max(np.mean(beyond or [0.0]), 0.0)), _LEAST)
    return out


def _posterior(
    draws: Sequence[ConditionLevels], used: dict[int, float], wide: float, min_count: float
) -> tuple[np.ndarray, np.ndarray]:
    """Posterior mean and standard deviation by gene."""
    value, variance = _summary(draws, used, min_count)
    kept = wide**2 / (wide**2 + variance)
    return kept * value, np.sqrt(kept * variance)


def _directions(mean: np.ndarray, sd: np.ndarray, probability: float) -> np.ndarray:
    """Sign of every gene whose direction is probable enough, else 0."""
    return np.sign(mean) * (norm.cdf(np.abs(mean) / sd) >= probability)
