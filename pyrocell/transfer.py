"""What carries over: to a laboratory that was never seen, and of effects to another medium.

A cell line that is perturbed in a screen of several is registered as a medium here (`media_key`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.stats import norm

from pyrocell._core.messages import join_names
from pyrocell.errors import ScreenError, ScreenWarning
from pyrocell.evaluation.refit import again
from pyrocell.metrics import coverage
from pyrocell.posterior.levels import levels
from pyrocell.screen.requests import NEW

if TYPE_CHECKING:
    from pyrocell.model import PyroCell
    from pyrocell.screen.screen import Screen

__all__ = ["leave_one_laboratory_out", "transfer_effects"]


def leave_one_laboratory_out(
    model: PyroCell,
    n_samples: int = 200,
    credible_level: float = 0.9,
    min_cells: int = 20,
    progress: Callable[[Iterable], Iterable] = iter,
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
            other = again(model, model.adata[~inside].copy())
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


def _pseudobulks(
    model: PyroCell, other: PyroCell, inside: np.ndarray, min_cells: int
) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """Conditions by batch of a laboratory, those that others have too, and their mean counts.

    The second part holds (rows, G) mean counts per unit of depth, "here" and "elsewhere", and
    "depth", the (rows,) mean depth.
    """
    screen, cells = model.screen, model._cells
    size = cells.size
    table = screen.treatments.assign(condition=np.arange(len(screen.conditions)))
    found, parts = [], {"here": [], "elsewhere": [], "depth": []}
    known = set(other.screen.perturbations)
    pairs = pd.DataFrame({"c": screen.cell_condition[inside], "b": screen.cell_batch[inside]})
    groups = cast("dict[tuple[int, int], np.ndarray]", pairs.groupby(["c", "b"]).indices)
    for (c, b), rows in groups.items():
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


def transfer_effects(
    model: PyroCell,
    media: str,
    source: str | None = None,
    perturbations: Sequence[str] | None = None,
    time: float | None = None,
    credible_level: float = 0.9,
    min_count: float = 5.0,
    n_samples: int = 2,
) -> pd.DataFrame:
    """Effects of perturbations in a medium, or a cell line, from those measured in another.

    `predict` adds what a perturbation does without the medium to what the medium does: right where
    effects carry over. Here the perturbations measured in both tell how far they do.

    Parameters
    ----------
    model
        A trained model.
    media, source
        Where effects are wanted, and where they were measured; source defaults to the baseline.
    perturbations
        Single perturbations measured in `source`; default: those not measured in `media`.
    time
        Default: the last.
    credible_level
        Mass of the intervals.
    min_count
        Counts that a gene needs, at the pooled rate, in the conditions compared.
    n_samples
        Draws of the width of batch noise.

    Returns
    -------
    DataFrame with perturbation, media, time, gene, mean, sd, lower, upper (log-fold change against
    controls of that medium; NaN for genes with too few counts), and shared, the correlation of
    effects between the two media.

    Raises
    ------
    ScreenError
        If fewer than three perturbations were measured in both, or one asked for not in `source`.

    Notes
    -----
    Effects (a, b) of a perturbation on a gene in the two media are taken to have mean zero and the
    covariance T; counts tell both with errors of known variance (`pyrocell.contrasts.levels`). T is
    found by moments from perturbations measured in both; its off-diagonal is shrunk by the positive
    part of 1 - (se / T_ab)², se its standard error over perturbations. Then the best linear
    predictor is E[b] = T_ab / (T_aa + v_a) â, with variance T_bb - T_ab² / (T_aa + v_a).
    """
    screen = model.screen
    source = screen.baseline_media if source is None else source
    time = screen.times[-1] if time is None and screen.times else time
    draws = levels(model.fitted, n_samples)
    there = _measured(screen, source, time)
    here = _measured(screen, media, time)
    both = [k for k in there if k in here and k != screen.control]
    asked = list(perturbations or [k for k in there if k not in here])
    if len(both) < 3 or not asked or not set(asked) <= set(there):
        lacking = [k for k in asked if k not in there]
        raise ScreenError(
            f'"{source}" and "{media}" share {len(both)} perturbations, three tell how far effects '
            f"carry over; of those asked for {len(lacking)} were not measured in "
            f'"{source}" ({join_names(lacking)}): leave them out'
        )

    def effect(rows: dict[str, int], name: str) -> tuple[np.ndarray, np.ndarray]:
        used = {rows[name]: 1.0, rows[screen.control]: -1.0}
        value = np.mean([level.contrast(used).value for level in draws], 0)
        error = [level.contrast(used).variance + level.batch_variance(used) for level in draws]
        enough = draws[0].expected[list(used)].min(0) >= min_count
        return np.where(enough, value, np.nan), np.mean(error, 0)

    a, v_a = (np.array(x) for x in zip(*(effect(there, k) for k in both), strict=True))
    b, v_b = (np.array(x) for x in zip(*(effect(here, k) for k in both), strict=True))
    t_aa, t_bb = (max(float(np.nanmean(x**2 - v)), 1e-8) for x, v in ((a, v_a), (b, v_b)))
    products = np.nanmean(a * b, 1)
    error = products.std(ddof=1) / np.sqrt(len(both))
    t_ab = float(products.mean())
    t_ab *= max(0.0, 1 - (error / t_ab) ** 2) if t_ab else 0.0
    t_ab = float(np.clip(t_ab, -np.sqrt(t_aa * t_bb), np.sqrt(t_aa * t_bb)))
    tables, width = [], norm.ppf((1 + credible_level) / 2)
    for name in asked:
        value, variance = effect(there, name)
        mean = t_ab / (t_aa + variance) * value
        sd = np.sqrt(np.maximum(t_bb - t_ab**2 / (t_aa + variance), 0.0))
        sd = np.where(np.isfinite(mean), sd, np.nan)
        columns = {"perturbation": name, "media": media, "time": np.nan if time is None else time}
        columns |= {"gene": screen.genes, "mean": mean, "sd": sd}
        columns |= {"lower": mean - width * sd, "upper": mean + width * sd}
        tables.append(pd.DataFrame(columns | {"shared": t_ab / np.sqrt(t_aa * t_bb) + 0.0}))
    return pd.concat(tables, ignore_index=True)


def _measured(screen: Screen, media: str, time: float | None) -> dict[str, int]:
    """Rows of `Screen.conditions` of controls and single perturbations in a medium at a time."""
    screen.media_index(media)
    table = screen.conditions
    rows = table.index[(table["media"] == media) & (screen.genotype.sum(1) <= 1)]
    if time is not None:
        rows = [c for c in rows if np.isclose(table["time"][c], time)]
    found: dict[str, int] = {}
    for c in rows:
        found.setdefault(table["perturbation"][c], int(c))
    if screen.control not in found:
        raise ScreenError(f'medium "{media}" has no control cells to compare with')
    return found
