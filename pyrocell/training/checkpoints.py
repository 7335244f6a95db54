"""A training on disk: checkpoints that are whole or not there, and that hold no code.

Lightning collects the state of its loops, the optimiser and the callbacks; here it is written as
tensors in safetensors with the rest as JSON in the file's header, with a hash over both. A
checkpoint is written beside the earlier one and takes its name when it is whole on the disk.

It is taken before a minibatch. What follows from there is a function of what it holds: parameters,
moments, learning rates, loops, torch's random state, and how many minibatches of which epoch have
been seen (their order is a function of seed and epoch). So a training that was killed ends where
one that was not ends.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from filelock import FileLock, Timeout
from lightning.pytorch.plugins.io import CheckpointIO
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pyrocell._core.files import sync
from pyrocell.data.loader import MinibatchSampler
from pyrocell.data.model_files import content_hash
from pyrocell.errors import ModelFileError

__all__ = [
    "Checkpoints",
    "SafeCheckpointIO",
    "TrainingCheckpoints",
    "read_checkpoint",
    "write_checkpoint",
]

_FORMAT = 1
_NAME = re.compile(r"checkpoint-(\d{6})\.safetensors")
_PARTIAL = ".partial"
_LOCK = ".training.lock"
_LONG = 60  # characters
_OURS = "pyrocell"  # our entry in Lightning's dictionary


@dataclass(frozen=True)
class Checkpoints:
    """Where and how often a training is written.

    Attributes
    ----------
    directory
        For one training alone; made if it is not there.
    minutes
        Time between two checkpoints.
    resume
        Go on from the newest checkpoint there; otherwise start again and replace it.
    belongs_to
        What the training must share with that of the checkpoint, beside cells and settings.
    """

    directory: str | Path
    minutes: float = 10.0
    resume: bool = True
    belongs_to: Mapping[str, Any] = field(default_factory=dict)


# ---------------------------------------------------------------------- one file
def write_checkpoint(path: str | Path, checkpoint: Mapping[str, Any]) -> None:
    """Write nested dicts and lists of tensors and JSON values; a failure leaves no file `path`.

    Raises
    ------
    ModelFileError
        If an entry is neither.
    OSError, SafetensorError
        If the disk is full or cannot be written.
    """
    path, tensors = Path(path), {}
    body = {"format": _FORMAT, "content": _encode(checkpoint, "", tensors)}
    digest = content_hash(tensors, body)
    partial = path.with_name(path.name + _PARTIAL)
    try:
        save_file(tensors, partial, {"body": json.dumps(body), "hash": digest})
        sync(partial)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync(path.parent)  # the name, too, outlives a power cut


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read what `write_checkpoint` wrote.

    Raises
    ------
    ModelFileError
        If the file is missing, cut, changed or of another format.
    """
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        body = json.loads(header["body"])
        whole = header["hash"] == content_hash(tensors, body)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise ModelFileError(f"{path} is no whole checkpoint: {error}") from error
    if not whole:
        raise ModelFileError(f"{path} is no whole checkpoint: its content was changed")
    if body.get("format") != _FORMAT:
        raise ModelFileError(
            f"{path} has format {body.get('format')!r}; this version reads {_FORMAT}"
        )
    return _decode(body["content"], tensors)


