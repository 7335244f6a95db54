"""A process that is killed while it saves leaves the old files or the new ones, and they load."""

from __future__ import annotations

import os
import random
import signal
import stat
import time
from pathlib import Path

import pandas as pd
import pytest
import torch

from pyrocell._core import files
from pyrocell.data.model_files import read_model, write_model

STEPS = ("replace", "rename", "unlink", "rmdir", "mkdir", "chmod")  # of pathlib, that change files


def save(path: Path, value: int) -> None:
    """A model whose tensors, settings and history all hold `value`; odd ones have no history."""
    history = None if value % 2 else pd.DataFrame({"loss": [float(value)]})
    write_model(path, {"w": torch.full((500,), value)}, {"value": value}, history, overwrite=True)


def loaded(path: Path) -> int:
    """The value, after all parts were found to be of one model."""
    tensors, settings, history = read_model(path)
    value = settings["value"]
    assert (tensors["w"] == value).all() and (history is None) == bool(value % 2)
    assert history is None or (history["loss"] == value).all()
    return value


def in_child(work) -> int:
    """Run in a process of its own, which ends there; its process id."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    return child


@pytest.mark.parametrize("value", [1, 2])
def test_every_moment_of_a_save_leaves_one_whole_model(tmp_path, monkeypatch, value):
    """Die at the first change of a file, at the second, and so on until a save ends."""
    for step in range(100):
        path = tmp_path / str(step)
        save(path, value + 1)

        def die_at(step: int = step, path: Path = path) -> None:
            left = [step]
            for name in STEPS:
                original = getattr(Path, name)

                def counted(self, *args, original=original, **kwargs):
                    left[0] -= 1
                    if left[0] < 0:
                        os._exit(9)
                    return original(self, *args, **kwargs)

                setattr(Path, name, counted)
            save(path, value)

        _, status = os.waitpid(in_child(die_at), 0)
        assert loaded(path) in (value, value + 1)
        save(path, 7)  # and the next one tidies up
        assert loaded(path) == 7 and not (path / ".committed").exists()
        if os.waitstatus_to_exitcode(status) == 0:
            break
    assert 5 < step < 99 and loaded(path) == 7


def test_a_kill_at_any_time_leaves_one_whole_model(tmp_path):
    rng = random.Random(0)
    save(tmp_path, 0)
    for _ in range(30):

        def work() -> None:
            for value in range(1, 1000):
                save(tmp_path, value)

        child = in_child(work)
        time.sleep(rng.uniform(0.0, 0.05))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert loaded(tmp_path) >= 0


def test_a_failed_save_leaves_the_earlier_model_and_no_scratch(tmp_path, monkeypatch):
    save(tmp_path, 2)
    monkeypatch.setattr(files, "sync", lambda path: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save(tmp_path, 3)
    monkeypatch.undo()
    assert loaded(tmp_path) == 2
    assert {p.name for p in tmp_path.iterdir()} == {
        "model.json",
        "model.safetensors",
        "history.csv",
    }


def test_files_are_readable_as_the_umask_says(tmp_path):
    before = os.umask(0o027)
    try:
        save(tmp_path / "model", 2)
    finally:
        os.umask(before)
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "model").iterdir()}
    assert set(modes.values()) == {0o640} and len(modes) == 3


def test_files_in_folders_appear_together_and_the_next_writer_ends_what_was_begun(tmp_path):
    names = ["tables/a.csv", "tables/b.csv", "summary.md"]

    def write(text: str, some: list[str]) -> None:
        with files.together(tmp_path, names) as new:
            (new / "tables").mkdir()
            for name in some:
                (new / name).write_text(text)

    write("old", names)

    def die() -> None:
        Path.replace = lambda *_: os._exit(9)  # at the first move, after all was committed
        write("new", names[1:])

    os.waitpid(in_child(die), 0)
    found = {name: files.current(tmp_path, name) for name in names}
    assert not found[names[0]].exists()
    assert all(found[name].read_text() == "new" for name in names[1:])
    write("last", names[:1])
    left = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert left == {"tables/a.csv"} and (tmp_path / "tables/a.csv").read_text() == "last"


def test_files_of_others_stay(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    save(tmp_path, 2)
    save(tmp_path, 3)
    assert (tmp_path / "notes.txt").read_text() == "mine" and not (
        tmp_path / "history.csv"
    ).exists()
