"""The amortised part of the guide, q(z | x), and the geometry that ties it to the shifts."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pyrocell.generative.cell_shift import CellShift
from pyrocell.screen.feature_views import FeatureViews

__all__ = ["Encoder", "fisher_metric", "fisher_weight", "row_sums", "state_shift"]

_LOG_SD_RANGE = (-5.0, 1.0)


class Encoder(nn.Module):
    """Amortised q(z | x) from log1p counts; condition and batch enter through the shift."""

    centre: Tensor

    def __init__(
        self, n_genes: int, n_hidden: int, n_latent: int, features: FeatureViews | None = None
    ):
        super().__init__()
        self.features = features
        if features is not None:  # log1p of a usual count: zero of what was not measured is none
            self.register_buffer("centre", torch.zeros(n_genes))
        self.body = nn.Sequential(
            nn.Linear(n_genes, n_hidden),
            nn.ReLU(),
            nn.Linear(n_hidden, n_hidden),
            nn.ReLU(),
            nn.Linear(n_hidden, 2 * n_latent),
        )

    def forward(self, x: Tensor, seen: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, (cells, d) each, from dense or CSR counts (cells, G).

        `seen` (cells, V) is which views were measured; None: all.
        """
        first = self._first(x)
        if self.features is not None:
            first = first - self._usual(first, seen)
        loc, log_scale = self.body[1:](first).chunk(2, -1)
        return loc, log_scale.clamp(*_LOG_SD_RANGE).exp()

    def _usual(self, first: Tensor, seen: Tensor | None) -> Tensor:
        """What usual counts of the views measured add to the first layer, (cells, H) or (H,)."""
        assert self.features is not None
        layer = self.body[0]
        assert isinstance(layer, nn.Linear)
        weight = layer.weight * self.centre  # (H, G)
        each = torch.stack([weight[:, part].sum(1) for part in self.features.slices])  # (V, H)
        return each.sum(0) if seen is None else seen.to(first) @ each

    def _first(self, x: Tensor) -> Tensor:
        """First layer, (cells, H)."""
        layer = self.body[0]
        if x.layout == torch.strided:
            return layer(torch.log1p(x))
        if x.device.type != "cpu" or {x.dtype, layer.weight.dtype} != {torch.float32}:
            return layer(torch.log1p(x.to_dense()))
        from pyrocell.distributions.kernels.sparse_linear import SparseLinear  # loads numba

        value = torch.log1p(x.values())
        return SparseLinear.apply(
            x.crow_indices(), x.col_indices(), value, layer.weight, layer.bias
        )


def row_sums(x: Tensor) -> Tensor:
    """Counts per cell, (cells,), of dense or CSR counts."""
    if x.layout == torch.strided:
        return x.sum(1)
    return torch.segment_reduce(x.values(), "sum", offsets=x.crow_indices(), initial=0)


def state_shift(
    shift: Tensor | CellShift, depth: Tensor, loading: Tensor, mean: Tensor, theta: Tensor
) -> Tensor:
    """How far a log-mean shift moves the posterior mean of z, (cells, d).

    (I + D F D')⁻¹ D F s, the Gauss-Newton posterior of z, F the Fisher information of an average
    cell times the cell's relative depth; one eigendecomposition serves all depths.

    Parameters
    ----------
    shift
        (cells, G) sampled log-mean shift, or the tables it is the sum of.
    depth
        (cells,) counts of the cell relative to the average.
    loading, mean, theta
        (d, G) loading D of z; (G,) mean count and inverse dispersion.
    """
    weighted = loading * fisher_weight(mean, theta)
    value, axes = torch.linalg.eigh(weighted @ loading.T)
    scale = depth[:, None] / (1 + depth[:, None] * value.clamp_min(0))  # (cells, d)
    along = shift.along(weighted) if isinstance(shift, CellShift) else shift @ weighted.T
    return (along @ axes * scale) @ axes.T


def fisher_weight(mean: Tensor, theta: Tensor) -> Tensor:
    """Fisher information of a log mean, per cell and gene, (G,)."""
    return mean / (1 + mean / theta)


def fisher_metric(
    loading: Tensor, mean: Tensor, theta: Tensor
) -> Callable[[Tensor, Tensor], Tensor]:
    """Inner product of log-mean shifts by one cell's Fisher information, z integrated out."""
    weight = fisher_weight(mean, theta)
    weighted = loading * weight
    inner = weighted @ loading.T + torch.eye(len(loading), device=loading.device)

    def product(a: Tensor, b: Tensor) -> Tensor:
        along = torch.linalg.solve(inner, weighted @ b.T)  # (d, n)
        return (a * weight * b).sum(-1) - ((a @ weighted.T) * along.T).sum(-1)

    return product
