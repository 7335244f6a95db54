"""Minibatches of a registered screen: CSR rows, conditions, batches, size factors."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from pyrocell.errors import ScreenError
from pyrocell.structure import Conditions

__all__ = ["CellData", "ShuffledBatches", "batch_loader", "split_cells"]

_SAMPLED_ROWS = 1000

with warnings.catch_warnings():  # torch says once per process that CSR is in beta; say it here
    warnings.simplefilter("ignore")
    torch.zeros(1, 1).to_sparse_csr()


@dataclass(frozen=True)
class CellData(Dataset):
    """Cells of a screen; indexing with a list of positions yields the model's arguments.

    Attributes
    ----------
    counts
        (N, G) CSR float32.
    condition, batch
        (N,) rows of the screen's conditions and batches.
    log_size
        (N,) log size factors.
    covariates
        (N, n_covariates) standardised, or None.
    conditions
        The table that `condition` refers to, where it is not the fitted screen's own.
    """

    counts: sp.csr_matrix
    condition: np.ndarray
    batch: np.ndarray
    log_size: np.ndarray
    covariates: np.ndarray | None = None
    conditions: Conditions | None = None

    def __len__(self) -> int:
        return self.counts.shape[0]

    def __getitems__(self, positions: list[int]) -> dict[str, Tensor]:
        return self.rows(np.asarray(positions), index=np.arange(len(positions)))

    def rows(self, rows: np.ndarray, index: np.ndarray | None = None) -> dict[str, Tensor]:
        """Arguments of `GenerativeModel.forward` for the given cells.

        `index` are the cells' positions in the plate; by default the rows themselves.
        """
        block = self.counts[rows]
        out = {
            "x": torch.sparse_csr_tensor(
                torch.from_numpy(block.indptr.astype(np.int64)),
                torch.from_numpy(block.indices.astype(np.int64)),
                torch.from_numpy(block.data),
                block.shape,
                check_invariants=False,
            ),
            "index": torch.from_numpy(rows if index is None else index),
            "condition": torch.from_numpy(self.condition[rows]),
            "batch": torch.from_numpy(self.batch[rows]),
            "log_size": torch.from_numpy(self.log_size[rows]),
        }
        if self.covariates is not None:
            out["covariates"] = torch.from_numpy(self.covariates[rows])
        return out

    def fingerprint(self) -> str:
        """Hash that tells these cells from others: all labels and depths, counts of 1,000 cells."""
        digest = hashlib.sha256(repr(self.counts.shape).encode())
        for labels in (self.condition, self.batch):
            digest.update(np.asarray(labels, dtype=np.int64).tobytes())
        for values in (self.log_size, self.covariates):
            if values is not None:  # to six digits: another processor may round another way
                flat = np.asarray(values, dtype=np.float64).ravel()
                digest.update(f"{flat @ np.linspace(1.0, 2.0, flat.size):.6g}".encode())
        rows = np.unique(np.linspace(0, len(self) - 1, _SAMPLED_ROWS).astype(np.int64))
        block = self.counts[rows]
        for part in (block.indptr, block.indices):
            digest.update(part.astype(np.int64).tobytes())
        digest.update(block.data.astype(np.float32).tobytes())
        return digest.hexdigest()[:16]


def split_cells(n_cells: int, train_size: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the cells to train on, and of the others, each in order."""
    if not 0 < train_size <= 1:
        raise ScreenError(f"train_size={train_size} must be above 0 and at most 1")
    order = np.random.default_rng(seed).permutation(n_cells)
    n_train = max(1, round(train_size * n_cells))
    return np.sort(order[:n_train]), np.sort(order[n_train:])


class ShuffledBatches(Sampler):
    """Whole minibatches of shuffled positions; sorted within a batch, so CSR slicing is local.

    The order is a function of the seed and of how often it was iterated over. Of several processes
    each takes its `size` of every minibatch that all take together.
    """

    def __init__(
        self,
        positions: np.ndarray,
        size: int,
        seed: int | None,
        drop_last: bool,
        rank: int = 0,
        processes: int = 1,
    ):
        self.positions, self.size = positions, min(size, len(positions) // processes)
        self.drop_last, self.rank, self.processes = drop_last, rank, processes
        self.generator = None if seed is None else np.random.default_rng(seed)
        self._first = 0

    def skip(self, epochs: int, batches: int) -> None:
        """Go on as if whole epochs, and then some minibatches, had been seen."""
        for _ in range(epochs if self.generator is not None else 0):
            self.generator.permutation(self.positions)
        self._first = batches

    def __len__(self) -> int:
        n = len(self.positions) / (self.size * self.processes)
        return int(n) if self.drop_last else int(np.ceil(n))

    def __iter__(self) -> Iterator[np.ndarray]:
        order = self.positions
        if self.generator is not None:
            order = self.generator.permutation(order)
        first, self._first = self._first, 0
        for i in range(first, len(self)):
            start = (i * self.processes + self.rank) * self.size
            yield np.sort(order[start : start + self.size])


def batch_loader(
    data: CellData,
    positions: np.ndarray,
    size: int,
    seed: int | None = None,
    rank: int = 0,
    processes: int = 1,
) -> DataLoader:
    """Loader of minibatches; shuffled (and short last batch dropped) when a seed is given.

    Of several processes each loads its part of every minibatch, or of the positions without a seed
    (all of them where there are fewer than processes).
    """
    positions = np.asarray(positions)
    if seed is not None:
        sampler = ShuffledBatches(positions, size, seed, True, rank, processes)
    else:
        part = positions[rank::processes] if len(positions) >= processes else positions
        sampler = ShuffledBatches(part, size, None, drop_last=False)
    return DataLoader(data, batch_sampler=sampler, collate_fn=lambda batch: batch)
