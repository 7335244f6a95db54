"""What a dynamics is: how a response unfolds beside, or beyond, relaxation to a plateau."""

from __future__ import annotations

from torch import Tensor, nn
from torch.distributions import Distribution

from pyrocell.distributions import Start
from pyrocell.screen.conditions import Conditions

__all__ = ["DYNAMICS", "Dynamics", "register"]


class Dynamics(nn.Module):
    """How a response unfolds in time; as it stands, relaxation to a plateau.

    Derive from it, and make it known by `pyrocell.operators.dynamics.register(name, dynamics)`; the
    model is then built with ``PyroCell(adata, dynamics=name)``. It is made with the keywords
    `n_axes` (axes D of a response) and `reference_time` (at which effects are stated). Point
    parameters are `nn.Parameter` of it.

    Attributes
    ----------
    relaxes
        Whether rates of responses are sites; False: a response is there at once.
    integrated
        "responses" or "states" where W is integrated beside the closed form; "" where it is not.
    noisy
        Whether states are driven by noise.
    gene_level
        Whether what single genes do is drawn by the Gibbs sampler, which knows relaxation alone.
    dims
        Names of the dimensions of each site of its own, for ArviZ.
    """

    relaxes: bool = True
    integrated: str = ""
    noisy: bool = False
    gene_level: bool = False
    dims: dict[str, tuple[str, ...]] = {}

    def __init__(self, n_axes: int, reference_time: float):
        super().__init__()
        self.n_axes, self.reference_time = n_axes, reference_time

    def priors(self) -> dict[str, Distribution]:
        """Prior of each site of its own, by name, "W." first; events, no batch dimensions."""
        return {}

    def starting_values(self) -> dict[str, Start]:
        """Where factors start, by site; one left out starts at the mean of its prior."""
        return {}

    def displace(self, values: dict[str, Tensor], y: Tensor, conditions: Conditions) -> Tensor:
        """Displacement (C, D) of the cells of conditions.

        Parameters
        ----------
        values
            Global sites, a joint draw.
        y
            (C, D) what relaxation makes of it.
        conditions
            Who carries what, for how long, (C, ...). W(X, 0) = X: nothing is to be added before
            anything was done.
        """
        return y


class Relaxation(Dynamics):
    """To a plateau, at a rate of its own for every driver (eq. 3)."""

    gene_level = True


class AtOnce(Dynamics):
    """A response is there at any time above zero (App. D.1)."""

    relaxes, gene_level = False, True


class NeuralODE(Dynamics):
    """Production and decay beside the drive (eq. 25)."""

    integrated = "responses"


class Flow(Dynamics):
    """Resting states move along a field (App. C.1)."""

    integrated = "states"


class NoisyFlow(Flow):
    """Resting states move along a field and are driven by noise."""

    noisy = True


DYNAMICS: dict[str, type[Dynamics]] = {
    "none": AtOnce,
    "relaxation": Relaxation,
    "node": NeuralODE,
    "flow": Flow,
    "sde": NoisyFlow,
}


def register(name: str, dynamics: type[Dynamics]) -> None:
    """Make a dynamics known as `PyroCell(dynamics=name)`."""
    DYNAMICS[name] = dynamics
