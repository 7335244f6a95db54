"""How log expression depends on a cell's resting state beyond a straight line."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

__all__ = ["CurvedDecoder"]

_WIDTH = 32  # features; 64 gain nothing and cost twice as much
_START = 0.2  # width of the weights' prior, log-fold change


class CurvedDecoder(nn.Module):
    """Features φ(z) that vanish at rest together with their slope; site `V.curvature` weighs them.

    φ_h(z) = s(u_h + a_h) − s(a_h) − s'(a_h) u_h, with u = z A and s the softplus. So expression at
    z = 0 is the baseline, and its slope there is the loading of z, as without φ: the gauges and
    the guide's Gauss-Newton response of z to a shift stay what they are. Responses are added to
    the log mean and do not pass through φ.

    Parameters
    ----------
    n_latent
        Axes d of resting state, or of whatever else bends.
    """

    def __init__(self, n_latent: int):
        super().__init__()
        random = torch.Generator().manual_seed(0)  # the same counts give the same start
        direction = torch.randn(n_latent, _WIDTH, generator=random) / n_latent**0.5
        self.direction = nn.Parameter(direction)  # A, (d, H)
        self.offset = nn.Parameter(torch.randn(_WIDTH, generator=random))  # a, (H,)
        # width of the weights' prior; learned, so that a feature nobody needs is pruned
        self.log_scale = nn.Parameter(torch.full((_WIDTH, 1), _START).log())

    def forward(self, z: Tensor) -> Tensor:
        """φ of states z (n, d), (n, H)."""
        along, offset = z @ self.direction, self.offset
        return softplus(along + offset) - softplus(offset) - offset.sigmoid() * along

    def slope(self, z: Tensor) -> Tensor:
        """∂φ/∂z of states z (n, d), (n, d, H)."""
        bend = (z @ self.direction + self.offset).sigmoid() - self.offset.sigmoid()
        return self.direction * bend[:, None]
