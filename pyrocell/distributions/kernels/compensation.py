"""What a residual gives back of what was drawn before it, with its gradient written out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyrocell._core.threading import parallel_for

__all__ = ["subtract_share"]

_ROWS_PER_BLOCK = 64


def subtract_share(loc: Tensor, log_ratio: Tensor, kept: Tensor, taken: Tensor) -> Tensor:
    """loc − σ(log_ratio + kept) · taken, (n, T, G); kept (n, T) is shared by the genes."""
    return _GivenBack.apply(loc, log_ratio, kept, taken)


class _GivenBack(torch.autograd.Function):
    """One pass over (n, T, G) each way where automatic differentiation makes eleven."""

    @staticmethod
    def forward(ctx: Any, loc: Tensor, log_ratio: Tensor, kept: Tensor, taken: Tensor) -> Tensor:
        """The centre of the residual."""
        if _by_kernel(loc, log_ratio, kept, taken):
            from pyrocell.distributions.kernels.compensation_rows import forward  # loads numba

            share, out = torch.empty_like(loc), torch.empty_like(loc)
            _by_rows(forward, loc, log_ratio, kept, taken, share, out)
        else:
            share = torch.sigmoid(log_ratio + kept[..., None])
            out = torch.addcmul(loc, share, taken, value=-1)
        ctx.save_for_backward(share, taken)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradient for loc, kept and taken."""
        share, taken = ctx.saved_tensors
        if _by_kernel(grad, share, taken):
            from pyrocell.distributions.kernels.compensation_rows import backward  # loads numba

            for_taken, for_kept = torch.empty_like(taken), taken.new_empty(taken.shape[:-1])
            _by_rows(backward, grad, share, taken, for_taken, for_kept)
        else:
            for_taken = -grad * share
            for_kept = (for_taken * taken * (1 - share)).sum(-1)
        return grad, None, for_kept, for_taken


def _by_kernel(*tensors: Tensor) -> bool:
    """Whether the kernels may be asked: no gradient is recorded, single precision, on the CPU."""
    return not torch.is_grad_enabled() and all(
        t.dtype == torch.float32 and t.device.type == "cpu" and t.is_contiguous() for t in tensors
    )


def _by_rows(kernel: Callable[..., None], *tensors: Tensor) -> None:
    """Call a kernel on blocks of rows of tensors (n, T, G) and (n, T)."""
    depth = tensors[0].dim()
    arrays = [t.detach().flatten(0, depth - 2).numpy() for t in tensors]

    def work(i: int) -> None:
        first = i * _ROWS_PER_BLOCK
        kernel(first, min(first + _ROWS_PER_BLOCK, len(arrays[0])), *arrays)

    parallel_for(work, -(-len(arrays[0]) // _ROWS_PER_BLOCK))
