"""The parameters at which held-out cells were explained best, for when training goes past."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import torch
from torch import Tensor

__all__ = ["KEPT", "BestEpoch", "mark"]

KEPT = "kept"  # column of a history: 1 at the epoch whose parameters the model has
_RUNNING = 3  # checks whose mean is compared: one alone is noisy
_FEWEST = 8  # checks before anything is given back
_SURE = 3.0  # standard errors by which the end must be worse
_SMALL = 0.02  # of the whole rise: a smaller fall is no reason to go back


class BestEpoch(pl.Callback):
    """Keeps the parameters of the check at which the running mean of held-out evidence was highest.

    Parameters
    ----------
    first_step
        Checks before it are left out: the weight of the prior is still being raised.
    """

    def __init__(self, first_step: float):
        self.first_step = first_step
        self.epochs: list[int] = []
        self.values: list[float] = []
        self.best, self.kept = -1, {}

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look at one check."""
        if trainer.sanity_checking or trainer.global_step < self.first_step:
            return
        self.epochs.append(int(trainer.current_epoch))
        self.values.append(float(trainer.callback_metrics["validation_elbo"]))
        running = self._running()
        if len(running) and running.argmax() == len(running) - 1:
            self.best = self.epochs[-1]
            self.kept = {name: value.clone() for name, value in _parameters(pl_module)}

    def _running(self) -> np.ndarray:
        values = np.asarray(self.values)
        if len(values) < _RUNNING:
            return np.zeros(0)
        return np.convolve(values, np.full(_RUNNING, 1 / _RUNNING), "valid")

    @property
    def fell(self) -> bool:
        """Whether the evidence at the end is below its best by more than its noise."""
        running = self._running()
        if len(self.values) < _FEWEST:
            return False
        late = np.diff(self.values)[-(len(self.values) // 2) :]
        error = float(np.median(np.abs(late - np.median(late)))) * 1.5 / np.sqrt(_RUNNING)
        whole = running.max() - running[0]
        return bool(running.max() - running[-1] > max(_SURE * error, _SMALL * whole))

    def give_back(self, pl_module: pl.LightningModule) -> int | None:
        """Put the best parameters in place if the end is worse; the epoch they are of."""
        if not self.fell or not self.kept:
            return None
        with torch.no_grad():
            for name, value in _parameters(pl_module):
                value.copy_(self.kept[name])
        return self.best

    def state_dict(self) -> dict[str, Any]:
        """What a training that goes on from a checkpoint needs."""
        return {k: getattr(self, k) for k in ("epochs", "values", "best", "kept")}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it up."""
        for name, value in state_dict.items():
            setattr(self, name, value)


def _parameters(pl_module: pl.LightningModule) -> list[tuple[str, Tensor]]:
    return [(name, value.detach()) for name, value in pl_module.named_parameters()]


def mark(history: pd.DataFrame, kept: int | None) -> pd.DataFrame:
    """Add the column that says which epoch's parameters were kept; None: the last one's."""
    if "validation_elbo" in history:
        epoch = history.index[-1] if kept is None else kept
        history[KEPT] = (history.index == epoch).astype(float)
    return history
