"""Predicted populations of cells against those observed, with what no model would score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from anndata import AnnData
from mudata import MuData
from sklearn.decomposition import PCA

from pyrocell._compat import obs_table
from pyrocell._core.messages import did_you_mean, join_names
from pyrocell._core.threading import few_threads
from pyrocell.data.validation import count_matrix
from pyrocell.errors import ScreenError, UnknownLabelError
from pyrocell.metrics.distances import default_entropy, distance, median_bandwidth
from pyrocell.screen.labels import control_suggestion, encode_labels

__all__ = ["distribution_distance"]

_SAMPLE = 1000  # observed cells from which the scale of a kernel or of the entropy is taken
_UPPER = 0.95  # quantile of the noise floor
_Cells = TypeVar("_Cells", AnnData, MuData, AnnData | MuData)


def distribution_distance(
    predicted: AnnData | MuData,
    observed: AnnData | MuData,
    groupby: str | Sequence[str] = "perturbation",
    method: str = "energy",
    *,
    control: str = "control",
    view: str | None = None,
    layer: str | None = None,
    use_rep: str | None = None,
    n_pcs: int | None = 50,
    n_splits: int = 20,
    max_cells: int = 1000,
    seed: int = 0,
    **options: Any,
) -> pd.DataFrame:
    """How far predicted cells of each condition lie from those observed (App. B.3, eq. 23).

    The observed cells of a condition are split into random halves A and B. Against B are held: as
    many predicted cells, as many control cells ("nothing happens"), and A (what a replicate would
    score). All three come from the same number of cells, so that what a method owes to their number
    is the same in all. Values are means over `n_splits` splits.

    Parameters
    ----------
    predicted, observed
        Cells × genes on one scale, for example log1p of counts per median depth in both. Counts
        have sampling noise and expectations have none: draw counts from a prediction, or its
        missing noise is measured too.
    groupby
        Columns of both `.obs` that make a condition, the perturbation first; controls are those
        that agree in the others.
    method
        "energy", "mmd", "sinkhorn", "moments" or "matched": see `pyrocell.metrics.distances`.
    control
        Label of unperturbed cells.
    view
        Modality of MuData that is compared, in the cells that have it.
    layer, use_rep
        Layer, or key of `.obsm` in both, that holds the features; `.X` when neither is given.
    n_pcs
        Principal components of the observed cells in which cells are compared, where there are more
        features; None for all features. What a prediction gets wrong outside of them is not seen.
    n_splits
        Random splits.
    max_cells
        Most cells of each population compared at a time.
    seed
        Of splits and components.
    **options
        Of the distance. Without, the bandwidth of "mmd" and the entropy of "sinkhorn" are taken
        from the observed cells together, so that conditions can be compared.

    Returns
    -------
    DataFrame with a row per condition of `predicted`:

    - the columns of `groupby`, n_predicted, n_observed, n_compared (of each population at a time)
    - distance: predicted cells, control: control cells, floor: a replicate; floor_upper: its 95%
      quantile over splits. Unbiased methods have a floor of zero on average.
    - explained: 1 − (distance − floor) / (control − floor): 1 is as good as a replicate, 0 as bad
      as to predict no effect. NaN where controls lie below `floor_upper`: nothing to explain.

    NaN where there are fewer than four observed or two predicted cells, or no controls.

    Raises
    ------
    UnknownLabelError
        If a column, layer, key, the control or a condition is not there.
    ScreenError
        If genes differ, a cell has no label, or a value is NaN.
    ValueError
        If `method` is unknown or a number is out of its range.
    """
    _check(n_splits=n_splits, max_cells=max_cells, n_pcs=1 if n_pcs is None else n_pcs)
    columns = [groupby] if isinstance(groupby, str) else list(groupby)
    predicted, observed = (
        _of_view(cells, view, name) for cells, name in _both(predicted, observed)
    )
    labels = [_labels(cells, columns, name) for cells, name in _both(predicted, observed)]
    conditions = labels[0].drop_duplicates().sort_values(columns).itertuples(index=False)
    conditions = [tuple(condition) for condition in conditions]
    there = set(labels[1].itertuples(index=False, name=None))
    _check_labels(conditions, there, columns, control)
    features = _features(predicted, observed, layer, use_rep, n_pcs, seed)
    measure = _Measure.of(method, features[1], options, seed)
    by = columns if len(columns) > 1 else columns[0]  # so that single labels are no tuples
    where = [table.groupby(by).indices for table in labels]
    rows = []
    for i, condition in enumerate(conditions):
        against = (control, *condition[1:])
        predicted_cells = features[0][np.asarray(where[0][_key(condition)])]
        observed_cells = features[1][np.asarray(where[1][_key(condition)])]
        controls = None
        if against in there - {condition}:
            controls = features[1][np.asarray(where[1][_key(against)])]
        row = dict(zip(columns, condition))
        with few_threads(features[1].shape[1]):
            found = measure.row(
                predicted_cells, observed_cells, controls, n_splits, max_cells, [seed, i]
            )
            rows.append(row | found)
    table = pd.DataFrame(rows)
    table.attrs["options"] = measure.options
    return table


@dataclass(frozen=True)
class _Measure:
    """A distance with its options."""

    method: str
    options: dict[str, Any]

    @classmethod
    def of(cls, method: str, cells: torch.Tensor, options: dict[str, Any], seed: int) -> _Measure:
        """With the options of the table, some of them read off the observed cells."""
        distance(method)
        some = np.random.default_rng(seed).permutation(len(cells))[:_SAMPLE]
        first, second = cells[some].tensor_split(2)
        if method == "mmd":
            options = {"bandwidth": float(median_bandwidth(first, second))} | options
        if method == "sinkhorn":
            options = {"entropy": default_entropy(first, second)} | options
        return cls(method, options)

    def row(
        self,
        predicted: torch.Tensor,
        observed: torch.Tensor,
        control: torch.Tensor | None,
        n_splits: int,
        max_cells: int,
        seed: list[int],
    ) -> dict[str, float]:
        """Distances of a condition: to the prediction, to the controls, to a replicate."""
        available = [len(observed) // 2, len(predicted), max_cells]
        n = min(available + ([] if control is None else [len(control)]))
        row = {"n_predicted": len(predicted), "n_observed": len(observed), "n_compared": n}
        if n < 2:
            return row | dict.fromkeys(
                ("distance", "control", "floor", "floor_upper", "explained"), np.nan
            )
        rng = np.random.default_rng(seed)
        values = np.full((n_splits, 3), np.nan)
        for i in range(n_splits):
            halves = _draw(observed, 2 * n, rng)
            rivals = [_draw(predicted, n, rng), control, halves[:n]]
            if control is not None:
                rivals[1] = _draw(control, n, rng)
            for j, rival in enumerate(rivals):
                if rival is not None:
                    values[i, j] = self._between(rival, halves[n:], rng)
        here, nothing, floor = values.mean(axis=0)
        upper = np.quantile(values[:, 2], _UPPER)
        explained = 1 - (here - floor) / (nothing - floor) if nothing > upper else np.nan
        return row | {
            "distance": here,
            "control": nothing,
            "floor": floor,
            "floor_upper": upper,
            "explained": explained,
        }

    def _between(self, x: torch.Tensor, y: torch.Tensor, rng: np.random.Generator) -> float:
        options = self.options
        if self.method == "matched" and "generator" not in options:
            generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
            options = options | {"generator": generator}
        with torch.no_grad():
            return float(distance(self.method)(x, y, **options))


def _both(predicted: _Cells, observed: _Cells) -> tuple[tuple[_Cells, str], ...]:
    return (predicted, "predicted"), (observed, "observed")


def _of_view(cells: AnnData | MuData, view: str | None, name: str) -> AnnData:
    """A modality with the columns of all cells; an AnnData as it is."""
    if not isinstance(cells, MuData):
        if view is not None:
            raise ScreenError(f"view= is a modality of MuData, and {name} is not one; leave it out")
        return cells
    known = list(cells.mod)
    if view not in known:
        asked = f'view="{view}" is no modality of {name}' if view else f"{name} is a MuData"
        raise UnknownLabelError(f"{asked}{did_you_mean(view or '', known)}; name one in view=")
    part = cells.mod[view].copy()
    assert isinstance(part, AnnData)  # not a MuData within
    own = obs_table(part)
    whole = pd.DataFrame(cells.obs).loc[part.obs_names]
    part.obs = pd.concat([own, whole[[c for c in whole if c not in own]]], axis=1)
    return part


def _key(condition: tuple) -> Any:
    return condition if len(condition) > 1 else condition[0]


def _draw(cells: torch.Tensor, n: int, rng: np.random.Generator) -> torch.Tensor:
    return cells[rng.permutation(len(cells))[:n]]


def _labels(adata: AnnData, columns: list[str], name: str) -> pd.DataFrame:
    """The columns that make a condition; the first as stripped strings."""
    for column in columns:
        if column not in adata.obs:
            raise UnknownLabelError(
                f'groupby="{column}" is not in {name}.obs{did_you_mean(column, adata.obs.columns)}'
            )
    table = obs_table(adata)[columns].reset_index(drop=True)
    for column in columns:
        codes, names = encode_labels(table[column], f'{name}.obs["{column}"]')
        if column == columns[0] or not pd.api.types.is_numeric_dtype(table[column]):
            table[column] = np.array(names, dtype=object)[codes]
    return table


def _check_labels(
    conditions: list[tuple], there: set[tuple], columns: list[str], control: str
) -> None:
    names = sorted({condition[0] for condition in there})
    if control not in names:
        raise UnknownLabelError(
            f'observed.obs["{columns[0]}"] has {len(names)} labels but none equals '
            f'control="{control}"{control_suggestion(control, names)}'
        )
    missing = [condition for condition in conditions if condition not in there]
    if missing:
        raise UnknownLabelError(
            f"{len(missing)} conditions of predicted have no observed cells: "
            f"{join_names(' | '.join(map(str, condition)) for condition in missing)}; leave them "
            f"out"
        )


def _features(
    predicted: AnnData,
    observed: AnnData,
    layer: str | None,
    use_rep: str | None,
    n_pcs: int | None,
    seed: int,
) -> list[torch.Tensor]:
    """Cells × features of both, double precision, in components of the observed cells."""
    if use_rep is not None:
        for adata, name in _both(predicted, observed):
            if use_rep not in adata.obsm:
                there = did_you_mean(use_rep, adata.obsm)
                raise UnknownLabelError(f'use_rep="{use_rep}" is not in {name}.obsm{there}')
        values = [np.asarray(adata.obsm[use_rep], float) for adata in (predicted, observed)]
        if values[0].shape[1] != values[1].shape[1]:
            widths = " and ".join(str(v.shape[1]) for v in values)
            raise ScreenError(f'obsm["{use_rep}"] has {widths} columns; they must be the same')
    else:
        absent = observed.var_names.difference(predicted.var_names)
        if len(absent):
            raise ScreenError(
                f"{len(absent)} genes of observed are not in predicted: {join_names(absent)}; "
                "take the genes of both"
            )
        predicted = predicted[:, observed.var_names]
        values = [count_matrix(adata, layer) for adata in (predicted, observed)]
    if any(np.isnan(v.data if sp.issparse(v) else v).any() for v in values):
        raise ScreenError("predicted or observed has NaN among the values to be compared")
    if n_pcs is not None and values[1].shape[1] > n_pcs < len(observed):
        solver = "arpack" if sp.issparse(values[1]) else "auto"
        pca = PCA(n_pcs, svd_solver=solver, random_state=seed).fit(values[1])
        values = [pca.transform(v) for v in values]
    values = [v.toarray() if sp.issparse(v) else np.asarray(v) for v in values]
    return [torch.as_tensor(v, dtype=torch.float64) for v in values]


def _check(**numbers: int) -> None:
    for name, value in numbers.items():
        least = 2 if name == "max_cells" else 1
        if value < least:
            raise ValueError(f"{name}={value} must be at least {least}")
