"""Gaussian families the guide needs: low-rank along the decoder's axes, and Markov in time."""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from pyrocell.distributions._low_rank import low_rank_log_prob
from pyrocell.distributions.event_normal import Drawn, normal_log_prob

__all__ = ["GaussianWalk", "LowRankNormal", "LowRankRow", "MarkovLowRankNormal"]


class LowRankNormal(Drawn):
    """Rows of Gaussians over genes whose covariance is diagonal plus a part along given axes.

    value = loc + mix @ (scale * eps + (tau * u) @ axes), eps and u standard normal.

    Parameters
    ----------
    loc, scale : Tensor
        (J, G) mean and gene-wise standard deviation.
    axes : Tensor
        (d, G) axes of cell state (the loading of z); not differentiated through by the guide.
    tau : Tensor
        (J, d) standard deviation along each axis.
    mix : Tensor, optional
        (J, J) lower-triangular matrix correlating the rows (the layout's, for η).
    """

    support = constraints.independent(constraints.real, 2)

    def __init__(
        self, loc: Tensor, scale: Tensor, axes: Tensor, tau: Tensor, mix: Tensor | None = None
    ):
        self.loc, self.scale, self.axes, self.tau, self.mix = loc, scale, axes, tau, mix
        super().__init__(torch.Size(), loc.shape, validate_args=False)

    def _draw(self, sample_shape: torch.Size) -> tuple[Tensor, Tensor]:
        shape = sample_shape + self.loc.shape
        along = torch.randn(
            shape[:-1] + self.tau.shape[-1:], dtype=self.loc.dtype, device=self.loc.device
        )
        eps = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        noise = self.scale * eps + (self.tau * along) @ self.axes
        return self.loc + (noise if self.mix is None else self.mix @ noise), noise

    def _log_prob(self, value: Tensor) -> Tensor:
        deviation = value - self.loc
        if self.mix is not None:
            deviation = torch.linalg.solve_triangular(self.mix, deviation, upper=False)
        return self._log_prob_drawn(deviation)

    def _log_prob_drawn(self, noise: Tensor) -> Tensor:
        out = low_rank_log_prob(noise, self.scale, self.axes, self.tau).sum(-1)
        if self.mix is None:
            return out
        return out - self.loc.shape[-1] * self.mix.diagonal().log().sum()

    @property
    def mean(self) -> Tensor:
        return self.loc

    @property
    def variance(self) -> Tensor:
        rows = self.scale.square() + self.tau.square() @ self.axes.square()
        return rows if self.mix is None else self.mix.square() @ rows


class LowRankRow(LowRankNormal):
    """A single row of `LowRankNormal` with event shape (G,)."""

    def __init__(self, rows: LowRankNormal):
        super().__init__(rows.loc, rows.scale, rows.axes, rows.tau, rows.mix)
        self._event_shape = rows.loc.shape[-1:]

    def _draw(self, sample_shape: torch.Size) -> tuple[Tensor, Tensor]:
        value, noise = super()._draw(sample_shape)
        return value.squeeze(-2), noise

    def _log_prob(self, value: Tensor) -> Tensor:
        return super()._log_prob(value.unsqueeze(-2))

    @property
    def mean(self) -> Tensor:
        return super().mean.squeeze(-2)

    @property
    def variance(self) -> Tensor:
        return super().variance.squeeze(-2)


