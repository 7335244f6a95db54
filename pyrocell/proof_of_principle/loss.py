"""Eqs. 5 and 9 on the paths of a flow, and their minimum for many seeds at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyrocell._core.messages import join_names
from pyrocell.errors import NonFiniteError
from pyrocell.proof_of_principle.vector_field import VectorField, flow

__all__ = ["PathLoss", "minimise"]


@dataclass(frozen=True)
class PathLoss:
    """Paths of the flow, and which point of which path each measured condition is.

    Attributes
    ----------
    start, drivers
        (R, G) and (R, D) of each path; the last `n_steady` are those of eq. 9, which are to stay
        where they start.
    n_steady
        |S|.
    times, step
        (T,) float64, the screen's, and the solver's step.
    row, time_index, target
        (C,) path and index of the time of each condition, and its level (C, G).
    seen, out
        Conditions in the loss, and held out.
    """

    start: Tensor
    drivers: Tensor
    n_steady: int
    times: Tensor
    step: float
    row: Tensor
    time_index: Tensor
    target: Tensor
    seen: Tensor
    out: Tensor

    def errors(self, field: VectorField) -> tuple[Tensor, Tensor, Tensor]:
        """(S,) mean squares: of conditions seen, of eq. 9, of those held out; NaN where none.

        Eq. 9 waits for each of the screen's times.
        """
        path = flow(field, self.start, self.drivers, self.times, self.step)  # (T, S, R, G)
        reached = path[self.time_index, :, self.row]  # (C, S, G)
        square = (reached - self.target[:, None]).square().mean(-1)  # (C, S)
        left_out = square[self.out].detach().mean(0)
        if not self.n_steady:
            return square[self.seen].mean(0), torch.full_like(left_out, torch.nan), left_out
        moved = path[:, :, -self.n_steady :] - self.start[-self.n_steady :]
        return square[self.seen].mean(0), moved.square().mean((0, 2, 3)), left_out

    def total(self, loss: Tensor, moved: Tensor, weight: float) -> Tensor:
        """(S,) eq. 5, and eq. 9 times its weight, per condition seen."""
        return loss + weight * moved * self.n_steady / len(self.seen) if self.n_steady else loss


def minimise(
    task: PathLoss,
    field: VectorField,
    seeds: Sequence[int],
    max_epochs: int,
    learning_rate: float,
    weight: float,
    progress_bar: bool,
) -> tuple[Tensor, VectorField]:
    """Take steps of Adam from the parameters of each seed.

    Returns
    -------
    (max_epochs + 1, 3, S) errors before each step and after the last, and the parameters then.

    Raises
    ------
    NonFiniteError
        If a seed's loss becomes NaN or infinite.
    """
    optimiser = torch.optim.Adam([t.requires_grad_() for t in field.tensors()], lr=learning_rate)
    rows = []
    for epoch in tqdm(range(max_epochs + 1), disable=not progress_bar):
        last = epoch == max_epochs
        with torch.set_grad_enabled(not last):
            loss, moved, left_out = task.errors(field)
            total = task.total(loss, moved, weight)
        rows.append(torch.stack([loss, moved, left_out]).detach())
        _check_finite(total, seeds, epoch)
        if not last:
            optimiser.zero_grad()
            total.sum().backward()  # seeds share no parameter: each gets its own gradient
            optimiser.step()
    return torch.stack(rows), field.detached()


def _check_finite(total: Tensor, seeds: Sequence[int], epoch: int) -> None:
    bad = [seed for seed, fine in zip(seeds, torch.isfinite(total).tolist()) if not fine]
    if bad:
        raise NonFiniteError(
            f"the loss of seed {join_names(bad)} is not finite at epoch {epoch}; lower "
            f"learning_rate, "
            "or raise n_steps"
        )
