"""Shares and quantiles of groups of cells against controls, with their sampling error."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from pyrocell._core.messages import did_you_mean, join_names
from pyrocell.errors import ScreenError, UnknownLabelError, warn
from pyrocell.screen.labels import control_suggestion, encode_labels

__all__ = ["Cells", "cells_of"]

_FEW_UNITS = 5
_CHUNK = 1 << 22  # bootstrap weights held at a time


@dataclass(frozen=True)
class Cells:
    """Cells with pseudotime.

    `value` (N,), `label` (N,) names of perturbations, `batch` (N,) codes, `unit` (N,) codes, or
    None where every cell is a unit of its own; `names` of the perturbations, the control first.
    """

    obs: pd.DataFrame
    value: np.ndarray
    label: np.ndarray
    batch: np.ndarray
    unit: np.ndarray | None
    names: list[str]

    @property
    def control(self) -> str:
        """Label of unperturbed cells."""
        return self.names[0]

    @cached_property
    def is_control(self) -> np.ndarray:
        """Which cells are controls, (N,)."""
        return self.label == self.control

    def shares(
        self, member: np.ndarray, *, tail: float, n_draws: int, seed: int
    ) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
        """Share of each perturbation's cells in each of some sets, `member` (N, sets) 0 or 1."""
        control = np.flatnonzero(self.is_control)
        for i, name in enumerate(self.names):
            rng = np.random.default_rng([seed, i])
            group = np.flatnonzero(self.label == name)
            weight = self._batch_weight(group)
            n = member[group].sum(axis=0)
            share = n / len(group)
            drawn = self._draw_share(group, member, None, n_draws, rng)
            row = {"n": n.astype(int), "total": np.full(len(n), len(group)), "share": share}
            row["lower"], row["upper"] = np.quantile(drawn, [tail, 1 - tail], axis=0)
            row["control"] = self._expected(control, member, weight)
            if name == self.control:
                nothing = np.full(len(n), np.nan)
                row |= {f"difference{end}": nothing for end in ("", "_lower", "_upper")}
            else:
                apart = drawn - self._draw_share(control, member, weight, n_draws, rng)
                row["difference"] = share - row["control"]
                low, high = np.quantile(apart, [tail, 1 - tail], axis=0)
                row |= {"difference_lower": low, "difference_upper": high}
            yield name, row

    def shuffled(
        self, name: str, member: np.ndarray, *, tail: float, n_draws: int, seed: int
    ) -> tuple[float, float]:
        """Interval of the difference in share from controls with labels shuffled."""
        if name == self.control:
            return np.nan, np.nan
        rng = np.random.default_rng([seed, self.names.index(name), 1])
        group, control = np.flatnonzero(self.label == name), np.flatnonzero(self.is_control)
        weight = self._batch_weight(group)
        both = np.concatenate([group, control])
        both = both[weight[self.batch[both]] > 0]
        if self.unit is None:
            apart = np.zeros(n_draws)
            for b in np.flatnonzero(weight):
                here = both[self.batch[both] == b]
                n, of_group = len(here), int((self.batch[group] == b).sum())
                early = int(member[here].sum())
                drawn = rng.hypergeometric(early, n - early, of_group, n_draws)
                apart += weight[b] * (drawn / of_group - (early - drawn) / (n - of_group))
        else:
            apart = self._shuffle_units(both, name, member, n_draws, rng)
        low, high = np.nanquantile(apart, [tail, 1 - tail])
        return float(low), float(high)

    def _shuffle_units(
        self,
        both: np.ndarray,
        name: str,
        member: np.ndarray,
        n_draws: int,
        rng: np.random.Generator,
    ) -> np.ndarray:
        """Differences in share after whole units have changed labels, (R,)."""
        assert self.unit is not None
        held, unit = np.unique(self.unit[both], return_inverse=True)
        batches, batch = np.unique(self.batch[both], return_inverse=True)
        n, k = np.zeros((2, len(held), len(batches)))
        np.add.at(n, (unit, batch), 1)
        np.add.at(k, (unit, batch), member[both])
        is_group = np.zeros(len(held), dtype=bool)
        is_group[unit[self.label[both] == name]] = True
        nested = ((n > 0).sum(axis=1) == 1).all()  # clones of an animal are, guides are not
        stratum = n.argmax(axis=1) if nested else np.zeros(len(held), dtype=int)
        taken = np.empty((n_draws, len(held)))
        for b in np.unique(stratum):
            here = np.flatnonzero(stratum == b)
            taken[:, here] = rng.permuted(np.tile(is_group[here], (n_draws, 1)), axis=1)
        of_group, early = taken @ n, taken @ k  # (R, B)
        rest = n.sum(axis=0) - of_group
        weight = np.where(rest > 0, of_group, 0)
        expected = weight * (k.sum(axis=0) - early) / np.maximum(rest, 1)
        with np.errstate(invalid="ignore"):  # NaN where no batch has both
            return early.sum(1) / of_group.sum(1) - expected.sum(1) / weight.sum(1)

    def quantiles(
        self, asked: np.ndarray, *, tail: float, n_draws: int, seed: int
    ) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
        """Quantiles of each perturbation, against those of controls weighted to its batches."""
        control = np.flatnonzero(self.is_control)
        for i, name in enumerate(self.names):
            rng = np.random.default_rng([seed, i])
            group = np.flatnonzero(self.label == name)
            weight = self._cell_weight(control, self._batch_weight(group))
            value = self._quantile(group, np.ones((1, len(group))), asked)[0]
            drawn = self._draw_quantile(group, None, asked, n_draws, rng)
            row = {"n": np.full(len(asked), len(group)), "value": value}
            row["lower"], row["upper"] = np.quantile(drawn, [tail, 1 - tail], axis=0)
            row["control"] = self._quantile(control, weight[None], asked)[0]
            if name == self.control:
                nothing = np.full(len(asked), np.nan)
                row |= {f"shift{end}": nothing for end in ("", "_lower", "_upper")}
            else:
                apart = drawn - self._draw_quantile(control, weight, asked, n_draws, rng)
                row["shift"] = value - row["control"]
                low, high = np.quantile(apart, [tail, 1 - tail], axis=0)
                row |= {"shift_lower": low, "shift_upper": high}
            yield name, row

    # ------------------------------------------------------------------ batches
    def _batch_weight(self, group: np.ndarray) -> np.ndarray:
        """Share of a group's cells in each batch, (B,)."""
        return np.bincount(self.batch[group], minlength=self.batch.max() + 1) / len(group)

    def _cell_weight(self, cells: np.ndarray, weight: np.ndarray) -> np.ndarray:
        """Weights of some cells that spread them over batches like `weight`."""
        n = np.bincount(self.batch[cells], minlength=len(weight))
        return (weight / np.maximum(n, 1))[self.batch[cells]]

    def _expected(self, cells: np.ndarray, member: np.ndarray, weight: np.ndarray) -> np.ndarray:
        """Share of some cells in sets, in the batches that `weight` gives."""
        each = self._cell_weight(cells, weight)
        return each @ member[cells] / max(each.sum(), 1e-300)

    # ------------------------------------------------------------------ draws
    def _draw_share(
        self,
        cells: np.ndarray,
        member: np.ndarray,
        weight: np.ndarray | None,
        n_draws: int,
        rng: np.random.Generator,
    ) -> np.ndarray:
        """Draws of a share in each set, (R, sets); of each batch apart where there are weights."""
        if weight is None:
            weight, batch = np.ones(1), np.zeros(len(cells), dtype=int)
        else:
            batch = self.batch[cells]
        batches = np.flatnonzero(weight)
        if self.unit is None:
            drawn = np.zeros(())
            for b in batches:
                here = cells[batch == b]
                k = member[here].sum(axis=0)
                beta = rng.beta(k + 0.5, len(here) - k + 0.5, (n_draws, len(k)))
                drawn = drawn + weight[b] * beta
            return drawn
        unit = np.unique(self.unit[cells], return_inverse=True)[1]
        times = _resampled(unit.max() + 1, n_draws, rng)  # (R, U)
        drawn, seen = 0.0, 0.0
        for b in batches:
            here = batch == b
            n = np.bincount(unit[here], minlength=times.shape[1]).astype(float)
            k = np.stack(
                [np.bincount(unit[here], m, times.shape[1]) for m in member[cells[here]].T], 1
            )
            there = (times @ n)[:, None]
            # A draw without any unit of a batch leaves the batch out.
            drawn = drawn + weight[b] * np.where(there > 0, times @ k / np.maximum(there, 1), 0)
            seen = seen + weight[b] * (there > 0)
        return drawn / np.maximum(seen, 1e-300)

    def _draw_quantile(
        self,
        cells: np.ndarray,
        weight: np.ndarray | None,
        asked: np.ndarray,
        n_draws: int,
        rng: np.random.Generator,
    ) -> np.ndarray:
        """Bootstrap draws of quantiles, (R, quantiles)."""
        unit = np.arange(len(cells)) if self.unit is None else self.unit[cells]
        unit = np.unique(unit, return_inverse=True)[1]
        step = max(1, _CHUNK // len(cells))
        parts = []
        for start in range(0, n_draws, step):
            times = _resampled(unit.max() + 1, min(step, n_draws - start), rng)[:, unit]
            parts.append(self._quantile(cells, times if weight is None else times * weight, asked))
        return np.concatenate(parts)

    def _quantile(self, cells: np.ndarray, weight: np.ndarray, asked: np.ndarray) -> np.ndarray:
        """Weighted quantiles of pseudotime, one row per row of weights."""
        order = np.argsort(self.value[cells], kind="stable")
        value, weight = self.value[cells][order], weight[:, order]
        # The weight below a cell, counting half of its own, over the total.
        below = (weight.cumsum(axis=1) - weight / 2) / weight.sum(axis=1, keepdims=True)
        rows = []
        for share in below:
            kept = np.diff(share, prepend=-1) > 0
            rows.append(np.interp(asked, share[kept], value[kept]))
        return np.array(rows)


def cells_of(
    obs: pd.DataFrame,
    value: np.ndarray,
    control: str,
    perturbation_key: str,
    batch_key: str | None,
    unit_key: str | None,
) -> Cells:
    """Cells that have pseudotime, or raise.

    Raises
    ------
    UnknownLabelError
        If a column or the control is not there.
    ScreenError
        If a label is missing, a batch has no controls, or a unit has controls and others.

    Warns
    -----
    ScreenWarning
        If a perturbation has few units.
    """
    placed = np.isfinite(value)
    obs, value = obs[placed], value[placed]
    columns = {"perturbation_key": perturbation_key, "batch_key": batch_key, "unit_key": unit_key}
    codes = {}
    for option, key in columns.items():
        if key is None:
            continue
        if key not in obs:
            raise UnknownLabelError(
                f'{option}="{key}" is not in .obs{did_you_mean(key, obs.columns)}'
            )
        codes[option] = encode_labels(obs[key], f'{option}="{key}"')
    code, names = codes["perturbation_key"]
    if control not in names:
        raise UnknownLabelError(
            f'perturbation_key="{perturbation_key}" has {len(names)} labels but none equals '
            f'control="{control}"{control_suggestion(control, names)}'
        )
    label = np.array(names, dtype=object)[code]
    batch, batches = codes.get("batch_key", (np.zeros(len(obs), dtype=int), [""]))
    unit = codes["unit_key"][0] if unit_key else None
    order = [control, *(name for name in names if name != control)]
    cells = Cells(obs, value, label, batch, unit, order)
    _check_batches(cells, batches, batch_key)
    if unit is not None:
        _check_units(cells, codes["unit_key"][1], unit_key)
    return cells


def _check_batches(cells: Cells, batches: list[str], batch_key: str | None) -> None:
    bare = np.setdiff1d(np.unique(cells.batch), np.unique(cells.batch[cells.is_control]))
    if len(bare):
        raise ScreenError(
            f'{len(bare)} batches of batch_key="{batch_key}" have no control cells with '
            f"pseudotime: {join_names(batches[b] for b in bare)}; leave them out, or give no "
            f"batch_key"
        )


def _check_units(cells: Cells, units: list[str], unit_key: str | None) -> None:
    assert cells.unit is not None
    shared = np.intersect1d(cells.unit[cells.is_control], cells.unit[~cells.is_control])
    if len(shared):
        raise ScreenError(
            f'{len(shared)} units of unit_key="{unit_key}" hold both controls and perturbed cells: '
            f"{join_names(units[u] for u in shared)}; what perturbations share (animals, lanes) is "
            "batch_key=, and units lie within one of them (clones, guides)"
        )
    unit = cells.unit
    number = {n: len(np.unique(unit[cells.label == n])) for n in cells.names}
    few = [name for name, n in number.items() if n < _FEW_UNITS]
    if few:
        warn(
            f'{join_names(few)} have fewer than {_FEW_UNITS} different "{unit_key}": intervals '
            "from so few units are too narrow"
        )


def _resampled(n: int, n_draws: int, rng: np.random.Generator) -> np.ndarray:
    """How often each of n units is drawn, (R, n)."""
    return rng.multinomial(n, np.full(n, 1 / n), n_draws).astype(float)
