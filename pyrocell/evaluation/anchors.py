"""What a held-out condition would look like without a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pyrocell.evaluation.pseudobulks import Pseudobulks

if TYPE_CHECKING:
    from pyrocell.screen.screen import Screen

__all__ = ["ADDITIVE", "ANCHORS", "MEAN", "NO_CHANGE", "REPLICATE", "Anchor", "SeenCells"]

MEAN, ADDITIVE = "mean of the others", "additive"
NO_CHANGE, REPLICATE = "no change", "replicate"
ANCHORS = (MEAN, ADDITIVE, NO_CHANGE, REPLICATE)


class Anchor(NamedTuple):
    """A change without a model, (G,) or None where there is nothing to take it from, and why."""

    delta: np.ndarray | None
    note: str


@dataclass(frozen=True, eq=False)
class SeenCells:
    """The conditions that are seen under a split, and what they say of those that are not.

    Attributes
    ----------
    bulk
        Cells of the whole screen.
    seen
        (C,) bool, conditions whose cells are seen.
    min_cells
        Cells that a condition needs to be taken for an example.
    """

    bulk: Pseudobulks
    seen: np.ndarray
    min_cells: int

    @property
    def screen(self) -> Screen:
        """The screen of all cells."""
        return self.bulk.screen

    def place(self, c: int) -> tuple[str, float]:
        """Medium and time of a condition."""
        row = self.screen.conditions.iloc[c]
        return str(row["media"]), float(row["time"])

    def at(self, media: str, time: float) -> np.ndarray:
        """(C,) bool: conditions there."""
        return self.screen.at(media, time)

    def controls(self, c: int) -> tuple[np.ndarray, str]:
        """Control cells to set a condition against, and what they are where not in its place."""
        media, time = self.place(c)
        control = self.screen.is_control & self.seen
        at = self.at(media, time)
        if len(rows := self.bulk.cells(control & at)):
            return rows, ""
        medium = (self.screen.conditions["media"] == media).to_numpy()
        if (control & medium).any():
            near = self._nearest(control & medium, time)
            return self.bulk.cells(near), "controls of another time"
        if len(rows := self.bulk.cells(control & self.at(self.screen.baseline_media, time))):
            return rows, "controls of the baseline medium"
        return self.bulk.cells(control), "controls of other media and times"

    def _nearest(self, conditions: np.ndarray, time: float) -> np.ndarray:
        """Of some conditions those nearest in time, the earlier of two."""
        times = self.screen.conditions["time"].to_numpy(float)
        if np.isnan(time):
            return conditions
        away = np.abs(times - time) + 1e-9 * (times > time)
        return conditions & (away == away[conditions].min())

    def others(self, c: int) -> tuple[np.ndarray, str]:
        """Other perturbed conditions that are seen in a condition's place, or else nearest to it.

        Returns
        -------
        (n,) positions, and a note where they are of another place.
        """
        media, time = self.place(c)
        enough = self.screen.conditions["n_cells"].to_numpy() >= self.min_cells
        usable = self.seen & ~self.screen.is_control & enough
        usable[c] = False
        here = usable & self.at(media, time)
        if here.any():
            return np.flatnonzero(here), ""
        medium = usable & (self.screen.conditions["media"] == media).to_numpy()
        if medium.any():
            return np.flatnonzero(self._nearest(medium, time)), "others of another time"
        same_time = usable & self.at(self.screen.baseline_media, time)
        found = same_time if same_time.any() else usable
        return np.flatnonzero(found), "others of another medium"

    def delta_of(self, c: int) -> np.ndarray:
        """Change of a seen condition against the controls of its own place and batches."""
        rows = self.bulk.cells(np.arange(len(self.seen)) == c)
        return self.bulk.delta(rows, self.controls(c)[0])

    def mean_of_others(self, c: int) -> Anchor:
        """Mean change of the other perturbed conditions."""
        found, note = self.others(c)
        if not len(found):
            return Anchor(None, "no other perturbed condition is seen")
        return Anchor(np.mean([self.delta_of(k) for k in found], axis=0), note)

    def additive(self, c: int) -> Anchor:
        """The condition's own change elsewhere, or the sum of those of its perturbations alone.

        Its own change elsewhere, added to the controls here, is "own level elsewhere plus the
        controls' change".
        """
        genotype = self.screen.genotype
        same = (genotype == genotype[c]).all(1) & self.seen
        if same.any():
            media, time = self.place(c)
            medium = same & (self.screen.conditions["media"] == media).to_numpy()
            baseline = same & self.at(self.screen.baseline_media, time)
            where = medium if medium.any() else baseline if baseline.any() else same
            k = int(np.flatnonzero(self._nearest(where, time))[0])
            return Anchor(self.delta_of(k), f"own change in {_words(self.place(k))}")
        carried = np.flatnonzero(genotype[c])
        if len(carried) < 2:
            return Anchor(None, "never seen, so there is nothing to add")
        at, alone = self.at(*self.place(c)), genotype.sum(1) == 1
        total = 0.0
        for k in carried:
            found = np.flatnonzero(at & alone & self.seen & (genotype[:, k] > 0))
            if not len(found):
                name = self.screen.perturbations[k]
                return Anchor(None, f"{name} alone is not seen here")
            total = total + self.delta_of(int(found[0]))
        return Anchor(np.asarray(total), "sum of the perturbations alone")


def _words(place: tuple[str, float]) -> str:
    media, time = place
    return media if np.isnan(time) else f"{media} at {time:g}"
