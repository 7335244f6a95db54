r"""Evidence about the size of a contrast or about a slope, in closed form.

A contrast d̂ = d + noise (G genes) has noise of known variance v, correlated along the axes W of
cell state: N(0, diag(v - n w²) + n W'W). Its root mean square s is unknown, and so is its shape: a
few genes may move far or all of them a little, in any direction or in those in which the other
conditions of the screen move. Given s and shape the evidence is closed:

- a share q of the genes moves, d_g ~ (1 - q) δ_0 + q N(0, s²/q), q of 1, .3, .1, .03; whether a
  gene moves is summed out, the d shared factors are integrated by Laplace's method;
- all genes move along given axes B, d ~ N(0, s² (.2 I + .8 B'B / mean(b²))): Gaussian.

Shapes are averaged. The level of the noise is known to about 10% and that is averaged over too:
without it an error of a few percent in v, over thousands of genes, would pass for an effect.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

__all__ = [
    "ContrastEstimate",
    "log_mean_exp",
    "log_size_evidence",
    "log_slope_evidence",
    "without_common",
]

SHARES = (1.0, 0.3, 0.1, 0.03)
ISOTROPIC = 0.2  # of an effect along the others' axes, what is in all directions
NOISE_SD = 0.1  # of the log variance of the noise
_NODES = np.array([-1.22474487, 0.0, 1.22474487])  # Gauss-Hermite, three nodes
_NODE_WEIGHTS = np.array([1 / 6, 2 / 3, 1 / 6])
_ROUNDS = 5
_SHARED = 0.6  # most of a gene's noise that the axes of cell state may explain


@dataclass(frozen=True)
class ContrastEstimate:
    """A contrast with its noise.

    Attributes
    ----------
    value, variance
        (G,) the estimate and the variance of its error.
    factor
        (d, G) W scaled by √n: the part of the error that genes share has covariance factor'factor.
    """

    value: np.ndarray
    variance: np.ndarray
    factor: np.ndarray

    def __post_init__(self) -> None:
        """Keep the shared part of a gene's noise within its whole."""
        shared = (self.factor**2).sum(0)
        kept = np.sqrt(np.minimum(1.0, _SHARED * self.variance / np.maximum(shared, 1e-12)))
        object.__setattr__(self, "factor", self.factor * kept)

    @property
    def own(self) -> np.ndarray:
        """(G,) variance beyond the shared part."""
        return self.variance - (self.factor**2).sum(0)

    def at(self, log_noise: float) -> ContrastEstimate:
        """An estimate like it under another level of noise."""
        return ContrastEstimate(
            self.value, self.variance * np.exp(log_noise), self.factor * np.exp(log_noise / 2)
        )


