"""η of requested conditions: that of measured batches, and draws for batches never measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pyrocell.errors import UnknownLabelError
from pyrocell.generative import GenerativeModel
from pyrocell.labels import suggestion
from pyrocell.layout import average_content, content_names
from pyrocell.nesting import new_batch_moments
from pyrocell.requested import RequestedNoise
from pyrocell.screen import Screen

__all__ = ["NoiseOfRequest", "content_of"]

_STREAM = 1_000_000_007  # keeps these draws apart from those of cells, which have the same seeds


def content_of(screen: Screen, stated: Mapping[str, float] | None) -> Tensor:
    """What a new batch contains, as deviation from the average batch, (F,).

    Parameters
    ----------
    stated
        Fraction of its cells by name: the control's label, a medium, a type of perturbation; what
        is not stated is as in the average batch.

    Raises
    ------
    UnknownLabelError
        If a name is none by which the screen's batches differ.
    """
    names, average = content_names(screen), average_content(screen)
    content = torch.zeros_like(average)
    for name, fraction in (stated or {}).items():
        if name not in names:
            raise UnknownLabelError(
                f'batch_content has "{name}", by which batches of the screen do not differ'
                f"{suggestion(name, names)}"
            )
        content[names.index(name)] = float(fraction) - average[names.index(name)]
    return content


@dataclass(frozen=True)
class NoiseOfRequest:
    """Batch noise of requested conditions.

    Attributes
    ----------
    model
        The generative model.
    request
        Whose noise each condition has.
    content
        (F,) what new batches contain, see `content_of`.
    """

    model: GenerativeModel
    request: RequestedNoise
    content: Tensor

    def draw(self, values: dict[str, Tensor], seed: int) -> Tensor:
        """η of each requested condition under one draw of the globals, (n, G).

        New batches are drawn from the prior given the batches that were measured: together, so that
        what they share (a laboratory, the realised mean) does not differ between them.
        """
        eta = values["eta"]
        rows = lambda index: torch.as_tensor(index, device=eta.device)  # noqa: E731
        batch, home, new = (rows(index)[:, None] for index in self.request[:3])
        out = torch.where(batch >= 0, eta[batch.clamp_min(0)[:, 0]], 0.0)
        if bool((home >= 0).any()):
            average = self.model.nesting.mean @ eta
            out = out + torch.where(home >= 0, average[home.clamp_min(0)[:, 0]], 0.0)
        if len(self.request.origin):
            drawn = self._new(values, rows(self.request.origin), seed)
            out = out + torch.where(new >= 0, drawn[new.clamp_min(0)[:, 0]], 0.0)
        return out

    def _new(self, values: dict[str, Tensor], origin: Tensor, seed: int) -> Tensor:
        model, scale = self.model, values["eta.scale"]
        common = values.get("eta.laboratory_scale", torch.zeros_like(scale))
        mean, covariance = new_batch_moments(
            model.nesting, values["eta.free"], scale, common, origin
        )
        generator = torch.Generator(device=scale.device).manual_seed(_STREAM + seed)
        noise = torch.randn(mean.shape, generator=generator, device=scale.device)
        root = torch.linalg.cholesky(covariance)  # (G, M, M)
        drawn = mean + torch.einsum("gij,jg->ig", root, noise)
        if model.has_content:
            drawn = drawn + self.content.to(scale) @ values["eta.content"]
        return drawn
