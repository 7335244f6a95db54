"""What a screen is asked: contrasts of conditions, by kind and by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pyrocell._core.messages import did_you_mean
from pyrocell.errors import DesignError

__all__ = ["KINDS", "Arm", "Kind", "kinds_of", "target_weights"]

KINDS = ("perturbation", "media", "gain", "time", "change")


class Arm(NamedTuple):
    """A medium and a time, NaN where the screen has none; every perturbation may be in any arm."""

    media: str
    time: float

    @property
    def name(self) -> str:
        """How figures and messages call it."""
        return self.media if np.isnan(self.time) else f"{self.media}, {self.time:g}"


@dataclass(frozen=True)
class Kind:
    """A question about arms, asked of every perturbation against control, or of control alone.

    Attributes
    ----------
    name
        "perturbation": against control, same medium and time. "media": control in a medium against
        baseline, same time. "gain": what a medium changes of a perturbation's effect. "time":
        control in baseline medium against the first time. "change": what time changes of a
        perturbation's effect, against the first time in that medium.
    weights
        (n, A) weights of arms.
    arms
        (n,) arm that each question is named after.
    perturbed
        Whether it is asked of every perturbation, against control.
    """

    name: str
    weights: np.ndarray
    arms: tuple[Arm, ...]
    perturbed: bool


def kinds_of(arms: Sequence[Arm], baseline: str) -> list[Kind]:
    """Return the kinds of question that arms allow."""
    position = {arm: a for a, arm in enumerate(arms)}
    first: dict[str, Arm] = {}
    for arm in sorted(arms, key=lambda arm: arm.time):
        first.setdefault(arm.media, arm)
    unmet = {
        arm: base
        for arm in arms
        if arm.media != baseline
        and (base := next((b for b in arms if b.media == baseline and _same(b, arm)), None))
    }
    later = {arm: first[arm.media] for arm in arms if arm != first[arm.media]}
    drift = {arm: start for arm, start in later.items() if arm.media == baseline}
    pairs = {
        "perturbation": dict.fromkeys(arms),
        "media": unmet,
        "gain": unmet,
        "time": drift,
        "change": later,
    }
    found = []
    for name, against in pairs.items():
        weights = np.zeros((len(against), len(arms)))
        for row, (arm, other) in enumerate(against.items()):
            weights[row, position[arm]] += 1.0
            if other is not None:
                weights[row, position[other]] -= 1.0
        if len(against):
            perturbed = name not in ("media", "time")
            found.append(Kind(name, weights, tuple(against), perturbed))
    return found


def _same(one: Arm, other: Arm) -> bool:
    return one.time == other.time or (np.isnan(one.time) and np.isnan(other.time))


def target_weights(
    kinds: Sequence[Kind], targets: Mapping[str, float] | Sequence[str] | str | None
) -> dict[str, float]:
    """Weights of the kinds of question in the overall error; they sum to 1.

    Raises
    ------
    DesignError
        If a target is not a kind that these arms allow, or all weights are 0.
    """
    names = [kind.name for kind in kinds]
    if targets is None:
        targets = names
    if isinstance(targets, str):
        targets = [targets]
    if not isinstance(targets, Mapping):
        targets = dict.fromkeys(targets, 1.0)
    for name, weight in targets.items():
        if name not in names:
            why = "needs a second medium or time" if name in KINDS else "is not a question"
            raise DesignError(
                f'targets: "{name}" {why} here{did_you_mean(name, names)}; one of '
                + ", ".join(names)
            )
        if not weight >= 0:
            raise DesignError(f'targets: weight {weight!r} of "{name}" must be at least 0')
    total = sum(targets.values())
    if not total > 0:
        raise DesignError("targets: at least one needs a weight above 0")
    return {name: weight / total for name, weight in targets.items() if weight > 0}
