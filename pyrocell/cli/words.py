"""Numbers and names of files that come in, lines that go out, for every command."""

from __future__ import annotations

import argparse
import sys

__all__ = ["FILES", "natural", "positive", "say"]

FILES = ".h5ad, .zarr, .h5mu, .loom, 10x .h5, or a folder with matrix.mtx"


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


def say(line: str) -> None:
    """Print a line of progress to standard error."""
    print(line, file=sys.stderr, flush=True)
