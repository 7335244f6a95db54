"""Is the posterior right: calibration by simulation, NUTS. Are clusters of cells: `subtypes`."""
