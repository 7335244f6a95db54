"""Pseudobulk dynamics of a screen with many perturbations and a learned vector field."""

from pyrocell.proof_of_principle.pseudobulk_ode import PseudobulkODE
from pyrocell.proof_of_principle.vector_field import VectorField, flow, initial_field, velocity

__all__ = ["PseudobulkODE", "VectorField", "flow", "initial_field", "velocity"]
