"""Likelihood of levels and of their contrasts, from sums of counts; no fitted model."""
