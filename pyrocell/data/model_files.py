"""A fitted model on disk: safetensors and JSON, nothing that could run when it is read."""

from __future__ import annotations

import hashlib
import io
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
from anndata import AnnData, read_h5ad
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pyrocell._core.files import current, together
from pyrocell.errors import ModelFileError

__all__ = ["cells_beside", "content_hash", "read_model", "write_model"]

_FORMAT = 5  # 1: effects in other units; 2: no decay of products; 3: rates in any order
_READ = (4, 5)  # 4: without kept states of gene-level sites, whose answers are the guide's
_TENSORS, _SETTINGS, _HISTORY = "model.safetensors", "model.json", "history.csv"
_CELLS = "adata.h5ad"


def write_model(
    directory: str | Path,
    state: dict[str, Tensor],
    settings: dict[str, Any],
    history: pd.DataFrame | None = None,
    overwrite: bool = False,
    cells: AnnData | None = None,
) -> None:
    """Write a model's tensors and settings into a directory, with its cells where they are given.

    All files take the places of an earlier model's in one step: a failure or a kill at any time
    leaves the one or the other, whole.

    Raises
    ------
    ModelFileError
        If the directory holds a model already and `overwrite` is false.
    """
    path = Path(directory)
    if current(path, _TENSORS).exists() and not overwrite:
        raise ModelFileError(f"{path} holds a model already; pass overwrite=True to replace it")
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}
    body = {"format": _FORMAT, "version": version("pyrocell"), **settings}
    course = None if history is None else history.to_csv().encode()
    body["history"] = None if course is None else hashlib.sha256(course).hexdigest()
    names = [_HISTORY, _TENSORS, _SETTINGS, *([] if cells is None else [_CELLS])]
    with together(path, names) as new:
        if cells is not None:
            cells.write_h5ad(new / _CELLS)
            body["cells"] = _file_hash(new / _CELLS)
        body["identity"] = content_hash(tensors, body)
        save_file(tensors, new / _TENSORS)
        (new / _SETTINGS).write_text(json.dumps(body, indent=1))
        if course is not None:
            (new / _HISTORY).write_bytes(course)


def read_model(
    directory: str | Path,
) -> tuple[dict[str, Tensor], dict[str, Any], pd.DataFrame | None]:
    """Read what `write_model` wrote.

    Raises
    ------
    ModelFileError
        If a file is missing, damaged, of another format, or does not belong to the other.
    """
    path = Path(directory)
    files = {name: current(path, name) for name in (_TENSORS, _SETTINGS, _HISTORY)}
    for name in (_TENSORS, _SETTINGS):
        if not files[name].is_file():
            raise ModelFileError(f"{path} holds no pyrocell model: {name} is missing")
    try:
        settings = json.loads(files[_SETTINGS].read_text())
        tensors = load_file(files[_TENSORS])
        course = files[_HISTORY].read_bytes() if files[_HISTORY].is_file() else None
        history = None if course is None else pd.read_csv(io.BytesIO(course), index_col=0)
    except (ValueError, RecursionError, SafetensorError) as error:  # csv and text: ValueErrors
        raise ModelFileError(f"{path} is damaged: {error}; save the model again") from error
    if not isinstance(settings, dict):
        raise ModelFileError(f"{path} is damaged: {_SETTINGS} holds no settings")
    if settings.get("format") not in _READ:
        read = " and ".join(map(str, _READ))
        raise ModelFileError(
            f"{path} has format {settings.get('format')!r}; this version reads {read}"
        )
    identity = settings.pop("identity", None)
    if identity != content_hash(tensors, settings):
        raise ModelFileError(
            f"{path}: {_TENSORS} does not belong to {_SETTINGS}, or one of them was changed; save "
            "the model again"
        )
    known = settings.pop("history", "")  # earlier versions did not say which course it was
    if known != "" and known != (None if course is None else hashlib.sha256(course).hexdigest()):
        raise ModelFileError(
            f"{path}: {_HISTORY} does not belong to {_SETTINGS}, or was changed; save the model "
            "again"
        )
    return tensors, settings, history


def cells_beside(directory: str | Path, settings: dict[str, Any]) -> AnnData:
    """Read the cells that `write_model` wrote beside a model.

    Parameters
    ----------
    settings
        What `read_model` read from that directory.

    Raises
    ------
    ModelFileError
        If there are none, or they are not those that were written.
    """
    path = current(Path(directory), _CELLS)
    if not path.exists():
        raise ModelFileError(
            f"{directory} holds no cells (save_anndata=True writes them); pass adata="
        )
    known = settings.get("cells")  # earlier versions did not say which cells
    if known is not None and known != _file_hash(path):
        raise ModelFileError(
            f"{path} is damaged, or holds other cells than were saved with the model; pass adata="
        )
    return read_h5ad(path)


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_hash(tensors: dict[str, Tensor], settings: dict[str, Any]) -> str:
    """Hash of the settings and of the tensors' names, shapes and values."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()
