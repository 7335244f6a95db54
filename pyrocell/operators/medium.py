"""M, the change of medium (eq. 2)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from pyrocell.operators.state import State

__all__ = ["expose", "gain_limit"]


def gain_limit(genotype: Tensor, gain: Tensor) -> Tensor:
    """Gain of each medium's cascade that a genotype allows, the product over its perturbations.

    Parameters
    ----------
    genotype
        0 or 1; shape (C, K).
    gain
        w, gain of medium j under perturbation k; shape (K, J). 1: the perturbation does not touch
        the response to the medium; 0: it blocks it.

    Returns
    -------
    Tensor
        Shape (C, J); 1 for unperturbed cells.
    """
    most = int(genotype.sum(-1).max()) if genotype.numel() and gain.shape[-1] else 0
    if most <= 1:  # one product per condition: a matrix product does, whatever K is
        return genotype @ gain + (1 - genotype.sum(-1, keepdim=True))
    carried = genotype.topk(most, dim=-1)  # (C, most): perturbations of each condition
    factors = gain[..., carried.indices, :]  # (C, most, J)
    return torch.where(carried.values.unsqueeze(-1) > 0, factors, 1.0).prod(-2)


def expose(state: State, media: Tensor, limit: Tensor) -> State:
    """Add media; the cascade of a newly met medium starts at the gain the genotype allows now.

    Parameters
    ----------
    state
        Cells before the change.
    media
        0 or 1 for each of the J media added; shape (C, J), or (J,) for all conditions alike.
        All zeros is no change, M(X, ·) = X. A medium met before is left as it is.
    limit
        Gain the present genotype allows, from :func:`gain_limit`; shape (C, J).

    Notes
    -----
    Eq. 2. The gain is read from the genotype at this instant, so M after P differs from P after M:
    a receptor lost before the ligand stops the cascade, lost after it does not (section 2.2).
    """
    media = media.to(state.exposure)
    newly_met = media * (1 - state.exposure)  # (C, J)
    return replace(
        state,
        exposure=torch.maximum(state.exposure, media),
        gain=state.gain + newly_met * limit,
    )
