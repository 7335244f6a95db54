"""Requested conditions, a table with a row each, turned into the arrays of a screen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import numpy as np
import pandas as pd

from pyrocell._core.messages import did_you_mean, join_names
from pyrocell.errors import ScreenError, UnknownLabelError
from pyrocell.screen.events import EVENTS, read_times
from pyrocell.screen.labels import encode_labels
from pyrocell.screen.vocabulary import Vocabulary

__all__ = ["NEW", "BatchRequest", "encode_cells", "encode_noise", "encode_treatments"]

NEW = "new"  # label of a batch that was not measured
_COLUMNS = ("perturbation", "media", "time", *EVENTS, "batch", "laboratory")


class BatchRequest(NamedTuple):
    """Whose batch noise each requested condition has; n rows, M new batches, L laboratories.

    Attributes
    ----------
    batch
        (n,) index of a measured batch, -1 for none.
    laboratory
        (n,) index of the laboratory over whose batches to average, -1 for none.
    new
        (n,) index of a new batch, -1 for none. A row without any of the three has no noise: the
        average over all batches.
    origin
        (M,) laboratory of each new batch; L and above for laboratories that are new.
    """

    batch: np.ndarray
    laboratory: np.ndarray
    new: np.ndarray
    origin: np.ndarray


def encode_treatments(
    screen: Vocabulary, frame: pd.DataFrame
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Genotype (n, K), exposure (n, J) and duration (n,) of requested conditions, float32.

    Raises
    ------
    UnknownLabelError
        If a column or label is not one of the screen's.
    """
    for column in frame.columns:
        if column not in (*_COLUMNS, "n_cells"):
            raise UnknownLabelError(
                f'column "{column}" is not understood{did_you_mean(column, _COLUMNS)}'
            )
    if "perturbation" not in frame and screen.perturbations:
        raise UnknownLabelError('the table of conditions needs a column "perturbation"')
    n = len(frame)
    genotype = np.zeros((n, len(screen.perturbations)), dtype=np.float32)
    given = "perturbation" in frame  # or there is none to name
    labels = frame.groupby("perturbation", dropna=False).indices if given else {}
    for label, rows in labels.items():
        carried = np.array(screen.indices(str(label)), dtype=np.int64)
        genotype[np.ix_(np.asarray(rows), carried)] = 1.0
    exposure = np.zeros((n, len(screen.media)), dtype=np.float32)
    if "media" in frame:
        for label, rows in frame.groupby("media", dropna=False).indices.items():
            if (j := screen.media_index(str(label))) >= 0:
                exposure[rows, j] = 1.0
    return genotype, exposure, _encode_times(frame.get("time"), n, screen.times)


def _encode_times(time: pd.Series | None, n: int, times: Sequence[float]) -> np.ndarray:
    """Durations (n,) float32 of requested conditions; the only time, or 1, where none is given."""
    if time is None:
        if len(times) > 1:
            raise UnknownLabelError(
                f'a column "time" is needed; the screen has {join_names(times)}'
            )
        return np.full(n, times[0] if len(times) else 1.0, dtype=np.float32)
    if not len(times):
        if time.notna().any():
            raise UnknownLabelError(
                'column "time" was given, but the screen was registered without times (time_key=)'
            )
        return np.ones(n, dtype=np.float32)
    return read_times(time, 'column "time"').astype(np.float32)


def encode_noise(screen: Vocabulary, frame: pd.DataFrame) -> BatchRequest:
    """Whose batch noise requested conditions have, by their columns batch and laboratory.

    A laboratory that the screen has, without a batch: the average over its batches. One that it
    does not have: a new batch made there. The batch "new": a new one of the laboratory named, of a
    new laboratory where none is. Rows with the same two labels share one batch.

    Raises
    ------
    UnknownLabelError
        If a batch is not in the screen, or not of the laboratory named, the screen was registered
        without laboratories, or it has one batch and a new one is asked for.
    """
    n, n_laboratories = len(frame), len(screen.laboratories)
    batch, batches = _labels(frame, "batch")
    home, homes = _labels(frame, "laboratory")
    if homes and not n_laboratories:
        raise UnknownLabelError(
            'column "laboratory" was given, but the screen was registered without laboratories '
            '(laboratory_key=); say batch="new" for a batch that was not measured'
        )
    known_batch = {label: b for b, label in enumerate(screen.batches)}
    known_home = {label: i for i, label in enumerate(screen.laboratories)}
    code = known_home | {
        label: n_laboratories + i
        for i, label in enumerate(dict.fromkeys([*homes, None]) if n_laboratories else [])
        if label not in known_home
    }
    none = np.full(n, -1)
    out = BatchRequest(none, none.copy(), none.copy(), np.zeros(0, np.int64))
    found: dict[tuple[int, str | None], int] = {}
    pairs = pd.DataFrame({"b": batch, "h": home}).groupby(["b", "h"]).indices
    for (b, h), rows in cast("dict[tuple[int, int], np.ndarray]", pairs).items():
        label = None if b < 0 else batches[b]
        where = None if h < 0 else homes[h]
        if label in known_batch:
            out.batch[rows] = _checked(screen, known_batch[label], where)
        elif label == NEW or (where is not None and where not in known_home):
            key = (code.get(where, 0), label)
            out.new[rows] = found.setdefault(key, len(found))
        elif label is not None:
            raise UnknownLabelError(
                f'batch "{label}" is not in the screen{did_you_mean(label, screen.batches)}; leave '
                '"batch" out for the average over batches, or say "new" for one that was not '
                "measured"
            )
        elif where is not None:
            out.laboratory[rows] = known_home[where]
    if found and len(screen.batches) == 1:
        raise UnknownLabelError(
            f'the screen has one batch ("{screen.batches[0]}"), so nothing is known of how a new '
            "one would differ; register a batch_key with at least two"
        )
    return out._replace(origin=np.array([home for home, _ in found], dtype=np.int64))


def _labels(frame: pd.DataFrame, column: str) -> tuple[np.ndarray, list[str]]:
    if column not in frame:
        return np.full(len(frame), -1), []
    return encode_labels(frame[column], f'column "{column}"', allow_missing=True)


def _checked(screen: Vocabulary, batch: int, laboratory: str | None) -> int:
    if laboratory is not None:
        home = screen.laboratories[screen.batch_laboratory[batch]]
        if laboratory != home:
            raise UnknownLabelError(
                f'batch "{screen.batches[batch]}" is of laboratory "{home}", not "{laboratory}"; '
                'leave "laboratory" out, or say batch="new"'
            )
    return batch


def encode_cells(column: pd.Series) -> np.ndarray:
    """Numbers of cells, (C,) float, or ScreenError naming the first that is none."""
    numbers = pd.to_numeric(column, errors="coerce").to_numpy(dtype=float)
    bad = np.flatnonzero(~((numbers >= 1) & np.isfinite(numbers)))
    if len(bad):
        raise ScreenError(f'column "n_cells" has {column.iloc[bad[0]]!r}; at least 1 is needed')
    return numbers
