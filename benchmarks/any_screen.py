"""The command on large screens: what it says without a fit, and a fit of 5,000 perturbations.

`pyrocell check` on 20,000 cells, 2,000 genes, 100 perturbations; `pyrocell fit` on 5,000
perturbations of 8 cells, 300 genes, for a few epochs. Each line of progress is timed as it comes;
the seconds of a step are those until the next line.

    python benchmarks/any_screen.py
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from anndata import AnnData
from code_state import FIT
from common import quiet, write_results

from pyrocell import simulate

ROOMS = (*FIT, "cli", "plotting", "report")  # that the figures depend on
SEED, EPOCHS = 501, 3
CHECKED = {"n_perturbations": 100, "n_genes": 2000, "n_cells_per_condition": 190}
CHECKED |= {"n_controls": 1000, "n_batches": 4, "seed": SEED}
MANY = {"n_perturbations": 5000, "n_genes": 300, "n_cells_per_condition": 8}
MANY |= {"n_controls": 2000, "n_batches": 4, "seed": SEED}


def screen_of_a_lab(**options: int) -> AnnData:
    """Simulated counts and labels, without the truth, which has thousands of columns."""
    cells = simulate.screen(**options)
    return AnnData(cells.X, cells.obs, cells.var[[]])


def timed(arguments: list[str]) -> tuple[float, list[tuple[float, str]]]:
    """Seconds of a run of the command, and each line it said with the second it came at."""
    began = time.perf_counter()
    started = subprocess.Popen(
        [sys.executable, "-m", "pyrocell.cli", *arguments],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
    )
    lines = [(time.perf_counter() - began, line.strip()) for line in started.stderr]
    if started.wait():
        raise SystemExit("\n".join(line for _, line in lines[-20:]))
    return time.perf_counter() - began, lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="*", default=["check", "many"])
    arguments = parser.parse_args()
    quiet()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "check" in arguments.parts:
            cells = screen_of_a_lab(**CHECKED)
            cells.write_h5ad(folder / "cells.h5ad")
            seconds, _ = timed(["check", str(folder / "cells.h5ad")])
            print(f"check: {seconds:.1f} s", flush=True)
            figures = {"cells": cells.n_obs, "seconds": seconds}
            write_results("any_screen", {"check": figures}, [SEED], rooms=ROOMS)
        if "many" in arguments.parts:
            cells = screen_of_a_lab(**MANY)
            cells.write_h5ad(folder / "many.h5ad")
            command = ["fit", str(folder / "many.h5ad"), "-o", str(folder / "out")]
            seconds, lines = timed([*command, "--max-epochs", str(EPOCHS)])
            ends = [at for at, _ in lines[1:]] + [seconds]
            steps = [[line, end - at] for (at, line), end in zip(lines, ends, strict=True)]
            for line, took in steps:
                if took > 0.5:
                    print(f"{took:7.1f} s  {line[:100]}", flush=True)
            size = sum(f.stat().st_size for f in (folder / "out").rglob("*") if f.is_file())
            figures = {"cells": cells.n_obs, "perturbations": MANY["n_perturbations"]}
            figures |= {
                "seconds": seconds,
                "bytes": size,
                "steps": [s for s in steps if s[1] > 0.5],
            }
            write_results("any_screen", {"many": figures}, [SEED], rooms=ROOMS)


if __name__ == "__main__":
    main()
