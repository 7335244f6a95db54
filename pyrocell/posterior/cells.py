"""Resting states and expression of measured cells, some at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch import Tensor

from pyrocell._core.messages import did_you_mean
from pyrocell._core.random import stream
from pyrocell.data.loader import CellDataset
from pyrocell.errors import ScreenError, UnknownLabelError
from pyrocell.posterior.draws import check_draws
from pyrocell.posterior.fitted_screen import Blocks, FittedScreen
from pyrocell.posterior.output import OutputTarget
from pyrocell.posterior.streaming_quantiles import memory_bytes

__all__ = ["cells_by", "latent", "normalised", "normalised_draws", "positions_of", "state_draws"]


def latent(fit: FittedScreen, cells: CellDataset, batch_size: int) -> Blocks:
    """Posterior mean of the resting state z of each cell, (cells, d), some cells at a time."""
    for rows, loc, *_ in _encoded(fit, fit.posterior.mean(), cells, batch_size):
        yield rows, loc


def state_draws(
    fit: FittedScreen, cells: CellDataset, n_samples: int, batch_size: int = 2048
) -> np.ndarray:
    """Joint draws of the resting state z of each cell, (S, cells, d)."""
    check_draws(n_samples)
    out = np.empty((n_samples, len(cells), fit.model.config.n_latent), np.float32)
    for s, values in enumerate(fit.posterior.draws(n_samples)):
        rng = np.random.default_rng(stream("states", s))
        for rows, loc, scale, _ in _encoded(fit, values, cells, batch_size):
            out[s, rows] = loc + scale * rng.standard_normal(loc.shape, np.float32)
    return out


def normalised(
    fit: FittedScreen,
    cells: CellDataset,
    batch_size: int,
    library_size: float | None,
    batch_corrected: bool,
    genes: np.ndarray | None = None,
    draw: tuple[int, dict[str, Tensor]] | None = None,
) -> Blocks:
    """Expected expression, (cells, G), some cells at a time; at posterior means, or in one draw.

    η and covariates are removed if corrected.

    Parameters
    ----------
    library_size
        That of each cell; None: its own depth.
    genes
        Columns; default: all.
    draw
        Number of a joint draw, and its values; states are drawn, too. None: posterior means.
    """
    model = fit.model
    values = fit.posterior.mean() if draw is None else draw[1]
    table = model.conditions if cells.conditions is None else cells.conditions
    columns = slice(None) if genes is None else genes

    @torch.no_grad()
    def expect(loc: np.ndarray, args: dict[str, Tensor]) -> np.ndarray:
        z = torch.as_tensor(loc, device=model.loading.device)
        if batch_corrected:
            rows, own = torch.unique(args["condition"], return_inverse=True)
            shift = model.shift(values, table.select(rows))[own]
        else:
            shift = model.cell_shift(
                values,
                args["condition"],
                args["batch"],
                args.get("covariates"),
                cells.conditions,
            )
        logits = model.resting_logits(values, z) + shift
        level = model.measurement.relative(logits).exp()
        depth = model.measurement.depth_of(args["log_size"], library_size)
        return (level * depth)[:, columns].cpu().numpy()

    rng = np.random.default_rng(stream("normalised", 0 if draw is None else draw[0]))
    for rows, loc, scale, args in _encoded(fit, values, cells, batch_size):
        noise = 0 if draw is None else scale * rng.standard_normal(loc.shape, np.float32)
        yield rows, expect(loc + noise, args)


def normalised_draws(
    fit: FittedScreen,
    cells: CellDataset,
    batch_size: int,
    library_size: float | None,
    batch_corrected: bool,
    genes: np.ndarray | None,
    n_samples: int,
    mean: bool,
    memory_budget: int | float | str,
) -> np.ndarray:
    """Expected expression in joint draws of parameters and states, (S, cells, G), or their mean.

    Raises
    ------
    ScreenError
        If what is asked for does not fit.
    """
    check_draws(n_samples)
    _check_block(batch_size)
    n_genes = len(fit.screen.genes) if genes is None else len(genes)
    shape = (*(() if mean else (n_samples,)), len(cells), n_genes)
    size = (8 if mean else 4) * math.prod(shape)
    if not mean and size > memory_bytes(memory_budget):
        raise ScreenError(
            f"{n_samples} draws of {len(cells):,} cells and {n_genes:,} genes take "
            f"{size / 2**30:.1f} GiB, more than {memory_budget}; pass indices=, gene_list= or "
            "fewer n_samples, or ask for return_mean=True"
        )
    found = np.zeros(shape, float if mean else np.float32)
    for draw in enumerate(fit.posterior.draws(n_samples)):
        options = (batch_size, library_size, batch_corrected, genes, draw)
        for rows, block in normalised(fit, cells, *options):
            if mean:
                found[rows] += block / n_samples
            else:
                found[draw[0], rows] = block
    return found.astype(np.float32, copy=False)


def positions_of(genes: pd.Index, names: Sequence[str] | None) -> np.ndarray | None:
    """Positions of named genes, (n,); None for all.

    Raises
    ------
    UnknownLabelError
        If a name is none of the genes.
    """
    if names is None:
        return None
    names = [names] if isinstance(names, str) else list(names)
    found = genes.get_indexer(pd.Index(names))
    if (found < 0).any():
        unknown = names[int(np.flatnonzero(found < 0)[0])]
        raise UnknownLabelError(
            f'"{unknown}" is not a gene of the model{did_you_mean(unknown, genes)}'
        )
    return found


def _encoded(
    fit: FittedScreen, values: dict[str, Tensor], cells: CellDataset, batch_size: int
) -> Iterator[tuple[slice, np.ndarray, np.ndarray, dict[str, Tensor]]]:
    for start in range(0, len(cells), batch_size):
        rows = np.arange(start, min(start + batch_size, len(cells)))
        args = {k: v.to(fit.model.loading.device) for k, v in cells.rows(rows).items()}
        with torch.no_grad():
            loc, scale = fit.posterior.guide.encode(
                values,
                args["x"],
                args["condition"],
                args["batch"],
                args.get("covariates"),
                cells.conditions,
                args["log_size"],
            )
        yield slice(start, start + len(rows)), loc.cpu().numpy(), scale.cpu().numpy(), args


def cells_by(
    blocks: Blocks,
    name: str,
    obs: pd.DataFrame,
    columns: tuple[str, Sequence[str] | pd.Index],
    batch_size: int,
    progress: Callable[..., Iterable],
    keep: OutputTarget,
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
    _check_block(batch_size)
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


def _check_block(batch_size: int) -> None:
    if batch_size != int(batch_size) or batch_size < 1:
        raise ScreenError(f"batch_size={batch_size} must be a whole number of cells, at least 1")
