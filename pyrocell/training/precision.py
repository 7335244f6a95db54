"""Matrix products of a training in TF32 on a GPU, where an accuracy test passes.

TF32 keeps 11 of the 24 significant bits of each factor and sums in float32. What that costs is
tried on the screen itself when training starts: loss and gradient of three minibatches, each with
the same draws in float32 and in TF32.

The tolerance is what training itself cannot tell. T steps determine the mean of a gradient whose
standard deviation between steps is s up to s / √T. A mean error e of the gradient moves the end as
far as a shift of that mean by e does; below s / √T it cannot be told from another order of the
minibatches. (What differs from step to step, as where a unit of the encoder is about to switch, is
noise, and far below s.) So TF32 is used if, for the loss and for every parameter,

    |e| <= s / √T,

|.| the norm over the entries of a parameter, e and s the mean and the standard deviation over the
three; e holds its own noise, too, which errs towards float32. Parameters differ in scale, and Adam
moves each by its own, so each is held to its own s. Anything not finite fails.

bfloat16 is not offered: torch's switch for float32 products has no such mode on CUDA ("medium" is
TF32 there), and autocast would round what products return, logits among them, to 8 bits: a
thirtieth of a unit at a log expression of −8, as much as the effects that are looked for.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor

from pyrocell._core.random import seeded, stream
from pyrocell.data.loader import CellDataset
from pyrocell.errors import NonFiniteError, ScreenError
from pyrocell.training.nonfinite import LinAlgError

__all__ = ["TF32Check", "in_units_of_noise", "products_restored"]

PRECISIONS = (None, "full")
_MINIBATCHES = 3
_FIRST = 8  # major compute capability from which on a GPU knows TF32
_log = logging.getLogger(__name__)


def has_tf32(device: torch.device) -> bool:
    """Whether a device has products in TF32."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= _FIRST


def set_tf32(wanted: bool) -> None:
    """Compute float32 products of this process in TF32 on a GPU, or in full."""
    torch.backends.cuda.matmul.allow_tf32 = wanted


def is_tf32() -> bool:
    """Whether they are."""
    cublas = torch.backends.cuda.matmul
    new = getattr(cublas, "fp32_precision", None)  # since torch 2.9, which may refuse the old name
    return bool(cublas.allow_tf32) if new is None else new == "tf32"


@contextmanager
def products_restored() -> Iterator[None]:
    """After the block, float32 products are what the user had set, whatever happened in it."""
    before = is_tf32()
    try:
        yield
    finally:
        if is_tf32() != before:
            set_tf32(before)


