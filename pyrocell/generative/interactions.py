"""Departures from additivity of conditions with several drivers: how wide, and since when."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyrocell.generative.screen_tensors import ScreenTensors
from pyrocell.operators import ResponseParameters, condition_rate
from pyrocell.operators.waiting import relative_curve
from pyrocell.screen.conditions import Conditions

__all__ = ["Interactions"]


class Interactions(ScreenTensors):
    """Prior width of `P.interaction`, and the share of it that a condition shows."""

    log_interaction_scale: nn.Parameter  # log of its constant part, and of the relative one

    def interaction_scale(
        self, values: dict[str, Tensor], genotype: Tensor, exposure: Tensor
    ) -> Tensor:
        r"""Prior standard deviation of the interactions of arms (A, K) and (A, J); (A, G).

        :math:`\sqrt{a^2 + b^2 \sum_i r_{ig}^2}` with the responses :math:`r_i` to the arm's drivers
        alone: what can be blocked, or doubled, is what is there. a and b are learned.
        """
        constant, relative = self.log_interaction_scale.exp().square()
        variance = constant.expand(len(genotype), self.n_genes)
        for operator, carried in (("P", genotype), ("M", exposure)):
            if carried.shape[1] and bool(carried.any()):
                alone = self.low_rank(values, operator) + values[f"{operator}.residual"]
                size = alone.mean(1).square()  # (n, G), over the measured times
                variance = variance + relative * (carried @ size)
        return variance.sqrt()

    def interaction_grown(self, values: dict[str, Tensor], conditions: Conditions) -> Tensor:
        """Share of `P.interaction` in each condition, 1 at the reference time, 0 for none, (C,).

        An interaction grows as what it alters: with the response to the medium, where there is one.
        """
        there = (conditions.interaction >= 0).to(conditions.duration)
        if not self.has_rates:
            return there
        params: ResponseParameters = self.response_parameters(values)
        rate = condition_rate(conditions.genotype, conditions.exposure, params)[:, 0]
        met = conditions.exposure.any(1)
        start = torch.where(met, conditions.exposed_at, conditions.perturbed_at)
        since = (conditions.duration - start).clamp_min(0)
        return there * relative_curve(rate, since, self.reference_time)
