"""Times of harvest, and on their clock when cells were perturbed and met their medium."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from pyrocell.errors import ScreenError, UnknownLabelError

__all__ = ["EVENTS", "encode_events", "read_events", "read_times"]

EVENTS = ("perturbed_at", "exposed_at")  # columns of `Screen.conditions` and of requests
_HAPPENED = {"perturbed_at": "perturbed", "exposed_at": "in a medium beyond baseline"}


def read_times(values: Any, column: str) -> np.ndarray:
    """Return times as (N,) float64, or raise ScreenError unless all are numbers ≥ 0."""
    series = pd.Series(np.asarray(values))
    if pd.api.types.is_timedelta64_dtype(series.dtype):
        raise ScreenError(
            f'{column} holds durations, for example "{series[0]}"; give numbers in one unit, such '
            f'as hours: adata.obs["{_key(values)}"] = '
            f'adata.obs["{_key(values)}"].dt.total_seconds() / 3600'
        )
    if pd.api.types.is_datetime64_any_dtype(series.dtype):
        key = _key(values)
        raise ScreenError(
            f'{column} holds dates, for example "{series[0]}"; give the time since the moment of '
            f'perturbation, such as days since the first: adata.obs["{key}"] = '
            f'(adata.obs["{key}"] - adata.obs["{key}"].min()).dt.total_seconds() / 86400'
        )
    if series.dtype == object or not pd.api.types.is_numeric_dtype(series.dtype):
        first = next((v for v in series if not isinstance(v, (int, float, np.number))), series[0])
        key = _key(values)
        raise ScreenError(
            f'{column} holds text or dates, for example "{first}"; give numbers in one unit: where '
            f'labels contain them, adata.obs["{key}"] = adata.obs["{key}"].astype(str).str.extract('
            'r"([0-9.]+)")[0].astype(float)'
        )
    if series.dtype.kind == "c":
        raise ScreenError(f"{column} holds complex numbers; give times as numbers ≥ 0 in one unit")
    if series.dtype == bool:
        raise ScreenError(f"{column} holds True and False; give times as numbers ≥ 0 in one unit")
    times = series.to_numpy(dtype=np.float64)
    if not np.isfinite(times).all():
        bad = int((~np.isfinite(times)).sum())
        raise ScreenError(
            f"{column} has {bad} of {len(times)} times that are NaN or infinite; fill them in, or "
            "leave those cells out"
        )
    if (times < 0).any():
        raise ScreenError(
            f"{column} has {int((times < 0).sum())} negative times, the lowest {times.min():g}; "
            "count time from the moment of perturbation, so that it is ≥ 0"
        )
    return times


def _key(values: Any) -> str:
    return getattr(values, "name", None) or "time"


def read_events(
    values: Any,
    event: str,
    applies: np.ndarray,
    harvest: np.ndarray | None,
    column: str,
    harvest_column: str,
) -> np.ndarray:
    """Time of an event in each cell, (N,) float64; 0 where there was none.

    Parameters
    ----------
    values
        (N,) times; ignored where the event does not apply.
    event
        One of `EVENTS`.
    applies
        (N,) bool: cells that are perturbed, or in a medium beyond baseline.
    harvest
        (N,) times of harvest; None where the screen has none.
    column, harvest_column
        How to call both in messages.

    Raises
    ------
    ScreenError
        If there are no harvest times, or a time is no number from 0 to the cell's harvest.
    """
    if harvest is None:
        raise ScreenError(
            f"{column} needs {harvest_column}: when an event happened says something only on the "
            "clock of the harvest; name the column of harvest times, or leave this one out"
        )
    series = pd.Series(np.asarray(values))
    if len(series) != len(applies):
        raise ScreenError(f"{column} has {len(series)} values for {len(applies)} cells")
    out, told = np.zeros(len(series)), series[applies]
    if not len(told):
        return out
    who = f"of {len(told)} cells {_HAPPENED[event]}"
    numbers = pd.to_numeric(told, errors="coerce")
    text = told[numbers.isna() & told.notna()]
    if len(text) or told.dtype == bool:
        raise ScreenError(
            f'{column} holds "{(text if len(text) else told).iloc[0]}", which is no number; give '
            f"times in the unit of {harvest_column}, in a column of floats"
        )
    times, until = numbers.to_numpy(np.float64), np.asarray(harvest, np.float64)[applies]
    bad = ~np.isfinite(times)
    if bad.any():
        raise ScreenError(
            f"{column} has {int(bad.sum())} {who} with NaN or infinite times; fill them in (0: at "
            "the start of the clock), or leave those cells out"
        )
    if (times < 0).any():
        raise ScreenError(
            f"{column} has {int((times < 0).sum())} {who} with negative times, the lowest "
            f"{times.min():g}; start the clock of {harvest_column} at the first event of the "
            "screen, so that all times are ≥ 0"
        )
    late = np.flatnonzero(times > until)
    if len(late):
        raise ScreenError(
            f"{column} has {len(late)} {who} with an event after their harvest, for example at "
            f"{times[late[0]]:g} in a cell harvested at {until[late[0]]:g}; both columns must be "
            f"on one clock, {harvest_column} the time of harvest on it"
        )
    out[applies] = times
    return out


def encode_events(
    frame: pd.DataFrame,
    genotype: np.ndarray,
    exposure: np.ndarray,
    duration: np.ndarray,
    timed: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Event times of requested conditions, two (n,) float32; 0 where none is given.

    Raises
    ------
    UnknownLabelError
        If the screen has no times on whose clock an event could lie.
    ScreenError
        As :func:`read_events`.
    """
    found = []
    for event, applies in zip(EVENTS, (genotype, exposure), strict=True):
        values, column = frame.get(event), f'column "{event}"'
        if values is None:
            found.append(np.zeros(len(frame), np.float32))
            continue
        if not timed:
            raise UnknownLabelError(
                f"{column} was given, but the screen was registered without times (time_key=)"
            )
        times = read_events(
            values.fillna(0.0), event, np.any(applies, 1), duration, column, 'column "time"'
        )
        found.append(times.astype(np.float32))
    return found[0], found[1]
