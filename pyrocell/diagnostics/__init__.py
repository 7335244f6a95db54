"""Is the posterior right: simulation-based calibration, and NUTS on the same model."""
