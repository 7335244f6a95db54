"""torch's side of the row kernels: buffers, threads and autograd."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrocell._core.threading import parallel_for
from pyrocell.distributions.kernels.counts_numba import (
    CURVE,
    FREE,
    NO_GATE,
    TABLE,
    add_rows,
    fill_tables,
    sum_rows,
)
from pyrocell.distributions.kernels.counts_torch import (
    dense_counts,
    gate_curve,
    log_mean,
    reference_log_prob,
)

__all__ = ["RowLogProb"]

ROWS_PER_BLOCK = 64  # gradients of parameters are summed in float32 within a block only
MAX_BLOCKS = 32  # bounds the memory of the partial sums


def _array(x: Tensor) -> np.ndarray:
    return x.detach().contiguous().numpy()


class RowLogProb(torch.autograd.Function):
    """Log probability of CSR counts, (cells,), with its gradient computed in the same pass.

    Inputs: logits (cells, G), log_theta (G,), intercept and slope (G,) or None, gate_logits (cells,
    G) or None, log_size (cells,), offset (R, G) of which `rows` (cells, n) are added to the logits,
    composition (bool), and the CSR arrays start, column, count. All float32, on the CPU. Cells out
    of the kernel's range (non-finite, or μ above e^60) get nan.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        log_theta: Tensor,
        intercept: Tensor | None,
        slope: Tensor | None,
        gate_logits: Tensor | None,
        log_size: Tensor,
        offset: Tensor,
        rows: Tensor,
        composition: bool,
        start: Tensor,
        column: Tensor,
        count: Tensor,
    ) -> Tensor:
        """Value per cell; keeps the gradient for equal weights of cells."""
        ctx.composition = composition
        inputs = (logits, log_theta, intercept, slope, gate_logits, log_size, offset, rows)
        inputs = (*inputs, start, column, count)
        ctx.save_for_backward(*inputs)
        needed = any(ctx.needs_input_grad)
        value, gradients = _run(inputs, composition, None, needed)
        ctx.gradients = gradients if needed else None
        return value

    @staticmethod
    def backward(ctx: Any, weight: Tensor) -> tuple[Tensor | None, ...]:
        """Gradient for the inputs; a second pass where cells are weighted unequally."""
        saved = ctx.saved_tensors
        if torch.is_grad_enabled():
            found = _differentiable_gradient(saved, ctx.composition, weight)
        else:
            kept, ctx.gradients = ctx.gradients, None  # a second backward computes them again
            if kept is not None and bool((weight == weight[:1]).all()):
                factor = float(weight[0]) if len(weight) else 0.0
                found = [g if g is None or factor == 1.0 else g.mul_(factor) for g in kept]
            else:
                found = _run(saved, ctx.composition, weight, True)[1]
            found.append(_gathered(found[0], *saved[6:8]) if ctx.needs_input_grad[6] else None)
        return (*found, None, None, None, None, None)


def _gathered(logit_grad: Tensor, offset: Tensor, rows: Tensor) -> Tensor:
    """Gradient of the table of offsets, (R, G): sums over the cells that each row was added to."""
    out = torch.zeros(offset.shape)
    n_genes = offset.shape[1]
    n_parts = min(torch.get_num_threads(), n_genes)
    edges = [n_genes * i // n_parts for i in range(n_parts + 1)]
    arrays = logit_grad.numpy(), rows.numpy(), out.numpy()
    parallel_for(lambda i: add_rows(edges[i], edges[i + 1], *arrays), n_parts)
    return out


def _run(
    saved: tuple[Tensor, ...], composition: bool, weight: Tensor | None, with_grad: bool
) -> tuple[Tensor, list[Tensor | None]]:
    """Value per cell and the weighted gradients of the first six inputs."""
    logits, log_theta, intercept, slope, gate_logits, log_size, offset, rows, *counts = saved
    n_cells, n_genes = logits.shape
    kind = FREE if gate_logits is not None else NO_GATE if intercept is None else CURVE
    gate = np.zeros((2, 0), np.float32)
    if kind == CURVE:
        gate = np.stack([_array(intercept), _array(slope)])
    elif kind == FREE:
        gate = _array(gate_logits)
    theta = log_theta.detach().exp()
    gene = torch.stack([theta, theta.reciprocal(), log_theta.detach()]).numpy()  # (3, G)
    tables = np.empty((2, TABLE + 1, n_genes), np.float32)
    fill_tables(gene[0], tables[0], tables[1])

    n_blocks = max(1, min(MAX_BLOCKS, -(-n_cells // ROWS_PER_BLOCK)))
    edges = np.linspace(0, n_cells, n_blocks + 1).astype(np.int64)
    kept_rows = n_cells if with_grad else 0
    weights = np.ones(n_cells, np.float32) if weight is None else _array(weight)
    value = torch.empty(n_cells)
    logit_grad = torch.empty(kept_rows, n_genes)
    size_grad = torch.empty(n_cells)
    gate_grad = torch.empty(kept_rows if kind == FREE else 0, n_genes)
    gene_grad = torch.zeros(n_blocks, 3, n_genes)
    arguments = (
        kind, composition, _array(logits), _array(offset), _array(rows), _array(log_size), gate,
        gene, *tables, *(_array(x) for x in counts), weights,
        value.numpy(), logit_grad.numpy(), size_grad.numpy(), gate_grad.numpy(),
    )  # fmt: skip

    def work(i: int) -> None:
        sum_rows(edges[i], edges[i + 1], *arguments, gene_grad[i].numpy())

    parallel_for(work, n_blocks)
    per_gene = gene_grad.double().sum(0).float() if n_blocks > 1 else gene_grad[0]
    curve = (per_gene[1], per_gene[2]) if kind == CURVE else (None, None)
    free = gate_grad if kind == FREE else None
    return value, [logit_grad, per_gene[0], *curve, free, size_grad]


def _differentiable_gradient(
    saved: tuple[Tensor, ...], composition: bool, weight: Tensor
) -> list[Tensor | None]:
    """Gradient through the reference formula, for derivatives of higher order."""
    logits, log_theta, intercept, slope, gate_logits, log_size, offset, rows = saved[:8]
    start, column, count = saved[8:]
    logits = logits + offset[rows].sum(1)
    log_mu = log_mean(logits, log_size, composition)
    gate = gate_curve(log_mu, intercept, slope) if intercept is not None else gate_logits
    row = torch.repeat_interleave(torch.arange(len(logits)), start.diff())
    x = dense_counts(row, column, count, tuple(logits.shape))
    value = reference_log_prob(log_mu, log_theta, gate, x)
    inputs = saved[:7]
    wanted = [t for t in inputs if t is not None and t.requires_grad]
    found = iter(torch.autograd.grad(value, wanted, weight, create_graph=True))
    return [next(found) if t is not None and t.requires_grad else None for t in inputs]
