"""A sparse network from the effects of perturbations: which of them are direct.

A perturbation k takes its own gene away and with it, later, what that gene drives. If regulator r
of a target is lost by L_kr(t) (1: all of it; own gene: from the start), the target's log level
follows with a rate of its own,

    y_kg(t) = Σ_r β_rg ∫ L_kr(s) w(t − s) ds + departure,

so that an indirect effect is explained by the regulator between, and comes later. w is one stage of
relaxation, or two, at a rate drawn for each target; at a single time the state is taken as steady.
This is the question of RENGE (Ishikawa et al. 2023), which sums over paths up to a length; here the
paths are those of the measured effects of the regulators themselves, and edges have probabilities.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import betaln, logsumexp

from pyrocell._core.threading import parallel_for
from pyrocell.posterior.network.sampler import step

__all__ = ["Edges", "Effects", "courses", "sample_edges"]

_FINE = 60  # points between two times
_RATES = np.geomspace(0.25, 8.0, 6)  # of relaxation, in units of one over the median time
_DEPARTURES = np.array([0.0, 0.03, 0.08, 0.2, 0.4]) ** 2  # variance of log-fold change
_BENT = 0.5  # sd of indirect effects about the straight line, relative to their size
_POWERS = (1.0, 2.0)  # of what is left of a regulator: how steeply targets follow it
_ROUNDS = 5  # between two draws of the losses
_BURN_IN = 15
_SLAB = 0.5  # prior guess of the size of a direct effect, natural-log fold change
_SLAB_WEIGHT = 4.0  # in edges
_NARROWEST = 0.15  # of the slab: a smaller direct effect is not told from none
_SHARES = np.geomspace(1e-3, 0.5, 25)  # of pairs that are edges
_ALIKE = np.array([2.0, 8.0, 32.0])  # how alike regulators are in their share of targets


@dataclass(frozen=True)
class Effects:
    """Effects of K regulators' perturbations at T times on G genes.

    Attributes
    ----------
    value, variance
        (K, T, G) change against control, natural log, and the variance of its error.
    control
        (T, G) variance of the controls' error, which all perturbations share.
    lost
        (S, K, T, K) draws of how far each regulator (last) is lost in each perturbation.
    own
        (K,) gene that each regulator is, -1 if it is not measured.
    times
        (T,) since the perturbation; one time is taken as steady.
    """

    value: np.ndarray
    variance: np.ndarray
    control: np.ndarray
    lost: np.ndarray
    own: np.ndarray
    times: np.ndarray


@dataclass(frozen=True)
class Edges:
    """Posterior of direct effects.

    Attributes
    ----------
    probability
        (K, G) of an edge.
    size
        (draws, K, G) float32 change of the target's log level when the regulator is lost; 0 without
        an edge.
    share
        (draws,) share of pairs that are edges, learned.
    """

    probability: np.ndarray
    size: np.ndarray
    share: np.ndarray


def courses(times: np.ndarray) -> np.ndarray:
    """Ways in which a target follows a loss, (courses, T, T + 1) from times 0, t_1, ... to t.

    The first is at once. The loss is linear between times.
    """
    n = len(times)
    at_once = np.eye(n, n + 1, 1)[None]
    if n == 1:
        return at_once
    nodes = np.concatenate([[0.0], times])
    fine = np.concatenate([np.linspace(a, b, _FINE, endpoint=False) for a, b in zip(nodes, times)])
    fine = np.append(fine, times[-1])
    between = np.stack([np.interp(fine, nodes, e) for e in np.eye(n + 1)], 1)  # (fine, T + 1)
    out = []
    for rate in _RATES / np.median(times):
        a = rate * np.diff(fine)
        late = 1 - -np.expm1(-a) / a  # weight of the later end of an interval
        early = -np.expm1(-a) / a - np.exp(-a)
        found = between
        for _ in range(2):
            passed = np.zeros_like(found)
            for i in range(len(a)):
                passed[i + 1] = (
                    passed[i] * np.exp(-a[i]) + early[i] * found[i] + late[i] * found[i + 1]
                )
            out.append(passed[np.arange(1, n + 1) * _FINE])
            found = passed
    return np.concatenate([at_once, np.stack(out)])


def sample_edges(effects: Effects, n_draws: int = 60, seed: int = 0) -> Edges:
    """Draw networks; targets are independent given what they share: how many edges, how large.

    Parameters
    ----------
    n_draws
        Kept states; each is of another draw of the losses, so that errors of what explains are
        carried on.
    seed
        Of the sampler.
    """
    rng = np.random.default_rng(seed)
    n_reg, _, n_genes = effects.value.shape
    filters = courses(effects.times)
    n_courses = len(filters) * len(_POWERS)
    start = _start(effects, n_reg)
    allowed = np.arange(n_genes)[:, None] != effects.own  # (G, K)
    inside = np.zeros((n_genes, n_reg), np.bool_)
    beta, chosen = np.zeros((n_genes, n_reg)), np.zeros((n_genes, 2), np.int64)
    log_course = np.full(n_courses, -np.log(n_courses))
    log_departure = np.full(len(_DEPARTURES), -np.log(len(_DEPARTURES)))
    slab, log_odds = _SLAB**2, np.full(n_reg, np.log(0.1))
    y = np.ascontiguousarray(np.moveaxis(effects.value, 2, 0))
    variance = np.moveaxis(effects.variance, 2, 0).copy()
    for k in np.flatnonzero(
        effects.own >= 0
    ):  # what a perturbation does to its own gene is no edge
        variance[effects.own[k], k] = 1e6
    total, sizes, shares = np.zeros((n_genes, n_reg)), [], []
    for s in range(_BURN_IN + n_draws):
        lost = effects.lost[s % len(effects.lost)]
        z = _felt(np.concatenate([start, lost], 1), filters)
        chance = np.zeros((n_genes, n_reg))
        seeds = rng.integers(2**31, size=n_genes)

        def work(
            g: int,
            z=z,
            chance=chance,
            seeds=seeds,
            slab=slab,
            log_odds=log_odds,
            log_course=log_course,
            log_departure=log_departure,
        ) -> None:
            prior = np.concatenate([np.full(n_reg, 1 / slab), 1 / effects.control[:, g]])
            step(
                z, y[g], variance[g], prior, log_odds, allowed[g], _BENT, log_course, _DEPARTURES,
                log_departure, inside[g], beta[g], chosen[g], chance[g], int(seeds[g]), _ROUNDS,
            )  # fmt: skip

        parallel_for(work, n_genes)
        slab = _drawn_slab(beta[inside], rng)
        share, odds = _drawn_shares(inside.sum(0), allowed.sum(0), rng)
        log_odds = np.log(odds) - np.log1p(-odds)
        log_course = _drawn_weights(chosen[:, 0], n_courses, rng)
        log_departure = _drawn_weights(chosen[:, 1], len(_DEPARTURES), rng)
        if s >= _BURN_IN:
            total += chance / _ROUNDS
            sizes.append(beta.T.astype(np.float32))
            shares.append(share)
    return Edges((total / n_draws).T, np.stack(sizes), np.array(shares))


def _felt(lost: np.ndarray, filters: np.ndarray) -> np.ndarray:
    """Losses (K, T + 1, K) as targets feel them, (courses, K, T, K)."""
    left = np.maximum(1 - lost, 0.0)
    out = [np.einsum("ots,ksr->oktr", filters, 1 - left**power) for power in _POWERS]
    return np.ascontiguousarray(np.concatenate(out))


def _start(effects: Effects, n_reg: int) -> np.ndarray:
    """(K, 1, K) losses at time 0: the own gene's alone."""
    first = effects.lost[:, :, 0].mean(0)
    return (np.eye(n_reg) * np.diag(first)[:, None])[:, None]


