"""Write the lists of docs/api.md from `__all__` of the modules that each block names.

A block begins with a line `% api: MODULE` and ends with the fence that closes its directive.

    python scripts/render_api.py
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "api.md"
_BLOCK = re.compile(r"^% api: (\S+)\n\n```\{eval-rst\}\n.*?^```\n", flags=re.DOTALL | re.MULTILINE)


def public(module: str) -> list[str]:
    """Classes and functions that a module makes public, with the path from the package on."""
    room = importlib.import_module(module)
    prefix = module.removeprefix("pyrocell").removeprefix(".")
    known = [] if not prefix else importlib.import_module("pyrocell").__all__
    names = [n for n in room.__all__ if callable(getattr(room, n)) and n not in known]
    return [f"{prefix}.{name}".removeprefix(".") for name in names]


def rendered(text: str) -> str:
    """The page with every block as the code has it now."""

    def block(found: re.Match[str]) -> str:
        names = "\n".join(f"   {name}" for name in public(found[1]))
        return (
            f"% api: {found[1]}\n\n```{{eval-rst}}\n.. currentmodule:: pyrocell\n\n"
            f".. autosummary::\n   :toctree: generated\n   :nosignatures:\n\n{names}\n```\n"
        )

    return _BLOCK.sub(block, text)


def main() -> None:
    """Render the page."""
    PAGE.write_text(rendered(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
