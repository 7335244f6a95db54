"""What a view V is: the sites it brings, and the distribution of counts given expression."""

from __future__ import annotations

from torch import Tensor, nn
from torch.distributions import Distribution

from pyrocell.distributions import Start

__all__ = ["View"]


class View(nn.Module):
    """How expression is measured: a likelihood of counts, with the sites that it needs.

    Derive from it, and make it known by `pyrocell.views.register(name, view)`; the model is then
    built with ``PyroCell(adata, likelihood=name)``. A view is made with the keywords `n_genes`,
    `n_latent` (axes of resting state), `priors`, `composition` (whether expression is a share of
    all counts) and `dropout`. Point parameters are `nn.Parameter` of it.

    Attributes
    ----------
    dims
        Names of the dimensions of each site, for ArviZ; "gene" is known.
    """

    dims: dict[str, tuple[str, ...]] = {}

    def priors(self) -> dict[str, Distribution]:
        """Prior of each site, by name, "V." first; events, no batch dimensions."""
        return {}

    def starting_values(self, log_dispersion: Tensor) -> dict[str, Start]:
        """Where factors start, by site, from the log inverse dispersion by moments (G,).

        A site that is left out starts at the mean of its prior, in units in which it is unbounded.
        """
        return {}

    def likelihood(
        self,
        values: dict[str, Tensor],
        logits: Tensor,
        log_size: Tensor,
        z: Tensor,
        offset: tuple[Tensor, Tensor] | None = None,
    ) -> Distribution:
        """Distribution of the counts of cells, event (G,).

        Parameters
        ----------
        values
            Global sites.
        logits
            (cells, G) log relative expression.
        log_size
            (cells,) log depth.
        z
            (cells, d) states.
        offset
            A table (R, G), and for each cell the rows of it (cells, n) to be added to its logits;
            None: nothing.
        """
        raise NotImplementedError

    def moments(
        self, values: dict[str, Tensor], log_mu: Tensor, z: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Mean and variance of counts at log means (n, C, G) of cells with states z (n, d)."""
        raise NotImplementedError

    def theta(self, values: dict[str, Tensor]) -> Tensor:
        """Inverse dispersion (G,) for what a cell tells of its state; large where there is none."""
        raise NotImplementedError
