"""Prior of what a driver does to single genes: a spike and a mixture of scales and patterns.

The effects of a perturbation on a gene, over the times and media in which it was measured, are with
learned probabilities

- little (the spike): a normal whose width, one of `SPIKES`, is learned for every perturbation, so
  that many small changes do not make the interval of each of them false; a change in it is called
  an effect if it is more than two of its posterior standard deviations from zero,
- of one of several sizes, alike in every medium, and from the first time on constant, or unfolding
  as responses to the perturbation do, or a walk over the measured times,
- seen in one medium alone, or in every medium but the first, or in the first alone,
- of their own in every medium.

A normal background beside sparse effects is the prior of Zhou, Carbonetto and Stephens (2013).

Each component is a matrix F whose product with independent standard normals gives the coefficients:
those of the walk (T) and what each further medium adds (J). Mixtures of this kind, with weights
learned from all genes, are those of Stephens (2017, adaptive shrinkage) and of Urbut et al. (2019,
several conditions).
"""

from __future__ import annotations

import numpy as np

__all__ = ["CALLED", "REST", "SCALES", "SPIKES", "components", "starting_weights", "walk_root"]

SCALES = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)  # natural-log fold change
REST = 0.03  # of the spike at the start
SPIKES = (1 / 3, 2 / 3, 1.0, 5 / 3, 8 / 3, 4.0, 6.0)  # widths it may have, in units of `REST`
CALLED = 2.0  # standard deviations from which a change that may be a background is an effect
_OF_MEDIA = (0.2, 0.5, 1.2)  # of what is seen in some media alone
_SPIKE = 0.8  # weight at the start


def walk_root(
    steps: np.ndarray, kept: np.ndarray, relative_step: float, before: np.ndarray
) -> np.ndarray:
    """Cholesky factor (T, T) of a walk over measured times, variance 1 at the first that counts.

    Parameters
    ----------
    steps
        (T − 1,) times between, in units of the mean step.
    kept
        (T − 1,) share of the walk that is left from one time to the next.
    relative_step
        Standard deviation of a mean step, in units of the walk's first value.
    before
        (T,) bool: at these times nothing has happened yet, and the walk is zero.
    """
    n = len(steps) + 1
    root = np.zeros((n, n))
    begun = False
    for i in range(n):
        if before[i]:
            continue
        if not begun:
            root[i, i], begun = 1.0, True
            continue
        root[i] = kept[i - 1] * root[i - 1]
        root[i, i] = relative_step * np.sqrt(steps[i - 1])
    return root


def components(
    walk: np.ndarray, onset: np.ndarray, n_media: int, rest: float = 0.0
) -> list[np.ndarray]:
    """Matrices F (T + J, k) of the components, the spike first.

    Parameters
    ----------
    walk
        (T, T) factor of the walk over times.
    onset
        (T,) share of the response that has set in at each time.
    n_media
        J media beside the first in which the driver was measured.
    rest
        Standard deviation of the spike at the start.
    """
    n_times = len(walk)
    active = walk[:, np.abs(walk).sum(0) > 0]  # columns of times at which something has happened
    n = n_times + n_media
    out = [np.zeros((n, 0))]
    if not active.size:
        return out

    def over(times: np.ndarray, media: np.ndarray) -> np.ndarray:
        return np.concatenate([times, media])

    if rest > 0:
        begun = (np.abs(walk).sum(1) > 0)[:, None].astype(float)
        out = [over(rest * begun, np.zeros((n_media, 1)))]
    none = np.zeros((n_times, 1))
    first = active.shape[1]
    if first > 1:
        for course in (np.abs(walk).sum(1) > 0, onset / np.abs(onset).max()):
            column = course[:, None].astype(float)
            out += [over(s * column, np.zeros((n_media, 1))) for s in SCALES]
    out += [over(s * active, np.zeros((n_media, first))) for s in SCALES]
    unit = np.eye(n_media)
    for s in _OF_MEDIA if n_media else ():
        out += [over(none, s * unit[:, [j]]) for j in range(n_media)]
        if n_media > 1:
            out.append(over(none, np.full((n_media, 1), s)))
    if n_media and first == 1:
        ones = np.ones((n_media, 1))
        out += [over(s * active, -s * active.max() * ones) for s in _OF_MEDIA]
    for s in (_OF_MEDIA[0], _OF_MEDIA[-1]) if n_media else ():
        both = np.zeros((n, first + n_media))
        both[:n_times, :first] = s * active
        both[n_times:, first:] = s * unit
        out.append(both)
    return out


def starting_weights(n_components: int) -> np.ndarray:
    """Weights before any count was looked at."""
    if n_components == 1:
        return np.ones(1)
    rest = (1 - _SPIKE) / (n_components - 1)
    return np.array([_SPIKE, *[rest] * (n_components - 1)])
