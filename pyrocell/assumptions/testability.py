"""Which assumptions the layout of a screen can test, known before any fit.

An assumption is testable if the contrast of conditions that it speaks of is estimable with free
condition means and free batch noise (`links.py`). Of several times the latest that allow it are
taken, and any will do, so that more cells never make an assumption untestable.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from pyrocell._core.messages import join_names
from pyrocell.screen.estimability import Arm, LayoutGraph, arm_name
from pyrocell.screen.screen import Screen

__all__ = ["ALL_PERTURBATIONS", "CELLS_OF_A_GUIDE", "Comparison", "comparisons", "testability"]

CELLS_OF_A_GUIDE = 10  # in one condition, at least, to be compared with other guides
ALL_PERTURBATIONS = "all"  # `perturbation` in the rows of `memory`, which are about a medium
Weights = dict[int, float]  # condition → weight
Verdict = tuple[Weights, str]  # contrast, empty if untestable; reason
Orders = dict[str, tuple[Weights, Weights]]  # by perturbation: reverse order, usual order


@dataclass(frozen=True)
class Comparison:
    """An assumption about one condition, and what would test it.

    Attributes
    ----------
    assumption, perturbation, media
        What is assumed, and where.
    weights
        The contrast that tests it, weights by row of `Screen.conditions`; empty if the layout
        cannot estimate it. A change is later minus earlier, a difference is minus the control.
    reason
        Why it can or cannot be tested; if not, what to add to the next screen.
    orders
        Of `memory`, for every perturbation that was made in both orders, the contrasts after the
        reverse order and the usual one; `weights` is the first.
    """

    assumption: str
    perturbation: str
    media: str
    weights: Weights
    reason: str
    orders: Orders = field(default_factory=dict)

    @property
    def testable(self) -> bool:
        """Whether the layout can estimate the contrast."""
        return bool(self.weights)


def testability(screen: Screen) -> pd.DataFrame:
    """Say for every assumption and condition whether the layout of a screen can test it.

    Returns
    -------
    DataFrame with assumption, perturbation, media, testable, reason. Assumptions: `necessary`
    (section 2.3.1), `steady` and `steady_vs_control` (2.3.2), `silent_at_baseline` (App. A),
    `no_response` (a perturbation blocks a medium), `memory` (a response outlives the loss of its
    pathway; one row per medium, perturbation "all"). Sets of perturbations with too few cells for a
    level of their own (see `Screen.additive`) are left out.
    """
    rows = [
        (row.assumption, row.perturbation, row.media, row.testable, row.reason)
        for row in comparisons(screen.without_sums)
    ]
    columns = ["assumption", "perturbation", "media", "testable", "reason"]
    return pd.DataFrame(rows, columns=columns).astype({"testable": bool})


def comparisons(screen: Screen) -> list[Comparison]:
    """Return the contrast behind every row of `testability`, in the same order."""
    links = LayoutGraph(screen)
    control, baseline = screen.control, screen.baseline_media
    arms = [arm for arm in links.arms if arm != (control, links.baseline)]
    perturbed = [arm for arm in arms if arm[0] != control]
    rows = [("necessary", control, baseline, _necessary(links))]
    rows += [("steady", p, m, _change(links, p, m)) for p, m in arms]
    rows += [("steady_vs_control", p, m, _relative_change(links, p, m)) for p, m in perturbed]
    rows += [("silent_at_baseline", p, baseline, _effect(links, p)) for p in links.perturbations]
    rows += [
        ("no_response", p, m, _response(links, p, m))
        for p, m in itertools.product(links.perturbations, links.media)
    ]
    found = [Comparison(name, p, m, *verdict) for name, p, m, verdict in rows]
    for m in links.media:
        verdict, orders = _memory(links, m)
        found.append(Comparison("memory", ALL_PERTURBATIONS, m, *verdict, orders))
    if screen.cell_guide is not None and len(screen.cell_condition):
        known = _cells_of_guides(screen)
        found += [
            Comparison("guides_agree", p, m, *_agreement(screen, known, p, m)) for p, m in perturbed
        ]
    return found


def _cells_of_guides(screen: Screen) -> pd.Series:
    """Cells of every condition and guide, where the guide is known."""
    cells = pd.DataFrame({"condition": screen.cell_condition, "guide": screen.cell_guide})
    return cells[cells["guide"] >= 0].groupby(["condition", "guide"]).size()


def _agreement(screen: Screen, cells: pd.Series, perturbation: str, medium: str) -> Verdict:
    """Whether two guides of a perturbation were measured beside each other."""
    table = screen.conditions
    medium_here = medium or screen.baseline_media
    mine = np.flatnonzero((table["perturbation"] == perturbation) & (table["media"] == medium_here))
    best = 0
    for c in mine:
        if c not in cells.index.get_level_values(0):
            continue
        enough = cells[c][cells[c] >= CELLS_OF_A_GUIDE]
        best = max(best, len(enough))
    if best < 2:
        seen = "one guide" if best else "no guide"
        return _untestable(
            f"{perturbation} has {seen} with {CELLS_OF_A_GUIDE} cells in medium {medium_here}",
            f"{CELLS_OF_A_GUIDE} cells or more of each of two guides of {perturbation}",
        )
    weights = {int(c): 1.0 for c in mine}
    return weights, f"{best} guides of {perturbation} were measured beside each other"


def _untestable(because: str, remedy: str) -> Verdict:
    return {}, f"{because}. Next screen: {remedy}"


def _contrast(plus: Iterable[int], minus: Iterable[int]) -> Weights:
    return dict.fromkeys(plus, 1.0) | dict.fromkeys(minus, -1.0)


def _pairs(times: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Pairs of times, earlier first; the latest pair comes first."""
    descending = sorted(times, reverse=True)
    return ((early, late) for late, early in itertools.combinations(descending, 2))


