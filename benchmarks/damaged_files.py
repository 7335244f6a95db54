"""Files that are damaged at random, and processes that are killed while they write.

Each damage is read by a process of its own, which may use 8 GiB and a minute. What is counted:

- `same`, `refused`, `warned`: read with the numbers that were written; refused by a
  `PyrocellError`; read with other numbers, and a warning that the clean file does not cause.
- `other`: read with other numbers or labels. HDF5 and zarr keep values and names without a checksum
  (compressed ones have one in HDF5): where the damage turned some into others that are as good, no
  reader can tell, and these are counted apart, as `unseeable`. What was removed, cut or exchanged
  never counts as that.
- `foreign`, `killed`, `hung`: another exception; a signal; more than a minute.

A process that is killed at a random moment of a save, a report or a checkpoint must leave the old
files or the new ones.

    python benchmarks/damaged_files.py --damages 300 --kills 30
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import torch
from anndata import read_h5ad
from code_state import FIT
from common import part_of, quiet, write_results

import pyrocell
from pyrocell import PyroCell, simulate
from pyrocell.cli.reading import read_cells
from pyrocell.data.registration import cell_tensors, register
from pyrocell.errors import PyrocellError, ScreenWarning
from pyrocell.report import write as write_report
from pyrocell.training.checkpoints import read_checkpoint, write_checkpoint

ROOMS = (*FIT, "cli", "report")  # that the figures depend on
SEED, MEMORY, SECONDS = 401, 8 * 2**30, 60
SETUP = {"media_key": "media", "categorical_covariate_keys": ["donor"]}
SMALL = {"n_latent": 2, "n_response": 2, "n_hidden": 8}
OUTCOMES = ("same", "refused", "warned", "other", "unseeable", "foreign", "killed", "hung")


# ---------------------------------------------------------------- what is read
def digest(*parts: Any) -> str:
    found = hashlib.sha256()
    for part in parts:
        found.update(part.tobytes() if isinstance(part, np.ndarray) else repr(part).encode())
    return found.hexdigest()


def read_screen(cells: Any) -> str:
    manager = register(PyroCell, cells, **SETUP)
    tensors, screen = cell_tensors(manager), manager.screen
    condition = screen.conditions.iloc[screen.cell_condition]
    return digest(
        list(screen.genes),
        tensors.counts[np.arange(screen.n_cells)].toarray(),
        tensors.covariates,
        condition[["perturbation", "media"]].to_numpy().tolist(),
        [screen.batches[b] for b in screen.cell_batch],
    )


def read_model(path: Path, cells: Any) -> str:
    model = PyroCell.load(path, cells)
    state = model.module.saved_state()
    arrays = [state[name].numpy() for name in sorted(state)]
    history = None if model.history is None else model.history.to_numpy(float)
    return digest(json.dumps(model.screen.to_dict()), history, *arrays)


def read_training(path: Path, cells: Any = None) -> str:
    return digest(*flat(read_checkpoint(path)))


def flat(value: Any) -> list:
    if isinstance(value, dict):
        return [part for key in sorted(value, key=str) for part in [key, *flat(value[key])]]
    if isinstance(value, list):
        return [part for each in value for part in flat(each)]
    return [value.numpy() if isinstance(value, torch.Tensor) else value]


READERS: dict[str, Callable[[Path, Any], str]] = {
    "h5ad": lambda path, cells: read_screen(read_cells(path)),
    "h5ad, compressed": lambda path, cells: read_screen(read_cells(path)),
    "h5ad, backed": lambda path, cells: read_screen(pyrocell.read_backed(path)),
    "zarr": lambda path, cells: read_screen(read_cells(path)),
    "zarr, backed": lambda path, cells: read_screen(pyrocell.read_backed(path)),
    "model": read_model,
    "model with its cells": lambda path, cells: read_model(path, None),
    "checkpoint": read_training,
}


def write_all(folder: Path, cells: Any, model: PyroCell) -> dict[str, Path]:
    paths = {name: folder / name.replace(", ", "-").replace(" ", "_") for name in READERS}
    for name, path in paths.items():
        if name.startswith("h5ad"):
            paths[name] = path.with_suffix(".h5ad")
            kind = "gzip" if "compressed" in name else None
            cells.write_h5ad(paths[name], compression=kind)
        elif name.startswith("zarr"):
            paths[name] = path.with_suffix(".zarr")
            cells.write_zarr(paths[name], chunks=(64, cells.n_vars))
    model.save(paths["model"])
    model.save(paths["model with its cells"], save_anndata=True)
    paths["checkpoint"] = folder / "checkpoint-000001.safetensors"
    state = model.module.saved_state()
    write_checkpoint(paths["checkpoint"], {"state": state, "loops": {"epoch": 3, 4: [1.5, None]}})
    return paths


# ---------------------------------------------------------------- damages
def damage_bytes(path: Path, rng: np.random.Generator) -> str:
    """Change some bytes of a file, or of one file of a folder; say how."""
    if path.is_dir():
        files = sorted(f for f in path.rglob("*") if f.is_file())
        sizes = np.array([f.stat().st_size for f in files], float)
        weights = sizes / sizes.sum() if rng.integers(2) else None
        file = files[rng.choice(len(files), p=weights)]
        kind = int(rng.integers(10))
        if kind == 0:
            file.unlink()
            return f"{file.relative_to(path)} removed"
        if kind == 1:
            other = files[rng.integers(len(files))]
            first, second = file.read_bytes(), other.read_bytes()
            file.write_bytes(second)
            other.write_bytes(first)
            return f"{file.relative_to(path)} and {other.relative_to(path)} exchanged"
        return f"{file.relative_to(path)}: {damage_bytes(file, rng)}"
    content = bytearray(path.read_bytes())
    n = len(content)
    if not n:
        path.write_bytes(rng.bytes(16))
        return "16 bytes in an empty file"
    at = int(rng.integers(n))
    kind = int(rng.integers(7))
    if kind == 0:
        path.write_bytes(content[:at])
        return f"cut at {at} of {n}"
    if kind == 1:
        path.write_bytes(content + rng.bytes(int(rng.integers(1, 600))))
        return "more at its end"
    length = int(rng.integers(1, 600))
    if kind == 2:
        del content[at : at + length]
    elif kind == 3:
        content[at:at] = rng.bytes(length)
    elif kind == 4:
        length = min(length, n - at)
        content[at : at + length] = bytes([int(rng.choice([0, 255]))]) * length
    elif kind == 5:
        length = min(length, n - at)
        content[at : at + length] = rng.bytes(length)
    else:
        for place in rng.integers(n, size=int(rng.integers(1, 9))):
            content[place] ^= 1 << int(rng.integers(8))
    path.write_bytes(content)
    what = ["", "", "left out", "put in", "all alike", "at random", "bits turned"][kind]
    return f"{length} bytes {what} at {at} of {n}"


def damage_structure(path: Path, rng: np.random.Generator) -> str:
    """Change a part of an HDF5 file through HDF5, so that the file itself is sound."""
    with h5py.File(path, "r+") as file:
        names: list[str] = []
        file.visit(names.append)
        name = names[rng.integers(len(names))]
        at_counts = [n for n in names if n.startswith("X/")]
        if rng.integers(2):
            name = at_counts[rng.integers(len(at_counts))]
        item = file[name]
        kind = int(rng.integers(5))
        if kind == 0:
            del file[name]
            return f"{name} removed"
        if kind == 1 and len(item.attrs):
            key = sorted(item.attrs)[rng.integers(len(item.attrs))]
            if rng.integers(2):
                del item.attrs[key]
                return f"attribute {key} of {name} removed"
            item.attrs[key] = [np.array([3, 2**40]), "odd", 2.5, -1][rng.integers(4)]
            return f"attribute {key} of {name} changed"
        if isinstance(item, h5py.Dataset) and item.dtype.kind in "iuf" and item.size:
            values = item[...]
            if kind == 2 and values.ndim:
                del file[name]
                file[name] = values[: int(rng.integers(len(values)))]
                return f"{name} cut"
            index = tuple(int(rng.integers(s)) for s in values.shape)
            odd = [-1, 2**31 - 1, 10**6, -(2**31), 127][rng.integers(5)]
            with np.errstate(all="ignore"):
                item[index] = np.array(odd).astype(values.dtype)
            return f"{name}{list(index)} = {odd}"
        del file[name]
        file[name] = rng.integers(0, 5, 7)
        return f"{name} replaced by seven numbers"


def in_child(work: Callable[[], str], note: Path) -> tuple[str, str]:
    """Outcome of `work` in a process of its own, and what it said."""
    note.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        code = 4
        try:
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(SECONDS)  # a handler of Python waits for C code to end; this does not
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(os.open(str(note) + ".err", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                found = work()
            ours = [str(w.message) for w in caught if issubclass(w.category, ScreenWarning)]
            note.write_text("\n".join([found, *ours]))
            code = 0
        except PyrocellError as error:
            note.write_text(str(error))
            code = 3
        except BaseException:
            note.write_text(traceback.format_exc())
        finally:
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    said = note.read_text() if note.exists() else ""
    if os.WIFSIGNALED(status):
        return ("hung" if os.WTERMSIG(status) == signal.SIGALRM else "killed"), said
    return {0: "read", 3: "refused"}.get(os.WEXITSTATUS(status), "foreign"), said


def unseeable(name: str, how: str) -> bool:
    """Whether values or names in a file of AnnData were turned into others in their places."""
    ours = name.startswith(("model", "checkpoint"))
    return not ours and not any(word in how for word in ("removed", "exchanged", "cut"))


def outcome(name: str, how: str, clean: list[str], said: list[str]) -> str:
    """What a file that was read counts as; first lines are digests, the others warnings."""
    if said[0] == clean[0]:
        return "same"
    if set(said[1:]) - set(clean[1:]):
        return "warned"
    return "unseeable" if unseeable(name, how) else "other"


def damaged(folder: Path, paths: dict[str, Path], cells: Any, n: int, only: str | None) -> list:
    out = []
    for k, (name, path) in enumerate(paths.items()):
        if only is not None and name != only:
            continue
        reader = READERS[name]
        kind, clean = in_child(lambda r=reader, p=path: r(p, cells), folder / "note")
        if kind != "read":
            raise SystemExit(f"{name} is not read as it is: {clean}")
        counts: collections.Counter[str] = collections.Counter()
        for i in range(n):
            rng = np.random.default_rng([SEED, k, i])
            copy = folder / f"damaged{path.suffix}"
            shutil.rmtree(copy, ignore_errors=True)
            copy.unlink(missing_ok=True)
            shutil.copytree(path, copy) if path.is_dir() else shutil.copy(path, copy)
            through = path.suffix == ".h5ad" and i % 2
            how = (damage_structure if through else damage_bytes)(copy, rng)
            kind, said = in_child(lambda r=reader, p=copy: r(p, cells), folder / "note")
            if kind == "read":
                kind = outcome(name, how, clean.split("\n"), said.split("\n"))
            counts[kind] += 1
            if kind not in ("same", "refused"):
                last = said.strip().splitlines()[-1:] if kind == "foreign" else ""
                print(f"{name} {i}: {kind}; {how}; {last}", flush=True)
            if kind == "foreign":
                (folder / f"foreign-{k}-{i}.txt").write_text(how + "\n" + said)
        out.append({"kind": name, "damages": n, **{o: counts[o] for o in OUTCOMES}})
        print(out[-1], flush=True)
    return out


# ---------------------------------------------------------------- kills
def killed(folder: Path, cells: Any, model: PyroCell, n: int) -> list[dict[str, Any]]:
    """Kill a process at a random moment of writing; what it leaves must load as old or new."""

    def save(path: Path, value: float) -> None:
        with torch.no_grad():
            model.module.guide.baseline_loc.fill_(value)
        model.save(path, overwrite=True, save_anndata=True)

    def load_model(path: Path) -> float:
        loaded = PyroCell.load(path).module.guide.baseline_loc
        assert (loaded == loaded[0]).all()
        return float(loaded[0])

    def report(path: Path, value: float) -> None:
        with torch.no_grad():
            model.module.guide.baseline_loc.fill_(value)
        model.adata.obs["marker"] = value
        write_report(model, path, overwrite=True)

    def load_report(path: Path) -> float:
        """The model is written first, all answers after it, at once."""
        baseline = PyroCell.load(path / "model", cells).module.guide.baseline_loc
        tables = [pd.read_csv(table) for table in sorted((path / "tables").glob("*.csv"))]
        (marker,) = set(read_h5ad(path / "annotated.h5ad").obs["marker"])
        assert tables and (baseline == baseline[0]).all() and marker <= float(baseline[0])
        return float(baseline[0])

    def checkpoint(path: Path, value: float) -> None:
        path.mkdir(exist_ok=True)
        tensors = {"w": torch.full((200_000,), value)}
        write_checkpoint(path / "checkpoint-000001.safetensors", {"v": value, "t": tensors})

    def load_checkpoint(path: Path) -> float:
        found = read_checkpoint(path / "checkpoint-000001.safetensors")
        assert (found["t"]["w"] == found["v"]).all()
        return found["v"]

    out = []
    for name, write, load in (
        ("save", save, load_model),
        ("report", report, load_report),
        ("checkpoint", checkpoint, load_checkpoint),
    ):
        path = folder / f"kill-{name}"
        write(path, 0.0)
        began = time.perf_counter()
        write(path, 0.0)
        takes = time.perf_counter() - began
        rng = np.random.default_rng([SEED, len(name)])
        whole, before = 0, 0.0
        for i in range(1, n + 1):
            child = os.fork()
            if child == 0:
                try:
                    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
                    write(path, float(i))
                finally:
                    os._exit(0)
            time.sleep(float(rng.uniform(0, 1.1)) * takes)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            kind, said = in_child(lambda: str(load(path)), folder / "note")  # noqa: B023
            said = said.split("\n")[0]
            if kind == "read" and float(said) in (before, float(i)):
                whole, before = whole + 1, float(said)
            else:
                print(f"{name} {i}: {kind} {said}", flush=True)
        out.append({"kind": name, "kills": n, "old_or_new": whole, "seconds_of_a_write": takes})
        print(out[-1], flush=True)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--damages", type=int, default=300)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--only", choices=list(READERS))
    parser.add_argument("--write", action="store_true", help="keep the figures in results/")
    arguments = parser.parse_args()
    quiet()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cells = simulate.screen(
            n_perturbations=3, n_genes=20, n_cells_per_condition=60, n_batches=2, media=1, seed=1
        )
        cells.obs["donor"] = np.resize(["d1", "d2", "d1", "d2", "d2"], cells.n_obs)
        PyroCell.setup_anndata(cells, **SETUP)
        model = PyroCell(cells, **SMALL)
        model.train(max_epochs=2, progress_bar=False)
        paths = write_all(folder, cells, model)
        figures = damaged(folder, paths, cells, arguments.damages, arguments.only)
        if arguments.only is None and arguments.kills:
            figures += killed(folder, cells, model, arguments.kills)
        if arguments.write:
            part = part_of(parser, arguments, "files")
            write_results("damaged_files", {part: figures}, [SEED], rooms=ROOMS)
    bad = sum(row.get(o, 0) for row in figures for o in ("other", "foreign", "killed", "hung"))
    bad += sum(row["kills"] - row["old_or_new"] for row in figures if "kills" in row)
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
