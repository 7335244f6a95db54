"""How good forecasts are: probabilities against what happened, intervals against the truth."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from sklearn.metrics import brier_score_loss, roc_auc_score

__all__ = [
    "Coverage",
    "auroc",
    "brier",
    "coverage",
    "expected_calibration_error",
    "reliability_table",
]


class Coverage(NamedTuple):
    """Share of intervals that hold the truth, its binomial standard error, and their number."""

    share: float
    standard_error: float
    n: int


def auroc(happened: ArrayLike, score: ArrayLike) -> float:
    """Chance that what happened was scored above what did not; ties count one half.

    Parameters
    ----------
    happened
        (n,) booleans.
    score
        (n,) the larger, the likelier.

    Returns
    -------
    NaN if everything happened, or nothing.

    Raises
    ------
    ValueError
        If lengths differ, there is nothing to score, or a score is NaN.
    """
    happened, score = _pair(happened, score)
    if happened.all() or not happened.any():
        return float("nan")
    return float(roc_auc_score(happened, score))


def brier(happened: ArrayLike, probability: ArrayLike) -> float:
    """Mean squared difference of probabilities and what happened (0 or 1).

    Parameters
    ----------
    happened, probability
        (n,) booleans, and forecasts in [0, 1].

    Raises
    ------
    ValueError
        If lengths differ, there is nothing to score, or a forecast is no probability.
    """
    happened, probability = _forecast(happened, probability)
    return float(brier_score_loss(happened, probability, pos_label=True))


def expected_calibration_error(
    happened: ArrayLike, probability: ArrayLike, n_bins: int = 5
) -> float:
    """Mean gap between forecast and share that happened, over bins weighted by their size.

    Bins that hold few forecasts make it too large: a calibrated forecaster gets about
    √(2 p (1 − p) n_bins / (π n)), not zero.

    Parameters
    ----------
    happened, probability
        (n,) booleans, and forecasts in [0, 1].
    n_bins
        Bins of [0, 1].

    Raises
    ------
    ValueError
        As `brier`, or if `n_bins` is below 1.
    """
    table = reliability_table(happened, probability, n_bins).dropna()
    return float(np.average((table["forecast"] - table["observed"]).abs(), weights=table["n"]))


def reliability_table(happened: ArrayLike, probability: ArrayLike, n_bins: int = 5) -> pd.DataFrame:
    """What a reliability diagram shows: how often it happened, by what was forecast.

    Parameters
    ----------
    happened, probability
        (n,) booleans, and forecasts in [0, 1].
    n_bins
        Bins of [0, 1] of equal width; the last includes 1.

    Returns
    -------
    DataFrame with a row per bin: lower, upper; n; forecast, the mean; observed, the share that
    happened, with its binomial standard_error. NaN where a bin is empty.

    Raises
    ------
    ValueError
        As `brier`, or if `n_bins` is below 1.
    """
    happened, probability = _forecast(happened, probability)
    if n_bins < 1:
        raise ValueError(f"n_bins={n_bins} must be at least 1")
    bin_ = np.minimum((probability * n_bins).astype(int), n_bins - 1)
    n = np.bincount(bin_, minlength=n_bins)
    some = np.where(n, n, np.nan)
    observed = np.bincount(bin_, happened, n_bins) / some
    edges = np.linspace(0, 1, n_bins + 1)
    return pd.DataFrame(
        {
            "lower": edges[:-1],
            "upper": edges[1:],
            "n": n,
            "forecast": np.bincount(bin_, probability, n_bins) / some,
            "observed": observed,
            "standard_error": np.sqrt(observed * (1 - observed) / some),
        }
    )


def coverage(lower: ArrayLike, upper: ArrayLike, truth: ArrayLike) -> Coverage:
    """Share of intervals that hold the truth; ends belong to the interval.

    Parameters
    ----------
    lower, upper, truth
        Arrays of one shape, or that broadcast to one.

    Returns
    -------
    Coverage
        Its standard error takes the intervals for independent; those of one fit often are not.

    Raises
    ------
    ValueError
        If there are no intervals, a value is NaN, or a lower end lies above its upper end.
    """
    lower, upper, truth = np.broadcast_arrays(
        *(np.asarray(x, dtype=float) for x in (lower, upper, truth))
    )
    if not truth.size:
        raise ValueError("there are no intervals")
    if np.isnan([lower, upper, truth]).any():
        raise ValueError("lower, upper or truth is NaN")
    if (lower > upper).any():
        raise ValueError(f"{int((lower > upper).sum())} lower ends lie above their upper ends")
    share = float(((lower <= truth) & (truth <= upper)).mean())
    return Coverage(share, float(np.sqrt(share * (1 - share) / truth.size)), truth.size)


def _pair(happened: ArrayLike, score: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Both as vectors of one length, booleans and floats."""
    happened, score = np.asarray(happened), np.asarray(score, dtype=float)
    if happened.ndim != 1 or happened.shape != score.shape or not len(happened):
        raise ValueError(
            f"what happened {happened.shape} and its forecasts {score.shape} must be vectors of "
            "one length, not empty"
        )
    if not np.isin(happened, (0, 1)).all():
        raise ValueError("what happened must be booleans, or 0 and 1")
    if np.isnan(score).any():
        raise ValueError(f"{int(np.isnan(score).sum())} forecasts are NaN")
    return happened.astype(bool), score


def _forecast(happened: ArrayLike, probability: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    happened, probability = _pair(happened, probability)
    if (probability < 0).any() or (probability > 1).any():
        raise ValueError(
            f"probabilities must lie in [0, 1], not {probability.min():g} to {probability.max():g}"
        )
    return happened, probability
