"""Columns of CSR rows in parts: counts of several views out of one minibatch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pyrocell.distributions.kernels.fastmath import exact

__all__ = ["split_rows"]


@exact
def _first_of(indptr, indices, edges, out):  # type: ignore[no-untyped-def]
    """Position of the first entry of every row at or after each edge, (rows, edges)."""
    for r in range(indptr.size - 1):
        low, stop = indptr[r], indptr[r + 1]
        for e in range(edges.size):
            high = stop
            first = low
            while first < high:
                middle = (first + high) // 2
                if indices[middle] < edges[e]:
                    first = middle + 1
                else:
                    high = middle
            out[r, e] = first
            low = first


@exact
def _taken(first, last, offset, start, indices, values, new_indices, new_values):  # type: ignore[no-untyped-def]
    """Copy the entries of a part."""
    for r in range(first.size):
        at = start[r]
        for i in range(first[r], last[r]):
            new_indices[at] = indices[i] - offset
            new_values[at] = values[i]
            at += 1


def split_rows(value: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """CSR counts (cells, G) on the CPU, columns in order, as one CSR tensor for each part.

    Parameters
    ----------
    value
        torch CSR.
    sizes
        (V,) columns of the parts.
    """
    indptr, indices = value.crow_indices().numpy(), value.col_indices().numpy()
    data = value.values().numpy()
    edges = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    place = np.empty((len(indptr) - 1, len(edges)), np.int64)
    _first_of(indptr, indices, edges, place)
    out = []
    for v, size in enumerate(sizes):
        first, last = np.ascontiguousarray(place[:, v]), np.ascontiguousarray(place[:, v + 1])
        start = np.concatenate([[0], np.cumsum(last - first)])
        column, count = np.empty(start[-1], indices.dtype), np.empty(start[-1], data.dtype)
        _taken(first, last, edges[v], start, indices, data, column, count)
        crow, col, values = (torch.from_numpy(a) for a in (start, column, count))
        shape = (len(indptr) - 1, size)
        out.append(torch.sparse_csr_tensor(crow, col, values, shape, check_invariants=False))
    return out