def _never(links: LayoutGraph, perturbation: str, medium: str, remedy: str) -> Verdict:
    """Say that an arm was not measured, and what was instead."""
    media = [m for p, m in links.arms if p == perturbation]
    if not medium:
        because = f"every cell was in medium {links.media[0]}, none without it"
    elif media:
        because = (
            f"{perturbation} was never measured in medium {medium}, only in {join_names(media)}"
        )
    else:
        sets = dict.fromkeys(p for p, _ in links.arms if perturbation in p.split("+"))
        if not sets:
            because = (
                f"{perturbation} was measured only together with others, in sets of too few cells "
                "to have a level of their own"
            )
            return _untestable(because, remedy)
        because = f"{perturbation} was measured only in combinations ({join_names(sets)})"
    return _untestable(because, remedy)


def _necessary(links: LayoutGraph) -> Verdict:
    if links.arm(links.control, links.baseline):
        return _change(links, links.control, links.baseline)
    remedy = "add control cells in baseline medium, at two times in one batch"
    return _never(links, links.control, links.baseline, remedy)


def _change(links: LayoutGraph, perturbation: str, medium: str) -> Verdict:
    """Whether the change of an arm between two times is estimable."""
    arm, who = links.arm(perturbation, medium), arm_name(perturbation, medium)
    if len(arm) < 2:
        remedy = "add a second time, with cells of both times in one batch"
        return _untestable(f"{who} {links.only_time(arm)}", remedy)
    for early, late in _pairs(arm):
        weights = _contrast([arm[late]], [arm[early]])
        if links.estimable(weights):
            last = max(arm)
            rest = f"; what changes until {links.times([last])} cannot" if last > late else ""
            return weights, (
                f"{who} was measured at {links.times(arm)}; its cells of "
                f"{links.times([early, late])} {links.how(arm[early], arm[late])}, so a change "
                f"between them can be told from batch noise{rest}"
            )
    where = "hold no other time" if links.alone(arm) else "nothing links to those of the others"
    return _untestable(
        f"{who} was measured at {links.times(arm)}, each in batches that {where} "
        f"({links.by_time(arm)}): a change with time and batch noise cannot be told apart",
        "process cells of two times in one batch, or split the cells of one time over the batches "
        "of both",
    )


