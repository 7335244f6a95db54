"""V for chromatin: fragments per region, a share of all fragments of a cell.

Counts of fragments are Poisson or negative binomial about the cell's depth times the region's
share. As binary data a region is open where any fragment was seen, which has the probability
1 − exp(−μ): the same μ, so that effects have one meaning whichever is chosen.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from pyrocell.distributions import EventLogNormal, NegativeBinomial, Start
from pyrocell.distributions.counts import with_offset
from pyrocell.distributions.kernels.counts_torch import log_mean
from pyrocell.priors import Priors
from pyrocell.views.base import View

__all__ = ["ChromatinView", "OpenChromatinView", "OpenRegions", "PoissonChromatinView"]

_POISSON = 14.0  # log inverse dispersion of counts without any


class ChromatinView(View):
    """Fragments per region.

    Parameters
    ----------
    n_genes, n_latent
        Regions, and d.
    priors
        That of log θ.
    composition
        Whether accessibility is a share of all fragments of a cell.
    dropout
        Not used.
    """

    dims = {"V.dispersion": ("gene",)}
    overdispersed = True
    one: Tensor

    def __init__(
        self,
        n_genes: int,
        n_latent: int,
        priors: Priors,
        composition: bool,
        dropout: str = "curve",
    ):
        super().__init__()
        self.n_genes, self.composition, self.scales = n_genes, composition, priors
        self.register_buffer("one", torch.ones(()), persistent=False)

    def priors(self) -> dict[str, EventLogNormal]:
        """θ by region, of negative binomial counts."""
        if not self.overdispersed:
            return {}
        p, one = self.scales, self.one
        shape = (self.n_genes,)
        return {
            "V.dispersion": EventLogNormal(p.dispersion_loc * one, p.dispersion_sd * one, shape)
        }

    def starting_values(self, log_dispersion: Tensor) -> dict[str, Start]:
        """θ by moments."""
        if not self.overdispersed:
            return {}
        return {"V.dispersion": Start(log_dispersion, torch.tensor(0.1), positive=True)}

    def likelihood(
        self,
        values: dict[str, Tensor],
        logits: Tensor,
        log_size: Tensor,
        z: Tensor,
        offset: tuple[Tensor, Tensor] | None = None,
    ) -> TorchDistribution:
        """Negative binomial counts of fragments; see `View.likelihood`."""
        common = {"log_size": log_size, "composition": self.composition, "offset": offset}
        return NegativeBinomial(logits, self.theta(values).log(), **common)

    def moments(
        self, values: dict[str, Tensor], log_mu: Tensor, z: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Mean and variance of counts; see `View.moments`."""
        mu = log_mu.exp()
        return mu, mu * (1 + mu / self.theta(values))

    def theta(self, values: dict[str, Tensor]) -> Tensor:
        """θ of each region, (G,)."""
        return values["V.dispersion"]


class PoissonChromatinView(ChromatinView):
    """Fragments per region without overdispersion; see `ChromatinView`."""

    dims = {}
    overdispersed = False

    def theta(self, values: dict[str, Tensor]) -> Tensor:
        """So large that it is that of Poisson counts, (G,)."""
        return (math.exp(_POISSON) * self.one).expand(self.n_genes)


class OpenChromatinView(ChromatinView):
    """Whether a region has any fragment; see `ChromatinView`."""

    dims = {}
    depth = "open"
    overdispersed = False

    def likelihood(
        self,
        values: dict[str, Tensor],
        logits: Tensor,
        log_size: Tensor,
        z: Tensor,
        offset: tuple[Tensor, Tensor] | None = None,
    ) -> TorchDistribution:
        """Which regions are open; see `View.likelihood`."""
        return OpenRegions(log_mean(with_offset(logits, offset), log_size, self.composition))

    def moments(
        self, values: dict[str, Tensor], log_mu: Tensor, z: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Mean and variance of being open; see `View.moments`."""
        open_ = -torch.expm1(-log_mu.exp())
        return open_, open_ * (1 - open_)

    def theta(self, values: dict[str, Tensor]) -> Tensor:
        """2, with which a count tells of log μ, to first order, what being open does; (G,)."""
        return (2.0 * self.one).expand(self.n_genes)


class OpenRegions(TorchDistribution):
    """Whether any fragment of a region was seen, when their number is Poisson.

    Batch shape (cells,), event shape (regions,). `log_mu` (cells, regions) is the log mean number
    of fragments. Values are counts, of which only whether they are above zero counts.
    """

    arg_constraints = {"log_mu": constraints.real_vector}  # pyright: ignore[reportAssignmentType]
    support = constraints.independent(  # pyright: ignore[reportAssignmentType]
        constraints.nonnegative_integer, 1
    )
    has_rsample = False

    def __init__(self, log_mu: Tensor, validate_args: bool | None = None) -> None:
        self.log_mu = log_mu
        super().__init__(log_mu.shape[:-1], log_mu.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> OpenRegions:
        """A distribution like it over a larger batch."""
        new = cast("OpenRegions", self._get_checked_instance(type(self), _instance))
        new.log_mu = self.log_mu.expand(torch.Size(batch_shape) + self.event_shape)
        TorchDistribution.__init__(
            new, torch.Size(batch_shape), self.event_shape, validate_args=False
        )
        return new

    @property
    def mean(self) -> Tensor:
        """Probability of being open, (..., cells, regions)."""
        return -torch.expm1(-self.log_mu.exp())

    @property
    def variance(self) -> Tensor:
        """Variance of being open."""
        return self.mean * (1 - self.mean)

    def sample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:
        """Draw 0 or 1, (*sample_shape, ..., cells, regions)."""
        shape = torch.Size(sample_shape) + self.batch_shape + self.event_shape
        with torch.no_grad():
            return torch.bernoulli(self.mean.expand(shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log probability per cell, (..., cells), of counts, dense or in torch's CSR layout."""
        mu = self.log_mu.exp()
        if value.layout == torch.sparse_csr:
            start, column = value.crow_indices(), value.col_indices()
            cells = torch.arange(len(start) - 1, device=start.device)
            row = torch.repeat_interleave(cells, start.diff(), output_size=len(column))
            seen = value.values() > 0
            row, column = row[seen], column[seen]
            ratio = _log_odds(mu[row, column])
            return (-mu.sum(-1)).index_add(0, row, ratio)
        return (torch.where(value > 0, _log_odds(mu), torch.zeros_like(mu)) - mu).sum(-1)


def _log_odds(mu: Tensor) -> Tensor:
    """log of (1 − exp(−μ)) / exp(−μ)."""
    mu = mu.clamp_min(1e-20)
    return mu + torch.log(-torch.expm1(-mu))
