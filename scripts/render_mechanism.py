"""Tables of the pages on mechanism, from rows that their benchmarks wrote.

A part of `benchmarks/results/mechanism_*.json` has `rows`: what, the figure of pyrocell, that of
the anchor named in brackets, and that of the null. Rendered by `render_record.py`.
"""

from __future__ import annotations

from collections.abc import Callable

from sources import number, of_record, origin, parts_of, table

HEAD = ["what (anchor; null)", "pyrocell", "anchor", "null"]


def block(name: str) -> Callable[[], str]:
    """Renderer of the table of a benchmark; empty where it has no results."""

    def rendered() -> str:
        parts = of_record(parts_of(name))
        rows = [row for part in parts.values() for row in part["figures"].get("rows", [])]
        if not rows:
            return ""
        text = [[row[0], *("" if v is None else number(v) for v in row[1:])] for row in rows]
        made = origin([f"{name}.py"], [part["from"] for part in parts.values()])
        return f"{table(HEAD, text)}\n\n{made}"

    return rendered


BLOCKS = {
    f"mechanism {part}": block(f"mechanism_{part}")
    for part in ("embeddings", "signature", "sparse")
}
