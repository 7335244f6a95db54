"""Is the posterior right: calibration by simulation, and NUTS. Are clusters of cells: `subtypes`."""
