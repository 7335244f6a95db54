"""Batch noise η: its sites, their priors, and η as a function of them (eqs. 15, 19)."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrocell.distributions import EventLogNormal, EventNormal
from pyrocell.generative.config import ModelConfig
from pyrocell.noise.content import batch_content
from pyrocell.noise.contrasts import content_effect
from pyrocell.noise.laboratories import LaboratoryContrasts
from pyrocell.priors import Priors
from pyrocell.screen.identifiability import unidentified_directions
from pyrocell.screen.screen import Screen

__all__ = ["BatchNoise"]


class BatchNoise(nn.Module):
    """Sites `eta.*`, on two levels where there are laboratories.

    Parameters
    ----------
    screen
        The registered screen.
    config, priors
        Shape and priors of the model.

    Attributes
    ----------
    contrast, between, laboratory_mean
        See `LaboratoryContrasts`.
    content
        (B, M) what each batch contains, centred.
    unidentified
        (Q, B + J + K) directions of batches, media and perturbations that no cell sees.
    """

    contrast: Tensor
    between: Tensor
    laboratory_mean: Tensor
    content: Tensor
    unidentified: Tensor

    def __init__(self, screen: Screen, config: ModelConfig, priors: Priors):
        super().__init__()
        self.config, self.priors = config, priors
        self.n_batches, self.n_genes = len(screen.batches), len(screen.genes)
        self.has_laboratories = len(screen.laboratories) > 1
        nesting = LaboratoryContrasts.of(torch.as_tensor(screen.batch_laboratory))
        for name, value in {
            "contrast": nesting.contrast,
            "between": nesting.between,
            "laboratory_mean": nesting.mean,
            "unidentified": unidentified_directions(screen),
            "content": batch_content(screen),
        }.items():
            self.register_buffer(name, value, persistent=False)
        if self.n_batches > 1:
            self.log_eta_scale = nn.Parameter(torch.tensor(math.log(priors.eta_sd)))
        if self.has_laboratories:
            self.log_laboratory_scale = nn.Parameter(torch.tensor(math.log(priors.laboratory_sd)))

    @property
    def nesting(self) -> LaboratoryContrasts:
        """Contrasts of batches, in laboratories where there are several."""
        return LaboratoryContrasts(self.contrast, self.between, self.laboratory_mean)

    @property
    def has_content(self) -> bool:
        """Whether batch noise depends on what the batch contains."""
        return self.config.content_dependent_noise and self.content.shape[1] > 0

    def sample(self) -> dict[str, Tensor]:
        """Sample every site of batch noise from its prior; η is zero where there is one batch."""
        if self.n_batches == 1:
            return {"eta": self.contrast.new_zeros(1, self.n_genes)}
        spread = self.log_eta_scale.new_full((), self.priors.eta_spread)
        prior = EventLogNormal(self.log_eta_scale, spread, (self.n_genes,))
        scale = pyro.sample("eta.scale", prior)
        values = {"eta.scale": scale}
        if self.has_laboratories:
            loc = self.log_laboratory_scale.expand(self.n_genes)
            common = dist.LogNormal(loc, self.priors.eta_spread).to_event(1)
            values["eta.laboratory_scale"] = pyro.sample("eta.laboratory_scale", common)
        if self.has_content:
            shape = (self.content.shape[1], self.n_genes)
            sd = scale.new_full((), self.priors.content_sd)
            values["eta.content"] = pyro.sample("eta.content", EventNormal(None, sd, shape))
        shape = (self.n_batches - 1, self.n_genes)
        prior = EventNormal(None, self.scale(values), shape)
        values["eta.free"] = pyro.sample("eta.free", prior)
        values["eta"] = pyro.deterministic("eta", self.eta(values), event_dim=2)
        if self.has_laboratories:
            offset = self.laboratory_offset(values)
            values["eta.laboratory"] = pyro.deterministic("eta.laboratory", offset, event_dim=2)
        return values

    def eta(self, values: dict[str, Tensor]) -> Tensor:
        """η of every batch (eqs. 15, 19), (B, G); sums to zero over batches exactly."""
        eta = self.contrast @ values["eta.free"]
        if self.has_content:
            eta = eta + content_effect(self.content, values["eta.content"])
        return eta

    def scale(self, values: dict[str, Tensor]) -> Tensor:
        """Prior standard deviation of the contrasts of η, (G,), or (B − 1, G) with laboratories."""
        scale = values["eta.scale"]
        if not self.has_laboratories:
            return scale
        between = self.between[:, None] * values["eta.laboratory_scale"].square()
        return (scale.square() + between).sqrt()

    def laboratory_offset(self, values: dict[str, Tensor]) -> Tensor:
        """What each laboratory adds to all its batches, content aside, (L, G).

        Its sum over batches is zero, as that of what is left within each laboratory.
        """
        return self.laboratory_mean @ (self.contrast @ values["eta.free"])
