"""Perturbations that are there at time 0, when nothing can have happened yet."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from scipy import stats

from pyrocell._core.messages import join_names
from pyrocell.data.statistics import CountStatistics
from pyrocell.errors import warn
from pyrocell.screen.screen import Screen

__all__ = ["differing_at_time_zero", "warn_of_time_zero"]

_FEWEST = 3  # cells of a group in a batch
_LEVEL = 1e-3  # of the whole screen
_COUNTS = 20  # of a gene in both groups


def warn_of_time_zero(sums: CountStatistics, screen: Screen) -> None:
    """Warn where perturbed cells differ from controls in the moment in which they are perturbed.

    Warns
    -----
    ScreenWarning
        Naming them: effects are zero there by the model, W(X, 0) = X.
    """
    found = differing_at_time_zero(sums, screen)
    if found:
        named = join_names(f"{name} {n}" for name, n in found.items())
        warn(
            "perturbed cells differ from controls already at time 0 (perturbations with the number "
            f"of genes: {named}), when by the model nothing has happened yet: effects there are "
            "taken to be zero, and the difference for noise; if "
            "cells were perturbed earlier, count times from then; if the perturbation was always "
            "there (knock-out animals, stable lines), time is no waiting time: register it as the "
            "medium, media_key= with baseline_media= the first, and leave time_key= out"
        )


def differing_at_time_zero(sums: CountStatistics, screen: Screen) -> dict[str, int]:
    """Number of genes in which each perturbation's cells at time 0 differ from controls.

    Student's t of log expression within batches, corrected for all genes and perturbations
    (Bonferroni, .001), in the cells that `sums` keeps a sample of.

    Parameters
    ----------
    sums
        With counts of some cells.
    screen
        The screen, with its cells.

    Returns
    -------
    Perturbations that differ, with the number of genes.
    """
    unbegun = ~screen.is_control & (screen.duration <= screen.perturbed_at)
    if not screen.times or not unbegun.any():
        return {}
    condition, batch = (x[sums.rows] for x in (screen.cell_condition, screen.cell_batch))
    depth = np.exp(sums.log_size[sums.rows].astype(float))
    y = sp.csr_array(sp.diags_array(np.median(depth) / depth) @ sums.sample)
    y = y.log1p()  # pyright: ignore[reportAttributeAccessIssue] made by scipy as it loads
    n = np.zeros((len(screen.conditions), len(screen.batches)), np.int64)
    np.add.at(n, (condition, batch), 1)
    place = screen.conditions[["media", "time"]]
    found, tested = {}, int(unbegun.sum()) * y.shape[1]
    for c in np.flatnonzero(unbegun):
        alike = screen.is_control & (place == place.iloc[c]).all(axis=1).to_numpy()
        met = np.flatnonzero((n[c] >= _FEWEST) & (n[alike].sum(0) >= _FEWEST))
        top = bottom = total = 0.0
        for b in met:
            ours, theirs = (
                y[np.isin(condition, which) & (batch == b)]
                for which in ([c], np.flatnonzero(alike))
            )
            weight = 1 / (1 / ours.shape[0] + 1 / theirs.shape[0])
            top = top + weight * (ours.mean(0) - theirs.mean(0))
            bottom = bottom + weight * _pooled_variance(ours, theirs)
            total = total + ours.sum(0) + theirs.sum(0)
        if len(met):
            spread = np.where(total >= _COUNTS, bottom, np.inf)
            t = top / np.sqrt(np.maximum(spread, 1e-12))
            p = 2 * stats.t.sf(np.abs(t), max(1, int(n[c][met].sum()) - len(met)))
            n_genes = int((p * tested < _LEVEL).sum())
            if n_genes:
                name = str(screen.conditions["perturbation"].iloc[c])
                found[name] = max(n_genes, found.get(name, 0))
    return found


def _pooled_variance(ours: sp.csr_array, theirs: sp.csr_array) -> np.ndarray:
    """(G,) variance within two groups of cells."""
    total, n_cells = 0.0, 0
    for part in (ours, theirs):
        mean, n = part.mean(0), part.shape[0]  # pyright: ignore[reportOptionalSubscript] scipy
        total = total + (part.multiply(part).sum(0) - n * mean**2)
        n_cells += n
    return total / (n_cells - 2)
