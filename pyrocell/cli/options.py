"""What the commands share: numbers and files that come in, lines that go out."""

from __future__ import annotations

import argparse
import sys
from dataclasses import Field
from pathlib import Path

from anndata import AnnData, read_h5ad

from pyrocell.errors import PyrocellError

__all__ = ["add_column", "natural", "positive", "read_cells", "say"]


def add_column(group: argparse._ArgumentGroup, column: Field) -> None:
    """Add the option of an argument of `setup_anndata`; those that take several are repeated."""
    said = column.metadata
    option = "--" + column.name.removesuffix("s").replace("_", "-")
    shown = said["help"] if column.default is None else f"{said['help']} (%(default)s)"
    if column.name.endswith("_keys"):
        more = {"action": "append", "metavar": said["metavar"]}
    elif "choices" in said:
        more = {"choices": said["choices"]}
    elif said["metavar"] == "LABEL":
        more = {"metavar": said["metavar"]}
    else:  # an empty name says that there is no such column
        more = {"metavar": said["metavar"], "type": lambda name: name or None}
    group.add_argument(option, dest=column.name, default=column.default, help=shown, **more)


def natural(text: str) -> int:
    """A whole number ≥ 0, as a type of an option."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f'"{text}" is not a whole number ≥ 0')
    return int(text)


def positive(text: str) -> int:
    """A whole number ≥ 1, as a type of an option."""
    if not natural(text):
        raise argparse.ArgumentTypeError(f'"{text}" is not a whole number ≥ 1')
    return int(text)


def read_cells(file: Path) -> AnnData:
    """Read a .h5ad file.

    Raises
    ------
    PyrocellError
        If it cannot be read, whatever the reason.
    """
    if not file.is_file():
        raise PyrocellError(f"{file} is not a file")
    try:
        return read_h5ad(file)
    except Exception as error:  # whatever a file that is no h5ad makes its readers raise
        raise PyrocellError(f"{file} cannot be read as .h5ad: {error}") from error


def say(line: str) -> None:
    """Print a line of progress to standard error."""
    print(line, file=sys.stderr, flush=True)
