"""How much an effect varies between batches beyond sampling, for every perturbation and gene.

The level of condition c in batch b is x_c + η_b + δ_cb, δ ~ N(0, τ²). τ of a perturbation and
gene lies on a grid with weights w_d w_g / w: those of the perturbation are learned from all of its
genes, those of the gene from all perturbations (genes that vary between replicates do so whatever
was perturbed), and both lean on the screen's w, which stand where a perturbation was measured in
one batch alone.
"""

from __future__ import annotations

import math

import numpy as np
import scipy.sparse as sp

from pyrocell._core.threading import parallel_for
from pyrocell.distributions.kernels.fastmath import jit

__all__ = ["TAU", "replicate_variance"]

TAU = np.array([0.0, 0.05, 0.1, 0.2, 0.4, 0.8])  # standard deviations, natural log
_NULL = 0.03  # share of the genes by which the weight of τ = 0 is strengthened
_COMMON = 20.0  # genes that the screen's weights count as, in those of a perturbation
_COMMON_OF_GENE = 4.0  # perturbations that they count as, in those of a gene
_FEWEST_COUNTS = 1.0  # mean count per batch of a gene that can tell
_MOST_GENES = 300  # from which the weights are learned
_ROUNDS, _ROUNDS_OF_GENES = 100, 30


@jit("nsz", "contract", "arcp", "reassoc")
def _likelihoods(first, last, total, depth, poisson, square, start, group, eta, factor,
                 inverse_theta, genes, tau, out):  # fmt: skip
    """Log likelihood of τ with the level of the condition integrated out, (C, genes, τ)."""
    for c in range(first, last):
        begin, end = start[c], start[c + 1]
        if end - begin < 2:
            continue
        for i in range(genes.size):
            g = genes[i]
            for t in range(tau.size):
                variance = tau[t] ** 2
                extra = math.exp(variance) - 1.0
                within, summed = 0.0, 0.0
                for r in range(begin, end):
                    within += depth[r] * math.exp(eta[group[r], g])
                    summed += total[r, g]
                x = math.log((summed + 0.5) / within)
                information = 1.0
                for _ in range(8):
                    score, information = 0.0, 1e-9
                    for r in range(begin, end):
                        scale = depth[r] / (factor[g] * poisson[r])
                        mu = scale * depth[r] * math.exp(x + eta[group[r], g])
                        size = 1.0 / (square[r] / depth[r] ** 2 * inverse_theta[g] + extra + 1e-9)
                        score += (scale * total[r, g] - mu) * size / (mu + size)
                        information += mu * size / (mu + size)
                    step = min(max(score / information, -1.0), 1.0)
                    x += step
                    if abs(step) < 1e-3:
                        break
                value = -0.5 * math.log(information)
                for r in range(begin, end):
                    scale = depth[r] / (factor[g] * poisson[r])
                    mu = scale * depth[r] * math.exp(x + eta[group[r], g])
                    size = 1.0 / (square[r] / depth[r] ** 2 * inverse_theta[g] + extra + 1e-9)
                    y = scale * total[r, g]
                    value += math.lgamma(y + size) - math.lgamma(size) - y * math.log(size)
                    value += y * math.log(mu) - (y + size) * math.log1p(mu / size)
                out[c, i, t] = value


def replicate_variance(
    rows: dict[str, np.ndarray],
    eta: np.ndarray,
    factor: np.ndarray,
    inverse: np.ndarray,
    driver: np.ndarray,
    stated_sd: float,
    by_gene: bool = True,
) -> np.ndarray:
    """Posterior mean of τ² by condition and gene, (C, G).

    Parameters
    ----------
    rows
        See `batch_noise._profile`.
    eta
        (H, G) batch noise.
    factor, inverse
        (G,) Poisson factor, and relative variance of a cell's count beyond counting.
    driver
        (C,) what the conditions that share τ are numbered by; -1 for those whose level does not
        vary (controls).
    stated_sd
        τ where no condition was measured in two batches.
    by_gene
        False: every gene has what the driver's prior has.
    """
    n_genes = len(inverse)
    counts = rows["total"].mean(0)
    usable = np.flatnonzero(counts >= _FEWEST_COUNTS)
    out = np.where(driver >= 0, stated_sd**2, 0.0)[:, None].repeat(n_genes, 1)
    n_drivers = int(driver.max()) + 1 if len(driver) else 0
    several = (np.diff(rows["start"]) > 1) & (driver >= 0)
    if not len(usable) or not several.any():
        return out
    out[:] = 0.0
    learn = usable[np.unique(np.linspace(0, len(usable) - 1, _MOST_GENES).astype(int))]
    table = _by_driver(rows, eta, factor, inverse, driver, several, learn)
    weights, common = _learned(table)
    typical = common @ TAU**2
    prior = np.full(n_drivers, typical)
    measured = np.flatnonzero(np.bincount(driver[several], minlength=n_drivers) > 0)
    prior[measured] = weights[measured] @ TAU**2
    varies = prior > TAU[1] ** 2 / 4  # smaller ones change nothing
    if not varies.any():
        return out
    for c in np.flatnonzero(driver >= 0):
        out[c] = prior[driver[c]]
    if not by_gene:
        return out
    rest = several & varies[np.maximum(driver, 0)]
    table = _by_driver(rows, eta, factor, inverse, driver, rest, usable)
    of_gene = _of_genes(table[varies], weights[varies], common)
    for d in np.flatnonzero(varies):
        log = table[d] + np.log(weights[d] + 1e-30) + of_gene
        share = np.exp(log - log.max(1, keepdims=True))
        share /= share.sum(1, keepdims=True)
        mine = np.flatnonzero((driver == d) & several)
        out[np.ix_(mine, usable)] = share @ TAU**2
    return out


