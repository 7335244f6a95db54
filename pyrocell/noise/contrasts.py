"""η, what a batch adds to the log mean of its genes (eqs. 15 and 19)."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "batch_fractions",
    "centre",
    "content_effect",
    "content_fractions",
    "contrast_matrix",
    "sum_to_zero",
]


def contrast_matrix(
    n_batches: int,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Orthonormal contrasts of batches (Helmert): every column sums to zero.

    Parameters
    ----------
    n_batches
        B, at least 1.
    dtype, device
        Of the new tensor; torch's defaults when None.

    Returns
    -------
    Tensor
        Shape (B, B - 1); no columns when there is one batch.

    Raises
    ------
    ValueError
        If there is no batch.
    """
    if n_batches < 1:
        raise ValueError(f"n_batches={n_batches}: a screen has at least one batch")
    earlier = torch.arange(1, n_batches, dtype=torch.float64)  # batches before the contrasted one
    matrix = torch.ones(n_batches, n_batches - 1, dtype=torch.float64).triu()
    matrix -= torch.diag_embed(earlier, offset=-1)[:, : n_batches - 1]
    matrix /= (earlier * (earlier + 1)).sqrt()
    return matrix.to(dtype=dtype or torch.get_default_dtype(), device=device)


def sum_to_zero(free: Tensor) -> Tensor:
    """η whose sum over the realised batches is zero, from its free contrasts.

    Parameters
    ----------
    free
        Contrasts; shape (..., B - 1, G).

    Returns
    -------
    Tensor
        Shape (..., B, G). Independent Normal(0, s) contrasts give every batch variance
        s² (1 - 1/B), the same for all.

    Notes
    -----
    Eq. 15. The zero mean is a property of the realised batches, not of a prior: subtracting the
    mean of B independent draws would double count one of them (design, 5.6).
    """
    n_batches = free.shape[-2] + 1
    return contrast_matrix(n_batches, dtype=free.dtype, device=free.device) @ free


def centre(eta: Tensor, weights: Tensor) -> Tensor:
    """η in the softmax gauge: expression-weighted mean over genes zero.

    A constant added to all genes of a batch is invisible to softmax, so it is fixed at zero. Keeps
    sums over batches at zero.

    Parameters
    ----------
    eta
        Shape (..., G).
    weights
        Mean expression of the genes, in any unit; shape (G,).
    """
    share = weights / weights.sum()
    return eta - (eta * share).sum(-1, keepdim=True)


def content_fractions(cell_batch: Tensor, n_batches: int, *features: Tensor) -> Tensor:
    """Tell what each batch contains, as deviation from the average batch.

    Parameters
    ----------
    cell_batch
        Batch of each cell; shape (N,).
    n_batches
        B.
    *features
        0 or 1 for each cell, such as whether it is a control, which media it met, which class its
        perturbation is of; shapes (N,) or (N, F_i).

    Returns
    -------
    Tensor
        Fraction of the batch's cells with each feature, minus the mean over batches; shape (B, F),
        F the features in all. Every column sums to zero, hence so does what depends on it.

    Notes
    -----
    Eq. 19: η depends on the set of perturbations and media in the batch.
    """
    fractions = batch_fractions(cell_batch, n_batches, *features)
    return fractions - fractions.mean(0)


def batch_fractions(cell_batch: Tensor, n_batches: int, *features: Tensor) -> Tensor:
    """Fraction of each batch's cells with each feature, (B, F); as :func:`content_fractions`."""
    columns = [f.unsqueeze(-1) if f.dim() == 1 else f for f in features]
    design = torch.cat(columns, -1)  # (N, F)
    if not design.is_floating_point():
        design = design.to(torch.get_default_dtype())
    cells = torch.bincount(cell_batch, minlength=n_batches).clamp(min=1)  # (B,)
    totals = design.new_zeros(n_batches, design.shape[-1]).index_add(0, cell_batch, design)
    return totals / cells.unsqueeze(-1)


def content_effect(content: Tensor, omega: Tensor) -> Tensor:
    """Part of η that follows from what the batches contain (eq. 19).

    Parameters
    ----------
    content
        From :func:`content_fractions`; shape (B, F).
    omega
        Ω, log-fold change per unit of fraction; shape (..., F, G).

    Returns
    -------
    Tensor
        Shape (..., B, G); sums to zero over batches.
    """
    return content @ omega