class GaussianWalk(TorchDistribution):
    """Prior of a gene-level residual over the measured times: a random walk per driver.

    v_1 ~ N(0, first_scale²), v_t ~ N(keep_t v_{t-1}, step_scale_t²); event shape (K, T, G).

    Parameters
    ----------
    first_scale : Tensor
        Broadcastable to (K, G), natural-log fold change.
    step_scale : Tensor
        (K, T - 1, G), natural-log fold change.
    keep : Tensor, optional
        (T - 1,) share kept from one time to the next; default 1, a random walk.
    """

    arg_constraints: dict = {}
    support = constraints.independent(constraints.real, 3)
    has_rsample = True

    def __init__(self, first_scale: Tensor, step_scale: Tensor, keep: Tensor | None = None):
        k, steps, g = step_scale.shape
        self.keep = step_scale.new_ones(steps) if keep is None else keep
        self._first, self.first_scale = first_scale, first_scale.expand(k, g)
        self.step_scale = step_scale
        super().__init__(torch.Size(), torch.Size((k, steps + 1, g)), validate_args=False)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        shape = torch.Size(sample_shape) + self.event_shape
        scale = torch.cat([self.first_scale[:, None], self.step_scale], 1)
        eps = torch.randn(shape, dtype=scale.dtype, device=scale.device)
        noise = (scale * eps).unbind(-2)
        values = [noise[0]]
        for keep, step in zip(self.keep, noise[1:], strict=True):
            values.append(keep * values[-1] + step)
        return torch.stack(values, -2)

    def log_prob(self, value: Tensor) -> Tensor:
        first = _log_prob_rows(value[..., 0, :], self._first, 2)
        if self.step_scale.shape[1] == 0:
            return first
        step = value[..., 1:, :] - self.keep[:, None] * value[..., :-1, :]
        return first + _log_prob_rows(step, self.step_scale, 3)

    def by_row(self, value: Tensor) -> Tensor:
        """Log density of each driver's walk (K, T, G), (K,)."""
        if self.step_scale.shape[1] == 0:
            return _CentredRows.apply(value.flatten(1), self._first)
        first = _CentredRows.apply(value[:, 0], self._first)
        step = value[:, 1:] - self.keep[:, None] * value[:, :-1]
        return first + _CentredRows.apply(step, self.step_scale)


