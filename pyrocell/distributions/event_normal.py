"""Normal families for sites that are one event of any shape, with few and wide operations.

A guide evaluates the density of the value it has just drawn. There the deviation is the noise
that was drawn, in units of the width, and does not depend on the location: the density needs no
division, and its gradient is the total one, along value and parameters together.
"""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

__all__ = [
    "Drawn",
    "EventLogNormal",
    "EventMultivariateNormal",
    "EventNormal",
    "broadcast",
    "log_prob_by_row",
    "normal_log_prob",
]

_LOG_2PI = math.log(2 * math.pi)


class _NormalLogProb(torch.autograd.Function):
    """Σ log N(value; loc, scale²) over all entries; see `normal_log_prob`."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, loc: Tensor | None, scale: Tensor) -> Tensor:
        """The sum, a scalar."""
        ctx.save_for_backward(value, loc, scale)
        deviation = value if loc is None else value - loc
        if scale.numel() > 1:
            deviation = deviation / scale
        square = deviation.square().sum()
        if scale.numel() == 1:
            square = square / scale.square().reshape(())
        repeats = value.numel() / max(scale.numel(), 1)
        return -0.5 * (square + value.numel() * _LOG_2PI) - repeats * scale.log().sum()

    @staticmethod
    def backward(ctx: Any, weight: Tensor) -> tuple[Tensor | None, ...]:
        """Gradient for value, loc and scale."""
        value, loc, scale = ctx.saved_tensors
        needs_value, needs_loc, needs_scale = ctx.needs_input_grad
        deviation = value if loc is None else value - loc
        slope = deviation * (-weight / scale.square())
        for_loc = -slope.sum_to_size(loc.shape) if needs_loc and loc is not None else None
        for_scale = None
        if needs_scale:
            square = (slope * deviation).sum_to_size(scale.shape)
            repeats = value.numel() / max(scale.numel(), 1)  # both may be empty
            for_scale = -(square + weight * repeats) / scale
        return slope if needs_value else None, for_loc, for_scale


def broadcast(*shapes: torch.Size) -> torch.Size:
    """torch.broadcast_shapes, which takes 0.1 ms, where one look does not answer."""
    longest = max(shapes, key=len)
    if all(shape in (longest, torch.Size()) for shape in shapes):
        return longest
    return torch.broadcast_shapes(*shapes)


def normal_log_prob(value: Tensor, loc: Tensor | None, scale: Tensor) -> Tensor:
    """Log density of all entries of `value`, summed; loc None is zero.

    Entries of `loc` and `scale` broadcast to those of `value`.
    """
    return _NormalLogProb.apply(value, loc, scale)


class Drawn(TorchDistribution):
    """A family without batch shape that remembers its last draw and the noise behind it.

    Subclasses implement `_draw`, returning a value and its noise, `_log_prob` for any value and
    `_log_prob_drawn` for the value drawn last.
    """

    arg_constraints: dict = {}
    has_rsample = True
    has_enumerate_support = False
    _last: tuple[Tensor, Tensor] | None = None

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        value, noise = self._draw(torch.Size(sample_shape))
        self._last = None if len(sample_shape) else (value, noise)
        return value

    def log_prob(self, value: Tensor) -> Tensor:
        if self._last is not None and value is self._last[0]:
            return self._log_prob_drawn(self._last[1])
        return self._log_prob(value)

    def by_row(self, value: Tensor) -> Tensor:
        """Log density of each row of an event (n, ...), (n,)."""
        if self._last is not None and value is self._last[0]:
            return self._by_row(self._last[1], value)
        return self._by_row(self._noise(value), value)

    def _by_row(self, noise: Tensor, value: Tensor) -> Tensor:
        """Log density of each row, (n,), from the noise behind the value."""
        raise NotImplementedError

    def _noise(self, value: Tensor) -> Tensor:
        """Noise behind any value, as `_draw` returns it."""
        raise NotImplementedError

    def _draw(self, sample_shape: torch.Size) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def _log_prob(self, value: Tensor) -> Tensor:
        raise NotImplementedError

    def _log_prob_drawn(self, noise: Tensor) -> Tensor:
        raise NotImplementedError


class EventNormal(Drawn, dist.Independent):
    """Independent normals, one event of the shape that loc and scale broadcast to.

    Parameters
    ----------
    loc, scale
        Mean and standard deviation; any shapes that broadcast. loc None is zero.
    shape
        Of the event, where it is not that of loc and scale.
    """

    _validate_args = False  # Pyro would ask the entries' distribution

    def __init__(self, loc: Tensor | None, scale: Tensor, shape: tuple[int, ...] | None = None):
        self.loc, self.scale = loc, scale
        if shape is None:
            shape = scale.shape if loc is None else broadcast(loc.shape, scale.shape)
        TorchDistribution.__init__(self, torch.Size(), torch.Size(shape), validate_args=False)

    @property
    def reinterpreted_batch_ndims(self) -> int:
        """Dimensions of the event."""
        return len(self.event_shape)

    @property
    def base_dist(self) -> dist.Normal:
        """The distribution of the entries, without events."""
        return dist.Normal(self._centre, self.scale.expand(self.event_shape))

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> dist.Independent:
        """Plain Pyro distribution over a larger batch."""
        return self.base_dist.to_event(len(self.event_shape)).expand(batch_shape)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.real, len(self.event_shape))

    @property
    def _centre(self) -> Tensor:
        loc = self.scale.new_zeros(()) if self.loc is None else self.loc
        return loc.expand(self.event_shape)

    @property
    def mean(self) -> Tensor:
        return self._centre

    @property
    def variance(self) -> Tensor:
        return self.scale.square().expand(self.event_shape)

    def _draw(self, sample_shape: torch.Size) -> tuple[Tensor, Tensor]:
        shape = sample_shape + self.event_shape
        noise = torch.randn(shape, dtype=self.scale.dtype, device=self.scale.device)
        value = self.scale * noise
        return value if self.loc is None else self.loc + value, noise

    def _log_prob(self, value: Tensor) -> Tensor:
        n_event = len(self.event_shape)
        if value.dim() == n_event:
            return normal_log_prob(value.expand(self.event_shape), self.loc, self.scale)
        deviation = (value if self.loc is None else value - self.loc) / self.scale
        each = -0.5 * deviation.square() - self.scale.log() - 0.5 * _LOG_2PI
        return each.flatten(each.dim() - n_event).sum(-1) if n_event else each

    def _log_prob_drawn(self, noise: Tensor) -> Tensor:
        repeats = noise.numel() / max(self.scale.numel(), 1)
        constant = 0.5 * (noise.square().sum() + noise.numel() * _LOG_2PI)
        return -repeats * self.scale.log().sum() - constant

    def _noise(self, value: Tensor) -> Tensor:
        return (value if self.loc is None else value - self.loc) / self.scale

    def _by_row(self, noise: Tensor, value: Tensor) -> Tensor:
        each = -0.5 * noise.square() - self.scale.log() - 0.5 * _LOG_2PI
        return each.expand(self.event_shape).reshape(len(value), -1).sum(1)


class EventLogNormal(EventNormal):
    """exp of :class:`EventNormal`."""

    @property
    def base_dist(self) -> dist.LogNormal:
        """The distribution of the entries, without events."""
        return dist.LogNormal(self._centre, self.scale.expand(self.event_shape))

    @property
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.positive, len(self.event_shape))

    @property
    def mean(self) -> Tensor:
        return (super().mean + self.scale.square() / 2).exp()

    @property
    def variance(self) -> Tensor:
        return self.scale.square().expm1() * self.mean.square()

    def _draw(self, sample_shape: torch.Size) -> tuple[Tensor, Tensor]:
        log, noise = super()._draw(sample_shape)
        self._log = log
        return log.exp(), noise

    def _log_prob(self, value: Tensor) -> Tensor:
        log, n_event = value.log(), len(self.event_shape)
        total = log.flatten(log.dim() - n_event).sum(-1) if n_event else log
        return super()._log_prob(log) - total

    def _log_prob_drawn(self, noise: Tensor) -> Tensor:
        return super()._log_prob_drawn(noise) - self._log.sum()

    def _noise(self, value: Tensor) -> Tensor:
        return super()._noise(value.log())

    def _by_row(self, noise: Tensor, value: Tensor) -> Tensor:
        return super()._by_row(noise, value) - value.log().reshape(len(value), -1).sum(1)


class EventMultivariateNormal(Drawn):
    """Rows of multivariate normals, (n, D), as one event.

    Parameters
    ----------
    loc, scale_tril
        (n, D) means and (n, D, D) Cholesky factors.
    """

    support = constraints.independent(constraints.real, 2)

    def __init__(self, loc: Tensor, scale_tril: Tensor):
        self.loc, self.scale_tril = loc, scale_tril
        super().__init__(torch.Size(), loc.shape, validate_args=False)

    @property
    def mean(self) -> Tensor:
        return self.loc

    @property
    def variance(self) -> Tensor:
        return self.scale_tril.square().sum(-1)

    def _draw(self, sample_shape: torch.Size) -> tuple[Tensor, Tensor]:
        shape = sample_shape + self.event_shape
        noise = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        return self.loc + (self.scale_tril @ noise[..., None])[..., 0], noise

    def _log_prob(self, value: Tensor) -> Tensor:
        return self._density(self._noise(value))

    def _log_prob_drawn(self, noise: Tensor) -> Tensor:
        return self._density(noise)

    def _density(self, noise: Tensor) -> Tensor:
        log_det = self.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum()
        constant = 0.5 * self.event_shape.numel() * _LOG_2PI
        return -0.5 * noise.square().sum((-2, -1)) - log_det - constant

    def _noise(self, value: Tensor) -> Tensor:
        deviation = (value - self.loc)[..., None]
        return torch.linalg.solve_triangular(self.scale_tril, deviation, upper=False)[..., 0]

    def _by_row(self, noise: Tensor, value: Tensor) -> Tensor:
        log_det = self.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return -0.5 * (noise.square() + _LOG_2PI).sum(-1) - log_det


def log_prob_by_row(law: TorchDistribution, value: Tensor) -> Tensor:
    """Log density of each row of a value (n, ...) whose rows are independent, (n,)."""
    if hasattr(law, "by_row"):
        return law.by_row(value)
    return law.base_dist.log_prob(value).reshape(len(value), -1).sum(1)
