"""What is to be measured and what the lab allows."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from pyrocell._core.messages import did_you_mean, join_names
from pyrocell.design.layouts import LIBRARY, Layout
from pyrocell.design.questions import Arm
from pyrocell.errors import DesignError

__all__ = ["Plan"]

_MOST_NAMES = 100_000
_MOST_ARMS = 14  # whose subsets are enumerated
_MOST_CONTENTS = 400
_SLACK = 1e-6  # relative, of numbers of cells

Content = tuple[tuple[int, ...], tuple[int, ...]]  # arms, sub-libraries


@dataclass(frozen=True)
class Plan:
    """Perturbations, media and times of a screen, and the lanes to put them in.

    Parameters
    ----------
    perturbations
        Names, or how many there are.
    media
        The medium without stimulus first. Every perturbation goes through every medium.
    times
        Times of measurement; none if there is only one.
    lanes, cells_per_lane
        Batches there can be, and cells that one yields.
    hashing
        Whether cells of several media or times can share a lane, told apart by a hash tag. Without
        it a lane holds one medium at one time.
    arms_per_lane
        Most media-and-times in one lane, such as the number of tags; None for no limit.
    apart
        Pairs of media, or of times, that cannot share a lane.
    min_controls
        Fewest control cells in a lane.
    min_cells
        Fewest cells of every perturbation, and of control, in each medium at each time, over all
        lanes.
    control_share
        Share of controls among the cells of every medium and time in every lane, where the library
        of guides fixes it; None leaves it open.
    libraries, libraries_per_lane
        Sub-libraries that the perturbations are cloned or transduced in, and how many of them fit
        into one lane (None: all). Each has its own controls.
    control
        Label of unperturbed cells.

    Raises
    ------
    DesignError
        If a value makes no sense. Whether a layout exists at all, `recommend` says.
    """

    perturbations: int | Sequence[str]
    media: Sequence[str] = ("baseline",)
    times: Sequence[float] = ()
    lanes: int = 8
    cells_per_lane: float = 10_000
    hashing: bool = True
    arms_per_lane: int | None = None
    apart: Sequence[tuple[Any, Any]] = ()
    min_controls: float = 0
    min_cells: float = 1
    control_share: float | None = None
    libraries: int = 1
    libraries_per_lane: int | None = None
    control: str = "control"

    def __post_init__(self) -> None:
        """Check, and turn lists into tuples."""
        for name in ("media", "times", "apart"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not isinstance(self.perturbations, int):
            object.__setattr__(self, "perturbations", tuple(map(str, self.perturbations)))
        least = {"lanes": 1, "libraries": 1, "min_controls": 0, "min_cells": 0}
        least |= {"arms_per_lane": 1, "libraries_per_lane": 1}
        for name, value in least.items():
            given = getattr(self, name)
            if given is not None and not value <= given < np.inf:
                raise DesignError(f"{name}={given!r} must be at least {value}")
        if not 0 < self.cells_per_lane < np.inf:
            raise DesignError(f"cells_per_lane={self.cells_per_lane!r} must be above 0")
        if self.control_share is not None and not 0 < self.control_share < 1:
            raise DesignError(f"control_share={self.control_share!r} must be between 0 and 1")
        self._check_names()
        if self.libraries > len(self.names):
            raise DesignError(
                f"libraries={self.libraries} is more than the {len(self.names)} perturbations"
            )
        if len(self.arms) > _MOST_ARMS:
            raise DesignError(
                f"{len(self.arms)} combinations of media and times are more than the planner can "
                f"handle ({_MOST_ARMS}); plan them in parts"
            )

    def _check_names(self) -> None:
        for name in ("names", "media", "times"):
            values = getattr(self, name)
            twice = [value for value, n in Counter(values).items() if n > 1]
            if twice:
                raise DesignError(f"{name}: {join_names(twice)} occurs twice")
        if len(self.names) > _MOST_NAMES:
            raise DesignError(
                f"{len(self.names):,} perturbations are more than the planner can handle "
                f"({_MOST_NAMES:,}); plan a part of them: their contrasts are alike"
            )
        if not self.names or self.control in self.names:
            raise DesignError(
                f'perturbations: at least one is needed, and none may be control="{self.control}"'
            )
        if not self.media:
            raise DesignError("media: give at least the medium without stimulus")
        if any(not 0 <= t < np.inf for t in self.times):
            raise DesignError(f"times={self.times!r}: finite numbers ≥ 0")
        options = [*self.media, *self.times]
        for pair in self.apart:
            for one in pair if len(pair) == 2 else [pair]:
                if one not in options:
                    raise DesignError(
                        f'apart: "{one}" is neither a medium nor a time of the plan'
                        f"{did_you_mean(one, options)}; give pairs such as (media, media)"
                    )
            if pair[0] == pair[1]:
                raise DesignError(f'apart: "{pair[0]}" cannot be kept apart from itself')

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the perturbations."""
        if not isinstance(self.perturbations, int):
            return tuple(self.perturbations)
        width = len(str(max(self.perturbations, 1)))
        return tuple(f"perturbation{i + 1:0{width}d}" for i in range(self.perturbations))

    @cached_property
    def arms(self) -> tuple[Arm, ...]:
        """Media at times."""
        return tuple(Arm(m, float(t)) for m in self.media for t in self.times or (np.nan,))

    @cached_property
    def library_of(self) -> np.ndarray:
        """(K,) sub-library of each perturbation: consecutive ones, as equal as can be."""
        sizes = [len(part) for part in np.array_split(np.arange(len(self.names)), self.libraries)]
        return np.repeat(np.arange(self.libraries), sizes)

    @cached_property
    def contents(self) -> list[Content]:
        """What a lane may hold at most: sets of arms and of sub-libraries that nothing can join.

        Raises
        ------
        DesignError
            If there are too many to search.
        """
        most = len(self.arms) if self.hashing else 1
        most = min(most, self.arms_per_lane or most)
        barred = np.array([[self._apart(a, b) for b in self.arms] for a in self.arms])
        arms = _maximal(len(self.arms), most, barred)
        n = self.libraries
        several = min(n, self.libraries_per_lane or n)
        libraries = list(itertools.islice(itertools.combinations(range(n), several), 1000))
        if len(arms) * len(libraries) > _MOST_CONTENTS:
            raise DesignError(
                f"a lane could be filled in {len(arms) * len(libraries)} ways or more, more than "
                f"the planner searches ({_MOST_CONTENTS}); use fewer sub-libraries, or fewer media "
                "and times, or allow more of them in a lane"
            )
        return list(itertools.product(arms, libraries))

    def _apart(self, one: Arm, other: Arm) -> bool:
        pairs = {frozenset(pair) for pair in self.apart}
        return any(frozenset(pair) in pairs for pair in zip(one, other, strict=True))

    def violations(self, layout: Layout) -> list[str]:
        """Say which constraints a layout breaks, each with the lane and the number; [] if none."""
        found = []
        if layout.cells.shape[:2] != (1 + len(self.names), len(self.arms)):
            return [f"perturbations, media, times: the plan asks for others than {layout}"]
        used = np.flatnonzero(layout.cells.sum((0, 1)) > 0)
        if len(used) > self.lanes:
            found.append(f"lanes={self.lanes}: {len(used)} are used")
        for b in used.tolist():
            found += [f"{text} in {layout.batches[b]}" for text in self._of_lane(layout, b)]
        held = layout.cells.sum(-1)
        for p, a in np.argwhere(held < self.min_cells * (1 - _SLACK))[:5]:
            name = (layout.control, *layout.perturbations)[p]
            found.append(
                f"min_cells={self.min_cells:g}: {held[p, a]:.4g} of {name} in {self.arms[a].name}"
            )
        return found

    def _of_lane(self, layout: Layout, b: int) -> list[str]:
        """Constraints that one lane breaks."""
        cells, found = layout.cells[..., b], []
        arms = tuple(np.flatnonzero(cells.sum(0) > 0))
        libraries = set(self.library_of[cells[1:].sum(1) > 0])
        if not any(set(arms) <= set(a) for a, _ in self.contents):
            which = "hashing, arms_per_lane, apart" if self.hashing else "hashing=False"
            found.append(f"{which}: {join_names([self.arms[a].name for a in arms])}")
        if not any(libraries <= set(p) for _, p in self.contents):
            found.append(f"libraries_per_lane={self.libraries_per_lane}: {len(libraries)}")
        if cells.sum() > self.cells_per_lane * (1 + _SLACK):
            found.append(f"cells_per_lane={self.cells_per_lane:g}: {cells.sum():,.0f}")
        if cells[0].sum() < self.min_controls * (1 - _SLACK):
            found.append(f"min_controls={self.min_controls:g}: {cells[0].sum():.4g}")
        if self.control_share is not None:
            wanted = self.control_share * cells.sum(0)
            if (np.abs(cells[0] - wanted) > _SLACK * self.cells_per_lane).any():
                found.append(f"control_share={self.control_share:g}: another share")
        return found

    def layout(self, cells: np.ndarray, batches: Sequence[str] | None = None) -> Layout:
        """Return a layout of this plan from (1 + K, A, lanes) cells, control first."""
        width = len(str(cells.shape[-1]))
        names = batches or [f"lane{i + 1:0{width}d}" for i in range(cells.shape[-1])]
        of = [LIBRARY] * len(self.names)
        if self.libraries > 1:
            of = [f"{LIBRARY}{i + 1}" for i in self.library_of]
        return Layout(
            cells, self.names, self.arms, tuple(names), self.control, self.media[0], tuple(of)
        )

    def at(self, **changes: Any) -> Plan:
        """Return the same plan with some fields changed."""
        return replace(self, **changes)


def _maximal(n: int, most: int, barred: np.ndarray) -> list[tuple[int, ...]]:
    """Subsets of range(n) of at most `most`, no two barred, that cannot be enlarged."""

    def legal(chosen: tuple[int, ...]) -> bool:
        return not barred[np.ix_(chosen, chosen)].any()

    found: list[tuple[int, ...]] = []
    for size in range(most, 0, -1):
        for chosen in itertools.combinations(range(n), size):
            if legal(chosen) and not any(set(chosen) <= set(other) for other in found):
                found.append(chosen)
    return found
