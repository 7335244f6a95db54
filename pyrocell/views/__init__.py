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
from pyrocell.views.chromatin import ChromatinView
from pyrocell.views.joint import JointView
from pyrocell.views.protein import ProteinView
from pyrocell.views.rna import RNAView

__all__ = [
    "USUAL",
    "VIEWS",
    "ChromatinView",
    "JointView",
    "ProteinView",
    "RNAView",
    "Start",
    "View",
    "is_share",
    "register",
    "rna",
]

VIEWS: dict[str, Callable[..., View]] = {
    "zinb": RNAView,
    "nb": partial(RNAView, zero_inflated=False),
    "antibodies": ProteinView,
    "fragments": ChromatinView,
    "poisson fragments": partial(ChromatinView, counts="poisson"),
    "binary fragments": partial(ChromatinView, counts="binary"),
}
# What `setup_mudata` makes of a modality, by the name of its argument.
USUAL = {"rna": "zinb", "protein": "antibodies", "chromatin": "fragments"}


def is_share(kind: str) -> bool:
    """Whether counts of a kind are shares of all counts of a cell."""
    if kind not in VIEWS:
        raise ScreenError(f'"{kind}" is no kind of counts; there are {", ".join(VIEWS)}')
    view = VIEWS[kind]
    return bool(getattr(getattr(view, "func", view), "composition", True))


def register(name: str, view: Callable[..., View]) -> None:
    """Make a view known as `PyroCell(likelihood=name)`; see `View` for what it is made with."""
    VIEWS[name] = view
