"""Draws from the posterior, and what is asked of them (eq. 6)."""

from pyrocell.posterior.draws import Posterior, check_draws, check_level, summarise

__all__ = ["Posterior", "check_draws", "check_level", "summarise"]
