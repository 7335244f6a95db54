"""Which view measures which features, where the features of several views are one axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np
import scipy.sparse as sp

from pyrocell._core.messages import did_you_mean
from pyrocell.errors import UnknownLabelError

__all__ = ["FeatureViews", "places_of"]


def places_of(sizes: Sequence[int]) -> list[slice]:
    """Places on one axis of parts that stand side by side, each of its size."""
    return [slice(end - n, end) for end, n in zip(accumulate(sizes), sizes, strict=True)]


@dataclass(frozen=True)
class FeatureViews:
    """Views in the order of their features.

    Attributes
    ----------
    names
        (V,) names of views.
    sizes
        (V,) numbers of features.
    controls
        Positions of features that are known to measure nothing of a cell's state.
    links
        (G, G) weights, rows of which add to 1: features that are expected to respond as those they
        are linked to; None where there are none.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    controls: tuple[int, ...] = ()
    links: sp.csr_array | None = field(default=None, compare=False, repr=False)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def slices(self) -> list[slice]:
        """Features of each view."""
        return places_of(self.sizes)

    def of(self, name: str) -> int:
        """Position of a view.

        Raises
        ------
        UnknownLabelError
            If there is none of that name.
        """
        if name not in self.names:
            raise UnknownLabelError(
                f'view="{name}" is not a view of this model{did_you_mean(name, self.names)}'
            )
        return self.names.index(name)

    @property
    def own_controls(self) -> list[list[int]]:
        """Of each view, positions of its controls among its features."""
        return [[c - p.start for c in self.controls if p.start <= c < p.stop] for p in self.slices]

    def labels(self) -> np.ndarray:
        """(G,) name of each feature's view."""
        return np.repeat(np.array(self.names, dtype=object), self.sizes)

    def spread(self, values: np.ndarray) -> np.ndarray:
        """Values of views (..., V) as values of features, (..., G)."""
        return np.repeat(values, self.sizes, axis=-1)
