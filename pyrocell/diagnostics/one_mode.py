"""A distribution of cells' states with heavy tails and skewness but a single mode.

The null of `subtypes`. Skewness and heavy tails need not lie along the axes of a state, so those of
independent component analysis are taken. The marginal of each is Tukey's g-and-h, a monotone map of
a standard normal whose g is skewness and whose h is weight of the tails, read off quantiles; they
depend on each other by a Student copula, whose degrees of freedom say how far a cell that is far
out on one component tends to be so on the others. A cluster apart from the bulk makes such a fit
more skewed or heavier in the tail, never bimodal.

Source: Hoaglin (1985), in Exploring Data Tables, Trends, and Shapes, ch. 11, for g and h by
quantiles; Demarta and McNeil (2005), International Statistical Review, for the copula.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from scipy import stats
from sklearn.decomposition import FastICA
from sklearn.exceptions import ConvergenceWarning

__all__ = ["OneMode", "g_and_h"]

_TAILS = np.array([0.005, 0.01, 0.025, 0.05, 0.1, 0.25])  # probabilities at which tails are read
_DEGREES = (3.0, 5.0, 8.0, 15.0, 40.0)  # of freedom of the copula
_SMALLEST = 1e-8


def g_and_h(z: np.ndarray, skewness: np.ndarray, tails: np.ndarray) -> np.ndarray:
    """Tukey's map of standard normal values: (exp(g z) − 1) / g · exp(h z² / 2)."""
    small = np.abs(skewness) < 1e-6
    g = np.where(small, 1.0, skewness)
    return np.where(small, z, np.expm1(g * z) / g) * np.exp(tails * z**2 / 2)


@dataclass(frozen=True)
class OneMode:
    """A distribution with one mode, fitted to states of cells.

    Attributes
    ----------
    components
        Independent components of the states; (n, d) to (n, d) and back.
    centre, scale, skewness, tails
        (d,) median, scale, g and h of each component.
    correlation
        (d, d) of the copula.
    degrees
        Degrees of freedom of the copula.
    """

    components: FastICA
    centre: np.ndarray
    scale: np.ndarray
    skewness: np.ndarray
    tails: np.ndarray
    correlation: np.ndarray
    degrees: float

    @classmethod
    def fit(cls, states: np.ndarray, seed: int = 0) -> OneMode:
        """Fit to states (n, d), none of whose axes is constant; `seed` of the components."""
        n = len(states)
        components = FastICA(whiten="unit-variance", max_iter=200, tol=1e-3, random_state=seed)
        with warnings.catch_warnings():  # normal axes have no components of their own: any will do
            warnings.simplefilter("ignore", ConvergenceWarning)
            states = components.fit_transform(states)  # pyright: ignore[reportAssignmentType]
        p = _TAILS[n * _TAILS >= 3]
        z = -stats.norm.ppf(p)[:, None]
        centre = np.median(states, 0)
        above = np.maximum(np.quantile(states, 1 - p, axis=0) - centre, _SMALLEST)
        below = np.maximum(centre - np.quantile(states, p, axis=0), _SMALLEST)
        skewness = np.median(np.log(above / below) / z, 0)
        small = np.abs(skewness) < 1e-3
        g = np.where(small, 1e-3, skewness)
        # (above + below) g / (exp(g z) − exp(−g z)) = scale · exp(h z² / 2)
        log = np.log((above + below) * g / (2 * np.sinh(g * z)))
        x = z**2 / 2
        tails = ((x - x.mean()) * (log - log.mean(0))).sum(0) / ((x - x.mean()) ** 2).sum()
        tails = np.clip(tails, 0, 0.6)
        scale = np.exp((log - tails * x).mean(0))
        normal = stats.norm.ppf((stats.rankdata(states, axis=0) - 0.5) / n)
        correlation = np.corrcoef(normal, rowvar=False).reshape(states.shape[1], -1)
        degrees = _degrees(stats.norm.cdf(normal), correlation)
        return cls(components, centre, scale, skewness, tails, correlation, degrees)

    def sample(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """Draw states (n, d)."""
        d = len(self.centre)
        z = rng.multivariate_normal(np.zeros(d), self.correlation, n, method="eigh")
        if np.isfinite(self.degrees):
            t = z / np.sqrt(rng.chisquare(self.degrees, (n, 1)) / self.degrees)
            share = stats.t.cdf(t, self.degrees)
            z = stats.norm.ppf(np.clip(share, 1e-12, 1 - 1e-12))
        found = self.centre + self.scale * g_and_h(z, self.skewness, self.tails)
        return self.components.inverse_transform(found)


def _degrees(share: np.ndarray, correlation: np.ndarray) -> float:
    """Degrees of freedom of the likeliest Student copula of values in (0, 1), (n, d)."""
    d = share.shape[1]
    if d == 1:
        return np.inf
    sure = correlation + 1e-6 * np.eye(d)
    mean = np.zeros(d)
    normal = stats.norm.ppf(share)
    best = float(stats.multivariate_normal(mean, sure).logpdf(normal).sum())  # pyright: ignore[reportArgumentType]
    best -= stats.norm.logpdf(normal).sum()
    found = np.inf
    for degrees in _DEGREES:
        t = stats.t.ppf(share, degrees)
        log = stats.multivariate_t(mean, sure, degrees).logpdf(t).sum()  # pyright: ignore[reportArgumentType]
        log -= stats.t.logpdf(t, degrees).sum()
        if log > best:
            best, found = float(log), degrees
    return found