def _by_driver(
    rows: dict[str, np.ndarray],
    eta: np.ndarray,
    factor: np.ndarray,
    inverse: np.ndarray,
    driver: np.ndarray,
    several: np.ndarray,
    genes: np.ndarray,
) -> np.ndarray:
    """Log likelihoods summed over the conditions of each driver, (drivers, genes, τ)."""
    n_drivers = int(driver.max()) + 1
    out = np.zeros((n_drivers, len(genes), len(TAU)))
    names = ("total", "depth", "poisson", "square", "start", "group")
    table = np.zeros((1, len(genes), len(TAU)))
    chosen = np.flatnonzero(several)
    at_once = max(1, 2**22 // table.size)
    for part in np.array_split(chosen, max(1, -(-len(chosen) // at_once))):
        local = _rows_of(rows, part)
        table = np.zeros((len(part), len(genes), len(TAU)))
        arguments = (*(local[n] for n in names), eta, factor, inverse, genes, TAU, table)
        parallel_for(lambda c: _likelihoods(c, c + 1, *arguments), len(part))  # noqa: B023
        n = len(part)
        member = sp.csr_array((np.ones(n), (driver[part], np.arange(n))), shape=(n_drivers, n))
        out += (member @ table.reshape(n, -1)).reshape(out.shape)
    return out


def _of_genes(table: np.ndarray, weights: np.ndarray, common: np.ndarray) -> np.ndarray:
    """Log of how far the weights of a gene are from the screen's, (genes, τ).

    Parameters
    ----------
    table
        (drivers, genes, τ) log likelihoods.
    weights, common
        (drivers, τ) weights of drivers, and (τ,) the screen's.
    """
    common = np.maximum(common, 1e-9)
    own = np.tile(common, (table.shape[1], 1))
    log = table + np.log(weights + 1e-30)[:, None]
    likelihood = np.exp(log - log.max(2, keepdims=True))
    for _ in range(_ROUNDS_OF_GENES):
        share = likelihood * (own / common)
        share /= share.sum(2, keepdims=True)
        own = share.sum(0) + _COMMON_OF_GENE * common
        own /= own.sum(1, keepdims=True)
    return np.log(own / common + 1e-30)


def _rows_of(rows: dict[str, np.ndarray], conditions: np.ndarray) -> dict[str, np.ndarray]:
    start = rows["start"]
    mine = [np.arange(int(start[c]), int(start[c + 1])) for c in conditions]
    index = np.concatenate(mine)
    picked = {name: rows[name][index] for name in rows if name != "start"}
    return picked | {"start": np.concatenate([[0], np.cumsum([len(m) for m in mine])])}


def _learned(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights of the grid, (drivers, τ), and the screen's, (τ,), by expectation maximisation."""
    n_drivers, n_genes, n = table.shape
    likelihood = np.exp(table - table.max(2, keepdims=True))
    measured = np.ptp(table, axis=2).any(1)
    weights = np.full((n_drivers, n), 1 / n)
    common = weights[0]
    null = _NULL * n_genes * (TAU == 0)
    for _ in range(_ROUNDS):
        whole = likelihood @ weights[..., None]  # (drivers, genes, 1)
        counts = weights * ((1 / whole).swapaxes(1, 2) @ likelihood)[:, 0] + null  # (drivers, τ)
        before, common = common, counts[measured].sum(0) / counts[measured].sum()
        weights = counts + _COMMON * common
        weights /= weights.sum(1, keepdims=True)
        if np.abs(common - before).max() < 1e-5:
            break
    return weights, common
