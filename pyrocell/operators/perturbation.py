"""P, the genetic perturbation (eq. 1)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from pyrocell.errors import ConflictingTypesError
from pyrocell.operators.state import State

__all__ = ["on_target_shift", "perturb"]


def perturb(state: State, perturbation: Tensor, genes: Tensor | None = None) -> State:
    """Add perturbations to the genotype; nothing else changes at that instant.

    The product of a gene outlives its edit: the dose follows while waiting.

    Parameters
    ----------
    state
        Cells before the perturbation.
    perturbation
        0 or 1 for each of the K perturbations; shape (C, K), or (K,) for all conditions alike.
        All zeros is the non-targeting control, P(X, ·) = X.
    genes
        Number of the gene that each perturbation acts on; shape (K,). Two perturbations with the
        same number are two types (say knockout and CRISPRi) of one gene. None: all genes differ.

    Raises
    ------
    ConflictingTypesError
        If a condition ends up with two types on one gene.

    Notes
    -----
    Eq. 1 and the laws below it: idempotent, commutative for different genes, undefined for two
    types on one gene.
    """
    genotype = torch.maximum(state.genotype, perturbation.to(state.genotype))  # (C, K)
    if genes is not None:
        _refuse_two_types(genotype, genes)
    return replace(state, genotype=genotype)


def on_target_shift(genotype: Tensor, on_target: Tensor, target: Tensor, n_genes: int) -> Tensor:
    """Log-fold shift that perturbations cause directly on their own genes (Fig. 8B).

    Parameters
    ----------
    genotype
        0 or 1; shape (C, K).
    on_target
        Natural-log fold change of the own gene; shape (K,).
    target
        Column of the own gene among the measured genes, -1 where it is not measured; shape (K,).
    n_genes
        Number of measured genes, G.

    Returns
    -------
    Tensor
        Natural-log fold change; shape (C, G).
    """
    measured = target >= 0
    shift = (genotype * on_target.unsqueeze(-2))[..., measured]  # (C, K measured)
    empty = shift.new_zeros((*shift.shape[:-1], n_genes))
    return empty.index_add(-1, target[measured], shift)


def _refuse_two_types(genotype: Tensor, genes: Tensor) -> None:
    distinct, position = genes.unique(return_inverse=True)
    if len(distinct) == len(genes):
        return
    carried = genotype.new_zeros((*genotype.shape[:-1], len(distinct)))
    types = carried.index_add(-1, position, genotype)  # (C, distinct genes)
    if not bool((types > 1).any()):
        return
    condition, gene = (types > 1).nonzero()[0][-2:].tolist()
    both = (genotype[..., condition, :].reshape(-1, len(genes)).amax(0) > 0) & (position == gene)
    raise ConflictingTypesError(
        f"condition {condition} would carry perturbations {both.nonzero().flatten().tolist()}, "
        "which are two types on one gene; a gene can be knocked out, repressed or activated, "
        "not two of these at once: keep one type per gene in each condition"
    )