class TF32Check(pl.Callback):
    """Tests TF32 when training starts, and has steps use it where it passes.

    Held-out evaluation stays in full. Several processes test minibatches of their own and use it if
    it passes in all. A training that goes on from a checkpoint keeps the verdict found there. Tests
    draw from a stream of their own: the training's numbers are the same with and without.

    Parameters
    ----------
    precision
        As in `TrainingConfig`.
    data, positions
        All cells, and those trained on.
    size
        Cells per step and process.
    seed
        Of the training.

    Attributes
    ----------
    reduced
        The verdict; None before there is one, and where the device has no TF32.

    Raises
    ------
    ScreenError
        If the precision is not known.
    """

    def __init__(
        self, precision: str | None, data: CellDataset, positions: np.ndarray, size: int, seed: int
    ):
        if precision not in PRECISIONS:
            raise ScreenError(
                f"precision={precision!r} is not known; None tries TF32 on a GPU and takes it "
                'where it is accurate enough, "full" never does'
            )
        self.precision, self.seed = precision, seed
        self.data, self.positions, self.size = data, positions, size
        self.reduced: bool | None = None
        self._there = False  # a device that has TF32

    @property
    def state_key(self) -> str:
        """Name of the verdict in a checkpoint."""
        return "TF32Check"

    def state_dict(self) -> dict[str, Any]:
        """The verdict."""
        return {"reduced": self.reduced}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it up."""
        self.reduced = state["reduced"]

    def on_train_start(self, trainer: pl.Trainer, plan: pl.LightningModule) -> None:
        """Test, unless the answer is known."""
        device = trainer.strategy.root_device
        self._there = has_tf32(device)
        if not self._there:
            return
        if self.precision == "full":
            self.reduced = False
        if self.reduced is None:
            set_tf32(False)
            why = self._objection(plan, device, trainer.global_rank)
            self.reduced = bool(trainer.strategy.reduce_boolean_decision(not why, all=True))
            said = f"float32: {why or 'TF32 failed in another process'}"
            _log.info("matrix products of training in %s", "TF32" if self.reduced else said)
        set_tf32(self.reduced)

    def on_validation_start(self, trainer: pl.Trainer, plan: pl.LightningModule) -> None:
        """Evaluate in full."""
        if self._there:
            set_tf32(False)

    def on_validation_end(self, trainer: pl.Trainer, plan: pl.LightningModule) -> None:
        """Go on as before."""
        if self._there:
            set_tf32(bool(self.reduced))

    def on_train_end(self, trainer: pl.Trainer, plan: pl.LightningModule) -> None:
        """What follows was not tested."""
        if self._there:
            set_tf32(False)

    def _objection(self, plan: pl.LightningModule, device: torch.device, rank: int) -> str:
        """What speaks against TF32, or nothing."""
        rng = np.random.default_rng(stream("precision", self.seed, rank))
        full, errors = [], []
        for i in range(_MINIBATCHES):
            chosen = rng.choice(len(self.positions), self.size, replace=False)
            cells = self.data.__getitems__(np.sort(self.positions[chosen]))
            batch = plan.transfer_batch_to_device(cells, device, 0)
            where = device, "precision", self.seed, rank, i
            with seeded(*where):
                full.append(_gradient(plan, batch))
            set_tf32(True)
            try:
                with seeded(*where):
                    tried = _gradient(plan, batch)
            except (LinAlgError, ValueError, NonFiniteError) as error:
                return f"TF32 fails with {type(error).__name__}"
            finally:
                set_tf32(False)
            errors.append([b if a is None else b - a for a, b in zip(full[-1], tried)])
        names = ["loss", *(name for name, p in plan.named_parameters() if p.requires_grad)]
        return too_far(names, full, errors, plan.total_steps)


def _gradient(plan: pl.LightningModule, batch: dict[str, Tensor]) -> list[Tensor | None]:
    """Loss of a minibatch and its gradient for each parameter; nothing is accumulated."""
    loss = plan._finite_loss(batch)
    parameters = [p for p in plan.parameters() if p.requires_grad]
    return [loss.detach(), *torch.autograd.grad(loss, parameters, allow_unused=True)]


def too_far(
    names: list[str], full: list[list[Tensor | None]], errors: list[list[Tensor | None]], steps: int
) -> str:
    """Which quantity's mean error is farthest above s / √steps, or nothing; arguments as below."""
    found = in_units_of_noise(names, full, errors, steps)
    if unknown := [name for name, size in found.items() if np.isnan(size)]:
        return f"TF32 gives a {unknown[0]} that is not finite"
    worst = max(found, key=found.__getitem__)
    if found[worst] <= 1:
        return ""
    return f"TF32 changes {worst} by {found[worst]:.2g} times what {steps} steps can tell"


def in_units_of_noise(
    names: list[str], full: list[list[Tensor | None]], errors: list[list[Tensor | None]], steps: int
) -> dict[str, float]:
    """Mean errors in units of s / √steps; NaN where they are not finite.

    Parameters
    ----------
    names
        Of the quantities.
    full
        Their values in full precision, for each minibatch; None where there is none.
    errors
        Of their values in reduced precision.
    """
    out = {}
    for name, values, wrong in zip(names, zip(*full), zip(*errors), strict=True):
        if values[0] is None:
            continue
        error = float(_norm(_mean(wrong))) * steps**0.5
        mean = _mean(values)
        square = sum(float(_norm(value - mean)) ** 2 for value in values)
        noise = (square / (len(values) - 1)) ** 0.5
        out[name] = error / noise if noise > 0 else np.inf if error else 0.0
        if not np.isfinite(error):
            out[name] = np.nan
    return out


def _mean(values: Sequence[Tensor]) -> Tensor:
    return sum(values[1:], values[0]) / len(values)


def _norm(x: Tensor) -> Tensor:
    """Euclidean norm over all entries, of dense and of sparse gradients."""
    return (x.coalesce().values() if x.is_sparse else x).double().norm()
