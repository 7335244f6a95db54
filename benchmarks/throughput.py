"""Speed of a training step and of questions, against scvi-tools' SCVI and against bare products.

The contestants of a row take turns, so that a slow spell of the machine meets all of them; figures
are medians of wall time, with processor time beside it where the two differ. Rows, each alone or
several, prepared once:

    training       cells per second of whole trainings, loading included, against SCVI.train
    step           one step against the bare matrix products of encoder and decoder
    threads        one step on two threads against one
    latents        latent means per second, against SCVI
    node           one step with dynamics="node" against "none"
    perturbations  one step with 10,000 perturbations against 100, the cells being the same
    quality        time to the held-out evidence per cell at which SCVI ends, and to its best

    python benchmarks/throughput.py --rows training step

Prints a table per row, then one line of JSON.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable

import lightning.pytorch as pl
import numpy as np
import pyro
import scvi
import torch
from anndata import AnnData
from common import machine_speedup, part_of, quiet, shared, write_results

from pyrocell import PyroCell, TrainingConfig, simulate
from pyrocell.data.loader import batch_loader
from pyrocell.generative.cell_shift import shifts_shared
from pyrocell.training.fit import ElboPlan, held_out_elbo, train
from pyrocell.training.row_subsampling import row_subsampler

SEED = 0
QUIET = {"progress_bar": False, "accelerator": "cpu", "devices": 1}
SCVI_QUIET = {"enable_progress_bar": False, "accelerator": "cpu", "devices": 1, "logger": False}
NETWORK = {"n_layers": 2, "n_hidden": 128, "n_latent": 10, "gene_likelihood": "zinb"}
WARM_UP = 1


# ---------------------------------------------------------------------- data and timing
def screen(n_perturbations: int, **changes: object) -> AnnData:
    """9,000 cells of 2,000 genes, 13% of the counts not zero."""
    settings = {"n_genes": 2000, "n_batches": 4, "mean_library": 400.0, "n_controls": 1000}
    settings["n_cells_per_condition"] = 8000 // n_perturbations
    return simulate.screen(n_perturbations=n_perturbations, seed=SEED, **(settings | changes))


def build(adata: AnnData, **options: object) -> PyroCell:
    """A model of all columns there are."""
    keys = {f"{key}_key": key for key in ("media", "time") if key in adata.obs}
    if "media" in adata.obs and adata.obs["media"].nunique() == 1:
        del keys["media_key"]
    PyroCell.setup_anndata(adata, batch_key="batch", **keys)
    return PyroCell(adata, **options)


def build_scvi(adata: AnnData) -> scvi.model.SCVI:
    """SCVI with its defaults but for the network of the comparison."""
    scvi.model.SCVI.setup_anndata(adata, batch_key="batch")
    return scvi.model.SCVI(adata, **NETWORK)


def alternate(tasks: dict[str, Callable[[], object]], repeats: int) -> dict[str, dict[str, float]]:
    """Median seconds of wall and processor time of each task, in turns."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in tasks}
    for repeat in range(-WARM_UP, repeats):
        for name, task in tasks.items():
            wall, processor = time.perf_counter(), time.process_time()
            task()
            spent = time.perf_counter() - wall, time.process_time() - processor
            if repeat >= 0:
                taken[name].append(spent)
    parts = {name: list(zip(*times, strict=True)) for name, times in taken.items()}
    return {
        name: {"wall": statistics.median(w), "processor": statistics.median(p), "least": min(p)}
        for name, (w, p) in parts.items()
    }


def ratio(times: dict[str, dict[str, float]], slow: str, fast: str) -> dict[str, float]:
    """How many times as long `slow` takes, by each clock."""
    return {clock: times[slow][clock] / times[fast][clock] for clock in times[slow]}


def show(title: str, times: dict[str, dict[str, float]], unit: float = 1e3) -> None:
    """Print milliseconds per task."""
    print(f"\n{title}\n{'':44s} {'wall ms':>9s} {'processor':>10s} {'least':>8s}")
    for name, t in times.items():
        print(f"{name:44s} " + " ".join(f"{unit * t[c]:9.2f}" for c in t), flush=True)


