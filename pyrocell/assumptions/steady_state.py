"""Which conditions still move between two times: the paper's App. E without its sampling noise.

The paper ranks perturbations by the mean |log-fold change| between days. That figure contains
sampling noise, which grows with 1/n, and whatever the controls do between those days. Here the
change of a gene is

    D = log[r(p, t₂) / r(control, t₂)] − log[r(p, t₁) / r(control, t₁)],

controls being those of the same medium and, where there are any, of the same batch. The mean square
of D over genes is too large by its sampling variance. Cells of every group, controls too, are
therefore split into random halves A and B; the noise of one half knows nothing of the other's:

    squared = mean over genes and splits of D_A D_B,   rms = √max(squared, 0).

Intervals invert a test. For a true RMS s in the direction u of D, what would be seen is

    s² + 2s mean(uε) + mean ε² − E mean ε²,

with ε drawn from the cells, the controls' included. The interval holds every s under which the
value seen is not in a tail. A plain bootstrap of the square would add the noise a second time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any, TypeGuard

import numpy as np
import pandas as pd
import scipy.sparse as sp

from pyrocell.contrasts.pseudobulk import Cells, LogRatio, Reference, Variance, log_ratio, rates
from pyrocell.data.backed import BackedCounts
from pyrocell.errors import ScreenError
from pyrocell.screen.events import EVENTS
from pyrocell.screen.screen import Screen

__all__ = ["steady_state_screen"]

_BASELINE_SPLITS = 5  # as in the paper
_GRID = 400  # values of s at which the test is inverted; linear between them


def steady_state_screen(
    counts: sp.csr_matrix | BackedCounts,
    size: np.ndarray,
    screen: Screen,
    *,
    confidence_level: float,
    n_draws: int,
    n_splits: int,
    min_cells: int,
    min_count: float,
    seed: int,
    by_gene: bool,
    progress: Callable,
) -> pd.DataFrame:
    """Change of every condition between consecutive times, raw and corrected.

    :meth:`pyrocell.PyroCell.steady_state_screen` asks it of a model's cells, with defaults.

    Parameters
    ----------
    counts, size
        (N, G) CSR and (N,) size factors of the cells of `screen`.
    confidence_level
        Of `lower` and `upper`.
    n_draws
        Draws of the sampling error.
    n_splits
        Random splits into halves.
    min_cells
        Cells that a condition needs at a time, and controls that a batch needs, to be compared.
    min_count
        Counts that a gene needs in both pseudobulks of a condition, as the controls lead to expect,
        and in those of the controls; where counts vary more than Poisson counts, the number of
        Poisson counts that would vary as much.
    seed
        Of draws and splits.
    by_gene
        Return the change of every gene used instead, a row per gene.
    progress
        Wraps the iteration over rows, as `tqdm` does.

    Returns
    -------
    DataFrame with a row per perturbation, medium and pair of consecutive times; natural logarithms:

    - perturbation, media, time_from, time_to, n_from, n_to
    - raw: mean |change| of log1p of counts per cell of median depth, over all genes, as in the
      paper (which takes log2); raw_baseline: the same between two random groups of controls of one
      time with as many cells as the condition had, mean of five
    - reference: "control", or "none" in the controls' own rows, from which nothing is taken
    - observed: RMS of D over genes; noise: the part of it that is sampling noise; control_change:
      RMS of what the controls themselves changed, without noise (it was taken out of D)
    - squared: mean square of D without noise; unbiased, so it can be below 0, where rms, its root,
      is 0
    - lower, upper: interval of the RMS
    - n_genes: genes that had counts enough, the perturbation's own left out
    - batch_removed: whether controls of the same batch and time take batch noise out of `rms`

    Rows of the controls have `batch_removed` where both times were measured in one batch. Without
    controls at both times, or with too few cells, the corrected columns are NaN.
    With `by_gene`: the labels, gene, change (D) and se.

    Raises
    ------
    ScreenError
        If the screen has fewer than two times, or an option is out of its range.
    """
    names = ("confidence_level", "n_draws", "n_splits", "min_cells", "min_count")
    values = (confidence_level, n_draws, n_splits, min_cells, min_count)
    _check(screen, dict(zip(names, values)))
    task = _Comparison(
        screen=screen,
        groups=_groups(counts, size, screen),
        n_draws=n_draws,
        n_splits=n_splits,
        min_cells=min_cells,
        min_count=min_count,
        tail=(1 - confidence_level) / 2,
        seed=seed,
    )
    pairs = _consecutive(screen)
    # Pairs of the same times follow one another, so that few references are held at once.
    order = sorted(range(len(pairs)), key=lambda i: task.place(*pairs[i]))
    make = task.gene_rows if by_gene else task.row
    found: dict[int, Any] = {i: make(*pairs[i]) for i in progress(order)}
    rows = [found[i] for i in range(len(pairs))]
    return pd.concat(rows, ignore_index=True) if by_gene else pd.DataFrame(rows)


@dataclass(frozen=True)
class _Change:
    """Log change of each gene between two times, against a reference.

    `value` and `genes`, those to be used, are (G,); `halves` (2, S, G) the change in halves of the
    cells; `noise` (R, G) draws of its sampling error.
    """

    value: np.ndarray
    halves: np.ndarray
    noise: np.ndarray
    genes: np.ndarray
    batch_removed: bool

    def square(self, genes: np.ndarray) -> float:
        """Mean square over genes without sampling noise: products of independent halves."""
        first, second = self.halves[..., genes]
        return float((first * second).mean())


@dataclass
class _Comparison:
    """What all rows of the table share."""

    screen: Screen
    groups: list[Cells]
    n_draws: int
    n_splits: int
    min_cells: int
    min_count: float
    tail: float
    seed: int
    held: dict = field(default_factory=dict)

    @cached_property
    def variance(self) -> Variance:
        return Variance.of(self.groups)

    @cached_property
    def median_size(self) -> float:
        return float(np.median(np.concatenate([group.size for group in self.groups])))

    @cached_property
    def controls(self) -> dict[tuple, int]:
        """Condition of the controls in each medium at each time."""
        return {self._where(c): c for c in np.flatnonzero(self.screen.is_control).tolist()}

    def _where(self, condition: int) -> tuple:
        about = self.screen.conditions.loc[condition, ["media", "time"]]
        return (*about, self.screen.exposed_at[condition])

    def _rng(self, *what: int) -> np.random.Generator:
        """A stream of its own for everything drawn, so that no row depends on the others."""
        return np.random.default_rng([self.seed, *what])

    def place(self, first: int, last: int) -> tuple:
        """Medium and times of a pair of conditions."""
        return (*self._where(first), *self._where(last))

    def row(self, first: int, last: int) -> dict:
        """One row of the table: a condition at an earlier and at a later time."""
        groups = [self.groups[c] for c in (first, last)]
        out = self._labels(first, last) | {
            "n_from": len(groups[0]),
            "n_to": len(groups[1]),
            "raw": self._raw(*map(rates, groups)),
            "raw_baseline": self._raw_baseline(first, last),
            "reference": "none" if self.screen.is_control[first] else "control",
        }
        empty = dict.fromkeys(("observed", "noise", "control_change"), np.nan)
        empty |= dict.fromkeys(("squared", "rms", "lower", "upper"), np.nan)
        change, control = self._changes(first, last)
        if change is None or not change.genes.any():
            return out | empty | {"n_genes": 0, "batch_removed": False}
        genes = change.genes
        squared = change.square(genes)
        observed = float(np.mean(change.value[genes] ** 2))
        lower, upper = _interval(change.value[genes], change.noise[:, genes], squared, self.tail)
        return out | {
            "observed": _root(observed),
            "noise": _root(observed - squared),
            "control_change": np.nan if control is None else _root(control.square(genes)),
            "squared": squared,
            "rms": _root(squared),
            "lower": lower,
            "upper": upper,
            "n_genes": int(genes.sum()),
            "batch_removed": change.batch_removed,
        }

    def gene_rows(self, first: int, last: int) -> pd.DataFrame:
        """The genes behind a row: change and standard error of each."""
        change, _ = self._changes(first, last)
        used = np.flatnonzero(change.genes) if change else []
        out = pd.DataFrame({"gene": self.screen.genes[used]})
        out["change"] = change.value[used] if change else []
        out["se"] = change.noise[:, used].std(axis=0) if change else []
        return pd.DataFrame(self._labels(first, last), index=out.index).join(out)

    def _labels(self, first: int, last: int) -> dict:
        about = self.screen.conditions
        names = {name: about[name][first] for name in ("perturbation", "media")}
        return names | {"time_from": about["time"][first], "time_to": about["time"][last]}

    def _changes(self, first: int, last: int) -> tuple[_Change | None, _Change | None]:
        """Change of a condition relative to the controls', own genes left out, and the controls'.

        The controls' own row has their change with nothing taken from it.
        """
        if self.held.get("place") != self.place(first, last):
            self.held = {"place": self.place(first, last)}
        one, other = self._controls(first, last)
        too_few = min(len(self.groups[c]) for c in (first, last)) < self.min_cells
        if one is None or other is None or too_few:
            return None, None
        control = self._once(("change", one, other), lambda: self._control_change(one, other))
        if self.screen.is_control[first]:
            return control, control
        change = self._change((first, last), (one, other))
        if change is not None:
            own = self.screen.target[self.screen.membership[[first]].indices]
            change.genes[own[own >= 0]] = False
        return change, control

    def _controls(self, *conditions: int) -> list[int | None]:
        return [self.controls.get(self._where(c)) for c in conditions]

    def _once(self, key: tuple, make: Callable) -> Any:
        if key not in self.held:
            self.held[key] = make()
        return self.held[key]

    # ------------------------------------------------------------------ the paper's
    def _raw(self, first: np.ndarray, last: np.ndarray) -> float:
        """Mean |change| of log1p of counts per cell of median depth."""
        change = np.log1p(last * self.median_size) - np.log1p(first * self.median_size)
        return float(np.abs(change).mean())

    def _raw_baseline(self, *pair: int) -> float:
        """Change between two random groups of control cells of one time, as many as there are."""
        rng = self._rng(0, *pair)
        out = []
        for cells in (self.groups[c] for c in self._controls(*pair) if c is not None):
            for _ in range(_BASELINE_SPLITS):
                drawn = (cells[rng.integers(len(cells), size=len(self.groups[c]))] for c in pair)
                out.append(self._raw(*map(rates, drawn)))
        return float(np.mean(out)) if out else np.nan

    # ------------------------------------------------------------------ corrected
    def _reference(self, condition: int, pooled: bool) -> Reference:
        cells = self.groups[condition].pooled() if pooled else self.groups[condition]
        rng = self._rng(1, condition)
        return Reference.of(cells, self.min_cells, self.n_draws, self.n_splits, rng)

    def _ratio(self, condition: int, control: int, pooled: bool) -> LogRatio | None:
        """A condition against controls, of its own batches or all pooled."""
        key = ("reference", control, pooled)
        reference = self._once(key, lambda: self._reference(control, pooled))
        cells = self.groups[condition].pooled() if pooled else self.groups[condition]
        return log_ratio(cells, reference, self.variance, self._rng(2, condition))

    def _change(self, pair: tuple[int, int], controls: tuple[int, int]) -> _Change | None:
        """Change of a condition relative to the controls' change."""
        for pooled in (False, True):
            first, last = (self._ratio(*what, pooled) for what in zip(pair, controls))
            if self._enough(first) and self._enough(last):
                return _Change(
                    last.value - first.value,
                    last.halves - first.halves,
                    last.noise - first.noise,
                    self._usable(first) & self._usable(last),
                    not pooled or (self._one_batch(pair) and self._one_batch(controls)),
                )
        return None

    def _control_change(self, first: int, last: int) -> _Change | None:
        """The controls' own change: the later time against the earlier as reference."""
        for pooled in (False, True):
            ratio = self._ratio(last, first, pooled)
            if self._enough(ratio):
                removed = not pooled or self._one_batch((first, last))
                usable = self._usable(ratio)
                return _Change(ratio.value, ratio.halves, ratio.noise, usable, removed)
        return None

    def _enough(self, ratio: LogRatio | None) -> TypeGuard[LogRatio]:
        return ratio is not None and ratio.n_cells >= self.min_cells

    def _usable(self, ratio: LogRatio) -> np.ndarray:
        """Genes with counts enough for a logarithm, as the reference leads to expect."""
        return ratio.effective_counts >= self.min_count

    def _one_batch(self, conditions: Sequence[int]) -> bool:
        """Whether all cells of some conditions are of one batch, so that their change has no η."""
        return len(np.unique(np.concatenate([self.groups[c].batch for c in conditions]))) == 1


