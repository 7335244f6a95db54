"""Which laboratory made each batch of a screen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pyrocell._core.messages import did_you_mean, join_names
from pyrocell.errors import ScreenError, UnknownLabelError, warn
from pyrocell.screen.labels import encode_labels
from pyrocell.screen.vocabulary import Vocabulary

__all__ = ["read_laboratories"]


def read_laboratories(
    laboratory: Any,
    has_batches: bool,
    batch: np.ndarray,
    batches: Sequence[str],
    columns: Mapping[str, str],
    like: Vocabulary | None,
) -> dict[str, Any]:
    """Names of laboratories, and the code (B,) of each batch's.

    Parameters
    ----------
    laboratory
        (N,) labels; None where the screen has none.
    has_batches
        Whether there is a column of batches.
    batch, batches
        (N,) codes and their names.
    columns
        How to call each argument in messages.
    like
        Names of a known screen, whose laboratories to keep.

    Raises
    ------
    ScreenError
        If a batch is in two laboratories, or there are laboratories but no batches.
    UnknownLabelError
        If a batch is not in the laboratory that `like` has it in.

    Warns
    -----
    ScreenWarning
        If the two levels of batch noise cannot be told apart.
    """
    if like is not None:
        kept = {"laboratories": like.laboratories, "batch_laboratory": like.batch_laboratory}
        if laboratory is None or not like.laboratories:
            return kept
    elif laboratory is None:
        return {"laboratories": (), "batch_laboratory": np.zeros(len(batches), np.int64)}
    column = columns.get("laboratory", "laboratory")
    batch_column = columns.get("batch", "batch")
    if not has_batches:
        raise ScreenError(
            f"{column} was given without batches; batches are nested in laboratories: name their "
            "column in batch_key=, or, where each laboratory made one, the column of laboratories "
            "there and none in laboratory_key="
        )
    code, names = encode_labels(laboratory, column)
    of_batch = np.full(len(batches), -1)
    of_batch[batch] = code
    astray = np.flatnonzero(of_batch[batch] != code)
    if len(astray):
        b = int(batch[astray[0]])
        both = [names[i] for i in np.unique(code[batch == b])]
        raise ScreenError(
            f'{batch_column}: batch "{batches[b]}" is in {len(both)} laboratories of {column} '
            f"({join_names(both)}); a batch is made in one: where laboratories number theirs "
            "alike, put the laboratory into the name of the batch, such as "
            'adata.obs["laboratory"].astype(str) + "_" + adata.obs["batch"].astype(str)'
        )
    if like is not None:
        _check_like(of_batch, names, batches, like, column)
        return kept
    if len(names) == len(batches) > 1:
        warn(
            f"{column}: every laboratory has one batch, so what laboratories and what batches add "
            "cannot be told apart; their sum is what is learned; leave out laboratory_key, or "
            "split laboratories into their batches"
        )
    return {"laboratories": tuple(names), "batch_laboratory": of_batch}


def _check_like(
    of_batch: np.ndarray,
    names: Sequence[str],
    batches: Sequence[str],
    like: Vocabulary,
    column: str,
) -> None:
    for b in np.flatnonzero(of_batch >= 0).tolist():
        here, there = names[of_batch[b]], like.laboratories[like.batch_laboratory[b]]
        if here != there:
            hint = "" if here in like.laboratories else did_you_mean(here, like.laboratories)
            raise UnknownLabelError(
                f'{column} has batch "{batches[b]}" in laboratory "{here}"; the model has it in '
                f'"{there}"{hint}'
            )
