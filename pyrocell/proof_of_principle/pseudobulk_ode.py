r"""The paper's proof of principle (section 4): a neural ODE on pseudobulks, with or without eq. 9.

A model of its own beside `PyroCell`: the view is the identity on log1p of mean counts, the noise is
Gaussian with one variance (squared error), and parameters are point estimates, one set per seed.

.. math::

    F(X, p, m, t) = X + \int_0^t \mathcal G(x(s), p, m)\,ds, \qquad
    L = \frac1n \Bigl[\sum_{(p, m, t)} \ell\bigl(F(X, p, m, t), X^p_{m,t}\bigr)
        + w \sum_{(p, m) \in S} \ell\bigl(W(X^p_{m,t}, s), X^p_{m,t}\bigr)\Bigr],

with :math:`\ell` the mean square over genes. The first sum is eq. 5 at every time measured; the
second is eq. 9, in which W keeps the perturbation and medium that X has met.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr
from anndata import AnnData
from torch import Tensor

from pyrocell._compat import obs_table
from pyrocell._core.messages import did_you_mean, join_names
from pyrocell._core.threading import limit_threads
from pyrocell.data.registration import ScreenManager, cell_tensors, register
from pyrocell.errors import ScreenError, UnknownLabelError
from pyrocell.proof_of_principle.loss import PathLoss, minimise
from pyrocell.proof_of_principle.vector_field import VectorField, flow, initial_field
from pyrocell.screen.screen import Screen

__all__ = ["PseudobulkODE"]

_STARTS = ("pooled", "same_time")


class PseudobulkODE:
    """Gene-space neural ODE on pseudobulks (paper, section 4, eq. 25), many seeds in one batch.

    The AnnData is read, never written to.

    Parameters
    ----------
    adata
        Cells × genes, raw counts.
    perturbation_key, control, media_key, baseline_media, time_key, layer, size_factor_key
        As in :meth:`pyrocell.PyroCell.setup_anndata`; times are needed. Without size factors, total
        counts are.
    start
        X of eq. 5: "pooled", unperturbed cells in baseline medium of all times (the necessary
        assumption says that they are alike), or "same_time", those of the time that is predicted.
    n_hidden, n_layers
        Width and number of hidden layers of the vector field.
    n_steps
        RK4 steps from zero to the last time measured.

    Attributes
    ----------
    screen : Screen
        Conditions of the cells.
    levels : DataFrame
        log1p of the mean count per cell of median depth: conditions × genes.
    history : DataFrame
        From :meth:`fit`.

    Raises
    ------
    ScreenError
        If a column or control is missing, or times are.
    CountError
        If values are not raw counts.

    Examples
    --------
    >>> adata = pyrocell.datasets.hipsc_timecourse()
    >>> ode = pyrocell.PseudobulkODE(adata, size_factor_key="size_factor")
    >>> held_out = pd.DataFrame({"perturbation": ["POU5F1"], "time": [5.0]})
    >>> history = ode.fit(seeds=range(10), steady_state_weight=1.0, held_out=held_out)
    >>> ode.predict(held_out)
    """

    def __init__(
        self,
        adata: AnnData,
        *,
        perturbation_key: str = "perturbation",
        control: str = "control",
        media_key: str | None = None,
        baseline_media: str = "baseline",
        time_key: str = "time",
        layer: str | None = None,
        size_factor_key: str | None = None,
        start: str = "pooled",
        n_hidden: int = 64,
        n_layers: int = 2,
        n_steps: int = 5,
    ):
        _check_settings(start, n_hidden=n_hidden, n_layers=n_layers, n_steps=n_steps)
        if time_key is None:
            raise ScreenError(
                "time_key=None; a flow in time needs the column with each cell's time"
            )
        with warnings.catch_warnings():
            # There is no batch noise in this model, whatever batches there were.
            warnings.filterwarnings("ignore", message="all cells are in one batch")
            manager = register(
                None,
                _own_annotation(adata),
                layer=layer,
                batch_key=None,
                perturbation_key=perturbation_key,
                control=control,
                media_key=media_key,
                baseline_media=baseline_media,
                time_key=time_key,
                size_factor_key=size_factor_key,
            )
        self.screen: Screen = manager.screen
        if self.screen.times[-1] <= 0:
            raise ScreenError(f'time_key="{time_key}" has no time above zero, so nothing can flow')
        self._total, self._depth = _sums(manager)
        self.levels = pd.DataFrame(
            _log_level(self._total, self._depth),
            index=pd.MultiIndex.from_frame(
                self.screen.conditions[["perturbation", "media", "time"]]
            ),
            columns=self.screen.genes,
        )
        self._drivers = np.hstack([self.screen.genotype, self.screen.exposure])  # (C, D)
        self._start, self._sizes = start, (n_hidden, n_layers)
        # Velocities are per mean measured time: hours and days are the same model.
        self._unit = float(np.mean([t for t in self.screen.times if t > 0]))
        self._step = self.screen.times[-1] / self._unit / n_steps
        self.history = pd.DataFrame()
        self.seeds: tuple[int, ...] = ()
        self._field: VectorField | None = None
        self._pool = np.zeros(0, int)  # conditions that X is taken from

    # ------------------------------------------------------------------ fitting
    @limit_threads
    def fit(
        self,
        seeds: Iterable[int] = range(10),
        max_epochs: int = 500,
        learning_rate: float = 1e-3,
        steady_state_weight: float = 0.0,
        steady: Sequence[str] | pd.DataFrame | None = None,
        held_out: pd.DataFrame | None = None,
        progress_bar: bool = False,
    ) -> pd.DataFrame:
        """Fit one network per seed by Adam on all conditions at once.

        A seed's answer does not depend on the others, up to rounding.

        Parameters
        ----------
        seeds
            Of the networks' initial parameters.
        max_epochs
            Steps; every step sees every condition.
        learning_rate
            Of Adam.
        steady_state_weight
            w of eq. 9; 0 is eq. 5 alone.
        steady
            S of eq. 9: perturbation labels, the control's included, in every medium, each at its
            last time not held out; or a table of conditions. Default: all labels of which nothing
            is held out.
        held_out
            Conditions to leave out of the loss and to score at every epoch: a table with
            perturbation, time, and media if there are several.
        progress_bar
            Show one.

        Returns
        -------
        DataFrame, also kept as `history`, with seed, epoch (steps taken, from 0), loss (eq. 5's
        term, mean square per gene and condition), steady_state (eq. 9's, mean per condition of S;
        NaN where w = 0) and held_out (mean square; NaN where nothing is held out).

        Raises
        ------
        UnknownLabelError
            If a label or condition is not in the screen.
        ScreenError
            If nothing is left to start from or to be steady.
        NonFiniteError
            If a seed's loss becomes NaN or infinite.
        """
        seeds = tuple(int(seed) for seed in seeds)
        if not seeds or len(set(seeds)) < len(seeds):
            raise ScreenError(f"seeds={join_names(seeds)} must be one or more different numbers")
        if steady_state_weight < 0 or max_epochs < 0:
            raise ScreenError("steady_state_weight and max_epochs must not be below zero")
        out = self._conditions(held_out, "held_out")
        seen = np.setdiff1d(np.arange(len(self.levels)), out)
        pool = np.intersect1d(np.flatnonzero(self._is_start), seen)
        steady_at = self._steady(steady, seen) if steady_state_weight else np.zeros(0, int)
        loss = self._loss(pool, seen, out, steady_at)
        n_genes, n_drivers = len(self.screen.genes), self._drivers.shape[1]
        field = initial_field(seeds, n_genes, n_drivers, *self._sizes)
        rows, self._field = minimise(
            loss, field, seeds, max_epochs, learning_rate, steady_state_weight, progress_bar
        )
        self._pool, self.seeds = pool, seeds
        self.history = _history(rows, seeds)
        return self.history

    # ------------------------------------------------------------------ asking
    @limit_threads
    def predict(
        self, conditions: pd.DataFrame, return_seeds: bool = False
    ) -> AnnData | xr.DataArray:
        """Predicted levels of conditions, seen or not.

        Parameters
        ----------
        conditions
            Table with perturbation, time (any ≥ 0; with start="same_time" one of the screen's), and
            media if there are several.
        return_seeds
            Return every seed's as an xarray.DataArray (seed, condition, gene) instead.

        Returns
        -------
        AnnData, conditions × genes: `.X` log1p of the mean count per cell of median depth, mean
        over seeds; layer "sd", standard deviation over seeds, which is not the error of `.X`.
        """
        if self._field is None:
            raise ScreenError("nothing to predict with: fit first, .fit()")
        _check_columns(conditions, "conditions")
        frame = conditions.reset_index(drop=True)
        genotype, exposure, duration, _ = self.screen.encode(frame)
        times, place = np.unique(duration.astype(float), return_inverse=True)
        start = _tensor(self._origin(duration, self._pool))
        drivers = _tensor(np.hstack([genotype, exposure]))
        with torch.no_grad():
            path = flow(
                self._field, start, drivers, torch.from_numpy(times / self._unit), self._step
            )
        values = path[torch.as_tensor(place), :, torch.arange(len(frame))].numpy()  # (n, S, G)
        values = values.transpose(1, 0, 2)
        if return_seeds:
            coords = {"seed": list(self.seeds), "condition": frame.index, "gene": self.screen.genes}
            return xr.DataArray(values, coords, ("seed", "condition", "gene"), "level")
        obs = frame.set_axis(frame.index.astype(str))
        predicted = AnnData(values.mean(0), obs, pd.DataFrame(index=self.screen.genes))
        predicted.layers["sd"] = values.std(0)
        return predicted

    # ------------------------------------------------------------------ conditions
    @property
    def _is_start(self) -> np.ndarray:
        """(C,) bool: unperturbed cells in baseline medium."""
        return self.screen.is_control & (self.screen.exposure.sum(1) == 0)

    def _conditions(self, table: pd.DataFrame | None, argument: str) -> np.ndarray:
        """Indices of the measured conditions that a table names."""
        if table is None:
            return np.zeros(0, int)
        _check_columns(table, argument)
        found = [self.screen.condition_of(**row) for row in table.to_dict("records")]
        return np.unique(np.array(found, int))

    def _steady(self, which: Sequence[str] | pd.DataFrame | None, seen: np.ndarray) -> np.ndarray:
        """Conditions in S of eq. 9."""
        about = self.screen.conditions
        if isinstance(which, pd.DataFrame):
            found = np.intersect1d(self._conditions(which, "steady"), seen)
        else:
            missing = np.setdiff1d(np.arange(len(about)), seen)
            wanted = set(about["perturbation"]) - set(about["perturbation"][missing])
            if which is not None:
                labels = [which] if isinstance(which, str) else which
                wanted = {self.screen.label_of(self.screen.indices(label)) for label in labels}
            candidates = about.loc[seen]
            candidates = candidates[candidates["perturbation"].isin(wanted)]
            arms = candidates.groupby(["perturbation", "media"])
            found = arms["time"].idxmax().to_numpy(int)
        if not len(found):
            raise ScreenError(
                "steady_state_weight is above zero and no condition is left to be steady; name "
                "some that are not held out in steady="
            )
        return found

    def _loss(
        self, pool: np.ndarray, seen: np.ndarray, out: np.ndarray, steady: np.ndarray
    ) -> PathLoss:
        """A path for each perturbation and medium; with same-time controls, for each condition."""
        time_index, by = self.screen.time_index, self._drivers
        if self._start == "same_time":
            by = np.column_stack([by, time_index])
        _, first, row = np.unique(by, axis=0, return_index=True, return_inverse=True)
        level = self.levels.to_numpy()
        start = self._origin(self.screen.duration[first], pool)
        return PathLoss(
            start=_tensor(np.concatenate([start, level[steady]])),
            drivers=_tensor(self._drivers[np.concatenate([first, steady])]),
            n_steady=len(steady),
            times=torch.tensor(self.screen.times, dtype=torch.float64) / self._unit,
            step=self._step,
            row=torch.from_numpy(row.ravel()),
            time_index=torch.from_numpy(time_index),
            target=_tensor(level),
            seen=torch.from_numpy(seen),
            out=torch.from_numpy(out),
        )

    def _origin(self, duration: np.ndarray, pool: np.ndarray) -> np.ndarray:
        """(n, G) X, the profile at time zero, for conditions of these times."""
        if self._start == "pooled":
            if not len(pool):
                raise ScreenError("held_out has every control in baseline medium; leave some in")
            level = _log_level(self._total[pool].sum(0, keepdims=True), self._depth[pool].sum())
            return np.repeat(level, len(duration), axis=0)
        there = {float(self.screen.duration[c]): c for c in pool}
        absent = [float(t) for t in duration if float(t) not in there]
        if absent:
            raise UnknownLabelError(
                f'start="same_time": no controls in baseline medium at time {absent[0]:g} to start '
                f'from; there are some at {join_names(sorted(there))}; start="pooled" needs none'
            )
        return self.levels.to_numpy()[[there[float(t)] for t in duration]]


def _check_settings(start: str, **whole: int) -> None:
    if start not in _STARTS:
        raise ScreenError(f'start="{start}" is not one of: {join_names(_STARTS)}')
    for name, value in whole.items():
        if int(value) != value or value < 1:
            raise ScreenError(f"{name}={value} must be a whole number of at least 1")


def _own_annotation(adata: Any) -> Any:
    """These counts under annotation of our own, since registration writes into it."""
    if not isinstance(adata, AnnData):
        return adata  # registration says what is wrong with it
    obs, var = obs_table(adata).copy(), pd.DataFrame(index=adata.var_names)
    return AnnData(adata.X, obs, var, layers=dict(adata.layers))


def _check_columns(table: pd.DataFrame, argument: str) -> None:
    """Raise unless a table names conditions, and nothing that this model does not know."""
    allowed = ("perturbation", "media", "time")
    if not isinstance(table, pd.DataFrame) or table.empty or "perturbation" not in table:
        raise UnknownLabelError(
            f'{argument} must be a table with a row per condition and a column "perturbation"'
        )
    for column in table.columns:
        if column not in allowed:
            raise UnknownLabelError(
                f'column "{column}" of {argument} is not understood{did_you_mean(column, allowed)}'
            )


def _sums(manager: ScreenManager) -> tuple[np.ndarray, np.ndarray]:
    """Counts (C, G) and depth (C,), in cells of median depth, of each condition."""
    tensors, condition = cell_tensors(manager), manager.screen.cell_condition
    size = np.exp(tensors.log_size_factor.astype(float))
    counts = tensors.sums.condition
    assert isinstance(counts, np.ndarray)  # of a screen with few sets of perturbations
    return counts, np.bincount(condition, size) / np.median(size)


def _log_level(total: np.ndarray, depth: np.ndarray) -> np.ndarray:
    return np.log1p(total / np.reshape(depth, (-1, 1)))


def _history(rows: Tensor, seeds: Sequence[int]) -> pd.DataFrame:
    """Long table from (epochs, 3, S)."""
    n_epochs, _, n_seeds = rows.shape
    values = rows.permute(2, 0, 1).reshape(-1, 3).numpy().astype(float)
    table = pd.DataFrame(values, columns=["loss", "steady_state", "held_out"])
    table.insert(0, "seed", np.repeat(seeds, n_epochs))
    table.insert(1, "epoch", np.tile(np.arange(n_epochs), n_seeds))
    return table


def _tensor(values: np.ndarray) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float32)
