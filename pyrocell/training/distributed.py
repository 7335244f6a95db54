"""Several processes train one model: each on its own part of every minibatch.

With W processes and B cells each, a step is that of one process with W·B cells: the same cells in
the same order, gradients averaged (Lightning's DDP). A process scales its B cells to the screen, so
the mean over processes estimates the same ELBO. Noise differs between processes, start values and
parameters do not.

Where no launcher has started the processes (torchrun, SLURM), they are started here, as fresh ones:
a fork would inherit thread pools and CUDA contexts that do not work in it, and Lightning's own ways
run the user's script again. They need no `__main__` guard, see the counts through shared memory,
and stay for the next training.
"""

from __future__ import annotations

import os
import pickle
import signal
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import lightning.pytorch as pl
import pandas as pd
import torch
from joblib import Parallel, delayed, effective_n_jobs, parallel_config
from lightning.pytorch.accelerators import CPUAccelerator, CUDAAccelerator
from lightning.pytorch.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    LSFEnvironment,
    MPIEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from lightning.pytorch.strategies import DDPStrategy, Strategy
from torch import nn

from pyrocell._core.random import stream
from pyrocell.errors import ProcessError, ScreenError
from pyrocell.training.lightning import as_list

__all__ = ["PerRankSeed", "Processes", "requested", "train_in_processes"]

_LAUNCHERS = (TorchElasticEnvironment, SLURMEnvironment, LSFEnvironment, MPIEnvironment)
_STOP = "stop"  # file that asks the processes to stop
_LOOK = 20  # steps between two looks for it
_LIBRARIES = ("gloo", "NCCL")  # what they say of a lost connection
_DIED = (
    "a process of the training died or no longer answers; a machine out of memory ends processes "
    "so: pass fewer devices or a smaller batch_size"
)


# ---------------------------------------------------------------------- what is asked for
@dataclass(frozen=True)
class Processes:
    """How many processes train, and which of them this one is.

    Attributes
    ----------
    total
        Processes on all nodes.
    rank
        Number of this one, from 0.
    to_start
        Whether they are to be started from here; otherwise this is one of them.
    options
        What Lightning's Trainer is told about them.
    """

    total: int
    rank: int
    to_start: bool
    options: dict[str, Any]


def requested(
    accelerator: str,
    devices: int | str | list[int],
    num_nodes: int = 1,
    strategy: str | Strategy = "auto",
    accumulate_grad_batches: int = 1,
) -> Processes:
    """What arguments of Lightning's Trainer ask for; one device where `devices` is "auto".

    Under torchrun "auto" is what it was told.

    Raises
    ------
    ScreenError
        If processes would have to be started for several nodes or another strategy than DDP.
    """
    environment = _environment()
    if devices == "auto":
        devices = 1
        if isinstance(environment, TorchElasticEnvironment):
            devices = int(os.environ.get("LOCAL_WORLD_SIZE", environment.world_size()))
            num_nodes = environment.world_size() // devices
    per_node = _count(accelerator, devices)
    total = per_node * num_nodes
    options = {"devices": devices, "num_nodes": num_nodes, "strategy": strategy}
    options["accumulate_grad_batches"] = accumulate_grad_batches
    if total <= 1:
        return Processes(1, 0, False, options)
    ours = isinstance(strategy, str) and (strategy == "auto" or strategy.startswith("ddp"))
    options["use_distributed_sampler"] = False
    if isinstance(strategy, str) and ours:
        # where a site has no data a parameter is unused, the same at every step
        changing = strategy.endswith("unused_parameters_true") or accumulate_grad_batches != 1
        how: dict[str, Any] = {"find_unused_parameters": changing, "static_graph": not changing}
        how |= {"broadcast_buffers": False, "gradient_as_bucket_view": True}
        options["strategy"] = DDPStrategy(**how)
    if not isinstance(environment, LightningEnvironment):
        return Processes(total, environment.global_rank(), False, options)
    if environment.creates_processes_externally:
        rank = environment.node_rank() * per_node + environment.local_rank()
        return Processes(total, rank, False, options)
    if num_nodes > 1 or not ours:
        raise ScreenError(
            f"num_nodes={num_nodes} and strategy={strategy!r} need a launcher that starts the "
            'processes, such as torchrun or SLURM; without one: num_nodes=1, strategy="ddp"'
        )
    return Processes(total, 0, True, options)


def _environment() -> ClusterEnvironment:
    """What has started this process, as Lightning finds it out."""
    if _Rank.current is not None:
        return LightningEnvironment()
    found = next((kind() for kind in _LAUNCHERS if kind.detect()), None)
    if found is None or found.world_size() == 1:
        return LightningEnvironment()
    return found


def _count(accelerator: str, devices: int | str | list[int]) -> int:
    """Devices that Lightning makes of its argument."""
    if isinstance(devices, str) or devices == -1:
        kind = CPUAccelerator if accelerator == "cpu" else CUDAAccelerator
        devices = kind.parse_devices(devices)
    return devices if isinstance(devices, int) else len(devices)


