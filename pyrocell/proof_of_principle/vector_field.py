r"""Neural vector fields of many seeds at once, and the flow of each: W of a gene-space neural ODE.

A network gives the velocity of a profile x under the drivers d (perturbations and media, 0/1) that
its cells have met,

.. math:: dx/ds = \mathcal G(x, d), \qquad W(x, t) = x + \int_0^t \mathcal G(x(s), d)\,ds,

which is eq. 25 without the clock: eqs. 3, 7 and 8 ask W for W(W(x, s), t) = W(x, s + t), and a
velocity that depends on s beside x breaks it. Every tensor has a leading axis of seeds, and no
operation mixes seeds or rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchdiffeq import odeint

__all__ = ["VectorField", "flow", "initial_field", "velocity"]


class VectorField(NamedTuple):
    """Parameters of a multilayer perceptron with tanh between its layers, one for each of S seeds.

    Attributes
    ----------
    weights
        Of each layer, (S, in, out); genes in first, genes out last.
    biases
        Of each layer, (S, 1, out).
    drive
        (S, D, H): what each driver adds in the first layer.
    """

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]
    drive: Tensor

    def tensors(self) -> list[Tensor]:
        """All parameters."""
        return [*self.weights, *self.biases, self.drive]

    def detached(self) -> VectorField:
        """A copy of these numbers without gradients."""
        weights, biases = (tuple(t.detach() for t in part) for part in self[:2])
        return VectorField(weights, biases, self.drive.detach())


def initial_field(
    seeds: Sequence[int], n_genes: int, n_drivers: int, n_hidden: int, n_layers: int
) -> VectorField:
    """Draw the parameters of each seed from a generator of its own, as `torch.nn.Linear` does.

    Parameters
    ----------
    seeds
        (S,) seeds.
    n_genes, n_drivers
        G and D; drivers are further inputs of the first layer.
    n_hidden, n_layers
        Width, and number of hidden layers.
    """
    sizes = [(n_genes, n_hidden), *[(n_hidden, n_hidden)] * (n_layers - 1), (n_hidden, n_genes)]
    drawn = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(int(seed))
        parts = []
        for i, (n_in, n_out) in enumerate(sizes):
            rows = n_in + (n_drivers if i == 0 else 0)
            both = torch.rand(rows + 1, n_out, generator=generator)
            parts.append((2 * both - 1) / math.sqrt(rows))
        drawn.append(parts)
    layers = [torch.stack(layer) for layer in zip(*drawn)]  # (S, in + 1, out), bias in the last row
    return VectorField(
        weights=tuple(w[:, :n_in].clone() for w, (n_in, _) in zip(layers, sizes)),
        biases=tuple(w[:, -1:].clone() for w in layers),
        drive=layers[0][:, n_genes:-1].clone(),
    )


def velocity(field: VectorField, x: Tensor, driven: Tensor) -> Tensor:
    """G(x, d): velocity of profiles.

    Parameters
    ----------
    field
        Parameters.
    x
        (S, R, G) profiles.
    driven
        (S, R, H): what their drivers add in the first layer, with its bias.
    """
    hidden = torch.tanh(torch.baddbmm(driven, x, field.weights[0]))
    for weight, bias in zip(field.weights[1:-1], field.biases[1:-1]):
        hidden = torch.tanh(torch.baddbmm(bias, hidden, weight))
    return torch.baddbmm(field.biases[-1], hidden, field.weights[-1])


def flow(field: VectorField, start: Tensor, drivers: Tensor, times: Tensor, step: float) -> Tensor:
    """W(x, t) at several t, by RK4 in steps that depend on nothing but their size.

    Parameters
    ----------
    field
        Parameters.
    start
        (R, G) or (S, R, G) profiles at time zero.
    drivers
        (R, D) 0/1.
    times
        (T,) durations ≥ 0 in float64, in increasing order.
    step
        Of the solver, in the same unit. Times between two steps are interpolated by a cubic.

    Returns
    -------
    Tensor, (T, S, R, G). W(x, 0) is x itself.
    """
    x = start.expand(len(field.drive), -1, -1)
    driven = field.biases[0] + drivers @ field.drive  # (S, R, H)
    last = float(times[-1])
    n_steps = math.ceil(last / step - 1e-6)
    if n_steps == 0:
        return x.expand(len(times), -1, -1, -1)
    # In units of the step, in float64: the grid is whole numbers, whatever times are asked for.
    at = times / step
    whole = at.round()
    at = torch.where((at - whole).abs() < 1e-6, whole, at)
    zero, end = at.new_zeros(1), at.new_full((1,), float(n_steps))
    grid, place = torch.unique(torch.cat([zero, at, end]), return_inverse=True)
    path = odeint(
        lambda _, profile: step * velocity(field, profile, driven),
        x,
        grid,
        method="rk4",
        options={"step_size": 1.0, "interp": "cubic"},
    )
    return path[place[1:-1]]
