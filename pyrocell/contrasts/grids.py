"""Grids of sizes and slopes, and what a probability on one says."""

from __future__ import annotations

import numpy as np
from scipy.special import gammaln
from scipy.stats import gamma

__all__ = ["between", "normalised", "realised", "summary"]

N_SIZES = 12  # points between two sizes


def between(low: float, high: float) -> np.ndarray:
    """Midpoints of equal steps of the logarithm."""
    edges = np.linspace(np.log(low), np.log(high), N_SIZES + 1)
    return np.exp((edges[1:] + edges[:-1]) / 2)


def normalised(log: np.ndarray) -> np.ndarray:
    """Probabilities from log weights."""
    p = np.exp(log - log.max())
    return p / p.sum()


def summary(grid: np.ndarray, p: np.ndarray, level: float) -> tuple[float, float, float]:
    """Mean and equal-tailed interval; the probability of a point is spread up to its neighbours."""
    order = np.argsort(grid)
    grid, p = grid[order], p[order]
    middle = (grid[1:] + grid[:-1]) / 2
    edges = np.concatenate([grid[:1], middle, grid[-1:]])
    tails = [(1 - level) / 2, (1 + level) / 2]
    lower, upper = np.interp(tails, np.concatenate([[0.0], p.cumsum()]), edges)
    return float(grid @ p), float(lower), float(upper)


def realised(moments: np.ndarray, p: np.ndarray, level: float) -> tuple[float, float, float]:
    """Mean and equal-tailed interval of a root mean square, each mean square being a Gamma.

    `moments` are the first and second of the mean square at every point of a grid, (2, S), and `p`
    the point's probability.
    """
    mean, second = moments
    shape = mean**2 / np.maximum(second - mean**2, 1e-9 * mean**2)
    tails = [(1 - level) / 2, (1 + level) / 2]
    low, high = np.sqrt(mean.min()) / 10, 3 * np.sqrt(mean.max())
    grid = np.exp(np.linspace(np.log(low), np.log(high), 400))
    below = gamma.cdf(grid[:, None] ** 2, shape, scale=mean / shape) @ p
    lower, upper = np.interp(tails, below, grid)
    root = np.sqrt(mean / shape) * np.exp(gammaln(shape + 0.5) - gammaln(shape))  # its mean
    return float(root @ p), float(lower), float(upper)
