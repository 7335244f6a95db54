"""Write the figures of any_screen.json and damaged_files.json into docs/screens.md.

python scripts/render_screens.py
"""

from __future__ import annotations

import json
from pathlib import Path

import sources
from sources import table, with_blocks

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "screens.md"
OUTCOMES = ("same", "refused", "warned", "other", "unseeable", "foreign", "killed", "hung")
CHECK = "writing posterior predictive check"


def damages(rows: list[dict]) -> str:
    """What became of files that were damaged at random."""
    head = ["damaged at random", "damages", *OUTCOMES]
    damaged = [row for row in rows if "damages" in row]
    return table(head, [[row["kind"], *(str(row[k]) for k in head[1:])] for row in damaged])


def further(rows: list[dict], large: dict) -> str:
    """Kills, and the command on large screens."""
    lines = [
        [
            f"killed at random moments of a {row['kind']}: old or new files",
            f"{row['old_or_new']} of {row['kills']}",
        ]
        for row in rows
        if "kills" in row
    ]
    check, many = large["check"]["figures"], large["many"]["figures"]
    lines.append(
        [f"`pyrocell check`, {check['cells']:,} cells × 2,000 genes", f"{check['seconds']:.1f} s"]
    )
    predicted = sum(seconds for line, seconds in many["steps"] if line == CHECK)
    what = f"`pyrocell fit`, {many['perturbations']:,} perturbations, {many['cells']:,} cells × "
    what += "300 genes, 3 epochs"
    lines.append([what, f"{many['seconds']:.0f} s"])
    lines.append(["of this, the predictive check", f"{predicted:.0f} s"])
    return table(["further", "figure"], lines)


def origin(parts: list[dict]) -> str:
    """Scripts, commits and machine."""
    return sources.origin(["damaged_files.py", "any_screen.py"], parts)


def block() -> str:
    """What stands between the markers."""
    found, large = (
        json.loads((RESULTS / f"{name}.json").read_text())
        for name in ("damaged_files", "any_screen")
    )
    rows = found["files"]["figures"]
    made = [found["files"]["from"], large["check"]["from"], large["many"]["from"]]
    return "\n\n".join([damages(rows), further(rows, large), origin(made)])


def rendered(text: str) -> str:
    """The page with its block made anew."""
    return with_blocks(text, {"files": block})


def main() -> None:
    """Render the page."""
    PAGE.write_text(rendered(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
