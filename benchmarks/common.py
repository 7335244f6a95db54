"""What the benchmarks share: quiet fits, coverage, figures into a results file at the end."""

from __future__ import annotations

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
from code_state import code_of
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
_BEGAN = time.time()


def provenance() -> dict[str, Any]:
    """Commit, versions and machine that figures come from."""
    root = Path(__file__).parents[1]

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()

    packages = ("pyrocell", "torch", "pyro-ppl", "scvi-tools", "numpy", "numba", "anndata")
    changed = git("status", "--porcelain", "--", "pyrocell", "benchmarks/*.py")
    return {
        "commit": git("rev-parse", "--short", "HEAD") + ("+" if changed else ""),
        "date": time.strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "code": code_of(),
    }


def write_results(
    name: str, parts: dict[str, Any], seeds: Iterable[int] = (), path: Path | None = None
) -> None:
    """Put the figures of some parts of a benchmark into its results file, beside those there.

    Each part says from which commit, seeds and machine it is.
    """
    path = path or RESULTS / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    before = json.loads(path.read_text()) if path.exists() else {"benchmark": name}
    for part, figures in parts.items():
        clean = _rounded(json.loads(json.dumps(figures, default=_plain)))
        source = provenance() | {"seeds": list(seeds), "seconds": round(time.time() - _BEGAN)}
        before[part] = {"from": source, "figures": clean}
    path.write_text(json.dumps(before, indent=1) + "\n")
    print(f"{path}: {', '.join(parts)}", flush=True)


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else float(value)


def report(name: str, seeds: Iterable[int] | int = (), **figures: Any) -> None:
    """Print one line of JSON, and put the figures into the results file.

    A run with other options than the defaults is a part of its own, named after them, so that a
    quick try never takes the place of the figures of record.
    """
    clean = _rounded(json.loads(json.dumps(figures, default=_plain)))
    counted = isinstance(seeds, int)
    print(json.dumps({"benchmark": name, "seeds": seeds if counted else list(seeds), **clean}))
    part = " ".join(sys.argv[1:]) or "default"
    write_results(name, {part: clean}, range(seeds) if counted else seeds)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_rounded(v) for v in value]
    return value
