"""Distributions of states that move: carried along a flow, or by a chain of noisy steps."""

from __future__ import annotations

from collections.abc import Callable

import torch
from pyro.distributions import TorchDistribution
from torch import Size, Tensor
from torch.distributions import Normal, constraints

__all__ = ["GaussianChain", "TransportedNormal"]

Carry = Callable[[Tensor, bool], tuple[Tensor, Tensor]]  # states, back? → states, log |∂new/∂old|
Transition = Callable[
    [Tensor, int], tuple[Tensor, Tensor]
]  # states, step → mean and sd of the next


class TransportedNormal(TorchDistribution):
    """Normal states carried along a flow; their density by change of variables.

    Parameters
    ----------
    loc, scale
        Of states at the start; (n, d) or broadcasting to it.
    carry
        Takes states (n, d) to the end of their way, or back to its start.
    """

    arg_constraints: dict = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, loc: Tensor, scale: Tensor, carry: Carry):
        self.loc, self.scale = torch.broadcast_tensors(loc, scale)
        self._carry = carry
        super().__init__(self.loc.shape[:-1], self.loc.shape[-1:], validate_args=False)

    def rsample(self, sample_shape: Size = Size()) -> Tensor:
        """States at the end."""
        if len(sample_shape):
            raise NotImplementedError("draw once for each cell")
        start = self.loc + self.scale * torch.randn_like(self.loc)
        return self._carry(start, False)[0]

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of states at the end, (n,)."""
        start, log_det = self._carry(value, True)
        return Normal(self.loc, self.scale).log_prob(start).sum(-1) + log_det


class GaussianChain(TorchDistribution):
    """States x_0, x_1, ... of cells, each normal given the one before; event (length, d).

    Parameters
    ----------
    loc, scale
        Of the first state; (n, d) or broadcasting to it.
    transition
        Mean and standard deviation of the state after step i.
    length
        States.
    backwards
        The value lists the last state first: a chain that runs from an end to a start.
    """

    arg_constraints: dict = {}
    support = constraints.independent(constraints.real, 2)
    has_rsample = True

    def __init__(
        self,
        loc: Tensor,
        scale: Tensor,
        transition: Transition,
        length: int,
        backwards: bool = False,
    ):
        self.loc, self.scale = torch.broadcast_tensors(loc, scale)
        self._transition, self._backwards = transition, backwards
        n, d = self.loc.shape
        super().__init__(Size((n,)), Size((length, d)), validate_args=False)

    def rsample(self, sample_shape: Size = Size()) -> Tensor:
        """States in the order of the value."""
        if len(sample_shape):
            raise NotImplementedError("draw once for each cell")
        states = [self.loc + self.scale * torch.randn_like(self.loc)]
        for i in range(self.event_shape[0] - 1):
            loc, scale = self._transition(states[-1], i)
            states.append(loc + scale * torch.randn_like(loc))
        return torch.stack(states[::-1] if self._backwards else states, 1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of whole chains, (n,)."""
        states = value.flip(1) if self._backwards else value
        total = Normal(self.loc, self.scale).log_prob(states[:, 0]).sum(-1)
        for i in range(self.event_shape[0] - 1):
            step = Normal(*self._transition(states[:, i], i))
            total = total + step.log_prob(states[:, i + 1]).sum(-1)
        return total
