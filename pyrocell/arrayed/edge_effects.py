r"""Arrayed screens: every well is a batch, and its place on the plate may tell (App. C.2).

The log expression of well w, gene g is

    y_wg = plate level + u_{c(w), g} + Σ_e φ_e(w) a_eg + noise,

c(w) its condition, φ_e what an effect e of position does to each well (`plates.py`), a_e its
log-fold change. u ~ N(0, ρ Σ) and the noise N(0, h_w Σ) share the covariance Σ between genes, so
the generalised least squares estimate of a_e has the error N(0, k_e Σ) with one number k_e for all
genes. ρ, h and Σ (a diagonal and a few factors) are read off the residuals.

Whether a_e is more than nothing is then a question of its root mean square over genes, answered in
closed form like the assumptions' (`evidence.py`): a share `prior` on sizes above the region of
practical equivalence, log-uniform on either side of its border. An edge effect may be a ring or
fade smoothly, each with half of the prior, and the indicator of which is summed out; both are
judged beside linear trends over rows and columns, each of which has an indicator of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scipy.sparse as sp

from pyrocell._core.messages import join_names
from pyrocell.arrayed.plates import parse_wells, position_features
from pyrocell.arrayed.regression import Regression, judge
from pyrocell.contrasts.levels import condition_levels
from pyrocell.errors import ScreenError

if TYPE_CHECKING:
    from pyrocell.model import PyroCell

__all__ = ["WellLevels", "edge_effects", "fitted_levels", "locate", "well_levels"]

EDGES = ("ring", "smooth")
TRENDS = ("row", "column")
_LEAST_KEPT = 0.1  # of η that the posterior's shrinkage may leave of a gene that is judged
_FEWEST_WELLS = 12


@dataclass(frozen=True)
class WellLevels:
    """Log expression of wells.

    Attributes
    ----------
    value
        Wells × genes: natural log of (relative) expression, up to a constant per gene. The index
        names wells, or whatever `edge_effects(wells=)` maps to them.
    variance
        (wells, genes) variance of its sampling error, or None; rows with much are weighed less.
    condition
        What was done to each well; None: all alike.
    """

    value: pd.DataFrame
    variance: np.ndarray | None = None
    condition: Sequence[str] | None = None


def well_levels(
    counts: sp.csr_matrix | np.ndarray,
    well: Sequence[str],
    condition: Sequence[str] | None = None,
    size: np.ndarray | None = None,
    genes: Sequence[str] | None = None,
) -> WellLevels:
    """Levels of wells from the counts of their cells, no model fitted.

    Parameters
    ----------
    counts
        (N, G) raw counts of cells.
    well
        (N,) well of each cell; names of plate and well, such as "plate1_B07", if there are several.
    condition
        (N,) what was done to the cell; one label per well.
    size
        (N,) size factors; default: total counts.
    genes
        (G,) names.
    """
    counts = sp.csr_matrix(counts)
    depth = np.asarray(counts.sum(1)).ravel() if size is None else np.asarray(size, float)
    if (depth <= 0).any():
        raise ScreenError(f"{(depth <= 0).sum()} cells have no counts; leave them out")
    code, names = pd.factorize(np.asarray(well).astype(str))
    nowhere = np.zeros(len(code), int)
    levels = condition_levels(counts, depth, code, nowhere, np.ones(counts.shape[1]))
    if condition is not None:
        labels = pd.DataFrame({"well": code, "condition": np.asarray(condition).astype(str)})
        several = labels.groupby("well")["condition"].nunique().to_numpy() > 1
        if several.any():
            raise ScreenError(
                f'well "{names[np.argmax(several)]}" has cells of several conditions; a well of an '
                "arrayed screen has one"
            )
        condition = labels.drop_duplicates("well")["condition"].to_list()
    genes = range(counts.shape[1]) if genes is None else genes
    value = levels.value
    if size is None:  # depth is the cells' own total: the gauge of η
        share = np.exp(value).mean(0) / np.exp(value).mean(0).sum()
        value = value - (value @ share)[:, None]
    return WellLevels(pd.DataFrame(value, names, genes), levels.variance, condition)


def fitted_levels(model: PyroCell, n_samples: int = 200) -> WellLevels:
    """Levels of wells from the posterior of a model whose batches are wells.

    Joint draws of η and of the response of the well's condition, summed: the split between the two
    is the prior's where a condition is in one well, their sum is not. The prior of η draws every
    well towards zero; a gene's η is divided by the share 1 - Var[η] / s² that is left of it.
    """
    screen, generative = model.screen, model.module.model
    if len(screen.batches) < _FEWEST_WELLS:
        raise ScreenError(
            f"the model has {len(screen.batches)} batches, too few to be wells; fit it with "
            'batch_key="well"'
        )
    row, batch = np.nonzero(screen.layout.to_numpy())
    eta, shift, prior = [], [], 0.0
    for values in model.posterior.draws(n_samples, as_fitted=True):
        own, response = values["eta"], generative.shift(values, generative.conditions).detach()
        gauge = partial(generative.measurement.gauge, log_weight=values["V.baseline"])
        own, response = gauge(own), gauge(response)
        eta.append(own.numpy()[batch].astype(float))
        shift.append(response.numpy()[row].astype(float))
        prior = prior + values["eta.scale"].numpy().astype(float) ** 2 / n_samples
    eta, shift = np.stack(eta), np.stack(shift)
    kept = 1 - eta.var(0).mean(0) / prior  # (G,)
    judged = kept > _LEAST_KEPT
    if not judged.any():
        raise ScreenError("the posterior of η is as wide as its prior: too few counts per well")
    total = (eta[..., judged] / kept[judged]) + shift[..., judged]
    wells = pd.Index(np.asarray(screen.batches)[batch])
    table = pd.DataFrame(total.mean(0), wells, screen.genes[judged])
    condition = screen.conditions[["perturbation", "media"]].astype(str).agg(" | ".join, axis=1)
    return WellLevels(table, total.var(0), condition.to_numpy()[row].tolist())


def edge_effects(
    levels: WellLevels | pd.DataFrame | PyroCell,
    wells: Mapping[str, str] | Sequence[str] | None = None,
    plates: Mapping[str, str] | Sequence[str] | None = None,
    *,
    conditions: Sequence[str] | None = None,
    plate_size: int | None = None,
    region: float = 0.05,
    prior: float = 0.5,
    credible_level: float = 0.9,
    by_gene: bool = False,
) -> pd.DataFrame:
    """Posterior of the effects that the position of a well has, plate by plate.

    Parameters
    ----------
    levels
        A fitted `PyroCell` whose batches are wells, levels of wells (`well_levels`), or a table of
        log expression, wells × genes.
    wells, plates
        Name of the well and of the plate of each row (for a model: of each batch), or a mapping
        from the row's name. Default: read off the row's name, "plate1_B07" or "B07".
    conditions
        What was done to each row, for a table.
    plate_size
        96 or 384; default: the smaller that holds all wells.
    region
        Root mean square log-fold change below which an effect is practically none.
    prior
        Probability that there is an edge effect, and that there is each trend.
    credible_level
        Mass of the intervals.
    by_gene
        Return the effect on every gene instead.

    Returns
    -------
    DataFrame with a row per plate (and "all", of several) and effect: plate, effect, prior,
    posterior, log_bayes_factor, size (root mean square log-fold change over genes: rim against the
    inside, or last row or column against first), lower, upper, n_wells, n_genes. Effects: "edge"
    (ring or smooth), "ring", "smooth", "row", "column"; sizes of ring and smooth are given that
    shape, that of "edge" is averaged over both.

    With `by_gene`: plate, effect, gene, mean, sd, lower, upper.

    Raises
    ------
    ScreenError
        Naming the row, well or setting that cannot be used.
    """
    if not 0 < region < 1:
        raise ScreenError(f"region={region} is a root mean square log-fold change, such as 0.05")
    if not 0 < prior < 1:
        raise ScreenError(f"prior={prior} must lie between 0 and 1")
    levels = _as_levels(levels, conditions)
    plate, position = locate(levels.value.index, wells, plates, plate_size)
    tables = []
    groups = [(name, np.flatnonzero(plate == name)) for name in dict.fromkeys(plate)]
    if len(groups) > 1:
        groups.append(("all", np.arange(len(plate))))
    for name, rows in groups:
        found = _judge_plate(levels, plate, position, rows, region, prior, credible_level, by_gene)
        found.insert(0, "plate", name)
        tables.append(found)
    return pd.concat(tables, ignore_index=True)


def _judge_plate(
    levels: WellLevels,
    plate: np.ndarray,
    position: pd.DataFrame,
    rows: np.ndarray,
    region: float,
    prior: float,
    credible_level: float,
    by_gene: bool,
) -> pd.DataFrame:
    """All effects over some rows: those of a plate, or of all."""
    where = position.iloc[rows]
    features = position_features(where, position.attrs["plate_size"])
    rim = features["ring"].to_numpy() == 1
    if len(rows) < _FEWEST_WELLS or min(rim.sum(), (~rim).sum()) < 2:
        raise ScreenError(
            f'plate "{plate[rows[0]]}" has {rim.sum()} wells at the rim and {(~rim).sum()} inside; '
            f"an edge effect needs 2 of each and {_FEWEST_WELLS} in all"
        )
    regression = Regression.of(
        levels.value.to_numpy(float)[rows],
        None if levels.variance is None else levels.variance[rows],
        None if levels.condition is None else np.asarray(levels.condition)[rows],
        pd.get_dummies(plate[rows]).to_numpy(float),
        features[[*TRENDS, *EDGES]].to_numpy(float),
        rim,
    )
    columns = {name: features[name].to_numpy() for name in (*EDGES, *TRENDS)}
    contrasts = {}
    for name in (*EDGES, *TRENDS):
        beside = [t for t in TRENDS if t != name] + (["ring"] if name in TRENDS else [])
        contrasts[name] = regression.contrast(columns[name], [columns[b] for b in beside])
    genes = levels.value.columns
    table = judge(contrasts, {"edge": EDGES}, genes, region, prior, credible_level, by_gene)
    return table if by_gene else table.assign(n_wells=len(rows), n_genes=len(genes))


def _as_levels(
    levels: WellLevels | pd.DataFrame | PyroCell, conditions: Sequence[str] | None
) -> WellLevels:
    if isinstance(levels, pd.DataFrame):
        levels = WellLevels(levels, None, None if conditions is None else list(conditions))
    elif not isinstance(levels, WellLevels):
        levels = fitted_levels(levels)
    values = levels.value.to_numpy(float)
    if not np.isfinite(values).all():
        w, g = np.argwhere(~np.isfinite(values))[0]
        raise ScreenError(
            f'level of gene "{levels.value.columns[g]}" in well "{levels.value.index[w]}" is '
            f"{values[w, g]}; leave out genes and wells without counts"
        )
    if levels.condition is not None and len(levels.condition) != len(values):
        raise ScreenError(f"{len(levels.condition)} conditions for {len(values)} wells")
    return levels


def locate(
    names: pd.Index,
    wells: Mapping[str, str] | Sequence[str] | None = None,
    plates: Mapping[str, str] | Sequence[str] | None = None,
    plate_size: int | None = None,
) -> tuple[np.ndarray, pd.DataFrame]:
    """Plate and position of every row, from its name or as given; see `edge_effects`."""
    split = [str(name).replace("-", "_").replace(":", "_").rpartition("_") for name in names]
    well = _looked_up("wells", wells, names, [part[2] for part in split])
    plate = _looked_up("plates", plates, names, [part[0] or "plate" for part in split])
    return np.array(plate), parse_wells(well, plate_size)


def _looked_up(
    what: str, given: Mapping[str, str] | Sequence[str] | None, names: pd.Index, default: list[str]
) -> list[str]:
    if given is None:
        return default
    if isinstance(given, (Mapping, pd.Series)):
        missing = [name for name in names if name not in given]
        if missing:
            raise ScreenError(f"{what}= does not name {join_names(missing)}")
        return [str(given[name]) for name in names]
    if len(given) != len(names):
        raise ScreenError(f"{what}= names {len(given)} for {len(names)} rows")
    return [str(name) for name in given]
