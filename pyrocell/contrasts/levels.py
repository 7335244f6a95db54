"""Log expression of every condition, free of any prior on effects: a likelihood of contrasts.

The counts T of gene g in condition c have the mean D_c exp(β_c), with D_c = Σ_b E_cb exp(η_b) from
the depths E of its cells by batch. Given η, log(T / D) is β up to a known bias and variance; η is a
random effect with the width that the fitted model found, Gauss-Newton around the estimate. What a
posterior would shrink stays unshrunk here, so that the same numbers can be set against any prior on
the effects: the evidence for "nothing moved" and the evidence for "something did".

A cell counts in proportion to its depth, but no more than `DEEPEST` times the usual one: very deep
cells are few, are often two cells or of another kind, and would decide what a condition looks like.

Cells vary together along the axes of their resting state, so the errors of genes are correlated: a
group with q = Σℓ² / (Σℓ)² (1/n for cells of equal size) has the covariance q D_z' D_z beyond the
diagonal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from scipy.special import polygamma

from pyrocell.data.backed import BackedCounts, count_blocks
from pyrocell.data.statistics import add_by_group
from pyrocell.screen.feature_views import places_of

__all__ = ["ConditionLevels", "Contrast", "condition_levels"]

DEEPEST = 2.0  # weight of a cell at most, in units of the median depth
_ROUNDS = 10
_POOLED = 5.0  # counts by which the level that sets a variance leans towards the pooled one
_NARROWEST = 1e-3
_KURTOSIS = 8.0  # variance of log k times degrees of freedom
_RAREST = 1e-12  # a gene without counts
_UNKNOWN = 1e4  # relative variance where no cell was measured
_FEWEST_PAIRS = 0.25  # of those expected were all counts at the pooled rate


@dataclass(frozen=True)
class Contrast:
    """A contrast of conditions, in natural-log fold change.

    Attributes
    ----------
    value, variance
        (G,) estimate and the variance of its sampling error.
    spread
        Σ a² q over its conditions: weight of the loading's covariance.
    """

    value: np.ndarray
    variance: np.ndarray
    spread: float


@dataclass(frozen=True)
class ConditionLevels:
    """Levels of all conditions; see the module.

    Attributes
    ----------
    value, variance
        (C, G) β and the variance of its sampling error.
    per_cell
        (C,) q, inverse number of cells.
    share
        (C, B) share of each batch in a condition's depth.
    eta_covariance
        (G, B, B) of the error of η.
    expected
        (C, G) counts expected at the pooled level: which genes can be judged, whatever they show.
    eta_sd
        (G,) standard deviation of η, of both levels together where there are two.
    sizes
        (V,) numbers of features of each view, where several are side by side; `share` is then
        (V, C, B), and `per_cell` that of the view with fewest cells.
    """

    value: np.ndarray
    variance: np.ndarray
    per_cell: np.ndarray
    share: np.ndarray
    eta_covariance: np.ndarray
    expected: np.ndarray
    eta_sd: np.ndarray
    sizes: tuple[int, ...] = ()

    @classmethod
    def side_by_side(cls, parts: Sequence[ConditionLevels]) -> ConditionLevels:
        """Levels of several views of the same conditions, their features one axis."""
        if len(parts) == 1:
            return parts[0]
        columns = ("value", "variance", "expected", "eta_sd")
        return cls(
            **{name: np.concatenate([getattr(p, name) for p in parts], -1) for name in columns},
            per_cell=np.max([p.per_cell for p in parts], 0),
            share=np.stack([p.share for p in parts]),
            eta_covariance=np.concatenate([p.eta_covariance for p in parts]),
            sizes=tuple(p.value.shape[1] for p in parts),
        )

    def contrast(self, weights: Mapping[int, float]) -> Contrast:
        """Σ_c a_c β_c, for weights by row of `Screen.conditions`; zeros for none."""
        rows, a = _arrays(weights)
        return Contrast(
            a @ self.value[rows], a**2 @ self.variance[rows], float(a**2 @ self.per_cell[rows])
        )

    def batch_variance(self, weights: Mapping[int, float]) -> np.ndarray:
        """(G,) variance that the error of η adds to a contrast."""
        rows, a = _arrays(weights)
        shares = self.share if self.sizes else self.share[None]
        found = []
        for each, part in zip(shares, places_of(self.sizes or (len(self.eta_covariance),))):
            share = a @ each[rows]  # (B,)
            found.append(np.einsum("b,gbd,d->g", share, self.eta_covariance[part], share))
        return np.concatenate(found)


def condition_levels(
    counts: sp.csr_matrix | BackedCounts,
    size: np.ndarray,
    condition: np.ndarray,
    batch: np.ndarray,
    eta_sd: np.ndarray,
    laboratory: np.ndarray | None = None,
    laboratory_sd: np.ndarray | None = None,
    n_conditions: int | None = None,
    n_batches: int | None = None,
) -> ConditionLevels:
    """Estimate the levels of all conditions.

    Parameters
    ----------
    counts
        (N, G) CSR counts, in memory or stored.
    size
        (N,) size factors.
    condition, batch
        (N,) codes.
    eta_sd
        (G,) standard deviation of batch noise.
    laboratory, laboratory_sd
        (B,) code of each batch's laboratory and (G,) standard deviation of what laboratories add;
        None where there is one level.
    n_conditions, n_batches
        By default up to the last that has cells. Nothing is known of one without.
    """
    n_batches = int(batch.max()) + 1 if n_batches is None else n_batches
    n_conditions = int(condition.max()) + 1 if n_conditions is None else n_conditions
    weight = np.minimum(1.0, DEEPEST * np.median(size) / size)
    group = condition * n_batches + batch
    groups = _Groups.of(counts, size, weight, group, n_conditions * n_batches)
    poisson, extra = groups.variance()
    shape = (n_conditions, n_batches)
    depth, squares = groups.depth.reshape(shape), groups.squares.reshape(shape)
    total = groups.total.reshape(*shape, -1)
    summed = total.sum(1)
    rate = np.maximum(total.sum((0, 1)) / depth.sum(), _RAREST)
    per_cell = np.divide(squares, depth**2, out=np.zeros(shape), where=depth > 0)
    none = depth.sum(1) <= 0  # (C,) conditions without cells
    whole = np.where(none, 1.0, depth.sum(1))
    q = squares.sum(1) / whole**2  # (C,)
    plain = groups.plain.reshape(shape).sum(1) / whole  # of Poisson noise, 1 without weights
    eta = np.zeros((n_batches, total.shape[-1]))
    precision = _eta_precision(n_batches, eta_sd, laboratory, laboratory_sd)
    for _ in range(_ROUNDS if n_batches > 1 else 1):
        within = np.einsum("cb,bg->cg", depth, np.exp(eta)) + none[:, None]  # D, (C, G)
        level = np.log((summed + _POOLED) / (within + _POOLED / rate))
        information = precision.copy()
        gradient = -np.einsum("gbd,dg->gb", precision, eta)
        for c in range(n_conditions):
            mine = np.flatnonzero(depth[c])
            scaled = depth[c, mine, None] * np.exp(eta[mine])
            mean = scaled * np.exp(level[c])
            known = 1 / (poisson * plain[c] / mean + extra * per_cell[c, mine, None])  # (b, G)
            relative = known / known.sum(0)
            left = (total[c, mine] - scaled * (summed[c] / within[c])) / mean
            left = left - (relative * left).sum(0)
            gradient[:, mine] += (known * left).T
            block = -np.einsum("bg,dg->gbd", known, relative)
            i = np.arange(len(mine))
            block[:, i, i] += known.T
            information[:, mine[:, None], mine] += block
        step = np.linalg.solve(information, gradient[..., None])[..., 0].T
        eta = np.clip(eta + np.clip(step, -0.5, 0.5), -3, 3)
        if np.abs(step).max() < 1e-6:
            break
    within = np.einsum("cb,bg->cg", depth, np.exp(eta)) + none[:, None]
    smooth = within * (summed + _POOLED) / (within + _POOLED / rate)
    per_count = np.einsum("cb,bg->cg", squares, np.exp(2 * eta)) / within**2  # 1 / cells that count
    relative_variance = poisson * plain[:, None] / smooth + extra * per_count
    relative_variance[none] = _UNKNOWN
    return ConditionLevels(
        value=np.where(
            none[:, None],
            0.0,
            np.log(np.maximum(summed + poisson * plain[:, None] / 2, 1e-300) / within)
            + extra * per_count / 2,
        ),
        variance=polygamma(1, np.maximum(1 / relative_variance, 0.5)),  # of a log-gamma variable
        per_cell=q,
        share=depth / whole[:, None],
        eta_covariance=np.linalg.inv(information),
        expected=rate * depth.sum(1)[:, None],
        eta_sd=eta_sd if laboratory_sd is None else np.hypot(eta_sd, laboratory_sd),
    )


def _eta_precision(
    n_batches: int,
    eta_sd: np.ndarray,
    laboratory: np.ndarray | None,
    laboratory_sd: np.ndarray | None,
) -> np.ndarray:
    """Inverse of the prior covariance s² I + s_L² Z Z' of η over batches, (G, B, B)."""
    own = np.maximum(eta_sd, _NARROWEST) ** 2
    identity = np.eye(n_batches)
    out = identity / own[:, None, None]
    if laboratory is None or laboratory_sd is None:
        return out
    together = laboratory[:, None] == laboratory  # by Woodbury, laboratory by laboratory
    size = together.sum(1)
    left = laboratory_sd[:, None] ** 2 / (own[:, None] + size * laboratory_sd[:, None] ** 2)
    return out - (left / own[:, None])[:, :, None] * together


