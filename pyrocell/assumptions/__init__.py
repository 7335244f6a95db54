"""What is assumed of responses, what a layout can test of it, and what the counts say.

Equations 5 to 9, 13 and 14, appendices A and E of the paper.
"""

from pyrocell.assumptions.spec import ASSUMPTIONS, Assume
from pyrocell.assumptions.steady_state import steady_state_screen
from pyrocell.assumptions.table import assumption_table

__all__ = ["ASSUMPTIONS", "Assume", "assumption_table", "steady_state_screen"]
