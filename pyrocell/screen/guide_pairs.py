"""Pairs of a perturbation and a guide: what strength is stated for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pyrocell.screen.screen import Screen

__all__ = ["GuidePairs", "guide_pairs", "numbered_as"]


@dataclass(frozen=True)
class GuidePairs:
    """Guides within the sets of perturbations that their cells carry.

    Attributes
    ----------
    label
        (pairs,) number of the set of perturbations, in `labels`.
    guide
        (pairs,) number of the guide in `screen.guides`, -1 for cells whose guide is not known.
    of_cell
        (N,) pair of every cell, -1 for controls.
    labels
        Sets of perturbations as the screen names them.
    n_cells
        (pairs,) cells of each.
    """

    label: np.ndarray
    guide: np.ndarray
    of_cell: np.ndarray
    labels: tuple[str, ...]
    n_cells: np.ndarray


def guide_pairs(screen: Screen) -> GuidePairs | None:
    """The pairs that a screen's cells make; None without guides or perturbations."""
    if screen.cell_guide is None or not len(screen.cell_condition) or not screen.perturbations:
        return None
    names = screen.conditions["perturbation"].astype(str).to_numpy()
    labels, number = np.unique(names, return_inverse=True)
    label, guide = number[screen.cell_condition], screen.cell_guide
    perturbed = ~screen.is_control[screen.cell_condition]
    if not (perturbed & (guide >= 0)).any():
        return None
    codes = label * (len(screen.guides) + 1) + guide + 1
    met, pair, n_cells = np.unique(codes[perturbed], return_inverse=True, return_counts=True)
    of_cell = np.full(len(label), -1)
    of_cell[perturbed] = pair
    kept, place = np.unique(met // (len(screen.guides) + 1), return_inverse=True)
    return GuidePairs(
        label=place,
        guide=met % (len(screen.guides) + 1) - 1,
        of_cell=of_cell,
        labels=tuple(labels[kept].tolist()),
        n_cells=n_cells,
    )


def numbered_as(screen: Screen, other: Screen) -> np.ndarray | None:
    """(n,) guides of the cells of another screen as this one numbers them, -1 where not known."""
    if other.cell_guide is None:
        return None
    place = {name: i for i, name in enumerate(screen.guides)}
    number = np.array([*(place.get(name, -1) for name in other.guides), -1])
    return number[other.cell_guide]
