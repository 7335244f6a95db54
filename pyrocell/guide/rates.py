"""The guide's sites of time: rates, turnover, and what resting states move along."""

from __future__ import annotations

from collections.abc import Iterable

import pyro
import torch
from torch import Tensor

from pyrocell.distributions import EventLogNormal, EventNormal
from pyrocell.guide.parameters import GuideParameters, factor_name

__all__ = ["GuideRates"]

_FLOW = (("W.flow", "flow"), ("P.flow", "flow_code"), ("M.flow", "flow_media"))


class GuideRates(GuideParameters):
    """Sites of the waiting operator, drawn by the guide; a part of `Guide`."""

    def _normal(self, site: str, name: str, cls: type = EventNormal) -> Tensor:
        loc, scale = getattr(self, f"{name}_loc"), getattr(self, f"{name}_log_scale").exp()
        return pyro.sample(site, cls(loc, scale))

    def _declared(self, sites: Iterable[str]) -> dict[str, Tensor]:
        """Sites that a component declares, each from its own factor."""
        return {
            site: self._normal(
                site, factor_name(site), EventLogNormal if self.positive[site] else EventNormal
            )
            for site in sites
        }

    def _turnover(self, rates: dict[str, Tensor]) -> Tensor:
        """ρ given the common rate; the prior, exactly, of media that one order was run of."""
        model = self.model
        scale = self.turnover_log_scale.exp()
        scale = torch.where(model.reversed_media, scale, model.priors.turnover_sd)
        return pyro.sample("M.turnover", EventLogNormal(self._log_turnover(rates), scale))

    def _log_turnover(self, rates: dict[str, Tensor]) -> Tensor:
        """Centre of log ρ at a common rate, (J,)."""
        prior = self.model.log_turnover_centre(rates)
        shift = self.turnover_loc - self.model.priors.turnover_loc
        if self.model.has_rates:
            moved = rates["W.log_rate_base"] - self.rate_base_loc
            shift = shift - (1 - self.turnover_along_base) * moved
        return torch.where(self.model.reversed_media, prior + shift, prior)

    def _rate_sites(self) -> dict[str, Tensor]:
        """Rates in the order common, driver, product: what one takes the next gives back."""
        base = self._normal("W.log_rate_base", "rate_base")
        moved = self.rate_along_base * (base - self.rate_base_loc)
        normal = EventNormal(self.rate_loc + moved, self.rate_log_scale.exp())
        rate = pyro.sample("W.log_rate", normal)
        moved = self.decay_along_rate * (rate - self.rate_loc)[: len(self.decay_loc)]
        ratio = EventLogNormal(self.decay_loc + moved, self.decay_log_scale.exp())
        values = {"W.log_rate_base": base, "W.log_rate": rate}
        values["W.decay_ratio"] = pyro.sample("W.decay_ratio", ratio)
        return values | {"W.log_decay": self.model.log_decay(values)}

    def state_dynamics_sites(self) -> dict[str, Tensor]:
        """Sample the sites of the field of states."""
        values = {
            name: self._normal(name, part) for name, part in _FLOW if hasattr(self, f"{part}_loc")
        }
        if self.model.dynamics.noisy:
            values["W.noise"] = self._normal("W.noise", "state_noise", EventLogNormal)
        return values
