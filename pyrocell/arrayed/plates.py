"""Wells of a plate: their names, and where on the plate they lie (App. C.2)."""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np
import pandas as pd

from pyrocell.errors import ScreenError

__all__ = ["PLATES", "parse_wells", "position_features", "well_names"]

PLATES = {96: (8, 12), 384: (16, 24)}  # wells: rows, columns
_REACH = {96: 1.0, 384: 2.0}  # wells in 9 mm, over which a smooth edge effect fades
_NAME = re.compile(r"\s*([A-Za-z])\s*0*([1-9][0-9]?)\s*")


def parse_wells(wells: Iterable[str], plate_size: int | None = None) -> pd.DataFrame:
    """Where wells lie.

    Parameters
    ----------
    wells
        Names such as "B07", "B7" or "b07": a row from A, a column from 1.
    plate_size
        96 or 384; None: 96 if all wells fit on such a plate, else 384.

    Returns
    -------
    DataFrame in the order of `wells`: well (as "B07"), row and column (from 0), ring (0 at the rim,
    1 beside it and so on). `.attrs["plate_size"]` is the size.

    Raises
    ------
    ScreenError
        Naming the first well that is none, or that the plate does not have.
    """
    if plate_size is not None and plate_size not in PLATES:
        raise ScreenError(f"plate_size={plate_size!r} must be 96 or 384")
    wells = [str(well) for well in wells]
    found = []
    for well in wells:
        match = _NAME.fullmatch(well)
        if match is None:
            raise ScreenError(f'well "{well}" is not a row and a column, such as "B07" or "P24"')
        found.append(match)
    row = np.array([ord(match[1].upper()) - ord("A") for match in found], int)
    column = np.array([int(match[2]) - 1 for match in found], int)
    if plate_size is None:
        plate_size = 96 if _outside(row, column, 96).sum() == 0 else 384
    outside = _outside(row, column, plate_size)
    if outside.any():
        rows, columns = PLATES[plate_size]
        hint = "; is it a plate of 384 wells?" if plate_size == 96 else ""
        raise ScreenError(
            f'well "{wells[np.argmax(outside)]}" is not on a plate of {plate_size} wells: rows A '
            f"to {chr(ord('A') + rows - 1)}, columns 1 to {columns}{hint}"
        )
    rows, columns = PLATES[plate_size]
    ring = np.minimum.reduce([row, rows - 1 - row, column, columns - 1 - column])
    names = [f"{chr(ord('A') + r)}{c + 1:02d}" for r, c in zip(row, column, strict=True)]
    table = pd.DataFrame({"well": names, "row": row, "column": column, "ring": ring})
    table.attrs["plate_size"] = plate_size
    return table


def well_names(plate_size: int = 384) -> list[str]:
    """Name all wells of a plate, row by row."""
    rows, columns = PLATES[plate_size]
    return [f"{chr(ord('A') + r)}{c + 1:02d}" for r in range(rows) for c in range(columns)]


def position_features(wells: pd.DataFrame, plate_size: int | None = None) -> pd.DataFrame:
    """Effects that a position may have, in units in which a coefficient is a log-fold change.

    Parameters
    ----------
    wells
        From `parse_wells`.
    plate_size
        96 or 384; None: as `parse_wells` noted.

    Returns
    -------
    DataFrame, a row per well:

    - `ring`: 1 at the rim, 0 inside;
    - `smooth`: fades from the rim by a factor e every 9 mm (a well of 96, two of 384), scaled so
      that wells at the rim are on average 1 above the others;
    - `row`, `column`: from -½ in the first row or column to ½ in the last.
    """
    size = wells.attrs["plate_size"] if plate_size is None else plate_size
    rows, columns = PLATES[size]
    rim = (wells["ring"] == 0).to_numpy()
    fading = np.exp(-wells["ring"].to_numpy() / _REACH[size])
    contrast = fading[rim].mean() - fading[~rim].mean() if 0 < rim.sum() < len(rim) else 1.0
    return pd.DataFrame(
        {
            "ring": rim.astype(float),
            "smooth": fading / contrast,
            "row": wells["row"].to_numpy() / (rows - 1) - 0.5,
            "column": wells["column"].to_numpy() / (columns - 1) - 0.5,
        },
        index=wells.index,
    )


def _outside(row: np.ndarray, column: np.ndarray, plate_size: int) -> np.ndarray:
    rows, columns = PLATES[plate_size]
    return (row >= rows) | (column >= columns)
