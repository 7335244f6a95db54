"""Joint draws of terms, between those who make them and those who summarise them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pyrocell.posterior.explain.conditions import Asked
from pyrocell.posterior.explain.terms import Term

__all__ = ["Drawn"]


@dataclass(frozen=True)
class Drawn:
    """Joint draws of the terms of a change.

    Attributes
    ----------
    terms
        In order; what each is.
    values
        (S, terms, G) natural-log fold change.
    total
        (S, G) the change itself, computed without the terms.
    gain
        (S,) share of the medium's response that is left; None where there is no gain.
    asked, against
        The two conditions.
    places
        (G,) columns of the genes.
    """

    terms: list[Term]
    values: np.ndarray
    total: np.ndarray
    gain: np.ndarray | None
    asked: Asked
    against: Asked
    places: np.ndarray
