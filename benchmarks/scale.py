"""Screens of 10,000 to 1,000,000 cells: training from a file against training in memory.

A simulated screen (50 perturbations, 4 batches, 2,000 genes, 13% of the counts not zero) of 9,000
cells is drawn from with replacement, in random order, and written as zarr in blocks. Every size and
way is a process of its own, which tells its peak memory; the two of a size take turns at training,
so that a slow spell of the machine meets both. Figures are medians over the turns of

    cells/s     cells trained on per second of wall time, loading included, in turns of 160 steps
    processor   the same per second of processor time, that of the reading threads included

and, once each, seconds of registration (columns) and of building the model (one pass over the
counts), and the peak of resident memory. The anchor without a model is reading alone: cells per
second that the loader yields if nothing is done with them.

    python benchmarks/scale.py                      # six minutes of one core, 8 GiB of memory
    python benchmarks/scale.py --cells 10000 100000

Prints a table, then one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import anndata as ad
import lightning.pytorch as pl
import numpy as np
import pandas as pd
import zarr
from common import part_of, quiet, write_results

from pyrocell import PyroCell, TrainingConfig, read_backed, simulate
from pyrocell.data.loader import batch_loader

SEED = 0
STEPS = 160  # five pools of 16,384 cells
BATCH_SIZE = 512
BLOCK = 20_000  # cells written at a time
CHUNK = 1 << 17  # stored values per chunk, those of about 500 cells
WAYS = ("memory", "file")


# ---------------------------------------------------------------------- the screens
def write(path: Path, n_cells: int) -> None:
    """Cells drawn from one simulated screen, 20,000 at a time."""
    few = simulate.screen(
        n_perturbations=50, n_genes=2000, n_batches=4, mean_library=400.0, n_controls=1000,
        n_cells_per_condition=160, seed=SEED,
    )  # fmt: skip
    few.X = few.X.tocsr().astype(np.uint16)
    rows = np.random.default_rng(SEED).integers(few.n_obs, size=n_cells)
    group = zarr.open_group(path, mode="w")
    obs = few.obs[["perturbation", "batch"]].iloc[rows]
    obs = obs.set_axis(pd.Index([f"cell{i}" for i in range(n_cells)]))
    ad.io.write_elem(group, "obs", obs)
    ad.io.write_elem(group, "var", few.var[[]])
    first = few.X[rows[:BLOCK]]
    first.indptr = first.indptr.astype(np.int64)
    ad.io.write_elem(group, "X", first, dataset_kwargs={"chunks": (CHUNK,)})
    counts = ad.io.sparse_dataset(group["X"])
    for start in range(BLOCK, n_cells, BLOCK):
        counts.append(few.X[rows[start : start + BLOCK]])


# ---------------------------------------------------------------------- one size, one way
class Clock(pl.Callback):
    """Time from the end of a turn's first step to the end of its last."""

    def __init__(self) -> None:
        self.ends: list[tuple[float, float]] = []

    def on_train_batch_end(self, *_: object) -> None:
        self.ends.append((time.perf_counter(), time.process_time()))

    def rates(self) -> list[float]:
        """Cells per second of wall and of processor time."""
        cells = BATCH_SIZE * (len(self.ends) - 1)
        return [cells / (last - first) for first, last in zip(self.ends[0], self.ends[-1])]


