"""Command line: `pyrocell check`, what a screen can tell and what a fit will cost; no fit."""

from __future__ import annotations

import argparse

from pyrocell.cli.options import add_screen, read_screen
from pyrocell.cli.words import natural, say

__all__ = ["add_options"]

_DESCRIPTION = """\
Read and check a screen as `fit` does, with the same warnings; say what its layout cannot tell
apart, which assumptions it can test, and what a fit will cost. Nothing is written, and nothing is
fitted but with --shuffle."""
_EXAMPLES = """\
example:
  pyrocell check screen.h5ad --batch-key lane --perturbation-key gene --control NT"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.description, parser.epilog = _DESCRIPTION, _EXAMPLES
    add_screen(parser)
    parser.add_argument(
        "--shuffle",
        action="store_true",
        help="fit the cells for a few epochs with labels shuffled within batch, medium and time, "
        "in which nothing should be found: minutes, at most 20,000 cells",
    )
    parser.add_argument(
        "--seed", type=natural, default=0, metavar="N", help="of the shuffle (%(default)s)"
    )
    parser.set_defaults(command=_check)


def _check(arguments: argparse.Namespace) -> None:
    from pyrocell.cli.screen_check import sections, shuffle_text

    adata, screen = read_screen(arguments)
    print("\n\n".join(sections(adata, screen, arguments.layer)), flush=True)
    if arguments.shuffle:
        from pyrocell.model import PyroCell

        say("fitting shuffled labels")
        model = PyroCell(adata)
        print(f"\n{shuffle_text(model.shuffle_check(seed=arguments.seed, progress_bar=False))}")
