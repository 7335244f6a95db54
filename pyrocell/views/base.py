"""What a view V is: the sites it brings, and the distribution of counts given expression."""

from __future__ import annotations

import math
from typing import Any

import torch
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
    composition
        Whether expression is a share of all counts of a cell.
    depth
        What the depth of a cell is: its "total" counts, the number of "open" features in units of
        fragments, or "one" where it has none.
    curved
        Whether log mean counts are no straight line in logits, see `logit_shift`.
    slopes
        Least and greatest change of a log mean count with its logit at rest.
    """

    dims: dict[str, tuple[str, ...]] = {}
    composition: bool = True
    depth: str = "total"
    slopes: tuple[float, float] = (0.5, 3.0)
    curved: bool = False

    @property
    def limits(self) -> tuple[Any, Any]:
        """`slopes`, of all features or of each, (G,)."""
        return self.slopes

    @property
    def coords(self) -> dict[str, slice]:
        """Dimensions of sites, beside "gene", and which features they are of."""
        return {}

    @property
    def compositions(self) -> list[slice]:
        """Features whose expression sums to one in every cell."""
        return [slice(None)] if self.composition else []

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

    def prepare(self, mean: Tensor, low: Tensor, usual: Tensor) -> None:
        """Take up what starts need of the counts: mean and low end (G,), usual log depths (V,)."""

    def starting_logits(self, log_mean: Tensor) -> Tensor:
        """Logits at which log mean counts per unit of depth are `log_mean`, (G,); about."""
        return log_mean

    def information(self, values: dict[str, Tensor], mean: Tensor, log_size: Tensor) -> Tensor:
        """Fisher information of the logits of cells with mean counts `mean`, (cells, G)."""
        return mean / (1 + mean / self.theta(values))

    # ------------------------------------------------------------------ levels and depths
    def relative(self, logits: Tensor) -> Tensor:
        """Log expression per unit of depth of logits (..., G): normalised where it is a share."""
        for part in self.compositions:
            if part == slice(None):
                return torch.log_softmax(logits, -1)
            changed = torch.log_softmax(logits[..., part], -1)
            logits = torch.cat([logits[..., : part.start], changed, logits[..., part.stop :]], -1)
        return logits

    def gauge(self, rows: Tensor, log_weight: Tensor) -> Tensor:
        """Rows (..., G) of changes of logits as changes of log expression, as counts show them.

        Where expression is a share of all counts, a change that all features have in common is
        none: its mean under the expression `log_weight` (..., G) is taken off.
        """
        for part in self.compositions:
            weight = torch.softmax(log_weight[..., part], -1)
            mean = (rows[..., part] * weight).sum(-1, keepdim=True)
            if part == slice(None):
                return rows - mean
            moved = rows[..., part] - mean
            rows = torch.cat([rows[..., : part.start], moved, rows[..., part.stop :]], -1)
        return rows

    def logit_shift(self, shift: Tensor, slope: Tensor) -> Tensor:
        """Shift of logits that moves log means as `shift` (C, G) would along a straight line.

        `slope` (G,) is that of log means in logits at rest.
        """
        return shift

    def log_depth(self, size_factor: float) -> float | Tensor:
        """Log depth of features, a number or (G,), in cells of a given depth."""
        return math.log(size_factor)

    def depth_of(self, log_size: Tensor, size_factor: float | None) -> Tensor | float:
        """Depth of features in cells, (cells, 1) or (cells, G): a given one, or their own."""
        return log_size.exp()[:, None] if size_factor is None else size_factor

    def cell_depth(self, like: Tensor, size_factor: float) -> Tensor:
        """`log_size` of cells of a given depth, on the device of `like` (cells, d)."""
        return like.new_full((len(like),), math.log(size_factor))
