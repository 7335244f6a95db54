"""Screens in wells: effects of plate edges, on levels of wells."""

from pyrocell.arrayed.edge_effects import (
    WellLevels,
    edge_effects,
    fitted_levels,
    locate,
    well_levels,
)
from pyrocell.arrayed.plates import PLATES, parse_wells, position_features, well_names

__all__ = [
    "PLATES",
    "WellLevels",
    "edge_effects",
    "fitted_levels",
    "locate",
    "parse_wells",
    "position_features",
    "well_levels",
    "well_names",
]
