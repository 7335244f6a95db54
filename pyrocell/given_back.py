"""What a residual gives back of what was drawn before it, with its gradient written out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["given_back"]


def given_back(loc: Tensor, log_ratio: Tensor, kept: Tensor, taken: Tensor) -> Tensor:
    """loc − σ(log_ratio + kept) · taken, (n, T, G); kept (n, T) is shared by the genes."""
    return _GivenBack.apply(loc, log_ratio, kept, taken)


class _GivenBack(torch.autograd.Function):
    """Five passes over (n, T, G) where automatic differentiation makes eleven."""

    @staticmethod
    def forward(ctx: Any, loc: Tensor, log_ratio: Tensor, kept: Tensor, taken: Tensor) -> Tensor:
        """The centre of the residual."""
        share = torch.sigmoid(log_ratio + kept[..., None])
        ctx.save_for_backward(share, taken)
        return torch.addcmul(loc, share, taken, value=-1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradient for loc, kept and taken."""
        share, taken = ctx.saved_tensors
        for_taken = -grad * share
        for_kept = (for_taken * taken * (1 - share)).sum(-1)
        return grad, None, for_kept, for_taken
