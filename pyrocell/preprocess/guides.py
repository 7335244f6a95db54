"""Which guides a cell has: a mixture of ambient and own counts for each guide."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

import numpy as np
import pandas as pd
import scipy.sparse as sp
from scipy.optimize import minimize_scalar
from scipy.special import expit, gammaln
from scipy.stats import nbinom

from pyrocell.errors import PyrocellError

__all__ = ["SEPARATOR", "GuideCalls", "assign_guides"]

SEPARATOR = "+"  # between the guides of a cell
_METHODS = ("mixture", "threshold")
_THRESHOLD = 5  # counts, of the method "threshold"


@dataclass(frozen=True)
class _Settings:
    """Priors and steps of the mixture.

    Parameters
    ----------
    mean, mean_sd
        Prior of the logarithm of the mean count of a guide in a cell that has it, over guides.
    spread
        Least standard deviation of that logarithm between guides.
    cells
        Weight, in cells, of what all guides say about the share of cells and the ambient counts
        of one of them.
    dispersion
        Range of the inverse dispersions of own and of ambient counts.
    size
        Range of the depth of cells, relative to the median of their lane.
    middle
        Distance from the median of the lane, in natural logs, within which cells say how counts of
        guides follow depth.
    iterations, tolerance
        Of the EM algorithm: most rounds, and change of a probability at which it ends.
    most
        Counts that the dispersions are fitted to, drawn where there are more.
    """

    mean: float = np.log(30.0)
    mean_sd: float = 1.0
    spread: float = 0.1
    cells: float = 10.0
    dispersion: tuple[float, float] = (0.2, 100.0)
    size: tuple[float, float] = (0.25, 4.0)
    middle: float = 2.5
    iterations: int = 100
    tolerance: float = 1e-4
    most: int = 200_000


_SETTINGS = _Settings()


@dataclass(frozen=True)
class GuideCalls:
    """Which cells have which guides.

    Attributes
    ----------
    probability
        Posterior probability that a cell has a guide, cells × guides, CSR, where the guide was
        counted at least once; elsewhere it is taken for 0.
    called
        Which guides are called, cells × guides, CSR of booleans.
    cells
        A row for each cell: `guides` (names joined by +, empty if none), `n_guides`, `call` (none,
        one or several), and `probability`, the probability that the calls of this cell are all
        right, given the model; NaN for thresholds. Since each guide is judged for itself, it is
        too high for cells without a call in a screen in which every cell should have a guide.
    guides
        A row for each guide and batch: `guide`, `batch`, `n_cells` called, `threshold` (least
        count that is called in a cell of median depth; NaN if none is), and for the mixture
        `ambient` and `own` (mean counts of a cell without and with it), `share` of cells that have
        it, and `missed`, the share of its cells that are expected below the threshold.
    """

    probability: sp.csr_matrix
    called: sp.csr_matrix
    cells: pd.DataFrame
    guides: pd.DataFrame


def assign_guides(
    counts: sp.spmatrix | np.ndarray | pd.DataFrame,
    method: str = "mixture",
    *,
    names: pd.Index | list[str] | None = None,
    cells: pd.Index | list[str] | None = None,
    batch: np.ndarray | pd.Series | None = None,
    depth: np.ndarray | pd.Series | None = None,
    probability: float = 0.5,
    min_counts: int | None = None,
) -> GuideCalls:
    """Call the guides of each cell.

    Parameters
    ----------
    counts
        Raw counts of guides, cells × guides.
    method
        "mixture", or "threshold": every guide with at least `min_counts` counts.
    names, cells
        Names of guides and of cells; of a table its own, else numbers.
    batch
        Lane of each cell, (cells,). Ambient counts differ between lanes. One if None.
    depth
        Total counts of genes of each cell, (cells,). Guides are counted more often in cells that
        are counted deeper; how much more is estimated. Taken for equal if None.
    probability
        Least posterior probability of a call, above 0 and below 1.
    min_counts
        Least count of a call, whatever its probability: 2 for the mixture, 5 for thresholds if
        None.

    Returns
    -------
    GuideCalls.

    Raises
    ------
    PyrocellError
        If counts are no counts, an argument has the wrong length, or the method is unknown.

    Notes
    -----
    The count of guide k in cell i of lane l is negative binomial with mean a_kl s_i if the cell
    lacks the guide, m_k s_i if it has it. s_i is the depth of the cell relative to its lane, to a
    power between 0 and 1 at which total counts of guides follow depth. The model is fitted by EM
    (maximum a posteriori). What single guides cannot say they take from all: log m_k are normal
    around a common mean; a_kl are drawn to ambient counts in proportion to the guide's share of all
    guide counts of the lane; shares of cells are drawn to their mean; both dispersions are common.
    A guide that few cells or none have is therefore judged by what own counts of other guides look
    like.
    """
    matrix, names, cells = _checked(counts, method, names, cells)
    if not 0 < probability < 1:
        raise PyrocellError(f"probability={probability!r} of a call must lie between 0 and 1")
    n = len(cells)
    for name, value in (("batch", batch), ("depth", depth)):
        if value is not None and len(value) != n:
            raise PyrocellError(f"{name} has {len(value)} values for {n} cells; give one for each")
        if value is not None and pd.isna(np.asarray(value)).any():
            raise PyrocellError(f"{name} lacks a value for some cells; give that of each")
    lane = np.full(n, "1") if batch is None else np.asarray(batch).astype(str)
    labels, lanes = np.unique(lane, return_inverse=True)
    if matrix.nnz == 0:  # nothing to fit, and nothing to call
        return _by_threshold(matrix, names, cells, lanes, labels, 1)
    if method == "threshold":
        return _by_threshold(matrix, names, cells, lanes, labels, min_counts or _THRESHOLD)
    size = _size(matrix, lanes, depth)
    fit = _Mixture(matrix, lanes, len(labels), size)
    fit.run()
    return _called(fit, names, cells, labels, probability, min_counts or 2)


def _checked(
    counts: sp.spmatrix | np.ndarray | pd.DataFrame,
    method: str,
    names: pd.Index | list[str] | None,
    cells: pd.Index | list[str] | None,
) -> tuple[sp.csr_matrix, pd.Index, pd.Index]:
    if method not in _METHODS:
        raise PyrocellError(f'method="{method}" is unknown; there are: {", ".join(_METHODS)}')
    if isinstance(counts, pd.DataFrame):
        names = counts.columns if names is None else names
        cells = counts.index if cells is None else cells
        counts = counts.to_numpy()
    matrix = sp.csr_matrix(counts, dtype=np.float64, copy=True)
    matrix.sum_duplicates()
    matrix.eliminate_zeros()
    values = matrix.data
    if not (np.isfinite(values).all() and (values >= 0).all() and (values == values.round()).all()):
        raise PyrocellError("counts of guides are not whole numbers ≥ 0; give raw counts")
    sizes: tuple[int, int] = cast("tuple[int, int]", matrix.shape)
    found = [pd.RangeIndex(size) if i is None else i for i, size in zip((cells, names), sizes)]
    for what, index, size in zip(("cells", "guides"), found, sizes):
        if len(index) != size:
            raise PyrocellError(f"{len(index)} names are given for {size} {what}")
    return matrix, pd.Index(found[1]).astype(str), pd.Index(found[0]).astype(str)


def _size(matrix: sp.csr_matrix, lanes: np.ndarray, depth: object) -> np.ndarray:
    """Depth relative to the lane, to the power at which counts of guides follow it; (cells,)."""
    n = len(lanes)
    if depth is None or n == 0:
        return np.ones(n)
    log_depth = np.log(np.maximum(np.asarray(depth, float), 1.0))
    total = np.log1p(np.asarray(matrix.sum(1)).ravel())
    both = pd.DataFrame({"x": log_depth, "y": total})
    centred = both - both.groupby(lanes).transform("median")
    x, y = centred["x"].to_numpy(), centred["y"].to_numpy()
    # The middle of both, so that empty droplets and doublets do not decide.
    inner = (np.abs(x) <= _SETTINGS.middle) & (np.abs(y) <= _SETTINGS.middle)
    variance = np.sum(x[inner] ** 2)
    power = np.clip(np.sum(x[inner] * y[inner]) / variance, 0, 1) if variance > 0 else 0.0
    return np.clip(np.exp(power * x), *_SETTINGS.size)


@dataclass
class _Mixture:
    """The mixture of all guides, on the counts above zero and the number of zeros.

    Cells are grouped by lane; K guides, L lanes. `responsibility` belongs to the counts above zero.
    """

    matrix: sp.csr_matrix
    lanes: np.ndarray
    n_lanes: int
    size: np.ndarray
    own_dispersion: float = 2.0
    ambient_dispersion: float = 10.0
    responsibility: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        """Where each count above zero is, how many zeros there are, and a first guess."""
        coo = self.matrix.tocoo()
        self.cell, self.guide, self.x = coo.row, coo.col, coo.data
        self.s, self.lane = self.size[self.cell], self.lanes[self.cell]
        self.n_cells, n_guides = cast("tuple[int, int]", self.matrix.shape)
        self.shape = (n_guides, self.n_lanes)
        self.cells = np.bincount(self.lanes, minlength=self.n_lanes).astype(float)  # (L,)
        self.depth = np.bincount(self.lanes, self.size, self.n_lanes)  # (L,)
        self.zeros = self.cells - self._sum(np.ones(len(self.x)))  # (K, L)
        self.zeros_depth = self.depth - self._sum(self.s)
        # First: the largest guide of a cell, if it stands out, is its own.
        total = np.asarray(self.matrix.sum(1)).ravel()[self.cell]
        self.responsibility = ((self.x >= 3) & (self.x > 0.5 * total)).astype(float)
        self.zero_responsibility = np.zeros(self.shape)
        self.common, self.spread = _SETTINGS.mean, 0.5
        self._update_shares()
        self._update_means()

    def _sum(self, values: np.ndarray) -> np.ndarray:
        """Sums over the counts above zero of each guide in each lane; (K, L)."""
        place = self.guide * self.n_lanes + self.lane
        return np.bincount(place, values, np.prod(self.shape)).reshape(self.shape)

    def run(self) -> None:
        """EM until probabilities stay."""
        for _ in range(_SETTINGS.iterations):
            before = self.responsibility
            self._expect()
            self._update_shares()
            self._update_means()
            self._update_dispersions()
            if np.abs(self.responsibility - before).max() < _SETTINGS.tolerance:
                return

    def log_odds(
        self, x: np.ndarray, s: np.ndarray, guide: np.ndarray, lane: np.ndarray
    ) -> np.ndarray:
        """Logarithm of the odds that a cell of depth s with count x has the guide."""
        own = self.own[guide] * s
        odds = self._log_odds(x, s, guide, lane)
        # The ambient tail may be the heavier one; more counts never speak against a guide.
        high = x > own
        if np.any(high):
            at_mean = self._log_odds(own[high], s[high], guide[high], lane[high])
            odds[high] = np.maximum(odds[high], at_mean)
        return odds

    def _log_odds(
        self, x: np.ndarray, s: np.ndarray, guide: np.ndarray, lane: np.ndarray
    ) -> np.ndarray:
        share = self.share[guide]
        own = _log_nb(x, self.own[guide] * s, self.own_dispersion)
        ambient = _log_nb(x, self.ambient[guide, lane] * s, self.ambient_dispersion)
        return own - ambient + np.log(share) - np.log1p(-share)

    def _expect(self) -> None:
        self.responsibility = expit(self.log_odds(self.x, self.s, self.guide, self.lane))
        guide, lane = np.indices(self.shape)
        zero = np.zeros(self.shape)
        odds = self.log_odds(zero, np.ones(self.shape), guide, lane)
        self.zero_responsibility = expit(odds) * self.zeros

    def all_right(self, yes: np.ndarray) -> np.ndarray:
        """Probability that all calls of each cell are right, its guides without counts among them.

        Guides of a cell are independent, given the parameters; (cells,).
        """
        p = np.where(yes, self.responsibility, 1 - self.responsibility)
        zeros = self.zero_responsibility / np.maximum(self.zeros, 1)
        lacks = np.log1p(-np.clip(zeros, 0, 1 - 1e-9))  # (K, L)
        inside = np.log(np.maximum(p, 1e-12)) - lacks[self.guide, self.lane]
        total = np.bincount(self.cell, inside, self.n_cells)
        return np.exp(np.minimum(total + lacks.sum(0)[self.lanes], 0))

    def _update_shares(self) -> None:
        """Share of cells with each guide, drawn to the mean of all; (K,)."""
        having = (self._sum(self.responsibility) + self.zero_responsibility).sum(1)
        n, weight = self.cells.sum(), _SETTINGS.cells
        mean = (having.sum() + 1) / (max(n, 1) * max(len(having), 1) + 2)
        self.share = np.clip((having + weight * mean) / (n + weight), 1e-9, 0.95)

    def _update_means(self) -> None:
        """Ambient counts (K, L), own counts (K,) and what is common to them."""
        r, without = self.responsibility, 1 - self.responsibility
        counted = self._sum(without * self.x)
        exposure = self._sum(without * self.s) + self.zeros_depth
        # Ambient guides come from all cells of the lane: in proportion to the pooled counts.
        pooled = self._sum(self.x) + 0.5
        pooled /= pooled.sum(0)
        expected = pooled * ((counted.sum(0) + 1) / (self.depth + 1))
        weight = _SETTINGS.cells
        self.ambient = (counted + weight * expected) / (exposure + weight)
        self.ambient = np.maximum(self.ambient, 1e-6)
        current = getattr(self, "own", np.full(self.shape[0], np.exp(self.common)))
        precision = self.own_dispersion / (self.own_dispersion + current[self.guide] * self.s)
        zero_precision = self.own_dispersion / (self.own_dispersion + current)
        zeros = self.zero_responsibility.sum(1) * zero_precision
        counted = self._sum(r * precision * self.x).sum(1)
        exposure = self._sum(r * precision * self.s).sum(1) + zeros
        information = exposure * current  # of log means
        estimate = np.log(np.maximum(counted, 1e-8) / np.maximum(exposure, 1e-8))
        estimate = np.where(information > 1e-6, estimate, self.common)
        # Step limited, as the precision is that of the last round.
        estimate = np.clip(estimate, np.log(current) - 2, np.log(current) + 2)
        prior = 1 / self.spread**2
        log_own = (information * estimate + prior * self.common) / (information + prior)
        weights = 1 / (self.spread**2 + 1 / np.maximum(information, 1e-6))
        of_all = 1 / _SETTINGS.mean_sd**2
        self.common = (np.sum(weights * estimate) + of_all * _SETTINGS.mean) / (
            weights.sum() + of_all
        )
        variance = (log_own - self.common) ** 2 + 1 / (information + prior)
        self.spread = max(float(np.sqrt(variance.mean())), _SETTINGS.spread)
        # Own counts come on top of ambient ones.
        self.own = np.maximum(np.exp(log_own), 2 * self.ambient.max(1))

    def _update_dispersions(self) -> None:
        i = slice(None)
        scale = 1.0
        if len(self.x) > _SETTINGS.most:
            rng = np.random.default_rng(0)
            i = rng.choice(len(self.x), _SETTINGS.most, replace=False)
            scale = len(self.x) / _SETTINGS.most
        x, s, guide, lane, r = (
            v[i] for v in (self.x, self.s, self.guide, self.lane, self.responsibility)
        )
        own, ambient = self.own[guide] * s, self.ambient[guide, lane] * s
        at_zero, without = self.zero_responsibility, self.zeros - self.zero_responsibility

        def of_own(log: float) -> float:
            inside = scale * np.sum(r * _log_nb(x, own, np.exp(log)))
            zero = np.sum(at_zero * _log_nb(0, self.own[:, None], np.exp(log)))
            return -(inside + zero) + 0.5 * (log - np.log(2)) ** 2

        def of_ambient(log: float) -> float:
            inside = scale * np.sum((1 - r) * _log_nb(x, ambient, np.exp(log)))
            zero = np.sum(without * _log_nb(0, self.ambient, np.exp(log)))
            return -(inside + zero) + 0.5 * (log - np.log(10)) ** 2

        bounds = tuple(np.log(_SETTINGS.dispersion))
        options = {"xatol": 0.01}
        for name, loss in (("own_dispersion", of_own), ("ambient_dispersion", of_ambient)):
            best = minimize_scalar(loss, bounds=bounds, method="bounded", options=options)
            setattr(self, name, float(np.exp(best.x)))


def _log_nb(x: np.ndarray | int, mean: np.ndarray, dispersion: float) -> np.ndarray:
    """Negative binomial, inverse dispersion r, without the term x! that cancels."""
    total = np.log(dispersion + mean)
    of_x = gammaln(x + dispersion) - gammaln(dispersion)
    return of_x + dispersion * (np.log(dispersion) - total) + x * (np.log(mean) - total)


def _called(
    fit: _Mixture,
    names: pd.Index,
    cells: pd.Index,
    labels: np.ndarray,
    probability: float,
    min_counts: int,
) -> GuideCalls:
    shape = fit.matrix.shape
    yes = (fit.responsibility >= probability) & (fit.x >= min_counts)
    posterior = sp.csr_matrix((fit.responsibility, (fit.cell, fit.guide)), shape=shape)
    called = sp.csr_matrix((yes[yes], (fit.cell[yes], fit.guide[yes])), shape=shape, dtype=bool)
    table = _cells_table(called, names, cells)
    table["probability"] = fit.all_right(yes)
    guides = _guides_table(called, names, fit.lanes, labels)
    guides["threshold"] = _thresholds(fit, probability, min_counts).ravel()
    guides["ambient"] = fit.ambient.ravel()
    guides["own"], guides["share"] = (np.repeat(v, len(labels)) for v in (fit.own, fit.share))
    own, r = guides["own"].to_numpy(), fit.own_dispersion
    guides["missed"] = nbinom.cdf(guides["threshold"] - 1, r, r / (r + own))
    return GuideCalls(posterior, called, table, guides)


def _thresholds(fit: _Mixture, probability: float, min_counts: int) -> np.ndarray:
    """Least count from which on a guide is called, at median depth; (K, L)."""
    guide, lane = np.indices(fit.shape)
    one, needed = np.ones(fit.shape), np.log(probability) - np.log1p(-probability)
    most = int(np.ceil(fit.own.max())) + 1
    threshold = np.full(fit.shape, np.nan)
    for x in range(min_counts, max(most, min_counts) + 1):
        found = fit.log_odds(float(x) * one, one, guide, lane) >= needed
        threshold[found & np.isnan(threshold)] = x
        if not np.isnan(threshold).any():
            break
    return threshold


def _by_threshold(
    matrix: sp.csr_matrix,
    names: pd.Index,
    cells: pd.Index,
    lanes: np.ndarray,
    labels: np.ndarray,
    min_counts: int,
) -> GuideCalls:
    called = sp.csr_matrix(matrix >= min_counts)
    table = _cells_table(called, names, cells).assign(probability=np.nan)
    guides = _guides_table(called, names, lanes, labels).assign(threshold=float(min_counts))
    return GuideCalls(sp.csr_matrix(called, dtype=float), called, table, guides)


def _cells_table(called: sp.csr_matrix, names: pd.Index, cells: pd.Index) -> pd.DataFrame:
    called.sort_indices()
    n = np.diff(called.indptr)
    rows = np.split(np.asarray(names)[called.indices], called.indptr[1:-1])
    kinds = np.array(["none", "one", "several"])
    return pd.DataFrame(
        {
            "guides": [SEPARATOR.join(row) for row in rows] if len(cells) else [],
            "n_guides": n,
            "call": pd.Categorical(kinds[np.minimum(n, 2)], categories=kinds),
        },
        index=cells,
    )


def _guides_table(
    called: sp.csr_matrix, names: pd.Index, lanes: np.ndarray, labels: np.ndarray
) -> pd.DataFrame:
    n = np.zeros((len(names), len(labels)), int)
    for i in range(len(labels)):
        n[:, i] = called[lanes == i].getnnz(0)
    return pd.DataFrame(
        {
            "guide": np.repeat(np.asarray(names), len(labels)),
            "batch": np.tile(labels, len(names)),
            "n_cells": n.ravel(),
        }
    )
