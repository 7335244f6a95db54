"""What the commands share: numbers and files that come in, lines that go out."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from anndata import AnnData, read_h5ad

from pyrocell.errors import PyrocellError

__all__ = ["natural", "positive", "read_cells", "say"]


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
