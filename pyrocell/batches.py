"""Minibatches of a registered screen: CSR rows, conditions, batches, size factors."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from pyrocell.structure import Conditions

__all__ = ["CellData", "batch_loader"]

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


class _ShuffledBatches(Sampler):
    """Whole minibatches of shuffled positions; sorted within a batch, so CSR slicing is local."""

    def __init__(self, positions: np.ndarray, size: int, seed: int | None, drop_last: bool):
        self.positions, self.size, self.drop_last = positions, min(size, len(positions)), drop_last
        self.generator = None if seed is None else np.random.default_rng(seed)

    def __len__(self) -> int:
        n = len(self.positions) / self.size
        return int(n) if self.drop_last else int(np.ceil(n))

    def __iter__(self) -> Iterator[np.ndarray]:
        order = self.positions
        if self.generator is not None:
            order = self.generator.permutation(order)
        for i in range(len(self)):
            yield np.sort(order[i * self.size : (i + 1) * self.size])


def batch_loader(
    data: CellData, positions: np.ndarray, size: int, seed: int | None = None
) -> DataLoader:
    """Loader of minibatches; shuffled (and short last batch dropped) when a seed is given."""
    sampler = _ShuffledBatches(np.asarray(positions), size, seed, drop_last=seed is not None)
    return DataLoader(data, batch_sampler=sampler, collate_fn=lambda batch: batch)
