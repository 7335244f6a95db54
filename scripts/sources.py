"""Where rendered figures come from: script, commit, date, and whether code has changed since."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import cache
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


def number(value: float | None) -> str:
    """Three digits at most, no leading zero."""
    if value is None or math.isnan(value):
        return ""
    text = f"{value:.3f}" if abs(value) < 0.1 else f"{value:.2f}"
    text = re.sub(r"^(-?)0\.", r"\1.", text)
    return "0" if re.fullmatch(r"-?\.0+", text) else text


def parts_of(name: str, results: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """All parts of a results file, provenance and figures; empty where there is none."""
    path = results / f"{name}.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return {k: v for k, v in found.items() if isinstance(v, dict) and "from" in v}


def of_record(parts: Mapping[str, Any]) -> dict[str, Any]:
    """The parts that were measured with default options: others have a colon in their names."""
    return {name: part for name, part in parts.items() if ":" not in name}


def unchanged(sources: Iterable[dict[str, Any]]) -> bool:
    """Whether the rooms that all of these depend on have the code that was measured.

    A source without a hash of its rooms counts as changed.
    """
    codes = [source.get("code") for source in sources]
    return all(isinstance(c, dict) and _now(tuple(c["rooms"])) == c["hash"] for c in codes)


@cache
def _now(rooms: tuple[str, ...]) -> str:
    return code_of(rooms)


def seeds_of(sources: Iterable[dict[str, Any]]) -> str:
    """Seeds in words; runs of four or more by their ends."""
    seeds = list(dict.fromkeys(seed for source in sources for seed in source["seeds"]))
    runs: list[list[int]] = []
    for seed in seeds:
        if runs and seed == runs[-1][-1] + 1:
            runs[-1].append(seed)
        else:
            runs.append([seed])
    return ", ".join(
        f"{run[0]} to {run[-1]}" if len(run) > 3 else ", ".join(map(str, run)) for run in runs
    )


def origin(scripts: Iterable[str], sources: list[dict[str, Any]]) -> str:
    """The line below a table."""
    commits = ", ".join(dict.fromkeys(source["commit"] for source in sources))
    seeds = seeds_of(sources)
    named = ", ".join(f"`benchmarks/{script}`" for script in scripts)
    named += f", seeds {seeds}" if seeds else ""
    last = max(sources, key=lambda source: source["date"])
    changed = "" if unchanged(sources) else f"; {CHANGED}"
    return f"{named}; commit {commits}, {last['date']}, {last['machine']}{changed}."


def with_blocks(text: str, blocks: Mapping[str, Callable[[], str]]) -> str:
    """A page with the blocks that it holds made anew.

    A block stands between `<!-- NAME: begin -->` and `<!-- NAME: end -->`.
    """

    def block(found: re.Match[str]) -> str:
        make = blocks.get(found[1])
        if make is None:
            return found[0]
        return f"<!-- {found[1]}: begin -->\n\n{make()}\n\n<!-- {found[1]}: end -->"

    return re.sub(r"<!-- ([^\n]+): begin -->\n.*?<!-- \1: end -->", block, text, flags=re.DOTALL)
