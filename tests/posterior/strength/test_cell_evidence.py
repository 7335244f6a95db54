"""What a cell says of its strength is the likelihood of its counts, its state integrated out."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.special import logsumexp
from scipy.stats import nbinom

from pyrocell.posterior.strength.cell_evidence import STRENGTHS, EffectPath, log_evidence


def a_path(shares: bool, axes: int = 1, genes: int = 30, seed: int = 0) -> EffectPath:
    rng = np.random.default_rng(seed)
    level = np.log(rng.dirichlet(np.full(genes, 2.0)))
    effect = rng.normal(0, 0.5, (2, genes))
    effect[0] = 0.0
    loading = rng.normal(0, 0.2, (axes, genes))
    theta = rng.uniform(2, 8, genes)
    eta = rng.normal(0, 0.1, (2, genes))
    return EffectPath(np.stack([level, level]), effect, eta, loading, theta, shares)


def by_quadrature(x: np.ndarray, size: float, c: int, h: int, path: EffectPath) -> np.ndarray:
    z = np.linspace(-6, 6, 241)
    out = np.zeros(len(STRENGTHS))
    for i, s in enumerate(STRENGTHS):
        log_mu = path.level[c] + path.eta[h] + z[:, None] * path.loading[0] + s * path.effect[c]
        if path.shares:
            log_mu = log_mu - logsumexp(log_mu, axis=1, keepdims=True)
        mu = size * np.exp(log_mu)
        like = nbinom.logpmf(x, path.theta, path.theta / (path.theta + mu)).sum(1)
        out[i] = logsumexp(like - 0.5 * z**2)
    return out - out[0]


@pytest.mark.parametrize("shares", [True, False])
def test_evidence_of_strength_is_the_likelihood_with_the_state_integrated_out(shares):
    path, rng = a_path(shares), np.random.default_rng(1)
    size = np.array([200.0, 400.0, 900.0, 300.0])
    condition, group = np.array([1, 1, 1, 0]), np.array([0, 1, 0, 1])
    x = np.empty((4, 30))
    for n in range(4):
        log_mu = path.level[1] + rng.normal() * path.loading[0] + (n % 2) * path.effect[1]
        x[n] = rng.poisson(size[n] * np.exp(log_mu))
    found = log_evidence(sp.csr_matrix(x), np.log(size), condition, group, path)
    found = found - found[:, :1]
    for n in range(4):
        right = by_quadrature(x[n], size[n], condition[n], group[n], path)
        near = right > right.max() - 12  # far from the mode one step is not enough, nor of use
        np.testing.assert_allclose(found[n][near], right[near], atol=0.25)


def test_where_a_perturbation_does_nothing_no_strength_is_told_from_another():
    path = a_path(True, axes=3)
    x = sp.csr_matrix(np.random.default_rng(2).poisson(5.0, (5, 30)))
    found = log_evidence(x, np.full(5, 5.0), np.zeros(5, np.int64), np.zeros(5, np.int64), path)
    np.testing.assert_allclose(found, np.broadcast_to(found[:, :1], found.shape), atol=1e-3)
