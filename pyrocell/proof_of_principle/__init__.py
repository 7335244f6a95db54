"""Pseudobulk dynamics of a screen with many perturbations and a learned vector field."""
