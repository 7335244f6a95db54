"""A view of one's own: counts without overdispersion, but for a share that is background."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Distribution

from pyrocell.views import Start, View, register


class PoissonView(View):
    """Poisson counts with mean depth × (share of the gene + its background)."""

    dims = {"V.background": ("gene",)}

    def __init__(self, n_genes: int, **unused: object):
        super().__init__()
        self.n_genes = n_genes
        self.register_buffer("one", torch.ones(()), persistent=False)

    def priors(self) -> dict[str, Distribution]:
        loc = self.one.new_full((self.n_genes,), -9.0)
        return {"V.background": dist.LogNormal(loc, 1.0).to_event(1)}

    def starting_values(self, log_dispersion: Tensor) -> dict[str, Start]:
        start = torch.full((self.n_genes,), -9.0)
        return {"V.background": Start(start, torch.tensor(0.3), positive=True)}

    def likelihood(self, values, logits, log_size, z, offset=None) -> Distribution:
        if offset is not None:
            table, rows = offset
            logits = logits + table[rows].sum(1)
        share = torch.softmax(logits, -1)
        return _Counts(log_size[:, None].exp() * (share + values["V.background"])).to_event(1)

    def moments(self, values, log_mu, z) -> tuple[Tensor, Tensor]:
        mu = log_mu.exp()
        mean = mu + mu.sum(-1, keepdim=True) * values["V.background"]
        return mean, mean

    def theta(self, values) -> Tensor:
        return values["V.background"].new_full((self.n_genes,), 1e4)


class _Counts(dist.Poisson):
    """Poisson that takes the sparse minibatches in which cells come."""

    def log_prob(self, value: Tensor) -> Tensor:
        return super().log_prob(value.to_dense() if value.layout != torch.strided else value)


register("poisson", PoissonView)
