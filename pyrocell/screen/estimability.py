"""Which conditions of a screen can be compared with each other, and the words to say so.

Cells of condition c in batch b have mean μ_c + η_b: one free mean per condition (perturbation set ×
medium × time), one free η per batch. Two settings with equal means differ by a constant on each
connected component of the layout graph, added to its conditions and taken from its batches. So a
contrast of conditions is estimable exactly if its weights sum to zero in every component (paper,
Fig. 6 and App. B.2).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from pyrocell._core.messages import join_names
from pyrocell.screen.screen import Screen

__all__ = ["Arm", "LayoutGraph", "arm_name", "several"]

Arm = dict[int, int]  # index of a measured time → condition, both as in the screen
SHOWN = 8  # times or batches that a reason spells out


def several(noun: str, names: Iterable[str]) -> str:
    """Join names behind their noun, as in "batch x" or "batches x, y"."""
    names = list(names)
    plural = "batches" if noun == "batch" else f"{noun}s"
    return f"{noun if len(names) == 1 else plural} {join_names(names, SHOWN)}"


def arm_name(perturbation: str, medium: str) -> str:
    """Name an arm of the screen."""
    return f"{perturbation} in medium {medium}"


class LayoutGraph:
    """Who was measured when and in which batches, and which conditions the batches link.

    Attributes
    ----------
    arms
        Conditions of each (perturbation set, medium), by time. Where arms differ in when cells were
        perturbed and met their medium, those of the usual order at the most usual times.
    unusual
        The others, by (perturbation set, medium), then (time, perturbed at, exposed at).
    perturbations
        Singles first, whether or not measured alone; then combinations.
    baseline, media
        Baseline medium, "" if no cell was in it; and the media beyond it.
    """

    def __init__(self, screen: Screen) -> None:
        observed = screen.baseline_observed
        self.control = screen.control
        self.baseline = screen.baseline_media if observed else ""
        self.media = screen.media if observed else (screen.baseline_media,)
        self._times, self._n_batches = screen.times, len(screen.batches)
        self._component = np.zeros(len(screen.conditions), np.int64)
        for i, part in enumerate(screen.components()):
            self._component[part.conditions] = i
        present = screen.layout.to_numpy() > 0
        names = np.array(screen.batches, dtype=object)
        self._batches = [names[row].tolist() for row in present]
        held = np.zeros((max(1, len(screen.times)), len(names)), bool)
        np.logical_or.at(held, screen.time_index, present)
        self._n_times = dict(zip(names, held.sum(axis=0), strict=True))  # by batch
        self.arms: dict[tuple[str, str], Arm] = {}
        self.unusual: dict[tuple[str, str], dict[tuple[int, float, float], int]] = {}
        labels = zip(screen.conditions["perturbation"], screen.conditions["media"], strict=True)
        usual = _usual_times(screen)
        for c, (arm, time) in enumerate(zip(labels, screen.time_index.tolist(), strict=True)):
            if usual[c]:
                self.arms.setdefault(arm, {})[time] = c
            else:
                at = (time, float(screen.perturbed_at[c]), float(screen.exposed_at[c]))
                self.unusual.setdefault(arm, {})[at] = c
        self._exposed_at = screen.exposed_at
        sets = dict.fromkeys((*screen.perturbations, *screen.conditions["perturbation"]))
        self.perturbations = [label for label in sets if label != self.control]

    def arm(self, perturbation: str, medium: str) -> Arm:
        """Conditions of an arm by time; empty if it was not measured."""
        return self.arms.get((perturbation, medium), {})

    def control_exposed(self, medium: str, time: int, exposed_at: float) -> int | None:
        """Control cells that met a medium at a given time; None if there are none."""
        usual = self.arm(self.control, medium).get(time)
        if usual is not None and float(self._exposed_at[usual]) == exposed_at:
            return usual
        found = self.unusual.get((self.control, medium), {})
        return next((c for (t, _, at), c in found.items() if (t, at) == (time, exposed_at)), None)

    def estimable(self, weights: dict[int, float]) -> bool:
        """Whether weights of conditions sum to zero in every component of the layout graph."""
        sums = np.bincount(self._component[list(weights)], list(weights.values()))
        return not sums.any()  # weights are whole numbers, so the sums are exact

    def linked(self, one: int, other: int) -> bool:
        """Whether the difference of two conditions is estimable."""
        return bool(self._component[one] == self._component[other])

    def alone(self, arm: Arm) -> bool:
        """Whether each batch of an arm holds a single time of the whole screen."""
        return all(self._n_times[b] == 1 for c in arm.values() for b in self._batches[c])

    def how(self, one: int, other: int) -> str:
        """Say how two linked conditions are linked, as a predicate."""
        if self._n_batches == 1:
            return "share the only batch"
        shared = [batch for batch in self._batches[one] if batch in self._batches[other]]
        if shared:
            return f"share {several('batch', shared)}"
        return f"are in {self.held([one, other])}, which other conditions link"

    def held(self, conditions: Iterable[int]) -> str:
        """Name the batches of conditions."""
        if self._n_batches == 1:
            return "the only batch"
        return several("batch", dict.fromkeys(b for c in conditions for b in self._batches[c]))

    def times(self, indices: Iterable[int]) -> str:
        """Name times by index."""
        if not self._times:
            return "one time"
        return several("time", [f"{self._times[t]:g}" for t in sorted(indices)])

    def at(self, time: int) -> str:
        """Say at which time, with a space before; empty where the screen has no times."""
        return f" at {self.times([time])}" if self._times else ""

    def only_time(self, arm: Arm) -> str:
        """Say that an arm has no second time."""
        why = "" if self._times else " (the screen was registered without time_key=)"
        return f"was measured at {self.times(arm)} only, in {self.held(arm.values())}{why}"

    def by_time(self, arm: Arm) -> str:
        """List the batches of an arm by time."""
        parts = [f"{self.times([t])} in {self.held([arm[t]])}" for t in sorted(arm)]
        return "; ".join(parts[:SHOWN]) + ("; …" if len(parts) > SHOWN else "")

    def apart(self, perturbation: str, cases: list[tuple[int, int, int]]) -> str:
        """Say where a perturbation and the control were, for (condition, condition, time)s."""
        parts = [
            f"{perturbation} was in {self.held([one])} and control in {self.held([other])}"
            f"{self.at(time)}"
            for one, other, time in cases
        ]
        return f"{'; '.join(parts[:SHOWN])}, and no condition links them"


def _usual_times(screen: Screen) -> np.ndarray:
    """(C,) bool: conditions perturbed and exposed when most are, perturbed no later than exposed.

    Controls of a medium count if they met it when its perturbed cells did.
    """
    perturbed, exposed = ~screen.is_control, screen.exposure.any(1)
    in_order = perturbed & ~(exposed & (screen.exposed_at < screen.perturbed_at))
    cells = screen.conditions["n_cells"].to_numpy()

    def most_usual(times: np.ndarray, *choices: np.ndarray) -> float:
        rows = next((choice for choice in choices if choice.any()), np.zeros(len(times), bool))
        found, code = np.unique(times[rows], return_inverse=True)
        return float(found[np.bincount(code, cells[rows]).argmax()]) if len(found) else 0.0

    start = most_usual(screen.perturbed_at, in_order)
    usual = ~perturbed | (in_order & (screen.perturbed_at == np.float32(start)))
    for met in screen.exposure.T > 0:
        time = most_usual(screen.exposed_at, met & usual & perturbed, met & usual)
        usual &= ~met | (screen.exposed_at == np.float32(time))
    return usual