def log_mean_exp(values: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """log Σ_i w_i exp(values_i) over the first axis, equal weights by default."""
    weights = np.full(len(values), 1 / len(values)) if weights is None else weights
    shape = (-1, *[1] * (values.ndim - 1))
    most = values.max(0)
    return most + np.log((weights.reshape(shape) * np.exp(values - most)).sum(0))


def log_size_evidence(
    contrast: ContrastEstimate, sizes: np.ndarray, *axes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Log evidence of every root mean square, up to a constant, and what is realised under it.

    Parameters
    ----------
    contrast
        What was seen.
    sizes
        (S,) root mean squares of the true contrast over its genes.
    axes
        Sets of directions (q, G) along which conditions may move: those in which cells at rest
        differ, those in which other conditions do.

    Returns
    -------
    (S,) log evidence, and (2, S) first and second moment of the mean square that the contrast then
    has over its genes: s² is the width it is drawn with, the genes at hand have their own.
    """

    def at(noisy: ContrastEstimate) -> tuple[np.ndarray, np.ndarray]:
        value = np.broadcast_to(noisy.value, (len(sizes), len(noisy.value)))
        parts = [_sparse(value, noisy.own[None], noisy.factor, sizes**2, q) for q in SHARES]
        parts += [_along(noisy, sizes, directions) for directions in axes if directions.any()]
        return _mixed(parts, np.full(len(parts), 1 / len(parts)))

    return _over_noise(contrast, at)


def log_slope_evidence(
    response: ContrastEstimate,
    reference: np.ndarray,
    reference_variance: np.ndarray,
    slopes: np.ndarray,
    sizes: np.ndarray,
) -> np.ndarray:
    """Log evidence of slopes w in response = w reference + something of its own, (slopes,).

    The reference is known with an error: it is shrunk to its mean given what was seen, and what is
    left of its error is added to the noise (regression calibration). What the response has of its
    own has a root mean square averaged over `sizes`.
    """
    signal = max(float(np.mean(reference**2 - reference_variance)), 1e-6)
    kept = signal / (signal + reference_variance)
    known, error = kept * reference, kept * reference_variance
    grid, scale = (a.ravel() for a in np.meshgrid(slopes, sizes, indexing="ij"))

    def at(noisy: ContrastEstimate) -> tuple[np.ndarray, np.ndarray]:
        value = noisy.value - grid[:, None] * known
        own = noisy.own + grid[:, None] ** 2 * error
        parts = [_sparse(value, own, noisy.factor, scale**2, q) for q in (1.0, 0.1)]
        return _mixed(parts, np.array([0.5, 0.5]))

    both = _over_noise(response, at)[0].reshape(len(slopes), len(sizes))
    return log_mean_exp(both.T)


def without_common(
    values: np.ndarray,
    variances: np.ndarray,
    common: np.ndarray,
    common_variance: np.ndarray,
    sizes: np.ndarray,
    weights: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """The level that rows share, for each row as all others and the controls tell it, (K, G) both.

    The control's level is in every row, and its error with it. Rows that do not move tell of it
    too: each counts by E[1 / (v + s²)] under the posterior of its own size s, so that one that
    moves hardly counts. Returns level and variance.

    Parameters
    ----------
    values, variances
        (K, G) levels of rows; an infinite variance leaves a gene out.
    common, common_variance
        (G,) what the controls say of the shared level.
    sizes, weights
        (S,) grid of root mean squares and its prior.
    """
    moving = np.full(len(values), 0.01)
    start = 1 / common_variance
    for _ in range(_ROUNDS):
        precision = 1 / (variances + moving[:, None])
        others = precision.sum(0) + start - precision
        level = ((precision * values).sum(0) + start * common - precision * values) / others
        total = variances + 1 / others
        seen = np.isfinite(total)
        left = np.where(seen, values - level, 0.0) ** 2
        log = np.empty((len(values), len(sizes)))
        for i, s in enumerate(sizes):
            at = np.where(seen, total + s**2, 1.0)
            log[:, i] = -0.25 * (np.log(at) + left / at).sum(1)  # genes are not independent: half
        log += np.log(weights)
        posterior = np.exp(log - log.max(1, keepdims=True))
        posterior /= posterior.sum(1, keepdims=True)
        typical = np.where(seen, variances, 0).sum(1) / np.maximum(seen.sum(1), 1)
        typical = np.maximum(typical, 1e-12)
        moving = 1 / (posterior / (typical[:, None] + sizes**2)).sum(1) - typical
        moving = np.maximum(moving, 0.0)
    return level, 1 / others


def _over_noise(
    contrast: ContrastEstimate, at: Callable[[ContrastEstimate], tuple[np.ndarray, np.ndarray]]
) -> tuple[np.ndarray, np.ndarray]:
    """Average over the level of the noise."""
    nodes = NOISE_SD * np.sqrt(2) * _NODES
    return _mixed([at(contrast.at(node)) for node in nodes], _NODE_WEIGHTS)


def _mixed(
    parts: list[tuple[np.ndarray, np.ndarray]], weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Log evidence of a mixture, and the moments of the mean square under it."""
    logs, moments = (np.stack(each) for each in zip(*parts, strict=True))
    log = log_mean_exp(logs, weights)
    share = weights[:, None] * np.exp(logs - log)
    return log, (share[:, None] * moments).sum(0)


def _sparse(
    value: np.ndarray, own: np.ndarray, factor: np.ndarray, square: np.ndarray, share: float
) -> tuple[np.ndarray, np.ndarray]:
    """Log evidence for values (S, G) of which a share of genes moves with mean square s², (S,).

    And the moments of the mean square that the effects then have, (2, S).
    """
    wide = own + (square / share)[:, None]
    d, g = factor.shape
    pairs = (factor[:, None] * factor).reshape(d * d, g).T  # (G, d²)
    f = np.zeros((len(value), d))
    for _ in range(_ROUNDS):
        still, moved = _two_logs(value - f @ factor, own, wide)
        p = 1.0 if share == 1 else _odds(np.log(share / (1 - share)) + moved - still)
        weight = (1 - p) / own + p / wide
        information = (weight @ pairs).reshape(-1, d, d) + np.eye(d)
        f = np.linalg.solve(information, ((weight * value) @ factor.T)[..., None])[..., 0]
        if share == 1:
            break
    left = value - f @ factor
    still, moved = _two_logs(left, own, wide)
    per_gene = moved
    if share < 1:
        per_gene = np.logaddexp(np.log1p(-share) + still, np.log(share) + moved)
    log = per_gene.sum(1) - 0.5 * (f**2).sum(1) - 0.5 * np.linalg.slogdet(information)[1]
    kept = 1 - own / wide
    centre, error = (kept * left) ** 2, kept * own
    square = p * (centre + error)  # (S, G)
    fourth = p * (centre**2 + 6 * centre * error + 3 * error**2)
    slope = 2 * (p * kept**2 * left) @ factor.T  # of the sum of squares in the shared factors
    shared = (slope * np.linalg.solve(information, slope[..., None])[..., 0]).sum(1)
    return log, _moments(square.mean(1), (fourth - square**2).sum(1) + shared, g)


def _moments(mean: np.ndarray, variance_of_sum: np.ndarray, n_genes: int) -> np.ndarray:
    return np.stack([mean, mean**2 + variance_of_sum / n_genes**2])


def _two_logs(value: np.ndarray, own: np.ndarray, wide: np.ndarray) -> tuple:
    square = value**2
    return -0.5 * (np.log(own) + square / own), -0.5 * (np.log(wide) + square / wide)


def _odds(log_odds: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(log_odds, -50, 50)))


def _along(
    noisy: ContrastEstimate, sizes: np.ndarray, axes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Log evidence of an effect along given axes, and a little in all directions."""
    unit = axes / np.sqrt((axes**2).sum(0).mean())
    g = len(noisy.value)
    logs, means, variances = [], [], []
    for s in sizes:
        diagonal = noisy.own + ISOTROPIC * s**2
        along = np.sqrt(1 - ISOTROPIC) * s * unit
        factor = np.vstack([noisy.factor, along])
        scaled = factor / diagonal
        inner = np.eye(len(factor)) + scaled @ factor.T
        projected = scaled @ noisy.value
        score = np.linalg.solve(inner, projected)
        quadratic = (noisy.value**2 / diagonal).sum() - projected @ score
        logs.append(-0.5 * (np.log(diagonal).sum() + np.linalg.slogdet(inner)[1] + quadratic))
        # the effect is kept·value + score·turn + noise of variance kept·own
        kept = 1 - noisy.own / diagonal
        turn = np.vstack([-kept * noisy.factor, (1 - kept) * along])
        effect, error = kept * noisy.value + score @ turn, kept * noisy.own
        root = np.linalg.solve(np.linalg.cholesky(inner), turn)  # root'root: error through scores
        means.append((effect**2 + error + (root**2).sum(0)).mean())
        both = root @ root.T
        trace = (error**2).sum() + 2 * (root**2 @ error).sum() + (both**2).sum()
        variances.append(4 * ((effect**2) @ error + ((root @ effect) ** 2).sum()) + 2 * trace)
    return np.array(logs), _moments(np.array(means), np.array(variances), g)
