"""The next experiment: what a layout of perturbations, media, times and batches can tell.

`score` says what error to expect of a layout, `aliasing` what it cannot tell from batch noise,
`recommend` which layout to take, `cost_curve` what more lanes or controls would buy,
`error_analysis` what batch noise does to a fitted model's map (App. B.2), `noise_sensitivity` what
would be concluded of a fit were batch noise wider or narrower, `view_value` what a view of more
cells would buy.
"""

from __future__ import annotations

from pyrocell.design.curves import cost_curve
from pyrocell.design.error_analysis import error_analysis
from pyrocell.design.export import lane_map, plate_map, read_lane_map, whole
from pyrocell.design.inflation import aliasing
from pyrocell.design.layouts import Layout
from pyrocell.design.next_perturbations import next_perturbations
from pyrocell.design.noise import Noise
from pyrocell.design.plan import Plan
from pyrocell.design.planner import Recommendation, controls_in_one_lane, random_layout, recommend
from pyrocell.design.questions import KINDS, Arm
from pyrocell.design.scoring import Score, compare, score
from pyrocell.design.sensitivity import noise_sensitivity
from pyrocell.design.view_value import view_value

__all__ = [
    "KINDS",
    "Arm",
    "Layout",
    "Noise",
    "Plan",
    "Recommendation",
    "Score",
    "aliasing",
    "compare",
    "controls_in_one_lane",
    "cost_curve",
    "error_analysis",
    "lane_map",
    "next_perturbations",
    "noise_sensitivity",
    "plate_map",
    "random_layout",
    "read_lane_map",
    "recommend",
    "score",
    "view_value",
    "whole",
]
