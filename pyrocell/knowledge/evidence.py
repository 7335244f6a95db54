"""Whether a source knows anything: its evidence, and the same with the names of genes shuffled.

Evidence alone fools with twenty perturbations: shuffled names reach log Bayes factors of several
units. So it stands beside its permutation distribution.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pyrocell.knowledge.regression import GRID, centred, effective_dimensions

__all__ = ["Evidence", "permutation_evidence"]

_NEGLIGIBLE = 1e-6  # share of the variance that axes left out of the evidence may have


@dataclass(frozen=True)
class Evidence:
    """Log Bayes factor of a source alone against none, as found and with names shuffled.

    Attributes
    ----------
    log_bayes_factor
        Evidence averaged over the shares of the grid, against a share of zero.
    shuffled
        (n,) of the same with the names of covered genes permuted.
    """

    log_bayes_factor: float
    shuffled: np.ndarray

    @property
    def p(self) -> float:
        """(1 + shuffles that reach what was found) / (1 + shuffles)."""
        return float(
            (1 + (self.shuffled >= self.log_bayes_factor).sum()) / (1 + len(self.shuffled))
        )


def permutation_evidence(
    gram: np.ndarray,
    kernel: np.ndarray,
    covered: np.ndarray,
    noise: float,
    n_permutations: int,
    rng: np.random.Generator,
) -> Evidence:
    """Evidence for a source, and its permutation distribution.

    Parameters
    ----------
    gram
        (n, n) inner products of the effects.
    kernel
        (n, n) of the source, unit diagonal.
    covered
        (n,) genes that the source knows; names are permuted among these.
    noise
        Mean measurement error, in units of the variance of an effect.
    n_permutations
        How often.
    rng
        Of the permutations.
    """
    n = len(gram)
    values, axes = np.linalg.eigh(centred(gram))
    kept = values > _NEGLIGIBLE * max(values.sum(), 0.0)
    if n < 3 or not kept.any():
        return Evidence(0.0, np.zeros(n_permutations))
    effects = axes[:, kept] * np.sqrt(values[kept])  # (n, axes), rows with the same products
    of_kernel, basis = np.linalg.eigh(kernel)
    spectra = np.array([0.0, *GRID])[:, None]
    spectra = spectra * of_kernel.clip(0.0) + 1 - spectra + noise  # (shares, n)
    dimensions = effective_dimensions(gram)
    places = np.flatnonzero(covered)

    def found(order: np.ndarray) -> float:
        rotated = basis.T @ effects[order]
        log_evidence = _log_evidence(spectra, basis.sum(0), rotated, dimensions)
        top = log_evidence[1:].max()
        return float(top + np.log(np.exp(log_evidence[1:] - top).mean()) - log_evidence[0])

    order = np.arange(n)
    own = found(order)
    shuffled = np.empty(n_permutations)
    for i in range(n_permutations):
        order[places] = rng.permutation(places)
        shuffled[i] = found(order)
    return Evidence(own, shuffled)


def _log_evidence(
    spectra: np.ndarray, one: np.ndarray, effects: np.ndarray, dimensions: float
) -> np.ndarray:
    """Log evidence of covariances with a common basis, (shares,); see `regression`.

    Parameters
    ----------
    spectra
        (shares, n) eigenvalues of each.
    one
        (n,) the vector of ones in the basis.
    effects
        (n, axes) effects in the basis.
    """
    n = len(one)
    whole = (one**2 / spectra).sum(1)
    along = (one / spectra) @ effects  # (shares, axes)
    trace = (1 / spectra) @ (effects**2).sum(1) - (along**2).sum(1) / whole
    log_det = np.log(spectra).sum(1)
    return -0.5 * dimensions * (log_det + np.log(whole) + (n - 1) * np.log(trace.clip(1e-300)))
