"""Whether perturbations delay or advance the course of the controls: one shift in time for each.

Asked of the levels of conditions as counts have them, with their joint error: that of counting, of
batch noise, which conditions of a batch share, and of the sample of cells, which genes share. The
last has the axes on which cells of each time differ, found anew: the state of the model has the
same axes at all times, and cells on their way differ in whatever genes are on the move. See
`pyrocell.contrasts.shifted_course` for the likelihood.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy.sparse as sp

from pyrocell._core.messages import did_you_mean
from pyrocell._core.random import stream
from pyrocell.contrasts.cell_factors import cell_factors
from pyrocell.contrasts.levels import ConditionLevels
from pyrocell.contrasts.shifted_course import (
    Levels,
    ShiftPosterior,
    fit_course,
    shift_posterior,
)
from pyrocell.errors import ScreenError, UnknownLabelError
from pyrocell.posterior.draws import check_draws, check_level
from pyrocell.posterior.fitted_screen import FittedScreen
from pyrocell.posterior.levels import levels
from pyrocell.screen.feature_views import places_of

__all__ = ["aligned_courses", "temporal_shift"]

NO_SHIFT = 0.5  # prior probability
_TIMES = 3  # fewest of controls
_TIMES_PERTURBED = 2
_FEWEST_COUNTS = 20.0  # expected of a gene in controls, at each time
_FEWEST_GENES = 10
_MOST_GENES = 300
_MOVES = 0.05  # root mean square of the controls' course from which it can be shifted
_SHARED = 0.95  # most of a gene's error that genes may share
_COMMON = 0.1  # sd of what all genes of a condition have in common
_FACTORS = 4  # axes on which cells of a time differ
_NOISE_DRAWS = 8  # of the width of batch noise
_NUMBERS = ["shift", "sd", "lower", "upper", "p_delayed", "p_advanced", "p_none"]
_NUMBERS += ["explained", "explained_lower", "explained_upper", "other", "effect"]


def temporal_shift(
    fit: FittedScreen,
    perturbations: Sequence[str] | None,
    media: str,
    n_samples: int,
    credible_level: float,
    seed: int,
) -> pd.DataFrame:
    """A row for each perturbation; see `PyroCell.temporal_shift`."""
    check_draws(n_samples)
    check_level(credible_level)
    screen = fit.screen
    asked = _asked(screen.perturbations, perturbations)
    courses = _Courses.of(fit, media)
    rows = []
    for name in asked:
        row: dict[str, object] = {"perturbation": name, "media": media}
        reason = courses.untestable(name)
        if reason:
            row |= dict.fromkeys(_NUMBERS, np.nan)
        else:
            seen = courses.levels(name)
            course = fit_course(seen)
            rng = np.random.default_rng(stream(f"temporal shift {name}", seed))
            found = shift_posterior(seen, course, NO_SHIFT, n_samples, rng)
            row |= _summary(found, credible_level)
            row |= {"n_times": len(seen.times) - seen.n_control, "n_genes": seen.value.shape[1]}
        rows.append(row | {"testable": not reason, "reason": reason})
    names = ["perturbation", "media", *_NUMBERS, "n_times", "n_genes", "testable", "reason"]
    table = pd.DataFrame(rows).reindex(columns=names)
    counts = ["n_times", "n_genes"]
    return table.assign(**{name: table[name].fillna(0).astype(int) for name in counts})


def aligned_courses(
    fit: FittedScreen, perturbation: str, shift: float, media: str, n_genes: int
) -> pd.DataFrame:
    """Levels of the genes that move most in controls, at the times measured and moved back.

    Returns
    -------
    DataFrame with gene, group ("control" or the perturbation), time, aligned (time − shift of the
    perturbation, time of the controls), level with sd, natural logarithm.
    """
    (name,) = _asked(fit.screen.perturbations, [perturbation])
    courses = _Courses.of(fit, media)
    if reason := courses.untestable(name):
        raise ScreenError(f'no shift of "{name}" can be shown: {reason}')
    seen = courses.levels(name)
    genes = courses.named(name)
    n = seen.n_control
    spread = np.ptp(seen.value[:n], axis=0)
    rows = []
    for g in np.argsort(-spread)[:n_genes]:
        for i, time in enumerate(seen.times):
            error = seen.noise[g, i, i] + (seen.factor[i, :, g] ** 2).sum()
            group = "control" if i < n else name
            aligned = time if i < n else time - shift
            rows.append((genes[g], group, time, aligned, seen.value[i, g], np.sqrt(error)))
    return pd.DataFrame(rows, columns=pd.Index(["gene", "group", "time", "aligned", "level", "sd"]))


def _asked(known: Sequence[str], names: Sequence[str] | None) -> list[str]:
    names = list(known) if names is None else [names] if isinstance(names, str) else list(names)
    for name in names:
        if name not in known:
            raise UnknownLabelError(
                f'"{name}" is not a perturbation of the screen{did_you_mean(name, known)}'
            )
    return names


def _summary(found: ShiftPosterior, credible_level: float) -> dict[str, float]:
    tail = (1 - credible_level) / 2
    mean = float((found.mass * found.shifts).sum())
    late = (1 - found.none) * found.above_zero()
    effect = ((found.moved + found.other) ** 2).sum((1, 2))
    left = (found.other**2).sum((1, 2))
    explained = np.clip(1 - left / np.maximum(effect, 1e-12), 0, 1)
    size = found.other.shape[1] * found.other.shape[2]
    return {
        "shift": mean,
        "sd": float(np.sqrt((found.mass * (found.shifts - mean) ** 2).sum())),
        "lower": found.quantile(tail),
        "upper": found.quantile(1 - tail),
        "p_delayed": late,
        "p_advanced": 1 - found.none - late,
        "p_none": found.none,
        "explained": float(explained.mean()),
        "explained_lower": float(np.quantile(explained, tail)),
        "explained_upper": float(np.quantile(explained, 1 - tail)),
        "other": float(np.sqrt(left / size).mean()),
        "effect": float(np.sqrt(effect / size).mean()),
    }


def _movers(found: Sequence[ConditionLevels], control: np.ndarray) -> np.ndarray:
    """Genes with enough counts in controls at every time, those first that move most."""
    if not len(control):
        return np.zeros(0, int)
    enough = (found[0].expected[control] >= _FEWEST_COUNTS).all(0)
    value = found[0].value[control]
    signal = ((value - value.mean(0)) ** 2 / found[0].variance[control]).sum(0)
    order = np.argsort(-np.where(enough, signal, -np.inf))
    return np.sort(order[: min(_MOST_GENES, int(enough.sum()))])


def _loadings(
    fit: FittedScreen, control: np.ndarray, rows: dict[str, np.ndarray], used: np.ndarray
) -> list[np.ndarray]:
    """Axes on which cells of each time differ, (d, genes in use); views beside each other."""
    out = []
    data = fit.data
    places = [slice(0, len(fit.screen.genes))] if data.views is None else data.views.slices
    by_view = [cells for cells, _ in data.by_view]
    for t, own in enumerate(control):
        here = np.unique([own, *(each[t] for each in rows.values() if each[t] >= 0)])
        parts = []
        for cells, place in zip(by_view, places, strict=True):
            mine = np.flatnonzero(np.isin(cells.condition, here))
            columns = used[(used >= place.start) & (used < place.stop)]
            if not len(columns):
                continue
            counts = sp.csr_matrix(cells.counts[mine])[:, columns - place.start]
            group = cells.condition[mine] * len(fit.screen.batches) + cells.batch[mine]
            axes = np.zeros((_FACTORS, len(used)))
            axes[:, np.isin(used, columns)] = cell_factors(
                counts, cells.size[mine], group, _FACTORS, stream("cell factors", t)
            )
            parts.append(axes)
        out.append(np.concatenate(parts) if parts else np.zeros((_FACTORS, len(used))))
    return out


@dataclass(frozen=True)
class _Courses:
    """Levels of all conditions with their errors, and which are controls' and perturbations'.

    `control` are rows of conditions at the times of `times`; `rows` of each perturbation at those
    times, -1 where it was not measured; `loading` of each time (d, genes in use).
    """

    genes: pd.Index
    media: str
    times: np.ndarray
    control: np.ndarray
    rows: dict[str, np.ndarray]
    value: np.ndarray
    variance: np.ndarray
    per_cell: np.ndarray
    shares: list[np.ndarray]
    parts: list[slice]
    eta: np.ndarray
    loading: list[np.ndarray]
    target: dict[str, int]
    used: np.ndarray

    @classmethod
    def of(cls, fit: FittedScreen, media: str) -> _Courses:
        fit = fit.without_sums
        screen = fit.screen
        labels = screen.conditions["media"].astype(str)
        if media not in set(labels):
            options = sorted(set(labels))
            raise UnknownLabelError(
                f'media="{media}" is not a medium of the screen{did_you_mean(media, options)}'
            )
        along = screen.courses(media)
        control = along.control
        rows = dict(zip(screen.perturbations, along.rows, strict=True))
        found = levels(fit, _NOISE_DRAWS)
        used = _movers(found, control)
        first: ConditionLevels = found[0]
        shares = list(first.share) if first.sizes else [first.share]
        target = getattr(screen, "target", None)
        return cls(
            genes=pd.Index(screen.genes.astype(str)),
            media=media,
            times=along.times,
            control=control,
            rows=rows,
            value=np.mean([each.value for each in found], 0),
            variance=np.mean([each.variance for each in found], 0),
            per_cell=1 / np.maximum(screen.conditions["n_cells"].to_numpy(float), 1),
            shares=shares,
            parts=places_of(first.sizes or (first.value.shape[1],)),
            eta=np.mean([each.eta_covariance for each in found], 0),
            loading=_loadings(fit, control, rows, used),
            target={} if target is None else dict(zip(screen.perturbations, map(int, target))),
            used=used,
        )

    def kept(self, name: str) -> np.ndarray:
        """Genes that are used for a perturbation: not its own transcript."""
        return self.used[self.used != self.target.get(name, -1)]

    def named(self, name: str) -> pd.Index:
        return self.genes[self.kept(name)]

    def untestable(self, name: str) -> str:
        """Why no shift can be found, "" if it can."""
        if len(self.times) < _TIMES:
            return f"controls at {len(self.times)} times in this medium; a course needs {_TIMES}"
        measured = int((self.rows[name] >= 0).sum())
        if measured < _TIMES_PERTURBED:
            return f"measured at {measured} of the controls' times; {_TIMES_PERTURBED} are needed"
        kept = self.kept(name)
        if len(kept) < _FEWEST_GENES:
            return f"{len(kept)} genes with {_FEWEST_COUNTS:g} counts in controls at every time"
        values, errors = self.value[self.control][:, kept], self.variance[self.control][:, kept]
        moves = float((values.var(0, ddof=1) - errors.mean(0)).mean())
        if moves < _MOVES**2:
            return f"controls move by less than {_MOVES:g} between times"
        return ""

    def levels(self, name: str) -> Levels:
        """Levels of controls and of a perturbation with the covariance of their errors."""
        mine = self.rows[name]
        rows = np.concatenate([self.control, mine[mine >= 0]])
        times = np.concatenate([self.times, self.times[mine >= 0]])
        kept = self.kept(name)
        variance = self.variance[rows][:, kept]  # (N, G)
        at = np.concatenate([np.arange(len(self.times)), np.flatnonzero(mine >= 0)])
        axes = np.stack([self.loading[t] for t in at])[:, :, np.isin(self.used, kept)]  # (N, d, G)
        factor = np.sqrt(self.per_cell[rows])[:, None, None] * axes
        shared = (factor**2).sum(1)
        factor = (
            factor * np.sqrt(np.minimum(1, _SHARED * variance / np.maximum(shared, 1e-12)))[:, None]
        )
        # shares sum to one: what other genes do moves all of them
        common = np.zeros((len(rows), 1, len(kept)))
        common[len(self.control) :] = _COMMON
        noise = np.empty((len(kept), len(rows), len(rows)))
        for share, part in zip(self.shares, self.parts):
            inside = np.flatnonzero((kept >= part.start) & (kept < part.stop))
            if len(inside):
                eta = self.eta[kept[inside]]
                noise[inside] = np.einsum("nb,gbd,md->gnm", share[rows], eta, share[rows])
        i = np.arange(len(rows))
        noise[:, i, i] += (variance - (factor**2).sum(1)).T
        both = np.concatenate([factor, common], 1)
        return Levels(times, len(self.control), self.value[rows][:, kept], noise, both)
