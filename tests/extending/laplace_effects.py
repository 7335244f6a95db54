"""A prior on effects of one's own: most are small, a few are large."""

from __future__ import annotations

import pyro.distributions as dist
from torch import Tensor
from torch.distributions import Distribution

from pyrocell.generative.effects import EffectPrior, register


class LaplaceEffects(EffectPrior):
    """Laplace of the same standard deviation as the normal that it replaces."""

    def prior(self, scale: Tensor, n_perturbations: int) -> Distribution:
        width = (scale / 2**0.5).expand(n_perturbations, -1)
        return dist.Laplace(width.new_zeros(width.shape), width).to_event(2)


register("laplace", LaplaceEffects)
