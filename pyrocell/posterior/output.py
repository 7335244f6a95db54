"""Effects, predictions and cells in the form users keep: in memory, or on disk as they come."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr
from anndata import AnnData

from pyrocell.data.loader import CellData
from pyrocell.operators import Protocol
from pyrocell.posterior.arviz import requested
from pyrocell.posterior.queries import Blocks, Draws, Queries
from pyrocell.posterior.summaries import Summaries, summaries
from pyrocell.posterior.zarr_store import new_store, open_store
from pyrocell.screen.events import EVENTS

__all__ = ["Keep", "cells_by", "counterfactual", "predict"]

_INTERVAL = ("mean", "sd", "lower", "upper")


class Keep(NamedTuple):
    """How much of an answer to hold, and where to write it.

    Attributes
    ----------
    memory_budget
        Of the running summaries and the rows worked on.
    path
        Of a zarr store; None to return the answer in memory.
    overwrite
        Replace a store that is there.
    """

    memory_budget: int | float | str
    path: str | Path | None = None
    overwrite: bool = False

    def store(
        self,
        blocks: Iterator[tuple[Any, Mapping[str, np.ndarray]]],
        coords: Mapping[str, Any],
        variables: Mapping[str, Sequence[str]],
        chunk: Mapping[str, int],
        **attrs: Any,
    ) -> xr.Dataset:
        """Write blocks (region, values by variable) as they come, and open what was written."""
        with new_store(self.path, coords, variables, chunk, attrs, self.overwrite) as write:
            for region, values in blocks:
                write({k: v for k, v in values.items() if k in variables}, region)
        return open_store(self.path)


def predict(
    queries: Queries,
    conditions: Protocol | pd.DataFrame,
    n_samples: int,
    size_factor: float,
    credible_level: float,
    return_draws: bool,
    progress: Callable[..., Iterator],
    batch_content: Mapping[str, float] | None,
    keep: Keep,
) -> AnnData | xr.DataArray | xr.Dataset:
    """Predicted counts of conditions as AnnData or dataset, or their joint draws."""
    screen = queries.screen
    frame, order = requested(conditions, screen)
    # a protocol's one row is named by where it ends, so that orders can be compared
    named = frame if order is None else frame.drop(columns=list(EVENTS), errors="ignore")
    names = [" | ".join(map(str, row)) for row in named.itertuples(index=False)]
    parts, genes = queries.parts(len(frame)), list(screen.genes)

    def draws(some: Sequence[slice]) -> Draws:
        return queries.expected(frame, n_samples, size_factor, some, order, batch_content)

    coords = {"condition": (("condition",), names), "gene": (("gene",), genes)}
    coords |= {c: (("condition",), frame[c].to_numpy()) for c in frame}
    chunk = {"condition": parts[0].stop, "draw": 1}
    if return_draws and keep.path is None:
        return _draws_in_memory(draws(parts), n_samples, names, genes, progress)
    if return_draws:
        coords["draw"] = (("draw",), np.arange(n_samples))
        blocks = (
            ((slice(s, s + 1), part), {"counts": values[None]})
            for s, draw in zip(progress(range(n_samples)), draws(parts), strict=False)
            for part, values in zip(parts, draw, strict=True)
        )
        dims = {"counts": ("draw", "condition", "gene")}
        return keep.store(blocks, coords, dims, chunk, size_factor=size_factor)["counts"]
    width = len(genes), n_samples, credible_level, keep.memory_budget
    found = summaries(draws, parts, *width, progress)
    if keep.path is not None:
        attrs = {"size_factor": size_factor, "credible_level": credible_level}
        dims = dict.fromkeys(_INTERVAL, ("condition", "gene"))
        return keep.store(found, coords, dims, chunk, n_samples=n_samples, **attrs)
    obs = frame.set_axis(pd.Index([str(i) for i in range(len(frame))]))
    out = _annotated(found, obs, genes, credible_level)
    out.uns["size_factor"] = size_factor
    return out


def _draws_in_memory(
    draws: Draws,
    n_samples: int,
    names: Sequence[str],
    genes: Sequence[str],
    progress: Callable[..., Iterator],
) -> xr.DataArray:
    out = np.empty((n_samples, len(names), len(genes)), np.float32)
    for s, draw in zip(progress(range(n_samples)), draws, strict=False):
        np.concatenate(list(draw), out=out[s])
    coords = {"condition": list(names), "gene": list(genes)}
    return xr.DataArray(out, dims=("draw", "condition", "gene"), coords=coords)


def counterfactual(
    queries: Queries,
    cells: CellData,
    obs: pd.DataFrame,
    target: pd.DataFrame,
    n_samples: int,
    credible_level: float,
    progress: Callable[..., Iterator],
    keep: Keep,
) -> AnnData | xr.Dataset:
    """Expected counts of cells under another treatment, cells × genes."""
    genes, parts = queries.screen.genes, queries.parts(len(cells))
    found = summaries(
        lambda some: queries.counterfactual(cells, target, n_samples, some),
        parts,
        len(genes),
        n_samples,
        credible_level,
        keep.memory_budget,
        progress,
    )
    treatment = {k: v for k, v in target.iloc[0].items()}
    if keep.path is not None:
        coords = {"cell": (("cell",), obs.index), "gene": (("gene",), genes)}
        dims, chunk = dict.fromkeys(_INTERVAL, ("cell", "gene")), {"cell": parts[0].stop}
        attrs = {f"counterfactual_{k}": v for k, v in treatment.items()}
        return keep.store(found, coords, dims, chunk, credible_level=credible_level, **attrs)
    own = [column for column in obs if not str(column).startswith("_scvi")]
    out = _annotated(found, obs[own].copy(), genes, credible_level)
    out.uns["counterfactual"] = treatment
    return out


def _annotated(
    found: Summaries, obs: pd.DataFrame, genes: Sequence[str], credible_level: float
) -> AnnData:
    parts = {name: np.empty((len(obs), len(genes)), np.float32) for name in _INTERVAL}
    for rows, summary in found:
        for name, values in parts.items():
            values[rows] = summary[name]
    var = pd.DataFrame(index=pd.Index(genes).astype(str))
    out = AnnData(parts["mean"], obs=obs, var=var)
    out.layers.update({name: parts[name] for name in ("lower", "upper", "sd")})
    out.uns["credible_level"] = credible_level
    return out


def cells_by(
    blocks: Blocks,
    name: str,
    obs: pd.DataFrame,
    columns: tuple[str, Sequence[str]],
    batch_size: int,
    progress: Callable[..., Iterator],
    keep: Keep,
) -> np.ndarray | xr.Dataset:
    """Values of cells that come some at a time, (cells, columns).

    Parameters
    ----------
    name
        Of the variable on disk.
    columns
        Name of the second dimension, and its labels.
    batch_size
        Cells of a block.
    """
    dim, labels = columns
    n_blocks = -(-len(obs) // batch_size)
    counted = (block for _, block in zip(progress(range(n_blocks)), blocks, strict=False))
    if keep.path is not None:
        coords = {"cell": (("cell",), obs.index), dim: ((dim,), labels)}
        written = ((rows, {name: values}) for rows, values in counted)
        return keep.store(written, coords, {name: ("cell", dim)}, {"cell": batch_size})
    out = np.empty((len(obs), len(labels)), np.float32)
    for rows, values in counted:
        out[rows] = values
    return out
