"""Elementwise parts of the low-rank density, each in one pass over its rows."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pyrocell._core.threading import parallel_for
from pyrocell.distributions.kernels.fastmath import F32, log32, summing

__all__ = ["slopes", "weigh"]

ROWS_PER_BLOCK = 16
ONE, HALF = F32(1.0), F32(0.5)


@summing
def _weigh(first, last, deviation, scale, precision, weighted, value):  # type: ignore[no-untyped-def]
    for i in range(first, last):
        square, log = 0.0, 0.0
        for g in range(scale.shape[1]):
            p = ONE / (scale[i, g] * scale[i, g])
            w = deviation[i, g] * p
            precision[i, g] = p
            weighted[i, g] = w
            square += deviation[i, g] * w
            log += log32(scale[i, g])
        value[i] = F32(-0.5 * square - log)


@summing
def _slopes(first, last, precision, weighted, scale, moved, spread, weight, of_dev, of_scale):  # type: ignore[no-untyped-def]
    for i in range(first, last):
        w = weight[i]
        for g in range(scale.shape[1]):
            p = precision[i, g]
            y = weighted[i, g] - p * moved[i, g]
            of_dev[i, g] = -w * y
            of_scale[i, g] = w * scale[i, g] * (y * y - p * (ONE - p * spread[i, g]))


def weigh(deviation: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Precision P = scale⁻² and P x, (..., G), and Σ −P x² / 2 − log scale, (...,)."""
    precision, weighted = torch.empty_like(scale), torch.empty_like(scale)
    value = torch.empty(scale.shape[:-1])
    _by_rows(_weigh, scale.shape[-1], deviation, scale, precision, weighted, value)
    return precision, weighted, value


def slopes(
    precision: Tensor,
    weighted: Tensor,
    scale: Tensor,
    moved: Tensor,
    spread: Tensor,
    weight: Tensor,
) -> tuple[Tensor, Tensor]:
    """Gradient for the deviation and for the scale, (..., G)."""
    of_dev, of_scale = torch.empty_like(scale), torch.empty_like(scale)
    arrays = precision, weighted, scale, moved, spread, weight, of_dev, of_scale
    _by_rows(_slopes, scale.shape[-1], *arrays)
    return of_dev, of_scale


def _by_rows(kernel, n_genes: int, *tensors: Tensor) -> None:  # type: ignore[no-untyped-def]
    """Call a kernel on blocks of rows; tensors (..., G) or (...,), the last ones written to."""

    def rows(t: Tensor) -> np.ndarray:
        t = t.detach().contiguous()
        return (t.reshape(-1, n_genes) if t.dim() == depth else t.reshape(-1)).numpy()

    depth = max(t.dim() for t in tensors)
    arrays = [rows(t) for t in tensors]
    n = len(arrays[0])

    def work(i: int) -> None:
        first = i * ROWS_PER_BLOCK
        kernel(first, min(first + ROWS_PER_BLOCK, n), *arrays)

    parallel_for(work, -(-n // ROWS_PER_BLOCK))
