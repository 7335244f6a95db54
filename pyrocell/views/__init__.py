"""Measurement views V: what counts are, given expression; and expression, given the state.

`register` makes a view known by the name that `PyroCell(likelihood=)` takes. Several views of the
same cells are a `JointView`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from pyrocell.distributions import Start
from pyrocell.errors import ScreenError
from pyrocell.views import rna
from pyrocell.views.base import View
from pyrocell.views.chromatin import ChromatinView, OpenChromatinView, PoissonChromatinView
from pyrocell.views.joint import JointView
from pyrocell.views.protein import ProteinView
from pyrocell.views.rna import RNAView

__all__ = [
    "USUAL",
    "VIEWS",
    "ChromatinView",
    "JointView",
    "OpenChromatinView",
    "PoissonChromatinView",
    "ProteinView",
    "RNAView",
    "Start",
    "View",
    "depth_of",
    "register",
    "rna",
]

VIEWS: dict[str, Callable[..., View]] = {
    "zinb": RNAView,
    "nb": partial(RNAView, zero_inflated=False),
    "antibodies": ProteinView,
    "fragments": ChromatinView,
    "poisson fragments": PoissonChromatinView,
    "binary fragments": OpenChromatinView,
}
# What `setup_mudata` makes of a modality, by the name of its argument.
USUAL = {"rna": "zinb", "protein": "antibodies", "chromatin": "fragments"}


def depth_of(kind: str) -> str:
    """What the depth of a cell is in counts of a kind; see `View.depth`."""
    if kind not in VIEWS:
        raise ScreenError(f'"{kind}" is no kind of counts; there are {", ".join(VIEWS)}')
    view = VIEWS[kind]
    return str(getattr(getattr(view, "func", view), "depth", "total"))


def register(name: str, view: Callable[..., View]) -> None:
    """Make a view known as `PyroCell(likelihood=name)`; see `View` for what it is made with."""
    VIEWS[name] = view
