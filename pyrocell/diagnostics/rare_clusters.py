"""Small clusters of cells with a valley of low density between them and the bulk.

A heavy or skewed tail is as rare as a rare cell type, and k-means, Leiden and their like cut pieces
of it off that come back with every seed. What it does not have is a valley. So candidates are
parts of k-means; each is seen along the direction that tells it from all other cells best (Fisher's
linear discriminant), and there the density of all cells must fall and rise again on the way out.
Where a density only falls, an interval further out holds no more cells than one of the same width
further in: the statistic is the largest signed root of twice the log likelihood ratio of the two
counts, over all pairs of such intervals in the outermost cells.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.cluster import KMeans

__all__ = ["RareCluster", "jaccard", "rare_clusters", "valley_along"]

_PARTS = (5, 10, 20)  # numbers of clusters of k-means: candidates of every size
_STEP = 0.25  # of the grid of intervals, in sd of the bulk along the direction
_WIDTHS = (2, 3, 4, 6, 8)  # of intervals, in steps
_REACH = 15.0  # sd from where the tail begins
_OUTERMOST = 1.25  # share of cells that are looked at, in units of the largest share
_LARGEST = 2.5  # share of a candidate before its edge is moved to the valley, in the same unit
_ROUNDS = 3
_RIDGE = 0.02  # of the mean variance
_FAR = 2.0  # median distances from the median, beyond which cells are drawn in
_SAME = 0.3  # Jaccard index from which two candidates are one


@dataclass(frozen=True)
class RareCluster:
    """A small cluster.

    Attributes
    ----------
    valley
        The statistic; see the module.
    member
        (n,) bool.
    """

    valley: float
    member: np.ndarray


def rare_clusters(states: np.ndarray, max_share: float, least: int, seed: int) -> list[RareCluster]:
    """Small clusters of states (n, d), the deepest valley first, none of them twice.

    Parameters
    ----------
    states
        (n, d).
    max_share
        Largest share of the cells.
    least
        Fewest cells.
    seed
        Of k-means.
    """
    tamed = _drawn_in(states)
    found: list[RareCluster] = []
    for n_parts in _PARTS:
        if n_parts * least > len(states):
            continue
        label = KMeans(n_parts, n_init=1, max_iter=50, random_state=seed).fit_predict(tamed)  # pyright: ignore[reportArgumentType]
        for part in range(n_parts):
            found += _moved_to_valley(states, tamed, label == part, max_share, least)
    found.sort(key=lambda each: -each.valley)
    kept: list[RareCluster] = []
    for each in found:
        if all(jaccard(each.member, other.member) < _SAME for other in kept):
            kept.append(each)
    return kept


def valley_along(states: np.ndarray, member: np.ndarray, max_share: float) -> tuple[float, float]:
    """Statistic of a cluster in other states of the same cells, and its distance from the others.

    The latter between medians, in standard deviations of the other cells along the direction.
    """
    direction, origin = _direction(_drawn_in(states), member)
    score = (states - np.median(states, 0) - origin) @ direction
    distance = float(np.median(score[member]) - np.median(score[~member]))
    return _valley(score, max_share)[0], distance


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """Cells in both of two sets over those in either."""
    either = (a | b).sum()
    return float((a & b).sum() / either) if either else 0.0


def _drawn_in(states: np.ndarray) -> np.ndarray:
    """States with outliers drawn in to a ball about the median, where k-means spends no part."""
    away = states - np.median(states, 0)
    distance = np.linalg.norm(away, axis=1)
    limit = _FAR * np.median(distance)
    return away * np.minimum(1, limit / np.maximum(distance, 1e-12))[:, None]


def _moved_to_valley(
    states: np.ndarray, tamed: np.ndarray, member: np.ndarray, max_share: float, least: int
) -> list[RareCluster]:
    """A candidate after its edge was moved to the valley, if it has one and is small."""
    best: RareCluster | None = None
    if not least <= member.sum() <= _LARGEST * max_share * len(states):
        return []
    centre = np.median(states, 0)  # `tamed` is about it
    for _ in range(_ROUNDS):
        direction, origin = _direction(tamed, member)
        score = (states - centre - origin) @ direction
        valley, edge = _valley(score, max_share)
        member = score > edge
        if valley <= 0 or not least <= member.sum() <= max_share * len(states):
            break
        if best is None or valley > best.valley:
            best = RareCluster(valley, member)
    return [] if best is None else [best]


def _direction(tamed: np.ndarray, member: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fisher's direction (d,), unit sd of the other cells along it, and the others' mean (d,)."""
    rest = tamed[~member]
    origin = rest.mean(0)
    covariance = np.cov(rest, rowvar=False).reshape(len(origin), -1)
    ridge = _RIDGE * np.trace(covariance) / len(origin) * np.eye(len(origin))
    direction = np.linalg.solve(covariance + ridge, tamed[member].mean(0) - origin)
    return direction / np.sqrt(max(direction @ covariance @ direction, 1e-24)), origin


def _valley(score: np.ndarray, max_share: float) -> tuple[float, float]:
    """Statistic of a valley in the outermost scores (n,), and where its middle is."""
    start = np.quantile(score, 1 - _OUTERMOST * max_share)
    edges = np.arange(start, start + _REACH, _STEP)
    below = np.concatenate([[0], np.cumsum(np.histogram(score, edges)[0])])
    best, middle = 0.0, float(edges[-1])
    for width in _WIDTHS:
        within = (below[width:] - below[:-width]).astype(float)
        further = np.maximum.accumulate(within[::-1])[::-1][width:]
        here = within[:-width]
        rises = further > here
        both = here + further
        half = np.maximum(both / 2, 0.5)
        log = here * np.log(np.maximum(here, 0.5) / half) + further * np.log(
            np.maximum(further, 0.5) / half
        )
        root = np.where(rises, np.sqrt(2 * np.maximum(log, 0)), 0.0)
        i = int(np.argmax(root))
        if root[i] > best:
            best, middle = float(root[i]), float(edges[i] + width * _STEP / 2)
    return best, middle
