"""Differentiating and in vivo systems (App. C.1): where cells are on the way, and who stays behind.

`assignment`: pseudotime of control cells, carried over to perturbed ones. `populations`: how the
cells of a perturbation spread along the trajectory, and how many remain in early states (eq. 24).
"""

from __future__ import annotations

from pyrocell.pseudotime.assignment import assign_pseudotime, pseudotime_stages
from pyrocell.pseudotime.populations import retention, trajectory_distribution, trajectory_quantiles

__all__ = [
    "assign_pseudotime",
    "pseudotime_stages",
    "retention",
    "trajectory_distribution",
    "trajectory_quantiles",
]
