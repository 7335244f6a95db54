"""Whether one view follows another with a lag, from the counts of every condition at every time.

An effect on a feature of the first view at time t is h(t) u, of the other g(t) v, with h the course
of relaxation at a rate common to all, 1 − exp(−λ t), and g the same, or what follows it with a rate
ρ of its own, the response of two stages. u and v are normal with a width for every perturbation and
view, itself with a half-normal prior. They are integrated out, as is the error of the controls,
which all perturbations share. What is left is a likelihood of λ and ρ on a grid.

Cells of a condition are in states of their own, which move many features at once: errors of the
features of a condition go together. Features are therefore turned to the eigenvectors of the
covariance of cells about their conditions, where errors are independent and effects as wide as
before.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from scipy.special import logsumexp

from pyrocell.contrasts.cell_factors import cell_errors
from pyrocell.data.loader import CellDataset
from pyrocell.errors import ScreenError
from pyrocell.operators.waiting import onset_curve
from pyrocell.posterior.gene_level.counts import LevelCounts
from pyrocell.screen.feature_views import FeatureViews
from pyrocell.screen.screen import Courses, Screen

__all__ = ["course", "view_lag"]

_TIMES = 3  # fewest
_RATES = 45
_LAGS = 30
_FEWEST_COUNTS = 20.0
_RANGE = (0.1, 10.0)  # of time constants, in units of the median time
_SPAN = (0.05, 5.0)  # of lags, in the same units
_ROUNDS = 20
# scale of the half-normal prior of the root mean square of effects; where a response has not set in
# by the last time, a longer lag with larger effects would else do as well
_WIDEST = 0.5
_CELLS = 5_000  # at most, that the covariance of cells is learned from
_LEAST_VARIANCE = 0.1  # of a turned feature, in units of that without covariance
_UNKNOWN = 1e6  # variance of what was not measured
_UNLIKELY = 12.0  # nats below the best, from which a rate is left out


def course(time: np.ndarray, constant: float, lag: float = 0.0) -> np.ndarray:
    """Share of a response at times after it began, (T,), by time constants.

    1 − exp(−t / c); of what follows it with a time constant l the response of two stages.
    """
    if lag <= 0:
        return -np.expm1(-time / constant)
    rate, follows, duration = (
        torch.as_tensor(x, dtype=torch.float64) for x in (1 / constant, 1 / lag, time)
    )
    return onset_curve(rate, follows, duration).numpy()


def view_lag(
    screen: Screen,
    cells: CellDataset,
    counts: LevelCounts,
    features: FeatureViews,
    view: str,
    after: str,
    media: str,
    credible_level: float,
) -> pd.DataFrame:
    """Whether `view` follows `after`; see `PyroCell.lag`.

    Raises
    ------
    ScreenError
        If there are fewer than three times after zero with controls in that medium.
    """
    parts = {name: features.slices[features.of(name)] for name in (after, view)}
    if view == after:
        raise ScreenError(f'view="{view}" cannot follow itself; name another in after=')
    courses = _measured(screen, media)
    times = courses.times
    found = {name: _Contrasts.of(counts, cells, name, parts[name], courses) for name in parts}
    unit = float(np.median(times))
    constants = unit * np.geomspace(*_RANGE, _RATES)
    lags = np.concatenate([[0.0], unit * np.geomspace(*_SPAN, _LAGS)])
    first = np.array([found[after].evidence(course(times, c)) for c in constants])
    likely = first > first.max() - _UNLIKELY
    constants, first = constants[likely], first[likely]
    second = np.array(
        [[found[view].evidence(course(times, c, lag)) for lag in lags] for c in constants]
    )
    log = np.asarray(logsumexp(first[:, None] + second, axis=0))  # (lags,)
    late = log[1:]
    weight = np.exp(late - np.asarray(logsumexp(late)))
    log_factor = float(logsumexp(late) - np.log(len(late)) - log[0])
    tail = (1 - credible_level) / 2
    cumulative = np.cumsum(weight)
    ends = [lags[1:][np.searchsorted(cumulative, q).clip(max=_LAGS - 1)] for q in (tail, 1 - tail)]
    return pd.DataFrame(
        {
            "view": [view],
            "after": [after],
            "lag": [float(lags[1:][np.searchsorted(cumulative, 0.5)])],
            "lower": [float(ends[0])],
            "upper": [float(ends[1])],
            "log_bayes_factor": [log_factor],
            "posterior": [float(1 / (1 + np.exp(-np.clip(log_factor, -500, 500))))],
            "n_times": [len(times)],
            "n_features": [found[view].n_features],
        }
    )


def _measured(screen: Screen, media: str) -> Courses:
    """Conditions at times after zero."""
    found = screen.courses(media)
    found = found.some(found.times > 0)
    if len(found.times) < _TIMES:
        raise ScreenError(
            f'medium "{media}" has {len(found.times)} times after 0 with controls, and a lag needs '
            f"{_TIMES}; register a time_key, or name another medium"
        )
    return found


class _Contrasts:
    """Levels of perturbed and control cells of the features of a view, (K, T, G) and (T, G)."""

    def __init__(self, value: np.ndarray, variance: np.ndarray, control: np.ndarray):
        self.value, self.variance, self.control = value, variance, control
        self.n_features = value.shape[-1]

    @classmethod
    def of(
        cls,
        counts: LevelCounts,
        cells: CellDataset,
        view: str,
        part: slice,
        courses: Courses,
    ) -> _Contrasts:
        spread = counts.spread(np.log(counts.noise.theta))[:, part]
        total = counts.total[:, part].astype(float) + 0.5
        level, variance = np.log(total / counts.depth[:, part]), 1 / total + spread
        enough = (counts.raw[courses.control, part] >= _FEWEST_COUNTS).all(0)
        if not enough.any():
            raise ScreenError("no feature of the view has 20 counts in the controls of every time")
        level, variance = level[:, enough], variance[:, enough]
        of_view, _ = cells.of_view(view)
        group = of_view.condition * (of_view.batch.max() + 1) + of_view.batch
        error = cell_errors(of_view.counts, of_view.size, group, np.flatnonzero(enough), _CELLS)
        between = error.T @ error / max(len(error), 1)
        number = np.bincount(of_view.condition, minlength=len(level))
        per_cell = 1 / np.maximum(number, 1)
        np.fill_diagonal(between, 0.0)
        usual = np.median(variance, axis=0)
        axes = np.linalg.eigh(np.diag(usual) + np.median(per_cell) * between)[1]
        together = np.einsum("gi,gh,hi->i", axes, between, axes)
        variance = variance @ axes**2 + per_cell[:, None] * together
        variance = np.maximum(variance, _LEAST_VARIANCE * (usual @ axes**2))
        level = level @ axes
        there = (courses.rows >= 0)[..., None]  # (K, T, 1)
        value = np.where(there, level[courses.rows] - level[courses.control], 0.0)
        own = np.where(there, variance[courses.rows], _UNKNOWN)
        return cls(value, own, variance[courses.control])

    def evidence(self, share: np.ndarray) -> float:
        """Log likelihood of a course (T,), effects and the controls' error integrated out."""
        precision = 1 / self.variance  # (K, T, G)
        weighted = share[:, None] * precision
        told = (share[:, None] * weighted).sum(1)  # (K, G) of u
        pull = (weighted * self.value).sum(1)
        width = self._widths(told, pull)[:, None]
        # of each perturbation and feature: A⁻¹ = D⁻¹ − D⁻¹ h h' D⁻¹ / (1 / s² + h' D⁻¹ h)
        shrunk = 1 / (1 / width + told)  # (K, G)
        log = -0.5 * (np.log(self.variance).sum(1) + np.log1p(width * told))
        log -= 0.5 * ((precision * self.value**2).sum(1) - shrunk * pull**2)
        # the controls' error c (T,), the same for all: A⁻¹ summed, and pulled along
        inner = np.einsum("ktg,ksg,kg->gts", weighted, weighted, shrunk)
        total = np.einsum("ktg->gt", precision)
        both = -inner
        i = np.arange(len(share))
        both[:, i, i] += total + (1 / self.control).T
        right = (precision * self.value).sum(0).T - np.einsum(
            "ktg,kg,kg->gt", weighted, shrunk, pull
        )
        solved = np.linalg.solve(both, right[..., None])[..., 0]
        out = log.sum() + 0.5 * (right * solved).sum()
        out -= 0.5 * (np.linalg.slogdet(both)[1].sum() + np.log(self.control).sum())
        return float(out) - float(width.sum()) / (2 * _WIDEST**2)

    @staticmethod
    def _widths(told: np.ndarray, pull: np.ndarray) -> np.ndarray:
        """(K,) variance of the effects of each perturbation, most likely after `_WIDEST`."""
        n, most = told.shape[1], _WIDEST**2
        width = np.full(len(told), 0.05)
        for _ in range(_ROUNDS):
            shrunk = 1 / (1 / width[:, None] + told)
            square = ((shrunk * pull) ** 2 + shrunk).sum(1)
            width = most * (np.sqrt(n**2 + 4 * square / most) - n) / 2
        return np.maximum(width, 1e-6)
