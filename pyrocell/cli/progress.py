"""How far a training is, on the terminal or in a log."""

from __future__ import annotations

import sys
import time
from datetime import timedelta
from typing import Any

import lightning.pytorch as pl

from pyrocell.cli.words import say

__all__ = ["Progress"]

_LINES = 10  # of progress where there is no terminal
_REFRESH = 0.5  # seconds, of progress on a terminal


class Progress(pl.Callback):
    """How far training is: one line that is rewritten on a terminal, else a line at every tenth."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self.terminal = sys.stderr.isatty()
        self.start = self.shown = time.monotonic()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any
    ) -> None:
        """Say so if it is time to."""
        done, total = trainer.global_step, int(trainer.estimated_stepping_batches)
        now = time.monotonic()
        if self.terminal:
            due = now - self.shown > _REFRESH or done == total
        else:
            due = done * _LINES // total > (done - 1) * _LINES // total
        if not due:
            return
        self.shown = now
        elbo = trainer.callback_metrics.get("validation_elbo")
        score = "" if elbo is None else f", held-out ELBO {float(elbo):.2f} nats per cell"
        left = timedelta(seconds=round((now - self.start) * (total - done) / done))
        line = f"  epoch {trainer.current_epoch + 1} of {trainer.max_epochs}{score}, {left} left"
        print(f"\r{line:<78}" if self.terminal else line, file=sys.stderr, flush=True,
              end="" if self.terminal else "\n")  # fmt: skip

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the rewritten line."""
        if self.terminal:
            say("")
