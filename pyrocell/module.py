"""Model, guide and screen together, as scvi-tools expects a module; everything the file needs."""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import torch
from torch import Tensor, nn

from pyrocell.count_sums import CountSums
from pyrocell.generative import GenerativeModel
from pyrocell.guide import Guide
from pyrocell.initial import starting_values
from pyrocell.priors import Priors
from pyrocell.screen import Screen
from pyrocell.structure import ModelConfig, ScreenStatistics

__all__ = ["ScreenModule"]


class ScreenModule(nn.Module):
    """The generative model and its guide for one screen.

    Attributes
    ----------
    model, guide
        Plain Pyro callables with the arguments of `GenerativeModel.forward`.
    """

    def __init__(
        self, screen: Screen, config: ModelConfig, priors: Priors, statistics: ScreenStatistics
    ):
        super().__init__()
        self.config, self.priors = config, priors
        self.model = GenerativeModel(screen, config, priors, statistics)
        with torch.random.fork_rng([]):  # the same counts give the same start
            torch.manual_seed(0)
            self.guide = Guide(self.model, screen, statistics)

    @classmethod
    def from_sums(
        cls, sums: CountSums, screen: Screen, config: ModelConfig, priors: Priors
    ) -> ScreenModule:
        """Build with starting values read off the counts."""
        return cls(screen, config, priors, starting_values(sums, screen, config))

    @classmethod
    def from_state(
        cls, state: dict[str, Tensor], screen: Screen, config: ModelConfig, priors: Priors
    ) -> ScreenModule:
        """Build from saved tensors and a screen without cells (its layout says how many).

        Raises
        ------
        RuntimeError
            If the tensors do not fit the screen and the settings.
        """
        numbers = screen.layout.to_numpy(dtype=np.int64)
        condition, batch = (
            np.repeat(i.ravel(), numbers.ravel()) for i in np.indices(numbers.shape)
        )
        screen = replace(screen, cell_condition=condition, cell_batch=batch)
        module = cls(screen, config, priors, _blank_statistics(screen, config))
        module.load_state_dict(state)
        return module

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.model.loading.device

    def settings(self) -> dict:
        """Config and priors, JSON-safe."""
        return {"config": asdict(self.config), "priors": asdict(self.priors)}


def _blank_statistics(screen: Screen, config: ModelConfig) -> ScreenStatistics:
    """Starting values of the right shapes, to be replaced by what was saved."""
    g, d, r = len(screen.genes), config.n_latent, config.n_response
    zeros, ones = torch.zeros(g), torch.ones(g)
    return ScreenStatistics(
        baseline=zeros,
        baseline_scale=ones,
        mean=ones,
        relative_variance=ones,
        log_dispersion=zeros,
        loading=torch.zeros(d, g),
        response=torch.ones(r, g),
        effect=torch.zeros(len(screen.perturbations), d + r),
        media_effect=torch.zeros(len(screen.media), d + r),
    )
