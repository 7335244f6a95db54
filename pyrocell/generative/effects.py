"""Priors of low-rank effects of perturbations, `P.effect`."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Distribution

from pyrocell.distributions import EventNormal
from pyrocell.priors import Priors

__all__ = ["EFFECT_PRIORS", "EffectPrior", "NormalEffects", "SparseEffects", "register"]


class EffectPrior:
    """How effects along the axes of response are distributed over perturbations.

    Derive from it, and make it known by `pyrocell.generative.effects.register(name, prior)`; the
    model is then built with ``PyroCell(adata, effect_prior=name)``. Under another than the default
    gene-level effects keep the variational posterior, since the Gibbs sampler has a prior of its
    own.

    Attributes
    ----------
    prefers_axes
        Whether the prior tells axes from their rotations. Axes then start where few perturbations
        are on each.
    """

    prefers_axes = False

    def prepare(self, priors: Priors) -> None:
        """Take what it needs of the model's `Priors`."""

    def prior(self, scale: Tensor, n_perturbations: int) -> Distribution:
        """Prior of (n_perturbations, D) effects, an event, at learned standard deviations (D,)."""
        raise NotImplementedError


class NormalEffects(EffectPrior):
    """Normal, independent; the width of an axis that nobody needs goes to zero."""

    def prior(self, scale: Tensor, n_perturbations: int) -> Distribution:
        """N(0, scale²)."""
        return EventNormal(None, scale, (n_perturbations, len(scale)))


class SparseEffects(EffectPrior):
    """Sparse mechanism shifts: on each axis a perturbation has an effect or next to none.

    p(e) = π N(e; 0, s²) + (1 − π) N(e; 0, (c s)²) for each perturbation and axis, the indicator
    summed out: the density is in the ELBO, no indicator is drawn or relaxed (SAMS-VAE, Bereket and
    Karaletsos 2023, draws it). π is fixed: where data are weak a free one runs to 0 or 1.
    """

    prefers_axes = True
    share, spike = Priors.effect_inclusion, Priors.effect_spike

    def prepare(self, priors: Priors) -> None:
        """Take the prior share of axes and the width of the spike."""
        self.share, self.spike = priors.effect_inclusion, priors.effect_spike

    def prior(self, scale: Tensor, n_perturbations: int) -> Distribution:
        """The mixture of two normals, (n_perturbations, D) as one event."""
        width = torch.stack([self.spike * scale, scale], -1).expand(n_perturbations, -1, -1)
        weight = torch.stack([scale.new_full((), w) for w in (1 - self.share, self.share)])
        mixed = dist.MixtureSameFamily(
            dist.Categorical(weight), dist.Normal(torch.zeros_like(width), width)
        )
        return mixed.to_event(2)


EFFECT_PRIORS: dict[str, type[EffectPrior]] = {"normal": NormalEffects, "sparse": SparseEffects}


def register(name: str, prior: type[EffectPrior]) -> None:
    """Make a prior known as `PyroCell(effect_prior=name)`."""
    EFFECT_PRIORS[name] = prior
