"""Whether an HDF5 file can be opened at all, tried in a process of its own.

The HDF5 library follows what a damaged file says: it can loop for ever or end the interpreter where
Python is not asked. So the names, attributes and texts of a file, which is where that was seen, are
read once by a process that may fail.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from pyrocell.errors import ScreenError

__all__ = ["check_hdf5"]

_SECONDS = 30
_READ = """
import sys, h5py
try:  # ends by itself where nobody is left to end it
    import resource
    resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
except ImportError:
    pass
def look(name, item):
    dict(item.attrs)
    if isinstance(item, h5py.Dataset):
        if item.chunks:
            item.id.get_num_chunks()
        if item.dtype.kind == "O":
            item[...]
try:
    with h5py.File(sys.argv[1], "r") as file:
        dict(file.attrs)
        file.visititems(look)
except Exception:
    pass  # its readers will say it better
"""


def check_hdf5(path: Path) -> None:
    """Raise ScreenError if reading the structure of a file does not end, or ends a process."""
    if not sys.executable:  # Python within another program
        return
    try:
        ended = subprocess.run(
            [sys.executable, "-I", "-c", _READ, str(path)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            stdin=subprocess.DEVNULL,
            timeout=_SECONDS,
        )
    except subprocess.TimeoutExpired:
        what = f"its structure could not be read within {_SECONDS} s"
    except OSError:  # no process can be started here
        return
    else:
        if ended.returncode >= 0:
            return
        what = "a process that read its structure was ended by the HDF5 library"
    raise ScreenError(
        f'"{path}" is damaged: {what}; copy it again from where it came from (to a local disk, if '
        "its disk is slow)"
    )
