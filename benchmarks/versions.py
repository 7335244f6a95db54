"""This version against another checkout of the package: time and held-out evidence, in turns.

Each round starts a process of either version on the same simulated screen (50 perturbations, 1,000
genes, 4 batches) with one thread, and takes seconds of processor time: import, whole trainings of 8
epochs without the phase of single genes, `predict` and `assumptions`. Ratios are medians over
rounds. Held-out evidence is that of the same held-out tenth of the THP-1 screen of `shared/data`.

    git worktree add /tmp/before COMMIT
    python benchmarks/versions.py /tmp/before
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from common import shared_file, write_results

ROOT = Path(__file__).resolve().parents[1]
ROUNDS, SEED = 5, 7
TIMED = """
import sys, time, inspect, json, warnings, logging
began = time.process_time()
sys.path.insert(0, sys.argv[1])
import pyrocell
took = {"import": time.process_time() - began}
assert pyrocell.__file__.startswith(sys.argv[1])
warnings.filterwarnings("ignore"); logging.disable(logging.CRITICAL)
import pandas as pd
def timed(name, work):
    began = time.process_time(); work(); took[name] = time.process_time() - began
cells = pyrocell.simulate.screen(n_perturbations=50, n_genes=1000, n_cells_per_condition=80,
                                 n_controls=800, n_batches=4, seed=1)
pyrocell.PyroCell.setup_anndata(cells)
model = pyrocell.PyroCell(cells)
first = inspect.signature(model.train).parameters
alone = {"gene_level": False} if "gene_level" in first else {}
train = lambda: model.train(max_epochs=8, progress_bar=False, **alone)
train(); timed("train", train)
asked = pd.DataFrame({"perturbation": ["control", *model.screen.perturbations[:9]]})
predict = lambda: model.predict(asked, n_samples=50)
predict(); timed("predict", predict)
model.assumptions(); timed("assumptions", model.assumptions)
print(json.dumps(took))
"""
EVIDENCE = """
import sys, json, warnings, logging
sys.path.insert(0, sys.argv[1])
import pyrocell, anndata, numpy as np
assert pyrocell.__file__.startswith(sys.argv[1])
warnings.filterwarnings("ignore"); logging.disable(logging.CRITICAL)
cells = anndata.read_h5ad(sys.argv[2])
cells = cells[:, np.asarray(cells.X.sum(0)).ravel() > 0].copy()
pyrocell.PyroCell.setup_anndata(cells)
model = pyrocell.PyroCell(cells)
model.train(seed=int(sys.argv[3]), progress_bar=False)
held = cells[model.validation_indices_].copy()
print(json.dumps(model.get_marginal_ll(held, n_mc_samples=50).tolist()))
"""


def said(script: str, *arguments: object) -> dict | list:
    """What a script prints in a process of its own, on one thread."""
    threads = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS")}
    run = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        capture_output=True, text=True, check=True, env=os.environ | threads,
    )  # fmt: skip
    return json.loads(run.stdout.splitlines()[-1])


def main() -> None:
    """Compare, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("before", type=Path, help="checkout of the other version")
    before = parser.parse_args().before.resolve()
    rounds = [(said(TIMED, ROOT), said(TIMED, before)) for _ in range(ROUNDS)]
    ratios = {
        name: float(np.median([now[name] / then[name] for now, then in rounds]))
        for name in rounds[0][0]
    }
    file = shared_file("papalexi2021_thp1_eccite.h5ad")
    now, then = (np.array(said(EVIDENCE, root, file, SEED)) for root in (ROOT, before))
    gain = now - then
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=before, capture_output=True, text=True
    ).stdout.strip()
    figures = {
        "before": commit,
        "processor_time_ratio": ratios,
        "held_out_nats_per_cell": [float(gain.mean()), float(gain.std() / len(gain) ** 0.5)],
    }
    print(json.dumps(figures))
    write_results("versions", {f"against {commit}": figures}, seeds=[SEED])


if __name__ == "__main__":
    main()
