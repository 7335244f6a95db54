"""Effects of many perturbations on many genes: time, memory and disk of an answer that streams.

An untrained model (what training would change is not the cost) of a screen with one cell per
perturbation and 500 controls; its effects are asked for with a stated budget and written as zarr. A
process of its own, so that the peak of resident memory is that of the question. Columns:

    processor s    of the question, all threads together
    draws alone    the same joint draws with nothing done to them: the anchor, below which no answer
                   can go; from a few of them, times their number and the passes
    per number     nanoseconds of the question per perturbation, gene and draw
    passes         over the draws, as the budget allows
    grown MiB      peak of resident memory during the question above that of the model and a joint
                   draw alone (Linux)
    of draws MiB   what the draws would take, were they held
    disk MiB       of the store

    python benchmarks/inference_scale.py                     # 1,000 x 2,000, about two minutes
    python benchmarks/inference_scale.py --perturbations 10000 --genes 8000 --budgets "8 GiB"

Prints a table, then one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from common import part_of, quiet, write_results

from pyrocell import PyroCell
from pyrocell.posterior.summaries import passes

SEED = 0
CONTROLS = 500
MIB = 2**20


def screen(n_perturbations: int, n_genes: int) -> AnnData:
    """Controls, and a cell per perturbation; 5% of the counts not zero."""
    rng = np.random.default_rng(SEED)
    labels = ["control"] * CONTROLS + [f"target{k}" for k in range(n_perturbations)]
    names = [f"cell{i}" for i in range(len(labels))]
    obs = pd.DataFrame({"perturbation": pd.Categorical(labels)}, index=names)
    counts = _counts(rng, len(labels), n_genes)
    return AnnData(counts, obs, pd.DataFrame(index=[f"gene{g}" for g in range(n_genes)]))


def _counts(rng: np.random.Generator, n_cells: int, n_genes: int) -> sp.csr_matrix:
    n = n_cells * n_genes // 20
    where = rng.integers(n_cells, size=n), rng.integers(n_genes, size=n)
    return sp.csr_matrix((np.ones(n, np.float32), where), shape=(n_cells, n_genes))


def peak() -> int:
    """Greatest resident memory of this process since `forget_peak`, bytes."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def forget_peak() -> None:
    """Let the peak begin anew at the memory held now (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def size_of(path: Path) -> int:
    """Bytes of a directory."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def ask(n_perturbations: int, n_genes: int, n_samples: int, budget: str, few: int) -> dict:
    """One question, in this process."""
    quiet()
    start = time.process_time()
    adata = screen(n_perturbations, n_genes)
    PyroCell.setup_anndata(adata, batch_key=None)
    model = PyroCell(adata)
    built = time.process_time() - start
    model.perturbation_effects(["target0"], n_samples=2)  # compiles
    forget_peak()
    start = time.process_time()
    for _ in model.posterior.draws(few):
        pass
    draw = (time.process_time() - start) / few
    before = peak()
    forget_peak()
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "effects.zarr"
        start, wall = time.process_time(), time.perf_counter()
        model.perturbation_effects(n_samples=n_samples, path=path, memory_budget=budget)
        seconds, wall = time.process_time() - start, time.perf_counter() - wall
        disk = size_of(path)
    parts = model.fitted.parts(n_perturbations)
    n_passes = len(passes(parts, n_genes, n_samples, 0.9, budget))
    numbers = n_perturbations * n_genes * n_samples
    return {
        "perturbations": n_perturbations,
        "genes": n_genes,
        "samples": n_samples,
        "budget": budget,
        "processor_s": seconds,
        "wall_s": wall,
        "draws_alone_s": draw * n_samples * n_passes,
        "ns_per_number": 1e9 * seconds / numbers,
        "passes": n_passes,
        "grown_mib": (peak() - before) / MIB,
        "of_draws_mib": 4 * numbers / MIB,
        "disk_mib": disk / MIB,
        "model_mib": sum(p.nbytes for p in model.module.parameters()) / MIB,
        "build_s": built,
    }


def main() -> None:
    """Ask with every budget, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--perturbations", type=int, default=1000)
    parser.add_argument("--genes", type=int, default=2000)
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--budgets", nargs="+", default=["2 GiB", "200 MiB"])
    parser.add_argument("--few", type=int, default=3, help="joint draws timed alone")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    sizes = options.perturbations, options.genes, options.samples
    if options.one:
        print(json.dumps(ask(*sizes, options.budgets[0], options.few)))
        return
    columns = (
        "budget passes processor_s draws_alone_s ns_per_number grown_mib of_draws_mib disk_mib"
    ).split()
    print(f"{sizes[0]} perturbations x {sizes[1]} genes x {sizes[2]} draws")
    print(" ".join(f"{c:>14s}" for c in columns), flush=True)
    rows = []
    for budget in options.budgets:
        command = [sys.executable, "-W", "ignore", __file__, "--one", "--budgets", budget]
        for name in ("perturbations", "genes", "samples", "few"):
            command += [f"--{name}", str(getattr(options, name))]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        cells = (rows[-1][c] for c in columns)
        print(
            " ".join(f"{c:>14s}" if isinstance(c, str) else f"{c:14.1f}" for c in cells), flush=True
        )
    write_results("inference_scale", {part_of(parser, options): {"rows": rows}}, [SEED])


if __name__ == "__main__":
    main()
