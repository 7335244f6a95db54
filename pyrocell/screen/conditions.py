"""Conditions of a screen as arrays and as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
from torch import Tensor

__all__ = ["Conditions", "condition_arrays"]


class Conditions(NamedTuple):
    """Conditions as tensors; rows may be any requested (perturbation set, media, times)."""

    genotype: Tensor  # (C, K) 0/1
    exposure: Tensor  # (C, J) 0/1
    duration: Tensor  # (C,)
    time_index: Tensor  # (C,) node of the residual's walk
    interaction: Tensor  # (C,) row of P.interaction, -1 if none
    perturbed_at: Tensor  # (C,) when P was done, on the clock of `duration`
    exposed_at: Tensor  # (C,) when M was done

    def select(self, rows: Tensor) -> Conditions:
        """Return the given rows."""
        return Conditions(*(field[rows] for field in self))


def condition_arrays(
    genotypes: Sequence[Sequence[int]],
    media: np.ndarray,
    time: np.ndarray,
    n_perturbations: int,
    n_media: int,
    times: Sequence[float],
) -> dict[str, Any]:
    """Return membership, exposure, duration and time index of conditions.

    Parameters
    ----------
    genotypes
        Per condition, the sorted indices of its perturbations.
    media
        (C,) index of the medium, -1 for the baseline.
    time
        (C,) times, NaN where there are none.
    times
        (T,) times of the screen.
    """
    n = len(genotypes)
    indptr = np.concatenate([[0], np.cumsum([len(g) for g in genotypes])])
    indices = np.array([k for g in genotypes for k in g], dtype=np.int64)
    ones = np.ones(len(indices), dtype=np.float32)
    exposure = np.zeros((n, n_media), dtype=np.float32)
    exposed = np.flatnonzero(media >= 0)
    exposure[exposed, media[exposed]] = 1.0
    position = {moment: t for t, moment in enumerate(times)}
    index = [position.get(float(moment), -1) if len(times) else 0 for moment in time]
    return {
        "membership": sp.csr_array((ones, indices, indptr), shape=(n, n_perturbations)),
        "exposure": exposure,
        "duration": np.where(np.isnan(time), 1.0, time).astype(np.float32),
        "time_index": np.array(index, dtype=np.int64),
    }
