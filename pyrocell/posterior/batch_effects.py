"""Batch noise of each batch or laboratory and gene."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from pyrocell.posterior.fitted_screen import FittedScreen
from pyrocell.posterior.streaming_quantiles import RunningSummary

__all__ = ["batch_effects", "eta_draws"]


def batch_effects(
    fit: FittedScreen, n_samples: int, credible_level: float, by: str = "batch"
) -> pd.DataFrame:
    """η of each batch and gene; expression-weighted mean over genes zero (softmax gauge)."""
    names, mean = fit.screen.batches, None
    if by == "laboratory":
        names, mean = fit.screen.laboratories, fit.model.noise.laboratory_mean.cpu().numpy()
    running = RunningSummary((len(names), len(fit.screen.genes)), n_samples, credible_level)
    for eta in eta_draws(fit, n_samples):
        running.add(eta if mean is None else mean @ eta)
    summary = running.summary()
    index = pd.MultiIndex.from_product([names, fit.screen.genes], names=[by, "gene"])
    table = pd.DataFrame({k: v.ravel() for k, v in summary.items()}, index=index)
    return table.drop(columns="prob_direction").reset_index()


def eta_draws(fit: FittedScreen, n_samples: int) -> Iterator[np.ndarray]:
    """Draws of η in the gauge of the table, (B, G) each."""
    for values in fit.posterior.draws(n_samples, perturbations=()):
        eta = fit.model.measurement.gauge(values["eta"], values["V.baseline"])
        yield eta.cpu().numpy()
