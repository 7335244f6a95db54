"""What pyrocell wrote itself beside what well-kept libraries do: time, memory, error.

python benchmarks/own_code.py

Rows of an optimiser, quantiles of draws, checkpoints, and starting processes. What came of it is
in docs/dependencies.md.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
import tempfile
import textwrap
import time
import tracemalloc
from pathlib import Path

import numpy as np
import torch
from common import quiet, write_results
from joblib.disk import memstr_to_bytes

from pyrocell.posterior.draws import summarise
from pyrocell.posterior.streaming_quantiles import RunningSummary, memory_bytes
from pyrocell.training.checkpoints import read_checkpoint, write_checkpoint
from pyrocell.training.row_adam import RowAdam, visited_rows

ROOMS = ("posterior", "training")  # that the figures depend on
SEED = 11
ROWS, COLUMNS, SEEN = 5_000, 2_000, 512
OPTIMISERS = {
    "rows": (RowAdam, visited_rows),
    "torch SparseAdam": (
        torch.optim.SparseAdam,
        lambda table, rows: torch.nn.functional.embedding(rows, table, sparse=True),
    ),
    "torch Adam": (torch.optim.Adam, lambda table, rows: table[rows]),
}
LAUNCHED = """
import sys, torch, lightning.pytorch as pl
with open(sys.argv[2], "a") as log: log.write("run\\n")
class Line(pl.LightningModule):
    def __init__(self):
        super().__init__(); self.layer = torch.nn.Linear(4, 1)
    def training_step(self, batch, _): return self.layer(batch[0]).square().mean()
    def configure_optimizers(self): return torch.optim.Adam(self.parameters())
torch.ones(512, 512) @ torch.ones(512, 512)  # as any work before a training: starts threads
cells = torch.utils.data.TensorDataset(torch.randn(64, 4))
for _ in range(2):
    pl.Trainer(accelerator="cpu", devices=2, strategy=sys.argv[1], max_epochs=1, logger=False,
               enable_checkpointing=False, enable_progress_bar=False).fit(
        Line(), torch.utils.data.DataLoader(cells, 8))
"""
OURS = """
import sys, numpy as np, pyrocell
with open(sys.argv[2], "a") as log: log.write("run\\n")
cells = pyrocell.simulate.screen(n_perturbations=3, n_genes=20, n_cells_per_condition=20,
                                 n_controls=20, n_batches=2, seed=1)
pyrocell.PyroCell.setup_anndata(cells)
model = pyrocell.PyroCell(cells)
for _ in range(2):
    model.train(devices=2, accelerator="cpu", max_epochs=1, gene_level=False, progress_bar=False)
