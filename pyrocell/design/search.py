"""Best numbers of cells under linear constraints: a convex mixed-integer problem.

Lanes of one content are interchangeable, and the error is convex in the information that a lane
gives, so all of them are filled alike. What is sought is how many lanes of each content there are,
L (whole numbers), and how many cells of each sample they hold together, N. The error is convex in
(N, L) jointly: a lane's information is concave and homogeneous in them (a perspective), and the
posterior variance is convex and decreasing in information. So outer approximation (Duran and
Grossmann, 1986) finds the optimum with a bound on how far it can be off: HiGHS (`scipy.optimize.
milp`) chooses L under tangent planes of the error, SLSQP the cells for that L, and both meet.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.optimize import Bounds, LinearConstraint, milp, minimize

from pyrocell.design.noise import Noise
from pyrocell.design.plan import Plan
from pyrocell.design.questions import kinds_of, target_weights
from pyrocell.design.scoring import Targets
from pyrocell.design.uncertainty import Prior, batch_loading, variances

__all__ = ["Problem", "Solution", "solve"]

_ROUNDS = 60
_INTERIOR = 1e-3  # lanes: where tangents are taken instead of at 0, where the error has a kink
_TIGHT = 1e-9  # lanes: how far SLSQP may step over a constraint


@dataclass(frozen=True)
class Solution:
    """Lanes of each content, cells of each sample in lanes, error² and a bound below it."""

    lanes: np.ndarray
    cells: np.ndarray
    value: float
    bound: float


class Problem:
    """A plan as variables and linear constraints.

    Variables are N, cells of each sample in units of a lane's capacity, then L, lanes of each
    content. A sample is a content, an arm, and a sub-library or (-1) control.

    Attributes
    ----------
    content, arm, library
        (S,) of each sample.
    """

    def __init__(self, plan: Plan, noise: Noise, targets: Targets) -> None:
        self.plan = plan
        samples = [
            (t, a, g)
            for t, (arms, libraries) in enumerate(plan.contents)
            for a in arms
            for g in (-1, *libraries)
        ]
        self.content, self.arm, self.library = np.array(samples).T
        self.sizes = np.bincount(plan.library_of).astype(float)
        self.n_contents = len(plan.contents)
        baseline = plan.media[0]
        self.kinds = kinds_of(plan.arms, baseline)
        self.weights = target_weights(self.kinds, targets)
        self.prior = Prior.of(noise, plan.arms, baseline)

    @property
    def n(self) -> int:
        """Number of variables."""
        return len(self.content) + self.n_contents

    def cube(self, cells: np.ndarray | torch.Tensor) -> torch.Tensor:
        """(1 + libraries, A, contents) cells of control and of one perturbation per library."""
        shape = (1 + len(self.sizes), len(self.plan.arms), self.n_contents)
        index = tuple(map(torch.from_numpy, (self.library + 1, self.arm, self.content)))
        per = torch.from_numpy(self.plan.cells_per_lane / np.r_[1.0, self.sizes][self.library + 1])
        out = torch.zeros(shape, dtype=torch.float64)
        return out.index_put(index, torch.as_tensor(cells) * per)

    def error(self, cells: np.ndarray, lanes: np.ndarray) -> tuple[float, np.ndarray]:
        """Mean squared error and its gradient in (N, L)."""
        x = torch.tensor(np.r_[cells, lanes], requires_grad=True)
        cube = self.cube(x[: len(cells)])
        used = torch.from_numpy(np.flatnonzero(lanes > 0))
        found = variances(
            self.prior,
            self.kinds,
            cube[0][:, used],
            cube[1:][..., used],
            torch.from_numpy(self.sizes),
            batch_loading(self.prior, x[len(cells) :][used]),
        )
        copies = torch.from_numpy(self.sizes / self.sizes.sum())
        total = torch.zeros((), dtype=torch.float64)
        for kind in self.kinds:
            if weight := self.weights.get(kind.name):
                over = copies if kind.perturbed else torch.ones(1, dtype=torch.float64)
                mean = found[kind.name].mean(-1)  # (Q, P)
                total = total + weight * torch.einsum("q,qp,p->", self.prior.share, mean, over)
        total.backward()
        assert x.grad is not None
        return float(total.detach()), x.grad.numpy()

    def constraints(self, relaxed: Sequence[str] = ()) -> LinearConstraint:
        """Linear constraints on (N, L), without those named."""
        plan, rows = self.plan, []
        unit = np.eye(self.n)
        lanes = unit[len(self.content) :]
        for t in range(self.n_contents):
            mine = self._sum(self.content == t)
            controls = self._sum((self.content == t) & (self.library < 0))
            least = plan.min_controls / plan.cells_per_lane
            rows.append((mine - lanes[t], -np.inf, 0.0))
            if "min_controls" not in relaxed:
                rows.append((controls - least * lanes[t], 0.0, np.inf))
        if "min_cells" not in relaxed:
            for a in range(len(plan.arms)):
                for g, size in enumerate(np.r_[1.0, self.sizes], -1):
                    held = self._sum((self.arm == a) & (self.library == g))
                    least = plan.min_cells * size / plan.cells_per_lane
                    rows.append((held, least, np.inf))
        if plan.control_share is not None:
            for t, a in dict.fromkeys(zip(self.content, self.arm, strict=True)):
                here = (self.content == t) & (self.arm == a)
                share = self._sum(here & (self.library < 0)) - plan.control_share * self._sum(here)
                rows.append((share, 0.0, 0.0))
        if "lanes" not in relaxed:
            rows.append((lanes.sum(0), plan.lanes, plan.lanes))
        matrix, lower, upper = (np.array(part) for part in zip(*rows, strict=True))
        return LinearConstraint(matrix, lower, upper)  # pyright: ignore[reportArgumentType] scipy

    def _sum(self, samples: np.ndarray) -> np.ndarray:
        return np.r_[samples.astype(float), np.zeros(self.n_contents)]

    def fill(self, lanes: np.ndarray, start: np.ndarray) -> tuple[np.ndarray, float]:
        """Best cells for given lanes, by SLSQP over shares of lanes, and the error there."""
        n = len(self.content)
        free = np.flatnonzero(lanes[self.content] > 0)
        scale = lanes[self.content[free]]  # shares of a lane are of one size, cells are not
        rows = self.constraints(("lanes",))
        matrix, fixed = rows.A[:, free] * scale, rows.A[:, n:] @ lanes
        lower, upper = rows.lb - fixed, rows.ub - fixed
        limits = [
            LinearConstraint(matrix[some], lower[some], upper[some])  # pyright: ignore[reportArgumentType]
            for equal in (True, False)
            if (some := matrix.any(1) & ((rows.lb == rows.ub) == equal)).any()
        ]

        def spread(shares: np.ndarray) -> np.ndarray:
            cells = np.zeros(n)
            cells[free] = np.clip(shares, 0, 1) * scale
            return cells

        unit, _ = self.error(start, lanes)

        def objective(shares: np.ndarray) -> tuple[float, np.ndarray]:
            value, gradient = self.error(spread(shares), lanes)
            return value / unit, gradient[free] * scale / unit

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # of steps cut short by a bound
            found = minimize(
                objective, start[free] / scale, jac=True, method="SLSQP",
                bounds=Bounds(np.zeros(len(free)), np.ones(len(free))),  # pyright: ignore[reportArgumentType]
                constraints=limits,
                options={"maxiter": 100, "ftol": 1e-8},
            )  # fmt: skip
        cells = self._repaired(spread(found.x), start, lanes)
        value, _ = self.error(cells, lanes)
        return (cells, value) if value <= unit else (start, unit)

    def _repaired(self, cells: np.ndarray, legal: np.ndarray, lanes: np.ndarray) -> np.ndarray:
        """Cells moved towards legal ones as far as rounding errors have made them illegal."""
        rows = self.constraints()
        here, there = (rows.A @ np.r_[c, lanes] for c in (cells, legal))
        over = np.maximum(here - rows.ub, rows.lb - here)
        room = np.maximum(np.minimum(rows.ub - there, there - rows.lb), 0)
        step = np.where(over > _TIGHT, over / np.maximum(over + room, _TIGHT), 0).max()
        return cells + step * (legal - cells)

    def legal(self, lanes: np.ndarray | None = None) -> np.ndarray | None:
        """Any (N, L) that meets the constraints, for given lanes or for the fewest; or None."""
        rows, n = self.constraints(() if lanes is None else ("lanes",)), len(self.content)
        whole = np.r_[np.zeros(n), np.ones(self.n_contents)]
        bounds = Bounds(0, np.inf) if lanes is None else Bounds(
            np.r_[np.zeros(n), lanes], np.r_[np.full(n, np.inf), lanes]
        )  # fmt: skip
        return milp(0 * whole, integrality=whole, bounds=bounds, constraints=rows).x

    def fewest_lanes(self) -> int | None:
        """Lanes that the other constraints need; None if no number does."""
        rows, n = self.constraints(("lanes",)), len(self.content)
        whole = np.r_[np.zeros(n), np.ones(self.n_contents)]
        found = milp(whole, integrality=whole, bounds=Bounds(0, np.inf), constraints=rows)
        return None if found.x is None else round(found.fun)

    def tangent(self, cells: np.ndarray, lanes: np.ndarray) -> tuple[np.ndarray, float]:
        """Plane below the error: (slope, offset) with error(x) ≥ slope @ x + offset everywhere."""
        inner = np.maximum(lanes, _INTERIOR)
        filled = np.bincount(self.content, minlength=self.n_contents)
        even = (inner / filled)[self.content]
        inside = np.where(lanes[self.content] > 0, cells, even)
        value, slope = self.error(inside, inner)
        return slope, value - slope @ np.r_[inside, inner]


def solve(problem: Problem, tolerance: float, seconds: float) -> Solution | None:
    """Search until the error² is within a relative tolerance of its bound, or time is up.

    Returns
    -------
    Solution, or None if no layout meets the constraints.
    """
    rows, n, started = problem.constraints(), problem.n, time.monotonic()
    size = len(problem.content)
    whole = np.r_[np.zeros(size), np.ones(problem.n_contents), 0.0]
    even = np.full(problem.n_contents, problem.plan.lanes / problem.n_contents)
    filled = np.bincount(problem.content, minlength=problem.n_contents)
    planes = [problem.tangent((even / filled)[problem.content], even)]
    unit = problem.error((even / filled)[problem.content], even)[0]  # HiGHS has absolute tolerances
    matrix = np.c_[rows.A, np.zeros(len(rows.A))]
    limits = LinearConstraint(matrix, rows.lb, rows.ub)  # pyright: ignore[reportArgumentType]
    best, bound, tried = None, 0.0, set()
    for _ in range(_ROUNDS):
        slopes = np.array([np.r_[slope / unit, -1.0] for slope, _ in planes])
        most = [-offset / unit for _, offset in planes]
        below = LinearConstraint(slopes, -np.inf, most)  # pyright: ignore[reportArgumentType]
        left = seconds - (time.monotonic() - started)
        found = milp(
            np.r_[np.zeros(n), 1.0],
            integrality=whole,
            bounds=Bounds(0, np.inf),
            constraints=[limits, below],
            options={"time_limit": max(1.0, left), "mip_rel_gap": tolerance / 4},
        )
        if found.x is None:
            break
        bound = max(bound, found.mip_dual_bound * unit)
        lanes = np.round(found.x[size:n])
        if tuple(lanes) not in tried:
            cells, value = problem.fill(lanes, found.x[:size])
            if best is None or value < best.value:
                best = Solution(lanes, cells, value, bound)
            planes.append(problem.tangent(cells, lanes))
        late = time.monotonic() - started > seconds
        assert best is not None  # the first lanes were not tried before
        if tuple(lanes) in tried or late or best.value - bound <= tolerance * best.value:
            break
        tried.add(tuple(lanes))
    return None if best is None else replace(best, bound=min(bound, best.value))
