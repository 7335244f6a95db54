"""Draws of a simulated screen's biology: cells at rest, what perturbations and media do to them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from pyrocell.noise.contrasts import centre
from pyrocell.operators import ResponseParameters, on_target_shift, relative_curve, respond
from pyrocell.simulate.settings import ScreenSettings

__all__ = ["Biology", "Genes", "draw_biology", "draw_genes"]

RESTING_AXES = 8  # axes on which cells at rest differ
RESTING_SD = 0.3  # log-fold change of a gene per unit of a resting axis
BASELINE_SD = 1.0  # spread of log baseline expression over genes
LOW_RANK_WEIGHT = 0.5  # of a shared programme against a gene-level effect, before scaling
RATE_SD = 0.3  # of log rates around the common one


@dataclass(frozen=True, eq=False)
class Genes:
    """Cells at rest: how genes are expressed, and how cells differ.

    Parameters
    ----------
    bias
        Log baseline expression; shape (G,).
    resting_loading
        Log-fold change per unit of each resting axis; shape (8, G).
    loading
        Programmes of response, unit RMS, in the softmax gauge; shape (rank, G).
    """

    bias: np.ndarray
    resting_loading: np.ndarray
    loading: np.ndarray

    @property
    def expression(self) -> np.ndarray:
        """Share of each gene in the mean expression of cells at rest; shape (G,)."""
        mean = np.exp(self.bias + 0.5 * (self.resting_loading**2).sum(0))
        return mean / mean.sum()

    def gauge(self, shift: np.ndarray) -> np.ndarray:
        """Remove the constant that softmax cannot see: expression-weighted mean zero."""
        return centre(torch.from_numpy(shift), torch.from_numpy(self.expression)).numpy()


@dataclass(frozen=True, eq=False)
class Biology:
    """Responses, in gene space: the axes of y are the genes themselves.

    Parameters
    ----------
    params
        Effects, media effects, gains and rates, as the operators take them, with D = G.
    silent, blocked
        Which perturbations have no effect (K,), and which block which medium (K, J).
    drift
        What unperturbed cells change from time 0 to the reference time; shape (G,).
    target, on_target
        Own gene of each perturbation, -1 where none, and its log-fold change; shape (K,).
    """

    params: ResponseParameters
    silent: np.ndarray
    blocked: np.ndarray
    drift: np.ndarray
    target: np.ndarray
    on_target: np.ndarray

    def shift(self, genotype: np.ndarray, exposure: np.ndarray, duration: np.ndarray) -> np.ndarray:
        """Log-fold change of conditions against cells at rest; (C, G) from (C, K), (C, J), (C,)."""
        perturbed, met, time = map(torch.from_numpy, (genotype, exposure, duration))
        own = on_target_shift(
            perturbed, torch.from_numpy(self.on_target), torch.from_numpy(self.target),
            len(self.drift),
        )  # fmt: skip
        drifted = relative_curve(
            self.params.base_log_rate.exp(), time.unsqueeze(-1), self.params.reference_time
        )
        response = respond(perturbed, met, time, self.params).y
        return (response + own + drifted * torch.from_numpy(self.drift)).numpy()


def draw_genes(rng: np.random.Generator, settings: ScreenSettings) -> Genes:
    """Draw cells at rest and the programmes in which they can respond."""
    n_genes = settings.n_genes
    bias = BASELINE_SD * rng.standard_normal(n_genes)
    resting_loading = RESTING_SD * rng.standard_normal((RESTING_AXES, n_genes))
    programmes = rng.standard_normal((settings.rank, n_genes))
    at_rest = Genes(bias, resting_loading, programmes)
    return Genes(bias, resting_loading, _unit_rms(at_rest.gauge(programmes)))


def draw_biology(rng: np.random.Generator, settings: ScreenSettings, genes: Genes) -> Biology:
    """Draw what perturbations, media and time do."""
    k, j = settings.n_perturbations, settings.media
    silent = _some(rng, settings.silent_fraction, (k, 1))[:, 0]
    effect = settings.effect_rms * _effects(rng, settings, genes, k)
    effect[silent] = 0.0
    blocked = _some(rng, settings.blocked_fraction, (k, j))
    media_effect = settings.media_rms * _effects(rng, settings, genes, j)
    base_log_rate = math.log(settings.rate)
    log_decay = None
    if settings.decay is not None:
        spread = RATE_SD * rng.standard_normal(k)
        log_decay = torch.from_numpy(math.log(settings.decay) + spread)
    params = ResponseParameters(
        effect=torch.from_numpy(effect),
        media_effect=torch.from_numpy(media_effect),
        gain=torch.from_numpy(1.0 - blocked),
        turnover=torch.zeros(j, dtype=torch.float64),
        log_rate=torch.from_numpy(base_log_rate + RATE_SD * rng.standard_normal(k + j)),
        base_log_rate=torch.tensor(base_log_rate, dtype=torch.float64),
        reference_time=settings.reference_time,
        log_decay=log_decay,
    )
    drift = settings.drift_rms * _effects(rng, settings, genes, 1)[0]
    own_genes = settings.on_target is not None
    target = (
        np.sort(rng.choice(settings.n_genes, k, replace=False)) if own_genes else np.full(k, -1)
    )
    on_target = np.full(k, settings.on_target or 0.0)
    if settings.common_rms:
        params.effect.add_(
            torch.from_numpy(settings.common_rms * _effects(rng, settings, genes, 1)[0])
        )
    return Biology(params, silent, blocked, drift, target, on_target)


def _effects(
    rng: np.random.Generator, settings: ScreenSettings, genes: Genes, n: int
) -> np.ndarray:
    """Effects of unit RMS in the softmax gauge: programmes, and genes of their own; (n, G)."""
    shared = LOW_RANK_WEIGHT * rng.standard_normal((n, settings.rank)) @ genes.loading
    if settings.in_rank:
        return _unit_rms(shared)
    touched = rng.random(shared.shape) < settings.sparse_fraction
    own = np.where(touched, rng.standard_normal(shared.shape), 0.0)
    return _unit_rms(genes.gauge(shared + own))


def _some(rng: np.random.Generator, fraction: float, shape: tuple[int, int]) -> np.ndarray:
    """True for a fraction of the rows of each column, exact to rounding."""
    return rng.random(shape).argsort(0).argsort(0) < round(fraction * shape[0])


def _unit_rms(rows: np.ndarray) -> np.ndarray:
    return rows / np.sqrt((rows**2).mean(-1, keepdims=True))
