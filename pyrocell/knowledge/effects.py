"""Effects of perturbations that were never measured, from those of measured ones.

An effect has a direction and a size, and they are separate. What a new perturbation does is the
average of measured effects with kriging weights (`regression`). How far off that is expected to be
is the product of two things: how little the kernel says of it, and how large effects of its kind
are, whose logarithm has a kernel prior of its own. With one variance for all, stated errors rank
true ones backwards, since what little is known of strong perturbations is the rest of silent ones.

Shares are learned from effects divided by the square root of their size: undivided, one or two
outliers decide what a source is worth; at length one, silent perturbations do, with their noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from pyrocell.knowledge.evidence import Evidence, permutation_evidence
from pyrocell.knowledge.regression import Fit, centred, fit_shares, left_out, weights_of
from pyrocell.knowledge.sources import Knowledge

__all__ = ["EffectRegression", "Unseen", "damped"]

_SMALLEST = 0.1  # sizes below this quantile count as it: their logarithm is noise


@dataclass(frozen=True)
class Unseen:
    """What measured effects say of m perturbations.

    Attributes
    ----------
    weights
        (m, n): predictions are their products with the measured effects; rows sum to one.
    by_source
        (S, m, n) parts of the weights that sources bring; the rest is the mean of all.
    error
        (m,) expected squared length of the error of a prediction.
    """

    weights: np.ndarray
    by_source: np.ndarray
    error: np.ndarray


def sizes(gram: np.ndarray, error: np.ndarray | None = None) -> np.ndarray:
    """Sizes (n,) of effects off their mean, above zero."""
    square = np.diag(centred(gram)).clip(0.0) + (0.0 if error is None else error)
    some = square[square > 0]
    least = np.quantile(some, _SMALLEST) if len(some) else 1.0
    return np.sqrt(np.maximum(square, least))


def damped(gram: np.ndarray, error: np.ndarray | None = None) -> np.ndarray:
    """Inner products of effects off their mean, each divided by the square root of its size."""
    root = np.sqrt(sizes(gram, error))
    return centred(gram) / np.outer(root, root)


class EffectRegression:
    """Effects of n measured perturbations as a function of what is known of their genes.

    Parameters
    ----------
    gram
        (n, n) inner products of their effects.
    names
        (n,) genes.
    knowledge
        Sources; None: there are none, and everything is predicted to be the mean of the others.
    error
        (n,) expected squared length of the measurement error of each; default: none.

    Attributes
    ----------
    fit
        Posterior of the shares of sources.
    fit_size
        The same for the logarithm of the size of effects.

    Raises
    ------
    KnowledgeError
        If no source knows any of the genes.
    """

    def __init__(
        self,
        gram: np.ndarray,
        names: Sequence[str],
        knowledge: Knowledge | None,
        error: np.ndarray | None = None,
    ):
        n = len(gram)
        self.names, self.knowledge = [str(name) for name in names], knowledge
        self._gram = (gram + gram.T) / 2
        self.kernels = np.zeros((0, n, n))
        self.covered = np.zeros((0, n), bool)
        if knowledge is not None:
            self.kernels, self.covered = knowledge.kernel(self.names)
        error = np.zeros(n) if error is None else np.asarray(error, float)
        size = sizes(self._gram, error)
        self._damped = damped(self._gram, error), error / size
        learned = fit_shares(self._damped[0], self.kernels, self._damped[1])
        self._noise = learned.noise
        scale = float(np.trace(centred(self._gram)) / max(n - 1, 1))
        noise = error / scale if scale > 0 else np.zeros(n)
        self.fit: Fit = replace(learned, noise=noise, scale=max(scale, 0.0))
        self._log_size = np.log(size)
        self._log_gram = np.outer(self._log_size, self._log_size)
        self.fit_size: Fit = fit_shares(self._log_gram, self.kernels, dimensions=1.0)

    def predict(self, names: Sequence[str]) -> Unseen:
        """What is expected of perturbations of other genes."""
        cross = np.zeros((len(self.kernels), len(names), len(self.names)))
        if self.knowledge is not None:
            both = self.knowledge.kernel([*self.names, *map(str, names)]).kernels
            n = len(self.names)
            cross = both[:, n:, :n]
        found = weights_of(self.fit, self.kernels, cross, self._gram)
        size = weights_of(self.fit_size, self.kernels, cross, self._log_gram)
        square = self._square(size.weights, size.variance)
        return Unseen(found.weights, found.by_source, square * found.variance)

    def evidence(self, source: int, n_permutations: int, rng: np.random.Generator) -> Evidence:
        """Log Bayes factor of a source alone against none, beside that of shuffled names."""
        gram, noise = self._damped[0], float(self._noise.mean())
        kernel, covered = self.kernels[source], self.covered[source]
        return permutation_evidence(gram, kernel, covered, noise, n_permutations, rng)

    def left_out(self) -> Unseen:
        """The same for each measured perturbation, from all others; shares are those of all."""
        weights, variance = left_out(self.fit, self.kernels, self._gram)
        size = left_out(self.fit_size, self.kernels, self._log_gram)
        none = np.zeros((len(self.kernels), *weights.shape))
        return Unseen(weights, none, self._square(*size) * variance)

    def _square(self, weights: np.ndarray, variance: np.ndarray) -> np.ndarray:
        """Expected squared size of effects, whose logarithm is normal."""
        mean, variance = weights @ self._log_size, variance * self.fit_size.scale
        return np.exp(2 * mean + 2 * variance)
