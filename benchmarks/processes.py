"""Several processes: one training over two, and many trainings side by side.

    steps      seconds per step of two processes with minibatches of B against one, in turns:
               "steps", one with minibatches of 2B (as many steps, the same cells), and "epochs",
               one with B (as many cells seen, twice the steps)
    ddp        whole trainings compared in the same two ways: wall time, and held-out ELBO per cell
               (all held-out cells, mean over draws of everything) beside its spread over seeds
    packing    fits of the hiPSC screen without day 5 of eleven knockouts by joblib's processes and
               by Ray, two at a time: wall time against the sum of the fits' own times over two

    python benchmarks/processes.py --rows steps                 # on an idle machine
    python benchmarks/processes.py --rows ddp
    python benchmarks/processes.py --rows ddp --cells 30000 --genes 2000 --batch 2048 --epochs 40
    python benchmarks/processes.py --rows packing --fits 100    # 6 fits by default

Processes have one thread each. Those of joblib are started and warmed up before the clock runs;
starting them takes as long as importing pyrocell, once per session. Ray starts its own for every
call, within the clock: few fits say little of it. Prints a table per row, then a line of JSON.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import torch
from code_state import FIT
from common import machine_speedup, part_of, quiet, write_results
from hipsc_day5 import DAY, ELEVEN

import pyrocell
from pyrocell import PyroCell, parallel, simulate
from pyrocell.training.fit import held_out_elbo

ROOMS = (*FIT, "parallel")  # that the figures depend on
CPU = {"accelerator": "cpu", "progress_bar": False}
DRAWS = 50
PROCESSES = 2


# ---------------------------------------------------------------------- one training
def screen(cells: int, genes: int) -> PyroCell:
    """A model of a screen of 50 perturbations in 4 batches."""
    settings = {"n_perturbations": 50, "n_batches": 4, "mean_library": 400.0, "seed": 0}
    settings |= {"n_controls": cells // 10, "n_cells_per_condition": cells * 9 // 10 // 50}
    adata = simulate.screen(n_genes=genes, **settings)
    PyroCell.setup_anndata(adata, batch_key="batch")
    return PyroCell(adata)


def ways(batch: int) -> dict[str, dict[str, int]]:
    """Who trains, and with which minibatches."""
    return {
        "two, B": {"devices": PROCESSES, "batch_size": batch},
        "one, 2B": {"devices": 1, "batch_size": PROCESSES * batch},
        "one, B": {"devices": 1, "batch_size": batch},
    }


class Clock(pl.Callback):
    """Writes when each minibatch began, as the first process sees it."""

    def __init__(self, path: Path):
        self.path, self.began = path, []

    def on_train_batch_start(self, *_: object) -> None:
        self.began.append(time.perf_counter())

    def on_train_end(self, trainer: pl.Trainer, *_: object) -> None:
        if trainer.is_global_zero:
            np.savetxt(self.path, self.began)


def steps(options: argparse.Namespace) -> dict:
    """Seconds of a step, loading included, by size of minibatch."""
    model, out = screen(max(2000, 4 * max(options.batches)), 2000), {}
    short = {"max_epochs": 1000, "train_size": 1.0, "max_steps": options.steps, **CPU}
    model.train(**short | {"max_steps": 2}, **ways(options.batches[0])["two, B"])  # warm up
    for batch in options.batches:
        taken: dict[str, list[float]] = {}
        for _ in range(options.turns):
            for way, where in ways(batch).items():
                with tempfile.TemporaryDirectory() as folder:
                    path = Path(folder) / "began"
                    model.train(callbacks=Clock(path), **short, **where)
                    taken.setdefault(way, []).extend(np.diff(np.loadtxt(path))[2:])
        step = {way: float(statistics.median(seconds)) for way, seconds in taken.items()}
        out[batch] = step | {
            "speedup_steps": step["one, 2B"] / step["two, B"],
            "speedup_epochs": PROCESSES * step["one, B"] / step["two, B"],
        }
        print(f"B = {batch}:", {k: round(v, 4) for k, v in out[batch].items()}, flush=True)
    return out


def held_out(model: PyroCell) -> np.ndarray:
    """Held-out ELBO of each held-out cell, mean over draws of everything, nats."""
    cells = model.module_arguments(model.validation_indices_)
    torch.manual_seed(1_000_003)
    draws = [
        held_out_elbo(model.module.model, model.module.guide, cells).numpy() for _ in range(DRAWS)
    ]
    return np.mean(draws, axis=0)


def fit(model: PyroCell, start: dict, seed: int, epochs: int, **where: int) -> dict:
    """Train from the start again; wall seconds and held-out ELBO."""
    model.module.load_state_dict(start)
    began = time.perf_counter()
    model.train(max_epochs=epochs, seed=seed, **CPU, **where)
    return {"wall": time.perf_counter() - began, "elbo": float(held_out(model).mean())}


def ddp(options: argparse.Namespace) -> dict:
    """Two processes against one."""
    model = screen(options.cells, options.genes)
    start = {name: value.clone() for name, value in model.module.state_dict().items()}
    for way in ("two, B", "one, B"):  # warm up: processes, compiled kernels
        fit(model, start, 0, 1, **ways(options.batch)[way])
    rows = []
    for seed in range(options.seeds):
        for way, where in ways(options.batch).items():
            result = fit(model, start, seed, options.epochs, **where)
            rows.append({"way": way, "seed": seed, **result})
            print(rows[-1], flush=True)
    table = pd.DataFrame(rows)
    wall = table.groupby("way")["wall"].median()
    elbo = table.pivot(index="seed", columns="way", values="elbo")
    out = {name: getattr(options, name) for name in ("cells", "genes", "batch", "epochs", "seeds")}
    for name, other in (("steps", "one, 2B"), ("epochs", "one, B")):
        apart = (elbo["two, B"] - elbo[other]).mean()
        one = elbo[other].mean()
        out[f"equal {name}"] = {
            "speedup": float(wall[other] / wall["two, B"]),
            "elbo_two": elbo["two, B"].mean(),
            "elbo_one": one,
            "percent_apart": 100 * apart / abs(one),
        }
        if options.seeds > 1:
            out[f"equal {name}"]["percent_sd_of_seeds"] = 100 * elbo[other].std() / abs(one)
        print(f"equal {name}:", {k: round(v, 4) for k, v in out[f"equal {name}"].items()})
    return out


# ---------------------------------------------------------------------- many trainings
def one_fit(seed: int, epochs: int | None) -> float:
    """Seconds of one fit of the benchmark of day 5, data and model included."""
    quiet()
    began = time.perf_counter()
    adata = pyrocell.datasets.hipsc_timecourse()
    held = adata.obs["perturbation"].isin(ELEVEN) & (adata.obs["time"] == DAY)
    seen = adata[~held.to_numpy()].copy()
    PyroCell.setup_anndata(seen, time_key="time", size_factor_key="size_factor")
    PyroCell(seen).train(seed=seed, max_epochs=epochs, devices=1, **CPU)
    return time.perf_counter() - began


def packing(options: argparse.Namespace) -> dict:
    """Many fits by each backend."""
    out = {}
    for backend in options.backends:
        settings = {"n_jobs": PROCESSES, "backend": backend, "progress_bar": False}
        if backend == "ray":
            import ray

            local = {"include_dashboard": False, "log_to_driver": False, "logging_level": "error"}
            ray.init(num_cpus=PROCESSES, **local)
        parallel.run(one_fit, [(seed, 1) for seed in range(PROCESSES)], **settings)  # warm up
        began = time.perf_counter()
        jobs = [(seed, options.fit_epochs) for seed in range(options.fits)]
        seconds = parallel.run(one_fit, jobs, **settings)
        wall = time.perf_counter() - began
        ideal = sum(seconds) / PROCESSES
        out[backend] = {"fits": options.fits, "wall": wall, "ideal": ideal, "ratio": wall / ideal}
        print(f"packing, {backend}:", {k: round(v, 3) for k, v in out[backend].items()}, flush=True)
    return out


def main() -> None:
    """Run the rows asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--batches", nargs="+", type=int, default=[512, 1024, 2048, 4096])
    parser.add_argument("--steps", type=int, default=15, help="of each way and turn")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--cells", type=int, default=10_000)
    parser.add_argument("--genes", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=512, help="cells per step and process")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--fits", type=int, default=6)
    parser.add_argument("--fit-epochs", type=int, default=None)
    parser.add_argument("--backends", nargs="+", default=["loky", "ray"])
    options = parser.parse_args()
    quiet()
    machine = machine_speedup(PROCESSES)
    print(f"two processes of matrix products against one: {machine:.2f} x")
    for row in options.rows:
        part, figures = part_of(parser, options, row), ROWS[row](options)
        figures = {"machine_speedup": machine, row: figures}
        write_results("processes", {part: figures}, range(options.seeds), rooms=ROOMS)


ROWS = {"steps": steps, "ddp": ddp, "packing": packing}

if __name__ == "__main__":
    main()
