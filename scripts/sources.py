"""Where rendered figures come from: script, commit, date, and whether code has changed since."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
sys.path.insert(0, str(ROOT / "benchmarks"))

from code_state import code_of  # noqa: E402

CHANGED = "the code has changed since"


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def parts_of(name: str) -> dict[str, dict[str, Any]]:
    """Parts of a results file: provenance and figures; empty where there is none."""
    path = RESULTS / f"{name}.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return {k: v for k, v in found.items() if isinstance(v, dict) and "from" in v}


def unchanged(sources: Iterable[dict[str, Any]]) -> bool:
    """Whether a fit still runs the code that all of these were measured on."""
    now = code_of()
    return all(source.get("code") == now for source in sources)


def origin(scripts: Iterable[str], sources: list[dict[str, Any]]) -> str:
    """The line below a table."""
    commits = ", ".join(dict.fromkeys(source["commit"] for source in sources))
    seeds = ", ".join(dict.fromkeys(str(s) for source in sources for s in source["seeds"]))
    named = ", ".join(f"`benchmarks/{script}`" for script in scripts)
    named += f", seeds {seeds}" if seeds else ""
    last = max(sources, key=lambda source: source["date"])
    changed = "" if unchanged(sources) else f"; {CHANGED}"
    return f"{named}; commit {commits}, {last['date']}, {last['machine']}{changed}."