class PerRankSeed(pl.Callback):
    """Gives every process draws of its own: a function of seed, process and minibatch."""

    def __init__(self, seed: int):
        self.seed = seed

    def on_train_batch_start(
        self, trainer: pl.Trainer, plan: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seed torch for the minibatch, so that a restart needs no random state."""
        where = trainer.global_rank, trainer.current_epoch, batch_idx
        torch.manual_seed(stream("training", self.seed, *where))


# ---------------------------------------------------------------------- starting them
def train_in_processes(
    total: int,
    train: Callable[..., pd.DataFrame],
    modules: tuple[nn.Module, nn.Module],
    *arguments: Any,
    **options: Any,
) -> pd.DataFrame:
    """Call ``train(model, guide, *arguments, **options)`` in processes of this machine.

    Model and guide take up the parameters that the processes end with. Ctrl-C asks the processes to
    stop, a second one kills them.

    Raises
    ------
    ProcessError
        If a process dies, or none can be started from here.
    Exception
        The first one that was raised in a process.
    """
    model, guide = (module.cpu() for module in modules)
    with parallel_config("loky"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # joblib's, that it will do with one
        possible = torch.distributed.is_available() and effective_n_jobs(total) == total
    if not possible:
        raise ProcessError(
            f"{total} processes were asked for and none can be started from this one (a daemon, a "
            "thread, or a torch without torch.distributed); pass devices=1"
        )
    with tempfile.TemporaryDirectory(prefix="pyrocell-") as folder, _asked_to_stop(Path(folder)):
        threads = os.environ.get("OMP_NUM_THREADS")
        ranks = [_Rank(rank, total, folder, threads) for rank in range(total)]
        jobs = [delayed(rank)(train, model, guide, *arguments, **options) for rank in ranks]
        try:
            start = Parallel(
                n_jobs=total,
                backend="loky",
                batch_size=1,  # pyright: ignore[reportArgumentType] or "auto"
                pre_dispatch="all",
            )
            done = cast("list[Any]", start(jobs))
        except Exception as error:
            first = _first_error(Path(folder), error)
            raise first from (None if first is error else error)
    states, history, warned = done[0]
    for module, state in zip((model, guide), states, strict=True):
        module.load_state_dict(state)
    for message, category in warned:
        warnings.warn(message, category, stacklevel=4)
    return history


@dataclass(frozen=True)
class _Rank:
    """One of the processes; called in it."""

    rank: int
    total: int
    folder: str
    threads: str | None  # the user's OMP_NUM_THREADS

    current: ClassVar[_Rank | None] = None  # set within one of the processes

    def __call__(
        self, train: Callable, model: nn.Module, guide: nn.Module, *arguments: Any, **options: Any
    ) -> tuple[list, pd.DataFrame, list] | None:
        """Train; the first process returns parameters, history and warnings."""
        ours = {"callbacks": _StopWhenAsked(Path(self.folder)), "plugins": LightningEnvironment()}
        options |= {name: [*as_list(options.get(name)), own] for name, own in ours.items()}
        try:
            with (
                self._joined(options["accelerator"]),
                warnings.catch_warnings(record=True) as warned,
            ):
                history = train(model, guide, *arguments, **options)
        except BaseException as error:
            # the group stays: the others wait until they are ended, and have no error of their own
            _leave(error, Path(self.folder), self.rank)
            raise
        torch.distributed.destroy_process_group()
        if self.rank:
            return None
        states = [module.cpu().state_dict() for module in (model, guide)]
        said = [(str(w.message), w.category) for w in warned if w.category is UserWarning]
        return states, history, said

    @contextmanager
    def _joined(self, accelerator: str) -> Iterator[None]:
        """One of the group, as if a launcher had started it."""
        settings = {"LOCAL_RANK": str(self.rank), "OMP_NUM_THREADS": self.threads}
        before = {name: os.environ.get(name) for name in settings}
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
        _set_environment(settings)
        _Rank.current = self
        try:
            torch.distributed.init_process_group(
                "gloo" if accelerator == "cpu" else "nccl",
                init_method=f"file://{self.folder}/store",
                rank=self.rank,
                world_size=self.total,
            )
            yield
        finally:
            _Rank.current = None
            _set_environment(before)
            signal.signal(signal.SIGINT, handler)


def _set_environment(settings: dict[str, str | None]) -> None:
    for name, value in settings.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


# ---------------------------------------------------------------------- errors and Ctrl-C
def _leave(error: BaseException, folder: Path, rank: int) -> None:
    """Leave the error of a process where the others' parent finds it."""
    if isinstance(error, RuntimeError) and any(name in str(error) for name in _LIBRARIES):
        error = ProcessError(_DIED)  # the others keep their connections, whatever they raise
    try:
        content = pickle.dumps(error)
        pickle.loads(content)
    except Exception:
        content = pickle.dumps(ProcessError(f"process {rank}: {type(error).__name__}: {error}"))
    partial = folder / f"partial-{rank}"
    partial.write_bytes(content)
    partial.replace(folder / f"error-{rank}")


def _first_error(folder: Path, error: Exception) -> Exception:
    """The error that was left first; without any, a process has died or never got its work."""
    left = sorted(folder.glob("error-*"), key=lambda path: path.stat().st_mtime_ns)
    if left:
        return pickle.loads(left[0].read_bytes())
    return ProcessError(_DIED) if isinstance(error, BrokenProcessPool) else error


class _StopWhenAsked(pl.Callback):
    """Stops all processes at the same step when their parent asks, or is no more."""

    def __init__(self, folder: Path):
        self.asked, self.parent = folder / _STOP, os.getppid()

    def on_train_batch_start(
        self, trainer: pl.Trainer, plan: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Look now and then."""
        if batch_idx % _LOOK:
            return
        stop = self.asked.exists() or os.getppid() != self.parent
        if trainer.strategy.reduce_boolean_decision(stop, all=False):
            raise KeyboardInterrupt


@contextmanager
def _asked_to_stop(folder: Path) -> Iterator[None]:
    """Within the block the first Ctrl-C asks the processes to stop."""
    ordinary = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not ordinary or threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(*_: Any) -> None:
        (folder / _STOP).touch()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    signal.signal(signal.SIGINT, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
