"""Fitting: one torch optimiser over parameters, Lightning's own loop, the held-out ELBO."""

from __future__ import annotations

import warnings
import zlib
from dataclasses import asdict, dataclass
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import pyro
import torch
from lightning.pytorch.callbacks import EarlyStopping
from torch import Tensor, nn

from pyrocell._compat import EpochBar
from pyrocell._core.threading import few_threads
from pyrocell.data.loader import CellDataset, CellLoader, batch_loader
from pyrocell.distributions.counts import compiled_likelihood
from pyrocell.errors import NonFiniteError, ScreenError
from pyrocell.generative.cell_shift import shifts_shared
from pyrocell.generative.model import GenerativeModel
from pyrocell.guide.guide import Guide
from pyrocell.training.best_epoch import BestEpoch, mark
from pyrocell.training.checkpoints import Checkpoints, SafeCheckpointIO, TrainingCheckpoints
from pyrocell.training.distributed import PerRankSeed, Processes, requested, train_in_processes
from pyrocell.training.elbo import held_out_elbo, negative_elbo
from pyrocell.training.lightning import accelerator_named, as_list, fit, quiet, seeded
from pyrocell.training.nonfinite import LinAlgError, find_failure, non_finite_parameter
from pyrocell.training.precision import TF32Check, products_restored
from pyrocell.training.row_adam import RowAdam
from pyrocell.training.row_subsampling import RestrictedStep, RowSubsampler, row_subsampler
from pyrocell.training.state_dynamics import refine_state_dynamics

__all__ = ["ElboPlan", "TrainingConfig", "held_out_elbo", "negative_elbo", "train"]

