"""How the cells of a perturbation spread along the trajectory, and how many stay early (eq. 24).

Everything is held against the controls, in the same batches where there are any. What varies are
cells, or whole units (clones, guides) where the cells of a unit are not independent: in vivo a few
founders give most cells, and counted as cells they make any perturbation differ.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from pyrocell._compat import obs_table
from pyrocell._core.messages import did_you_mean
from pyrocell.errors import ScreenError, UnknownLabelError
from pyrocell.pseudotime.assignment import pseudotime_of
from pyrocell.pseudotime.shares import Cells, cells_of

__all__ = ["retention", "trajectory_distribution", "trajectory_quantiles"]

_REACH = 0.95  # quantile of the cells of X₀ up to which states count as theirs


def trajectory_distribution(
    cells: AnnData | pd.DataFrame,
    n_bins: int = 10,
    *,
    key: str = "pseudotime",
    control: str = "control",
    perturbation_key: str = "perturbation",
    batch_key: str | None = None,
    unit_key: str | None = None,
    confidence_level: float = 0.9,
    n_draws: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Share of each perturbation's cells in stretches of the trajectory (inset of Fig. 7).

    Stretches hold equally many controls, so that a share is read against 1 / n_bins everywhere.

    Parameters
    ----------
    cells
        Cells with pseudotime, or their `.obs`.
    n_bins
        Stretches.
    key
        Column of pseudotime; cells without are left out.
    control, perturbation_key
        Label of unperturbed cells, and the column that holds it.
    batch_key
        Column of batches or animals within which cells are compared: the controls' shares are then
        averaged as the perturbation's cells are spread over batches.
    unit_key
        Column of what varies independently within a perturbation: clones, guides. Cells when None.
    confidence_level
        Of all intervals.
    n_draws
        Draws of the sampling error. With cells as units they are those of a binomial share under
        Jeffreys' prior, which has no empty interval at 0 cells as a bootstrap would; with units, a
        bootstrap of the units.
    seed
        Of the draws.

    Returns
    -------
    DataFrame with a row per perturbation, the controls first, and stretch:

    - perturbation, bin (from 0), start, end (in pseudotime), n (cells in it)
    - share, lower, upper: of the perturbation's cells
    - control: share of the controls in the same batches
    - difference, difference_lower, difference_upper: share − control, with the error of both

    Raises
    ------
    UnknownLabelError
        If a column or the control is not there.
    ScreenError
        If a number is out of its range, a batch of a perturbation has no controls, or a unit has
        cells of controls and of others.

    Warns
    -----
    ScreenWarning
        If a perturbation has fewer than five units: a bootstrap of so few is too narrow.
    """
    table, options = _table(cells, key, control, perturbation_key, batch_key, unit_key, locals())
    reference = table.value[table.is_control]
    if not 1 <= n_bins <= len(np.unique(reference)):
        raise ScreenError(
            f"n_bins={n_bins} must lie between 1 and the number of different values of the "
            f"controls, {len(np.unique(reference))}"
        )
    edges = np.quantile(reference, np.linspace(0, 1, n_bins + 1))
    inside = np.digitize(table.value, edges[1:-1])
    start, end = edges[:-1], edges[1:]
    rows = []
    for name, shares in table.shares(np.eye(n_bins)[inside], **options):
        frame = pd.DataFrame(shares)
        frame.insert(0, "perturbation", name)
        frame.insert(1, "bin", range(n_bins))
        frame.insert(2, "start", start)
        frame.insert(3, "end", end)
        rows.append(frame.drop(columns="total"))
    return pd.concat(rows, ignore_index=True)


def trajectory_quantiles(
    cells: AnnData | pd.DataFrame,
    quantiles: tuple[float, ...] = (0.1, 0.25, 0.5, 0.75, 0.9),
    *,
    key: str = "pseudotime",
    control: str = "control",
    perturbation_key: str = "perturbation",
    batch_key: str | None = None,
    unit_key: str | None = None,
    confidence_level: float = 0.9,
    n_draws: int = 500,
    seed: int = 0,
) -> pd.DataFrame:
    """Quantiles of each perturbation's pseudotime, and how far they lie from the controls'.

    Parameters
    ----------
    cells, key, control, perturbation_key, batch_key, unit_key, confidence_level, seed
        As in `trajectory_distribution`.
    quantiles
        Between 0 and 1.
    n_draws
        Bootstrap draws, of cells or of units.

    Returns
    -------
    DataFrame with a row per perturbation, the controls first, and quantile: perturbation, quantile,
    n; value, lower, upper; control, the quantile of controls weighted to be spread over batches as
    the perturbation's cells are; shift, shift_lower, shift_upper: value − control. Negative: the
    perturbation is behind.

    Raises
    ------
    UnknownLabelError
        If a column or the control is not there.
    ScreenError
        If a number is out of its range, a batch of a perturbation has no controls, or a unit has
        cells of controls and of others.
    """
    asked = np.asarray(quantiles, float)
    if asked.ndim != 1 or not len(asked) or (asked <= 0).any() or (asked >= 1).any():
        raise ScreenError(f"quantiles={quantiles} must lie between 0 and 1")
    table, options = _table(cells, key, control, perturbation_key, batch_key, unit_key, locals())
    rows = []
    for name, found in table.quantiles(asked, **options):
        frame = pd.DataFrame(found)
        frame.insert(0, "perturbation", name)
        frame.insert(1, "quantile", asked)
        rows.append(frame)
    return pd.concat(rows, ignore_index=True)


