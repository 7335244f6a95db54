"""Three readers of a fit, each from counts to an answer: shell alone, scanpy, ArviZ.

Those of scanpy and ArviZ are in tests/posterior/test_other_tools.py.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time

import numpy as np
import pytest

from pyrocell import simulate
from pyrocell.cli.main import main


@pytest.fixture(scope="module")
def blocked_screen():
    """A strong medium, and perturbations of which some block it."""
    return simulate.screen(
        n_perturbations=8, n_genes=60, n_cells_per_condition=60, n_controls=150, media=1,
        media_rms=0.8, blocked_fraction=0.25, silent_fraction=0.5, mean_library=1500.0, seed=5,
    )  # fmt: skip


def test_from_the_shell_alone_one_learns_who_blocks_and_whether_to_believe_it(
    blocked_screen, tmp_path, capsys
):
    cells = blocked_screen.copy()
    truth = cells.uns.pop("truth")
    cells.write_h5ad(tmp_path / "screen.h5ad")
    options = ["--media-key", "media", "-o", str(tmp_path / "out"), "--max-epochs", "25"]
    assert main(["fit", str(tmp_path / "screen.h5ad"), *options]) == 0
    printed = capsys.readouterr().out
    first = printed.split("## ")[0]
    assert re.search(r"believed|Every check that was made is good|Do not use", first)
    names = sorted(set(cells.obs["perturbation"].astype(str)) - {"control"})
    blocked = {k for k, b in zip(names, np.asarray(truth["blocked"])[:, 0]) if b}
    assert blocked
    said = (tmp_path / "out" / "tables" / "perturbations.csv").read_text()
    verdict = {row.split(",")[0]: row for row in said.splitlines()[1:]}
    called = {k for k, row in verdict.items() if ",blocked," in row}
    assert called == blocked
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "overall" in page and len(page) < 5e6


@pytest.mark.parametrize("words", [["--help"], ["--version"]])
def test_help_comes_at_once(words):
    command = [sys.executable, "-m", "pyrocell.cli", *words]
    took = []
    for _ in range(3):
        before = os.times()
        began = time.perf_counter()
        run = subprocess.run(command, capture_output=True, text=True, check=True)
        after = os.times()
        used = after.children_user + after.children_system
        took.append(used - before.children_user - before.children_system)
        assert time.perf_counter() - began < 30
    assert "pyrocell" in run.stdout
    assert min(took) < 1.0  # of processor; loading PyTorch alone takes more


def test_nothing_heavy_is_loaded_before_it_is_used():
    script = "import sys, pyrocell, pyrocell.cli.main; print(sorted(sys.modules))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = set(re.findall(r"'([\w.]+)'", run.stdout))
    assert not loaded & {"torch", "numpy", "pandas", "scvi", "scanpy", "matplotlib", "numba"}
