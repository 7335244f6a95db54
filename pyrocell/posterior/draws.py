"""Joint posterior draws: globals are drawn once per draw and replayed by seed, never held whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyrocell.errors import ScreenError
from pyrocell.generative.model import GenerativeModel
from pyrocell.guide.guide import Guide
from pyrocell.posterior.unidentified import resample_unidentified

__all__ = ["Posterior", "check_draws", "check_level", "summarise"]


Sites = dict[str, Tensor]
Asked = Sequence[int] | np.ndarray | None  # perturbations; None: all


class GeneLevelDraws(Protocol):
    """Puts the gene-level sites of a joint draw in the place of the guide's."""

    def __call__(self, values: Sites, draw: int | None, perturbations: Asked) -> Sites:
        """All sites, from the guide's, the number of the draw (None: means), whose are wanted."""
        ...


class _AtMean(Messenger):
    """Replace every sampled value by its distribution's mean."""

    def _pyro_sample(self, msg: dict) -> None:
        if not msg["is_observed"] and msg["value"] is None:
            msg["value"] = msg["fn"].mean
            msg["done"] = True


class Posterior:
    """Draws of the global sites of a fitted guide.

    Parameters
    ----------
    model, guide
        The generative model and its guide.
    seed
        Draw i is the same for the same seed, whatever else is asked of it.
    gene_level
        Puts the gene-level sites in the place of the guide's; None: they stay.
    """

    def __init__(
        self,
        model: GenerativeModel,
        guide: Guide,
        seed: int = 0,
        gene_level: GeneLevelDraws | None = None,
    ):
        self.model, self.guide, self.seed = model, guide, seed
        self.gene_level = gene_level

    def draws(
        self, n: int, as_fitted: bool = False, perturbations: Asked = None
    ) -> Iterator[dict[str, Tensor]]:
        """Yield n joint draws of the globals, one dictionary by site name at a time.

        What the layout cannot tell is drawn from the prior given the sum that it can; `as_fitted`
        leaves the split to the guide, for those who want the sum alone. `perturbations`: those
        whose gene-level effects are asked for, where not all are; the others' may be zero.

        Raises
        ------
        ScreenError
            If n is below 1.
        """
        check_draws(n)
        return self._draws(n, as_fitted, perturbations)

    def _draws(self, n: int, as_fitted: bool, perturbations: Asked) -> Iterator[dict[str, Tensor]]:
        for i in range(n):
            yield self.draw(i, as_fitted, perturbations)

    def draw(self, i: int, as_fitted: bool = False, perturbations: Asked = None) -> Sites:
        """Joint draw number i; arguments as in `draws`."""
        devices = [self.model.loading.device] if self.model.loading.is_cuda else []
        with torch.no_grad(), torch.random.fork_rng(devices):
            torch.manual_seed(1_000_003 * self.seed + i)
            values = self.guide.globals()
            if self.gene_level is not None:
                return self.gene_level(values, i, perturbations)
            return values if as_fitted else self._determined(values)

    def mean(self) -> dict[str, Tensor]:
        """Globals with every site at its posterior mean."""
        with torch.no_grad():
            with _AtMean():
                values = self.guide.globals()
            if self.gene_level is not None:
                return self.gene_level(values, None, None)
            return self._determined(values, noise=False)

    def _determined(self, values: dict[str, Tensor], noise: bool = True) -> dict[str, Tensor]:
        """Split what the layout cannot tell as the prior does, given the sum that it can."""
        if not self.model.can_resample:
            return values
        return resample_unidentified(self.model, values, noise)

    def samples(self, n: int, sites: list[str] | None = None) -> dict[str, np.ndarray]:
        """Stack n joint draws of the chosen sites, (n, ...) each."""
        kept: dict[str, list[np.ndarray]] = {}
        for values in self.draws(n):
            for name in sites or values:
                kept.setdefault(name, []).append(values[name].cpu().numpy())
        return {name: np.stack(draws) for name, draws in kept.items()}


def check_draws(n: int) -> None:
    """Raise ScreenError unless there is at least one posterior draw to summarise."""
    if n != int(n) or n < 1:
        raise ScreenError(f"{n} posterior draws cannot be summarised; ask for 1, 2, ...")


def check_level(credible_level: float) -> None:
    """Raise ScreenError unless the mass of an interval is between 0 and 1."""
    if not 0 < credible_level < 1:
        raise ScreenError(f"credible_level={credible_level} must be between 0 and 1, such as 0.9")


def summarise(draws: np.ndarray, credible_level: float = 0.9) -> dict[str, np.ndarray]:
    """Mean, sd and equal-tailed interval over the first axis, and the probability of direction.

    Raises
    ------
    ScreenError
        If the credible level is not between 0 and 1.
    """
    check_level(credible_level)
    tail = 50 * (1 - credible_level)
    # an interval between order statistics of n draws holds one more draw with just this probability
    lower, upper = np.percentile(draws, [tail, 100 - tail], axis=0, method="weibull")
    above = (draws > 0).mean(0)
    return {
        "mean": draws.mean(0),
        "sd": draws.std(0, ddof=1) if len(draws) > 1 else np.zeros(draws.shape[1:]),
        "lower": lower,
        "upper": upper,
        "prob_direction": np.maximum(above, (draws < 0).mean(0)),
    }
