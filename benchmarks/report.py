"""How long report.html takes beyond the fit, and how large it is.

python benchmarks/report.py                  # embedded screen, THP-1 screen, 5,000 perturbations
python benchmarks/report.py --parts embedded
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from any_screen import MANY, screen_of_a_lab
from code_state import FIT
from common import quiet, shared, write_results

import pyrocell

ROOMS = (*FIT, "plotting", "report")  # that the figures depend on
SEED = 301
EPOCHS = {"embedded": 20, "thp1": 20, "many": 2}  # of the fit, which is not what is measured
PARTS = tuple(EPOCHS)


def cells_of(part: str):
    """A registered screen."""
    if part == "embedded":
        cells = pyrocell.datasets.hipsc_timecourse()
        pyrocell.PyroCell.setup_anndata(cells, time_key="time", size_factor_key="size_factor")
    elif part == "thp1":
        cells = shared("papalexi2021_thp1_eccite.h5ad")
        pyrocell.PyroCell.setup_anndata(cells)
    else:
        cells = screen_of_a_lab(**MANY)
        pyrocell.PyroCell.setup_anndata(cells)
    return cells


def measured(part: str) -> dict:
    """Seconds of each step of the report, and bytes of the page."""
    model = pyrocell.PyroCell(cells_of(part))
    model.train(max_epochs=EPOCHS[part], seed=SEED, progress_bar=False)
    steps: list[list] = []
    began = last = time.perf_counter()

    def say(step: str) -> None:
        nonlocal last
        now = time.perf_counter()
        if steps:
            steps[-1][1] = now - last
        steps.append([step, 0.0])
        last = now

    with tempfile.TemporaryDirectory() as folder:
        pyrocell.report.write(model, Path(folder) / "out", say=say)
        steps[-1][1] = time.perf_counter() - last
        size = (Path(folder) / "out" / "report.html").stat().st_size
    return {
        "seconds": time.perf_counter() - began,
        "page_MB": size / 1e6,
        "steps": {name: seconds for name, seconds in steps if seconds > 0.5},
    }


def main() -> None:
    """Measure, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="*", default=PARTS, choices=PARTS)
    quiet()
    for part in parser.parse_args().parts:
        figures = measured(part)
        print(part, figures, flush=True)
        write_results("report", {part: figures}, [SEED], rooms=ROOMS)


if __name__ == "__main__":
    main()
