"""Distributions that torch and Pyro lack."""

from __future__ import annotations

from pyrocell.distributions.counts import NegativeBinomial, ZeroInflatedNegativeBinomial

__all__ = ["NegativeBinomial", "ZeroInflatedNegativeBinomial"]
