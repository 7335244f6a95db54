"""Which code a figure was measured on: a hash of what the code does, not of its words."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable
from pathlib import Path

__all__ = ["ROOMS", "code_of"]

_BLOCKS = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
ROOT = Path(__file__).parents[1]
# What a fit and its answers pass through.
ROOMS = (
    *("assumptions", "contrasts", "data", "distributions", "generative", "guide", "model.py"),
    *("noise", "operators", "posterior", "priors.py", "screen", "training", "views"),
)


def code_of(rooms: Iterable[str] = ROOMS, root: Path = ROOT) -> str:
    """Hash of the modules of some rooms of the package, comments and docstrings left out."""
    digest = hashlib.sha256()
    for room in sorted(rooms):
        path = root / "pyrocell" / room
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(file.name.encode())
            digest.update(_without_words(file.read_text(encoding="utf-8")).encode())
    return digest.hexdigest()[:16]


def _without_words(source: str) -> str:
    """Lines of code, without docstrings, comments of their own and blank lines."""
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        for child in getattr(node, "body", []) if isinstance(node, _BLOCKS) else []:
            if _is_text(child):
                for number in range(child.lineno - 1, child.end_lineno or child.lineno):
                    lines[number] = ""
    kept = (line.rstrip() for line in lines)
    return "\n".join(line for line in kept if line and not line.lstrip().startswith("#"))


def _is_text(node: ast.AST) -> bool:
    """Whether a statement is a text alone."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )
