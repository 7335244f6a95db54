"""The hidden state of a cell, X = (z, y, genotype, dose, exposure, gain)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["State"]


@dataclass(frozen=True, eq=False)
class State:
    """The hidden state X on which P, M and W act, one row per condition.

    The response is shared by the cells of a condition, so it is kept per condition and
    never per cell; the resting state is what differs between cells. Leading batch
    dimensions (posterior draws) are allowed before every shape below.

    Parameters
    ----------
    y
        Response, displacement from rest along the response axes; shape (C, D). Zero at rest.
    genotype
        Which of the K perturbations the cells carry, 0 or 1; shape (C, K). A set, therefore
        P is idempotent and perturbations of different genes commute.
    dose
        How far each perturbation has taken hold, from 0 (its product is all there still) to 1;
        shape (C, K).
    exposure
        Which of the J media the cells have met, 0 or 1; shape (C, J).
    gain
        Current gain of the cascade that each medium started; shape (C, J). Zero until met.
    z
        Resting state of the cells; shape (C, n, d). None where no cell is spoken of.

    Notes
    -----
    X of section 2.2 of the paper. The operators return a new state and never write into this one.
    """

    y: Tensor
    genotype: Tensor
    dose: Tensor
    exposure: Tensor
    gain: Tensor
    z: Tensor | None = None

    @classmethod
    def rest(
        cls,
        n_conditions: int,
        n_perturbations: int,
        n_media: int,
        n_axes: int,
        z: Tensor | None = None,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> State:
        """Unperturbed cells at rest in baseline medium, the paper's X.

        Parameters
        ----------
        n_conditions, n_perturbations, n_media, n_axes
            C, K, J and D.
        z
            Resting state of the cells; shape (C, n, d).
        dtype, device
            Of the new tensors; torch's defaults when None.
        """

        def zeros(width: int) -> Tensor:
            return torch.zeros(n_conditions, width, dtype=dtype, device=device)

        return cls(
            y=zeros(n_axes),
            genotype=zeros(n_perturbations),
            dose=zeros(n_perturbations),
            exposure=zeros(n_media),
            gain=zeros(n_media),
            z=z,
        )
