"""Screens whose truth is known."""

from __future__ import annotations

from pyrocell.simulate.capture import GuideCapture, write_10x
from pyrocell.simulate.differentiation import differentiation
from pyrocell.simulate.pooled import screen
from pyrocell.simulate.settings import ScreenSettings
from pyrocell.simulate.several_views import views

__all__ = ["GuideCapture", "ScreenSettings", "differentiation", "screen", "views", "write_10x"]
