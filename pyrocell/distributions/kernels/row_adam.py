"""Adam's step on some rows of its tables, in place."""

from __future__ import annotations

import numpy as np

from pyrocell.distributions.kernels.fastmath import F32, exact

__all__ = ["move"]

ONE = F32(1.0)


@exact
def move(  # type: ignore[no-untyped-def]
    first, last, value, mean, square, visits, rows, slope, step, lr, beta1, beta2, eps
):
    """Rows rows[first..last-1] of value, mean, square (K, m) and visits (K,); slope (n, m)."""
    b1, b2, small = F32(beta1), F32(beta2), F32(eps)
    for i in range(first, last):
        k = rows[i]
        visits[k] += ONE
        n = np.float64(visits[k])
        far = F32(lr * np.sqrt(step / n) / (1.0 - beta1**n))
        wide = F32(1.0 / np.sqrt(1.0 - beta2**n))
        for j in range(slope.shape[1]):
            g = slope[i, j]
            a = b1 * mean[k, j] + (ONE - b1) * g
            b = b2 * square[k, j] + (ONE - b2) * g * g
            mean[k, j] = a
            square[k, j] = b
            value[k, j] -= far * a / (np.sqrt(b) * wide + small)