"""


def optimisers() -> dict[str, dict[str, float]]:
    """Seconds of a step, and how far from the truth rows end that few steps see."""
    found = {}
    for name, (optimiser, look_up) in OPTIMISERS.items():
        generator = torch.Generator().manual_seed(SEED)
        table = torch.zeros(ROWS, COLUMNS, requires_grad=True)
        moves, took = optimiser([table], lr=1e-3), []
        for _ in range(12):
            rows = torch.randperm(ROWS, generator=generator)[:SEEN].sort().values
            began = time.perf_counter()
            look_up(table, rows).square().sum().backward()
            moves.step()
            moves.zero_grad()
            took.append(time.perf_counter() - began)
        found[name] = {"ms_per_step": 1e3 * float(np.median(took[2:]))}
    # Means of noisy cells, each row seen in one of twenty steps with twenty times its gradient.
    for name, (optimiser, look_up) in OPTIMISERS.items():
        generator = torch.Generator().manual_seed(SEED)
        truth = torch.randn(200, 50, generator=generator)
        table = torch.zeros(200, 50, requires_grad=True)
        moves, errors = optimiser([table], lr=1e-2), []
        for step in range(1_000):
            rows = torch.randperm(200, generator=generator)[:10].sort().values
            cells = truth[rows] + 0.3 * torch.randn(10, 50, generator=generator)
            (10 * (look_up(table, rows) - cells).square().sum()).backward()
            moves.step()
            moves.zero_grad()
            if step + 1 in (250, 500, 1_000):
                errors.append(float((table.detach() - truth).square().mean().sqrt()))
        found[name]["rmse_after_250_500_1000_steps"] = errors
    return found


def quantiles() -> dict[str, dict[str, float]]:
    """Mean, sd, interval of a thousand draws of 100,000 numbers."""
    n, size = 1_000, 100_000

    def draws():
        generator = np.random.default_rng(SEED)
        for _ in range(n):
            yield generator.standard_normal(size, dtype=np.float32)

    def streaming():
        summary = RunningSummary((size,), n)
        for draw in draws():
            summary.add(draw)
        return summary.summary()

    def held():
        return summarise(np.stack(list(draws())))

    def partition():
        every = np.stack(list(draws()))
        k = n // 20
        every.partition((k - 1, k, n - k - 1, n - k), axis=0)
        return {"mean": every.mean(0), "lower": every[k], "upper": every[-k]}

    found, bounds = {}, {}
    streaming()  # compiles
    ways = {"streaming": streaming, "numpy quantile": held, "numpy partition": partition}
    for name, work in ways.items():
        began = time.perf_counter()
        bounds[name] = work()
        found[name] = {"seconds": time.perf_counter() - began}
        tracemalloc.start()
        work()
        found[name]["peak_MiB"] = tracemalloc.get_traced_memory()[1] / 2**20
        tracemalloc.stop()
    found["streaming"]["largest_difference_to_numpy"] = float(
        max(
            np.abs(bounds["streaming"][k] - bounds["numpy quantile"][k]).max()
            for k in ("mean", "lower", "upper")
        )
    )
    return found


class _Code:
    """Pickled, it writes a file when it is read."""

    def __init__(self, path: Path):
        self.path = str(path)

    def __reduce__(self):
        return Path.write_text, (Path(self.path), "ran")


def checkpoints() -> dict[str, dict]:
    """Seconds to write and read 200 MB, and whether reading runs code or sees a changed byte."""
    generator = torch.Generator().manual_seed(SEED)
    state = {
        "state_dict": {f"w{i}": torch.randn(5_000, 2_000, generator=generator) for i in range(5)},
        "epoch": 3,
    }
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, write, read in (
            ("safetensors", lambda p: write_checkpoint(p, state), read_checkpoint),
            (
                "torch.save",
                lambda p: torch.save(state, p),
                lambda p: torch.load(p, weights_only=True),
            ),
        ):
            path = Path(folder) / name
            times = []
            for work in (write, read):
                began = time.perf_counter()
                work(path)
                times.append(time.perf_counter() - began)
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 1
            path.write_bytes(data)
            try:
                read(path)
                sees = False
            except Exception:
                sees = True
            found[name] = dict(zip(("write_s", "read_s"), times)) | {"sees_a_changed_byte": sees}
        mark, path = Path(folder) / "mark", Path(folder) / "code"
        path.write_bytes(pickle.dumps(_Code(mark)))
        with path.open("rb") as file:
            pickle.load(file)
        found["pickle"] = {"reading_runs_code": mark.exists()}
    return found


def launchers() -> dict[str, dict]:
    """A script without a `__main__` guard that trains twice on two processes."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, script in (
            ("ours", OURS),
            ("ddp", LAUNCHED),
            ("ddp_spawn", LAUNCHED),
            ("ddp_fork", LAUNCHED),
        ):
            path, log = Path(folder) / f"{name}.py", Path(folder) / f"{name}.log"
            path.write_text(textwrap.dedent(script))
            began = time.perf_counter()
            try:
                run = subprocess.run(
                    [sys.executable, str(path), name, str(log)],
                    capture_output=True, text=True, timeout=300,
                )  # fmt: skip
                end = "done" if run.returncode == 0 else run.stderr.strip().splitlines()[-1][:100]
            except subprocess.TimeoutExpired:
                end = "hangs"
            found[name] = {
                "end": end,
                "seconds": time.perf_counter() - began,
                "times_the_script_ran": log.read_text().count("run"),
            }
    return found


def sizes() -> dict[str, str]:
    """What a text of a size is read as."""
    found = {}
    for name, read in (("ours", memory_bytes), ("joblib", memstr_to_bytes)):
        for text in ("2 GiB", "500 MB", "2e9"):
            try:
                found[f"{name}: {text}"] = str(read(text))
            except Exception as error:
                found[f"{name}: {text}"] = type(error).__name__
    return found


def main() -> None:
    """Measure, and write what was found."""
    quiet()
    for measured in (optimisers, quantiles, checkpoints, launchers, sizes):
        figures, part = measured(), measured.__name__.replace("optimisers", "optimiser")
        print(part, figures, flush=True)
        write_results("own_code", {part: figures}, [SEED], rooms=ROOMS)


if __name__ == "__main__":
    main()
