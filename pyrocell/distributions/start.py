"""Where the guide's factor of a site starts."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

__all__ = ["Start"]


class Start(NamedTuple):
    """Mean and width of a factor before training.

    Attributes
    ----------
    loc, scale
        Mean and standard deviation, of the site's logarithm where it is positive.
    positive
        Whether the site is above zero; its factor is then lognormal.
    """

    loc: Tensor
    scale: Tensor
    positive: bool = False
