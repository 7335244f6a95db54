"""Directions of batch noise and effects that no cell of a screen's layout sees."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from pyrocell.screen.aliasing import null_space
from pyrocell.screen.screen import Screen

__all__ = ["unidentified_directions"]

_TOUCHED = 1e-6  # a direction moves what has an entry above this


def unidentified_directions(screen: Screen) -> Tensor:
    """Directions of (batches, media, perturbations) that no cell sees, (Q, B + J + K).

    Those that move η; a response that is the same at all times is what a direction changes.
    """
    n_batches = len(screen.batches)
    n = n_batches + len(screen.media) + len(screen.perturbations)
    table = screen.aliased
    main = table["contrast"].isin(["perturbation", "media"])
    if n_batches == 1 or table["estimable"][main].all():
        return torch.zeros(0, n)
    condition, batch = np.nonzero(screen.layout.to_numpy())
    vectors = _null_directions(
        batch, n_batches, screen.exposure[condition], screen.membership[condition]
    )
    inside = vectors[:n_batches] - vectors[:n_batches].mean(0)
    _, size, mixed = np.linalg.svd(inside, full_matrices=False)
    vectors = vectors @ mixed[size > _TOUCHED].T
    return torch.as_tensor(vectors.T, dtype=torch.float32)


def _null_directions(
    batch: np.ndarray, n_batches: int, exposure: np.ndarray, genotype: sp.csr_array
) -> np.ndarray:
    """Null space of batches, media and perturbations, no gains and no times, (B + J + K, d).

    Parameters
    ----------
    batch, exposure, genotype
        Of every pair of condition and batch that has cells: code (pairs,), 0/1 (pairs, J) and
        (pairs, K).
    """
    rows = np.arange(len(batch))
    batches = sp.csc_array((np.ones(len(rows)), (rows, batch)), shape=(len(rows), n_batches))
    every = batches, sp.csc_array(exposure), genotype.tocsc()
    blocks = [b for b in every if b.shape[1]]  # pyright: ignore[reportOptionalSubscript] scipy
    design = sp.csc_array(sp.hstack(blocks, format="csc").astype(float))
    basis, _ = null_space(design)
    norms = np.sqrt(design.power(2).sum(axis=0))
    basis = np.where(np.abs(basis) > _TOUCHED, basis, 0.0)
    return basis / np.where(norms > 0, norms, 1.0)[:, None]
