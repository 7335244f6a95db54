"""Summaries of draws that are seen one at a time: exact, without holding the draws."""

from __future__ import annotations

import math
import re

import numpy as np

from pyrocell._core.threading import parallel_for
from pyrocell.errors import ScreenError
from pyrocell.posterior.draws import check_level

__all__ = ["RunningSummary", "bytes_per_number", "memory_bytes"]

_AT_ONCE = 2**14  # numbers that a thread takes
_UNITS = {"": 1, "b": 1} | {
    f"{prefix}{unit}": base**power
    for unit, base in (("b", 1000), ("ib", 1024))
    for power, prefix in enumerate("kmgtp", start=1)
}


def memory_bytes(size: int | float | str) -> int:
    """Bytes of a size such as 2e9, "500 MB" or "2 GiB".

    Raises
    ------
    ScreenError
        If it is none.
    """
    found = re.fullmatch(r"\s*([0-9.]+(?:e[0-9]+)?)\s*([a-z]*)\s*", str(size).lower())
    number, unit = found.groups() if found else ("", "")
    try:
        n_bytes = int(float(number) * _UNITS[unit])
    except (KeyError, ValueError):
        n_bytes = 0
    if n_bytes < 1:
        raise ScreenError(
            f'memory_budget={size!r} is no size; give bytes, or a text such as "500 MB" or "2 GiB"'
        )
    return n_bytes


def _position(n: int, credible_level: float) -> tuple[float, int]:
    """Where the lower bound lies among n sorted draws, and how many of the smallest it needs."""
    tail = 50 * (1 - credible_level) / 100
    position = (n + 1) * tail - 1  # "weibull", as in `summarise`
    return position, min(n, max(1, math.floor(position) + 2))


def bytes_per_number(n: int, credible_level: float) -> int:
    """Memory that a number of a `RunningSummary` takes."""
    _, k = _position(n, credible_level)
    return 2 * 4 * k + 2 * 8 + 2 * np.min_scalar_type(n).itemsize


class RunningSummary:
    """What `posterior.summarise` says of n draws, equal to rounding, from one draw after another.

    An interval needs only the draws beyond its bounds: the k smallest and the k greatest are kept,
    k about n (1 - level) / 2.

    Parameters
    ----------
    shape
        Of a draw.
    n
        How many draws there will be.
    credible_level
        Mass of the equal-tailed interval.

    Raises
    ------
    ScreenError
        If the credible level is not between 0 and 1.
    """

    def __init__(self, shape: tuple[int, ...], n: int, credible_level: float = 0.9):
        check_level(credible_level)
        self.shape, self.n, self.seen = shape, n, 0
        self._position, k = _position(n, credible_level)
        size = math.prod(shape)
        self._mean, self._square = np.zeros(size), np.zeros(size)
        counts = np.min_scalar_type(n)
        self._above, self._below = np.zeros(size, counts), np.zeros(size, counts)
        self._low, self._high = (np.empty((k, size), np.float32) for _ in range(2))

    def add(self, draw: np.ndarray) -> None:
        """Take up the next draw, float32 of the shape."""
        from pyrocell.distributions.kernels.tail_heap import add  # loads numba

        size = len(self._mean)
        state = self._mean, self._square, self._above, self._below, self._low, self._high
        flat = np.ascontiguousarray(draw, dtype=np.float32).reshape(size)

        def work(i: int) -> None:
            first = i * _AT_ONCE
            add(first, min(first + _AT_ONCE, size), flat, self.seen, *state)

        parallel_for(work, -(-size // _AT_ONCE))
        self.seen += 1

    def summary(self) -> dict[str, np.ndarray]:
        """Mean, sd, lower, upper and prob_direction, each of the shape."""
        if self.seen != self.n:
            raise RuntimeError(f"{self.seen} of {self.n} draws were seen")
        spread = np.sqrt(self._square / max(self.n - 1, 1))
        parts = {
            "mean": self._mean.astype(np.float32),
            "sd": spread.astype(np.float32),
            "lower": self._bound(self._low),
            "upper": -self._bound(self._high),
            "prob_direction": np.maximum(self._above, self._below) / self.n,
        }
        return {name: values.reshape(self.shape) for name, values in parts.items()}

    def _bound(self, heap: np.ndarray) -> np.ndarray:
        """Quantile between the greatest draw of a tail and the one before it."""
        below = math.floor(self._position)
        after = before = heap[0].astype(float)
        if below >= 0 and below + 2 <= self.n:
            before = heap[1:3].max(0).astype(float)
        bound = before + (after - before) * (self._position - below)
        return np.where(np.isnan(self._mean), np.nan, bound)
