"""Adam for parameters of which a step sees a few rows only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyrocell._core.threading import parallel_for

__all__ = ["RowAdam", "visited_rows"]

_ROWS_PER_BLOCK = 64


def visited_rows(table: Tensor, rows: Tensor) -> Tensor:
    """table[rows], with a sparse gradient for a parameter; rows in increasing order, each once."""
    if not table.requires_grad:
        return table.index_select(0, rows)
    return _Rows.apply(table, rows)


class _Rows(torch.autograd.Function):
    """Lookup whose gradient names its rows instead of being zero elsewhere."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, rows: Tensor) -> Tensor:
        """The rows."""
        ctx.save_for_backward(rows)
        ctx.shape = table.shape
        return table.index_select(0, rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Sparse gradient of the table."""
        (rows,) = ctx.saved_tensors
        options: dict[str, Any] = {"is_coalesced": True, "check_invariants": False}
        return torch.sparse_coo_tensor(rows[None], grad, ctx.shape, **options), None


class RowAdam(torch.optim.Adam):
    """Adam; of a parameter with a sparse gradient, the rows that it names are moved.

    Moments of a row are means over the steps that saw it, and corrected for their own number n.
    Its step is longer by √(t / n) after t steps: a row seen in a share p of the steps, with
    gradients 1 / p times as large, has in Adam a second moment of p times their square, zeros
    included, and goes √(1 / p) as far per visit. With rows that are always seen it is Adam.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """Move the parameters."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and parameter.grad.is_sparse:
                    self._move_rows(parameter, parameter.grad, group)
                    parameter.grad = None
        super().step()
        return loss

    def _move_rows(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        rows, slope = _unique(gradient)
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), device=parameter.device)
            state["visits"] = torch.zeros(len(parameter), device=parameter.device)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        state["step"] += 1
        tables = parameter, state["exp_avg"], state["exp_avg_sq"]
        in_place = all(t.is_contiguous() and t.dtype == torch.float32 for t in tables)
        move = _in_one_pass if in_place and parameter.device.type == "cpu" else _plainly
        move(*tables, state["visits"], rows, slope, float(state["step"]), group)


def _unique(grad: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of a sparse gradient, each once, and their slopes."""
    rows = grad._indices()[0]  # autograd does not say of a gradient that it is coalesced
    if len(rows) < 2 or bool((rows[1:] > rows[:-1]).all()):
        return rows, grad._values()
    grad = grad.coalesce()
    return grad.indices()[0], grad.values()


def _plainly(
    value: Tensor,
    mean: Tensor,
    square: Tensor,
    visits: Tensor,
    rows: Tensor,
    slope: Tensor,
    step: float,
    group: dict[str, Any],
) -> None:
    """Move rows of tables, with torch's own operations."""
    beta1, beta2 = group["betas"]
    visits[rows] += 1
    shape = (-1, *(1 for _ in slope.shape[1:]))
    n = visits[rows].double().view(shape)
    first = mean[rows].lerp(slope, 1 - beta1)
    second = torch.lerp(square[rows], slope.square(), 1 - beta2)
    mean[rows], square[rows] = first, second
    length = group["lr"] * (step / n).sqrt() / (1 - beta1**n)
    root = (1 - beta2**n).rsqrt()  # of the second moment's correction
    value[rows] -= length.to(value) * first / (second.sqrt() * root.to(value) + group["eps"])


def _in_one_pass(
    value: Tensor,
    mean: Tensor,
    square: Tensor,
    visits: Tensor,
    rows: Tensor,
    slope: Tensor,
    step: float,
    group: dict[str, Any],
) -> None:
    """A step of Adam on some rows that reads and writes each entry once."""
    from pyrocell.distributions.kernels.row_adam import move  # loads numba

    tables = [t.detach().view(len(t), -1).numpy() for t in (value, mean, square)]
    slopes = slope.reshape(len(rows), -1).contiguous().numpy()
    arrays = *tables, visits.numpy(), rows.numpy(), slopes
    numbers = step, float(group["lr"]), *group["betas"], group["eps"]

    def work(i: int) -> None:
        first = i * _ROWS_PER_BLOCK
        move(first, min(first + _ROWS_PER_BLOCK, len(rows)), *arrays, *numbers)

    parallel_for(work, -(-len(rows) // _ROWS_PER_BLOCK))
