"""Rare subtypes: small clusters of cells' states that are stable and apart from the bulk.

Clusters are found in the posterior mean of the states, and come back or not in posterior draws of
resampled cells. Whether there is a valley between a cluster and the bulk is compared with the same
search in cells simulated without clusters: states drawn from a fit with one mode, and moved by the
posterior deviations of as many cells.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData
from sklearn.cluster import KMeans

from pyrocell._core.messages import did_you_mean
from pyrocell._core.random import stream
from pyrocell.diagnostics.one_mode import OneMode
from pyrocell.diagnostics.rare_clusters import (
    RareCluster,
    jaccard,
    rare_clusters,
    valley_along,
)
from pyrocell.errors import ScreenError, UnknownLabelError
from pyrocell.posterior.cells import state_draws

if TYPE_CHECKING:
    from pyrocell.model import PyroCell

__all__ = ["Subtypes", "subtypes", "subtypes_of_states"]

STABLE = 0.6  # Jaccard index, over draws and resampled cells, from which a cluster comes back
_LEVEL = 0.05  # of p
_SHARE = 0.8  # of the cells in a resample
_EXCEEDANCES = 5  # after which p is known well enough (Besag and Clifford, 1991)
_MOST = 10  # clusters in a table
_MOST_NULL = 3  # clusters of a simulated state whose valley is followed over the draws
_FEWEST = 100  # cells
_NAMED = 5  # genes and axes in a table
_RESPONDED = 0.5
_PARTS = 10  # of k-means, where Leiden is not installed

Clustering = Callable[[np.ndarray, int], np.ndarray]


class Subtypes(NamedTuple):
    """Small clusters, and which cells are in the stable ones.

    Attributes
    ----------
    table
        A row for each small cluster, the most distinct first; see `subtypes`.
    cells
        Name of the stable cluster of each cell, "none" for all others; by cell.
    """

    table: pd.DataFrame
    cells: pd.Series


def subtypes(
    model: PyroCell,
    perturbation: str | None = None,
    *,
    max_share: float = 0.1,
    n_draws: int = 20,
    n_null: int = 99,
    min_cells: int = 15,
    credible_level: float = 0.9,
    rule: str = "valley",
    clustering: Clustering | None = None,
    seed: int = 0,
) -> Subtypes:
    """Rare stable clusters of cells' resting state, or of one perturbation's cells.

    Parameters
    ----------
    model
        Trained.
    perturbation
        Look among the cells of this perturbation: in a model with guides, those that responded more
        likely than not. Their state is without what the perturbation does to all of them alike.
        Default: all cells.
    max_share
        Largest share of the cells that a cluster may have.
    n_draws
        Posterior draws of the states, each of them with a resample of 80% of the cells.
    n_null
        Simulations without clusters, at most; they end early for clusters that are plainly no more
        distinct than what is found in them.
    min_cells
        Fewest cells of a cluster.
    credible_level
        Of the interval of the Jaccard index.
    rule
        "valley", or "jaccard": the published rule, by which a cluster of fewer than `max_share` of
        the cells is stable if its mean Jaccard index over seeds is .60 or more. That rule finds
        subtypes in most populations with heavy or skewed tails and no clusters.
    clustering
        For rule="jaccard": labels (n,) from states (n, d) and a seed. Default: Leiden of scanpy at
        resolution 1 if igraph is installed, k-means with 10 clusters otherwise.
    seed
        The same seed gives the same clusters.

    Returns
    -------
    Subtypes with `table` and `cells`. Columns of the table: cluster; n_cells and share; jaccard
    with jaccard_lower and jaccard_upper, over draws and resampled cells; jaccard_null, its mean for
    the most distinct cluster of cells without clusters; valley, the statistic, mean of the draws,
    with valley_null, its 95% quantile without clusters; p, that any cluster of cells without
    clusters is as distinct; stable, whether p ≤ .05 and jaccard ≥ .60; distance from the other
    cells in their standard deviations; largest_batch, the largest share of its cells from one
    batch; top_axes, and top_genes by the loading, signs as in the cluster.

    Raises
    ------
    UnknownLabelError
        If the screen has no such perturbation.
    ScreenError
        If there are fewer than 100 cells, or a setting is out of its range.
    """
    fit, obs = model.fitted, model.adata.obs
    rows = _asked(model, perturbation)
    cells = fit.data.subset(rows)
    draws = state_draws(fit, cells, n_draws)
    found = subtypes_of_states(
        draws,
        max_share=max_share,
        n_null=n_null,
        min_cells=min_cells,
        credible_level=credible_level,
        rule=rule,
        clustering=clustering,
        loading=pd.DataFrame(fit.axes_of_state(), columns=fit.screen.genes),
        batch=cells.batch,
        seed=seed,
    )
    found.cells.index = obs.index[rows]
    return found


def subtypes_of_states(
    states: np.ndarray,
    *,
    max_share: float = 0.1,
    n_draws: int = 20,
    n_null: int = 99,
    min_cells: int = 15,
    credible_level: float = 0.9,
    rule: str = "valley",
    clustering: Clustering | None = None,
    loading: pd.DataFrame | None = None,
    batch: np.ndarray | None = None,
    seed: int = 0,
) -> Subtypes:
    """The same of states of cells, whatever they come from.

    Parameters
    ----------
    states
        (n, d) states, or (S, n, d) posterior draws of them.
    n_draws
        Resamples of cells where there is one draw; otherwise there are as many as draws.
    loading
        (d, G) change of log expression of each gene along each axis; default: genes are not named.
    batch
        (n,) batch of each cell.
    max_share, n_null, min_cells, credible_level, rule, clustering, seed
        As of `subtypes`.

    Returns
    -------
    Subtypes, its cells numbered.

    Raises
    ------
    ScreenError
        If there are fewer than 100 cells, or a setting is out of its range.
    """
    draws = np.asarray(states, float)
    draws = draws[None] if draws.ndim == 2 else draws
    if draws.ndim != 3 or draws.shape[1] < _FEWEST or not np.isfinite(draws).all():
        raise ScreenError(
            f"states have shape {draws.shape[1 if len(draws) == 1 else 0 :]}: clusters are looked "
            f"for in (cells, axes), or draws of them, of {_FEWEST} cells at least, all finite"
        )
    if (
        not 0 < max_share <= 0.25
        or min_cells < 2
        or n_null < 1
        or rule not in ("valley", "jaccard")
    ):
        raise ScreenError(
            f"max_share={max_share} must lie in (0, .25], min_cells={min_cells} be 2 or more, "
            f'n_null={n_null} be 1 or more, and rule="{rule}" be "valley" or "jaccard"'
        )
    used = draws.mean(0).std(0) > 1e-6 * max(float(draws.std()), 1e-12)  # axes that are not pruned
    search = _Search(draws[:, :, used], max_share, min_cells, n_draws, seed)
    if rule == "jaccard":
        table, members = search.by_seeds(clustering or _leiden_or_kmeans, n_draws, credible_level)
    else:
        table, members = search.by_valleys(n_null, credible_level)
    table = pd.concat([table, _described(draws, members, loading, batch)], axis=1)
    table.insert(0, "cluster", [f"S{i + 1}" for i in range(len(table))])
    label = np.full(draws.shape[1], "none", object)
    for name, member, stable in zip(table["cluster"], members, table["stable"]):
        label[member & stable & (label == "none")] = name
    order = pd.Index(["none", *table["cluster"][table["stable"]]])
    return Subtypes(table, pd.Series(pd.Categorical(label, order), name="subtype"))


class _Search:
    """States of cells (S, n, d), and how clusters are looked for in them."""

    def __init__(
        self, draws: np.ndarray, max_share: float, min_cells: int, n_resamples: int, seed: int
    ):
        self.draws, self.mean = draws, draws.mean(0)
        self.deviations = draws - self.mean
        self.max_share, self.min_cells, self.seed = max_share, min_cells, seed
        self.n_resamples = n_resamples if len(draws) == 1 else len(draws)

    def found_in(self, mean: np.ndarray, seed: int) -> list[RareCluster]:
        return rare_clusters(mean, self.max_share, self.min_cells, seed % 2**32)

    def valley(self, draws: np.ndarray, member: np.ndarray) -> float:
        """Statistic of a cluster, mean of the draws."""
        return float(np.mean([valley_along(z, member, self.max_share)[0] for z in draws]))

    def distance(self, member: np.ndarray) -> float:
        return valley_along(self.mean, member, self.max_share)[1]

    def agreement(self, draws: np.ndarray, members: list[np.ndarray], resample: int) -> np.ndarray:
        """Jaccard index of clusters with what is nearest to them in a draw of fewer cells."""
        rng = np.random.default_rng(stream("subtypes resample", self.seed, resample))
        z = draws[resample % len(draws)]
        cells = np.sort(rng.permutation(len(z))[: round(_SHARE * len(z))])
        least = max(2, round(_SHARE * self.min_cells))
        again = rare_clusters(z[cells], self.max_share / _SHARE, least, int(rng.integers(2**31)))
        return np.array(
            [max((jaccard(m[cells], a.member) for a in again), default=0.0) for m in members]
        )

    def by_valleys(
        self, n_null: int, credible_level: float
    ) -> tuple[pd.DataFrame, list[np.ndarray]]:
        """Table and members of clusters, against cells without clusters."""
        found = self.found_in(self.mean, stream("subtypes", self.seed))[:_MOST]
        found = sorted(
            ((self.valley(self.draws, each.member), each) for each in found),
            key=lambda pair: -pair[0],
        )
        members = [each.member for _, each in found]
        valley = np.array([value for value, _ in found])
        null, null_jaccard = self._null(n_null, valley.max(initial=0.0), bool(found))
        table = self._stability(
            [self.agreement(self.draws, members, r) for r in range(self.n_resamples)],
            members,
            credible_level,
        )
        table["jaccard_null"] = float(np.mean(null_jaccard)) if len(null_jaccard) else np.nan
        table["valley"] = valley
        table["valley_null"] = float(np.quantile(null, 0.95)) if len(null) else np.nan
        table["p"] = _p(valley, null, n_null)
        table["stable"] = (table["p"] <= _LEVEL) & (table["jaccard"] >= STABLE)
        table["distance"] = [self.distance(member) for member in members]
        return table, members

    def _null(self, n_null: int, largest: float, wanted: bool) -> tuple[np.ndarray, list[float]]:
        """Largest statistics in cells without clusters, and Jaccard indices of their clusters."""
        fitted = OneMode.fit(self.mean, self.seed) if wanted else None
        null: list[float] = []
        indices: list[float] = []
        for i in range(n_null if fitted is not None else 0):
            assert fitted is not None
            rng = np.random.default_rng(stream("subtypes null", self.seed, i))
            drawn = fitted.sample(len(self.mean), rng)
            draws = drawn + self.deviations[:, rng.permutation(len(drawn))]
            mean = draws.mean(0)
            some = self.found_in(mean, int(rng.integers(2**31)))[:_MOST_NULL]
            each = [self.valley(draws, one.member) for one in some]
            null.append(max(each, default=0.0))
            if some and len(indices) < self.n_resamples:
                best = some[int(np.argmax(each))].member
                indices.append(float(self.agreement(draws, [best], i)[0]))
            if np.sum(np.array(null) >= largest) >= _EXCEEDANCES:
                break
        return np.array(null), indices

    def by_seeds(
        self, clustering: Clustering, n_seeds: int, credible_level: float
    ) -> tuple[pd.DataFrame, list[np.ndarray]]:
        """Table and members of small clusters, by how often they come back with other seeds."""
        runs = [clustering(self.mean, stream("seed", self.seed, i) % 2**31) for i in range(n_seeds)]
        sets = [[label == name for name in np.unique(label)] for label in runs]
        size = self.max_share * len(self.mean)
        members = [m for m in sets[0] if self.min_cells <= m.sum() < size]
        again = [
            np.array([max(jaccard(m, other) for other in run) for m in members]) for run in sets[1:]
        ]
        table = self._stability(again, members, credible_level)
        for name in ("jaccard_null", "valley", "valley_null", "p"):
            table[name] = np.nan
        table["stable"] = table["jaccard"] >= STABLE
        table["distance"] = [self.distance(member) for member in members]
        order = np.argsort(-table["jaccard"].to_numpy(), kind="stable")
        return table.iloc[order].reset_index(drop=True), [members[i] for i in order]

    def _stability(
        self, again: list[np.ndarray], members: list[np.ndarray], credible_level: float
    ) -> pd.DataFrame:
        tail = (1 - credible_level) / 2
        values = np.array(again).reshape(len(again), len(members))
        number = np.array([int(m.sum()) for m in members], int)
        ends = np.quantile(values, [tail, 1 - tail], axis=0)
        return pd.DataFrame(
            {
                "n_cells": number,
                "share": number / len(self.mean),
                "jaccard": values.mean(0),
                "jaccard_lower": ends[0],
                "jaccard_upper": ends[1],
            }
        )


def _p(valley: np.ndarray, null: np.ndarray, n_null: int) -> np.ndarray:
    """P that cells without clusters have one as distinct; by Besag and Clifford if ended early."""
    above = (null[None] >= valley[:, None]).sum(1)
    if len(null) and len(null) < n_null:
        return above / len(null)
    return (above + 1) / (len(null) + 1)


def _described(
    draws: np.ndarray,
    members: list[np.ndarray],
    loading: pd.DataFrame | None,
    batch: np.ndarray | None,
) -> pd.DataFrame:
    """What clusters are made of: batches, axes, genes."""
    mean = draws.mean(0)
    rows = []
    for member in members:
        away = mean[member].mean(0) - mean[~member].mean(0)
        scaled = away / np.maximum(mean[~member].std(0), 1e-12)
        scaled[mean.std(0) <= 1e-12] = 0.0
        axes = np.argsort(-np.abs(scaled))[:_NAMED]
        row = {
            "largest_batch": np.nan,
            "top_axes": _named([f"z{a + 1}" for a in axes], scaled[axes]),
        }
        if batch is not None:
            row["largest_batch"] = float(np.bincount(batch[member]).max() / member.sum())
        if loading is not None:
            change = away @ loading.to_numpy()
            genes = np.argsort(-np.abs(change))[:_NAMED]
            row["top_genes"] = _named(loading.columns[genes], change[genes])
        rows.append(row)
    names = ["largest_batch", "top_axes", *["top_genes"] * (loading is not None)]
    return pd.DataFrame(rows, columns=pd.Index(names))


def _named(names: object, values: np.ndarray) -> str:
    return ", ".join(f"{n} {v:+.2g}" for n, v in zip(names, values))  # type: ignore[call-overload]


def _leiden_or_kmeans(states: np.ndarray, seed: int) -> np.ndarray:
    """Labels (n,) of states (n, d)."""
    if find_spec("igraph") is None:
        return KMeans(_PARTS, n_init=1, random_state=seed).fit_predict(states)  # pyright: ignore[reportArgumentType]
    cells = AnnData(obsm={"X": states})  # pyright: ignore[reportArgumentType]
    sc.pp.neighbors(cells, use_rep="X", random_state=0)
    sc.tl.leiden(cells, flavor="igraph", n_iterations=2, directed=False, random_state=seed)
    return cells.obs["leiden"].cat.codes.to_numpy()


def _asked(model: PyroCell, perturbation: str | None) -> np.ndarray:
    """Positions of the cells of a perturbation, or of all."""
    screen, cells = model.fitted.screen, model.fitted.data
    if perturbation is None:
        return np.arange(len(cells))
    names = screen.conditions["perturbation"].astype(str)
    if perturbation not in set(names):
        raise UnknownLabelError(
            f'"{perturbation}" is not a perturbation of the screen'
            f"{did_you_mean(perturbation, sorted(set(names)))}"
        )
    mine = (names == perturbation).to_numpy()[cells.condition]
    if perturbation == screen.control:
        return np.flatnonzero(mine)
    kept = model.fitted.gene_level
    if kept is not None and "guide_efficacy" in kept.tensors:
        mine &= model.response_probability().to_numpy() > _RESPONDED
    return np.flatnonzero(mine)
