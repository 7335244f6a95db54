"""What training and asking cost: a formula in cells, genes, perturbations, times and media.

A step of training (loss, gradient, Adam; one thread) is measured on a small grid of synthetic
screens and fitted by non-negative least squares in relative error. Terms, with a coefficient each:

    fixed           some 1,700 small operations of guide, priors and backward pass
    genes           sites with a number per gene
    cells x genes   decoder and likelihood
    counts          numbers of the minibatch that are not zero: encoder, likelihood
    conditions      bookkeeping of all of them
    conditions met x genes           shifts of those met in a minibatch
    drivers drawn x times x genes    densities and optimiser of the gene-level residuals: of all
                    perturbations, or of those that a minibatch meets where there are many

Points of the grid that were not fitted say how far the formula can be believed: the anchor beside
it is the mean of the fitted points, the best guess without a formula. Parameters are counted, not
measured. Questions (latents, effects) are measured at one point each and scaled by their sizes.
Then the formula is extrapolated to 10,000 .. 100,000,000 cells, epochs as `TrainingConfig` sets
them, and a plan for 100,000,000 cells on many nodes is worked out from the assumptions in `PLAN`.

    python benchmarks/cost_model.py            # about five minutes on one core

Prints tables, then one line of JSON.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from importlib.util import find_spec
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from common import quiet, write_results
from scipy.optimize import nnls
from throughput import Step

from pyrocell import PyroCell, TrainingConfig

SEED = 0
WARM_UP, STEPS = 1, 4
GIB, HOUR = 2**30, 3600.0
CONTROLS = 500
# of pyrocell.visited: residuals from which on a step draws the perturbations of its minibatch
# alone, and how many cells of one travel together
BY_MINIBATCH = find_spec("pyrocell.training.row_subsampling") is not None
MANY, PACK = 2**20, 4


class Point(NamedTuple):
    """Sizes that a step's cost depends on; `each` is the cells of a condition, 0: a few."""

    cells: int
    genes: int
    perturbations: int
    times: int = 1
    media: int = 0
    density: float = 0.1
    each: int = 0

    @property
    def conditions(self) -> int:
        """Perturbed conditions."""
        return self.perturbations * self.times * (1 + self.media)

    @property
    def per_condition(self) -> int:
        """Cells of a condition; together at least 2,048."""
        return self.each or max(1, -(-2048 // self.conditions))

    @property
    def drawn(self) -> float:
        """Perturbations that a step draws: all, or those met where that is worth it."""
        k, residuals = self.perturbations, self.perturbations * self.times * self.genes
        share = min(1.0, self.cells / (self.conditions * self.per_condition + CONTROLS))
        packs = -(-self.conditions * self.per_condition // (k * PACK))
        met = k * (1 - (1 - share) ** packs)
        return met if BY_MINIBATCH and residuals >= MANY and met < k / 2 else k

    def terms(self) -> dict[str, float]:
        """What each term of the formula counts."""
        met = self.conditions * (1 - (1 - 1 / self.conditions) ** self.cells)
        return {
            "fixed": 1.0,
            "conditions": self.conditions,
            "genes": self.genes,
            "cells x genes": self.cells * self.genes,
            "counts": self.cells * self.genes * self.density,
            "conditions met x genes": met * self.genes,
            "drivers drawn x times x genes": (self.drawn + self.media) * self.times * self.genes,
        }


FITTED = [
    *(Point(n, g, k) for n in (128, 512) for g in (500, 2000) for k in (50, 1000)),
    Point(512, 2000, 50, density=0.3),
    Point(512, 1000, 200, times=3),
    Point(128, 1000, 1000, times=3),
    Point(512, 1000, 200, media=1),
    Point(256, 1000, 3000),
]
HELD_OUT = [
    Point(256, 1000, 300),
    Point(512, 4000, 100),
    Point(256, 2000, 2000),
    Point(384, 1500, 150, times=3),
    Point(512, 1000, 100, density=0.2),
]
ASKED = Point(512, 2000, 1000)
PLAN = {
    "cells": 10**8,
    "genes": 8000,
    "perturbations": 10_000,
    "times": 1,
    "media": 0,
    "density": 0.1,
    "cells per step and process": 512,
    "processes per node": 32,  # one per core, each as fast as the core measured here
    "GiB per node": 256,
    "network, bytes per second and node": 3e9,
    "efficiency": 0.7,  # of what a step would take were processes not waiting for each other
    "bytes per count": 8,  # CSR in memory: float32 and int32
}


# ---------------------------------------------------------------------- measuring
def build(point: Point) -> PyroCell:
    """An untrained model of a random screen with cells in every condition, and 500 controls."""
    rng = np.random.default_rng(SEED)
    arms = [(f"target{k}", t, m) for k in range(point.perturbations)
            for t in range(point.times) for m in range(1 + point.media)]  # fmt: skip
    arms = arms * point.per_condition
    arms += [("control", i % point.times, i % (1 + point.media)) for i in range(CONTROLS)]
    label, when, medium = zip(*arms, strict=True)
    obs = pd.DataFrame({"perturbation": label}, index=[f"cell{i}" for i in range(len(arms))])
    keys = {"batch_key": "batch"}
    obs["batch"] = [f"lane{i}" for i in rng.integers(4, size=len(arms))]
    if point.times > 1:
        obs["time"], keys["time_key"] = 1.0 + np.array(when), "time"
    if point.media:
        obs["media"], keys["media_key"] = [("baseline", "IFNG")[m] for m in medium], "media"
    n = int(len(arms) * point.genes * -np.log1p(-point.density))  # some fall on each other
    where = rng.integers(len(arms), size=n), rng.integers(point.genes, size=n)
    counts = sp.csr_matrix((np.ones(n, np.float32), where), shape=(len(arms), point.genes))
    adata = AnnData(counts, obs, pd.DataFrame(index=[f"gene{g}" for g in range(point.genes)]))
    PyroCell.setup_anndata(adata, **keys)
    return PyroCell(adata)


def seconds_of(task, repeats: int) -> float:  # type: ignore[no-untyped-def]
    """Median processor time of a call."""
    taken = []
    for _ in range(repeats):
        start = time.process_time()
        task()
        taken.append(time.process_time() - start)
    return statistics.median(taken)


def measure(point: Point) -> dict[str, float]:
    """Seconds of a step and numbers in the parameters."""
    model = build(point)
    step = Step(model, point.cells)
    for _ in range(WARM_UP):
        step()
    seconds = seconds_of(step, STEPS)
    size = sum(p.numel() for p in model.module.parameters())
    gc.collect()
    return {"seconds": seconds, "parameters": size}


def ask(point: Point, n_samples: int = 10) -> dict[str, float]:
    """Seconds of latents per cell and gene, and of effects per perturbation, gene and draw."""
    model = build(point)
    model.get_latent_representation()
    model.perturbation_effects(["target0"], n_samples=2)
    latents = seconds_of(model.get_latent_representation, 3)
    start = time.process_time()
    model.perturbation_effects(n_samples=n_samples)
    effects = time.process_time() - start
    return {
        "latents": latents / (len(model._cells) * point.genes),
        "effects": effects / (point.perturbations * point.genes * n_samples),
    }


# ---------------------------------------------------------------------- the formula
def fit(points: list[Point], seconds: np.ndarray) -> dict[str, float]:
    """Coefficients in seconds, by non-negative least squares in relative error."""
    terms = pd.DataFrame([p.terms() for p in points])
    scale = terms.max()
    weights, _ = nnls((terms / scale).to_numpy() / seconds[:, None], np.ones(len(points)))
    return dict(zip(terms, weights / scale, strict=True))


def predicted(coefficients: dict[str, float], point: Point) -> float:
    """Seconds of a step by the formula."""
    return sum(coefficients[name] * size for name, size in point.terms().items())


def parameters(points: list[Point], counted: np.ndarray) -> dict[str, float]:
    """Numbers per unit of each size, by least squares; the remainder says if a size is missing."""
    sizes = pd.DataFrame([numbers(p) for p in points], dtype=float)
    weights, _ = nnls(sizes.to_numpy() / counted[:, None], np.ones(len(points)))
    return dict(zip(sizes, weights, strict=True))


def numbers(point: Point) -> dict[str, float]:
    """What the parameters are counted in."""
    return {
        "fixed": 1,
        "genes": point.genes,
        "perturbations": point.perturbations,
        "drivers x times x genes": (point.perturbations + point.media) * point.times * point.genes,
    }


def n_parameters(weights: dict[str, float], point: Point) -> float:
    """Numbers in the parameters by the formula."""
    return sum(weights[name] * size for name, size in numbers(point).items())


# ---------------------------------------------------------------------- extrapolation
def one_core(n_cells: int, cost: dict[str, float], size: dict[str, float]) -> dict[str, float]:
    """Training on one core, epochs by the rules of `TrainingConfig`."""
    config = TrainingConfig()
    batch, epochs = config.minibatch(n_cells), config.epochs(n_cells)
    n_perturbations = min(PLAN["perturbations"], n_cells // 100)
    each = n_cells // n_perturbations
    point = Point(batch, PLAN["genes"], n_perturbations, density=PLAN["density"], each=each)
    steps, size_of = epochs * (n_cells // batch), n_parameters(size, point)
    counts = n_cells * point.genes * point.density * PLAN["bytes per count"]
    return {
        "cells": n_cells,
        "perturbations": n_perturbations,
        "epochs": epochs,
        "steps": steps,
        "ms per step": 1e3 * predicted(cost, point),
        "core hours": steps * predicted(cost, point) / HOUR,
        "counts GiB": counts / GIB,
        "training GiB": 16 * size_of / GIB,  # value, gradient, two moments
        "checkpoint GiB": 12 * size_of / GIB,
    }


def many_nodes(
    nodes: int, cost: dict[str, float], size: dict[str, float], asked: dict[str, float]
) -> dict[str, float]:
    """The plan for 100,000,000 cells: processes take 512 cells each per step, gradients add up."""
    batch = PLAN["cells per step and process"]
    sizes = (PLAN[k] for k in ("genes", "perturbations", "times", "media", "density"))
    point = Point(batch, *sizes, each=PLAN["cells"] // PLAN["perturbations"])
    processes = nodes * PLAN["processes per node"]
    epochs = TrainingConfig().epochs(PLAN["cells"])
    steps = epochs * PLAN["cells"] / (batch * processes)
    held = n_parameters(size, point)
    compute = predicted(cost, point) / PLAN["efficiency"]
    network = 2 * 4 * held / PLAN["network, bytes per second and node"]  # ring all-reduce
    counts = PLAN["cells"] * point.genes * point.density * PLAN["bytes per count"]
    memory = 16 * held * PLAN["processes per node"] + counts / nodes
    return {
        "nodes": nodes,
        "steps": steps,
        "compute s per step": compute,
        "network s per step": network,
        "hours of training": steps * (compute + network) / HOUR,
        "GiB per node, counts in memory": memory / GIB,
        "hours of latents": asked["latents"] * PLAN["cells"] * point.genes / processes / HOUR,
        "hours of effects": asked["effects"] * 100 * point.perturbations * point.genes / HOUR,
    }


def main() -> None:
    """Measure, fit, hold against what was not fitted, extrapolate."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.parse_args()
    quiet()
    found = {point: measure(point) for point in FITTED + HELD_OUT}
    seconds = {point: each["seconds"] for point, each in found.items()}
    cost = fit(FITTED, np.array([seconds[p] for p in FITTED]))
    size = parameters(FITTED, np.array([found[p]["parameters"] for p in FITTED], float))
    usual = statistics.mean(seconds[p] for p in FITTED)
    table = pd.DataFrame(
        [
            p._asdict() | {
                "fitted": p in FITTED,
                "ms": 1e3 * seconds[p],
                "formula": predicted(cost, p) / seconds[p] - 1,
                "mean": usual / seconds[p] - 1,
                "parameters": n_parameters(size, p) / found[p]["parameters"] - 1,
            }
            for p in found
        ]
    )  # fmt: skip
    print("Step, ms of processor time; formula, mean, parameters: relative errors")
    print(table.to_string(index=False, float_format="{:.3f}".format))
    print("\nSeconds of a step =")
    print("\n".join(f"    {value:.3g} x {name}" for name, value in cost.items()))
    print("Parameters =")
    print("\n".join(f"    {value:.3g} x {name}" for name, value in size.items()))
    asked = ask(ASKED)
    print(f"\nLatents {1e9 * asked['latents']:.3g} ns per cell and gene, ", end="")
    print(f"effects {1e9 * asked['effects']:.3g} ns per perturbation, gene and draw")
    alone = pd.DataFrame([one_core(10**e, cost, size) for e in range(4, 9)])
    print("\nTraining on one core, 8,000 genes, a tenth of the counts not zero")
    print(alone.to_string(index=False, float_format="{:,.3g}".format))
    plan = pd.DataFrame([many_nodes(n, cost, size, asked) for n in (1, 8, 32)])
    print("\n100,000,000 cells on many nodes;", PLAN)
    print(plan.to_string(index=False, float_format="{:,.3g}".format))
    held = table[~table["fitted"]]
    write_results(
        "cost_model",
        {
            "all": {
                "coefficients": cost,
                "parameters": size,
                "held_out_error": {
                    c: held[c].abs().tolist() for c in ("formula", "mean", "parameters")
                },
                "asked": asked,
                "one_core": alone.to_dict("records"),
                "plan": plan.to_dict("records"),
            }
        },
        [SEED],
    )


if __name__ == "__main__":
    main()