def _drawn_slab(beta: np.ndarray, rng: np.random.Generator) -> float:
    """Variance of direct effects, from those that are in."""
    shape = (_SLAB_WEIGHT + len(beta)) / 2
    scale = (_SLAB_WEIGHT * _SLAB**2 + (beta**2).sum()) / 2
    return max(scale / rng.gamma(shape), _NARROWEST**2)


def _drawn_shares(
    n_in: np.ndarray, n_all: np.ndarray, rng: np.random.Generator
) -> tuple[float, np.ndarray]:
    """Share of pairs that are edges, and (K,) each regulator's own, beta-binomial around it."""
    a = _SHARES[:, None, None] * _ALIKE[:, None]
    b = (1 - _SHARES)[:, None, None] * _ALIKE[:, None]
    log = (betaln(a + n_in, b + n_all - n_in) - betaln(a, b)).sum(-1).ravel()
    i = rng.choice(len(log), p=np.exp(log - logsumexp(log)))
    i, j = np.unravel_index(i, (len(_SHARES), len(_ALIKE)))
    own = rng.beta(a[i, j] + n_in, b[i, j] + n_all - n_in)
    return float(_SHARES[i]), np.clip(own, 1e-5, 0.9)


def _drawn_weights(chosen: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Log weights of kinds of targets, from how many are of each."""
    return np.log(rng.dirichlet(1.0 + np.bincount(chosen, minlength=n)) + 1e-300)
