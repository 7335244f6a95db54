"""Screens whose truth is known."""

from __future__ import annotations

from pyrocell.simulate.differentiation import differentiation
from pyrocell.simulate.pooled import screen
from pyrocell.simulate.settings import ScreenSettings

__all__ = ["ScreenSettings", "differentiation", "screen"]
