"""Figures of screens and answers; public as `pyrocell.pl`.

A function of one panel takes `ax` and returns it; one of several takes `axes` and returns an array
of them. Without, it makes a figure that fits a page (`ax.figure`). Nothing is shown or saved.
"""

from __future__ import annotations

from pyrocell.plotting.assumptions import assumption_map, prior_posterior, response_curves
from pyrocell.plotting.calibration import ecdf_difference, rank_histogram, reliability
from pyrocell.plotting.checks import history, predictive_check
from pyrocell.plotting.comparisons import similarity, time_course, volcano
from pyrocell.plotting.design import cost_curve, lane_map, layout_graph
from pyrocell.plotting.effects import batch_effects, effect_intervals, effects, gains
from pyrocell.plotting.errors import error_analysis, noise_sensitivity
from pyrocell.plotting.evaluations import evaluation
from pyrocell.plotting.explanations import explain
from pyrocell.plotting.guides import guides
from pyrocell.plotting.learning_curves import learning_curves
from pyrocell.plotting.networks import network
from pyrocell.plotting.plates import edge_effects, plate_map
from pyrocell.plotting.predictions import prediction
from pyrocell.plotting.pseudotime import retention, trajectory
from pyrocell.plotting.screens import latent, layout
from pyrocell.plotting.shifts import temporal_shift
from pyrocell.plotting.signature import signature
from pyrocell.plotting.steady import steady_screen

__all__ = [
    "assumption_map",
    "batch_effects",
    "cost_curve",
    "ecdf_difference",
    "edge_effects",
    "effect_intervals",
    "effects",
    "error_analysis",
    "evaluation",
    "explain",
    "gains",
    "guides",
    "history",
    "lane_map",
    "latent",
    "layout",
    "layout_graph",
    "learning_curves",
    "network",
    "noise_sensitivity",
    "plate_map",
    "prediction",
    "predictive_check",
    "prior_posterior",
    "rank_histogram",
    "reliability",
    "response_curves",
    "retention",
    "signature",
    "similarity",
    "steady_screen",
    "temporal_shift",
    "time_course",
    "trajectory",
    "volcano",
]
