"""What a residual gives back, and its gradient, in one pass over the rows each."""

from __future__ import annotations

from pyrocell.distributions.kernels.fastmath import F32, exp32, summing

__all__ = ["backward", "forward"]

ONE = F32(1.0)


@summing
def forward(first, last, loc, log_ratio, kept, taken, share, out):  # type: ignore[no-untyped-def]
    """Rows first..last-1 of share = σ(log_ratio + kept) and out = loc − share · taken, (n, G)."""
    for i in range(first, last):
        for g in range(loc.shape[1]):
            s = ONE / (ONE + exp32(-(log_ratio[i, g] + kept[i])))
            share[i, g] = s
            out[i, g] = loc[i, g] - s * taken[i, g]


@summing
def backward(first, last, grad, share, taken, for_taken, for_kept):  # type: ignore[no-untyped-def]
    """Rows first..last-1 of the gradient for taken (n, G) and for kept (n,)."""
    for i in range(first, last):
        total = F32(0.0)
        for g in range(grad.shape[1]):
            slope = -grad[i, g] * share[i, g]
            for_taken[i, g] = slope
            total += slope * taken[i, g] * (ONE - share[i, g])
        for_kept[i] = total
