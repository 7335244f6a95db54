"""Command line: `pyrocell check`, what a screen can tell and what a fit will cost; no fit."""

from __future__ import annotations

import argparse

from pyrocell.cli.options import add_screen, read_screen

__all__ = ["add_options"]

_DESCRIPTION = """\
Read and check a screen as `fit` does, with the same warnings; say what its layout cannot tell
apart, which assumptions it can test, and what a fit will cost. Nothing is fitted or written."""
_EXAMPLES = """\
example:
  pyrocell check screen.h5ad --batch-key lane --perturbation-key gene --control NT"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.description, parser.epilog = _DESCRIPTION, _EXAMPLES
    add_screen(parser)
    parser.set_defaults(command=_check)


def _check(arguments: argparse.Namespace) -> None:
    from pyrocell.cli.screen_check import sections

    adata, screen = read_screen(arguments)
    print("\n\n".join(sections(adata, screen, arguments.layer)), flush=True)