class _CentredRows(torch.autograd.Function):
    """Log density under N(0, scale²) of each row of a value (n, ...), (n,)."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, scale: Tensor) -> Tensor:
        """The sums."""
        ctx.save_for_backward(value, scale)
        n_each = value[0].numel()
        square = (value / scale).square().reshape(len(value), -1).sum(1)
        if scale.dim() == value.dim():
            log = scale.log().reshape(len(value), -1).sum(1)
        else:
            log = scale.log().expand(value.shape[1:]).sum()
        return -0.5 * (square + n_each * math.log(2 * math.pi)) - log

    @staticmethod
    def backward(ctx: Any, weight: Tensor) -> tuple[Tensor | None, ...]:
        """Gradient for value and scale."""
        value, scale = ctx.saved_tensors
        weight = weight.reshape(-1, *(1 for _ in value.shape[1:]))
        slope = value * (-weight / scale.square())
        if not ctx.needs_input_grad[1]:
            return slope, None
        return slope, (-(slope * value + weight) / scale).sum_to_size(scale.shape)


def _log_prob_rows(value: Tensor, scale: Tensor, n_event: int) -> Tensor:
    """Log density of N(0, scale²) summed over the last dimensions."""
    if value.dim() == n_event:
        return normal_log_prob(value, None, scale)
    return torch.stack([_log_prob_rows(one, scale, n_event) for one in value])


class MarkovLowRankNormal(Drawn):
    """Guide of a gene-level residual: Markov in time, low-rank along the axes of cell state.

    v_t = m_t + phi_t (v_{t-1} - m_{t-1}) + scale_t eps + (tau_t u) A; nodes after a driver's last
    measured time follow the prior's step exactly (keep_t v_{t-1} + prior_step_t eps), so that
    nothing is claimed about what was not seen.

    Parameters
    ----------
    loc, scale : Tensor
        (K, T, G).
    axes : Tensor
        (d, G).
    tau : Tensor
        (K, T, d).
    phi : Tensor
        (K, T); the first column is not used.
    unseen : Tensor
        (K, T) bool; True after the last measured time of a driver.
    prior_step : Tensor
        (K, T - 1, G) standard deviation of the prior's steps; not differentiated through, and not
        read where every node was seen.
    prior_keep : Tensor, optional
        (T - 1,) share that the prior keeps; default 1.
    any_unseen : list of bool, optional
        Columns of `unseen` that hold something true, where that is known; default: looked up.
    """

    arg_constraints: dict = {}
    support = constraints.independent(constraints.real, 3)
    has_rsample = True

    def __init__(
        self,
        loc: Tensor,
        scale: Tensor,
        axes: Tensor,
        tau: Tensor,
        phi: Tensor,
        unseen: Tensor,
        prior_step: Tensor,
        prior_keep: Tensor | None = None,
        any_unseen: list[bool] | None = None,
    ):
        self.loc, self.scale, self.axes, self.tau, self.phi = loc, scale, axes, tau, phi
        self.unseen, self.prior_step = unseen, prior_step
        steps = prior_step.shape[1]
        self.prior_keep = prior_step.new_ones(steps) if prior_keep is None else prior_keep
        self._any_unseen = unseen.any(0).tolist() if any_unseen is None else any_unseen
        super().__init__(torch.Size(), loc.shape, validate_args=False)

    @property
    def mean(self) -> Tensor:
        nodes = [self.loc[:, 0]]
        for t in range(1, self.loc.shape[1]):
            carried = self.prior_keep[t - 1] * nodes[-1]
            nodes.append(torch.where(self.unseen[:, t, None], carried, self.loc[:, t]))
        return torch.stack(nodes, 1)

    def _draw(self, sample_shape: torch.Size) -> tuple[Tensor, Tensor]:
        if len(sample_shape):
            n = math.prod(sample_shape)
            draws = torch.stack([self._draw(torch.Size())[0] for _ in range(n)])
            return draws.reshape(sample_shape + self.event_shape), draws
        eps = torch.randn_like(self.loc)
        along = (self.tau * torch.randn_like(self.tau)).flatten(0, 1)
        noise = torch.addmm((self.scale * eps).flatten(0, 1), along, self.axes).view_as(eps)
        if self.loc.shape[1] == 1:
            return self.loc + noise, noise
        values = [self.loc[:, 0] + noise[:, 0]]
        for t in range(1, self.loc.shape[1]):
            previous = values[-1]
            value = (
                self.loc[:, t]
                + self.phi[:, t, None] * (previous - self.loc[:, t - 1])
                + noise[:, t]
            )
            if self._any_unseen[t]:
                step = self.prior_keep[t - 1] * previous + self.prior_step[:, t - 1] * eps[:, t]
                value = torch.where(self.unseen[:, t, None], step, value)
            values.append(value)
        return torch.stack(values, 1), noise

    def _noise(self, value: Tensor) -> Tensor:
        expected = self.loc
        if self.loc.shape[1] > 1:
            carried = self.phi[:, 1:, None] * (value[:, :-1] - self.loc[:, :-1])
            expected = torch.cat([self.loc[:, :1], self.loc[:, 1:] + carried], 1)
        return value - expected

    def _log_prob(self, value: Tensor) -> Tensor:
        return self._nodes(self._noise(value), value).sum()

    def _log_prob_drawn(self, noise: Tensor) -> Tensor:
        assert self._last is not None
        return self._nodes(noise, self._last[0]).sum()

    def _by_row(self, noise: Tensor, value: Tensor) -> Tensor:
        return self._nodes(noise, value).sum(1)

    def _nodes(self, deviation: Tensor, value: Tensor) -> Tensor:
        """Log density at each node given the one before, (K, T)."""
        rows = low_rank_log_prob(deviation, self.scale, self.axes, self.tau)  # (K, T)
        if any(self._any_unseen):
            change = value[:, 1:] - self.prior_keep[:, None] * value[:, :-1]
            square = (change / self.prior_step).square() + math.log(2 * math.pi)
            step = -(0.5 * square + self.prior_step.log()).sum(-1)
            step = torch.cat([torch.zeros_like(rows[:, :1]), step], 1)
            rows = torch.where(self.unseen, step, rows)
        return rows