def parts(model: PyroCell) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Its model and guide."""
    return model.module.model, model.module.guide


class Step:
    """One training step of a model after another, without Lightning: load, loss, gradient, Adam."""

    def __init__(
        self, model: PyroCell, batch_size: int, threads: int = 1, by_minibatch: bool | None = None
    ):
        self.threads, net, guide, cells = threads, *parts(model), model._cells
        net.n_cells, config = len(cells), TrainingConfig()
        loader = batch_loader(cells, np.arange(len(cells)), batch_size, seed=SEED)
        visits = row_subsampler(net, guide, cells.condition, batch_size, by_minibatch)
        if visits:
            visits.shuffle(loader.batch_sampler, cells.condition)
        self.plan = ElboPlan(net, guide, net.n_cells, 3000, config, visits)
        self.optimiser = self.plan.configure_optimizers()["optimizer"]
        self.batches = itertools.chain.from_iterable(itertools.repeat(loader))

    def __call__(self) -> None:
        """Take a step."""
        torch.set_num_threads(self.threads)
        local = pyro.settings.context(module_local_params=True)
        with local, pyro.validation_enabled(False):
            self.optimiser.zero_grad()
            self.plan._finite_loss(next(self.batches)).backward()
            self.optimiser.step()


# ---------------------------------------------------------------------- rows
def training(options: argparse.Namespace) -> dict:
    """Cells per second of whole trainings."""
    adata, out = screen(50), {}
    for size in options.batch_sizes:
        torch.set_num_threads(options.threads)
        models = {d: build(adata.copy(), decoder=d) for d in ("curved", "linear")}
        other = build_scvi(adata.copy())
        few = {"max_epochs": 2, "train_size": 1.0, "batch_size": size}
        tasks = {
            f"pyrocell, {d} decoder": lambda m=m, few=few: m.train(**few, **QUIET)
            for d, m in models.items()
        }
        tasks["SCVI"] = lambda m=other, few=few: m.train(**few, **SCVI_QUIET)
        times = alternate(tasks, options.repeats)
        show(f"training, batch {size}: two epochs of {adata.n_obs} cells", times)
        out[size] = {
            name: {
                "cells_per_second": 2 * adata.n_obs / times[name]["wall"],
                "against_scvi": ratio(times, "SCVI", name),
            }
            for name in times
        }
        for name, found in out[size].items():
            by = found["against_scvi"]
            print(
                f"{name:44s} {found['cells_per_second']:9.0f} cells/s, {by['wall']:.2f} x SCVI "
                f"(processor {by['processor']:.2f})"
            )
    return out


class Products:
    """The matrix products of encoder and decoder alone, forward and backward, dense."""

    def __init__(self, model: PyroCell, batch_size: int):
        net, guide = model.module.model, model.module.guide
        widths = [layer.weight.T for layer in guide.encoder.body if hasattr(layer, "weight")]
        hidden = net.config.n_latent + (32 if net.config.decoder == "curved" else 0)
        widths.append(torch.randn(hidden, net.n_genes))
        self.weights = [torch.randn(w.shape) for w in widths]
        self.inputs = [torch.randn(batch_size, len(w)) for w in widths]
        self.outputs = [torch.randn(batch_size, w.shape[1]) for w in widths]

    def __call__(self) -> None:
        """All of them once; counts need no gradient."""
        torch.set_num_threads(1)
        for i, (x, w, y) in enumerate(zip(self.inputs, self.weights, self.outputs, strict=True)):
            x @ w
            x.T @ y
            if i:
                y @ w.T


def step(options: argparse.Namespace) -> dict:
    """A step against its matrix products, one thread."""
    out = {}
    for decoder in ("curved", "linear"):
        model = build(screen(50), decoder=decoder)
        for size in options.batch_sizes:
            tasks = {"step": Step(model, size), "products": Products(model, size)}
            times = alternate(tasks, 4 * options.repeats)
            show(f"step, {decoder} decoder, batch {size}, one thread", times)
            out[f"{decoder} {size}"] = times | {"ratio": ratio(times, "step", "products")}
            print(f"step / products {out[f'{decoder} {size}']['ratio']['processor']:.2f}")
    return out


def threads(options: argparse.Namespace) -> dict:
    """A step on two threads; of use only on a machine with two idle cores."""
    model, out = build(screen(50)), {"machine_speedup": machine_speedup()}
    print(f"\ntwo processes of matrix products against one: {out['machine_speedup']:.2f} x")
    for size in options.batch_sizes:
        tasks = {f"{n} threads": Step(model, size, n) for n in (1, 2)}
        times = alternate(tasks, 4 * options.repeats)
        show(f"threads, batch {size}", times)
        out[size] = times | {"ratio": ratio(times, "1 threads", "2 threads")}
        print(f"two threads against one, wall time: {out[size]['ratio']['wall']:.2f}")
    return out


def latents(options: argparse.Namespace) -> dict:
    """Latent means of all cells."""
    adata = screen(50)
    torch.set_num_threads(options.threads)
    model, other = build(adata.copy()), build_scvi(adata.copy())
    model.train(max_epochs=1, **QUIET)
    other.train(max_epochs=1, **SCVI_QUIET)
    tasks = {"pyrocell": model.get_latent_representation, "SCVI": other.get_latent_representation}
    times = alternate(tasks, options.repeats)
    show(f"latents of {adata.n_obs} cells", times)
    return times | {"against_scvi": ratio(times, "SCVI", "pyrocell")}


def node(options: argparse.Namespace) -> dict:
    """What the field adds to a step."""
    adata = screen(50, n_cells_per_condition=53, n_controls=333, times=(1.0, 2.0, 3.0))
    tasks = {d: Step(build(adata.copy(), dynamics=d), 512) for d in ("none", "relaxation", "node")}
    times = alternate(tasks, 4 * options.repeats)
    show("dynamics, batch 512, three times", times)
    return times | {"ratio": ratio(times, "node", "none")}


def perturbations(options: argparse.Namespace) -> dict:
    """A step with more perturbations at fixed cells."""
    adata, tasks, built = screen(100, n_cells_per_condition=200, n_controls=2000), {}, {}
    treated = np.flatnonzero(adata.obs["perturbation"] != "control")
    for n in options.perturbations:
        labels = np.array(["control"] * adata.n_obs, dtype=object)
        labels[treated] = [f"target{i % n}" for i in range(len(treated))]
        relabelled = adata.copy()
        relabelled.obs["perturbation"] = labels
        start = time.process_time()
        model = build(relabelled)
        built[n] = time.process_time() - start
        tasks[f"{n} perturbations"] = Step(model, 512)
    times = alternate(tasks, 4 * options.repeats)
    show(f"perturbations, {adata.n_obs} cells, batch 512", times)
    names = list(tasks)
    grown = {name: ratio(times, name, names[0]) for name in names[1:]}
    for name, by in grown.items():
        print(f"{name} / {names[0]}: wall {by['wall']:.2f}, processor {by['processor']:.2f}")
    print(f"seconds to build: {built}")
    return times | {"ratio": grown[names[-1]], "build_seconds": built}


class Crossing(pl.Callback):
    """Seconds at which the held-out evidence first reaches levels, not counting its evaluation."""

    def __init__(self, model: PyroCell, cells: np.ndarray, levels: dict[str, float]):
        self.model, self.cells, self.levels = model, cells, levels
        self.seconds, self.values, self.reached = 0.0, [], dict.fromkeys(levels)

    def on_train_epoch_start(self, trainer: pl.Trainer, plan: pl.LightningModule) -> None:
        """Start the clocks of an epoch."""
        self.start = time.process_time()

    def on_train_epoch_end(self, trainer: pl.Trainer, plan: pl.LightningModule) -> None:
        """Stop them, then evaluate."""
        self.seconds += time.process_time() - self.start
        value = evidence(self.model, self.cells)
        self.values.append((self.seconds, value))
        for name, level in self.levels.items():
            if self.reached[name] is None and value >= level:
                self.reached[name] = self.seconds
        trainer.should_stop = None not in self.reached.values()


def evidence(model: PyroCell, cells: np.ndarray) -> float:
    """log p(x | z) + log p(z) − log q(z) of held-out cells, per cell."""
    with shifts_shared(), torch.random.fork_rng():
        net, guide = model.module.model, model.module.guide
        return float(held_out_elbo(net, guide, model.module_arguments(cells)).mean())


def quality(options: argparse.Namespace) -> dict:
    """Processor time to SCVI's held-out evidence, one thread: where it ends, and its best.

    SCVI's own evaluations, every fifth epoch, count as its time; they are some 2% of it.
    """
    out = {}
    screens = {"simulated": lambda: screen(50), "papalexi": papalexi}
    for name in options.screens:
        torch.set_num_threads(1)
        adata = screens[name]()
        other = build_scvi(adata.copy())
        start = time.process_time()
        scvi.settings.seed = SEED
        epochs = {"max_epochs": options.scvi_epochs} if options.scvi_epochs else {}
        settings = {"train_size": 0.9, "batch_size": 512, "check_val_every_n_epoch": 5}
        quietly = {k: v for k, v in SCVI_QUIET.items() if k != "logger"}  # it keeps the history
        other.train(**epochs, **settings, **quietly)
        theirs = time.process_time() - start
        held = np.sort(np.asarray(other.validation_indices))
        validation = -other.history["elbo_validation"]["elbo_validation"].dropna().astype(float)
        share = (validation.idxmax() + 1) / len(other.history["elbo_train"])
        levels = {"end": float(other.get_elbo(indices=held)), "best": float(validation.max())}
        seconds = {"end": theirs, "best": float(share) * theirs}
        model = build(adata.copy())
        crossing = Crossing(model, held, levels)
        rest = np.setdiff1d(np.arange(adata.n_obs), held)  # the same cells are held out
        net, guide = model.module.model, model.module.guide
        none, config = held[:0], TrainingConfig()
        train(net, guide, model._cells, rest, none, config, callbacks=[crossing], **QUIET)
        found = {"scvi_evidence": levels, "scvi_seconds": seconds, "seconds": crossing.reached}
        found["ratio"] = {k: s and s / seconds[k] for k, s in crossing.reached.items()}
        found["highest"] = max(v for _, v in crossing.values)
        out[name] = found
        print(f"\nquality, {name}: {found}", flush=True)
    return out


def papalexi() -> AnnData:
    """The ECCITE-seq screen of Papalexi et al. 2021."""
    return shared("papalexi2021_thp1_eccite.h5ad")


ROWS = {f.__name__: f for f in (training, step, threads, latents, node, perturbations, quality)}


def main() -> None:
    """Print the tables and the line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[512, 1024])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--perturbations", type=int, nargs="+", default=[100, 1000, 10_000])
    parser.add_argument("--screens", nargs="+", default=["simulated", "papalexi"])
    parser.add_argument("--scvi-epochs", type=int, help="in quality; default: SCVI's own")
    options = parser.parse_args()
    quiet()
    for row in options.rows:
        part, figures = part_of(parser, options, row), ROWS[row](options)
        write_results("throughput", {part: figures}, [SEED])


if __name__ == "__main__":
    main()
