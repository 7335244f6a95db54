"""A fitted model on disk: safetensors and JSON, nothing that could run when it is read."""

from __future__ import annotations

import hashlib
import json
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pyrocell.errors import ModelFileError

__all__ = ["content_hash", "read_model", "write_model"]

_FORMAT = 5  # 1: effects in other units; 2: no decay of products; 3: rates in any order
_READ = (4, 5)  # 4: without kept states of gene-level sites, whose answers are the guide's
_TENSORS, _SETTINGS, _HISTORY = "model.safetensors", "model.json", "history.csv"


def write_model(
    directory: str | Path,
    state: dict[str, Tensor],
    settings: dict[str, Any],
    history: pd.DataFrame | None = None,
    overwrite: bool = False,
) -> None:
    """Write a model's tensors and settings into a directory; a failure leaves an earlier one whole.

    Raises
    ------
    ModelFileError
        If the directory holds a model already and `overwrite` is false.
    """
    path = Path(directory)
    if (path / _TENSORS).exists() and not overwrite:
        raise ModelFileError(f"{path} holds a model already; pass overwrite=True to replace it")
    path.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}
    body = {"format": _FORMAT, "version": version("pyrocell"), **settings}
    body["identity"] = content_hash(tensors, body)
    with tempfile.TemporaryDirectory(dir=path, prefix=".saving-") as scratch:
        new = Path(scratch)
        save_file(tensors, new / _TENSORS)
        (new / _SETTINGS).write_text(json.dumps(body, indent=1))
        if history is not None:
            history.to_csv(new / _HISTORY)
        # all is written: a full disk has by now raised, and the earlier model is still whole
        for name in (_HISTORY, _TENSORS, _SETTINGS):
            if (new / name).exists():
                (new / name).replace(path / name)
            else:
                (path / name).unlink(missing_ok=True)


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
    for name in (_TENSORS, _SETTINGS):
        if not (path / name).is_file():
            raise ModelFileError(f"{path} holds no pyrocell model: {name} is missing")
    try:
        settings = json.loads((path / _SETTINGS).read_text())
        tensors = load_file(path / _TENSORS)
        saved = (path / _HISTORY).is_file()
        history = pd.read_csv(path / _HISTORY, index_col=0) if saved else None
    except (ValueError, SafetensorError) as error:  # JSON, text and csv raise ValueErrors
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
    return tensors, settings, history


def content_hash(tensors: dict[str, Tensor], settings: dict[str, Any]) -> str:
    """Hash of the settings and of the tensors' names, shapes and values."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()
