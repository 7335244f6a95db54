"""Files damaged at random are refused or read as they were; see `benchmarks/damaged_files.py`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_damages_neither_end_a_process_nor_give_other_numbers():
    command = [sys.executable, ROOT / "benchmarks" / "damaged_files.py"]
    ended = subprocess.run(
        [*command, "--damages", "6", "--kills", "0"], capture_output=True, text=True
    )
    assert not ended.returncode, ended.stdout + ended.stderr
    assert ended.stdout.count("'damages': 6") == 8
