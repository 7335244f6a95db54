"""On which axes of the response a perturbation has an effect: inclusion under a sparse prior.

A variational posterior is of one mode: where counts leave open whether an effect is there, it
commits to the spike or to the slab, and reading the indicator off it repeats that choice. So what
the cells say is taken out of it first. Where q(e) = N(m, V) is optimal,

    V⁻¹ = Λ + E_q[−∇² log p(e)],        E_q[∇ log L(e)] = −E_q[∇ log p(e)],

Λ being the curvature of the likelihood L. That gives L as a Gaussian in the effects of one
perturbation, whatever prior p it was fitted under, and with it every set of axes has a marginal
likelihood in closed form; sets are summed out, exactly where they are few and by Gibbs sampling of
the indicators where they are many.
"""

from __future__ import annotations

from itertools import product

import numpy as np
import pandas as pd
import torch

from pyrocell._core.random import stream
from pyrocell.errors import ScreenError
from pyrocell.generative.effects import EffectPrior, SparseEffects
from pyrocell.posterior.draws import check_draws
from pyrocell.posterior.fitted_screen import FittedScreen

__all__ = ["effect_likelihood", "inclusion", "mask_table"]

_EXACT = 10  # axes up to which all sets of them are summed
_SWEEPS, _BURN = 200, 40
_GRID = 201  # points of an integral over q of one effect
_REACH = 6.0  # standard deviations of q


def mask_table(fit: FittedScreen, n_samples: int) -> pd.DataFrame:
    """Inclusion of every perturbation and axis; see `PyroCell.mask`."""
    check_draws(n_samples)
    model, prior = fit.model, fit.model.effect_prior
    if not isinstance(prior, SparseEffects):
        raise ScreenError(
            "the model has no sparse prior on effects, so there is no mask; fit it with "
            'PyroCell(adata, priors=pyrocell.Priors(effect="sparse"))'
        )
    if n_samples <= 2 * model.n_axes:
        raise ScreenError(
            f"n_samples={n_samples} draws do not say how {model.n_axes} axes vary together; ask "
            f"for more than {2 * model.n_axes}"
        )
    draws, loading = [], []
    for values in fit.posterior.draws(n_samples):
        draws.append(values["P.effect"].cpu().numpy().astype(float))
        axes = model.measurement.gauge(model.axes(values), values["V.baseline"])
        loading.append(axes.detach().square().mean(-1).sqrt().cpu().numpy())
    effect, rms = np.stack(draws), np.mean(loading, 0)  # (S, K, D), (D,)
    scale = model.log_effect_scale.detach().exp().cpu().numpy().astype(float)
    mean = effect.mean(0)
    centred = effect - mean
    covariance = np.einsum("ska,skb->kab", centred, centred) / (len(effect) - 1)
    precision, linear = effect_likelihood(mean, covariance, prior, scale)
    seed = stream("mask", fit.posterior.seed)
    found = inclusion(precision, linear, scale, prior.share, prior.spike, seed)
    k, d = mean.shape
    n_state = model.config.n_latent
    names = [f"z{a + 1}" if a < n_state else f"r{a - n_state + 1}" for a in range(d)]
    return pd.DataFrame(
        {
            "perturbation": np.repeat(fit.screen.perturbations, d),
            "axis": np.tile(names, k),
            "inclusion": found.ravel(),
            "prior": prior.share,
            "mean": mean.ravel(),
            "sd": np.sqrt(np.diagonal(covariance, axis1=1, axis2=2)).ravel(),
            "size": (np.abs(mean) * rms).ravel(),
            "width": np.tile(scale * rms, k),
        }
    )


def effect_likelihood(
    mean: np.ndarray, covariance: np.ndarray, prior: EffectPrior, scale: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """What cells say of the effects of each perturbation, without the prior they were fitted under.

    Parameters
    ----------
    mean, covariance
        (K, D) and (K, D, D) of the variational posterior.
    prior
        Of independent effects.
    scale
        (D,) its widths.

    Returns
    -------
    Λ (K, D, D) and b (K, D) of log L(e) = b' e − e' Λ e / 2.
    """
    d = mean.shape[1]
    sd = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))
    nodes = np.linspace(-_REACH, _REACH, _GRID)
    weight = np.exp(-0.5 * nodes**2)
    weight /= weight.sum()
    points = mean + nodes[:, None, None] * sd  # (P, K, D)
    log = np.stack([_log_density(prior, p, scale) for p in points])
    # by parts over q, with u = (e − m) / sd:
    # E[∇ log p] = E[u log p] / sd, E[∇² log p] = E[(u² − 1) log p] / sd²
    first = np.einsum("p,pkd->kd", weight * nodes, log) / sd
    second = np.einsum("p,pkd->kd", weight * (nodes**2 - 1), log) / sd**2
    whole = np.linalg.inv(covariance)
    value, axes = np.linalg.eigh(whole + np.eye(d) * second[:, None, :])
    likelihood = np.einsum("kab,kb,kcb->kac", axes, np.maximum(value, 0.0), axes)
    return likelihood, np.einsum("kab,kb->ka", likelihood, mean) - first


def _log_density(prior: EffectPrior, effects: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Log prior density of each effect, (K, D)."""
    law = prior.prior(torch.as_tensor(scale), len(effects))
    law = getattr(law, "base_dist", law)  # of one effect, not of the event
    return law.log_prob(torch.as_tensor(effects)).numpy()


def inclusion(
    precision: np.ndarray,
    linear: np.ndarray,
    scale: np.ndarray,
    share: float,
    spike: float,
    seed: int = 0,
) -> np.ndarray:
    """P(an axis is included), (K, D), effects and the other indicators summed out.

    Parameters
    ----------
    precision, linear
        Of the likelihood, as from `effect_likelihood`.
    scale
        (D,) widths of effects that are there.
    share, spike
        Prior share of those, and the width of the others relative to theirs.
    seed
        Of the Gibbs sampler, where there are more than ten axes.
    """
    k, d = linear.shape
    odds = np.log(share) - np.log1p(-share)
    log = lambda on: _log_evidence(precision, linear, np.where(on, scale, spike * scale))  # noqa: E731
    if d <= _EXACT:
        sets = np.array(list(product([False, True], repeat=d)))
        value = np.stack([log(np.broadcast_to(s, (k, d))) + odds * s.sum() for s in sets])
        weight = np.exp(value - value.max(0))
        return np.einsum("sk,sd->kd", weight, sets) / weight.sum(0)[:, None]
    rng = np.random.default_rng(seed)
    on, total = rng.random((k, d)) < share, np.zeros((k, d))
    for sweep in range(_SWEEPS + _BURN):
        for a in rng.permutation(d):
            with_it, without = on.copy(), on.copy()
            with_it[:, a], without[:, a] = True, False
            p = 1 / (1 + np.exp(-np.clip(log(with_it) - log(without) + odds, -500, 500)))
            on[:, a] = rng.random(k) < p
            if sweep >= _BURN:
                total[:, a] += p
    return total / _SWEEPS


def _log_evidence(precision: np.ndarray, linear: np.ndarray, width: np.ndarray) -> np.ndarray:
    """log ∫ L(e) N(e; 0, diag(width²)) de, (K,), for widths (K, D)."""
    d = linear.shape[1]
    inner = np.eye(d) + width[:, :, None] * precision * width[:, None, :]
    pulled = width * linear
    root = np.linalg.cholesky(inner)
    half = np.linalg.solve(root, pulled[..., None])[..., 0]
    return 0.5 * np.square(half).sum(1) - np.log(np.diagonal(root, axis1=1, axis2=2)).sum(1)
