"""Cells that the model expects to find in conditions, and which fates they have (App. C.1)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import torch
from anndata import AnnData, read_h5ad
from anndata.io import sparse_dataset, write_elem
from scipy import sparse
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from pyrocell._core.random import generator, seeded, stream
from pyrocell.errors import ScreenError
from pyrocell.operators import Protocol
from pyrocell.posterior.draws import check_draws, summarise
from pyrocell.posterior.fitted_screen import Blocks, FittedScreen
from pyrocell.posterior.populations import resting_cells, starting_states
from pyrocell.posterior.zarr_store import replaced

__all__ = ["fate_proportions", "simulate_cells"]

_AT_ONCE = 2**21  # counts drawn at once
_LEAST = 10  # labelled cells of a fate, to learn what it looks like
_EXAMPLES = 20_000  # labelled cells to learn fates from at most
_STARTING = 2000  # cells of a population whose states move
_PENALTY = 0.1  # inverse strength of the classifier's ridge, on standardised log expression


def simulate_cells(
    fit: FittedScreen,
    frame: pd.DataFrame,
    protocol: Protocol | None,
    n_samples: int,
    n_cells: int,
    size_factor: float,
    path: str | Path | None = None,
    overwrite: bool = False,
) -> AnnData:
    """Simulated cells as AnnData; see `PyroCell.simulate_cells`."""
    found = _cells(fit, frame, protocol, n_samples, n_cells, size_factor)
    if path is None:
        parts = list(found)
        counts = sparse.vstack([part for part, _ in parts]).tocsr()
        return _annotated(fit, frame, counts, [z for _, z in parts], n_cells, size_factor)
    with replaced(path, overwrite, 0) as new:
        states = []
        with h5py.File(new, "w") as file:
            for part, z in found:
                states.append(z)
                if "X" in file:
                    sparse_dataset(file["X"]).append(part)  # pyright: ignore[reportArgumentType, reportAttributeAccessIssue]
                else:
                    write_elem(file, "X", part)
            rest = _annotated(fit, frame, None, states, n_cells, size_factor)
            for key in ("obs", "var"):
                write_elem(file, key, getattr(rest, key))
            for key in ("obsm", "uns"):
                write_elem(file, key, dict(getattr(rest, key)))
            file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
    return read_h5ad(path, backed="r")


def _cells(
    fit: FittedScreen,
    frame: pd.DataFrame,
    protocol: Protocol | None,
    n_samples: int,
    n_cells: int,
    size_factor: float,
) -> Iterator[tuple[sparse.csr_matrix, np.ndarray]]:
    """Counts and states of the cells of each draw and condition, some cells at a time."""
    size = max(1, _AT_ONCE // len(fit.screen.genes))
    for draw, (values, z, shift) in enumerate(_populations(fit, frame, protocol, n_samples)):
        stream = generator(z.device, "cells", draw)
        for row in range(len(frame)):
            pick = torch.randint(z.shape[1], (n_cells,), generator=stream, device=z.device)
            for part, rows in enumerate(pick.split(size)):
                state = z[row, rows]
                with seeded(z.device, "counts", draw, row, part):
                    counts = _counts(fit, values, state, shift[row], size_factor)
                yield counts, state.cpu().numpy()


def _annotated(
    fit: FittedScreen,
    frame: pd.DataFrame,
    counts: sparse.csr_matrix | sparse.csr_array | None,
    states: list[np.ndarray],
    n_cells: int,
    size_factor: float,
) -> AnnData:
    """Cells of every draw and condition, in this order, with their names."""
    z = np.concatenate(states)
    n_samples = len(z) // (len(frame) * n_cells)
    table = frame.iloc[np.tile(np.arange(len(frame)).repeat(n_cells), n_samples)]
    table = table.assign(draw=np.arange(n_samples).repeat(len(frame) * n_cells))
    table.index = [f"simulated_{i}" for i in range(len(table))]
    genes = pd.DataFrame(index=fit.screen.genes.astype(str))
    out = AnnData(counts, obs=table, var=genes, obsm={"X_pyrocell": z})  # pyright: ignore[reportArgumentType]
    out.uns["size_factor"] = size_factor
    return out


def fate_proportions(
    fit: FittedScreen,
    frame: pd.DataFrame,
    protocol: Protocol | None,
    expression: Blocks,
    fates: pd.Series,
    n_samples: int,
    credible_level: float,
    progress: Callable[[Iterable], Iterable] = iter,
) -> pd.DataFrame:
    """Shares of fates in conditions; see `PyroCell.fate_proportions`.

    Parameters
    ----------
    fit, frame, protocol
        The fitted model and what is asked for.
    expression
        (N, G) expected expression of the cells measured, some cells at a time.
    fates
        (N,) their fates; missing where unknown.
    n_samples, credible_level, progress
        As there.

    Raises
    ------
    ScreenError
        If fewer than two fates have ten labelled cells.
    """
    numbers = fates.dropna().astype(str).value_counts()
    if len(numbers) < 2 or numbers.min() < _LEAST:
        raise ScreenError(
            f'column "{fates.name}" has {", ".join(f"{n} cells {k}" for k, n in numbers.items())}; '
            f"at least two fates of {_LEAST} cells each are needed to tell fates from expression"
        )
    chosen = _examples(fates)
    names = fates[chosen].astype(str)
    level = np.log(np.concatenate([values[chosen[rows]] for rows, values in expression]))
    centre, width = level.mean(0), level.std(0) + 1e-6
    classifier = LogisticRegression(C=_PENALTY, max_iter=500)
    classifier.fit((level - centre) / width, names)
    draws = np.empty((n_samples, len(frame), len(classifier.classes_)))
    populations = _populations(fit, frame, protocol, n_samples)
    for s, (values, z, shift) in enumerate(progress(populations)):
        for row in range(len(frame)):
            seen = _log_share(fit, values, z[row], shift[row]).cpu().numpy()
            found = classifier.predict((seen - centre) / width)
            draws[s, row] = [(found == fate).mean() for fate in classifier.classes_]
    summary = summarise(draws, credible_level)
    table = frame.loc[frame.index.repeat(draws.shape[2])].reset_index(drop=True)
    table["fate"] = np.tile(classifier.classes_, len(frame))
    for name in ("mean", "sd", "lower", "upper"):
        table[name] = summary[name].ravel()
    return table


def _examples(fates: pd.Series) -> np.ndarray:
    """Which labelled cells to learn fates from, (N,) bool: all, or as many as suffice, at random.

    Some of every fate, however rare.
    """
    label, _ = pd.factorize(fates)  # -1: unknown
    order = np.random.default_rng(stream("fates")).permutation(len(label))
    order = order[label[order] >= 0]
    rank = pd.Series(label[order]).groupby(label[order]).cumcount().to_numpy()
    out = np.zeros(len(label), bool)
    out[order[:_EXAMPLES]] = out[order[rank < _LEAST]] = True
    return out


def _populations(
    fit: FittedScreen, frame: pd.DataFrame, protocol: Protocol | None, n_samples: int
) -> Iterator[tuple[dict[str, Tensor], Tensor, Tensor]]:
    """Of each draw: the globals, states (C, n, d) and log-mean shift (C, G) of the conditions."""
    check_draws(n_samples)
    conditions, unseen = fit.conditions(frame)
    model = fit.model
    cells = None if model.moves_states else resting_cells(fit.data, model, fit.posterior.seed)
    for s, values in enumerate(fit.posterior.draws(n_samples)):
        with torch.no_grad():
            if cells is None:  # a share of few cells would carry their sampling error
                z = starting_states(model, _STARTING, s)
                z = fit.carried(values, z, conditions, s, protocol)
            else:
                z = fit.states(values, cells, conditions, s, protocol)
            shift = fit.shift(values, conditions, unseen, s, protocol)
            yield values, z.expand(len(frame), *z.shape[-2:]), shift


def _log_share(fit: FittedScreen, values: dict[str, Tensor], z: Tensor, shift: Tensor) -> Tensor:
    """Log expected expression of cells at states z (n, d) of one condition, (n, G)."""
    with torch.no_grad():
        logits = fit.model.resting_logits(values, z) + shift
        return fit.model.measurement.relative(logits)


def _counts(
    fit: FittedScreen,
    values: dict[str, Tensor],
    z: Tensor,
    shift: Tensor,
    size_factor: float,
) -> sparse.csr_matrix:
    """Counts of cells at states z of one condition, drawn from the view V, (n, G)."""
    model = fit.model
    with torch.no_grad():
        logits = model.resting_logits(values, z) + shift
        log_size = model.measurement.cell_depth(z, size_factor)
        return sparse.csr_matrix(model.view(values, logits, log_size, z).sample().cpu().numpy())
