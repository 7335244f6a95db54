"""Answers written as they come: a zarr store, whole or not there at all."""

from __future__ import annotations

import errno
import math
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
import zarr

from pyrocell.errors import DiskError

__all__ = ["new_store", "open_store", "replaced"]

Write = Callable[[Mapping[str, np.ndarray], Any], None]


def _checked(path: str | Path, overwrite: bool, n_bytes: int) -> Path:
    """The path, where an answer of so many bytes can be written to it."""
    path = Path(path)
    if path.exists() and not overwrite:
        raise DiskError(f"{path} is there already; pass overwrite=True to replace it")
    if path.is_dir() and not any((path / n).exists() for n in ("zarr.json", ".zgroup", ".zarray")):
        raise DiskError(f"{path} is a directory and no zarr store, so it is not replaced; move it")
    if not path.parent.is_dir():
        raise DiskError(f"{path.parent} is no directory; make it first")
    if n_bytes > (free := shutil.disk_usage(path.parent).free):
        raise DiskError(_full(path, n_bytes, free))
    return path


def _full(path: Path, n_bytes: int, free: int) -> str:
    return (
        f"the disk of {path} is too full: the answer takes up to {n_bytes:,} bytes and {free:,} "
        "are free; free some, or name another path="
    )


@contextmanager
def replaced(path: str | Path, overwrite: bool, n_bytes: int) -> Iterator[Path]:
    """Where to write what is to appear at a path once it is whole; removed if that fails.

    Raises
    ------
    DiskError
        If something is there that may not be replaced, the directory above is not, or the disk has
        not so many bytes left, now or later.
    """
    path = _checked(path, overwrite, n_bytes)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as scratch:
        new, old = Path(scratch) / path.name, Path(scratch) / "replaced"
        try:
            yield new
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            free = shutil.disk_usage(path.parent).free
            raise DiskError(_full(path, n_bytes, free)) from error
        if path.exists():
            path.rename(old)
        new.rename(path)


@contextmanager
def new_store(
    path: str | Path,
    coords: Mapping[str, Any],
    variables: Mapping[str, Sequence[str]],
    chunk: Mapping[str, int],
    attrs: Mapping[str, Any],
    overwrite: bool,
) -> Iterator[Write]:
    """Write a dataset of float32 variables piece by piece; xarray reads what comes of it.

    Parameters
    ----------
    path
        Of the zarr store.
    coords
        As `xr.Dataset` takes them; the dimensions' own give their sizes.
    variables
        Names, and the dimensions of each.
    chunk
        Size of a chunk along each dimension that is not in one.
    attrs
        Of the dataset.
    overwrite
        Replace a store that is there.

    Yields
    ------
    A function that takes values by variable and the region (an index) that they fill.

    Raises
    ------
    DiskError
        See `replaced`.
    """
    template = xr.Dataset(coords={name: _plain(c) for name, c in coords.items()}, attrs=dict(attrs))
    sizes = template.sizes
    n_bytes = sum(4 * math.prod(sizes[d] for d in dims) for dims in variables.values())
    with replaced(path, overwrite, n_bytes) as new:
        template.to_zarr(new, consolidated=False, zarr_format=3)
        group = zarr.open_group(new, mode="r+")
        arrays = {
            name: group.create_array(
                name,
                shape=tuple(sizes[d] for d in dims),
                chunks=tuple(max(1, min(chunk.get(d, sizes[d]), sizes[d])) for d in dims),
                dtype="float32",
                dimension_names=tuple(dims),
            )
            for name, dims in variables.items()
        }

        def write(values: Mapping[str, np.ndarray], region: Any) -> None:
            for name, value in values.items():
                arrays[name][region] = np.asarray(value, dtype=np.float32)

        yield write


def open_store(path: str | Path) -> xr.Dataset:
    """Open a store; values are read when they are asked for."""
    return xr.open_zarr(path, chunks=None, consolidated=False)


def _plain(coordinate: Any) -> Any:
    """A coordinate whose texts zarr stores as texts of any length."""
    dims, values = coordinate if isinstance(coordinate, tuple) else ((), coordinate)
    values = np.asarray(values)
    if values.dtype.kind in "OUST":
        values = np.where(pd.isna(values), "", values).astype(str).astype(object)
    return dims, values
