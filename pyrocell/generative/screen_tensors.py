"""The screen as tensors beside the model's parameters: who met what when, and what that allows."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from pyrocell.assumptions.constraints import imposed_contrasts
from pyrocell.assumptions.mixture import AssumptionMixture
from pyrocell.assumptions.spec import Assume
from pyrocell.generative.config import ModelConfig, number_arms
from pyrocell.operators.dynamics import DYNAMICS
from pyrocell.priors import Priors
from pyrocell.screen.conditions import Conditions
from pyrocell.screen.screen import Screen

__all__ = ["ScreenTensors"]

_DENSE = 2**24  # conditions times perturbations, up to which their table is kept


class ScreenTensors(nn.Module):
    """Conditions, times and events as buffers, and which parts of the model they need.

    Parameters
    ----------
    screen
        The registered screen.
    config, priors
        Shape and priors of the model.
    """

    carried: Tensor
    dense_genotype: Tensor | None
    exposure: Tensor
    duration: Tensor
    time_index: Tensor
    interaction: Tensor
    perturbed_at: Tensor
    exposed_at: Tensor
    target: Tensor
    several: Tensor
    several_drivers: Tensor
    time_steps: Tensor
    on_target_sign: Tensor
    reversed_media: Tensor

    def __init__(self, screen: Screen, config: ModelConfig, priors: Priors):
        super().__init__()
        self.config, self.priors = config, priors
        self.n_cells = screen.n_cells
        self.n_genes, self.n_batches = len(screen.genes), len(screen.batches)
        self.n_perturbations, self.n_media = len(screen.perturbations), len(screen.media)
        self.n_axes = config.n_latent + config.n_response
        self.n_times = max(1, len(screen.times))
        self.many_sets = screen.many_sets
        self._register(screen)

    def _register(self, screen: Screen) -> None:
        as_float = lambda a: torch.as_tensor(a, dtype=torch.float32)  # noqa: E731
        exposure, perturbed = as_float(screen.exposure), ~torch.as_tensor(screen.is_control)
        several = (as_float(np.diff(screen.membership.indptr)) + exposure.sum(1)) > 1
        several &= ~torch.as_tensor(screen.additive)  # what has no arm has nothing to share with
        self.n_arms, interaction = number_arms(screen.membership, screen.exposure, screen.additive)
        interaction = torch.as_tensor(interaction)
        self.n_interactions = 0
        if self.config.interactions and self.config.gene_residual and self.n_arms:
            self.n_interactions = self.n_arms
            first = np.unique(interaction.numpy(), return_index=True)[1][-self.n_arms :]
            drivers = torch.cat([as_float(screen.membership[first].toarray()), exposure[first]], 1)
            self.register_buffer("several_drivers", drivers, persistent=False)
        times = as_float(screen.times)
        self.has_time = len(screen.times) > 1
        self.reference_time = float(np.mean(screen.times)) if self.has_time else 1.0
        # of the residual's walk: the mean step, so that hours and days give one model
        self.step_unit = float(times.diff().mean()) if self.has_time else 1.0
        drift = screen.aliased[screen.aliased.contrast == "time"]
        dynamics = DYNAMICS[self.config.dynamics]
        self.dynamics = dynamics(n_axes=self.n_axes, reference_time=self.reference_time)
        self.has_rates = self.has_time and dynamics.relaxes
        self.has_field = self.has_time and dynamics.integrated == "responses"
        self.moves_states = dynamics.integrated == "states"
        self.has_drift = self.has_rates and bool(drift.estimable.all())
        small = len(screen.conditions) * self.n_perturbations <= _DENSE
        for name, value in {
            "several": several.nonzero()[:, 0],
            "carried": torch.as_tensor(np.stack(screen.membership.nonzero())).long(),
            "dense_genotype": as_float(screen.genotype) if small else None,
            "exposure": exposure,
            "duration": as_float(screen.duration),
            "time_index": torch.as_tensor(screen.time_index),
            "interaction": interaction,
            "perturbed_at": as_float(screen.perturbed_at),
            "exposed_at": as_float(screen.exposed_at),
            "target": torch.as_tensor(screen.target),
            "time_steps": times.diff() if self.has_time else torch.zeros(0),
            "on_target_sign": torch.tensor(
                [{"CRISPRi": -1.0, "CRISPRa": 1.0}.get(t, 0.0) for t in screen.perturbation_types]
            ),
        }.items():
            self.register_buffer(name, value, persistent=False)
        lost = (self.exposed_at < self.perturbed_at) & perturbed  # after it had begun
        reversed_media = (exposure * lost[:, None]).any(0)  # (J,) both orders were run
        self.register_buffer("reversed_media", reversed_media, persistent=False)
        self.has_turnover = bool(reversed_media.any())
        # where arms differ in time, a medium's gene-level part is lost as its response is
        self.follows_gain = bool((self.exposed_at + self.perturbed_at).any())
        p = self.priors
        self.media_residual_sd = p.media_gene_sd if self.follows_gain else p.media_residual_sd
        self.clock = float(np.mean(screen.times)) if len(screen.times) else 1.0
        assume = [Assume(**a) for a in self.config.assume]
        self.imposed = imposed_contrasts(screen, assume)
        self.uncertain = AssumptionMixture(screen, assume)

    @property
    def genotype(self) -> Tensor:
        """Perturbations of each condition, (C, K) 0/1; made when asked for where it is large."""
        if self.dense_genotype is not None:
            return self.dense_genotype
        table = self.duration.new_zeros(len(self.duration), self.n_perturbations)
        table[tuple(self.carried)] = 1.0
        return table

    @property
    def arms(self) -> tuple[Tensor, Tensor]:
        """Perturbations and media of the arms with an interaction, (A, K) and (A, J) 0/1."""
        k = self.n_perturbations
        return self.several_drivers[:, :k], self.several_drivers[:, k:]

    @property
    def conditions(self) -> Conditions:
        """The screen's own conditions."""
        return Conditions(
            self.genotype,
            self.exposure,
            self.duration,
            self.time_index,
            self.interaction,
            self.perturbed_at,
            self.exposed_at,
        )
