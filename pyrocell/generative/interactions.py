"""Departures from additivity of conditions with several drivers: how wide, and since when."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyrocell.operators import ResponseParameters, condition_rate
from pyrocell.operators.waiting import relative_curve
from pyrocell.priors import Priors
from pyrocell.screen.conditions import Conditions

__all__ = ["Interactions"]


class Interactions(nn.Module):
    r"""Prior width of `P.interaction`, and the share of it that a condition shows.

    The width of an arm's interaction in a gene is :math:`\sqrt{a^2 + b^2 \sum_i r_{ig}^2}` with the
    responses :math:`r_i` to the arm's drivers alone: what can be blocked, or doubled, is what is
    there. a and b are learned.
    """

    def __init__(self, priors: Priors):
        super().__init__()
        start = torch.tensor([priors.interaction_sd, priors.interaction_share])
        self.log_scale = nn.Parameter(start.log())  # of a and b

    def scale(self, carried: Tensor, met: Tensor, alone: Sequence[Tensor | None]) -> Tensor:
        """Prior standard deviation of interactions, (A, G).

        Parameters
        ----------
        carried, met
            (A, K) perturbations and (A, J) media of each arm, 0/1.
        alone
            (K, T, G) responses to each perturbation alone at the measured times, and (J, T, G) to
            each medium; None where there is none.
        """
        constant, relative = self.log_scale.exp().square()
        assert alone[0] is not None  # an arm of several drivers has a perturbation
        variance = constant.expand(len(carried), alone[0].shape[-1])
        for drivers, response in zip((carried, met), alone, strict=True):
            if response is not None and bool(drivers.any()):
                size = response.mean(1).square()  # (n, G), over the measured times
                variance = variance + relative * (drivers @ size)
        return variance.sqrt()


def grown(conditions: Conditions, params: ResponseParameters, reference_time: float) -> Tensor:
    """Share of an interaction in each condition, 1 at the reference time, 0 for none, (C,).

    An interaction grows as what it alters: with the response to the medium, where there is one.
    """
    there = (conditions.interaction >= 0).to(conditions.duration)
    if params.at_once:
        return there
    rate = condition_rate(conditions.genotype, conditions.exposure, params)[:, 0]
    met = conditions.exposure.any(1)
    start = torch.where(met, conditions.exposed_at, conditions.perturbed_at)
    since = (conditions.duration - start).clamp_min(0)
    return there * relative_curve(rate, since, reference_time)
