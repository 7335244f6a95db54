"""A dynamics of one's own: responses that overshoot before they settle."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Distribution

from pyrocell.distributions import Start
from pyrocell.operators.dynamics import Dynamics, register
from pyrocell.screen.conditions import Conditions


class Overshoot(Dynamics):
    """y(t) = relaxation × (1 + a s exp(1 − s)), s the time waited over the reference time."""

    dims = {"W.overshoot": ("axis",)}

    def priors(self) -> dict[str, Distribution]:
        return {"W.overshoot": dist.Normal(torch.zeros(self.n_axes), 0.5).to_event(1)}

    def starting_values(self) -> dict[str, Start]:
        return {"W.overshoot": Start(torch.zeros(self.n_axes), torch.tensor(0.2))}

    def displace(self, values: dict[str, Tensor], y: Tensor, conditions: Conditions) -> Tensor:
        waited = (conditions.duration - conditions.perturbed_at).clamp_min(0)
        s = (waited / self.reference_time)[:, None]
        return y * (1 + values["W.overshoot"] * s * (1 - s).exp())


register("overshoot", Overshoot)
