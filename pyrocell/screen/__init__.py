"""Screens as labels and conditions: what was done to which cells, and what that can tell.

Figure 6 and equation 16 of the paper. No model and no AnnData: columns of labels go in.
"""

from pyrocell.screen.screen import Screen

__all__ = ["Screen"]