def _relative_change(links: LayoutGraph, perturbation: str, medium: str) -> Verdict:
    """Whether an arm's change minus the control's in the same medium is estimable."""
    arm, control = links.arm(perturbation, medium), links.arm(links.control, medium)
    who, both = arm_name(perturbation, medium), sorted(arm.keys() & control.keys())
    if len(arm) < 2:
        remedy = f"add a second time, with control cells in medium {medium} in the same batches"
        return _untestable(f"{who} {links.only_time(arm)}", remedy)
    remedy = (
        f"add control cells in medium {medium} to the batches of {perturbation}, at two or more of "
        "its times"
    )
    if len(both) < 2:
        seen = f"was measured at {links.times(control)}" if control else "was never measured"
        shared = f" ({links.times(both)} is the only one they share)" if both else ""
        because = f"{who} was measured at {links.times(arm)}, but control in that medium {seen}"
        return _untestable(because + shared, remedy)
    for early, late in _pairs(both):
        weights = _contrast((arm[late], control[early]), (arm[early], control[late]))
        if links.estimable(weights):
            return weights, (
                f"{who} and control in that medium were both measured at {links.times(both)}; "
                f"{_cancelling(links, perturbation, arm, control, early, late)}, so batch noise "
                "cancels in the difference of their changes"
            )
    apart = [(arm[t], control[t], t) for t in both if not links.linked(arm[t], control[t])]
    return _untestable(
        f"{who} and control in that medium were both measured at {links.times(both)}, but "
        f"{links.apart(perturbation, apart)}: a change of its own and batch noise cannot be told "
        "apart",
        remedy,
    )


def _cancelling(
    links: LayoutGraph, perturbation: str, arm: Arm, control: Arm, early: int, late: int
) -> str:
    """Say which batches the conditions of a double difference between two times share."""
    if links.linked(arm[late], control[late]):
        shared = [f"{links.how(arm[t], control[t])}{links.at(t)}" for t in (early, late)]
        return f"they {shared[0]} and {shared[1]}"
    return (
        f"of {links.times([early, late])}, the cells of {perturbation} "
        f"{links.how(arm[early], arm[late])} and those of control "
        f"{links.how(control[early], control[late])}"
    )


def _effect(links: LayoutGraph, perturbation: str) -> Verdict:
    """Whether perturbation minus control in baseline medium, at one time, is estimable."""
    baseline = links.baseline
    arm, control = links.arm(perturbation, baseline), links.arm(links.control, baseline)
    where = f"medium {baseline}" if baseline else "baseline medium"
    remedy = f"add {perturbation} and control cells in {where} to one batch, at one time"
    if not arm:
        return _never(links, perturbation, baseline, remedy)
    if not control:
        return _never(links, links.control, baseline, remedy)
    both = sorted(arm.keys() & control.keys(), reverse=True)
    for time in both:
        weights = _contrast([arm[time]], [control[time]])
        if links.estimable(weights):
            return weights, (
                f"{perturbation} and control in {where}{links.at(time)} "
                f"{links.how(arm[time], control[time])}, so their difference can be told from "
                "batch noise"
            )
    remedy = f"add control cells in {where} to the batches of {perturbation}, at the same time"
    if both:
        apart = links.apart(perturbation, [(arm[t], control[t], t) for t in both])
        because = f"in {where} {apart}: its effect and batch noise cannot be told apart"
    else:
        because = (
            f"in {where} {perturbation} was measured at {links.times(arm)} and control at "
            f"{links.times(control)}, never at the same time: its effect and waiting cannot be "
            "told apart"
        )
    return _untestable(because, remedy)


