"""Checkpoints: a training that was killed ends as one that was not, and no file runs code."""

from __future__ import annotations

import errno
import json
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from anndata import AnnData
from safetensors import safe_open

import pyrocell.training.checkpoints
from pyrocell import Priors, PyroCell, TrainingConfig
from pyrocell.data.loader import MinibatchSampler
from pyrocell.errors import ModelFileError
from pyrocell.training.checkpoints import (
    Checkpoints,
    TrainingCheckpoints,
    read_checkpoint,
    write_checkpoint,
)

SETTINGS = {"max_epochs": 4, "batch_size": 12, "progress_bar": False}


class Stopped(Exception):
    """What ends a training early."""


class At(pl.Callback):
    """Do something before a minibatch of an epoch."""

    def __init__(self, epoch: int, batch: int, action):
        self.epoch, self.batch, self.action = epoch, batch, action

    def on_train_batch_start(self, trainer, plan, batch, batch_idx) -> None:
        if (trainer.current_epoch, batch_idx) == (self.epoch, self.batch):
            self.action()


def stop() -> None:
    raise Stopped


@pytest.fixture(scope="module")
def adata(make_screen) -> AnnData:
    return make_screen()


@pytest.fixture(scope="module")
def whole(adata, build) -> PyroCell:
    """What an uninterrupted training gives."""
    model = build(adata.copy())
    model.train(early_stopping=True, **SETTINGS)
    return model


def trained(build, adata, directory, *stops: At, **changes) -> PyroCell:
    """A model trained with a checkpoint before each minibatch, and stopped and resumed."""
    settings = {"checkpoint_dir": directory, "checkpoint_minutes": 0.0, "early_stopping": True}
    settings |= SETTINGS | changes
    for callback in stops:
        with pytest.raises(Stopped):
            build(adata.copy()).train(callbacks=callback, **settings)
    model = build(adata.copy())
    model.train(**settings)
    return model


def assert_same(model: PyroCell, whole: PyroCell) -> None:
    np.testing.assert_allclose(model.history, whole.history, rtol=0, atol=1e-4)
    for name, value in whole.module.state_dict().items():
        torch.testing.assert_close(model.module.state_dict()[name], value, msg=name)


