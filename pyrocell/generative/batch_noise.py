"""The map from the sites of batch noise to η, on every level of it (eqs. 15, 19)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyrocell.generative.config import ModelConfig
from pyrocell.noise.content import batch_content
from pyrocell.noise.contrasts import content_effect
from pyrocell.noise.laboratories import LaboratoryContrasts
from pyrocell.screen.identifiability import unidentified_directions
from pyrocell.screen.screen import Screen

__all__ = ["NoiseMap"]


class NoiseMap(nn.Module):
    """η as a deterministic function of its sites; the screen's map is built on it."""

    config: ModelConfig
    contrast: Tensor
    between: Tensor
    laboratory_mean: Tensor
    unidentified_directions: Tensor
    content: Tensor

    def _noise_tables(self, screen: Screen) -> dict[str, Tensor]:
        """Batches as tensors, to be registered as buffers."""
        self.has_laboratories = len(screen.laboratories) > 1
        nesting = LaboratoryContrasts.of(torch.as_tensor(screen.batch_laboratory))
        return {
            "contrast": nesting.contrast,
            "between": nesting.between,
            "laboratory_mean": nesting.mean,
            "undetermined": unidentified_directions(screen),
            "content": batch_content(screen),
        }

    @property
    def nesting(self) -> LaboratoryContrasts:
        """Contrasts of batches, in laboratories where there are several."""
        return LaboratoryContrasts(self.contrast, self.between, self.laboratory_mean)

    @property
    def can_resample(self) -> bool:
        """Whether there is what the layout cannot tell, and gene-level parts that can take it."""
        return bool(len(self.undetermined)) and self.config.gene_residual and not self.follows_gain

    @property
    def has_content(self) -> bool:
        """Whether batch noise depends on what the batch contains."""
        return self.config.content_dependent_noise and self.content.shape[1] > 0

    def eta(self, values: dict[str, Tensor]) -> Tensor:
        """η of every batch (eqs. 15, 19), (B, G); sums to zero over batches exactly."""
        eta = self.contrast @ values["eta.free"]
        if self.has_content:
            eta = eta + content_effect(self.content, values["eta.content"])
        return eta

    def eta_scale(self, values: dict[str, Tensor]) -> Tensor:
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
