"""Draws of a simulated screen's layout: conditions, their cells, the batches and η."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from pyrocell.noise.contrasts import content_effect, content_fractions, sum_to_zero
from pyrocell.simulate.biology import Genes
from pyrocell.simulate.settings import ScreenSettings

__all__ = ["Layout", "draw_eta", "draw_layout"]

EVENNESS = 4.0  # Dirichlet concentration of unbalanced batches
MISSING_FRACTION = 0.3  # of (perturbation, batch) pairs, in unbalanced screens


@dataclass(frozen=True, eq=False)
class Layout:
    """Conditions and where their cells are.

    Parameters
    ----------
    perturbation, medium
        Of each condition, -1 for control and baseline; shape (C,).
    duration
        Time of each condition; shape (C,).
    cells
        Number of cells by condition and batch; shape (C, B).
    """

    perturbation: np.ndarray
    medium: np.ndarray
    duration: np.ndarray
    cells: np.ndarray

    @cached_property
    def condition(self) -> np.ndarray:
        """Condition of each cell; shape (N,)."""
        return np.repeat(np.indices(self.cells.shape)[0].ravel(), self.cells.ravel())

    @cached_property
    def batch(self) -> np.ndarray:
        """Batch of each cell; shape (N,)."""
        return np.repeat(np.indices(self.cells.shape)[1].ravel(), self.cells.ravel())


def one_hot(index: np.ndarray, width: int) -> np.ndarray:
    """Rows of the identity, zeros for index -1; shape (len(index), width)."""
    return (index[:, None] == np.arange(width)).astype(float)


def draw_layout(
    rng: np.random.Generator, settings: ScreenSettings, cells: np.ndarray | None = None
) -> Layout:
    """Cross perturbations, media and times, and spread their cells over batches, if not given."""
    times = np.ones(1) if settings.times is None else np.asarray(settings.times, dtype=float)
    medium, perturbation, time = (
        axis.ravel()
        for axis in np.meshgrid(
            np.arange(-1, settings.media), np.arange(-1, settings.n_perturbations), times,
            indexing="ij",
        )
    )  # fmt: skip
    if cells is not None:
        shape = (settings.media + 1, settings.n_perturbations + 1, len(times), settings.n_batches)
        given = np.asarray(cells)
        if given.shape != shape or given.min() < 0 or not np.issubdtype(given.dtype, np.integer):
            raise ValueError(f"cells must be whole numbers ≥ 0 of shape {shape}")
        return Layout(perturbation, medium, time, given.reshape(-1, settings.n_batches))
    n_cells = np.where(perturbation < 0, settings.controls, settings.n_cells_per_condition)
    spread = _evenly if settings.balanced else _unevenly
    return Layout(perturbation, medium, time, spread(rng, settings, perturbation, n_cells))


def draw_eta(
    rng: np.random.Generator, settings: ScreenSettings, genes: Genes, layout: Layout
) -> tuple[np.ndarray, np.ndarray]:
    """Draw η, free part and the part that follows from what batches contain (eqs. 15, 19).

    Returns
    -------
    tuple
        η, zero in sum over batches and in the softmax gauge, shape (B, G); and Ω of the fractions
        of controls and of each medium, shape (1 + J, G).
    """
    n_batches, n_genes = settings.n_batches, settings.n_genes
    free = settings.batch_sd * rng.standard_normal((n_batches - 1, n_genes))
    omega = settings.content_effect_sd * rng.standard_normal((1 + settings.media, n_genes))
    features = np.c_[layout.perturbation < 0, one_hot(layout.medium, settings.media)]
    content = content_fractions(
        torch.from_numpy(layout.batch), n_batches, torch.from_numpy(features[layout.condition])
    )
    of_content = content_effect(content, torch.from_numpy(omega))
    eta = (sum_to_zero(torch.from_numpy(free)) + of_content).numpy()
    if settings.laboratories is not None:
        offset = rng.standard_normal((len(settings.laboratories), n_genes))
        offset = settings.laboratory_sd * offset.repeat(settings.laboratories, 0)  # (B, G)
        eta = eta + offset - offset.mean(0)
    return genes.gauge(eta), omega


def _evenly(
    rng: np.random.Generator, settings: ScreenSettings, perturbation: np.ndarray, n: np.ndarray
) -> np.ndarray:
    """Equal numbers in every batch, to within one cell."""
    b = settings.n_batches
    order = rng.random((len(n), b)).argsort(1)  # which batches get the remainder
    return n[:, None] // b + (order < (n % b)[:, None])


def _unevenly(
    rng: np.random.Generator, settings: ScreenSettings, perturbation: np.ndarray, n: np.ndarray
) -> np.ndarray:
    """Batches differ in size; perturbations miss some in all their conditions, controls none."""
    b, k = settings.n_batches, settings.n_perturbations
    size = rng.dirichlet(np.full(b, EVENNESS))
    present = rng.random((k, b)) >= MISSING_FRACTION
    present[np.arange(k), rng.integers(b, size=k)] = True
    weight = size * rng.dirichlet(np.full(b, EVENNESS), k) * present
    share = weight / weight.sum(1, keepdims=True)
    return np.stack(
        [
            1 + rng.multinomial(count - b, size) if p < 0 else rng.multinomial(count, share[p])
            for p, count in zip(perturbation, n, strict=True)
        ]
    )
