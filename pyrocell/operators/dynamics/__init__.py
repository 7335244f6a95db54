"""Dynamics of W: how a response unfolds, and how resting states move.

`register` makes a dynamics known by the name that `PyroCell(dynamics=)` takes. `node` and `flow`
integrate the neural ODE of responses and the field of states.
"""

from pyrocell.operators.dynamics.base import DYNAMICS, Dynamics, register

__all__ = ["DYNAMICS", "Dynamics", "register"]
