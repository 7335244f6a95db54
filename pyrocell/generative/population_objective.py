"""Distances between populations as factors of a generalised posterior (App. B.3, eq. 23).

The likelihood asks of every cell how probable its counts are. Eq. 23 asks whether control cells,
carried through F, look as a population like the perturbed cells that were caught. Both can be had:
with a factor exp(−ω n D) for every condition of n cells, prior times likelihood times factors is a
generalised posterior (Bissiri, Holmes & Walker 2016) with the learning rate ω. It is no likelihood,
so ω is a choice and not an estimate, and intervals mean what ω makes them mean: keep ω = 0 where
coverage matters, and use the distances of :mod:`pyrocell.metrics` to judge such a fit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy.special import gammaln
from torch import Tensor

from pyrocell.metrics.distances import distance

__all__ = ["DistributionObjective", "inclusion_probability"]

_LEAST = 2  # cells of each population that an unbiased distance needs


@dataclass(frozen=True)
class DistributionObjective:
    """What is added to the log joint for the distance of F(control cells) from the cells seen.

    Parameters
    ----------
    method
        A name of `pyrocell.metrics.distances.METHODS`. All but "sinkhorn" are unbiased, so that a
        step on a minibatch is an unbiased step on the screen.
    weight
        ω, nats per cell of a condition and unit of the distance; 0 leaves the posterior as it is.
    n_cells
        Most cells of either population compared in a step, drawn from the minibatch; bounds cost.
    options
        Passed to the distance, for example ``{"bandwidth": 1.0}``, which "mmd" needs: the median
        heuristic would follow the parameters during training.

    Raises
    ------
    ValueError
        If the method is unknown, `weight` is negative or not finite, `n_cells` is below 2, or "mmd"
        has no bandwidth.
    """

    method: str = "energy"
    weight: float = 1.0
    n_cells: int = 64
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        distance(self.method)
        if not 0 <= self.weight < float("inf"):
            raise ValueError(f"weight={self.weight} must be finite and not negative")
        if self.n_cells < _LEAST:
            raise ValueError(f"n_cells={self.n_cells} must be at least {_LEAST}")
        if self.method == "mmd" and self.options.get("bandwidth") is None:
            raise ValueError(
                'method="mmd" needs options={"bandwidth": ...} in the units of the space compared '
                "(1 is the spread of resting cells): one found from the cells would follow the "
                "parameters during training"
            )

    def log_factor(
        self,
        predicted: Tensor,
        observed: Tensor,
        condition: Tensor,
        sizes: Tensor,
        n_controls: int,
        n_total: int,
        n_batch: int,
    ) -> Tensor:
        """−ω Σ n_c D(F(controls, c), cells of c) over conditions c, from one minibatch.

        Conditions of which the minibatch holds fewer than two cells are left out, and those that
        it does hold count for them: each is divided by the probability of being held, so that the
        mean over minibatches is the value of the screen.

        Parameters
        ----------
        predicted
            (C, n, d) the minibatch's n control cells carried through F to each of C conditions, in
            the space in which populations are compared.
        observed
            (m, d) its perturbed cells in that space.
        condition
            (m,) their conditions, rows of `predicted`; −1 for cells not to be compared.
        sizes
            (C,) cells of each condition in the screen.
        n_controls, n_total, n_batch
            Control cells and all cells of the screen, and cells of the minibatch, drawn without
            replacement from the screen.

        Returns
        -------
        (), nats of the whole screen; 0 if nothing in the minibatch can be compared.
        """
        total = predicted.new_zeros(())
        if not self.weight or predicted.shape[1] < _LEAST:
            return total
        measure = distance(self.method)
        n_cells = sizes.cpu().numpy()
        held = inclusion_probability(n_cells, n_controls, n_total, n_batch)
        for c in condition[condition >= 0].unique().tolist():
            here = observed[condition == c]
            if len(here) >= _LEAST:
                value = measure(self._some(predicted[c]), self._some(here), **self.options)
                total = total - self.weight * float(n_cells[c] / held[c]) * value
        return total

    def resting_factor(
        self, z: Tensor, condition: Tensor, reference: Tensor, sizes: Tensor, n_trained: int
    ) -> Tensor:
        """The factor of a screen, populations compared at rest.

        F adds one displacement to all cells of a condition, and distances do not see what is added
        to both sides; so F(controls) is to the cells seen as the resting states of the first are to
        those of the second.

        Parameters
        ----------
        z
            (n, d) resting states of a minibatch.
        condition
            (n,) their conditions.
        reference
            (C,) whether a condition is of unperturbed cells in baseline medium, of whatever time.
        sizes
            (C,) cells of each condition in the screen.
        n_trained
            Cells that are trained on, a random part of the screen: the factor is theirs.
        """
        control = reference[condition]
        predicted = z[control].expand(len(sizes), -1, -1)
        n_total = int(sizes.sum())
        factor = self.log_factor(
            predicted,
            z[~control],
            condition[~control],
            sizes,
            n_controls=int(sizes[reference].sum()),
            n_total=n_total,
            n_batch=len(z),
        )
        return factor * (n_trained / n_total)

    def _some(self, cells: Tensor) -> Tensor:
        """At most `n_cells` of them, at random."""
        if len(cells) <= self.n_cells:
            return cells
        return cells[torch.randperm(len(cells), device=cells.device)[: self.n_cells]]


def inclusion_probability(
    sizes: np.ndarray, n_controls: int, n_total: int, n_batch: int
) -> np.ndarray:
    """Probability that a minibatch holds two cells or more of a condition, and of the controls.

    Parameters
    ----------
    sizes
        (C,) cells of each condition in the screen, the controls not among them.
    n_controls, n_total, n_batch
        Control cells and all cells of the screen, and cells drawn from it without replacement.

    Returns
    -------
    (C,)
    """
    sizes = np.asarray(sizes, float)

    def share(a: int, b: int) -> np.ndarray:
        """Probability of exactly a cells of the condition and b controls."""
        rest, drawn = n_total - sizes - n_controls, n_batch - a - b
        logs = _log_choose(sizes, a) + _log_choose(n_controls, b) + _log_choose(rest, drawn)
        return np.exp(logs - _log_choose(n_total, n_batch))

    def few(size: np.ndarray | int) -> np.ndarray:
        """Probability of fewer than two cells of one population."""
        logs = [
            _log_choose(size, a) + _log_choose(n_total - size, n_batch - a) for a in range(_LEAST)
        ]
        return np.exp(logs - _log_choose(n_total, n_batch)).sum(axis=0)

    both = sum(share(a, b) for a in range(_LEAST) for b in range(_LEAST))
    return 1 - few(sizes) - few(n_controls) + both


def _log_choose(n: Any, k: Any) -> np.ndarray:
    """Log of n choose k, −∞ where there is no way."""
    n, k = np.broadcast_arrays(np.asarray(n, float), np.asarray(k, float))
    possible = (k >= 0) & (k <= n)
    with np.errstate(invalid="ignore"):
        logs = gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)
    return np.where(possible, logs, -np.inf)
