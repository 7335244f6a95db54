"""Priors of low-rank effects of perturbations, `P.effect`."""

from __future__ import annotations

from torch import Tensor
from torch.distributions import Distribution

from pyrocell.distributions import EventNormal

__all__ = ["EFFECT_PRIORS", "EffectPrior", "NormalEffects", "register"]


class EffectPrior:
    """How effects along the axes of response are distributed over perturbations.

    Derive from it, and make it known by `pyrocell.generative.effects.register(name, prior)`; the
    model is then built with ``PyroCell(adata, effect_prior=name)``. Under another than the default
    gene-level effects keep the variational posterior, since the Gibbs sampler has a prior of its
    own.
    """

    def prior(self, scale: Tensor, n_perturbations: int) -> Distribution:
        """Prior of (n_perturbations, D) effects, an event, at learned standard deviations (D,)."""
        raise NotImplementedError


class NormalEffects(EffectPrior):
    """Normal, independent; the width of an axis that nobody needs goes to zero."""

    def prior(self, scale: Tensor, n_perturbations: int) -> Distribution:
        """N(0, scale²)."""
        return EventNormal(None, scale, (n_perturbations, len(scale)))


EFFECT_PRIORS: dict[str, type[EffectPrior]] = {"normal": NormalEffects}


def register(name: str, prior: type[EffectPrior]) -> None:
    """Make a prior known as `PyroCell(effect_prior=name)`."""
    EFFECT_PRIORS[name] = prior
