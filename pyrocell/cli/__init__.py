"""The command `pyrocell`."""

from pyrocell.cli.main import main

__all__ = ["main"]
