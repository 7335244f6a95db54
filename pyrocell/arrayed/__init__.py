"""Screens in wells: effects of plate edges, on levels of wells."""

from pyrocell.arrayed.edge_effects import (
    WellLevels,
    edge_effects,
    fitted_levels,
    locate,
    well_levels,
)

__all__ = ["WellLevels", "edge_effects", "fitted_levels", "locate", "well_levels"]
