"""Moments and both tails of many numbers, draw by draw, in one pass over them each."""

from __future__ import annotations

from pyrocell.distributions.kernels.fastmath import exact

__all__ = ["add"]


@exact
def _push(heap, e, seen, value):  # type: ignore[no-untyped-def]
    """Keep the k smallest of what was seen; heap (k, E), of which row 0 holds the greatest."""
    k = heap.shape[0]
    if seen < k:
        i = seen
        while i > 0:
            above = (i - 1) // 2
            if heap[above, e] >= value:
                break
            heap[i, e] = heap[above, e]
            i = above
        heap[i, e] = value
    elif value < heap[0, e]:
        i = 0
        while 2 * i + 1 < k:
            child = 2 * i + 1
            if child + 1 < k and heap[child + 1, e] > heap[child, e]:
                child += 1
            if heap[child, e] <= value:
                break
            heap[i, e] = heap[child, e]
            i = child
        heap[i, e] = value


@exact
def add(first, last, x, seen, mean, square, above, below, low, high):  # type: ignore[no-untyped-def]
    """Take up one more draw x (E,), numbers first to last; `seen` draws came before it."""
    share = 1.0 / (seen + 1)
    for e in range(first, last):
        step = x[e] - mean[e]
        mean[e] += step * share
        square[e] += step * (x[e] - mean[e])
        above[e] += x[e] > 0
        below[e] += x[e] < 0
    for e in range(first, last):
        _push(low, e, seen, x[e])
        _push(high, e, seen, -x[e])
