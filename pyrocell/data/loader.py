"""Minibatches of a registered screen: CSR rows, conditions, batches, size factors."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from pyrocell.data.backed import BackedCounts, BackedPart, CachedRows, prefetch
from pyrocell.errors import ScreenError
from pyrocell.screen.conditions import Conditions
from pyrocell.screen.feature_views import FeatureViews

__all__ = ["CellDataset", "MinibatchSampler", "batch_loader", "split_cells"]

_SAMPLED_ROWS = 1000
_POOL = 16_384  # cells among which neighbours in a file are mixed
_BLOCK = 512

with warnings.catch_warnings():  # torch says once per process that CSR is in beta; say it here
    warnings.simplefilter("ignore")
    torch.zeros(1, 1).to_sparse_csr()


@dataclass(frozen=True)
class CellDataset(Dataset):
    """Cells of a screen; indexing with a list of positions yields the model's arguments.

    Attributes
    ----------
    counts
        (N, G) CSR float32, in memory or stored.
    condition, batch
        (N,) rows of the screen's conditions and batches.
    log_size
        (N,) log size factors.
    covariates
        (N, n_covariates) standardised, or None.
    conditions
        The table that `condition` refers to, where it is not the fitted screen's own.
    views, depths
        Views of the features, where there are several, and (N, V) log depths of cells in each, −inf
        where it was not measured.
    """

    counts: sp.csr_matrix | BackedCounts  # or, for a loader alone, `CachedRows`
    condition: np.ndarray
    batch: np.ndarray
    log_size: np.ndarray
    covariates: np.ndarray | None = None
    conditions: Conditions | None = None
    views: FeatureViews | None = None
    depths: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.condition)

    @property
    def size(self) -> np.ndarray:
        """(N,) float64 depth of cells.

        Raises
        ------
        ScreenError
            If cells have several views, and with them several depths.
        """
        if self.views is not None:
            raise ScreenError(
                "this question is asked of cells with one view, and these have "
                f"{', '.join(self.views.names)}; fit the view that it is about by itself, "
                "PyroCell.setup_anndata(mdata.mod[...], ...)"
            )
        return np.exp(self.log_size.astype(float))

    def __getitems__(self, positions: Sequence[int] | np.ndarray) -> dict[str, Tensor]:
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
            "log_size": torch.from_numpy(self._measured(rows)),
        }
        if self.covariates is not None:
            out["covariates"] = torch.from_numpy(self.covariates[rows])
        return out

    def _measured(self, rows: np.ndarray) -> np.ndarray:
        """Log depths of cells, and with several views the batch beside them; see `JointView`."""
        if self.depths is None:
            return self.log_size[rows]
        return np.column_stack([self.depths[rows], self.batch[rows].astype(np.float32)])

    @property
    def by_view(self) -> list[tuple[CellDataset, np.ndarray]]:
        """Cells of each view alone and their positions; this itself where there is one view."""
        if self.views is None:
            return [(self, np.arange(len(self)))]
        return [self.of_view(name) for name in self.views.names]

    def of_view(self, name: str) -> tuple[CellDataset, np.ndarray]:
        """The cells that have a view, with its features alone, and their positions."""
        assert self.views is not None and self.depths is not None
        v = self.views.of(name)
        depth = self.depths[:, v]
        cells = np.flatnonzero(np.isfinite(depth))
        counts: sp.csr_matrix | BackedCounts
        if isinstance(self.counts, BackedCounts):
            counts = BackedPart(self.counts, cells, self.views.slices[v])
        else:
            counts = sp.csr_matrix(self.counts[cells])[:, self.views.slices[v]]
        covariates = None if self.covariates is None else self.covariates[cells]
        labels = self.condition[cells], self.batch[cells], depth[cells].astype(np.float32)
        return CellDataset(counts, *labels, covariates, self.conditions), cells

    def subset(self, rows: np.ndarray) -> CellDataset:
        """Some of the cells, their counts in memory."""
        covariates = None if self.covariates is None else self.covariates[rows]
        labels = self.condition[rows], self.batch[rows], self.log_size[rows]
        depths = None if self.depths is None else self.depths[rows]
        counts = self.counts[rows]
        return CellDataset(counts, *labels, covariates, self.conditions, self.views, depths)

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
    if seed != int(seed) or not 0 <= seed < 2**32:
        raise ScreenError(f"seed={seed} must be a whole number from 0 to 4,294,967,295")
    if not 0 < train_size <= 1:
        raise ScreenError(f"train_size={train_size} must be above 0 and at most 1")
    order = np.random.default_rng(seed).permutation(n_cells)
    n_train = max(1, round(train_size * n_cells))
    return np.sort(order[:n_train]), np.sort(order[n_train:])


class MinibatchSampler(Sampler):
    """Whole minibatches of shuffled positions; sorted within a batch, so CSR slicing is local.

    The order is a function of the seed and of how often it was iterated over. With a `block`, runs
    of so many neighbours are shuffled, and then the cells of each pool of 16,384: all that is read
    from a file is read in runs, and every minibatch mixes cells from 32 places or more. Of several
    processes each takes its `size` of every minibatch that all take together.
    """

    def __init__(
        self,
        positions: np.ndarray,
        size: int,
        seed: int | None,
        drop_last: bool,
        block: int = 1,
        rank: int = 0,
        processes: int = 1,
    ):
        self.positions, self.size = positions, min(size, len(positions) // processes)
        self.drop_last, self.rank, self.processes, self.block = drop_last, rank, processes, block
        self.pool = max(1, _POOL // max(1, self.size * processes))  # minibatches
        self.generator = None if seed is None else np.random.default_rng(seed)
        self._first = 0

    def skip(self, epochs: int, batches: int) -> None:
        """Go on as if whole epochs, and then some minibatches, had been seen."""
        for _ in range(epochs):
            self._order()
        self._first = batches

    def __len__(self) -> int:
        n = len(self.positions) / (self.size * self.processes)
        return int(n) if self.drop_last else int(np.ceil(n))

    def __iter__(self) -> Iterator[np.ndarray]:
        for pool in self.pools():
            yield from pool

    def pools(self) -> Iterator[list[np.ndarray]]:
        """Minibatches whose cells were mixed with each other, to be read together."""
        order = self._order()
        first, self._first = self._first, 0
        for start in range(first - first % self.pool, len(self), self.pool):
            stop = min(start + self.pool, len(self))
            numbers = range(max(first, start), stop)
            starts = [(i * self.processes + self.rank) * self.size for i in numbers]
            yield [np.sort(order[s : s + self.size]) for s in starts]

    def _order(self) -> np.ndarray:
        """Positions in the order of the next epoch."""
        n, pool = len(self.positions), self.pool * self.size * self.processes
        if self.generator is None:
            return self.positions
        if self.block <= 1 or n <= pool:
            return self.generator.permutation(self.positions)
        bounds = np.arange(self.generator.integers(1, self.block + 1), n, self.block)
        blocks = np.split(self.positions, bounds)
        order = np.concatenate([blocks[i] for i in self.generator.permutation(len(blocks))])
        for start in range(0, n, pool):
            self.generator.shuffle(order[start : start + pool])
        return order


class CellLoader(DataLoader):
    """Minibatches of cells."""

    dataset: CellDataset
    batch_sampler: MinibatchSampler


class _ReadAhead(CellLoader):
    """Minibatches of stored counts, one pool of them read while another is trained on."""

    _all: CellDataset | None = None  # of a screen that is one pool, read once

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        torch.empty((), dtype=torch.int64).random_()  # as DataLoader does: the same numbers follow
        for pool, cells in prefetch(self._hold, self.batch_sampler.pools()):
            for positions in pool:
                yield cells.__getitems__(positions)

    def _hold(self, pool: list[np.ndarray]) -> CellDataset:
        batches = self.batch_sampler
        one = len(batches) <= batches.pool
        if self._all is None or not one:
            rows = np.sort(batches.positions) if one else np.unique(np.concatenate(pool))
            stored = self.dataset.counts
            assert isinstance(stored, BackedCounts)
            cells = replace(self.dataset, counts=CachedRows(stored, rows))
            self._all = cells if one else None
            return cells
        return self._all


def batch_loader(
    data: CellDataset,
    positions: np.ndarray,
    size: int,
    seed: int | None = None,
    block: int | None = None,
    rank: int = 0,
    processes: int = 1,
) -> CellLoader:
    """Loader of minibatches; shuffled (and short last batch dropped) when a seed is given.

    `block` is the number of neighbours that are shuffled as one; by default 1 for counts in memory
    and 512 for stored ones. Of several processes each loads its part of every minibatch, or of the
    positions without a seed (all of them where there are fewer than processes).
    """
    if block is not None and block < 1:
        raise ScreenError(f"shuffle_block={block} must be at least 1")
    positions, stored = np.asarray(positions), isinstance(data.counts, BackedCounts)
    if block is None:
        block = _BLOCK if stored else 1
    if seed is not None:
        sampler = MinibatchSampler(positions, size, seed, True, block, rank, processes)
    else:
        part = positions[rank::processes] if len(positions) >= processes else positions
        sampler = MinibatchSampler(part, size, None, drop_last=False)
    kind = _ReadAhead if stored else CellLoader
    return kind(data, batch_sampler=sampler, collate_fn=lambda batch: batch)
