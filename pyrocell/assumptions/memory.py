"""What is left of a response once its pathway is lost: evidence from both orders of steps.

A perturbation made before the medium leaves a share w of the controls' response, the same one made
after it a share w' = w + κ (1 - w): κ = 1 where nothing is lost of a response that has begun, 0
where nothing tells the orders apart. A perturbation that blocks nothing (w near 1) tells nothing of
κ, which then cancels. Each perturbation has its own κ, uniform on either side of one half.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from pyrocell.assumptions.testability import Comparison
from pyrocell.contrasts.evidence import log_mean_exp

__all__ = ["KEPT", "both_orders", "kept_evidence"]

KEPT = np.linspace(0.0125, 0.9875, 40)  # κ, half of the grid on either side of one half


def both_orders(row: Comparison) -> tuple[list[Comparison], list[Comparison]]:
    """Comparisons of every perturbation of a row of `memory`: usual order, reverse order."""
    each = {
        p: tuple(replace(row, perturbation=p, weights=weights, orders={}) for weights in orders)
        for p, orders in row.orders.items()
    }
    return [usual for _, usual in each.values()], [reverse for reverse, _ in each.values()]


def kept_evidence(
    usual: np.ndarray, reverse: np.ndarray, slopes: np.ndarray, density: np.ndarray
) -> np.ndarray:
    """Log evidence of every share kept, (perturbations, κ).

    Parameters
    ----------
    usual, reverse
        (P, S) log evidence of slopes on the controls' response, perturbed before the medium and
        after it.
    slopes, density
        (S,) grid of slopes in increasing order, and the prior's density of w on it.
    """
    left = slopes + KEPT[:, None] * (1 - slopes)  # (κ, S): w'
    weights = density / density.sum()
    out = []
    for before, after in zip(usual, reverse, strict=True):
        log = before - before.max() + np.interp(left, slopes, after)  # (κ, S)
        out.append(log_mean_exp(log.T, weights))
    return np.stack(out)