def worker(path: Path, way: str) -> None:
    """Build a model, then train it for a turn at every line of standard input."""
    quiet()
    timer = time.perf_counter()
    adata = ad.read_zarr(path) if way == "memory" else read_backed(path)
    seconds = {"open": time.perf_counter() - timer}
    timer = time.perf_counter()
    PyroCell.setup_anndata(adata)
    seconds["register"] = time.perf_counter() - timer
    timer = time.perf_counter()
    model = PyroCell(adata)
    seconds["build"] = time.perf_counter() - timer
    say(seconds=seconds, peak=peak())
    epochs = -(-STEPS // (len(model._cells) // BATCH_SIZE))
    for turn in sys.stdin:
        clock = Clock()
        model.train(
            max_epochs=epochs, max_steps=STEPS, train_size=1.0, seed=int(turn), devices=1,
            accelerator="cpu", progress_bar=False, callbacks=clock,
            config=TrainingConfig(batch_size=BATCH_SIZE),
        )  # fmt: skip
        wall, processor = clock.rates()
        say(wall=wall, processor=processor, peak=peak())
    timer, n = time.perf_counter(), 0
    while n < STEPS * BATCH_SIZE:  # the anchor
        for batch in batch_loader(model._cells, np.arange(len(model._cells)), BATCH_SIZE, SEED):
            n += len(batch["index"])
            if n >= STEPS * BATCH_SIZE:
                break
    say(loader=n / (time.perf_counter() - timer), peak=peak())


def peak() -> float:
    """Peak of resident memory so far, GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def say(**figures: object) -> None:
    print(json.dumps(figures), flush=True)


# ---------------------------------------------------------------------- all of it
class Process:
    """A worker, asked by lines."""

    def __init__(self, path: Path, way: str):
        command = [sys.executable, __file__, "--worker", way, "--path", str(path)]
        self.of = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")},
        )  # fmt: skip

    def answer(self) -> dict:
        """The next line of the worker."""
        line = self.of.stdout.readline()
        if not line:
            raise SystemExit(f"a worker ended with exit status {self.of.wait()}")
        return json.loads(line)

    def turn(self, number: int) -> dict:
        """One turn of training."""
        self.of.stdin.write(f"{number}\n")
        self.of.stdin.flush()
        return self.answer()


def measure(path: Path, turns: int, ways: tuple[str, ...]) -> dict[str, dict]:
    """Figures of one size by way."""
    workers, found = {}, {}
    for way in ways:
        workers[way] = Process(path, way)
        found[way] = workers[way].answer()["seconds"]
    taken: dict[str, list[dict]] = {way: [] for way in ways}
    for number in range(turns):
        order = ways if number % 2 else ways[::-1]
        for way in order:
            taken[way].append(workers[way].turn(number))
    for way, worker in workers.items():
        worker.of.stdin.close()
        last = worker.answer()
        worker.of.wait()
        for clock in ("wall", "processor"):
            found[way][clock] = statistics.median(t[clock] for t in taken[way])
        found[way] |= {"loader": last["loader"], "peak": last["peak"]}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--worker", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--path", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    quiet()
    if args.worker:
        worker(args.path, args.worker)
        return
    print(
        f"{'cells':>9s} {'counts in':10s} {'cells/s':>9s} {'processor':>10s} {'loader':>9s} "
        f"{'register s':>11s} {'build s':>8s} {'peak GiB':>9s} {'on disk GiB':>12s}"
    )
    figures: dict[str, dict] = {}
    for n_cells in args.cells:
        folder = Path(tempfile.mkdtemp(prefix="scale-"))
        try:
            write(folder / "screen.zarr", n_cells)
            files = (file for file in folder.rglob("*") if file.is_file())
            disk = sum(file.stat().st_size for file in files) / 2**30
            found = measure(folder / "screen.zarr", args.turns, tuple(args.ways))
        finally:
            shutil.rmtree(folder)
        for way, f in found.items():
            print(
                f"{n_cells:9d} {way:10s} {f['wall']:9.0f} {f['processor']:10.0f} "
                f"{f['loader']:9.0f} {f['register']:11.2f} {f['build']:8.1f} {f['peak']:9.2f} "
                f"{disk:12.2f}",
                flush=True,
            )
        if len(found) == 2:
            found["ratio"] = {
                c: found["file"][c] / found["memory"][c] for c in ("wall", "processor")
            }
            print(
                f"{'':9s} file / memory: "
                + ", ".join(f"{k} {v:.2f}" for k, v in found["ratio"].items())
            )
        figures[str(n_cells)] = found
    write_results(
        "scale",
        {
            part_of(parser, args, but=("worker", "path")): {
                "steps": STEPS,
                "turns": args.turns,
                "cells": figures,
            }
        },
        [SEED],
    )


if __name__ == "__main__":
    main()