def cut(path: Path) -> None:
    body = path.read_bytes()
    path.write_bytes(body[: len(body) // 2])


def flip(path: Path) -> None:
    body = bytearray(path.read_bytes())
    body[-5] ^= 1
    path.write_bytes(body)


@pytest.fixture
def stopped(adata, build, tmp_path) -> Path:
    """Two checkpoints of a training that was stopped."""
    with pytest.raises(Stopped):
        build(adata.copy()).train(
            callbacks=At(2, 1, stop),
            checkpoint_dir=tmp_path / "run",
            checkpoint_minutes=0.0,
            early_stopping=True,
            **SETTINGS,
        )
    return tmp_path / "run"


# ---------------------------------------------------------------------- restart
def test_a_killed_training_ends_with_the_loss_of_one_that_was_not(adata, build, whole, tmp_path):
    adata.write_h5ad(tmp_path / "cells.h5ad")
    script = """
import os, signal, sys, anndata
import lightning.pytorch as pl
from pyrocell import PyroCell
class Kill(pl.Callback):
    def on_train_batch_end(self, trainer, plan, outputs, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == (2, 1):
            os.kill(os.getpid(), signal.SIGKILL)
adata = anndata.read_h5ad(sys.argv[1])
PyroCell.setup_anndata(adata)
PyroCell(adata, n_latent=2, n_response=2, n_hidden=16).train(
    max_epochs=4, batch_size=12, early_stopping=True, progress_bar=False, callbacks=Kill(),
    checkpoint_dir=sys.argv[2], checkpoint_minutes=0.0)
"""
    command = [sys.executable, "-W", "ignore", "-c", script]
    command += [str(tmp_path / "cells.h5ad"), str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    newest = max((tmp_path / "run").iterdir())
    assert read_checkpoint(newest)["epoch"] == 2
    model = trained(build, adata, tmp_path / "run")
    last, expected = model.history.iloc[-1], whole.history.iloc[-1]
    assert abs(last["train_loss"] - expected["train_loss"]) < 1e-4
    assert_same(model, whole)


@pytest.mark.parametrize(
    "places", [[(0, 2)], [(2, 0), (2, 2), (3, 1)]], ids=["within an epoch", "three times"]
)
def test_stopping_and_resuming_changes_nothing(adata, build, whole, tmp_path, places):
    model = trained(build, adata, tmp_path / "run", *(At(*place, stop) for place in places))
    assert_same(model, whole)


def test_epochs_of_one_minibatch_resume_too(adata, build, tmp_path):
    changes = {"batch_size": 1000, "check_val_every_n_epoch": 2}
    expected = build(adata.copy())
    expected.train(early_stopping=True, **(SETTINGS | changes))
    model = trained(build, adata, tmp_path / "run", At(3, 0, stop), **changes)
    assert_same(model, expected)


def test_writing_checkpoints_changes_nothing(adata, build, whole, tmp_path):
    assert_same(trained(build, adata, tmp_path / "run"), whole)


def test_early_stopping_remembers_what_it_saw(adata, build, tmp_path):
    config = TrainingConfig(lr=0.0, global_lr=0.0, patience=3)
    changes = {"config": config, "max_epochs": 30}
    expected = build(adata.copy())
    expected.train(early_stopping=True, **(SETTINGS | changes))
    model = trained(build, adata, tmp_path / "run", At(2, 1, stop), **changes)
    assert len(model.history) == len(expected.history) < 30


def test_the_order_of_minibatches_is_a_function_of_seed_and_epoch():
    cells = np.arange(50)
    straight, resumed = (MinibatchSampler(cells, 12, 3, drop_last=True) for _ in range(2))
    epochs = [list(straight) for _ in range(4)]
    resumed.skip(2, 1)
    np.testing.assert_equal(list(resumed), epochs[2][1:])
    np.testing.assert_equal(list(resumed), epochs[3])


def test_a_finished_training_is_not_repeated_unless_asked(adata, build, whole, tmp_path):
    trained(build, adata, tmp_path / "run")
    with pytest.warns(UserWarning, match="finished"):
        again = trained(build, adata, tmp_path / "run", callbacks=At(0, 0, stop))
    assert_same(again, whole)
    assert_same(trained(build, adata, tmp_path / "run", resume=False), whole)
    with pytest.raises(Stopped):
        trained(build, adata, tmp_path / "run", resume=False, callbacks=At(0, 0, stop))


def test_checkpoints_are_written_at_intervals_and_at_the_end(adata, build, tmp_path):
    trained(build, adata, tmp_path / "run", checkpoint_minutes=10.0)
    (path,) = (tmp_path / "run").iterdir()
    assert read_checkpoint(path)["pyrocell"]["finished"]


# ---------------------------------------------------------------------- damage
@pytest.mark.parametrize("damage", [cut, flip, lambda path: path.write_bytes(b"")])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(adata, build, whole, stopped, damage):
    before, newest = sorted(stopped.iterdir())
    damage(newest)
    (stopped / f"{newest.name}.partial").write_bytes(b"what was being written")
    with pytest.warns(
        UserWarning, match=rf"{newest.name} is no whole.*resumes from.*{before.name}"
    ):
        model = trained(build, adata, stopped)
    assert_same(model, whole)
    assert not list(stopped.glob("*.partial")) and not newest.exists()


def test_without_a_whole_checkpoint_the_error_names_files_and_remedy(adata, build, stopped):
    for path in stopped.iterdir():
        cut(path)
    with pytest.raises(ModelFileError, match=r"safetensors is no whole.*resume=False") as caught:
        trained(build, adata, stopped)
    assert all(path.name in str(caught.value) for path in stopped.iterdir())
    assert trained(build, adata, stopped, resume=False).is_trained


@pytest.mark.parametrize("how", ["no space left", "a real limit"])
def test_a_full_disk_is_said_and_the_checkpoint_before_survives(
    adata, build, whole, tmp_path, monkeypatch, how
):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    directory = tmp_path / "run"
    there: dict[str, bytes] = {}

    def full(tensors, path, metadata) -> None:
        path.write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    def fill() -> None:
        there.update({path.name: path.read_bytes() for path in directory.glob("checkpoint*")})
        if how == "no space left":
            monkeypatch.setattr(pyrocell.training.checkpoints, "save_file", full)
        else:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))

    settings = {"checkpoint_dir": directory, "checkpoint_minutes": 0.0, "early_stopping": True}
    model = build(adata.copy())
    try:
        with pytest.warns(UserWarning, match=r"could not be written: .*training goes on"):
            model.train(callbacks=At(1, 1, fill), **settings, **SETTINGS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert_same(model, whole)
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == there != {}  # no lock
    monkeypatch.undo()
    assert_same(trained(build, adata, directory), whole)


def test_two_trainings_do_not_share_a_directory(adata, build, tmp_path):
    settings = SETTINGS | {"checkpoint_dir": tmp_path, "checkpoint_minutes": 0.0}

    def second() -> None:
        with pytest.raises(ModelFileError, match="another training writes its checkpoints"):
            build(adata.copy()).train(**settings, resume=False)

    build(adata.copy()).train(callbacks=At(1, 0, second), **settings)
    build(adata.copy()).train(**settings, resume=False)  # the first has ended


def test_a_directory_that_cannot_be_used_is_said_before_training(adata, build, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ModelFileError, match=r"checkpoint_dir=.*file.* cannot be used"):
        trained(build, adata, tmp_path / "file")


def test_processes_that_see_other_files_are_refused(tmp_path):
    batches = MinibatchSampler(np.arange(4), 2, 0, drop_last=True)
    written = TrainingCheckpoints(Checkpoints(tmp_path), {}, batches)
    strategy = SimpleNamespace(broadcast=lambda mine: "checkpoint-000004.safetensors")
    with pytest.raises(ModelFileError, match="process 1 sees other checkpoints.*all nodes share"):
        written.setup(
            SimpleNamespace(global_rank=1, is_global_zero=False, strategy=strategy), None, "fit"
        )


def test_what_cannot_be_written_without_code_is_named(adata, build, tmp_path):
    class Odd(pl.Callback):
        def state_dict(self):
            return {"function": print}

    with pytest.warns(UserWarning, match=r"function is a builtin_function.*leave out"):
        trained(build, adata, tmp_path / "run", callbacks=Odd())
    assert not list((tmp_path / "run").iterdir())


# ---------------------------------------------------------------------- another training
@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 1}, "seed is 1 and was 0"),
        ({"max_epochs": 9}, "max_epochs is 9 and was 4"),
        ({"train_size": 0.8}, "cells_trained_on"),
        ({"config": TrainingConfig(lr=0.01)}, "training.lr is 0.01 and was 0.003"),
        ({"gradient_clip_val": 1.0}, "gradient_clip_val is 1.0 and was None"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_another_setting_is_refused_by_name(adata, build, stopped, change, named):
    files = {path: path.read_bytes() for path in stopped.iterdir()}
    with pytest.raises(ModelFileError, match=named):
        trained(build, adata, stopped, **change)
    assert {path: path.read_bytes() for path in stopped.iterdir()} == files


def test_another_model_or_screen_is_refused_by_name(adata, build, stopped):
    def options(**given):
        return lambda cells: build(cells, **given)

    with pytest.raises(ModelFileError, match="config.n_latent is 3 and was 2"):
        trained(options(n_latent=3), adata, stopped)
    narrow = Priors(residual_sd=0.01)
    with pytest.raises(ModelFileError, match="priors.residual_sd is 0.01"):
        trained(options(priors=narrow), adata, stopped)
    others = adata.copy()
    others.X[5] = others.X[6]
    with pytest.raises(ModelFileError, match="cells is"):
        trained(build, others, stopped)
    renamed = adata.copy()
    renamed.var_names = [*renamed.var_names[:-1], "another"]
    with pytest.raises(ModelFileError, match="screen.genes is"):
        trained(build, renamed, stopped)


# ---------------------------------------------------------------------- no code in the files
def test_a_checkpoint_is_tensors_and_json_alone(stopped):
    files = sorted(stopped.iterdir())
    assert [path.name for path in files] == [f"checkpoint-{i:06d}.safetensors" for i in (6, 7)]
    for path in files:
        body = path.read_bytes()
        assert body[8:9] == b"{" and b"pickle" not in body  # after the length of the header
        with safe_open(path, "pt") as file:
            header = file.metadata()
            names = set(file.keys())
        assert set(header) == {"body", "hash"} and json.loads(header["body"])["format"] == 1
        assert {"/pyrocell/random/cpu", "/state_dict/model.loading"} <= names
        assert any(name.endswith("/exp_avg_sq") for name in names)


def test_values_survive_a_checkpoint(tmp_path):
    values = {"a": {1: [torch.arange(3), None, True], "b": 0.1}, "c": float("inf"), "d": []}
    path = tmp_path / "x.safetensors"
    write_checkpoint(path, values)
    again = read_checkpoint(path)
    assert torch.equal(again["a"][1].pop(0), values["a"][1].pop(0)) and again == values
    shutil.copy(path, tmp_path / "y.safetensors")
    with pytest.raises(ModelFileError, match="missing"):
        read_checkpoint(tmp_path / "missing")
