"""How much of the response to a medium each perturbation leaves."""

from __future__ import annotations

import pandas as pd

from pyrocell.posterior.draws import summarise
from pyrocell.posterior.fitted_screen import FittedScreen

__all__ = ["media_gains"]


def media_gains(fit: FittedScreen, n_samples: int, credible_level: float) -> pd.DataFrame:
    """Gain of each perturbation on each medium's response."""
    draws = fit.posterior.samples(n_samples, ["M.gain"])["M.gain"]
    summary = summarise(draws, credible_level)
    index = pd.MultiIndex.from_product(
        [fit.screen.perturbations, fit.screen.media], names=["perturbation", "media"]
    )
    table = pd.DataFrame({k: v.ravel() for k, v in summary.items()}, index=index)
    return table.drop(columns="prob_direction").reset_index()
