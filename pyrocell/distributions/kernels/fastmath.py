"""Single-precision exponential and logarithms that LLVM vectorises, for the numba kernels.

numba's cache on disk does not notice edits here: after one, touch the file of the kernels too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba.core import types
from numba.extending import intrinsic

__all__ = ["F32", "I32", "exact", "exp32", "jit", "log1p32", "log32", "summing"]

F32, I32 = np.float32, np.int32
ONE, HALF = F32(1.0), F32(0.5)


def jit(*flags: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """numba.njit with the given fast-math flags, cached on disk where that is possible."""

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        options = {
            "fastmath": set(flags),
            "error_model": "numpy",
            "boundscheck": False,
            "nogil": True,
        }
        try:
            return numba.njit(cache=True, **options)(function)
        except RuntimeError:  # no writable cache directory
            return numba.njit(**options)(function)

    return wrap


# Range reductions must not be re-associated; sums must, or they do not vectorise.
exact = jit("nsz", "contract")
summing = jit("nsz", "contract", "arcp", "reassoc")


@intrinsic
def _bits(context, value):  # type: ignore[no-untyped-def]
    """Bit pattern of a float32 as int32."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.bitcast(arguments[0], context.get_value_type(types.int32))

    return types.int32(types.float32), generate


@intrinsic
def _float(context, value):  # type: ignore[no-untyped-def]
    """float32 with the bit pattern of an int32."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.bitcast(arguments[0], context.get_value_type(types.float32))

    return types.float32(types.int32), generate


@exact
def exp32(x):  # type: ignore[no-untyped-def]
    """Exponential in float32, argument held within [-87, 88]."""
    x = min(max(x, F32(-87.0)), F32(88.0))
    shifted = x * F32(1.44269504) + F32(12582912.0)  # adding 1.5 * 2**23 rounds to an integer
    n = shifted - F32(12582912.0)
    y = x - n * F32(0.693359375) + n * F32(2.12194440e-4)
    p = F32(1.9875691500e-4) * y + F32(1.3981999507e-3)
    p = p * y + F32(8.3334519073e-3)
    p = p * y + F32(4.1665795894e-2)
    p = p * y + F32(1.6666665459e-1)
    p = p * y + HALF
    scale = _float(I32(I32(_bits(shifted) << I32(23)) + I32(0x3F800000)))
    return (p * y * y + y + ONE) * scale


@exact
def _log_series(f, e):  # type: ignore[no-untyped-def]
    """log(1 + f) + e log 2 for 1 + f within [sqrt(1/2), sqrt(2))."""
    p = F32(7.0376836292e-2) * f - F32(1.1514610310e-1)
    p = p * f + F32(1.1676998740e-1)
    p = p * f - F32(1.2420140846e-1)
    p = p * f + F32(1.4249322787e-1)
    p = p * f - F32(1.6668057665e-1)
    p = p * f + F32(2.0000714765e-1)
    p = p * f - F32(2.4999993993e-1)
    p = p * f + F32(3.3333331174e-1)
    n = F32(e)
    y = f * f * (f * p - HALF) + n * F32(-2.12194440e-4)
    return y + f + n * F32(0.693359375)


@exact
def log32(x):  # type: ignore[no-untyped-def]
    """Logarithm in float32 of a normal, positive number."""
    bits = _bits(x)
    e = I32(I32(bits - I32(0x3F3504F3)) >> I32(23))
    return _log_series(_float(I32(bits - I32(e << I32(23)))) - ONE, e)


@exact
def log1p32(u):  # type: ignore[no-untyped-def]
    """log(1 + u) in float32 for -1 < u, accurate relative to the result also where u is tiny."""
    bits = _bits(ONE + u)
    e = I32(I32(bits - I32(0x3F3504F3)) >> I32(23))
    f = _float(I32(bits - I32(e << I32(23)))) - ONE
    return _log_series(u if e == I32(0) else f, e)
