"""Measurement views V: what counts are, given expression; and expression, given the state.

`register` makes a view known by the name that `PyroCell(likelihood=)` takes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from pyrocell.distributions import Start
from pyrocell.views import rna
from pyrocell.views.base import View
from pyrocell.views.rna import RNAView

__all__ = ["VIEWS", "RNAView", "Start", "View", "register", "rna"]

VIEWS: dict[str, Callable[..., View]] = {
    "zinb": RNAView,
    "nb": partial(RNAView, zero_inflated=False),
}


def register(name: str, view: Callable[..., View]) -> None:
    """Make a view known as `PyroCell(likelihood=name)`; see `View` for what it is made with."""
    VIEWS[name] = view
