"""What is expected of populations: cells at rest carried to conditions, and moments of counts."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pyrocell._core.random import generator, seeded
from pyrocell.data.loader import CellDataset
from pyrocell.generative.model import GenerativeModel
from pyrocell.generative.state_dynamics import invert_path, propagate
from pyrocell.guide.guide import Guide
from pyrocell.operators.dynamics.flow import NOISY_STEPS, Segment, StateField, check_steps
from pyrocell.screen.conditions import Conditions

__all__ = ["carried_states", "moments", "resting_cells", "resting_states", "starting_states"]

_BLOCK_BYTES = 2**26  # with some eight tables of a quarter of it each
_POPULATION = 500


def resting_cells(data: CellDataset, model: GenerativeModel, seed: int) -> dict[str, Tensor]:
    """Some unperturbed cells in baseline medium (of all cells where there are none)."""
    table = model.conditions if data.conditions is None else data.conditions
    plain = (table.genotype.sum(1) == 0) & (table.exposure.sum(1) == 0)
    rows = np.flatnonzero(plain.cpu().numpy()[data.condition])
    if len(rows) == 0:
        rows = np.arange(len(data))
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.permutation(rows)[:_POPULATION])
    return {k: v.to(model.loading.device) for k, v in data.rows(rows).items()}


def resting_states(
    guide: Guide,
    values: dict[str, Tensor],
    cells: dict[str, Tensor],
    seed: int,
    table: Conditions | None = None,
) -> Tensor:
    """One draw of the state of each cell given the globals, (n, d), at rest.

    Where states move on their own: at time 0, from which they were carried to where X.z is.
    """
    labels = (cells["condition"], cells["batch"], cells.get("covariates"), table)
    loc, scale = guide.encode(values, cells["x"], *labels, log_size=cells["log_size"])
    stream = generator(loc.device, "state", seed)
    z = loc + scale * torch.randn(loc.shape, generator=stream, device=loc.device)
    if not guide.model.moves_states:
        return z
    with seeded(z.device, "past", seed):
        way = guide.model.cell_path(values, cells["condition"], table)
        return invert_path(z, *way, getattr(guide, "reversal", None))[0]


def starting_states(model: GenerativeModel, n: int, seed: int) -> Tensor:
    """States of n cells at time 0 where states move on their own, from their law there, (n, d)."""
    loc, scale = model.motion.at_start(n)
    stream = generator(loc.device, "start", seed)
    return loc + scale * torch.randn(loc.shape, generator=stream, device=loc.device)


def carried_states(z: Tensor, way: tuple[tuple[Segment, ...], StateField], seed: int) -> Tensor:
    """States of resting cells z (n, d) in each of C conditions, (C, n, d).

    Each cell has the same luck in all conditions, so that what differs between them is not noise.

    Raises
    ------
    StiffFieldError
        If a field without noise bends too fast for its steps, asked of the first draw.
    """
    segments, field = way
    z = z.expand(len(segments[0].span), *z.shape)
    if field.noise is None:
        if seed == 0:
            check_steps(z, segments, field)
        return propagate(z, segments, field)
    stream = generator(z.device, "luck", seed)
    driving_noise = torch.randn((NOISY_STEPS, 1, *z.shape[1:]), generator=stream, device=z.device)
    return propagate(z, segments, field, driving_noise)


def moments(
    model: GenerativeModel, values: dict[str, Tensor], z: Tensor, shift: Tensor, size_factor: float
) -> tuple[Tensor, Tensor]:
    """Mean and variance over cells of the counts of each condition, (C, G) each.

    Parameters
    ----------
    model, values
        The model and its global sites.
    z
        States; (n, d), or (C, n, d) where conditions have moved them.
    shift
        (C, G) log-mean shift.
    size_factor
        Depth of the cells.
    """
    if z.dim() == 3:
        each = [moments(model, values, z[c], shift[c : c + 1], size_factor) for c in range(len(z))]
        means, variances = zip(*each, strict=True)
        return torch.cat(means), torch.cat(variances)
    rest = model.resting_logits(values, z)  # (n, G)
    log_size = model.measurement.log_depth(size_factor)
    total = square = rest.new_zeros(())
    size = max(1, _BLOCK_BYTES // (16 * shift.numel()))
    for chunk, state in zip(rest.split(size), z.split(size), strict=True):
        log_mu = chunk[:, None] + shift  # (n, C, G)
        log_mu = model.measurement.relative(log_mu) + log_size
        mean, within = model.measurement.moments(values, log_mu, state)
        total = total + mean.sum(0)
        square = square + (within + mean.square()).sum(0)
    mean = total / len(rest)
    return mean, square / len(rest) - mean.square()