def _interval(
    value: np.ndarray, noise: np.ndarray, squared: float, tail: float
) -> tuple[float, float]:
    """Invert the test of an RMS: bounds for s, from changes (G,) and draws of their error (R, G).

    Where the estimate lies below what is usual for s = 0, the upper bound is that of the usual
    estimate, so that luck with the noise does not pass for precision.
    """
    size = np.sqrt((value**2).mean())
    # Draws are of first order; logarithms of few counts vary more, by what the halves show.
    shown, drawn = size**2 - squared, (noise**2).mean()
    noise = noise * np.sqrt(shown / drawn if shown > 0 and drawn > 0 else 1.0)
    along = noise @ (value / max(size, 1e-300)) / len(value)
    across = (noise**2).mean(axis=1)
    s = np.linspace(0.0, size + 5 * np.sqrt(across.mean()), _GRID)[:, None]
    seen = s**2 + 2 * s * along + across - across.mean()
    low, middle, high = np.quantile(seen, [tail, 0.5, 1 - tail], axis=1)
    s = s[:, 0]
    return _crossing(s, high, squared, last=False), _crossing(
        s, low, max(squared, middle[0]), last=True
    )


def _crossing(s: np.ndarray, curve: np.ndarray, level: float, last: bool) -> float:
    """First s with curve ≥ level, or last s with curve ≤ level; 0 where there is none below."""
    inside = np.flatnonzero(curve <= level if last else curve >= level)
    if not len(inside):
        return 0.0 if last else float(s[-1])
    i = inside[-1] if last else inside[0]
    j = i + 1 if last else i - 1
    if not 0 <= j < len(s):
        return float(s[i])
    return float(s[i] + (level - curve[i]) / (curve[j] - curve[i]) * (s[j] - s[i]))


