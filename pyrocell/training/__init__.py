"""Stochastic variational inference: objective, optimiser, loop, checkpoints, processes."""

from pyrocell.training.fit import (
    ElboPlan,
    TrainingConfig,
    held_out_elbo,
    negative_elbo,
    train,
)

__all__ = ["ElboPlan", "TrainingConfig", "held_out_elbo", "negative_elbo", "train"]
