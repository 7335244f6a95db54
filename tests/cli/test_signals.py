"""Ctrl-C, SIGTERM and closed pipes: what was done is kept, and said."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import pyrocell.model
from pyrocell import PyroCell
from pyrocell.cli import main

FIT = ["-o", "out", "--media-key", "media"]


@pytest.fixture
def file(make_screen, tmp_path, monkeypatch) -> Path:
    adata = make_screen(media=1)
    del adata.uns["truth"]
    adata.write_h5ad(tmp_path / "cells.h5ad")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cells.h5ad"


def listening() -> None:
    """A shell starts what runs in the background deaf to Ctrl-C, and children inherit it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def started(file: Path, *options: str, until: str) -> subprocess.Popen:
    """`pyrocell fit` in a process of its own, once it has said something."""
    command = [sys.executable, "-u", "-m", "pyrocell.cli", "fit", str(file), *FIT, *options]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    run = subprocess.Popen(command, preexec_fn=listening, **pipes)
    said = ""
    while until not in said:
        line = run.stderr.readline()
        assert line, said
        said += line
    return run


def test_ctrl_c_keeps_the_model_says_so_and_exits_130(file):
    run = started(file, "--max-epochs", "400", until="epoch")  # of each tenth
    run.send_signal(signal.SIGINT)
    _, said = run.communicate(timeout=60)
    assert run.returncode == 130, said
    assert "as far as it was trained, is in out/model" in said and "interrupted" in said
    assert sorted(os.listdir("out")) == ["model"]


def test_sigterm_says_one_line_and_exits_143(file):
    run = started(file, "--max-epochs", "400", until="epoch")
    run.send_signal(signal.SIGTERM)
    _, said = run.communicate(timeout=60)
    assert run.returncode == 143 and "pyrocell: terminated" in said and "Traceback" not in said


def test_a_closed_pipe_is_no_error_once_the_work_is_done(file):
    command = f"{sys.executable} -m pyrocell.cli fit {file} {' '.join(FIT)} --max-epochs 1"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command} | true"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr and (file.parent / "out" / "summary.md").exists()


def test_ctrl_c_in_the_second_phase_leaves_the_first(make_screen, build, monkeypatch):
    def pressed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    model = build(make_screen(media=1))
    monkeypatch.setattr(pyrocell.model, "fit_gene_level", pressed)
    with pytest.warns(UserWarning, match="interrupted before the effects on single genes"):
        model.train(max_epochs=1, progress_bar=False)
    assert model.interrupted_ and isinstance(model, PyroCell)
    assert len(model.perturbation_effects(n_samples=5))
    monkeypatch.undo()
    model.train(max_epochs=1, progress_bar=False)
    assert not model.interrupted_ and model.module.gene_level is not None


def test_the_shell_leaves_the_handler_of_sigterm_as_it_was(capsys):
    before = signal.getsignal(signal.SIGTERM)
    assert main(["fit", "absent.h5ad"]) == 2
    assert signal.getsignal(signal.SIGTERM) is before