def _root(square: float) -> float:
    return float(np.sqrt(max(square, 0.0)))


def _groups(counts: sp.csr_matrix | BackedCounts, size: np.ndarray, screen: Screen) -> list[Cells]:
    order = np.argsort(screen.cell_condition, kind="stable")
    bounds = np.searchsorted(screen.cell_condition[order], np.arange(len(screen.conditions) + 1))
    everything = Cells.of(counts, size, screen.cell_batch)
    return [everything[order[slice(*ends)]] for ends in pairwise(bounds)]


def _consecutive(screen: Screen) -> list[tuple[int, int]]:
    """Pairs of conditions that differ in time only, neighbours among the times measured."""
    arms = screen.conditions.sort_values("time", kind="stable")
    by = ["media", "perturbation", *arms.columns.intersection(list(EVENTS))]
    groups = arms.groupby(by, sort=False).groups.values()
    return sorted((int(a), int(b)) for arm in groups for a, b in pairwise(arm))


def _check(screen: Screen, options: Mapping[str, float]) -> None:
    """Raise unless there are two times and options in their range."""
    if len(screen.times) < 2:
        raise ScreenError(
            f"the screen has {len(screen.times) or 'no'} times, and change needs two: register a "
            "time_key with two times or more"
        )
    if not 0 < options["confidence_level"] < 1:
        raise ScreenError(
            f"confidence_level={options['confidence_level']} must lie between 0 and 1"
        )
    least = {"n_draws": 20, "n_splits": 1, "min_cells": 2, "min_count": 1}
    for name, value in least.items():
        if options[name] < value:
            raise ScreenError(f"{name}={options[name]} must be at least {value}")
