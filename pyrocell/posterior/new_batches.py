"""η of requested conditions: that of measured batches, and draws for batches never measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import pandas as pd
import torch
from sklearn.covariance import ledoit_wolf_shrinkage
from torch import Tensor

from pyrocell._core.messages import did_you_mean
from pyrocell._core.random import generator
from pyrocell.errors import ScreenError, UnknownLabelError
from pyrocell.generative.model import GenerativeModel
from pyrocell.noise.content import average_content, content_names
from pyrocell.noise.laboratories import new_batch_moments
from pyrocell.posterior.draws import Posterior
from pyrocell.screen.requests import BatchRequest, encode_noise
from pyrocell.screen.screen import Screen

__all__ = ["RequestedBatchNoise", "content_of", "requested_batch_noise", "shared_axes"]

_FEWEST_CONTRASTS = 3  # from which genes are seen to vary together


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
    ScreenError
        If a fraction is not between 0 and 1.
    """
    names, average = content_names(screen), average_content(screen)
    content = torch.zeros_like(average)
    for name, fraction in (stated or {}).items():
        if name not in names:
            raise UnknownLabelError(
                f'batch_content has "{name}", by which batches of the screen do not differ'
                f"{did_you_mean(name, names)}"
            )
        if not 0 <= fraction <= 1:
            raise ScreenError(f'batch_content["{name}"]={fraction} is a fraction, from 0 to 1')
        content[names.index(name)] = float(fraction) - average[names.index(name)]
    return content


def shared_axes(model: GenerativeModel, values: dict[str, Tensor]) -> Tensor:
    """Axes along which genes vary together from batch to batch, such as stress, (q, G).

    The correlation of genes in the realised contrasts, shrunk towards independence as far as so few
    can tell (Ledoit and Wolf), is A'A plus a diagonal that makes every variance 1; this is A.

    Parameters
    ----------
    values
        Posterior means of the sites.
    """
    contrasts = (values["eta.free"] / model.noise.scale(values)).detach()  # (B − 1, G)
    n = len(contrasts)
    if n < _FEWEST_CONTRASTS:
        return contrasts[:0]
    alone = ledoit_wolf_shrinkage(contrasts.cpu().numpy().astype(float), assume_centered=True)
    axes = contrasts * ((1 - alone) / n) ** 0.5
    return axes / (axes.square().sum(0) + alone).sqrt()


@dataclass(frozen=True)
class RequestedBatchNoise:
    """Batch noise of requested conditions.

    Attributes
    ----------
    model
        The generative model.
    request
        Whose noise each condition has.
    content
        (F,) what new batches contain, see `content_of`; None where that does not matter.
    shared
        (q, G) axes along which genes of a new batch vary together, see `shared_axes`; None: each
        on its own. How far a gene varies does not depend on them.
    """

    model: GenerativeModel
    request: BatchRequest
    content: Tensor | None = None
    shared: Tensor | None = None

    def of_rows(self, rows: slice) -> RequestedBatchNoise:
        """That of some of the conditions; new batches are the same ones."""
        batch, laboratory, new, origin = self.request
        return replace(self, request=BatchRequest(batch[rows], laboratory[rows], new[rows], origin))

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
            average = self.model.noise.nesting.mean @ eta
            out = out + torch.where(home >= 0, average[home.clamp_min(0)[:, 0]], 0.0)
        if len(self.request.origin):
            drawn = self._new(values, rows(self.request.origin), seed)
            out = out + torch.where(new >= 0, drawn[new.clamp_min(0)[:, 0]], 0.0)
        return out

    def _new(self, values: dict[str, Tensor], origin: Tensor, seed: int) -> Tensor:
        model, scale = self.model, values["eta.scale"]
        common = values.get("eta.laboratory_scale", torch.zeros_like(scale))
        mean, covariance = new_batch_moments(
            model.noise.nesting, values["eta.free"], scale, common, origin
        )
        stream = generator(scale.device, "new batches", seed)
        normal = lambda n: torch.randn(len(mean), n, generator=stream, device=scale.device)  # noqa: E731
        noise = normal(mean.shape[1])
        if self.shared is not None:
            own = (1 - self.shared.square().sum(0)).clamp_min(0).sqrt()
            noise = own * noise + normal(len(self.shared)) @ self.shared
        root = torch.linalg.cholesky(covariance)  # (G, M, M)
        drawn = mean + torch.einsum("gij,jg->ig", root, noise)
        if self.content is not None:
            drawn = drawn + self.content.to(scale) @ values["eta.content"]
        return drawn


def requested_batch_noise(
    posterior: Posterior, screen: Screen, frame: pd.DataFrame, stated: Mapping[str, float] | None
) -> RequestedBatchNoise:
    """Batch noise of the conditions of a table; see `encode_noise` and `content_of`.

    Raises
    ------
    ScreenError
        If contents are stated of batches whose noise does not depend on them.
    """
    model, request = posterior.model, encode_noise(screen.vocabulary, frame)
    if stated and not model.noise.has_content:
        raise ScreenError(
            "batch_content was given, but batch noise of this model does not depend on it; build "
            "the model with content_dependent_noise=True, where batches differ in content"
        )
    if not len(request.origin):
        return RequestedBatchNoise(model, request)
    content = content_of(screen, stated) if model.noise.has_content else None
    return RequestedBatchNoise(model, request, content, shared_axes(model, posterior.mean()))
