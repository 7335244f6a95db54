"""Which code figures were measured with: a hash of rooms of the package, words left out.

The hash is that of the syntax trees of all modules in the rooms, without docstrings and comments,
so that it changes where what is computed may have changed. Every version of Python from 3.11 on
gives the same one.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# All that a fit and the questions asked of it pass through.
FIT = (
    "screen", "distributions", "data", "noise", "operators", "views", "contrasts", "assumptions",
    "generative", "guide", "training", "posterior", "model", "priors",
)  # fmt: skip


def code_of(rooms: Iterable[str] = FIT, root: Path = ROOT) -> str:
    """Hash of the code of rooms of `pyrocell/` as it stands in a checkout.

    Parameters
    ----------
    rooms
        Names of folders or modules of `pyrocell/`, such as `"views"` or `"model"`.
    root
        The checkout.

    Returns
    -------
    str
        Twelve hexadecimal digits; the order of the rooms does not matter.

    Raises
    ------
    FileNotFoundError
        If there is no such room.
    """
    found = hashlib.sha256()
    for room in sorted(set(rooms)):
        found.update(f"{room} {_room(room, root)}\n".encode())
    return found.hexdigest()[:12]


def newest(rooms: Iterable[str] = FIT, root: Path = ROOT) -> float:
    """When a file of these rooms was last written, in seconds since 1970."""
    return max(file.stat().st_mtime for room in rooms for file in _files(room, root))


def _files(room: str, root: Path) -> list[Path]:
    place = root / "pyrocell" / room
    files = sorted(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]
    if not files:
        raise FileNotFoundError(f"no module in {place}")
    return files


def _room(room: str, root: Path) -> str:
    found = hashlib.sha256()
    for file in _files(room, root):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        found.update(f"{file.relative_to(root).as_posix()} {_told(tree)}\n".encode())
    return found.hexdigest()


def _told(node: object) -> str:
    """A tree in words; `ast.dump` says the same tree differently in later versions of Python."""
    if isinstance(node, list):
        return "[" + ",".join(_told(each) for each in node if not _is_text(each)) + "]"
    if not isinstance(node, ast.AST):
        return ascii(node)
    fields = ((name, getattr(node, name, None)) for name in node._fields)
    # Fields that a later version added are empty in code that an earlier one can read.
    told = (f"{name}={_told(value)}" for name, value in fields if value not in (None, []))
    return f"{type(node).__name__}({','.join(told)})"


def _is_text(node: object) -> bool:
    """Whether a statement is a string alone, as a docstring is."""
    value = getattr(node, "value", None) if isinstance(node, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)
