"""Recommend a layout, and set it beside what labs do anyway."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from pyrocell.design.layouts import Layout
from pyrocell.design.noise import Noise
from pyrocell.design.plan import Plan
from pyrocell.design.scoring import Score, Targets, compare, score
from pyrocell.design.search import Problem, solve
from pyrocell.errors import DesignError

__all__ = ["Recommendation", "controls_in_one_lane", "random_layout", "recommend"]

_TRIES = 200
_HALVINGS = 24
_ANCHORS = 9  # random layouts beside the recommended one


@dataclass(frozen=True)
class Recommendation:
    """A layout, what it can be expected to tell, and what others would.

    Attributes
    ----------
    layout, score
        The layout and its `score`.
    gap
        By how much the error could at most be lowered, as a fraction, by any layout that meets the
        plan. The search stops at a bound, not at a guess; where hundreds of sets of media and times
        could share a lane, time may run out before the bound is close.
    comparison
        `compare` of it with the median of nine random legal layouts and with controls in a lane of
        their own.
    plan, noise
        What was asked.
    """

    layout: Layout
    score: Score
    gap: float
    comparison: pd.DataFrame
    plan: Plan
    noise: Noise

    def __repr__(self) -> str:
        """The error, how it compares, and how far it could be off."""
        others = self.comparison["ratio"].drop("recommended")
        ratios = "".join(f"; {name}: {ratio:.2f} times that" for name, ratio in others.items())
        return (
            f"{self.layout}\nexpected error {self.score.error:.4f} log-fold change, at most "
            f"{self.gap:.1%} above the least possible{ratios}"
        )


def recommend(
    plan: Plan,
    noise: Noise | None = None,
    targets: Targets = None,
    *,
    tolerance: float = 0.01,
    seconds: float = 30.0,
    compared: bool = True,
) -> Recommendation:
    """Find the layout with the least expected error that a plan allows.

    Parameters
    ----------
    plan
        What is to be measured and what the lab allows.
    noise
        Stated, or `Noise.from_model(model)`; typical values if None.
    targets
        Kinds of question that count; see `score`.
    tolerance
        Relative distance of the squared error from its lower bound at which to stop.
    seconds
        Time after which the best layout so far is taken.
    compared
        Whether to set it beside other layouts.

    Raises
    ------
    DesignError
        If no layout meets the plan, naming the constraint and what would do.
    """
    noise = noise or Noise()
    found = solve(problem := Problem(plan, noise, targets), tolerance, seconds)
    if found is None:
        if problem.legal() is None:
            raise DesignError(_impossible(plan, noise))
        raise DesignError(f"seconds={seconds:g} is too short to find a layout; allow more")
    bound = found.bound
    if bound < (1 - tolerance) * found.value:  # many contents: what if all could share a lane?
        free = plan.at(hashing=True, arms_per_lane=None, apart=(), libraries_per_lane=None)
        loose = solve(Problem(free, noise, targets), tolerance, seconds)
        bound = min(max(bound, loose.bound if loose else 0.0), found.value)
    layout = plan.layout(_lanes(problem, found.lanes, found.cells))
    others = {}
    if compared:
        drawn = [random_layout(plan, seed) for seed in range(_ANCHORS)]
        others["random legal"] = _median(drawn, noise, targets)
        others["controls in one lane"] = controls_in_one_lane(plan, layout)
    return Recommendation(
        layout=layout,
        score=score(layout, noise, targets),
        gap=float(1 - np.sqrt(bound / found.value)),
        comparison=compare({"recommended": layout, **others}, noise, targets),
        plan=plan,
        noise=noise,
    )


def _lanes(problem: Problem, lanes: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """(1 + K, A, lanes) cells: lanes of one content filled alike, in the order of contents."""
    cube = problem.cube(cells).numpy() / np.maximum(lanes, 1)
    every = np.concatenate([cube[:1], cube[1:][problem.plan.library_of]])
    return np.repeat(every, lanes.astype(int), axis=-1)


def _median(layouts: list[Layout], noise: Noise, targets: Targets) -> Layout:
    """The layout of median error."""
    errors = [score(layout, noise, targets).error for layout in layouts]
    return layouts[int(np.argsort(errors)[len(errors) // 2])]


def random_layout(plan: Plan, seed: int) -> Layout:
    """A layout that meets the plan and is otherwise random: contents of lanes, and their shares.

    Every lane gets a random set of what may share it, in uniformly random proportions; they are
    then moved towards legal ones as far as the constraints demand.

    Raises
    ------
    DesignError
        If no layout meets the plan.
    """
    rng = np.random.default_rng(seed)
    problem = Problem(plan, Noise(), None)
    fallback = problem.legal()
    if fallback is None:
        raise DesignError(_impossible(plan, Noise()))
    size, n = len(problem.content), problem.n_contents
    for _ in range(_TRIES):
        of_lane = rng.integers(n, size=plan.lanes)
        lanes = np.bincount(of_lane, minlength=n).astype(float)
        if (legal := problem.legal(lanes)) is not None:
            break
    else:
        legal, lanes = fallback, np.round(fallback[size:])
        of_lane = rng.permutation(np.repeat(np.arange(n), lanes.astype(int)))
    share = legal[:size] / np.maximum(lanes, 1)[problem.content]
    sure = np.stack([np.where(problem.content == t, share, 0) for t in of_lane])  # (lanes, S)
    drawn = np.stack([_drawn(problem, t, rng) for t in of_lane])
    sure = np.where(sure.any(1, keepdims=True), sure, drawn)  # a lane may be legal and empty
    cells = _legalised(problem, drawn, sure)
    cube = np.stack([problem.cube(row).numpy().sum(-1) for row in cells], -1)
    every = np.concatenate([cube[:1], cube[1:][plan.library_of]])
    return plan.layout(every)


def _drawn(problem: Problem, content: int, rng: np.random.Generator) -> np.ndarray:
    """(S,) shares of a lane, random within its content."""
    mine = problem.content == content
    arms = np.unique(problem.arm[mine])
    kept = rng.random(len(arms)) < rng.random()
    kept[rng.integers(len(arms))] = True
    mine &= np.isin(problem.arm, arms[kept])
    share = np.where(mine, rng.exponential(size=len(mine)), 0.0)
    share /= share.sum()
    if (fixed := problem.plan.control_share) is not None:
        for arm in arms:
            here = mine & (problem.arm == arm)
            controls, total = here & (problem.library < 0), share[here].sum()
            perturbed = here & ~controls
            share[perturbed] *= (1 - fixed) * total / max(share[perturbed].sum(), 1e-12)
            share[controls] = fixed * total
    return share


def _legalised(problem: Problem, drawn: np.ndarray, sure: np.ndarray) -> np.ndarray:
    """Mix (lanes, S) shares with legal ones, by as little as makes them legal."""
    plan, control = problem.plan, problem.library < 0
    least = plan.min_controls / plan.cells_per_lane
    short = np.maximum(least - drawn[:, control].sum(1), 0)
    spare = np.maximum(sure[:, control].sum(1) - least, 0)
    mix = np.where(short > 0, short / np.maximum(short + spare, 1e-12), 0)[:, None]
    mixed = drawn + mix * (sure - drawn)
    key = problem.arm * (1 + len(problem.sizes)) + problem.library + 1
    size = np.r_[1.0, problem.sizes][problem.library + 1]
    wanted = np.zeros(key.max() + 1)
    wanted[key] = plan.min_cells * size / plan.cells_per_lane
    held, safe = (np.bincount(key, x.sum(0), len(wanted)) for x in (mixed, sure))
    short, spare = np.maximum(wanted - held, 0), np.maximum(safe - wanted, 0)
    step = np.where(short > 0, short / np.maximum(short + spare, 1e-12), 0).max()
    mixed = mixed + step * (sure - mixed)
    return mixed / mixed.sum(1, keepdims=True)  # a full lane breaks nothing that a part of it meets


def controls_in_one_lane(plan: Plan, layout: Layout) -> Layout:
    """A layout with its controls moved to a lane of their own, as some labs do.

    Lanes keep their media and times. As many of them are turned over to controls as it takes to
    hold each medium and time once: one lane, where all can share it. Controls beyond what it
    yields are left out, and perturbed cells fill the other lanes. Not held to `min_controls`.
    """
    cells = layout.cells.copy()
    present = cells.sum(0) > 0  # (A, B)
    missing, chosen = present.any(1), []
    while missing.any():
        new = present[missing].sum(0)
        new[chosen] = 0
        if (present.sum(1)[missing] < 2).any() or not new.any():
            break  # a medium in one lane only: its controls stay with its perturbed cells
        chosen.append(len(new) - 1 - int(np.argmax(new[::-1])))
        missing &= ~present[:, chosen[-1]]
    for b in range(cells.shape[-1]):
        if b in chosen:
            held = present[:, b] / present[:, chosen].sum(1).clip(1)
            cells[1:, :, b], cells[0, :, b] = 0.0, held * layout.cells[0].sum(-1)
        else:
            cells[0, ~missing, b] = 0.0
        total, most = cells[..., b].sum(), layout.cells[..., b].sum()
        if total > most or (b not in chosen and total > 0):
            cells[..., b] *= most / total
    return plan.layout(cells, layout.batches)


def _impossible(plan: Plan, noise: Noise) -> str:
    """Say which constraint no layout can meet, and which values would do."""
    remedies = []
    if lanes := Problem(plan, noise, None).fewest_lanes():
        remedies.append(f"lanes={lanes} (now {plan.lanes})")
    for name in ("min_cells", "min_controls"):
        value = getattr(plan, name)
        if value and (most := _largest(plan, noise, name)) >= 1:
            remedies.append(f"{name}={most:g} (now {value:g})")
    asked = f"min_cells={plan.min_cells:g} of {len(plan.names)} perturbations and control in "
    asked += f"{len(plan.arms)} combinations of medium and time, min_controls="
    asked += f"{plan.min_controls:g} in every lane"
    if not plan.hashing:
        asked += ", one medium and time in a lane (hashing=False)"
    there = f"{plan.lanes} lanes of {plan.cells_per_lane:g} cells"
    return f"{there} cannot hold {asked}; any one of these would do: " + (
        "; ".join(remedies) or "more cells_per_lane, or hashing"
    )


def _largest(plan: Plan, noise: Noise, name: str) -> float:
    """Largest whole value of a field that some layout meets, by bisection; 0 if none does."""

    def possible(value: float) -> bool:
        return Problem(plan.at(**{name: value}), noise, None).legal() is not None

    low, high = 0.0, float(getattr(plan, name))
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if possible(middle) else (low, middle)
    return float(np.floor(low * (1 + 1e-6)))
