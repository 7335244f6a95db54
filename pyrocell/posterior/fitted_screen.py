"""What a question is asked of: joint draws, and what conditions do to cells under each of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pyrocell._core.random import generator, seeded
from pyrocell.data.loader import CellDataset
from pyrocell.operators import Protocol, run
from pyrocell.operators.state import State
from pyrocell.posterior.draws import Posterior
from pyrocell.posterior.gene_level.states import GeneLevel
from pyrocell.posterior.populations import carried_states, resting_states
from pyrocell.screen.conditions import Conditions
from pyrocell.screen.screen import Screen

__all__ = ["Blocks", "Draws", "FittedScreen", "Part", "stacked"]


Draws = Iterator[Iterator[np.ndarray]]  # of each draw: of each part of the rows, (rows, G)
Blocks = Iterator[tuple[slice, np.ndarray]]  # rows, and the answer for them

_PART = 2**19  # numbers of a table that are worked on at once; does not depend on any budget


@dataclass(frozen=True)
class Part:
    """Some rows of a table of requested conditions, kept small between draws.

    Attributes
    ----------
    first
        Row of the table at which they begin.
    rows
        The conditions, their genotype sparse.
    unseen
        What of them was never seen, see `FittedScreen.conditions`.
    """

    first: int
    rows: Conditions
    unseen: Tensor

    @property
    def conditions(self) -> Conditions:
        """The conditions with their genotype, (C, K)."""
        return self.rows._replace(genotype=self.rows.genotype.to_dense())


class FittedScreen:
    """A posterior, the screen it is of, and the screen's cells: what every question is asked of.

    Parameters
    ----------
    posterior
        Draws of the globals.
    screen
        The screen the model was fitted to.
    data
        Its cells (controls among them stand for the resting population).
    gene_level
        Kept states of the gene-level sites, if there are any.
    """

    def __init__(
        self,
        posterior: Posterior,
        screen: Screen,
        data: CellDataset,
        gene_level: GeneLevel | None = None,
    ):
        self.posterior, self.screen, self.data = posterior, screen, data
        self.model, self.gene_level = posterior.model, gene_level

    @property
    def without_sums(self) -> FittedScreen:
        """The same without cells whose sets of perturbations have no level of their own."""
        if not self.screen.many_sets or self.data.conditions is not None:
            return self
        small = self.screen.without_sums
        cells = np.flatnonzero(~self.screen.additive[self.data.condition])
        number = np.cumsum(~self.screen.additive) - 1
        data = self.data.subset(cells)
        data = replace(data, condition=number[data.condition])
        return FittedScreen(self.posterior, small, data)

    def parts(self, n_rows: int) -> list[slice]:
        """Rows of a table of conditions or cells, some at a time."""
        width = max(len(self.screen.genes), self.model.n_perturbations + self.model.n_media)
        size = max(1, _PART // width)
        return [slice(first, min(first + size, n_rows)) for first in range(0, n_rows, size)]

    @staticmethod
    def asked_of(parts: Sequence[Part]) -> np.ndarray:
        """Perturbations that requested conditions carry, in order."""
        carried = [part.rows.genotype.coalesce().indices()[1] for part in parts]
        return np.unique(torch.cat(carried).cpu().numpy()) if carried else np.zeros(0, np.int64)

    def axes_of_state(self) -> np.ndarray:
        """Loading of z, (d, G), in the gauge of what counts can show."""
        baseline = self.posterior.mean()["V.baseline"].detach()
        loading = self.model.measurement.gauge(self.model.loading.detach(), baseline)
        return loading.cpu().numpy().astype(float)

    def conditions(self, frame: pd.DataFrame) -> tuple[Conditions, Tensor]:
        """Requested conditions as tensors, and what of them is unseen.

        The second tensor holds, per condition, the share of an unseen interaction (0 or 1) and the
        time between the requested time and the node of the residual's walk before it.
        """
        genotype, exposure, duration, _ = self.screen.encode(frame)
        model = self.model
        device = model.loading.device
        to = lambda a, dtype: torch.as_tensor(a, dtype=dtype, device=device)  # noqa: E731
        genotype, exposure = to(genotype, torch.float32), to(exposure, torch.float32)
        duration = to(duration, torch.float32)
        if model.has_time:
            nodes = to(self.screen.times, torch.float32)
            time_index = (torch.searchsorted(nodes, duration + 1e-6) - 1).clamp_min(0)
            gap = (duration - nodes[time_index]).abs()
        else:
            time_index, gap = torch.zeros_like(duration, dtype=torch.long), 0 * duration
        interaction, unseen = self._interaction_rows(genotype, exposure)
        events = (to(at, torch.float32) for at in self.screen.encode_events(frame))
        rows = Conditions(genotype, exposure, duration, time_index, interaction, *events)
        return rows, torch.stack([unseen, gap], 1)

    def part(self, frame: pd.DataFrame, first: int = 0) -> Part:
        """Rows of a table of conditions that begin at `first`, ready for any number of draws."""
        rows, unseen = self.conditions(frame)
        return Part(first, rows._replace(genotype=rows.genotype.to_sparse()), unseen)

    def _interaction_rows(self, genotype: Tensor, exposure: Tensor) -> tuple[Tensor, Tensor]:
        """Row of P.interaction of each arm, -1 for none, and 1 where it was not measured."""
        rows = torch.full((len(genotype),), -1, dtype=torch.long)
        unseen = torch.zeros(len(genotype))
        if self.model.n_arms:
            arms = torch.cat([genotype, exposure], 1)
            for c in (arms.sum(1) > 1).nonzero()[:, 0].tolist():
                row = self._measured_arms.get(tuple(arms[c].nonzero()[:, 0].tolist()))
                rows[c], unseen[c] = (-1, 1.0) if row is None else (row, 0.0)
        return rows.to(genotype.device), unseen.to(genotype.device)

    @cached_property
    def _measured_arms(self) -> dict[tuple[int, ...], int]:
        """Rows of P.interaction by the drivers present, perturbations before media."""
        model = self.model
        several = (model.interaction >= 0).nonzero()[:, 0]
        arms = torch.cat([model.genotype[several], model.exposure[several]], 1)
        names = (tuple(arm.nonzero()[:, 0].tolist()) for arm in arms)
        return dict(zip(names, model.interaction[several].tolist(), strict=True))

    def shift(
        self,
        values: dict[str, Tensor],
        conditions: Conditions,
        unseen: Tensor,
        seed: int,
        protocol: Protocol | None = None,
        first: int = 0,
    ) -> Tensor:
        """Shift of the requested conditions, with the prior's noise for what was never seen.

        `first` tells these rows of a longer table from others: its noise is that of draw and rows.
        """
        model, values = self.model, self.with_turnover(values, seed)
        if protocol is None:
            shift = model.shift(values, conditions)
        else:
            shift = model.shift_of(values, self.carry_out(protocol, values), conditions)
        if not model.config.gene_residual or not bool((unseen > 0).any()):
            return shift
        stream = generator(shift.device, "unseen", seed, first)
        noise = lambda: torch.randn(shift.shape, generator=stream, device=shift.device)  # noqa: E731
        width = torch.zeros_like(shift)
        if bool((unseen[:, 0] > 0).any()):  # as wide as the prior, and begun as a measured one
            several = conditions._replace(interaction=torch.zeros_like(conditions.interaction))
            begun = model.interaction_grown(values, several) * model.set_in(values, several)
            if self.gene_level is not None:
                width = self.gene_level.interaction_width(seed, shift.shape, first)
                width = torch.as_tensor(width).to(shift)
            elif model.n_interactions:
                width = model.interaction_scale(values, conditions.genotype, conditions.exposure)
            width = begun[:, None] * width
        shift = shift + unseen[:, :1] * width * noise()
        if model.has_time:
            constant, relative = values["W.process_noise"]
            own = conditions.genotype @ values["W.driver_scale"][: conditions.genotype.shape[1]]
            own = own[:, None] * values["W.gene_scale"]
            variance = (constant * own).square() + (relative * shift).square()
            begun = conditions.duration > conditions.perturbed_at  # W(X, 0) = X
            perturbed = (conditions.genotype.any(1) & begun).float()[:, None]
            steps = unseen[:, 1:] / model.step_unit
            shift = shift + perturbed * (variance * steps).sqrt() * noise()
        return shift

    def with_turnover(self, values: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
        """Draws with the turnover of gains: the prior's where the screen has one order of steps."""
        model = self.model
        if "M.turnover" in values or not model.n_media:
            return values
        stream = generator(model.loading.device, "turnover", seed)
        noise = torch.randn(model.n_media, generator=stream, device=model.loading.device)
        log_turnover = model.log_turnover_centre(values) + model.priors.turnover_sd * noise
        return values | {"M.turnover": log_turnover.exp()}

    def carry_out(
        self, protocol: Protocol, values: dict[str, Tensor], z: Tensor | None = None
    ) -> State:
        """State of cells after a protocol, those at z (n, d) at its start where states move."""
        screen = self.screen
        perturbations, media = (
            {n: i for i, n in enumerate(each)} for each in (screen.perturbations, screen.media)
        )
        params = self.model.response_parameters(values)
        if z is not None:
            params = replace(params, motion=self.model.motion.field(values))
            z = z[None]
        return run(protocol, params, perturbations, media, types=screen.perturbation_types, z=z)

    def states(
        self,
        values: dict[str, Tensor],
        cells: dict[str, Tensor],
        conditions: Conditions,
        seed: int,
        protocol: Protocol | None = None,
    ) -> Tensor:
        """States of resting cells under each condition, (C, n, d); (n, d) where states stay."""
        z = resting_states(self.posterior.guide, values, cells, seed, self.data.conditions)
        if not self.model.moves_states:
            return z
        return self.carried(values, z, conditions, seed, protocol)

    def carried(
        self,
        values: dict[str, Tensor],
        z: Tensor,
        conditions: Conditions,
        seed: int,
        protocol: Protocol | None = None,
    ) -> Tensor:
        """Where cells at states z (n, d) at time 0 are under each condition, (C, n, d)."""
        values = self.with_turnover(values, seed)
        if protocol is None:
            return carried_states(z, self.model.path_of(values, conditions), seed)
        with seeded(z.device, "luck", seed):
            after = self.carry_out(protocol, values, z).z
        assert after is not None
        return after


def stacked(draws: Draws, n_samples: int) -> np.ndarray:
    """All draws at once, (S, rows, G)."""
    out: np.ndarray | None = None
    for s, draw in enumerate(draws):
        values = np.concatenate(list(draw))
        out = np.empty((n_samples, *values.shape), np.float32) if out is None else out
        out[s] = values
    assert out is not None  # there is a draw at least
    return out
