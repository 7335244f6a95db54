r"""The field of states, trained on its own once it is known where cells are.

While everything is learned at once, the states that a field has to explain still move, and the
field is behind them. Here the rest of the posterior is held, and of the ELBO per cell what is left
is

.. math:: \frac{1}{N} \sum_n E_q \log p(z_n \mid W, a, \sigma)
    - \frac{1}{N} KL(q(W, a, \sigma) \,\|\, p(W, a, \sigma)),

without counts or genes: a step costs little. With noise the density of a state is an integral over
the ways to it, which the ELBO estimates by one way; the mean over several is a tighter bound of the
same density (importance weighting, Burda et al. 2016).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from pyro import poutine
from torch import Tensor

from pyrocell._core.progress import progress
from pyrocell._core.random import seeded
from pyrocell.data.loader import CellDataset, batch_loader
from pyrocell.errors import NonFiniteError
from pyrocell.generative.model import GenerativeModel
from pyrocell.guide.guide import Guide

__all__ = ["EncodedCells", "negative_field_elbo", "refine_state_dynamics"]

_BATCH = 1024  # ways of a step, over all its cells
_BLOCK = 4096  # cells encoded at once
_DRAWS = 4  # of the globals, under which cells are encoded
_WAYS = 8  # by which a noisy field may have led to a state


@dataclass(frozen=True)
class EncodedCells:
    """Where cells are, under draws of the globals that do not belong to the field.

    Attributes
    ----------
    globals
        The draws.
    loc, scale
        (draws, N, d) mean and (N, d) standard deviation of q(z | x, globals).
    condition
        (N,) their conditions.
    """

    globals: list[dict[str, Tensor]]
    loc: Tensor
    scale: Tensor
    condition: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, guide: Guide, data: CellDataset, positions: np.ndarray, n: int) -> EncodedCells:
        """Encode cells at positions, a block at a time, under n draws of the globals."""
        draws, device = [guide.globals() for _ in range(n)], guide.mean_count.device
        locs, scales, conditions = [], [], []
        for block in batch_loader(data, positions, _BLOCK):
            cells = {name: value.to(device) for name, value in block.items()}
            labels = cells["condition"], cells["batch"], cells.get("covariates")
            seen = {"log_size": cells["log_size"]}
            found = [guide.encode(values, cells["x"], *labels, **seen) for values in draws]
            locs.append(torch.stack([loc for loc, _ in found]))
            scales.append(found[0][1])  # of the counts alone
            conditions.append(cells["condition"])
        return cls(draws, torch.cat(locs, 1), torch.cat(scales), torch.cat(conditions))

    def draw(self, n: int) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """One of the draws of the globals, states (n, d) of n cells at random, their conditions."""
        draw = int(torch.randint(len(self.globals), ()))
        rows = torch.randint(len(self.condition), (n,)).to(self.scale.device)
        loc, scale = self.loc[draw, rows], self.scale[rows]
        return self.globals[draw], loc + scale * torch.randn_like(loc), self.condition[rows]


def negative_field_elbo(
    model: GenerativeModel,
    guide: Guide,
    values: dict[str, Tensor],
    z: Tensor,
    condition: Tensor,
    ways: int = 1,
) -> Tensor:
    """One draw of what the field has in the negative ELBO per cell, nats.

    Parameters
    ----------
    model, guide
        Model and guide.
    values
        A draw of the globals; the field's own sites are drawn here.
    z, condition
        States (n, d) and conditions (n,) of cells.
    ways
        Ways by which a noisy field may have led to each state.
    """
    q = poutine.trace(guide.state_dynamics_sites).get_trace()
    p = poutine.trace(poutine.replay(model.state_dynamics_sites, q)).get_trace()
    values = values | {name: node["value"] for name, node in q.iter_stochastic_nodes()}
    if not model.dynamics.noisy:
        density = model.state_log_prob(values, z, condition)
    else:
        several = z.repeat(ways, 1), condition.repeat(ways)
        each = model.state_log_prob(values, *several, reversal=guide.reversal)
        density = each.reshape(ways, -1).logsumexp(0) - math.log(ways)
    return (q.log_prob_sum() - p.log_prob_sum()) / model.n_cells - density.mean()


def refine_state_dynamics(
    model: GenerativeModel,
    guide: Guide,
    data: CellDataset,
    positions: np.ndarray,
    steps: int,
    lr: float,
    seed: int,
    show: bool = False,
) -> bool:
    """Raise the ELBO in the parameters of the field alone; whether Ctrl-C has ended it early.

    A function of model, cells and seed: processes that all call it stay equal.

    Raises
    ------
    NonFiniteError
        If the ELBO becomes NaN or infinite.
    """
    parameters = [*model.motion.parameters(), *guide.state_dynamics_parameters()]
    optimiser = torch.optim.Adam(parameters, lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(1, steps))
    ways = _WAYS if model.dynamics.noisy else 1
    size = min(_BATCH // ways, len(positions))
    try:
        with seeded(guide.mean_count.device, "field", seed):
            cells = EncodedCells.of(guide, data, positions, _DRAWS)
            for step in progress(show)(range(steps), desc="Field"):
                loss = negative_field_elbo(model, guide, *cells.draw(size), ways)
                if not torch.isfinite(loss):
                    raise NonFiniteError(
                        f"training of the field stopped at step {step}: its ELBO is not finite; "
                        "lower global_lr of TrainingConfig",
                        site="X.z",
                    )
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
    except KeyboardInterrupt:
        return True
    finally:
        optimiser.zero_grad()
    return False
