"""What a layout cannot tell from a covariate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import scipy.sparse as sp

from pyrocell._core.messages import join_names
from pyrocell.errors import ScreenError, warn
from pyrocell.screen.aliasing import null_space
from pyrocell.screen.screen import Screen

__all__ = ["with_covariates"]

_MOST_ROWS = 200_000
_TOUCHED = 1e-6  # a direction moves what has an entry above this


def with_covariates(screen: Screen, covariates: np.ndarray, names: Sequence[str]) -> Screen:
    """The screen, its contrasts also judged by what comes with a covariate.

    Parameters
    ----------
    covariates
        (N, n) of each cell, numbers or 0/1.
    names
        (n,) how to call each.

    Raises
    ------
    ScreenError
        If covariates say the same, or what batches and media say already.

    Warns
    -----
    ScreenWarning
        Naming the contrasts that coincide with a covariate.
    """
    if not len(names):
        return screen
    design, columns = _design(screen, covariates, names)
    basis, _ = null_space(design)
    n_other = len(columns) - len(names)
    of_covariates = basis[n_other:]
    if not (np.abs(of_covariates) > _TOUCHED).any():
        return screen
    _, size, mixed = np.linalg.svd(of_covariates, full_matrices=False)
    moved = np.abs(basis @ mixed[size > _TOUCHED].T) > _TOUCHED  # (columns, directions)
    touched = [columns[i] for i in np.flatnonzero(moved[:n_other].any(1)).tolist()]
    those = [names[i] for i in np.flatnonzero(moved[n_other:].any(1)).tolist()]
    contrasts = [(kind, name) for kind, name in touched if kind in ("perturbation", "media")]
    if not contrasts:
        also = [f"{kind} {name}" for kind, name in touched]
        raise ScreenError(
            f"the covariate {join_names(those)} says what {join_names(also) or 'another'} says "
            "already, so neither can be told from the other; leave it out"
        )
    table = screen.aliased.copy()
    found = []
    for row, (kind, name) in enumerate(zip(table["contrast"], table["name"], strict=True)):
        if (kind, name) not in contrasts:
            continue
        found.append(name)
        table.loc[row, "aliased_with"] = join_names(those)
        table.loc[row, "estimable"] = False
        table.loc[row, "reason"] = (
            f"{name} cannot be told from the covariate {join_names(those)}, which comes with it: "
            "only their sum is identified, and intervals are those of a share of it; measure "
            "cells with one and without the other, or leave the covariate out"
        )
    warn(
        f"{join_names(found)} cannot be told from the covariate {join_names(those)}: only their "
        "sum is identified, and intervals of each alone mean nothing; measure cells with one and "
        "without the other, or leave the covariate out; see screen.aliased_contrasts"
    )
    return replace(screen, aliased=table)


def _design(
    screen: Screen, covariates: np.ndarray, names: Sequence[str]
) -> tuple[sp.csc_array, list[tuple[str, str]]]:
    """One row per condition, batch and values of covariates that occur, and what columns are."""
    keys = pd.DataFrame(covariates.astype(np.float64))
    keys["condition"], keys["batch"] = screen.cell_condition, screen.cell_batch
    rows = keys.drop_duplicates()
    if len(rows) > _MOST_ROWS:  # of numbers that differ from cell to cell
        some = rows.sample(_MOST_ROWS, random_state=0)
        rows = pd.concat([rows.drop_duplicates(["condition", "batch"]), some])
    condition, batch = rows["condition"].to_numpy(), rows["batch"].to_numpy()
    n, n_batches = len(rows), len(screen.batches)
    times = screen.time_index[condition]
    later = sp.csc_array(
        (np.ones((times > 0).sum()), (np.flatnonzero(times > 0), times[times > 0] - 1)),
        shape=(n, max(len(screen.times) - 1, 0)),
    )
    blocks = [
        sp.csc_array((np.ones(n), (np.arange(n), batch)), shape=(n, n_batches)),
        sp.csc_array(screen.exposure[condition].astype(float)),
        sp.csc_array(screen.membership.tocsr()[condition].astype(float)),
        later,
        sp.csc_array(rows[list(range(covariates.shape[1]))].to_numpy(float)),
    ]
    columns = [("batch", name) for name in screen.batches]
    columns += [("media", name) for name in screen.media]
    columns += [("perturbation", name) for name in screen.perturbations]
    columns += [("time", f"{time:g}") for time in screen.times[1:]]
    columns += [("covariate", name) for name in names]
    there = [b for b in blocks if b.shape[1]]  # pyright: ignore[reportOptionalSubscript] scipy
    return sp.csc_array(sp.hstack(there, format="csc")), columns
