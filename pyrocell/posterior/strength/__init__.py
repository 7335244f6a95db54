"""Strength of a perturbation in each guide and cell: e_cell = s u, and who did not respond."""