def retention(
    cells: AnnData | pd.DataFrame,
    early: float | tuple[str, Any] = 0.25,
    *,
    key: str = "pseudotime",
    control: str = "control",
    perturbation_key: str = "perturbation",
    batch_key: str | None = None,
    unit_key: str | None = None,
    confidence_level: float = 0.9,
    n_draws: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Share of each perturbation's cells that are still in early states (eq. 24).

    Eq. 24, supp(X₀) ⊂ supp(X_t), says that states of the start are still there when later ones have
    been added. Reported is how much of the population is in them, P(X_t ∈ supp(X₀)), against
    controls: knockouts that differentiation needs have more.

    Parameters
    ----------
    cells, key, control, perturbation_key, batch_key, unit_key, confidence_level, n_draws, seed
        As in `trajectory_distribution`.
    early
        What counts as supp(X₀): the earliest share of the controls, or (column, value) of `.obs`
        that marks cells of the start, as in ``("day", 0)``; states up to the 95% quantile of those
        are then early.

    Returns
    -------
    DataFrame with a row per perturbation, the controls first:

    - perturbation, n, n_early (cells)
    - retained, lower, upper: share of its cells that are early
    - control: share of the controls in the same batches
    - difference, difference_lower, difference_upper: retained − control, with the error of both
    - shuffled_lower, shuffled_upper: interval of the difference with labels shuffled among these
      cells and the controls (within batches; whole units where there are any): what it is without
      any effect
    - distance: median of the column `<key>_distance`, where there is one. Well above the
      controls', the cells have states that controls lack, and where they were placed says little.

    `attrs["threshold"]` is the pseudotime up to which states are early. It is taken as known, and
    so is the pseudotime of the cells.

    Raises
    ------
    UnknownLabelError
        If a column, the control or the mark of early cells is not there.
    ScreenError
        If a number is out of its range, a batch of a perturbation has no controls, or a unit has
        cells of controls and of others.

    Warns
    -----
    ScreenWarning
        If a perturbation has fewer than five units.
    """
    table, options = _table(cells, key, control, perturbation_key, batch_key, unit_key, locals())
    threshold = _threshold(cells, early, table)
    is_early = table.value <= threshold
    rows = []
    for name, found in table.shares(is_early[:, None].astype(float), **options):
        row = {column: values[0] for column, values in found.items()}
        low, high = table.shuffled(name, is_early, **options)
        rows.append({"perturbation": name} | row | {"shuffled_lower": low, "shuffled_upper": high})
    out = pd.DataFrame(rows).rename(columns={"n": "n_early", "total": "n", "share": "retained"})
    first = ["perturbation", "n", "n_early"]
    out = out[first + [column for column in out if column not in first]]
    if f"{key}_distance" in table.obs:
        medians = table.obs.groupby(table.label)[f"{key}_distance"].median()
        out["distance"] = out["perturbation"].map(medians)
    out.attrs["threshold"] = threshold
    return out


def _table(
    cells: AnnData | pd.DataFrame,
    key: str,
    control: str,
    perturbation_key: str,
    batch_key: str | None,
    unit_key: str | None,
    given: dict[str, Any],
) -> tuple[Cells, dict[str, Any]]:
    """Cells with pseudotime, and the options of draws and intervals, checked."""
    obs = obs_table(cells) if isinstance(cells, AnnData) else cells
    level, n_draws = given["confidence_level"], given["n_draws"]
    if not 0 < level < 1:
        raise ScreenError(f"confidence_level={level} must lie between 0 and 1")
    if n_draws < 20:
        raise ScreenError(f"n_draws={n_draws} must be at least 20")
    value = pseudotime_of(obs, key)
    table = cells_of(obs, value, control, perturbation_key, batch_key, unit_key)
    return table, {"tail": (1 - level) / 2, "n_draws": n_draws, "seed": given["seed"]}


def _threshold(
    cells: AnnData | pd.DataFrame, early: float | tuple[str, Any], table: Cells
) -> float:
    """Pseudotime up to which states are early."""
    if not isinstance(early, tuple):
        if not 0 < early < 1:
            raise ScreenError(f"early={early} must lie between 0 and 1, as a share of the controls")
        return float(np.quantile(table.value[table.is_control], early))
    column, mark = early
    if column not in table.obs:
        raise UnknownLabelError(
            f'early column "{column}" is not in .obs{did_you_mean(column, table.obs.columns)}'
        )
    labels = table.obs[column].astype(str).to_numpy()
    marked = (labels == str(mark)) & table.is_control
    if not marked.any():
        raise UnknownLabelError(
            f'no control cell with pseudotime has "{mark}" in early column "{column}"'
            f"{did_you_mean(mark, np.unique(labels))}"
        )
    return float(np.quantile(table.value[marked], _REACH))
