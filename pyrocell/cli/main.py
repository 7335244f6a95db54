"""Command line: which command there is, how it ends, what it warns of.

The summary goes to standard output; progress, warnings and errors go to standard error. A command's
module is loaded when that command was asked for: the libraries underneath take seconds, and a list
of the commands should not.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import pyrocell
from pyrocell.cli.words import say
from pyrocell.errors import PyrocellError, ScreenWarning

__all__ = ["main"]

# Module of each command, whose `add_options` says what it takes, and what the list says of it.
_COMMANDS = {
    "run": ("pyrocell.cli.run", "from a folder of Cell Ranger to the report"),
    "fit": ("pyrocell.cli.fit", "fit a screen and write its report"),
    "demo": ("pyrocell.cli.demo", "fit the embedded screen, end to end"),
    "check": ("pyrocell.cli.check", "say what a screen can tell, and what a fit will cost"),
    "design": ("pyrocell.cli.design", "recommend a layout for the next screen"),
}
_EXAMPLES = """\
examples:
  pyrocell demo
  pyrocell run cellranger/ -o results
  pyrocell check screen.h5ad --batch-key lane --perturbation-key gene --control NT
  pyrocell fit screen.h5ad --batch-key lane --perturbation-key gene --control NT -o results
  pyrocell design --perturbations 500 --lanes 24 -o plan

`pyrocell COMMAND --help` says what a command takes."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code: 0 done, 2 unusable input, 130 Ctrl-C."""
    argv = sys.argv[1:] if argv is None else list(argv)
    arguments = _parser(argv).parse_args(argv)
    arguments.typed = shlex.join(["pyrocell", *argv])
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # η, × and ± on terminals that lack them
    try:
        with _plain_warnings(), _terminable():
            arguments.command(arguments)
    except BrokenPipeError:  # who reads what is printed has gone, after the work was done
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        say("pyrocell: interrupted")
        return 130
    except Exception as error:
        if not _of_input(error):
            raise
        say(f"pyrocell: error: {' '.join(_as_options(str(error)).split())}")
        return 2
    return 0


def _of_input(error: Exception) -> bool:
    """Whether an error is one of what was typed or read, so that a line says enough."""
    if isinstance(error, PyrocellError | OSError):
        return True
    lightning = sys.modules.get("lightning.fabric.utilities.exceptions")
    return lightning is not None and isinstance(error, lightning.MisconfigurationException)


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM says a line and ends with the exit code that shells expect."""

    def terminated(*_: Any) -> None:
        say("pyrocell: terminated; what was said to be written is whole")
        raise SystemExit(128 + signal.SIGTERM)

    if threading.current_thread() is not threading.main_thread():  # which alone has handlers
        yield
        return
    before = signal.signal(signal.SIGTERM, terminated)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    """A parser that knows all commands, and the options of the one that is asked for."""
    as_typed = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="pyrocell",
        description="Posteriors of perturbations, media and batches from raw counts of a CRISPR "
        "screen.",
        epilog=_EXAMPLES,
        formatter_class=as_typed,
    )
    parser.add_argument("--version", action="version", version=f"pyrocell {pyrocell.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    asked = next((word for word in argv if not word.startswith("-")), None)
    for name, (module, help) in _COMMANDS.items():
        command = commands.add_parser(name, help=help, formatter_class=as_typed)
        if name == asked:
            import_module(module).add_options(command)
    return parser


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Print what pyrocell warns of as plain text; leave out its dependencies' warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("default", module=r"pyrocell|__main__")
        warnings.filterwarnings("default", category=ScreenWarning)
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support")
        warnings.showwarning = lambda message, *_, **__: say(
            f"warning: {_as_options(str(message))}"
        )
        yield


def _as_options(text: str) -> str:
    """Arguments in a message, such as batch_key="lane", as the options that were typed."""

    def option(found: re.Match[str]) -> str:
        name = found[1].removesuffix("s") if found[1].endswith("_keys") else found[1]
        name = name.replace("_", "-")
        return f"--{name}" + {"None": " ''", '"': ' "', "": ""}[found[2]]

    from pyrocell.data.setup import COLUMNS  # loads pandas

    names = "|".join(column.name for column in COLUMNS)
    return re.sub(rf'\b({names})=(None\b|"|)', option, text)
