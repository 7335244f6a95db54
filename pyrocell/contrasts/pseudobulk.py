"""Pseudobulk log ratios with their sampling noise: numpy and counts only, no model.

The rate of a gene in a group of cells is r = Σx / Σℓ, counts over size factors. Cells are compared
with the reference cells (controls) of their own batch: with E_b the depth of a condition's cells in
batch b and r_b the reference's rate there, the condition's counts T are set against M = Σ_b E_b
r_b, so a factor exp(η_b) that a batch puts on all of its cells drops out of log(T / M), and no
logarithm is taken of the few counts that one batch may hold.

Logarithms of small counts are biased: E log T ≈ log λ − ½ Var(T)/λ². With a variance of f μ + k μ²
in every cell that is −½ (f/λ + k q), q = Σℓ² / (Σℓ)² being 1/n for cells of equal size. Adding f/2
to the counts removes the first term (the usual one half for Poisson counts), adding k q/2 to the
logarithm the second.

Noise is drawn by giving every cell's residual a random sign: Σ_i ±h_i, with h_i what the cell adds
to the log ratio. Its squared length minus Σ_i |h_i|² is a sum over pairs of different cells, as is
the sampling error of a square estimated without bias. Drawing cells with replacement also sets each
cell against itself; with more genes than cells that exaggerates the spread (the noise of 20 cells
lies in 19 directions), and what moves goes unseen for want of cells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp

from pyrocell.data.backed import BackedCounts, gene_totals

__all__ = ["Cells", "LogRatio", "Reference", "Variance", "log_ratio", "rates"]

_AT_ONCE = 1 << 22  # weights of cells held at a time


@dataclass(frozen=True)
class Cells:
    """Some cells of a screen.

    Attributes
    ----------
    counts
        (n, G) CSR, in memory or stored.
    size
        (n,) size factors.
    batch
        (n,) codes.
    """

    counts: sp.csr_matrix | BackedCounts
    size: np.ndarray
    batch: np.ndarray

    @classmethod
    def of(cls, counts: Any, size: np.ndarray, batch: np.ndarray) -> Cells:
        """Cells of any matrix; stored counts stay where they are."""
        counts = counts if isinstance(counts, BackedCounts) else sp.csr_matrix(counts)
        return cls(counts, np.asarray(size, float), batch)

    def __len__(self) -> int:
        return len(self.size)

    def __getitem__(self, rows: np.ndarray) -> Cells:
        return Cells(self.counts[rows], self.size[rows], self.batch[rows])

    def pooled(self) -> Cells:
        """These cells as if they were of one batch."""
        return Cells(self.counts, self.size, np.zeros_like(self.batch))


@dataclass(frozen=True)
class Reference:
    """Rates of reference cells batch by batch.

    Attributes
    ----------
    batches
        (b,) codes.
    depth, rate
        (b, 2) sums of size factors and of their squares, and (b, G) rates.
    noise
        (R, b, G) draws of the sampling error of `rate`.
    half_depth, half_rate
        (2, S, b, 2) and (2, S, b, G): the same in both halves of S random splits of the cells.
    """

    batches: np.ndarray
    depth: np.ndarray
    rate: np.ndarray
    noise: np.ndarray
    half_depth: np.ndarray
    half_rate: np.ndarray

    @classmethod
    def of(
        cls, cells: Cells, min_cells: int, n_draws: int, n_splits: int, rng: np.random.Generator
    ) -> Reference:
        """Rates in every batch that holds at least `min_cells` cells."""
        batches, n_cells = np.unique(cells.batch, return_counts=True)
        batches = batches[n_cells >= min_cells]
        n_genes = cells.counts.shape[1]
        depth, rate = np.zeros((len(batches), 2)), np.zeros((len(batches), n_genes))
        noise = np.zeros((n_draws, len(batches), n_genes), np.float32)
        half_depth = np.zeros((2, n_splits, len(batches), 2))
        half_rate = np.zeros((2, n_splits, len(batches), n_genes), np.float32)
        for i, batch in enumerate(batches):
            part = cells[cells.batch == batch]
            powers = part.size[:, None] ** [1, 2]
            depth[i], rate[i] = powers.sum(0), rates(part)
            total, of = _signed(part, part.size[:, None], n_draws, rng)
            noise[:, i] = (total - of * rate[i]) / part.size.sum()
            total, half_depth[:, :, i] = _halves(part, powers, n_splits, rng)
            half_rate[:, :, i] = total / half_depth[:, :, i, :1]
        return cls(batches, depth, rate, noise, half_depth, half_rate)


@dataclass(frozen=True)
class LogRatio:
    """Log ratio of a group of cells to its reference, gene by gene; natural log.

    Attributes
    ----------
    value
        (G,) all cells.
    halves
        (2, S, G) in both halves of S random splits of cells and reference; halves are independent.
    noise
        (R, G) draws of the sampling error of `value`, to first order, the reference's included.
    effective_counts
        (G,) inverse relative variance at the reference's rates: of the cells' counts or the
        reference's, whichever is smaller. For Poisson counts, the counts expected.
    n_cells
        Cells compared.
    """

    value: np.ndarray
    halves: np.ndarray
    noise: np.ndarray
    effective_counts: np.ndarray
    n_cells: int


def rates(cells: Cells) -> np.ndarray:
    """(G,) counts per unit of size factor."""
    return _sum(cells.counts) / cells.size.sum()


@dataclass(frozen=True)
class Variance:
    """Variance f μ + k μ² of a cell's count with mean μ; `poisson` f and `extra` k are (G,).

    f is 1, below only where counts vary less than Poisson counts (and k is 0).
    """

    poisson: np.ndarray
    extra: np.ndarray

    @classmethod
    def of(cls, groups: Iterable[Cells]) -> Variance:
        """Moments within groups of cells and their batches, pooled."""
        squares = first = second = 0.0
        for cells in groups:
            for batch in np.unique(cells.batch):
                part = cells[cells.batch == batch]
                if len(part) < 2:
                    continue
                rate, counts = rates(part), part.counts.astype(float)
                size_squares = (part.size**2).sum()
                squares += _sum(counts.multiply(counts)) + rate**2 * size_squares
                squares -= 2 * rate * _sum(counts.multiply(part.size[:, None]))
                first += _sum(counts) * (1 - 1 / len(part))
                second += rate**2 * size_squares * (1 - 1 / len(part))
        seen = first > 0
        ratio = np.divide(squares, first, out=np.ones_like(first), where=seen)
        extra = np.divide(squares - first, second, out=np.zeros_like(first), where=seen)
        return cls(np.clip(ratio, 0.0, 1.0), np.maximum(extra, 0.0))

    def effective(self, counts: np.ndarray, powers: np.ndarray) -> np.ndarray:
        """(G,) inverse relative variance of sums of counts, from Σℓ and Σℓ² of their cells."""
        spread = self.extra * powers[1] / powers[0] ** 2
        return counts / np.maximum(self.poisson + counts * spread, 1e-12)


def log_ratio(
    cells: Cells, reference: Reference, variance: Variance, rng: np.random.Generator
) -> LogRatio | None:
    """Compare cells with the reference cells of their own batches.

    Parameters
    ----------
    cells
        Those whose batch is not in the reference are left out; None if fewer than two stay.
    variance
        Of the counts of a cell, for the bias of logarithms.
    """
    cells = cells[np.isin(cells.batch, reference.batches)]
    if len(cells) < 2:
        return None
    column = np.searchsorted(reference.batches, cells.batch)
    sizes = cells.size[:, None] * (column[:, None] == np.arange(len(reference.batches)))
    powers = np.hstack([sizes, sizes**2])
    half = variance.poisson / 2

    def log(total, powers, rate, of):
        """log(T / M) of counts (..., G), Σℓ and Σℓ² (..., 2b), rates (..., b, G) of depth `of`."""
        depth, squares = np.split(powers, 2, axis=-1)
        sum_ = depth.sum(-1, keepdims=True)
        weight = (depth / sum_) ** 2
        lift = half * sum_ * (weight / of[..., 0]).sum(-1, keepdims=True)
        spread = squares.sum(-1, keepdims=True) / sum_**2
        spread -= (weight * of[..., 1] / of[..., 0] ** 2).sum(-1, keepdims=True)
        expected = np.einsum("...b,...bg->...g", depth, rate) + lift
        return np.log(total + half) - np.log(expected) + variance.extra * spread / 2, expected

    total, depth = _sum(cells.counts), sizes.sum(0)
    value, lifted = log(total, powers.sum(0), reference.rate, reference.depth)
    n_splits = reference.half_rate.shape[1]
    split = _halves(cells, powers, n_splits, rng)
    halves, _ = log(*split, reference.half_rate, reference.half_depth)
    # Residuals against what the cell's own batch leads to expect: batch noise is not sampling.
    expected = depth @ reference.rate
    ratio = np.divide(total, expected, out=np.zeros_like(total), where=expected > 0)
    drawn, drawn_depth = _signed(cells, sizes, len(reference.noise), rng)
    noise = (drawn - ratio * (drawn_depth @ reference.rate)) / (total + half)
    noise -= np.einsum("b,rbg->rg", depth, reference.noise) / lifted
    return LogRatio(
        value=value,
        halves=halves,
        noise=noise,
        effective_counts=np.minimum(
            variance.effective(expected, powers.sum(0).reshape(2, -1).sum(1)),
            variance.effective(reference.depth[:, 0] @ reference.rate, reference.depth.sum(0)),
        ),
        n_cells=len(cells),
    )


def _sum(counts: sp.csr_matrix | BackedCounts) -> np.ndarray:
    if isinstance(counts, BackedCounts):
        return gene_totals(counts)
    return np.asarray(counts.sum(axis=0, dtype=np.float64)).ravel()


def _weighted(
    cells: Cells, sizes: np.ndarray, n: int, weights: Callable[[int], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Sums of counts (n, G) and of `sizes` (n, b) under n sets of weights, drawn some at a time."""
    transposed = sp.csr_matrix(cells.counts.T, dtype=float)
    totals, depths = [], []
    step = max(1, _AT_ONCE // len(cells))
    for start in range(0, n, step):
        w = weights(min(step, n - start)).astype(float)
        totals.append((transposed @ w.T).T)
        depths.append(w @ sizes)
    return np.concatenate(totals), np.concatenate(depths)


def _signed(
    cells: Cells, sizes: np.ndarray, n: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Sums of counts (n, G) and of `sizes` (n, b) with a random sign for every cell."""
    # Residuals fall short of errors by this factor.
    inflation = np.sqrt(len(cells) / (len(cells) - 1))

    def weights(k: int) -> np.ndarray:
        return inflation * rng.choice(np.array([-1.0, 1.0]), size=(k, len(cells)))

    return _weighted(cells, sizes, n, weights)


def _halves(
    cells: Cells, sizes: np.ndarray, n: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Sums of counts (2, n, G) and of `sizes` (2, n, b) over both halves of n random splits."""
    first = np.arange(len(cells)) < len(cells) // 2

    def weights(k: int) -> np.ndarray:
        return rng.permuted(np.tile(first, (k, 1)), axis=1)

    total, depth = _weighted(cells, sizes, n, weights)
    return np.stack([total, _sum(cells.counts) - total]), np.stack([depth, sizes.sum(0) - depth])