def _encode(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """JSON of a value; tensors are put aside by name. Keys of dicts may be numbers."""
    if isinstance(value, Tensor):
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(value, Mapping):
        return {"dict": [[k, _encode(v, f"{name}/{k}", tensors)] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        return [_encode(v, f"{name}/{i}", tensors) for i, v in enumerate(value)]
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise ModelFileError(
        f"{name} is a {type(value).__name__}; checkpoints hold tensors, numbers and strings alone, "
        "so leave out the callback or option that it comes from"
    )


def _decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_decode(v, tensors) for v in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]]
    return {k: _decode(v, tensors) for k, v in value["dict"]}


# ---------------------------------------------------------------------- within Lightning's loop
class SafeCheckpointIO(CheckpointIO):
    """Lightning's checkpoints as safetensors and JSON; one that cannot be written is a warning."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write; an earlier checkpoint stays whole and training goes on if that fails."""
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            write_checkpoint(path, checkpoint)
        except (OSError, SafetensorError, ModelFileError) as error:
            warnings.warn(
                f"the checkpoint {path} could not be written: {error}; training goes on, and what "
                "is there of earlier checkpoints is left as it was",
                stacklevel=1,
            )

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Read; raises ModelFileError if the file is not whole."""
        return read_checkpoint(path)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove the file."""
        Path(path).unlink(missing_ok=True)


class TrainingCheckpoints(pl.Callback):
    """Writes a checkpoint every so many minutes and at the end, and finds the one to resume from.

    Parameters
    ----------
    where
        Directory, interval and whether to resume.
    identity
        Of the training, as JSON: a checkpoint with another one is refused.
    batches
        Order of the minibatches, moved on to where the checkpoint was taken.

    Raises
    ------
    ModelFileError
        If the directory cannot be written.
    """

    def __init__(self, where: Checkpoints, identity: Mapping[str, Any], batches: MinibatchSampler):
        self.where, self.directory, self.batches = where, Path(where.directory), batches
        versions = {name: version(name) for name in ("pyrocell", "lightning")}
        identity = {**where.belongs_to, **identity, "version": versions}
        self.identity = dict(_leaves(json.loads(json.dumps(identity))))
        self.finished, self._batch = False, 0
        self._random: dict[str, Tensor] | None = None
        self._kept: list[Path] = []  # whole checkpoints of this training, oldest first
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ModelFileError(
                f"checkpoint_dir={str(self.directory)!r} cannot be used: {error.strerror}; name "
                "another directory"
            ) from error
        self._lock = FileLock(self.directory / _LOCK)  # let go by the system if a process dies
        if not os.access(self.directory, os.W_OK | os.X_OK):
            raise ModelFileError(
                f"checkpoint_dir={str(self.directory)!r} cannot be written; name another directory"
            )

    # ------------------------------------------------------------------ finding
    def newest(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest whole checkpoint, or None where training starts from the beginning.

        Raises
        ------
        ModelFileError
            If no checkpoint there is whole, or it is of another training.
        """
        if not self.where.resume:
            return None
        damaged: list[str] = []
        for path in self._files():
            try:
                checkpoint = read_checkpoint(path)
            except ModelFileError as error:
                damaged.append(str(error))
                continue
            self._check_identity(path, checkpoint)
            if damaged:
                warnings.warn(
                    f"{'; '.join(damaged)}; training resumes from the one before, {path}",
                    stacklevel=5,
                )
            self._kept = [path]
            return path, checkpoint
        if damaged:
            raise ModelFileError(f"{'; '.join(damaged)}; train with resume=False to start again")
        return None

    @staticmethod
    def is_finished(checkpoint: Mapping[str, Any]) -> bool:
        """Whether a checkpoint is the end of its training."""
        return checkpoint[_OURS]["finished"]

    def _files(self) -> list[Path]:
        """Checkpoints in the directory, newest first."""
        return sorted(filter(_number, self.directory.iterdir()), key=_number, reverse=True)

    def _check_identity(self, path: Path, checkpoint: Mapping[str, Any]) -> None:
        theirs = checkpoint[_OURS]["identity"]
        differing = [
            f"{name} is {self.identity.get(name)!r} and was {theirs.get(name)!r}"
            for name in sorted({*self.identity, *theirs})
            if self.identity.get(name) != theirs.get(name)
        ]
        if differing:
            raise ModelFileError(
                f"{path} is of another training: {'; '.join(differing)}; train as then to resume "
                "it, name another checkpoint_dir, or train with resume=False to replace it"
            )

    # ------------------------------------------------------------------ Lightning's hooks
    def setup(self, trainer: pl.Trainer, plan: pl.LightningModule, stage: str) -> None:
        """Refuse processes that do not see the same files, and a second training there."""
        if trainer.is_global_zero:
            try:
                self._lock.acquire(blocking=False)
            except Timeout as error:
                raise ModelFileError(
                    f"another training writes its checkpoints to {str(self.directory)!r} now; name "
                    "another checkpoint_dir, or wait until it has ended"
                ) from error
        found = self._kept[-1].name if self._kept else ""
        if found != trainer.strategy.broadcast(found):
            raise ModelFileError(
                f"process {trainer.global_rank} sees other checkpoints in {str(self.directory)!r} "
                "than process 0; name a checkpoint_dir that all nodes share"
            )

    def teardown(self, *_: Any, **__: Any) -> None:
        """Let other trainings in."""
        if self._lock.is_locked:
            (self.directory / _LOCK).unlink(missing_ok=True)
            self._lock.release()

    on_exception = teardown

    def on_train_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Start the clock."""
        self._written = time.monotonic()

    def on_train_batch_start(
        self, trainer: pl.Trainer, plan: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Take up the random state, or write a checkpoint if it is time."""
        self._batch = batch_idx
        if self._random is not None:
            # only now: what Lightning did since it started has drawn numbers, too
            self._set_random(self._random, trainer.strategy.root_device)
            return
        due = time.monotonic() - self._written >= 60 * self.where.minutes
        between_steps = batch_idx % trainer.accumulate_grad_batches == 0
        if trainer.strategy.broadcast(due) and between_steps and trainer.global_step:
            self._write(trainer)

    def on_train_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Write the end, so that the same call gives it again."""
        self.finished = True
        self._write(trainer)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, plan: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add what Lightning does not hold."""
        device, random = trainer.strategy.root_device, {"cpu": torch.get_rng_state()}
        if device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(device)
        checkpoint[_OURS] = {
            "identity": self.identity,
            "finished": self.finished,
            "random": random,
            "epoch": trainer.current_epoch,
            "batch": self._batch,
        }
        # the minibatch that was fetched is not trained on yet, even if it is the epoch's last
        checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["is_last_batch"] = False

    def on_load_checkpoint(
        self, trainer: pl.Trainer, plan: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Move the minibatches on; the random state waits until the first of them."""
        ours = checkpoint[_OURS]
        self.batches.skip(ours["epoch"], ours["batch"])
        self._random = ours["random"]

    def _set_random(self, state: dict[str, Tensor], device: torch.device) -> None:
        torch.set_rng_state(state["cpu"])
        if device.type == "cuda" and "cuda" in state:
            torch.cuda.set_rng_state(state["cuda"], device)
        self._random = None

    def _write(self, trainer: pl.Trainer) -> None:
        """Write a checkpoint; when it is whole, remove all but it and the one before."""
        plan = trainer.lightning_module  # what differs between processes is written as its mean
        loss_sum = plan.loss_sum
        assert isinstance(loss_sum, Tensor)
        loss_sum.copy_(trainer.strategy.reduce(loss_sum, reduce_op="mean"))
        last = next(map(_number, self._files()), 0)
        path = self.directory / f"checkpoint-{last + 1:06d}.safetensors"
        trainer.save_checkpoint(path, weights_only=False)
        self._written = time.monotonic()
        if not trainer.is_global_zero or not path.exists():
            return
        self._kept = [*self._kept[-1:], path]
        for old in self.directory.glob("checkpoint-*.safetensors*"):
            if old not in self._kept:
                old.unlink(missing_ok=True)


def _number(path: Path) -> int:
    """Number of a checkpoint from its name; 0 if it is none."""
    found = _NAME.fullmatch(path.name)
    return int(found[1]) if found else 0


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Entries of nested dicts under names such as `config.n_latent`; long ones as a hash."""
    if not isinstance(value, dict):
        text = json.dumps(value)
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        yield name, value if len(text) < _LONG else f"{len(value)} entries, hash {digest}"
        return
    for key, part in value.items():
        yield from _leaves(part, f"{name}.{key}" if name else key)