def _response(links: LayoutGraph, perturbation: str, medium: str) -> Verdict:
    """Whether both a perturbation's response to a medium and the control's are estimable.

    Their difference alone is not enough: which share of the response is left asks how large it is.
    """
    names = [(p, m) for p in (perturbation, links.control) for m in (medium, links.baseline)]
    arms = [links.arm(*name) for name in names]
    remedy = (
        f"measure {perturbation} and control, each with and without {medium}, in one batch at one "
        "time"
    )
    for name, arm in zip(names, arms, strict=True):
        if not arm:
            return _never(links, *name, remedy)
    times = sorted(set.intersection(*map(set, arms)), reverse=True)
    cancels = ()
    for time in times:
        a, b, c, d = (arm[time] for arm in arms)
        if links.linked(a, b) and links.linked(c, d):
            return _contrast((a, d), (b, c)), (
                f"{perturbation} and control were measured with and without {medium}"
                f"{links.at(time)}; {perturbation} cells with and without it {links.how(a, b)}, "
                f"control cells {links.how(c, d)}, so both responses can be told from batch noise"
            )
        if not cancels and links.estimable(_contrast((a, d), (b, c))):
            cancels = (time, [a, c], [b, d])
    if cancels:
        time, met, unmet = cancels
        return _untestable(
            f"cells with {medium} are in {links.held(met)} and those without it in "
            f"{links.held(unmet)}{links.at(time)}, and no condition links them, so the response "
            f"and batch noise cannot be told apart: that {perturbation} changes the response can "
            "be seen, not which share of it is left",
            f"put cells with and without {medium} in one batch",
        )
    if times:
        late = max(times)
        seen = "; ".join(
            f"{arm_name(*name)} in {links.held([arm[late]])}"
            for name, arm in zip(names, arms, strict=True)
        )
        because = f"no condition links the batches that would have to be compared{links.at(late)}"
        mixed = "batch noise"
    else:
        seen = "; ".join(
            f"{arm_name(*name)} at {links.times(arm)}"
            for name, arm in zip(names, arms, strict=True)
        )
        because = f"{perturbation} and control, with and without {medium}, share no time"
        mixed = "waiting"
    return _untestable(
        f"{because} ({seen}): what it does to the response and {mixed} cannot be told apart", remedy
    )


def _memory(links: LayoutGraph, medium: str) -> tuple[Verdict, Orders]:
    """Whether both orders of losing a pathway and meeting a medium can be compared with controls.

    Of the reverse order the latest harvest is taken at which a perturbation can be judged.
    """
    remedy = (
        f"add cells that get {medium} first and are perturbed afterwards, with control cells in "
        "the same batches"
    )
    ways: dict[tuple[int, float, float], dict[str, int]] = {}
    for (p, m), conditions in links.unusual.items():
        for (time, perturbed, exposed), c in conditions.items():
            if m == medium and p != links.control and exposed < perturbed:
                ways.setdefault((time, perturbed, exposed), {})[p] = c
    for (time, perturbed, exposed), reverse in sorted(ways.items(), reverse=True):
        control = links.control_exposed(medium, time, exposed)
        found = {p: _both_orders(links, p, medium, time, c, control) for p, c in reverse.items()}
        orders = {p: both for p, both in found.items() if both}
        if orders:
            since = f" (exposed at {exposed:g}, perturbed at {perturbed:g})"
            reason = (
                f"{join_names(orders)} came after {medium}{since} and, in other cells, before it; "
                f"both and their controls were measured{links.at(time)} in batches that are "
                "linked, so what is left of the response can be told from batch noise"
            )
            (first, _), *_ = orders.values()
            return (first, reason), orders
    if ways:
        because = (
            f"cells got {medium} first and were perturbed afterwards, but not beside the same "
            f"perturbation before {medium} and in baseline medium, and control cells with and "
            "without it at the same times, in linked batches"
        )
        return _untestable(because, remedy), {}
    because = (
        f"the screen holds one order of steps, perturbed first and {medium} added afterwards: "
        "whether a response outlives the loss of its pathway shows only in the reverse order"
    )
    return _untestable(because, remedy), {}


def _both_orders(
    links: LayoutGraph, perturbation: str, medium: str, time: int, reverse: int, control: int | None
) -> tuple[Weights, Weights] | None:
    """Responses less the control's, after the reverse order and the usual one, if estimable."""
    names = [(perturbation, medium), (links.control, medium)]
    names += [(perturbation, links.baseline), (links.control, links.baseline)]
    early, early_control, rest, resting = (links.arm(*name).get(time) for name in names)
    if control is None or early is None or early_control is None:
        return None
    if rest is None or resting is None:
        return None
    responses = ((reverse, rest), (control, resting), (early, rest), (early_control, resting))
    if not all(links.linked(*pair) for pair in responses):
        return None
    return (
        _contrast((reverse, resting), (rest, control)),
        _contrast((early, resting), (rest, early_control)),
    )
