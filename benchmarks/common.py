"""What the benchmarks share: quiet fits, coverage, figures into a results file at the end."""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import torch
from code_state import FIT, code_of, newest
from joblib import Parallel, delayed

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def quiet() -> None:
    """One thread, no chatter."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.fabric", "scvi", "pyrocell"):
        logging.getLogger(name).setLevel(logging.ERROR)


_PRODUCTS = """
import sys, time, numpy
a = numpy.random.default_rng(0).random((500, 500))
a @ a
while time.time() < float(sys.argv[1]): pass
began = time.perf_counter()
for _ in range(100): a @ a
print(time.perf_counter() - began)
"""


def machine_speedup(processes: int = 2) -> float:
    """What so many processes of matrix products get done at once, in units of what one does.

    The anchor of any speed-up: no program gains more from the cores of this machine at this moment.
    """
    alone, together = (_products(n) for n in (1, processes))
    return processes * alone / together


def _products(processes: int) -> float:
    """Mean seconds of fixed work in processes that start it together, one thread each."""
    start = str(time.time() + 3)
    one_thread = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-c", _PRODUCTS, start]
    started = [
        subprocess.Popen(command, stdout=subprocess.PIPE, env=one_thread) for _ in range(processes)
    ]
    return float(np.mean([float(p.communicate()[0]) for p in started]))


def shared_file(name: str) -> Path:
    """Where a real screen lies beside the repository; or say that it does not."""
    path = SHARED / name
    if not path.exists():
        raise SystemExit(f"{path} is absent: this benchmark needs the shared screens")
    return path


def shared(name: str) -> ad.AnnData:
    """Read a real screen that lies beside the repository, or say why not."""
    return ad.read_h5ad(shared_file(name))


def run_all(function: Callable, jobs: Iterable[tuple], n_jobs: int) -> list:
    """Call a function on every job, several processes at a time."""
    return Parallel(n_jobs=n_jobs)(delayed(_timed)(function, job) for job in jobs)


def _timed(function: Callable, job: tuple) -> Any:
    quiet()
    start = time.time()
    result = function(*job)
    result["seconds"] = round(time.time() - start, 1)
    print({k: v for k, v in result.items() if not isinstance(v, np.ndarray)}, flush=True)
    return result


def covered(lower: np.ndarray, upper: np.ndarray, truth: np.ndarray) -> float:
    """Share of the truth inside the intervals."""
    return float(((lower <= truth) & (truth <= upper)).mean())


RESULTS = Path(__file__).parent / "results"
# Options that do not change what a part measures; --parts and --rows choose parts.
_NO_MATTER = {"jobs", "out", "output", "parts", "rows", "write"}
_STARTED = time.time()
_written = time.perf_counter()


def provenance(rooms: Iterable[str] = FIT) -> dict[str, Any]:
    """Commit, versions, machine and code that figures come from.

    Parameters
    ----------
    rooms
        Rooms of the package that the figures depend on.
    """
    root = Path(__file__).parents[1]

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()

    packages = ("pyrocell", "torch", "pyro-ppl", "scvi-tools", "numpy", "numba", "anndata")
    changed = git("status", "--porcelain", "--", "pyrocell", "benchmarks/*.py")
    # Nobody knows which code ran where files were written after the script had begun.
    code = "changed while it ran" if newest(rooms) > _STARTED else code_of(rooms)
    return {
        "commit": git("rev-parse", "--short", "HEAD") + ("+" if changed else ""),
        "date": time.strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "code": {"rooms": sorted(rooms), "hash": code},
    }


def part_of(
    parser: argparse.ArgumentParser,
    arguments: argparse.Namespace,
    part: str = "all",
    but: Iterable[str] = (),
) -> str:
    """Name of a part of the results: its own where options differ from their defaults.

    A quick run with `--seeds 1` is "all: seeds 1", and leaves the figures of a full run as they
    are. Options in `but`, and those that say how to run rather than what, are left out.
    """
    changed = []
    for name, value in vars(arguments).items():
        default = parser.get_default(name)
        if name in _NO_MATTER or name in but or _words(value) == _words(default):
            continue
        changed.append(
            " ".join([name.replace("_", "-"), *([] if value is True else _words(value))])
        )
    return f"{part}: {', '.join(changed)}" if changed else part


def _words(value: Any) -> list[str]:
    values = value if isinstance(value, list | tuple | range) else [value]
    return [f"{v:g}" if isinstance(v, float) else str(v) for v in values]


def write_results(
    name: str,
    parts: dict[str, Any],
    seeds: Iterable[int] = (),
    path: Path | None = None,
    rooms: Iterable[str] = FIT,
) -> None:
    """Put the figures of some parts of a benchmark into its results file, beside those there.

    Each part says from which commit, code, seeds and machine it is, and how many seconds of wall
    time passed since the last call, or since the script began. The figures are also printed, as
    one line of JSON.

    Parameters
    ----------
    name
        Name of the benchmark, and of its file in `results/`.
    parts
        Figures of each part, by the name that `part_of` gives it.
    seeds
        Seeds of the screens or fits.
    path
        Another file.
    rooms
        Rooms of the package that the figures depend on.
    """
    global _written
    seconds, _written = time.perf_counter() - _written, time.perf_counter()
    path = path or RESULTS / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    clean = _rounded(json.loads(json.dumps(parts, default=_plain)))
    print(json.dumps({"benchmark": name, **clean}))
    made = provenance(rooms) | {"seeds": list(seeds), "seconds": round(seconds, 1)}
    before = json.loads(path.read_text()) if path.exists() else {"benchmark": name}
    before |= {part: {"from": made, "figures": figures} for part, figures in clean.items()}
    path.write_text(json.dumps(before, indent=1) + "\n")
    print(f"{path}: {', '.join(parts)}", flush=True)


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else float(value)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_rounded(v) for v in value]
    return value
