"""Batch noise of every gene with the level of every condition left free, one gene at a time.

The counts of condition c in noise group h (a batch, or a medium in a batch) have the mean
E_ch exp(x_c + η_h). Under a flat prior on the levels x and a normal one on η the posterior of η is
found by Gauss-Newton steps with the levels profiled out. What a condition does can then not be
mistaken for batch noise, and where the layout cannot tell them apart η keeps its prior.
"""

from __future__ import annotations

import numpy as np

from pyrocell._core.threading import parallel_for
from pyrocell.distributions.kernels.fastmath import jit

__all__ = ["NoiseFit", "fit_noise"]

_ROUNDS = 15
_POOLED = 5.0  # counts by which the level that sets a variance leans towards the pooled one
_NARROWEST = 1e-3
_WEIGHT = 4.0  # groups that the screen's width counts as, in the width of a gene
_WIDTH_ROUNDS = 4


@jit("nsz", "contract", "arcp", "reassoc")
def _profile(first, last, total, depth, poisson, square, start, group, replicate, rate, factor,
             inverse_theta, precision, eta, covariance):  # fmt: skip
    """Mode and covariance of η, (H, G) and (G, H, H), of some genes.

    Rows are pairs of condition and group, by condition: total (R, G); depth, poisson and square
    (R,) Σwℓ, Σw²ℓ, Σ(wℓ)²; start (C + 1,) first row of each condition; group (R,).
    replicate (C, G) variance of a condition's level between groups.
    """
    n_conditions, n_groups = start.size - 1, eta.shape[0]
    weight = np.empty(n_groups)
    mean = np.empty(n_groups)
    for g in range(first, last):
        information = np.empty((n_groups, n_groups))
        gradient = np.empty(n_groups)
        for _ in range(_ROUNDS):
            for i in range(n_groups):
                value = 0.0
                for j in range(n_groups):
                    information[i, j] = precision[g, i, j]
                    value -= precision[g, i, j] * eta[j, g]
                gradient[i] = value
            for c in range(n_conditions):
                begin, end = start[c], start[c + 1]
                within, summed = 0.0, 0.0
                for r in range(begin, end):
                    mean[r - begin] = depth[r] * np.exp(eta[group[r], g])
                    within += mean[r - begin]
                    summed += total[r, g]
                lean = (summed + _POOLED) / (within + _POOLED / rate[g])
                found = summed / within
                all_weight, all_left = 0.0, 0.0
                for r in range(begin, end):
                    mu = mean[r - begin] * lean
                    relative = factor[g] * poisson[r] / depth[r] / mu
                    relative += square[r] / depth[r] ** 2 * inverse_theta[g] + replicate[c, g]
                    weight[r - begin] = 1.0 / relative
                    all_weight += weight[r - begin]
                    left = (total[r, g] - mean[r - begin] * found) / mu
                    mean[r - begin] = left
                    all_left += weight[r - begin] * left
                all_left /= all_weight
                for r in range(begin, end):
                    h, w = group[r], weight[r - begin]
                    gradient[h] += w * (mean[r - begin] - all_left)
                    information[h, h] += w
                    for s in range(begin, end):
                        information[h, group[s]] -= w * weight[s - begin] / all_weight
            step = np.linalg.solve(information, gradient)
            most = 0.0
            for h in range(n_groups):
                change = min(max(step[h], -0.5), 0.5)
                eta[h, g] = min(max(eta[h, g] + change, -3.0), 3.0)
                most = max(most, abs(change))
            if most < 1e-5:
                break
        covariance[g] = np.linalg.inv(information)


