"""Lane maps and plate maps that a lab can work from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse as sp
from scipy.optimize import Bounds, LinearConstraint, milp

from pyrocell._core.messages import did_you_mean, join_names
from pyrocell.design.layouts import Layout
from pyrocell.design.plan import Plan
from pyrocell.errors import DesignError

__all__ = ["lane_map", "plate_map", "read_lane_map", "whole"]

_NEEDED = ("lane", "media", "sample", "cells")


def lane_map(layout: Layout) -> pd.DataFrame:
    """What to load into each lane.

    Returns
    -------
    DataFrame with a row per lane, medium, time and sample: lane, media, time (empty if none), tag
    (number of the hash tag of that medium and time; empty where no lane needs one), sample
    (control's label or name of the sub-library), cells (to be recovered, a whole number), share (of
    the lane), per_perturbation (cells expected of each).
    """
    libraries = dict.fromkeys(layout.libraries)
    of = np.array(layout.libraries)
    tagged = ((layout.cells.sum(0) > 0).sum(0) > 1).any()
    rows = []
    for b, lane in enumerate(layout.batches):
        total = layout.cells[..., b].sum()
        for a, arm in enumerate(layout.arms):
            samples = {layout.control: (layout.cells[0, a, b], np.nan)}
            for name in libraries:
                cells = layout.cells[1:, a, b][of == name]
                samples[name] = (cells.sum(), cells.mean())
            for sample, (cells, each) in samples.items():
                if cells > 0:
                    tag = a + 1 if tagged else pd.NA
                    share = round(cells / total, 4)
                    rows.append((lane, *arm, tag, sample, round(cells), share, round(each, 2)))
    columns = "lane media time tag sample cells share per_perturbation".split()
    return pd.DataFrame(rows, columns=columns).astype({"tag": "Int64"})


def read_lane_map(source: str | Path | pd.DataFrame, plan: Plan) -> Layout:
    """Read a lane map, such as one that was edited or that a lab uses already.

    Parameters
    ----------
    source
        A csv file or table with the columns lane, media, sample, cells, and time if the plan has
        several; others are ignored. A sample is the control's label or a sub-library ("library"
        if there is one), whose cells are spread evenly over its perturbations.
    plan
        The perturbations, media and times; whether the layout is legal, `plan.violations` says.

    Raises
    ------
    DesignError
        If a column is missing, or a label is not one of the plan's.
    """
    table = source if isinstance(source, pd.DataFrame) else pd.read_csv(source)
    needed = [*_NEEDED, *(["time"] if plan.times else [])]
    missing = [column for column in needed if column not in table]
    if missing:
        raise DesignError(f"lane map: the column {join_names(missing)} is missing; it has "
                          f"{join_names(table.columns, 10)}")  # fmt: skip
    lanes = list(dict.fromkeys(table["lane"].astype(str)))
    cells = np.zeros((1 + len(plan.names), len(plan.arms), len(lanes)))
    empty = plan.layout(np.ones_like(cells), lanes)
    of, arms = np.array(empty.libraries), {_arm_key(*arm): a for a, arm in enumerate(plan.arms)}
    options = [plan.control, *dict.fromkeys(empty.libraries)]
    times = table["time"] if plan.times else np.full(len(table), np.nan)
    for lane, medium, time, sample, n in zip(
        table["lane"].astype(str), table["media"], times, table["sample"], table["cells"]
    ):
        a, b = arms.get(_arm_key(medium, time)), lanes.index(lane)
        if a is None:
            raise DesignError(f'lane map: medium "{medium}" at time {time} is not in the plan')
        if sample not in options:
            hint = did_you_mean(sample, options)
            raise DesignError(
                f'lane map: sample "{sample}" is not one of {join_names(options)}{hint}'
            )
        rows = [0] if sample == plan.control else 1 + np.flatnonzero(of == sample)
        cells[rows, a, b] += n / len(rows)
    return plan.layout(cells, lanes)


def _arm_key(media: object, time: float) -> tuple[str, str]:
    return str(media), repr(float(time))


def whole(layout: Layout, seed: int = 0) -> Layout:
    """A layout in whole numbers of cells: every entry, condition and batch rounded up or down.

    Which entries are rounded up is random, under the sums: a transport problem, whose vertices are
    whole, solved by HiGHS. For wells of an arrayed screen; cells are too many to matter.
    """
    cells = layout.cells.reshape(-1, len(layout.batches))
    low = np.floor(cells + 1e-9)
    n, m = cells.shape
    rows = sp.kron(sp.eye_array(n), np.ones((1, m)))
    columns = sp.kron(np.ones((1, n)), sp.eye_array(m))
    sums = np.concatenate([cells.sum(1), cells.sum(0)])
    most = np.ceil(cells - 1e-9)
    matrix = sp.csc_array(sp.vstack([rows, columns]))
    lower, upper = np.floor(sums + 1e-9), np.ceil(sums - 1e-9)
    found = milp(
        np.random.default_rng(seed).random(cells.size) - 1.0,
        bounds=Bounds(low.ravel(), most.ravel()),  # pyright: ignore[reportArgumentType]
        constraints=LinearConstraint(matrix, lower, upper),  # pyright: ignore[reportArgumentType]
    )
    rounded = np.abs(np.round(found.x)).reshape(layout.cells.shape)
    return Layout(
        rounded, layout.perturbations, layout.arms, layout.batches, layout.control,
        layout.baseline_media, layout.libraries,
    )  # fmt: skip


def plate_map(
    layout: Layout, rows: int = 8, columns: int = 12, edge: bool = False, seed: int = 0
) -> pd.DataFrame:
    """Wells of an arrayed screen (App. C.2): each batch a plate, each of its "cells" a well.

    Conditions are put into wells at random, so that what a position does to a well is noise, not
    bias.

    Parameters
    ----------
    layout
        Numbers of wells; brought to whole numbers by `whole`.
    rows, columns
        Of a plate.
    edge
        Whether wells at the rim may be used; their phenotypes can be weaker or stronger.
    seed
        Of the positions.

    Returns
    -------
    DataFrame: plate, well, perturbation, media and time of every well that is not left empty.

    Raises
    ------
    DesignError
        If a plate has fewer wells than the layout puts on it.
    """
    rng = np.random.default_rng(seed)
    layout = whole(layout, seed)
    inset = 0 if edge else 1
    wells = [
        f"{chr(ord('A') + r)}{c + 1:02d}"
        for r in range(inset, rows - inset)
        for c in range(inset, columns - inset)
    ]
    frame = layout.to_frame()
    frame = frame.loc[frame.index.repeat(frame["cells"].astype(int))]
    parts = []
    for plate, part in frame.groupby("batch", sort=False):
        if len(part) > len(wells):
            raise DesignError(
                f"{plate} has {len(wells)} wells {'in all' if edge else 'away from its rim'}, the "
                f"layout needs {len(part)}; use more plates{'' if edge else ', or edge=True'}"
            )
        well = rng.choice(wells, len(part), replace=False)
        parts.append(part.assign(plate=plate, well=well).sort_values("well"))
    table = pd.concat(parts, ignore_index=True)
    return table[["plate", "well", "perturbation", "media", "time"]]
