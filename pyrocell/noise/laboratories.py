"""Batches nested in laboratories: contrasts of η on both levels, and η of a batch never seen.

Before its sum over the realised batches is set to zero, η of batch b in laboratory l is λ_l + w_b,
with λ ~ N(0, s_L²) and w ~ N(0, s²). All that data can tell of it are B − 1 contrasts. In the basis
built here they are independent: those within laboratories have the variance s², those between them
s² + κ s_L², κ the batches per laboratory that a contrast compares.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from pyrocell.noise.contrasts import contrast_matrix

__all__ = ["LaboratoryContrasts", "new_batch_moments"]


class LaboratoryContrasts(NamedTuple):
    """Contrasts of B batches in L laboratories.

    Attributes
    ----------
    contrast
        (B, B − 1) orthonormal; every column sums to zero over batches. Columns between laboratories
        come first and are constant in each; the others sum to zero in each.
    between
        (B − 1,) κ: batches per laboratory that a column compares; 0 within laboratories.
    mean
        (L, B) average over the batches of each laboratory.
    """

    contrast: Tensor
    between: Tensor
    mean: Tensor

    @classmethod
    def of(cls, laboratory: Tensor) -> LaboratoryContrasts:
        """Build the contrasts.

        Parameters
        ----------
        laboratory
            (B,) code of each batch's laboratory, every code in use.

        Notes
        -----
        The variance of contrasts H between laboratories is s² + s_L² H'ZZ'H, Z the (B, L) 0/1 table
        of who is in which. Laboratories with equally many batches are contrasted with one another
        first, κ being that number; what is left, one contrast fewer than there are such numbers,
        has distinct eigenvalues, so the basis is the same on every machine.
        """
        n_laboratories = int(laboratory.max()) + 1
        member = nn.functional.one_hot(laboratory, n_laboratories).double()  # (B, L)
        size = member.sum(0)
        sizes = size.unique()  # in order
        columns, between = [], []
        for n in sizes:
            same = member[:, size == n]
            columns.append(same @ contrast_matrix(same.shape[1], dtype=torch.float64) / n.sqrt())
            between.append(n.expand(same.shape[1] - 1))
        share = torch.stack([member[:, size == n].sum(1) for n in sizes], 1)  # (B, sizes) 0/1
        share = share / share.sum(0).sqrt()
        root = share.sum(0)  # of the batches with laboratories of each size
        basis = torch.cat([root[:, None], torch.eye(len(root)).to(root)[:, 1:]], 1)
        across = torch.linalg.qr(basis).Q[:, 1:]
        kappa, turn = torch.linalg.eigh(across.T @ (sizes[:, None] * across))
        turn = across @ turn
        columns.append(share @ (turn * turn[:1].sign()))
        between.append(kappa)
        for i in range(n_laboratories):
            rows = member[:, i].nonzero()[:, 0]
            inside = member.new_zeros(len(member), len(rows) - 1)
            inside[rows] = contrast_matrix(len(rows), dtype=torch.float64)
            columns.append(inside)
            between.append(torch.zeros(len(rows) - 1))
        as_default = lambda x: x.to(torch.get_default_dtype())  # noqa: E731
        return cls(
            as_default(torch.cat(columns, 1)),
            as_default(torch.cat([b.double() for b in between])),
            as_default((member / size).T),
        )


def new_batch_moments(
    nesting: LaboratoryContrasts,
    free: Tensor,
    scale: Tensor,
    laboratory_scale: Tensor,
    laboratory: Tensor,
) -> tuple[Tensor, Tensor]:
    """Mean and covariance of η of batches that were not measured, given those that were.

    Parameters
    ----------
    nesting
        The realised batches.
    free
        (B − 1, G) their contrasts.
    scale, laboratory_scale
        (G,) s and s_L; the latter zeros where there is one level.
    laboratory
        (M,) code of each new batch's laboratory; L and above for laboratories that are new.

    Returns
    -------
    (M, G) mean and (G, M, M) covariance.

    Notes
    -----
    η is stated against the mean of the realised batches, which is not zero in the population they
    come from but has an error of its own. It is independent of contrasts within laboratories, so
    with one level η of a new batch is N(0, s² (1 + 1/B)). With two, n_l batches in laboratory l,

        Cov_ij = s² (δ_ij + 1/B) + s_L² ([l_i = l_j] + Σ n²/B² − n_{l_i}/B − n_{l_j}/B)
                 − Σ_k q_ik q_jk s_L⁴ / (s² + κ_k s_L²),

    q_i = H'(e_{l_i} − n/B), e_l marking the batches of l; n and e are zero for a new laboratory.
    The mean is Σ_k q_ik s_L² f_k / (s² + κ_k s_L²): a known laboratory's offset, shrunken.
    """
    inside = (nesting.mean > 0).to(free)  # (L, B)
    n_laboratories, n_batches = inside.shape
    share = inside.sum(1) / n_batches
    known = nn.functional.one_hot(laboratory, int(laboratory.max()) + 1 + n_laboratories)
    known = known[:, :n_laboratories].to(free)  # (M, L)
    q = (known - share) @ inside @ nesting.contrast  # (M, B − 1)
    mine = known @ share  # (M,) n_l / B
    same = (laboratory[:, None] == laboratory).to(free)
    same = same + share.square().sum() - mine[:, None] - mine
    common, own = laboratory_scale.square(), scale.square()
    weight = common / (own + nesting.between[:, None] * common)  # (B − 1, G)
    told = torch.einsum("ik,kg,jk->gij", q, weight, q)
    new = torch.eye(len(laboratory)).to(free) + 1 / n_batches
    covariance = own[:, None, None] * new + common[:, None, None] * (same - told)
    return q @ (weight * free), covariance
