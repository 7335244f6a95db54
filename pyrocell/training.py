"""Fitting: one torch optimiser over parameters, Lightning's own loop, the held-out ELBO."""

from __future__ import annotations

import logging
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import pyro
import torch
from lightning.pytorch.callbacks import EarlyStopping, TQDMProgressBar
from pyro import poutine
from pyro.infer import Trace_ELBO
from torch import Tensor, nn

from pyrocell.batches import CellData, batch_loader
from pyrocell.errors import NonFiniteError
from pyrocell.threads import few_threads

__all__ = ["ElboPlan", "TrainingConfig", "held_out_elbo", "train"]

_BATCH_SIZE = 512


@dataclass(frozen=True)
class TrainingConfig:
    """Optimisation settings.

    Attributes
    ----------
    steps
        Optimiser steps aimed at when `max_epochs` is not given.
    min_epochs, max_epochs
        Bounds on the epochs that follow from `steps`. More epochs overfit a sparse screen: on one
        of 7,500 cells the held-out ELBO is best before 100, and gains are overconfident at 230.
    batch_size
        Cells per step; by default 512, or an eighth of the cells where that is less.
    lr, global_lr
        Learning rates of the networks and of the global sites; both decay to zero.
    kl_warmup
        Share of training over which the KL of the global sites is raised to its full weight.
    patience
        Evaluations of the validation ELBO without a rise after which early stopping stops; there
        are about 40 in a training, and at most one per epoch.
    """

    steps: int = 3000
    min_epochs: int = 20
    max_epochs: int = 100
    batch_size: int | None = None
    lr: float = 3e-3
    global_lr: float = 1e-2
    kl_warmup: float = 0.2
    patience: int = 20

    def minibatch(self, n_cells: int) -> int:
        """Cells per step for this many training cells."""
        if self.batch_size is not None:
            return min(self.batch_size, n_cells)
        return int(np.clip(n_cells // 8, 1, _BATCH_SIZE))

    def epochs(self, n_cells: int) -> int:
        """Epochs for this many training cells."""
        per_epoch = max(1, n_cells // self.minibatch(n_cells))
        return int(np.clip(round(self.steps / per_epoch), self.min_epochs, self.max_epochs))


class ElboPlan(pl.LightningModule):
    """Maximises the ELBO of a model and guide; logs it per cell.

    Parameters
    ----------
    model, guide
        Pyro callables that take the minibatch as keywords.
    n_cells
        Number of training cells.
    total_steps
        Steps over which rates decay.
    config
        Optimisation settings.
    """

    def __init__(
        self,
        model: nn.Module,
        guide: nn.Module,
        n_cells: int,
        total_steps: int,
        config: TrainingConfig,
    ):
        super().__init__()
        self.model, self.guide = model, guide
        self.n_cells, self.total_steps, self.config = n_cells, max(1, total_steps), config
        self.elbo = Trace_ELBO()
        self.history: list[dict[str, float]] = []

    def configure_optimizers(self) -> dict:
        """Adam with two rates and cosine decay."""
        fast = list(self.guide.fast_parameters())
        fast_ids = {id(p) for p in fast}
        slow = [p for p in self.parameters() if id(p) not in fast_ids]
        optimiser = torch.optim.Adam(
            [
                {"params": fast, "lr": self.config.global_lr},
                {"params": slow, "lr": self.config.lr},
            ],
            fused=True,
        )
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, self.total_steps)
        return {
            "optimizer": optimiser,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Negative ELBO per cell of one minibatch."""
        progress = self.global_step / (self.config.kl_warmup * self.total_steps)
        self.model.kl_weight.fill_(min(1.0, max(progress, 1e-3)))
        loss = self._finite_loss(batch)
        self.log("train_loss", loss.detach(), on_step=False, on_epoch=True, batch_size=1)
        return loss

    def _finite_loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Negative ELBO per cell, or NonFiniteError naming the site that is not finite."""
        try:
            loss = self.elbo.differentiable_loss(self.model, self.guide, **batch) / self.n_cells
        except (torch.linalg.LinAlgError, ValueError) as error:  # a factorisation met a NaN
            failure = _failure(self.model, self.guide, batch, self.global_step)
            raise (failure or error) from (error if failure else None)
        if torch.isfinite(loss):
            return loss
        failure = _failure(self.model, self.guide, batch, self.global_step)
        raise failure or NonFiniteError(
            f"training stopped at step {self.global_step}: the loss is not finite, though every "
            "site is; start again with another seed",
        )

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Held-out evidence per cell: log p(x | z) + log p(z) − log q(z), globals as guided."""
        value = held_out_elbo(self.model, self.guide, batch)
        self.log(
            "validation_elbo", value.mean(), on_epoch=True, prog_bar=True, batch_size=len(value)
        )

    def on_train_epoch_end(self) -> None:
        """Keep the history as rows of a table."""
        metrics = {name: float(value) for name, value in self.trainer.callback_metrics.items()}
        self.history.append({"epoch": self.current_epoch, **metrics})


def held_out_elbo(model: nn.Module, guide: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Per-cell ELBO terms of the local sites, (cells,), nats."""
    with torch.no_grad(), warnings.catch_warnings():
        q = poutine.trace(guide).get_trace(**batch)
        p = poutine.trace(poutine.replay(model, q)).get_trace(**batch)
        terms = []
        for trace, site, sign in ((p, "x", 1.0), (p, "X.z", 1.0), (q, "X.z", -1.0)):
            node = trace.nodes[site]
            terms.append(sign * node["fn"].log_prob(node["value"]))
    return torch.stack(terms).sum(0)


def _failure(
    model: nn.Module, guide: nn.Module, batch: dict[str, Tensor], step: int
) -> NonFiniteError | None:
    """The error to raise if a site or parameter is not finite."""
    site, parameter = _non_finite_site(model, guide, batch), _non_finite_parameter(model, guide)
    if not site and not parameter:
        return None
    what = f'site "{site}" is not finite' if site else "a parameter is not finite"
    if parameter:
        what += f" (parameter {parameter} holds NaN or infinity)"
    return NonFiniteError(
        f"training stopped at step {step}: {what}; lower lr and global_lr of TrainingConfig, or "
        "look for extreme counts and covariates",
        site=site or parameter,
    )


def _non_finite_parameter(model: nn.Module, guide: nn.Module) -> str:
    for owner, module in (("guide", guide), ("model", model)):
        for name, parameter in module.named_parameters():
            if not torch.isfinite(parameter).all():
                return f"{owner}.{name}"
    return ""


def _non_finite_site(model: nn.Module, guide: nn.Module, batch: dict[str, Tensor]) -> str:
    """First site of the guide, then of the model, with a value or log probability not finite."""
    traces = [poutine.trace(), poutine.trace()]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with traces[0]:
                guide(**batch)
            with traces[1], poutine.replay(trace=traces[0].trace):
                model(**batch)
        except (torch.linalg.LinAlgError, ValueError):
            pass  # sites before the failure are in the trace
        for tracer in traces:
            for name, node in tracer.trace.nodes.items() if hasattr(tracer, "trace") else ():
                if node["type"] == "sample" and not _is_finite(node):
                    return name
    return ""


def _is_finite(node: dict[str, Any]) -> bool:
    value = node["value"]
    entries = value.values() if value.layout == torch.sparse_csr else value
    try:
        log_prob = node["fn"].log_prob(value)
    except (torch.linalg.LinAlgError, ValueError):
        return False
    return bool(torch.isfinite(entries).all() and torch.isfinite(log_prob).all())


def train(
    model: nn.Module,
    guide: nn.Module,
    data: CellData,
    train_positions: np.ndarray,
    validation_positions: np.ndarray,
    config: TrainingConfig,
    max_epochs: int | None = None,
    accelerator: str = "auto",
    devices: int | str = "auto",
    early_stopping: bool = False,
    seed: int = 0,
    progress_bar: bool = True,
    **trainer_kwargs: Any,
) -> pd.DataFrame:
    """Fit the guide (and the model's point parameters) and return the history by epoch.

    Ctrl-C stops training with a warning and leaves the parameters as they are, usable. Torch's
    global random state is left as it was.

    Raises
    ------
    NonFiniteError
        If a value becomes NaN or infinite, naming the site.
    """
    size = config.minibatch(len(train_positions))
    loaders = [batch_loader(data, train_positions, size, seed=seed)]
    if len(validation_positions):
        loaders.append(batch_loader(data, validation_positions, 4 * size))
    epochs = config.epochs(len(train_positions)) if max_epochs is None else max_epochs
    plan = ElboPlan(model, guide, len(train_positions), epochs * len(loaders[0]), config)
    callbacks: list[pl.Callback] = [TQDMProgressBar(refresh_rate=10)] if progress_bar else []
    if early_stopping and len(validation_positions):
        callbacks.append(EarlyStopping("validation_elbo", mode="max", patience=config.patience))
    more = trainer_kwargs.pop("callbacks", None) or []
    options = {
        "max_epochs": epochs,
        "accelerator": _accelerator(accelerator),
        "devices": devices,
        "callbacks": [*callbacks, *([more] if isinstance(more, pl.Callback) else more)],
        "enable_progress_bar": progress_bar,
        "logger": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "check_val_every_n_epoch": max(1, epochs // 40),
    }
    n_cells, model.n_cells = model.n_cells, len(train_positions)
    try:
        with (
            _quiet(),
            pyro.settings.context(module_local_params=True),
            pyro.validation_enabled(False),
        ):
            trainer = pl.Trainer(**(options | trainer_kwargs))
            with _seeded(seed, trainer.strategy.root_device), few_threads(model.n_genes):
                _fit(trainer, plan, loaders)
    finally:
        model.n_cells = n_cells
        model.kl_weight.fill_(1.0)
    if parameter := _non_finite_parameter(model, guide):
        raise NonFiniteError(
            f"training ended with NaN or infinity in parameter {parameter}; lower lr and "
            "global_lr of TrainingConfig",
            site=parameter,
        )
    if trainer.interrupted:
        warnings.warn(
            f"training was interrupted after {len(plan.history)} of {epochs} epochs; the model "
            "keeps what it has learned and can be asked, but is not converged",
            stacklevel=3,
        )
    return pd.DataFrame(plan.history).set_index("epoch") if plan.history else pd.DataFrame()


def _accelerator(name: str) -> str:
    """What "auto" stands for: CUDA or the CPU (sparse counts need one of these)."""
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


@contextmanager
def _quiet() -> Iterator[None]:
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
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch within the block alone."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield


def _fit(trainer: pl.Trainer, plan: ElboPlan, loaders: list) -> None:
    """Run Lightning's loop; it answers Ctrl-C by leaving Python and a deaf interpreter."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(plan, *loaders)
    except KeyboardInterrupt:
        pass
    except SystemExit as stop:
        if not isinstance(stop.__context__, KeyboardInterrupt):
            raise
    finally:
        if handler is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)
