"""Files that appear whole and together: written beside the old ones, then taken over by one rename.

A scratch directory takes the new files and a list of their names. Once they are on the disk it is
renamed to `.committed`, and from that moment they are the directory's files, though they have yet
to be moved to their places: `current` finds them wherever they are. A process that is killed leaves
the old files or the new ones, and the next one that writes there tidies up.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

__all__ = ["current", "sync", "together"]

_COMMITTED, _SCRATCH, _NAMES = ".committed", ".writing-", "names.json"
_ABANDONED = 3600  # seconds after which what a killed process was writing is removed


@contextmanager
def together(directory: Path, names: Sequence[str]) -> Iterator[Path]:
    """Where to write files that are to replace those of a directory, all at once or not at all.

    Parameters
    ----------
    directory
        Made if it is not there; its other files stay.
    names
        Files that may be written, relative to it; those that are not written are removed from it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    _finish(directory)
    scratch = directory / f"{_SCRATCH}{secrets.token_hex(8)}"
    scratch.mkdir()
    try:
        yield scratch
        written = [name for name in names if (scratch / name).is_file()]
        list_of_names = scratch / _NAMES
        list_of_names.write_text(json.dumps({"written": written, "names": list(names)}))
        for name in written:
            shutil.copymode(list_of_names, scratch / name)  # as the umask has it
            sync(scratch / name)
        sync(list_of_names)
        sync(scratch)
        scratch.rename(directory / _COMMITTED)
        sync(directory)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    _finish(directory)


def current(directory: Path, name: str) -> Path:
    """Where a file of a directory is, or would be; also between the renames of `together`."""
    found, waiting = _committed(directory), directory / _COMMITTED / name
    if found is None or name not in found["names"]:
        return directory / name
    removed = name not in found["written"]
    return waiting if removed or waiting.exists() else directory / name


def sync(path: Path) -> None:
    """Wait until a file, or the names in a directory, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _committed(directory: Path) -> dict[str, list[str]] | None:
    try:
        return json.loads((directory / _COMMITTED / _NAMES).read_text())
    except FileNotFoundError:
        return None


def _finish(directory: Path) -> None:
    """Move committed files to their places, and remove what killed processes left."""
    found, waiting = _committed(directory), directory / _COMMITTED
    if found is not None:
        for name in set(found["names"]) - set(found["written"]):
            (directory / name).unlink(missing_ok=True)
        for name in found["written"]:
            if (waiting / name).exists():
                (directory / name).parent.mkdir(parents=True, exist_ok=True)
                (waiting / name).replace(directory / name)
        sync(directory)
        (waiting / _NAMES).unlink()
    if waiting.is_dir():
        shutil.rmtree(waiting, ignore_errors=True)
    for scratch in directory.glob(f"{_SCRATCH}*"):
        if time.time() - scratch.stat().st_mtime > _ABANDONED:
            shutil.rmtree(scratch, ignore_errors=True)
