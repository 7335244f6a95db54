"""Model, guide and screen together, as scvi-tools expects a module; everything the file needs."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import scipy.sparse as sp
from torch import nn

from pyrocell.generative import GenerativeModel, ModelConfig, ScreenStatistics
from pyrocell.guide import Guide
from pyrocell.initial import starting_values
from pyrocell.priors import Priors
from pyrocell.screen import Screen

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
        self.guide = Guide(self.model, screen, statistics)

    @classmethod
    def from_counts(
        cls,
        counts: sp.csr_matrix,
        log_size: np.ndarray,
        screen: Screen,
        config: ModelConfig,
        priors: Priors,
    ) -> ScreenModule:
        """Build with starting values read off the counts."""
        return cls(screen, config, priors, starting_values(counts, log_size, screen, config))

    def settings(self) -> dict:
        """Config and priors, JSON-safe."""
        return {"config": asdict(self.config), "priors": asdict(self.priors)}