def _moderated(extra: np.ndarray, freedom: int) -> np.ndarray:
    """Overdispersion (G,) shrunk towards the genes' median, as far as few cells make it vary.

    Of counts with heavy tails log k is known to about √(8 / freedom). A gene whose k came out small
    by luck would pass for one that moves.
    """
    positive = extra > 0
    if not positive.any():
        return extra
    log = np.log(np.maximum(extra, 0.1 * np.median(extra[positive])))
    middle, error = np.median(log[positive]), _KURTOSIS / max(freedom, 1)
    spread = max(float(np.var(log[positive])) - error, 0.0)
    return np.where(positive, np.exp(middle + (log - middle) * spread / (spread + error)), 0.0)


def _arrays(weights: Mapping[int, float]) -> tuple[np.ndarray, np.ndarray]:
    n = len(weights)
    return np.fromiter(weights, int, n), np.fromiter(weights.values(), float, n)


@dataclass(frozen=True)
class _Groups:
    """Sums over the cells of each (condition, batch), with weights w.

    `cells`, `depth` Σwℓ, `squares` Σ(wℓ)² and `plain` Σw²ℓ are (M,); `total` Σwx, `square_sum`
    Σ(wx)², `cross` Σw²xℓ and `first` Σw²x (M, G).
    """

    cells: np.ndarray
    depth: np.ndarray
    squares: np.ndarray
    plain: np.ndarray
    total: np.ndarray
    square_sum: np.ndarray
    cross: np.ndarray
    first: np.ndarray

    @classmethod
    def of(
        cls,
        counts: sp.csr_matrix | BackedCounts,
        size: np.ndarray,
        weight: np.ndarray,
        group: np.ndarray,
        n: int,
    ) -> _Groups:
        member = sp.csr_matrix((np.ones(len(size)), (group, np.arange(len(size)))), (n, len(size)))
        total, square_sum, cross, first = np.zeros((4, n, counts.shape[1]))
        for rows, block in count_blocks(counts):
            block, weights = sp.csr_matrix(block, dtype=np.float64), weight[rows]
            for out, by, values in (
                (total, weights, block),
                (square_sum, weights**2, block.power(2)),
                (cross, weights**2 * size[rows], block),
                (first, weights**2, block),
            ):
                add_by_group(out, group[rows], sp.diags(by) @ values)
        return cls(
            cells=np.bincount(group, minlength=n),
            depth=member @ (weight * size),
            squares=member @ (weight * size) ** 2,
            plain=member @ (weight**2 * size),
            total=total,
            square_sum=square_sum,
            cross=cross,
            first=first,
        )

    def variance(self) -> tuple[np.ndarray, np.ndarray]:
        """f and k, (G,) each, of the variance f μ + k μ² of a cell's count; moments, pooled.

        Squares of means are taken over pairs of different cells: the square of a mean of few cells
        is too large by its own variance, and k would come out too small. Counts of a rare gene may
        never meet in a group: pairs are held to `_FEWEST_PAIRS` of those at the pooled rate, or k
        would have no bound.
        """
        some = self.cells > 1
        n, depth, squares = (x[some, None] for x in (self.cells, self.depth, self.squares))
        total, square_sum, cross = (x[some] for x in (self.total, self.square_sum, self.cross))
        first = self.first[some]
        rate, left = total / depth, 1 - 1 / n
        seen = (square_sum - 2 * rate * cross + rate**2 * squares).sum(0)
        first = (first * left).sum(0)
        pairs = np.maximum(total**2 - square_sum, 0) / np.maximum(depth**2 - squares, 1e-12)
        second = (pairs * squares * left).sum(0)
        pooled = (total.sum(0) / depth.sum()) ** 2 * (squares * left).sum()
        second = np.maximum(second, _FEWEST_PAIRS * pooled)
        poisson = np.divide(seen, first, out=np.ones_like(first), where=first > 0).clip(0.05, 1)
        extra = np.divide(seen - first, second, out=np.zeros_like(first), where=second > 0)
        return poisson, _moderated(np.maximum(extra, 0), (self.cells[some] - 1).sum())
