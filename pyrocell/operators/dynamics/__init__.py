"""Dynamics of W that are integrated: a neural ODE of responses, flows of states."""
