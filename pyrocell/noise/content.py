"""What the guide reads off the layout: who was measured with whom."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from pyrocell.screen.screen import Screen

__all__ = [
    "average_content",
    "batch_content",
    "condition_cells",
    "content_names",
    "driver_cells",
    "layout_mix",
]


def condition_cells(screen: Screen) -> np.ndarray:
    """Cells of each condition by batch, (C, B)."""
    return screen.layout.to_numpy(np.float32)


def layout_mix(contrast: Tensor, counts: np.ndarray) -> Tensor:
    """Lower-triangular correlation of η's contrasts for these batch sizes, (B − 1, B − 1).

    The data's precision of the contrasts is C' diag(n_b) C; balanced batches give the identity.
    """
    weights = torch.as_tensor(counts / counts.mean(), dtype=contrast.dtype).clamp_min(1e-3)
    precision = contrast.T @ (weights[:, None] * contrast)
    return torch.linalg.cholesky(torch.linalg.inv(precision))


def batch_content(screen: Screen) -> Tensor:
    """What each batch contains (eq. 19), as deviation from the average batch, (B, F).

    Fractions of controls, of each medium and of each class of perturbation; what does not differ
    between batches is left out.
    """
    _, fractions = _content(screen)
    return fractions - fractions.mean(0)


def content_names(screen: Screen) -> list[str]:
    """Names of the columns of `batch_content`, (F,): control's label, a medium, a type."""
    names, _ = _content(screen)
    return names


def average_content(screen: Screen) -> Tensor:
    """Fractions of the average batch, by column of `batch_content`, (F,)."""
    _, fractions = _content(screen)
    return fractions.mean(0)


def _content(screen: Screen) -> tuple[list[str], Tensor]:
    control = torch.as_tensor(screen.is_control).float()[:, None]
    exposure = torch.as_tensor(screen.exposure)
    classes = sorted(set(screen.perturbation_types))
    kinds = screen.perturbation_types
    member = np.array([[t == c for c in classes] for t in kinds], np.float32)
    member = member.reshape(len(kinds), len(classes))  # also where nothing was perturbed
    of_class = torch.as_tensor((screen.membership @ member > 0).astype(np.float32))
    names = [screen.control, *screen.media, *classes[1:]]
    features = torch.cat([control, exposure, of_class[:, 1:]], 1)  # (C, F)
    # from the table, not the cells: these may be others than the model was fitted to
    cells = torch.as_tensor(screen.layout.to_numpy("float64"))  # (C, B)
    totals = cells.T @ features.to(cells)
    fractions = (totals / cells.sum(0).clamp_min(1)[:, None]).to(features)
    differs = (fractions - fractions.mean(0)).abs().amax(0) > 1e-3
    return [n for n, there in zip(names, differs, strict=True) if there], fractions[:, differs]


def driver_cells(screen: Screen) -> np.ndarray:
    """Cells of each driver (perturbations, then media) by time and batch, (K + J, T, B)."""
    n_times, n_batches = max(1, len(screen.times)), len(screen.batches)
    table = condition_cells(screen)
    drivers = sp.hstack([screen.membership, screen.exposure], format="csr")  # (C, K + J)
    drivers = sp.csr_array(drivers)
    n_drivers = len(screen.perturbations) + len(screen.media)
    out = np.zeros((n_drivers, n_times, n_batches))
    for t in range(n_times):
        rows = screen.time_index == t
        out[:, t] = drivers[np.flatnonzero(rows)].T @ table[rows]
    return out