class NoiseFit:
    """Posterior of batch noise.

    Parameters
    ----------
    levels
        Codes of the groups (H,) on every level of noise, the finest first: group, batch,
        laboratory. η of a group is the sum over levels of independent normals.
    n_genes
        G.
    sd
        Starting standard deviation.

    Attributes
    ----------
    eta, covariance
        (H, G) mode and (G, H, H) covariance.
    width
        (levels, G) standard deviations, learned from all genes and each gene's own.
    """

    def __init__(self, levels: list[np.ndarray], n_genes: int, sd: float):
        self.same = [(code[:, None] == code).astype(float) for code in levels]
        self.unit = [_averages(code) for code in levels]
        n_groups = len(levels[0])
        self.width = np.full((len(levels), n_genes), sd)
        self.eta = np.zeros((n_groups, n_genes))
        self.covariance = np.zeros((n_genes, n_groups, n_groups))

    @property
    def prior(self) -> np.ndarray:
        """(G, H, H) prior covariance at the widths found."""
        parts = zip(self.width, self.same, strict=True)
        return sum((width[:, None, None] ** 2 * same for width, same in parts), np.zeros(()))

    @property
    def unsure_prior(self) -> np.ndarray:
        """Widths with the posterior mean of each variance in the place of its estimate.

        A variance known from n groups, and from other genes as if from a few more, is
        scaled-inverse-χ²: its mean is above the estimate, the more the fewer the groups.
        """
        out = np.zeros(())
        for width, same, unit in zip(self.width, self.same, self.unit, strict=True):
            freedom = len(unit) + _WEIGHT
            out = out + width[:, None, None] ** 2 * (freedom / (freedom - 2)) * same
        return out

    def learn_widths(self) -> None:
        """One step of expectation and maximisation for the widths, shrunk to those of all genes."""
        prior = self.prior
        second = self.covariance + self.eta.T[:, :, None] * self.eta.T[:, None]  # E ηη'
        kept = np.linalg.solve(prior, second - prior)  # Σ⁻¹ (E ηη' − Σ)
        middle = np.swapaxes(np.linalg.solve(prior, np.swapaxes(kept, 1, 2)), 1, 2)
        for level, (same, unit) in enumerate(zip(self.same, self.unit, strict=True)):
            variance = self.width[level][:, None, None] ** 2
            moment = variance * same + variance**2 * (same @ middle @ same)  # E uu'
            n = len(unit)
            square = np.einsum("uh,ghk,uk->g", unit, moment, unit)
            common = square.mean() / n
            found = (square + _WEIGHT * common) / (n + _WEIGHT)
            self.width[level] = np.sqrt(np.maximum(found, _NARROWEST**2))


def _averages(code: np.ndarray) -> np.ndarray:
    """(units, H): the mean over the groups of each unit."""
    member = (np.unique(code)[:, None] == code).astype(float)
    return member / member.sum(1, keepdims=True)


def fit_noise(
    fit: NoiseFit,
    rows: dict[str, np.ndarray],
    rate: np.ndarray,
    factor: np.ndarray,
    inverse: np.ndarray,
    replicate: np.ndarray,
    learn: bool = True,
) -> None:
    """Find the posterior of η, in place.

    Parameters
    ----------
    rows
        `total`, `depth`, `poisson`, `square`, `start`, `group`; see `_profile`.
    rate, factor, inverse
        (G,) pooled rate, Poisson factor, and relative variance of a cell's count beyond counting.
    replicate
        (C, G) variance of levels between groups beyond η.
    learn
        Learn the widths too; False: with what is not known of them.
    """
    n_genes = len(rate)
    edges = np.linspace(0, n_genes, min(n_genes, 64) + 1).astype(int)
    for _ in range(_WIDTH_ROUNDS if learn else 1):
        precision = np.linalg.inv(fit.prior if learn else fit.unsure_prior)
        arguments = (
            *(rows[name] for name in ("total", "depth", "poisson", "square", "start", "group")),
            *(replicate, rate, factor, inverse, precision, fit.eta, fit.covariance),
        )
        parallel_for(lambda i: _profile(edges[i], edges[i + 1], *arguments), len(edges) - 1)  # noqa: B023
        if learn:
            fit.learn_widths()
