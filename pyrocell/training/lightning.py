"""Lightning's loop as a library runs it: quiet, seeded, resumable, answering Ctrl-C."""

from __future__ import annotations

import logging
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import torch

from pyrocell.training.checkpoints import TrainingCheckpoints

__all__ = ["accelerator_named", "as_list", "fit", "quiet", "seeded"]


def as_list(value: Any) -> list:
    """An option of Lightning that may be one, several or none, as a list."""
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def accelerator_named(name: str) -> str:
    """What "auto" stands for: CUDA or the CPU (sparse counts need one of these)."""
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what Lightning says about devices, workers and loggers that nobody asked for."""
    loggers = [logging.getLogger(f"lightning.{part}") for part in ("pytorch", "fabric")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        warnings.filterwarnings("ignore", message="Encountered NaN: loss")  # an error follows
        try:
            for logger in loggers:
                logger.setLevel(logging.WARNING)
            yield
        finally:
            for logger, level in zip(loggers, levels):
                logger.setLevel(level)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch within the block alone."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield


def fit(
    trainer: pl.Trainer,
    plan: pl.LightningModule,
    loaders: list,
    written: TrainingCheckpoints | None,
) -> None:
    """Run Lightning's loop, from the newest checkpoint if there is one.

    The loop answers Ctrl-C by leaving Python and a deaf interpreter.
    """
    path, checkpoint = (written and written.newest()) or (None, {})
    if path and written and written.is_finished(checkpoint):
        plan.load_state_dict(checkpoint["state_dict"])
        plan.on_load_checkpoint(checkpoint)
        warnings.warn(
            f"this training is finished; its end was read from {path} and nothing was trained "
            "(resume=False trains again)",
            stacklevel=4,
        )
        return
    del checkpoint  # Lightning reads it again
    handler = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(plan, *loaders, ckpt_path=path)
    except KeyboardInterrupt:
        pass
    except SystemExit as stop:
        if not isinstance(stop.__context__, KeyboardInterrupt):
            raise
    finally:
        if handler is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)
