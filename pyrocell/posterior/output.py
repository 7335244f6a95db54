"""The form in which users keep answers: in memory, or on disk as they come."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr
from anndata import AnnData

from pyrocell.posterior.summaries import Summaries
from pyrocell.posterior.zarr_store import new_store, open_store

__all__ = ["INTERVAL", "OutputTarget", "annotated"]

INTERVAL: tuple[str, ...] = ("mean", "sd", "lower", "upper")


class OutputTarget(NamedTuple):
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
        assert self.path is not None
        with new_store(self.path, coords, variables, chunk, attrs, self.overwrite) as write:
            for region, values in blocks:
                write({k: v for k, v in values.items() if k in variables}, region)
        return open_store(self.path)


def annotated(
    found: Summaries, obs: pd.DataFrame, genes: Sequence[str] | pd.Index, credible_level: float
) -> AnnData:
    """Summaries of rows as AnnData: `.X` the means, layers "lower", "upper" and "sd"."""
    parts = {name: np.empty((len(obs), len(genes)), np.float32) for name in INTERVAL}
    for rows, summary in found:
        for name, values in parts.items():
            values[rows] = summary[name]
    var = pd.DataFrame(index=pd.Index(genes).astype(str))
    out = AnnData(parts["mean"], obs=obs, var=var)
    out.layers.update({name: parts[name] for name in ("lower", "upper", "sd")})
    out.uns["credible_level"] = credible_level
    return out
