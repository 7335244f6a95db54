"""The same predictions, scored by tools of others that may be installed: cell-eval, scPertEval."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from pyrocell._compat import obs_table
from pyrocell._core.messages import did_you_mean
from pyrocell._core.random import stream
from pyrocell.errors import ScreenError
from pyrocell.evaluation.anchors import REPLICATE

if TYPE_CHECKING:
    from pyrocell.evaluation.held_out import Evaluation
    from pyrocell.model import PyroCell

__all__ = ["TOOLS", "external_scores"]

TOOLS = ("cell_eval", "scperteval")
_KEY, _CONTROL = "perturbation", "control"
# Protocols of scPertEval that need neither its extras nor more than two perturbations.
_PROTOCOLS = ("mse", "pearson_ctrl", "pearson_pert", "wmse_exp2")
_COLUMNS = ["tool", "method", "perturbation", "media", "time", "metric", "value"]


def external_scores(
    evaluation: Evaluation,
    model: PyroCell,
    tools: Sequence[str] = TOOLS,
    *,
    seed: int = 0,
) -> pd.DataFrame:
    """Scores of the predictions of an evaluation by cell-eval or scPertEval, if installed.

    Both tools compare predicted with observed cells. Cells of a predicted condition are control
    cells, log1p of counts at one depth, as many as were held out, moved by the predicted change
    and not below zero: every method, the model or an anchor, gets the same spread of cells.

    Parameters
    ----------
    evaluation
        From :func:`pyrocell.metrics.evaluate`.
    model
        The model, or one of the same cells, that was evaluated.
    tools
        Which to run; those that are not installed are left out.
    seed
        Of the control cells.

    Returns
    -------
    DataFrame with tool, method, perturbation, media, time, metric, value; empty where no tool is
    installed. `metric` is the tool's own name, `cell_eval.discrimination_score_l1` for one.

    Raises
    ------
    ScreenError
        If a tool is not one of those known.
    """
    for tool in tools:
        if tool not in TOOLS:
            raise ScreenError(f'tool "{tool}" is not known{did_you_mean(tool, TOOLS)}')
    there = [tool for tool in tools if find_spec(tool) is not None]
    found: list[pd.DataFrame] = []
    for place, method, real, predicted in _cells(evaluation, model, seed) if there else ():
        for tool in there:
            table = _RUN[tool](real, predicted)
            found.append(table.assign(tool=tool, method=method, **place))
    if not found:
        return pd.DataFrame(columns=_COLUMNS)
    return pd.concat(found, ignore_index=True)[_COLUMNS]


def _cells(
    evaluation: Evaluation, model: PyroCell, seed: int
) -> Iterator[tuple[dict[str, Any], str, AnnData, AnnData]]:
    """Observed and predicted cells of each medium and time, with controls, for each method."""
    screen, counts = model.screen, cast("Any", model._cells.counts)
    depth = evaluation.predicted.uns["depth"]
    size = model._cells.size
    logged = sp.csr_matrix(counts, dtype=np.float32, copy=True)
    logged.data *= np.repeat((depth / size).astype(np.float32), np.diff(logged.indptr))
    np.log1p(logged.data, out=logged.data)
    delta = evaluation.predicted.layers["delta"]
    obs = obs_table(evaluation.predicted)
    places = obs.groupby(["media", "time"], dropna=False).indices
    for (media, time), rows in cast("dict[tuple[str, float], np.ndarray]", places).items():
        here = screen.at(media, time)
        controls = np.flatnonzero((here & screen.is_control)[screen.cell_condition])
        if len(controls) < 2:
            continue
        place, mine = {"media": media, "time": time}, obs.iloc[rows]
        labels = mine["perturbation"].unique()
        index = {name: screen.condition_of(name, media, time) for name in labels}
        cells = {k: np.flatnonzero(screen.cell_condition == c) for k, c in index.items()}
        real = _stacked(screen.genes, logged[controls], {k: logged[v] for k, v in cells.items()})
        for method in mine["method"].unique():
            if method in ("observed", REPLICATE):
                continue
            rng = np.random.default_rng(stream("cells", seed))
            moved = {}
            for row in rows[(mine["method"] == method).to_numpy()]:
                name = obs["perturbation"].iloc[row]
                if np.isfinite(delta[row]).all():
                    some = rng.choice(controls, len(cells[name]))
                    moved[name] = sp.csr_matrix(np.maximum(logged[some] + delta[row], 0))
            if set(moved) == set(labels):
                yield place, method, real, _stacked(screen.genes, logged[controls], moved)


def _stacked(genes: pd.Index, controls: Any, groups: dict[str, Any]) -> AnnData:
    names = [_CONTROL] * controls.shape[0]
    names += [name for name, cells in groups.items() for _ in range(cells.shape[0])]
    index = pd.Index([f"cell{i}" for i in range(len(names))])
    obs = pd.DataFrame({_KEY: pd.Categorical(names)}, index=index)
    values = sp.vstack([controls, *groups.values()], format="csr")
    return AnnData(values, obs=obs, var=pd.DataFrame(index=genes.astype(str)))


def _cell_eval(real: AnnData, predicted: AnnData) -> pd.DataFrame:
    """cell-eval's table of a condition per row, in rows of metric and value."""
    with tempfile.TemporaryDirectory() as folder:
        evaluator = import_module("cell_eval").MetricsEvaluator(
            adata_pred=predicted.copy(),
            adata_real=real.copy(),
            control_pert=_CONTROL,
            pert_col=_KEY,
            num_threads=1,
            outdir=f"{folder}/out",
        )
        table, _ = evaluator.compute(write_csv=False)
    wide = table if isinstance(table, pd.DataFrame) else pd.DataFrame(table.to_dicts())
    return wide.melt(_KEY, var_name="metric", value_name="value")


def _scperteval(real: AnnData, predicted: AnnData) -> pd.DataFrame:
    """scPertEval's scores of a condition, protocol by protocol."""
    tool = import_module("scperteval")
    prepared = tool.prepare(real, list(_PROTOCOLS), min_cells=1, workers=1)
    found = []
    for protocol in _PROTOCOLS:
        table = tool.score(prepared, protocol, predicted).per_perturbation
        found.append(table[[_KEY]].assign(metric=protocol, value=table["score"]))
    return pd.concat(found, ignore_index=True)


_RUN: dict[str, Callable[[AnnData, AnnData], pd.DataFrame]] = {
    "cell_eval": _cell_eval,
    "scperteval": _scperteval,
}
