"""Regression of wells on their position, and the evidence that a position tells; see `arrayed`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import gammaln
from scipy.stats import gamma, norm

from pyrocell.contrasts.evidence import ContrastEstimate, log_mean_exp, log_size_evidence
from pyrocell.errors import ScreenError

__all__ = ["Regression", "judge"]

_SMALLEST, _LARGEST = 1 / 20, 30  # sizes considered, in units of the region
_N_SIZES = 12  # grid points on either side of the border
_NOTHING = 1e-3  # in units of the region: a size that is none
_MOST_FACTORS = 8
_FEWEST_FREE = 4  # degrees of freedom that the residuals need


@dataclass(frozen=True)
class Regression:
    """Wells with the covariance that their noise has; see `arrayed`.

    Attributes
    ----------
    value
        (W, G) levels.
    root
        (W, W) inverse of the Cholesky factor of the covariance between wells, relative to Σ.
    level
        (W, P) columns of the plates' levels.
    variance, factor
        (G,) diagonal of Σ, and (q, G) what genes share of it, included in the diagonal.
    """

    value: np.ndarray
    root: np.ndarray
    level: np.ndarray
    variance: np.ndarray
    factor: np.ndarray

    @classmethod
    def of(
        cls,
        value: np.ndarray,
        sampling: np.ndarray | None,
        condition: np.ndarray | None,
        level: np.ndarray,
        features: np.ndarray,
        rim: np.ndarray,
    ) -> Regression:
        """Read covariances off the residuals.

        Parameters
        ----------
        value, sampling
            (W, G) levels, and the variance of their sampling error if known.
        condition
            (W,) labels.
        level, features
            (W, P) and (W, F) all that the mean may depend on.
        rim
            (W,) whether a well is at the rim, where noise may have another size.
        """
        design = np.concatenate([level, features], 1)
        member = np.zeros((len(value), 0))
        if condition is not None:
            member = pd.get_dummies(pd.Series(condition).astype(str)).to_numpy(float)
        ratio, unit = _condition_ratio(value, design, member)
        relative = np.ones(len(value))
        if sampling is not None:
            known = (sampling / unit).mean(1)
            relative = max(1 - known.mean(), 0) + known
        for _ in range(2):
            root = _inverse_root(np.diag(relative) + ratio * member @ member.T)
            left, free = _residuals(root @ value, root @ design)
            size = (left**2 / (left**2).mean(0)).mean(1)
            scale = np.where(rim, size[rim].mean(), size[~rim].mean())
            relative = relative * scale / scale.mean()
        variance = _moderated((left**2).sum(0) / free, free)
        factor = _shared(left / np.sqrt(variance), free) * np.sqrt(variance)
        return cls(value, root, level, variance, factor)

    def contrast(self, feature: np.ndarray, beside: Sequence[np.ndarray]) -> ContrastEstimate:
        """Coefficient of a feature (W,) beside others, per gene, with the covariance of its error.

        Raises
        ------
        ScreenError
            If the feature does not vary beyond the others.
        """
        others = self.root @ np.column_stack([self.level, *beside])
        column = self.root @ feature
        own = column - others @ np.linalg.lstsq(others, column, rcond=None)[0]
        square = own @ own
        if square < 1e-8 * (column @ column):
            raise ScreenError("the wells at hand lie so that effects of position are aliased")
        estimate = own @ (self.root @ self.value) / square
        return ContrastEstimate(estimate, self.variance / square, self.factor / np.sqrt(square))


def judge(
    contrasts: Mapping[str, ContrastEstimate],
    families: Mapping[str, Sequence[str]],
    genes: pd.Index,
    region: float,
    prior: float,
    credible_level: float,
    by_gene: bool,
) -> pd.DataFrame:
    """Posterior and size of effects; members of a family are alternatives that share its prior."""
    grid = _Grid.of(region, prior)
    found = {name: grid.look(contrast) for name, contrast in contrasts.items()}
    member = {name: family for family, names in families.items() for name in names}
    families = {**families, **{name: (name,) for name in contrasts if name not in member}}
    if by_gene:
        tables = [grid.per_gene(contrasts[n], found[n], genes, credible_level) for n in contrasts]
        return pd.concat([t.assign(effect=n) for t, n in zip(tables, contrasts, strict=True)])[
            ["effect", "gene", "mean", "sd", "lower", "upper"]
        ]
    rows = []
    for family, names in families.items():
        inside = np.array([found[n].inside for n in names]) - np.log(len(names))
        outside = np.array([found[n].outside for n in names]) - np.log(len(names))
        odds = np.concatenate([np.log(prior) + outside, np.log1p(-prior) + inside])
        share = np.exp(odds - odds.max())
        share /= share.sum()
        factor = np.logaddexp.reduce(outside) - np.logaddexp.reduce(inside)
        each = share[: len(names)] + share[len(names) :]  # of the shape, whatever the size
        size = grid.size([found[n] for n in names], each, credible_level)
        rows.append((family, prior, share[: len(names)].sum(), factor, *size))
        for n, p in zip(names, share, strict=False) if len(names) > 1 else ():
            alone = found[n].outside - np.logaddexp.reduce(inside)
            size = grid.size([found[n]], np.ones(1), credible_level)
            rows.append((n, prior / len(names), p, alone, *size))
    columns = "effect prior posterior log_bayes_factor size lower upper".split()
    return pd.DataFrame(rows, columns=columns)


@dataclass(frozen=True)
class _Look:
    """Log evidence inside and outside the region against no effect, and of sizes given both.

    `p` (S,) is the posterior of the grid's sizes; `moments` (2, S) those of the mean square.
    """

    inside: float
    outside: float
    p: np.ndarray
    moments: np.ndarray


@dataclass(frozen=True)
class _Grid:
    """Sizes and their prior."""

    sizes: np.ndarray
    weights: np.ndarray
    inside: np.ndarray

    @classmethod
    def of(cls, region: float, prior: float) -> _Grid:
        def between(low: float, high: float) -> np.ndarray:
            edges = np.linspace(np.log(low), np.log(high), _N_SIZES + 1)
            return np.exp((edges[1:] + edges[:-1]) / 2)

        low = between(_SMALLEST * region, region)
        sizes = np.concatenate([[_NOTHING * region], low, between(region, _LARGEST * region)])
        inside = sizes < region
        inside[0] = False  # the reference is no part of the prior
        weights = np.where(inside, (1 - prior) / _N_SIZES, prior / _N_SIZES)
        weights[0] = 0.0
        return cls(sizes, weights, inside)

    def look(self, contrast: ContrastEstimate) -> _Look:
        log, moments = log_size_evidence(contrast, self.sizes)
        log = log - log[0]
        outside = ~self.inside
        outside[0] = False
        p = self.weights * np.exp(log - log.max())
        return _Look(
            float(log_mean_exp(log[self.inside])),
            float(log_mean_exp(log[outside])),
            p / p.sum(),
            moments,
        )

    def size(self, looks: Sequence[_Look], share: np.ndarray, level: float) -> tuple:
        """Mean and interval of the realised root mean square, each mean square being a Gamma."""
        p = np.concatenate([s * look.p for s, look in zip(share, looks, strict=True)])
        mean, second = np.concatenate([look.moments for look in looks], 1)
        kept = p > 1e-9
        p, mean, second = p[kept] / p[kept].sum(), mean[kept], second[kept]
        shape = mean**2 / np.maximum(second - mean**2, 1e-9 * mean**2)
        low, high = np.sqrt(mean.min()) / 10, 3 * np.sqrt(mean.max())
        points = np.exp(np.linspace(np.log(low), np.log(high), 2000))
        below = gamma.cdf(points[:, None] ** 2, shape, scale=mean / shape) @ p
        lower, upper = np.interp([(1 - level) / 2, (1 + level) / 2], below, points)
        root = np.sqrt(mean / shape) * np.exp(gammaln(shape + 0.5) - gammaln(shape))
        return float(root @ p), float(lower), float(upper)

    def per_gene(
        self, contrast: ContrastEstimate, look: _Look, genes: pd.Index, level: float
    ) -> pd.DataFrame:
        """Each gene drawn towards zero as far as the size of the whole says, averaged over it."""
        kept = self.sizes[:, None] ** 2 / (self.sizes[:, None] ** 2 + contrast.variance)  # (S, G)
        mean = look.p @ kept * contrast.value
        square = look.p @ (kept * contrast.variance + (kept * contrast.value) ** 2)
        sd = np.sqrt(np.maximum(square - mean**2, 0))
        z = norm.ppf((1 + level) / 2)
        parts = {"gene": genes, "mean": mean, "sd": sd, "lower": mean - z * sd}
        return pd.DataFrame({**parts, "upper": mean + z * sd})


def _condition_ratio(
    value: np.ndarray, design: np.ndarray, member: np.ndarray
) -> tuple[float, np.ndarray]:
    """ρ, variance between conditions relative to that between their wells, and the latter (G,).

    Moments (Henderson's third method), pooled over genes in units of each gene's own variance.
    Where no condition has several wells the two are one, and ρ is 0.
    """
    left, free = _residuals(value, design)
    total = np.maximum((left**2).sum(0), 1e-12)
    if not member.shape[1]:
        return 0.0, total / free
    both = np.concatenate([design, member], 1)
    rank = np.linalg.matrix_rank(both)
    if len(value) - rank < _FEWEST_FREE:
        return 0.0, total / free
    within, free_within = _residuals(value, both)
    own = np.maximum((within**2).sum(0), 1e-12) / free_within
    basis = np.linalg.qr(design)[0]
    trace = (member**2).sum() - ((basis.T @ member) ** 2).sum()
    between = ((total / own).mean() - free) / max(trace, 1e-12)
    return float(max(between, 0.0)), own


def _residuals(value: np.ndarray, design: np.ndarray) -> tuple[np.ndarray, int]:
    """What is left of values, and its degrees of freedom.

    Raises
    ------
    ScreenError
        If the wells are too few.
    """
    u, s, _ = np.linalg.svd(design, full_matrices=False)
    u = u[:, s > 1e-9 * s[0]]
    free = len(value) - u.shape[1]
    if free < _FEWEST_FREE:
        raise ScreenError(f"{len(value)} wells are too few for the effects of their position")
    return value - u @ (u.T @ value), free


def _inverse_root(covariance: np.ndarray) -> np.ndarray:
    return np.linalg.inv(np.linalg.cholesky(covariance))


def _moderated(variance: np.ndarray, free: int) -> np.ndarray:
    """Variances of genes (G,) shrunk towards their middle, as far as few wells make them vary."""
    log = np.log(np.maximum(variance, 1e-12))
    middle, error = log.mean(), 2 / free
    spread = max(float(np.var(log)) - error, 0.0)
    return np.exp(middle + (log - middle) * spread / (spread + error))


def _shared(left: np.ndarray, free: int) -> np.ndarray:
    """Factors (q, G) that residuals of unit variance share beyond chance.

    Eigenvalues of pure noise end at the edge of the Marchenko-Pastur law.
    """
    _, s, axes = np.linalg.svd(left, full_matrices=False)
    value = s**2 / free
    edge = (1 + np.sqrt(left.shape[1] / free)) ** 2
    kept = value[: np.clip((value > edge).sum(), 1, _MOST_FACTORS)]
    return np.sqrt(np.where(kept > edge, kept - 1, 0.0))[:, None] * axes[: len(kept)]
