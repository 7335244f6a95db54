r"""Who responded, and how far each guide goes: a mixture for every guide, its cells summed out.

A cell of guide g responded with probability 1 − ρ_g, and then at strength a_g, or did not, and is
at strength 0. With the evidence L_n(s) of every cell n (`cell_evidence`),

    p(cells of g | a, ρ) = ∏_n [ρ L_n(0) + (1 − ρ) L_n(a)],

on a grid of both, so that no indicator is sampled to learn about them. Guides of one perturbation
share a scale α, log a_g ~ N(log α, τ²); α is free, since the effect itself is that of the
responding cells and follows. Escapers ρ_g ~ Beta(m κ, (1 − m) κ). τ, m and κ are those of the
screen, on grids, learned from all its guides.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.interpolate import CubicSpline
from scipy.special import betainc, logsumexp

from pyrocell.posterior.strength.cell_evidence import STRENGTHS

__all__ = ["EFFICACIES", "ESCAPERS", "GuideDraws", "GuideMixture", "response_of"]

EFFICACIES = np.exp(np.linspace(np.log(0.08), np.log(3.0), 33))
ESCAPERS = np.concatenate([[0.002], (np.arange(20) + 0.5) / 20 * 0.98 + 0.01])
_SCALES = np.linspace(-0.9, 0.9, 19)  # log α
_SCALE_SD = 0.5
_SPREADS = np.array([0.03, 0.1, 0.2, 0.35, 0.6, 0.9])  # τ
_MEANS = np.array([0.005, 0.02, 0.05, 0.1, 0.17, 0.25, 0.35, 0.5])  # m
_COUNTS = np.array([4.0, 15.0, 60.0])  # κ, guides' cells that the screen's share counts as
_AT_ONCE = 256  # guides
_LARGEST = 60.0  # nats that a cell may say for or against having responded


@dataclass(frozen=True)
class GuideDraws:
    """Joint draws, given the effects.

    Attributes
    ----------
    efficacy
        (draws, guides) a.
    escapers
        (draws, guides) ρ.
    responded
        (n,) probability that each cell responded, averaged over the draws.
    indicator
        (n,) bool, a draw of who responded that belongs to the first draw of the guides.
    """

    efficacy: np.ndarray
    escapers: np.ndarray
    responded: np.ndarray
    indicator: np.ndarray


class GuideMixture:
    """Posterior of the guides of a screen given what each cell says of its strength.

    Parameters
    ----------
    log_evidence
        (n, S) of `STRENGTHS` in every cell.
    guide
        (n,) guide of every cell, of `n_guides`.
    perturbation
        (guides,) the perturbation that each guide is of.
    """

    def __init__(self, log_evidence: np.ndarray, guide: np.ndarray, perturbation: np.ndarray):
        self.guide, self.perturbation = guide, perturbation
        spline = CubicSpline(STRENGTHS, np.eye(len(STRENGTHS)))(EFFICACIES)  # (A, S)
        against_rest = log_evidence - log_evidence[:, :1]
        self.ratio = np.clip(against_rest @ spline.T, -_LARGEST, _LARGEST)  # (n, A)

    @cached_property
    def log_likelihood(self) -> np.ndarray:
        """(guides, A, R) of efficacies and shares of escapers, cells summed out."""
        out = np.zeros((len(self.perturbation), len(EFFICACIES), len(ESCAPERS)))
        for r, share in enumerate(ESCAPERS):
            each = np.logaddexp(np.log(share), np.log1p(-share) + self.ratio)
            np.add.at(out[..., r], self.guide, each)
        return out

    def draw(self, n_draws: int, rng: np.random.Generator) -> GuideDraws:
        """Joint draws of efficacies and escapers, and who responded."""
        log = self.log_likelihood
        n_guides = len(log)
        top = log.max((1, 2), keepdims=True)
        weight = np.exp(log - top)  # (guides, A, R)
        strength = _efficacy_prior()  # (τ, α, A)
        escapers = _escaper_prior()  # (m κ, R)
        t, s, _ = strength.shape
        n_perturbations = int(self.perturbation.max(initial=-1)) + 1
        of_perturbation = np.zeros((n_perturbations, t, s, len(escapers)))
        for first in range(0, n_guides, _AT_ONCE):
            some = slice(first, first + _AT_ONCE)
            both = np.einsum("xa,gar->gxr", strength.reshape(t * s, -1), weight[some])
            both = np.log(both @ escapers.T + 1e-300).reshape(-1, t, s, len(escapers))
            np.add.at(of_perturbation, self.perturbation[some], both)
        scale = -0.5 * (_SCALES / _SCALE_SD) ** 2
        scale = scale - np.asarray(logsumexp(scale))
        of_screen = np.asarray(logsumexp(of_perturbation + scale[:, None], axis=2))
        of_screen = of_screen.sum(0)  # (τ, m κ)
        shape = of_screen.shape
        chances = np.exp(of_screen - logsumexp(of_screen)).ravel()
        efficacy, share = np.empty((2, n_draws, n_guides))
        cells = np.zeros((n_draws, n_guides, 2), np.int64)
        for i in range(n_draws):
            tau, mk = np.unravel_index(rng.choice(len(chances), p=chances), shape)
            log_alpha = of_perturbation[:, tau, :, mk] + scale
            alpha = _choose(log_alpha, rng)[self.perturbation]  # (guides,)
            posterior = weight * strength[tau, alpha][..., None] * escapers[mk]
            flat = _choose(np.log(posterior.reshape(n_guides, -1) + 1e-300), rng)
            cells[i] = np.stack(np.unravel_index(flat, posterior.shape[1:]), 1)
            step = np.log(EFFICACIES[1] / EFFICACIES[0])
            jitter = np.exp(step * (rng.random(n_guides) - 0.5))
            efficacy[i] = EFFICACIES[cells[i, :, 0]] * jitter
            share[i] = _within(cells[i, :, 1], rng)
        responded = np.zeros(len(self.guide))
        first = responded
        for i in range(n_draws):
            a, r = cells[i, self.guide].T
            odds = self.ratio[np.arange(len(a)), a] + np.log1p(-ESCAPERS[r]) - np.log(ESCAPERS[r])
            chance = 1 / (1 + np.exp(-np.clip(odds, -50, 50)))
            responded = responded + chance / n_draws
            first = chance if i == 0 else first
        return GuideDraws(efficacy, share, responded, rng.random(len(first)) < first)


def response_of(log_evidence: np.ndarray, efficacy: np.ndarray, escapers: np.ndarray) -> np.ndarray:
    """Probability that cells responded, (n,), under draws of their guides.

    Parameters
    ----------
    log_evidence
        (n, S) of `STRENGTHS`.
    efficacy, escapers
        (draws, n) a and ρ of the guide of each cell.
    """
    against_rest = CubicSpline(STRENGTHS, log_evidence - log_evidence[:, :1], axis=1)
    table = against_rest(EFFICACIES)  # (n, A)
    place = np.log(efficacy / EFFICACIES[0]) / np.log(EFFICACIES[1] / EFFICACIES[0])
    place = np.clip(np.round(place), 0, len(EFFICACIES) - 1).astype(int)
    ratio = np.clip(table[np.arange(len(table)), place], -_LARGEST, _LARGEST)
    odds = ratio + np.log1p(-escapers) - np.log(escapers)
    return (1 / (1 + np.exp(-np.clip(odds, -50, 50)))).mean(0)


def _efficacy_prior() -> np.ndarray:
    """(τ, α, A) probabilities of the grid of efficacies."""
    away = (np.log(EFFICACIES) - _SCALES[:, None]) / _SPREADS[:, None, None]
    out = np.exp(-0.5 * away**2) + 1e-12
    return out / out.sum(-1, keepdims=True)


def _escaper_prior() -> np.ndarray:
    """(m κ, R) probabilities of the grid of shares, pairs of mean and concentration in order."""
    m, k = (a.ravel()[:, None] for a in np.meshgrid(_MEANS, _COUNTS, indexing="ij"))
    a, b = m * k, (1 - m) * k
    edges = np.concatenate([[0.0], (ESCAPERS[1:] + ESCAPERS[:-1]) / 2, [1.0]])
    out = np.diff(betainc(a, b, edges[None]), axis=1) + 1e-12
    return out / out.sum(-1, keepdims=True)


def _within(cell: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Shares drawn within the cells of the grid."""
    edges = np.concatenate([[0.0], (ESCAPERS[1:] + ESCAPERS[:-1]) / 2, [1.0]])
    return edges[cell] + rng.random(len(cell)) * (edges[cell + 1] - edges[cell])


def _choose(log: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw a column of every row of log weights."""
    return (log + rng.gumbel(size=log.shape)).argmax(1)
