"""Is the run good: has it converged, does the model reproduce the data, what is aliased."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from pyrocell.training.best_epoch import KEPT

__all__ = ["KEPT_BEST", "Convergence", "convergence", "strongest"]

_LAST = 0.25  # share of training whose slope is judged
_MIN_CHECKS = 4  # values in that share
KEPT_BEST = "best epoch kept"
_SMALL = 0.02  # a rise below this share of the whole rise is no reason to train on


@dataclass(frozen=True)
class Convergence:
    """What the last quarter of the ELBO's course says.

    Attributes
    ----------
    elbo
        Its mean over that quarter's last checks, nats per cell.
    rise, error
        Slope over the quarter times its length, and the standard error of that, nats per cell.
    held_out
        Whether this is the ELBO of held-out cells; else that of the training cells.
    verdict
        "converged", "still rising", "falling", "best epoch kept" (the evidence fell after it) or
        "too short to tell".
    """

    elbo: float
    rise: float
    error: float
    held_out: bool
    verdict: str

    @property
    def good(self) -> bool:
        """Whether there is no reason to train on."""
        return self.verdict in ("converged", KEPT_BEST)


def convergence(history: pd.DataFrame) -> Convergence:
    """Judge convergence by the slope of the held-out ELBO over the last quarter of training.

    Parameters
    ----------
    history
        Of a trained model, one row per epoch.

    Returns
    -------
    Convergence: converged if the slope is within two standard errors of zero, or the rise is below
    2% of the rise since the first epoch.
    """
    held_out = "validation_elbo" in history
    if KEPT in history and not history[KEPT].iloc[-1]:
        at = history.index[history[KEPT] > 0][0]
        curve = history["validation_elbo"]
        fall = float(curve.iloc[-1] - curve[at])
        return Convergence(float(curve[at]), fall, 0.0, True, KEPT_BEST)
    if not len(history):
        return Convergence(np.nan, np.nan, np.nan, held_out, "too short to tell")
    curve = history["validation_elbo"] if held_out else -history["train_loss"]
    # Between two checks the history repeats the last value.
    curve = curve[curve.ne(curve.shift())].dropna()
    start = history.index[-1] - _LAST * (history.index[-1] - history.index[0])
    late = curve[curve.index >= start]
    if len(late) < _MIN_CHECKS:
        return Convergence(float(curve.iloc[-1]), np.nan, np.nan, held_out, "too short to tell")
    epoch = np.asarray(late.index, float)
    (slope, _), covariance = np.polyfit(epoch, late.to_numpy(float), 1, cov="unscaled")
    residual = late - np.polyval(np.polyfit(epoch, late, 1), epoch)
    variance = float((residual**2).sum()) / (len(late) - 2)
    length = epoch[-1] - epoch[0]
    rise, error = float(slope * length), float(np.sqrt(covariance[0, 0] * variance) * length)
    whole = abs(float(curve.iloc[-1] - curve.iloc[0]))
    verdict = "converged"
    if abs(rise) > max(2 * error, _SMALL * whole):
        verdict = "still rising" if rise > 0 else "falling"
    return Convergence(float(curve.iloc[-1]), rise, error, held_out, verdict)


def strongest(effects: pd.DataFrame, n: int) -> pd.DataFrame:
    """The n effects whose intervals lie farthest from zero."""
    bound = pd.Series(np.maximum(effects["lower"], -effects["upper"]))
    return effects.loc[bound.nlargest(n).index]
