"""How near a predicted change of expression comes to the one observed, gene by gene.

A change (delta) is the difference of a condition's level from that of control cells, level being
the log1p of mean counts per cell. Most genes do not change, and perturbations share what they do
to all cells, so that errors averaged over genes, and correlations, are good for forecasts that say
the same of every perturbation. Scores by rank, and errors weighted with how surely a gene differs,
are not; both kinds are computed here, so that they can stand side by side.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import rankdata

__all__ = ["correlation", "crps", "delta_scores", "discrimination", "weights_of_evidence"]


def discrimination(predicted: ArrayLike, candidates: ArrayLike, own: int) -> float:
    """Share of other conditions whose observed change is less like the predicted one than its own.

    1: the condition meant is the nearest of all, .5: chance, 0: the farthest. cell-eval calls it
    the discrimination score, scPertEval the (transposed) rank. Likeness is the cosine, so that
    conditions with few cells, whose changes are long with noise, are not far from everything. Ties
    count one half, as where a forecast is that nothing changes.

    Parameters
    ----------
    predicted
        (G,) predicted change.
    candidates
        (n, G) observed changes of n conditions.
    own
        Row of the condition that was predicted.

    Returns
    -------
    NaN with fewer than two conditions.
    """
    predicted, candidates = np.asarray(predicted, float), np.asarray(candidates, float)
    if len(candidates) < 2:
        return float("nan")
    length = np.linalg.norm(candidates, axis=1) * np.linalg.norm(predicted)
    product = candidates @ predicted
    likeness = np.divide(product, length, out=np.zeros_like(product), where=length > 0)
    others = np.delete(likeness, own)
    return float(np.mean((others < likeness[own]) + 0.5 * (others == likeness[own])))


def weights_of_evidence(statistic: ArrayLike) -> np.ndarray:
    """Weights of genes, (G,), that sum to one, by how surely they differ.

    Absolute t statistics, brought to [0, 1] and squared (Mejia et al. 2025, the weighted mean
    squared error of cell-eval's and scPertEval's users). Equal where no gene differs from another.

    Parameters
    ----------
    statistic
        (G,) t statistics of a condition against other perturbed cells; NaN counts as zero.
    """
    size = np.abs(np.nan_to_num(np.asarray(statistic, float), posinf=0, neginf=0))
    size = size - size.min(initial=np.inf)
    top = size.max(initial=0)
    if top == 0:
        return np.full(len(size), 1 / max(1, len(size)))
    weight = (size / top) ** 2
    return weight / weight.sum()


def crps(draws: ArrayLike, truth: ArrayLike) -> np.ndarray:
    """Continuous ranked probability score of draws, unbiased in their number; smaller is better.

    Parameters
    ----------
    draws
        (S, ...) draws of a forecast; with one draw the score is the absolute error.
    truth
        (...) what happened.

    Returns
    -------
    Array of the shape of `truth`, in its unit.
    """
    draws, truth = np.asarray(draws, float), np.asarray(truth, float)
    n = len(draws)
    error = np.abs(draws - truth).mean(0)
    if n == 1:
        return error
    weight = (2 * np.arange(1, n + 1) - n - 1).reshape(-1, *[1] * truth.ndim)
    return error - (weight * np.sort(draws, axis=0)).sum(0) / (n * (n - 1))


def delta_scores(
    predicted: ArrayLike,
    observed: ArrayLike,
    weights: ArrayLike,
    changed: ArrayLike,
) -> dict[str, float]:
    """Scores of one condition's predicted change, rank and weighted ones first.

    Parameters
    ----------
    predicted, observed
        (G,) changes against the same control level.
    weights
        (G,) of genes, summing to one; see `weights_of_evidence`.
    changed
        (G,) bool, genes found to differ from control cells (differentially expressed).

    Returns
    -------
    dict
        spearman of the changes; de_overlap, the share of the k changed genes among the k genes
        that are predicted to change most (cell-eval's overlap at N); de_direction, the share of
        them predicted with the right sign; de_auroc of predicted sizes for being changed; wmse,
        the weighted mean squared error; mse and pearson. A forecast that is the same for all genes
        has correlations of 0, overlap by chance, and half of the signs. NaN where no gene, or
        every gene, changed.
    """
    predicted, observed = np.asarray(predicted, float), np.asarray(observed, float)
    weights, changed = np.asarray(weights, float), np.asarray(changed, bool)
    error = (predicted - observed) ** 2
    k = int(changed.sum())
    size = np.abs(predicted)
    found = {"spearman": correlation(rankdata(predicted), rankdata(observed))}
    if 0 < k < len(changed):
        found |= {
            "de_overlap": _among_top(size, changed, k),
            "de_direction": float(_same_sign(predicted[changed], observed[changed]).mean()),
            "de_auroc": _auroc(rankdata(size), changed),
        }
    else:
        found |= dict.fromkeys(("de_overlap", "de_direction", "de_auroc"), np.nan)
    return found | {
        "wmse": float(weights @ error),
        "mse": float(error.mean()),
        "pearson": correlation(predicted, observed),
    }


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's, 0 where one of them is constant."""
    a, b = a - a.mean(), b - b.mean()
    length = np.linalg.norm(a) * np.linalg.norm(b)
    return float(a @ b / length) if length > 1e-12 else 0.0


def _same_sign(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.where(a == 0, 0.5, np.sign(a) == np.sign(b))


def _among_top(size: np.ndarray, changed: np.ndarray, k: int) -> float:
    """Share of changed genes among the k largest sizes; those tied at the edge share its places."""
    edge = np.partition(size, -k)[-k]
    above, tied = size > edge, size == edge
    places = (k - above.sum()) / tied.sum()
    return float((changed[above].sum() + places * changed[tied].sum()) / k)


def _auroc(rank: np.ndarray, happened: np.ndarray) -> float:
    n = int(happened.sum())
    above = rank[happened].sum() - n * (n + 1) / 2
    return float(above / (n * (len(rank) - n)))


def mean_by(values: Sequence[dict[str, float]]) -> dict[str, float]:
    """Mean of each score over several rows, of those that are not NaN."""
    names = values[0]
    table = {name: np.array([row[name] for row in values], float) for name in names}
    return {k: float(np.nanmean(v)) if np.isfinite(v).any() else np.nan for k, v in table.items()}
