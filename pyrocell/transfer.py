"""How well a laboratory that was never seen is predicted: fit without it, then set beside it."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData

from pyrocell._compat import SETUP_ARGS
from pyrocell.assume import Assume
from pyrocell.errors import ScreenError, ScreenWarning
from pyrocell.metrics import coverage
from pyrocell.requested import NEW

if TYPE_CHECKING:
    from pyrocell.model import PyroCell

__all__ = ["leave_one_laboratory_out"]


def leave_one_laboratory_out(
    model: PyroCell,
    n_samples: int = 200,
    credible_level: float = 0.9,
    min_cells: int = 20,
    progress: Callable[[Iterator], Iterator] = iter,
    **train: Any,
) -> pd.DataFrame:
    """Fit the model without each laboratory in turn, and predict the pseudobulks it measured.

    Parameters
    ----------
    model
        A model of a screen with at least three laboratories, trained or not; it is left as it is.
    n_samples, credible_level
        Posterior draws, and mass of the intervals.
    min_cells
        Cells that a condition needs in a batch of the laboratory left out.
    progress
        Wrapper of the iteration over laboratories.
    **train
        Arguments of `PyroCell.train` for each refit.

    Returns
    -------
    DataFrame with a row per laboratory: laboratory; n_pseudobulks (condition by batch) and n_genes;
    coverage, the share of mean counts that are inside the intervals of a new laboratory;
    coverage_average, the same with η = 0 in place of a new laboratory's; rmse of log1p of the
    predicted mean counts; and rmse_average, the anchor without a model: the mean of that condition
    over the cells of the other laboratories. Genes of one laboratory share its offset, so the
    spread of coverage between laboratories, not its binomial error, tells how sure it is.

    Raises
    ------
    ScreenError
        If the screen has fewer than three laboratories, or nothing of one can be judged.
    """
    screen = model.screen
    if len(screen.laboratories) < 3:
        raise ScreenError(
            f"the screen has {len(screen.laboratories)} laboratories; with one left out at least "
            "two are needed to tell how laboratories differ: register a laboratory_key with three"
        )
    rows = []
    for i in progress(iter(range(len(screen.laboratories)))):
        inside = screen.batch_laboratory[screen.cell_batch] == i
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ScreenWarning)
            other = _again(model, model.adata[~inside].copy())
            other.train(**({"progress_bar": False} | train))
        frame, observed = _pseudobulks(model, other, inside, min_cells)
        if not len(frame):
            raise ScreenError(
                f'laboratory "{screen.laboratories[i]}" has no condition with {min_cells} cells in '
                "a batch that the others measured too; lower min_cells, or leave it out"
            )
        rows.append(
            {"laboratory": screen.laboratories[i]}
            | _judge(other, frame, observed, n_samples, credible_level)
        )
    return pd.DataFrame(rows)


def _again(model: PyroCell, adata: AnnData) -> PyroCell:
    """An untrained model of other cells, with the same options."""
    args = model.adata_manager.registry[SETUP_ARGS]
    type(model).setup_anndata(adata, **args)
    config = model.module.config
    known = inspect.signature(type(model)).parameters
    options = {k: getattr(config, k) for k in known if hasattr(config, k)}
    options |= {"assume": [Assume(**a) for a in config.assume], "priors": model.module.priors}
    return type(model)(adata, **options)


def _pseudobulks(
    model: PyroCell, other: PyroCell, inside: np.ndarray, min_cells: int
) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """Conditions by batch of a laboratory, those that others have too, and their mean counts.

    The second part holds (rows, G) mean counts per unit of depth, "here" and "elsewhere", and
    "depth", the (rows,) mean depth.
    """
    screen, cells = model.screen, model._cells
    size = np.exp(cells.log_size.astype(float))
    table = screen.treatments.assign(condition=np.arange(len(screen.conditions)))
    found, parts = [], {"here": [], "elsewhere": [], "depth": []}
    known = set(other.screen.perturbations)
    for (c, b), rows in (
        pd.DataFrame({"c": screen.cell_condition[inside], "b": screen.cell_batch[inside]})
        .groupby(["c", "b"])
        .indices.items()
    ):
        mine = np.flatnonzero(inside)[rows]
        rest = np.flatnonzero(~inside & (screen.cell_condition == c))
        genes = [screen.perturbations[k] for k in np.flatnonzero(screen.genotype[c])]
        if len(mine) < min_cells or not len(rest) or not known.issuperset(genes):
            continue
        row = table.iloc[c].drop("condition").to_dict()
        labels = {"laboratory": NEW, "batch": f"{NEW} {screen.batches[b]}", "n_cells": len(mine)}
        found.append(row | labels)
        for name, part in (("here", mine), ("elsewhere", rest)):
            total = np.asarray(cells.counts[part].sum(0), dtype=float).ravel()
            parts[name].append(total / size[part].sum())
        parts["depth"].append(size[mine].mean())
    return pd.DataFrame(found), {name: np.array(values) for name, values in parts.items()}


def _judge(
    model: PyroCell,
    frame: pd.DataFrame,
    observed: dict[str, np.ndarray],
    n_samples: int,
    credible_level: float,
) -> dict[str, float]:
    depth = float(np.median(observed["depth"]))
    here, elsewhere = (depth * observed[name] for name in ("here", "elsewhere"))

    def asked(table: pd.DataFrame) -> tuple[AnnData, float]:
        out = model.predict(
            table, n_samples=n_samples, size_factor=depth, credible_level=credible_level
        )
        return out, coverage(out.layers["lower"], out.layers["upper"], here).share

    predicted, share = asked(frame)
    _, average = asked(frame.drop(columns=["batch", "laboratory"]))
    rmse = lambda values: float(np.sqrt(np.mean((np.log1p(values) - np.log1p(here)) ** 2)))  # noqa: E731
    return {
        "n_pseudobulks": len(frame),
        "n_genes": here.shape[1],
        "coverage": share,
        "coverage_average": average,
        "rmse": rmse(predicted.X),
        "rmse_average": rmse(elsewhere),
    }
