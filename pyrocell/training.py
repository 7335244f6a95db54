"""Fitting: one torch optimiser over parameters, Lightning's own loop, the held-out ELBO."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

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

__all__ = ["ElboPlan", "TrainingConfig", "held_out_elbo", "train"]


@dataclass(frozen=True)
class TrainingConfig:
    """Optimisation settings.

    Attributes
    ----------
    steps
        Optimiser steps aimed at when `max_epochs` is not given.
    min_epochs
        Lower bound on the epochs that follow from `steps`.
    batch_size
        Cells per step.
    lr, global_lr
        Learning rates of the networks and of the global sites (design 5.5); both decay to zero.
    kl_warmup
        Share of training over which the KL of the global sites is raised to its full weight.
    clip
        Largest gradient norm.
    """

    steps: int = 3000
    min_epochs: int = 20
    max_epochs: int = 400
    batch_size: int = 512
    lr: float = 3e-3
    global_lr: float = 1e-2
    kl_warmup: float = 0.2
    clip: float = 1e4

    def epochs(self, n_cells: int) -> int:
        """Epochs for this many training cells."""
        per_epoch = max(1, n_cells // self.batch_size)
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
        loss = self.elbo.differentiable_loss(self.model, self.guide, **batch) / self.n_cells
        if not torch.isfinite(loss):
            raise NonFiniteError(_first_non_finite_site(self.model, self.guide, batch))
        self.log("train_loss", loss.detach(), on_step=False, on_epoch=True, batch_size=1)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Held-out evidence per cell: log p(x | z) + log p(z) − log q(z), globals from the guide."""
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


def _first_non_finite_site(model: nn.Module, guide: nn.Module, batch: dict[str, Tensor]) -> str:
    with torch.no_grad():
        for name, parameter in [*guide.named_parameters(), *model.named_parameters()]:
            if not torch.isfinite(parameter).all():
                return f"parameter {name}"
        q = poutine.trace(guide).get_trace(**batch)
        p = poutine.trace(poutine.replay(model, q)).get_trace(**batch)
        for trace in (q, p):
            for name, node in trace.nodes.items():
                if node["type"] != "sample":
                    continue
                finite = torch.isfinite(_dense(node["value"])).all()
                if not finite or not torch.isfinite(node["fn"].log_prob(node["value"])).all():
                    return name
    return "unknown (the loss recovered when recomputed)"


def _dense(value: Tensor) -> Tensor:
    return value.values() if value.layout == torch.sparse_csr else value


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
    **trainer_kwargs,
) -> pd.DataFrame:
    """Fit the guide (and the model's point parameters) and return the history by epoch.

    Ctrl-C stops training and leaves the parameters as they are, usable.
    """
    pyro.settings.set(module_local_params=True)
    pl.seed_everything(seed, verbose=False)
    model.n_cells = len(train_positions)
    size = config.batch_size
    loaders = [batch_loader(data, train_positions, size, seed=seed)]
    if len(validation_positions):
        loaders.append(batch_loader(data, validation_positions, 4 * size))
    epochs = max_epochs or config.epochs(len(train_positions))
    plan = ElboPlan(model, guide, len(train_positions), epochs * len(loaders[0]), config)
    callbacks: list[pl.Callback] = [TQDMProgressBar(refresh_rate=10)] if progress_bar else []
    if early_stopping and len(validation_positions):
        callbacks.append(EarlyStopping("validation_elbo", mode="max", patience=20))
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator=accelerator,
        devices=devices,
        callbacks=callbacks,
        enable_progress_bar=progress_bar,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        gradient_clip_val=None,
        num_sanity_val_steps=0,
        check_val_every_n_epoch=max(1, epochs // 40),
        **trainer_kwargs,
    )
    with warnings.catch_warnings(), pyro.validation_enabled(False):
        warnings.filterwarnings("ignore", module="lightning")
        trainer.fit(plan, *loaders)
    model.kl_weight.fill_(1.0)
    return pd.DataFrame(plan.history).set_index("epoch") if plan.history else pd.DataFrame()
