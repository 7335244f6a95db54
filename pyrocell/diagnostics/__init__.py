"""Whether the posterior is right: calibration by simulation, NUTS. And clusters of cells."""
