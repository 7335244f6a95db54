"""Distributions that torch and Pyro lack."""

from __future__ import annotations

from pyrocell.distributions.counts import NegativeBinomial, ZeroInflatedNegativeBinomial
from pyrocell.distributions.event_normal import (
    EventLogNormal,
    EventMultivariateNormal,
    EventNormal,
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
    "EventLogNormal",
    "EventMultivariateNormal",
    "EventNormal",
    "GaussianWalk",
    "LowRankNormal",
    "LowRankRow",
    "MarkovLowRankNormal",
    "NegativeBinomial",
    "Start",
    "ZeroInflatedNegativeBinomial",
    "log_prob_by_row",
]
