"""Training and a step on a GPU: against scvi-tools' SCVI, against bare products, time in kernels.

Contestants take turns; figures are medians of wall time, the device's work included. For each
batch size:

    training   cells per second of whole trainings, loading included: pyrocell as it is, compiled
               (TrainingConfig(compile=True)), in full precision (precision="full"), and SCVI
    step       one step, in float32, against the bare matrix products of encoder and decoder there
    kernels    share of a step's wall time in which the device computes, by torch's profiler

    python benchmarks/gpu.py                # skipped with a line where there is no GPU
    python benchmarks/gpu.py --device cpu   # runs the same code, small, to see that it runs

Prints a table per batch size, then one line of JSON.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from anndata import AnnData
from common import part_of, quiet, write_results
from throughput import NETWORK, Products, Step, build, build_scvi, screen
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from pyrocell import TrainingConfig
from pyrocell.distributions.counts import compiled_likelihood

WARM_UP = 1
CONTESTANTS = {
    "pyrocell": TrainingConfig(),
    "pyrocell, compiled": TrainingConfig(compile=True),
    "pyrocell, full precision": TrainingConfig(precision="full"),
}


def wait(device: torch.device) -> None:
    """Until the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def alternate(
    tasks: dict[str, Callable[[], object]], repeats: int, device: torch.device
) -> dict[str, float]:
    """Median seconds of wall time of each task, in turns."""
    taken: dict[str, list[float]] = {name: [] for name in tasks}
    for repeat in range(-WARM_UP, repeats):
        for name, task in tasks.items():
            wait(device)
            start = time.perf_counter()
            task()
            wait(device)
            if repeat >= 0:
                taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in taken.items()}


class StepThere(Step):
    """A step with its model and minibatches on a device."""

    def __init__(self, model: object, batch_size: int, device: torch.device, compiled: bool):
        super().__init__(model, batch_size)
        self.plan.to(device)
        self.optimiser = self.plan.configure_optimizers()["optimizer"]
        self.compiled, batches = compiled, self.batches
        self.batches = (self.plan.transfer_batch_to_device(b, device, 0) for b in batches)

    def __call__(self) -> None:
        """Take a step."""
        with compiled_likelihood(self.compiled):
            super().__call__()


class ProductsThere(Products):
    """The products on a device."""

    def __init__(self, model: object, batch_size: int, device: torch.device):
        super().__init__(model, batch_size)
        for name in ("weights", "inputs", "outputs"):
            setattr(self, name, [t.to(device) for t in getattr(self, name)])


def training(adata: AnnData, size: int, options: argparse.Namespace) -> dict:
    """Cells per second of whole trainings."""
    device = torch.device(options.device)
    where = {"accelerator": device.type, "devices": 1}
    few = {"max_epochs": options.epochs, "train_size": 1.0, "batch_size": size, **where}
    tasks = {}
    for name, config in CONTESTANTS.items():
        model = build(adata.copy(), n_hidden=NETWORK["n_hidden"])
        tasks[name] = lambda m=model, c=config: m.train(config=c, progress_bar=False, **few)
    other = build_scvi(adata.copy())
    silent = {"enable_progress_bar": False, "logger": False}
    tasks["SCVI"] = lambda: other.train(**few, **silent)
    times = alternate(tasks, options.repeats, device)
    cells = options.epochs * adata.n_obs
    out = {
        name: {"cells_per_second": cells / t, "against_scvi": times["SCVI"] / t}
        for name, t in times.items()
    }
    for name, found in out.items():
        rate, by = found["cells_per_second"], found["against_scvi"]
        print(f"{name:30s} {rate:10.0f} cells/s {by:8.2f} x SCVI", flush=True)
    return out


def step(adata: AnnData, size: int, options: argparse.Namespace) -> dict:
    """A step, plain and compiled, against the products, and the share of it in kernels."""
    device = torch.device(options.device)
    built = {name: build(adata.copy()) for name in ("step", "step, compiled")}
    tasks: dict[str, Callable[[], object]] = {
        name: StepThere(model, size, device, "compiled" in name) for name, model in built.items()
    }
    shares = {name: in_kernels(task, options.steps, device) for name, task in tasks.items()}
    tasks["products"] = ProductsThere(built["step"], size, device)
    times = alternate(tasks, 4 * options.repeats, device)
    for name, t in times.items():
        found = shares.get(name)
        share = "" if found is None else f", {100 * found:.0f}% of it in kernels"
        ratio = t / times["products"]
        print(f"{name:30s} {1e3 * t:10.2f} ms {ratio:8.2f} x products{share}", flush=True)
    ratios = {name: t / times["products"] for name, t in times.items()}
    return {"seconds": times, "against_products": ratios, "in_kernels": shares}


def in_kernels(task: Callable[[], object], steps: int, device: torch.device) -> float | None:
    """Time of the device's kernels and copies over wall time of some steps; None for the CPU.

    The profiler slows down what is told to the device, so the share is a lower bound.
    """
    for _ in range(3):  # what is computed, compiled or reserved once
        task()
    on_gpu = device.type == "cuda"
    kinds = [ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]
    wait(device)
    with profile(activities=kinds) as seen:
        start = time.perf_counter()
        for _ in range(steps):
            task()
        wait(device)
        wall = time.perf_counter() - start
    kernels = [e for e in seen.events() if e.device_type == DeviceType.CUDA]
    busy = sum(e.time_range.elapsed_us() for e in kernels if not e.is_user_annotation)
    return busy / 1e6 / wall if on_gpu else None


def main() -> None:
    """Print the tables and the line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[512, 1024, 4096])
    parser.add_argument("--genes", type=int, default=2000)
    parser.add_argument("--cells", type=int, default=160, help="per perturbation, of 50")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20, help="under the profiler")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    quiet()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("gpu: skipped, this machine has no CUDA device")
        return
    name = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
    adata, rows = screen(50, n_genes=options.genes, n_cells_per_condition=options.cells), {}
    for size in options.batch_sizes:
        print(f"\n{name}, {adata.n_obs} cells of {options.genes} genes, batch {size}")
        found = {"training": training(adata, size, options), "step": step(adata, size, options)}
        rows[size] = found
    write_results("gpu", {part_of(parser, options): {"device": name, "rows": rows}}, ())


if __name__ == "__main__":
    main()