_BATCH_SIZE = 512
_PLACES = ("num_nodes", "strategy", "accumulate_grad_batches")  # arguments of Lightning's Trainer
_PLAIN = (bool, int, float, str, type(None))


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
        Cells per step and process; by default 512, or an eighth of the cells where that is less.
        Processes share them by default, and have more only where that leaves `steps` steps.
    lr, global_lr
        Learning rates of the networks and of the global sites; both decay to zero.
    kl_warmup
        Share of training over which the KL of the global sites is raised to its full weight.
    shuffle_block
        Neighbours shuffled as one and mixed in pools of 16,384; default: 1, in a file 512.
    by_minibatch
        Draw in a step only the perturbations whose cells are in the minibatch; by default where
        these are less than half of them and gene-level residuals are a million or more.
    field_steps
        Steps in which the field of states (``dynamics="flow"`` or ``"sde"``) then learns alone;
        default: half as many as the training had. 0: none.
    patience
        Evaluations of the validation ELBO without a rise after which early stopping stops; there
        are about 40 in a training, and at most one per epoch.
    compile
        Compute the likelihood of training and held-out evaluation through torch.compile on a GPU;
        where that fails, a warning says so and it is computed as without. Changes nothing on the
        CPU, whose own kernel over rows is faster than what torch compiles.
    precision
        None: products in TF32 on a GPU where a test passes (`pyrocell.training.precision`); "full":
        never.
    """

    steps: int = 3000
    min_epochs: int = 20
    max_epochs: int = 100
    batch_size: int | None = None
    lr: float = 3e-3
    global_lr: float = 1e-2
    kl_warmup: float = 0.2
    shuffle_block: int | None = None
    patience: int = 20
    by_minibatch: bool | None = None
    compile: bool = False
    precision: str | None = None
    field_steps: int | None = None

    def minibatch(self, n_cells: int, processes: int = 1) -> int:
        """Cells per step and process for this many training cells."""
        if self.batch_size is not None:
            return min(self.batch_size, n_cells // processes)
        one = int(np.clip(n_cells // 8, 1, _BATCH_SIZE))
        spare = self.min_epochs * n_cells // self.steps  # leaves `steps` steps in the fewest epochs
        return max(1, int(np.clip(spare, one, processes * one)) // processes)

    def epochs(self, n_cells: int, processes: int = 1) -> int:
        """Epochs for this many training cells."""
        per_epoch = max(1, n_cells // (processes * self.minibatch(n_cells, processes)))
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
    visits
        Which perturbations a minibatch meets, to draw these alone; None: all.
    """

    loss_sum: Tensor
    loss_steps: Tensor

    def __init__(
        self,
        model: GenerativeModel,
        guide: Guide,
        n_cells: int,
        total_steps: int,
        config: TrainingConfig,
        visits: RowSubsampler | None = None,
    ):
        super().__init__()
        self.model, self.guide, self.visits = model, guide, visits
        self.n_cells, self.total_steps, self.config = n_cells, max(1, total_steps), config
        self.history: list[dict[str, float]] = []
        # Lightning's own mean over an epoch does not outlive a restart within it
        self.register_buffer("loss_sum", torch.zeros((), dtype=torch.float64))
        self.register_buffer("loss_steps", torch.zeros((), dtype=torch.int64))

    def setup(self, stage: str) -> None:
        """Several processes draw everything: their gradients are averaged."""
        if self.trainer.world_size > 1:
            self.visits = None

    def configure_optimizers(self) -> dict:
        """Adam with two rates and cosine decay."""
        fast, own = list(self.guide.fast_parameters()), self._motion()
        others = {id(p) for p in (*fast, *own)}
        slow = [p for p in self.parameters() if id(p) not in others]
        optimiser = RowAdam(
            [
                {"params": fast, "lr": self.config.global_lr},
                {"params": slow, "lr": self.config.lr},
                # a field learns from where cells are, which has to be learned first
                *([{"params": own, "lr": 2 * self.config.global_lr}] if own else []),
            ],
            fused=True,
        )
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, self.total_steps)
        return {
            "optimizer": optimiser,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def _motion(self) -> list[nn.Parameter]:
        """Point parameters of the field that states move along, if they do."""
        return list(self.model.motion.parameters()) if hasattr(self.model, "motion") else []

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Negative ELBO per cell of one minibatch."""
        progress = self.global_step / (self.config.kl_warmup * self.total_steps)
        self.model.kl_weight.fill_(min(1.0, max(progress, 1e-3)))
        loss = self._finite_loss(batch)
        self.loss_sum += loss.detach()
        self.loss_steps += 1
        return loss

    def _finite_loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Negative ELBO per cell, or NonFiniteError naming the site that is not finite."""
        drawn = self._visited(batch)
        try:
            with shifts_shared():
                loss = negative_elbo(*drawn) / self.n_cells
        except (LinAlgError, ValueError) as error:  # a factorisation met a NaN
            failure = find_failure(*drawn[:3], self.global_step)
            raise (failure or error) from (error if failure else None)
        if torch.isfinite(loss):
            return loss
        failure = find_failure(*drawn[:3], self.global_step)
        raise failure or NonFiniteError(
            f"training stopped at step {self.global_step}: the loss is not finite, though every "
            "site is; start again with another seed",
        )

    def _visited(self, batch: dict[str, Tensor], training: bool = True) -> RestrictedStep:
        """What a minibatch needs of model and guide: all, unless rows are drawn by minibatch."""
        if self.visits is None:
            return RestrictedStep(self.model, self.guide, batch, {})
        return self.visits.restrict(batch, training)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Held-out evidence per cell: log p(x | z) + log p(z) − log q(z), globals as guided."""
        value = held_out_elbo(*self._visited(batch, training=False)[:3])
        self.log(
            "validation_elbo",
            value.mean(),
            on_epoch=True,
            prog_bar=True,
            batch_size=len(value),
            sync_dist=True,
        )

    def on_train_epoch_end(self) -> None:
        """Keep the history as rows of a table; what was not measured again stays as it was."""
        loss = self.trainer.strategy.reduce(self.loss_sum / self.loss_steps, reduce_op="mean")
        self.log("train_loss", loss.float())
        metrics = {name: float(value) for name, value in self.trainer.callback_metrics.items()}
        metrics["train_loss"] = float(loss)
        before = self.history[-1] if self.history else {}
        self.history.append({**before, "epoch": self.current_epoch, **metrics})
        self.loss_sum.zero_()
        self.loss_steps.zero_()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the history."""
        checkpoint["history"] = self.history

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the history up."""
        self.history = checkpoint["history"]


def train(
    model: GenerativeModel,
    guide: Guide,
    data: CellDataset,
    train_positions: np.ndarray,
    validation_positions: np.ndarray,
    config: TrainingConfig,
    max_epochs: int | None = None,
    accelerator: str = "auto",
    devices: int | str = "auto",
    early_stopping: bool = False,
    seed: int = 0,
    progress_bar: bool = True,
    checkpoints: Checkpoints | None = None,
    **trainer_kwargs: Any,
) -> pd.DataFrame:
    """Fit the guide (and the model's point parameters) and return the history by epoch.

    Where the evidence of held-out cells falls before the end, the parameters are those of its best
    epoch; the history's column "kept" is 1 there.

    Ctrl-C stops training with a warning and leaves the parameters as they are, usable. Torch's
    global random state is left as it was. Several `devices` are a process each: started here, or
    this one and others that a launcher has started.

    Raises
    ------
    NonFiniteError
        If a value becomes NaN or infinite, naming the site.
    ModelFileError
        If checkpoints are asked for and those there are damaged or of another training.
    ProcessError
        If one of several processes dies.
    """
    accelerator = accelerator_named(accelerator)
    asked = {name: trainer_kwargs.pop(name) for name in _PLACES if name in trainer_kwargs}
    processes = requested(accelerator, devices, **asked)
    _check(data, config, max_epochs, len(train_positions), processes)
    if processes.to_start:
        cells = data, train_positions, validation_positions, config
        options = {"accelerator": accelerator, "devices": devices, "max_epochs": max_epochs}
        options |= {"early_stopping": early_stopping, "seed": seed, "checkpoints": checkpoints}
        options |= {"progress_bar": progress_bar, **asked, **trainer_kwargs}
        return train_in_processes(processes.total, train, (model, guide), *cells, **options)
    size = config.minibatch(len(train_positions), processes.total)
    part = {"rank": processes.rank, "processes": processes.total}
    loaders = [batch_loader(data, train_positions, size, seed, config.shuffle_block, **part)]
    # norms of gradients are those of whole tables, and processes exchange whole gradients
    whole = trainer_kwargs.get("gradient_clip_val") or processes.total > 1
    wanted = False if whole else config.by_minibatch
    visits = row_subsampler(model, guide, data.condition[train_positions], size, wanted)
    if visits:
        visits.shuffle(loaders[0].batch_sampler, data.condition)
    if len(validation_positions):
        loaders.append(batch_loader(data, validation_positions, 4 * size, **part))
    epochs = max_epochs or config.epochs(len(train_positions), processes.total)
    steps = epochs * len(loaders[0])
    plan = ElboPlan(model, guide, len(train_positions), steps, config, visits)
    callbacks: list[pl.Callback] = [EpochBar()] if progress_bar else []
    best = BestEpoch(config.kl_warmup * steps)
    if len(validation_positions):
        callbacks.append(best)
    if early_stopping and len(validation_positions):
        callbacks.append(EarlyStopping("validation_elbo", mode="max", patience=config.patience))
    settings = {"max_epochs": epochs, "seed": seed, "early_stopping": early_stopping}
    settings |= {"processes": processes.total} if processes.total > 1 else {}
    settings |= asked | trainer_kwargs
    written = checkpoints and _writer(checkpoints, loaders[0], config, settings)
    callbacks.append(TF32Check(config.precision, data, train_positions, size, seed))
    if written:
        callbacks.append(written)
        trainer_kwargs["plugins"] = [*as_list(trainer_kwargs.get("plugins")), SafeCheckpointIO()]
    if processes.total > 1:
        callbacks.append(PerRankSeed(seed))
    options = {
        "max_epochs": epochs,
        "accelerator": accelerator,
        "callbacks": [*callbacks, *as_list(trainer_kwargs.pop("callbacks", None))],
        "enable_progress_bar": progress_bar,
        "logger": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "check_val_every_n_epoch": max(1, epochs // 40),
        **processes.options,
    }
    n_cells, model.n_cells = model.n_cells, len(train_positions)
    try:
        with (
            quiet(),
            pyro.settings.context(module_local_params=True),
            pyro.validation_enabled(False),
            compiled_likelihood(config.compile),
            products_restored(),
        ):
            trainer = pl.Trainer(**(options | trainer_kwargs))
            few = few_threads(model.n_genes, processes.total)
            with few, seeded(seed, trainer.strategy.root_device):
                fit(trainer, plan, loaders, written)
                kept = best.give_back(plan)
                shown = progress_bar and not processes.rank
                broken = trainer.interrupted or _train_field(trainer, plan, loaders[0], seed, shown)
    finally:
        model.n_cells = n_cells
        model.kl_weight.fill_(1.0)
    if parameter := non_finite_parameter(model, guide):
        raise NonFiniteError(
            f"training ended with NaN or infinity in parameter {parameter}; lower lr and "
            "global_lr of TrainingConfig",
            site=parameter,
        )
    if broken:
        warnings.warn(
            f"training was interrupted after {len(plan.history)} of {epochs} epochs; the model "
            "keeps what it has learned and can be asked, but is not converged",
            stacklevel=3,
        )
    history = pd.DataFrame()
    if plan.history:
        history = mark(pd.DataFrame(plan.history).set_index("epoch"), kept)
    history.attrs["interrupted"] = bool(broken)
    return history


def _train_field(
    trainer: pl.Trainer, plan: ElboPlan, loader: CellLoader, seed: int, show: bool
) -> bool:
    """Train the field of states alone, if states move; whether Ctrl-C ended it early.

    It starts from the end of the loop, which is what the last checkpoint holds, with random numbers
    of its own: a training that is taken up there ends the same.
    """
    config = plan.config
    steps = plan.total_steps // 2 if config.field_steps is None else config.field_steps
    if not hasattr(plan.model, "motion") or not steps:
        return False
    plan.to(trainer.strategy.root_device)  # where Lightning has taken it from
    data, positions = loader.dataset, loader.batch_sampler.positions
    try:
        return refine_state_dynamics(
            plan.model, plan.guide, data, positions, steps, 2 * config.global_lr, seed, show
        )
    finally:
        plan.cpu()


def _check(
    data: CellDataset,
    config: TrainingConfig,
    max_epochs: int | None,
    n_cells: int,
    processes: Processes,
) -> None:
    """Refuse what cannot be trained."""
    if data.conditions is not None:
        raise ScreenError(
            "adata has conditions that this model was not built for; train a new model on all cells"
        )
    if config.field_steps is not None and config.field_steps < 0:
        raise ScreenError(f"field_steps={config.field_steps} must be at least 0")
    if any(n is not None and n < 1 for n in (config.batch_size, max_epochs)):
        raise ScreenError(
            f"batch_size={config.batch_size} and max_epochs={max_epochs} must be at least 1"
        )
    if n_cells < processes.total:
        raise ScreenError(f"{n_cells} cells cannot be shared by {processes.total} processes")


def _writer(
    checkpoints: Checkpoints, loader: CellLoader, config: TrainingConfig, settings: dict[str, Any]
) -> TrainingCheckpoints:
    """Checkpoints that belong to these cells and settings; objects among these are not compared."""
    batches = loader.batch_sampler
    order = zlib.crc32(batches.positions.astype(np.int64).tobytes(), batches.block - 1)
    identity = {
        "cells": loader.dataset.fingerprint(),
        "cells_trained_on": f"{len(batches.positions)}, hash {order:08x}",
        "training": asdict(config),
        **{name: value for name, value in settings.items() if isinstance(value, _PLAIN)},
    }
    return TrainingCheckpoints(checkpoints, identity, batches)
