"""Distributions that torch and Pyro lack."""

from __future__ import annotations

from pyrocell.distributions.counts import NegativeBinomial, ZeroInflatedNegativeBinomial
from pyrocell.distributions.event_normal import (
    WideLogNormal,
    WideMultivariateNormal,
    WideNormal,
    log_prob_by_row,
)
from pyrocell.distributions.gaussian import (
    GaussianWalk,
    LowRankNormal,
    LowRankRow,
    MarkovLowRankNormal,
)
from pyrocell.distributions.start import Start

__all__ = [
    "GaussianWalk",
    "LowRankNormal",
    "LowRankRow",
    "MarkovLowRankNormal",
    "NegativeBinomial",
    "Start",
    "WideLogNormal",
    "WideMultivariateNormal",
    "WideNormal",
    "ZeroInflatedNegativeBinomial",
    "log_prob_by_row",
]
