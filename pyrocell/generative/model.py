"""The generative model of a screen, as a Pyro callable: F = W ∘ M ∘ P, η, V (eqs. 1-4, 10).

Site names are a public contract; `docs/model.md` lists them with shapes and units.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Distribution

from pyrocell.distributions import (
    EventLogNormal,
    EventNormal,
    GaussianWalk,
)
from pyrocell.generative.cell_shift import CellShift, shared_shift
from pyrocell.generative.config import ModelConfig
from pyrocell.generative.effects import EFFECT_PRIORS
from pyrocell.generative.population_objective import DistributionObjective
from pyrocell.generative.response import ScreenMap
from pyrocell.generative.starting_values import ScreenStatistics
from pyrocell.generative.state_dynamics import BackwardChain, draw_state, state_log_prob
from pyrocell.operators import ResponseParameters
from pyrocell.priors import Priors
from pyrocell.screen.conditions import Conditions
from pyrocell.screen.screen import Screen

__all__ = ["GenerativeModel"]


class GenerativeModel(ScreenMap):
    """x ~ V(F(X, p, m, t), η): see section 'Generative model' of the model page.

    Parameters
    ----------
    screen
        The registered screen.
    config, priors
        Shape and priors of the model.
    statistics
        Starting values.
    """

    condition_size: Tensor

    def __init__(
        self, screen: Screen, config: ModelConfig, priors: Priors, statistics: ScreenStatistics
    ):
        super().__init__(screen, config, priors, statistics)
        self.effect_prior = EFFECT_PRIORS[config.effect_prior]()
        self.effect_prior.prepare(priors)
        self.objective = DistributionObjective(**(config.objective or {"weight": 0.0}))
        sizes = torch.as_tensor(screen.layout.to_numpy("int64").sum(1))
        self.register_buffer("condition_size", sizes, persistent=False)  # (C,)
        if len(self.uncertain):
            self.uncertain.expect(self._draw_response, self.reference_time)

    def _draw_response(self) -> tuple[ResponseParameters, Tensor | None]:
        """Response and rate of drift from the prior."""
        values = self._operator_sites()
        rate = values["W.log_rate_base"].exp() if self.has_drift else None
        return self.response_parameters(values), rate

    def globals(self) -> dict[str, Tensor]:
        """Sample every global site from its prior."""
        with poutine.scale(scale=float(self.kl_weight)), _EventShaped():
            values = self._view_sites()
            values |= self.noise.sample()
            values |= self._operator_sites()
            values |= self._residual_sites(values)
            if self.imposed is not None:
                change = self.imposed_change(values)
                normal = EventNormal(change, change.new_full((), self.priors.assumed_sd))
                pyro.sample("assumed", normal, obs=torch.zeros_like(change))
            if len(self.uncertain):
                values["assumed.scale"] = self._assumed_scale()
                log_prior = self.uncertain.log_prior(self.uncertain_factor(values))
                pyro.factor("assumed.state", log_prior.sum())
        return values

    def _assumed_scale(self) -> Tensor:
        median = self.loading.new_full((len(self.uncertain.kinds),), self.priors.assumed_sd)
        scale = dist.LogNormal(median.log(), self.priors.assumed_spread).to_event(1)
        return pyro.sample("assumed.scale", scale)

    def uncertain_factor(self, values: dict[str, Tensor]) -> Tensor:
        """Log of spike over slab of each assumption held with a probability, (R,)."""
        conditions, d = self.uncertain.conditions, self.config.n_latent
        y = self.displacement(values, self.state_of(values, conditions), conditions)
        sd = self.log_effect_scale.exp()
        drift = sd.new_zeros(len(sd))
        drift[d:] = self.priors.drift_sd
        shared = torch.cat([values.get("M.effect", sd.new_zeros(0, len(sd))), 0 * sd[None]])
        if self.has_drift:
            shared[-1, d:] = values["W.drift"]
        width = self.axes(values).square().mean(-1).sqrt()
        return self.uncertain.log_factor(y, width, sd, drift, shared, values["assumed.scale"])

    def _view_sites(self) -> dict[str, Tensor]:
        p, g = self.priors, self.n_genes
        one = self.loading.new_ones(())
        values = {
            "V.baseline": _sample("V.baseline", self.baseline_centre, p.baseline_sd * one),
            "V.loading": _centred("V.loading", (self.config.n_response, g), one),
        }
        for site, prior in self.measurement.priors().items():
            values[site] = pyro.sample(site, prior)
        if self.config.n_covariates:
            shape = (self.config.n_covariates, g)
            values["V.covariate"] = _centred("V.covariate", shape, p.covariate_sd * one)
        if self.config.decoder == "curved":
            scale = self.curvature.log_scale.exp()
            values["V.curvature"] = _centred("V.curvature", (len(scale), g), scale)
        return values

    def _operator_sites(self) -> dict[str, Tensor]:
        p, k, j = self.priors, self.n_perturbations, self.n_media
        one = self.loading.new_ones(())
        values = {
            "P.effect": pyro.sample(
                "P.effect", self.effect_prior.prior(self.log_effect_scale.exp(), k)
            ),
            "P.on_target": _sample(
                "P.on_target", p.on_target_loc * self.on_target_sign, p.on_target_sd * one
            ),
        }
        if j:
            values["M.effect"] = _centred("M.effect", (j, self.n_axes), p.media_effect_sd * one)
            values["M.gain"] = pyro.sample("M.gain", self.gain_prior().to_event(2))
        if self.has_rates:
            per_time = -math.log(self.reference_time)
            loc = one.new_full((), p.log_rate_loc + per_time)
            base = _sample("W.log_rate_base", loc, p.log_rate_sd * one)
            values["W.log_rate_base"] = base
            values["W.log_rate"] = _sample(
                "W.log_rate", base.expand(k + j), p.log_rate_spread * one
            )
            ratio = EventLogNormal(p.decay_ratio_loc * one, p.decay_ratio_sd * one, (k,))
            values["W.decay_ratio"] = pyro.sample("W.decay_ratio", ratio)
            decay = self.log_decay(values)
            values["W.log_decay"] = pyro.deterministic("W.log_decay", decay, event_dim=1)
        if self.has_turnover:
            loc = self.log_turnover_centre(values)
            turnover = EventLogNormal(loc * one, p.turnover_sd * one, (j,))
            values["M.turnover"] = pyro.sample("M.turnover", turnover)
        if self.has_field:
            scale = self.field.log_scale.exp()
            values["W.field"] = _centred("W.field", (len(scale), self.n_axes), scale)
        if self.moves_states:
            values |= self.state_dynamics_sites()
        if self.has_drift:
            values["W.drift"] = _centred("W.drift", (self.config.n_response,), p.drift_sd * one)
        for site, prior in self.dynamics.priors().items():
            values[site] = pyro.sample(site, prior)
        return values

    def state_dynamics_sites(self) -> dict[str, Tensor]:
        """Sample the sites of the field of states from their priors."""
        p, noise = self.priors, None
        if self.dynamics.noisy:
            noise = (p.state_noise_sd, p.state_noise_spread)
        return self.motion.sites(self.n_perturbations, self.n_media, noise)

    def _residual_sites(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        if not self.config.gene_residual:
            return {}
        p, out = self.priors, {}
        one = self.loading.new_ones(())
        if self.has_time:
            medians = _numbers(one, (p.process_noise_sd, p.process_noise_effect))
            out["W.process_noise"] = pyro.sample(
                "W.process_noise",
                EventLogNormal(medians.log(), p.process_noise_spread * one),
            )
            for name, n in (
                ("gene", self.n_genes),
                ("driver", self.n_perturbations + self.n_media),
            ):
                site = f"W.{name}_scale"
                out[site] = pyro.sample(site, EventLogNormal(None, 0.5 * one, (n,)))
        both = values | out
        keep = self.persistence()
        out["P.residual"] = pyro.sample(
            "P.residual", GaussianWalk(self.residual_scale(both), self.step_scale(both, "P"), keep)
        )
        if self.n_media:
            out["M.residual"] = pyro.sample(
                "M.residual",
                GaussianWalk(self.media_residual_sd * one, self.step_scale(both, "M"), keep),
            )
        if self.n_interactions:
            scale = self.interaction_scale(both | out, *self.arms)
            out["P.interaction"] = _centred("P.interaction", scale.shape, scale)
        return out

    def gain_prior(self) -> dist.MixtureSameFamily:
        """Mixture prior of `M.gain`: blocked, untouched, or anything between and above, (K, J)."""
        p, one = self.priors, self.loading.new_ones(())
        return _RealMixture(
            dist.Categorical(_numbers(one, p.gain_weights)),
            dist.Normal(_numbers(one, p.gain_locs), _numbers(one, p.gain_scales)),
        ).expand([self.n_perturbations, self.n_media])

    def forward(
        self,
        x: Tensor | None,
        index: Tensor,
        condition: Tensor,
        batch: Tensor,
        log_size: Tensor,
        covariates: Tensor | None = None,
    ) -> Tensor:
        """Run the model on a minibatch.

        Parameters
        ----------
        x
            (cells, G) counts, dense or torch CSR; None to draw them, as `Predictive` does.
        index
            (cells,) positions of these cells in the plate `cells`.
        condition, batch
            (cells,) rows of `screen.conditions` and of `screen.batches`.
        log_size
            (cells,) log size factor.
        covariates
            (cells, n_covariates), standardised.
        """
        values = self.globals()
        shift = self.shift_parts(values, condition, batch, covariates).plus(values["V.baseline"])
        with pyro.plate("cells", self.n_cells, subsample=index):
            z = self._own_state(values, condition)
            logits, offset = shift.decoded(*self.decoding(values, z))
            counts = pyro.sample("x", self.view(values, logits, log_size, z, offset), obs=x)
        if self.objective.weight:
            controls = self.genotype.sum(1) + self.exposure.sum(1) == 0
            pyro.factor(
                "distribution",
                self.objective.resting_factor(
                    z, condition, controls, self.condition_size, self.n_cells
                ),
            )
        return counts

    def _own_state(self, values: dict[str, Tensor], condition: Tensor) -> Tensor:
        """Sample X.z: a resting cell's state, moved by then where states move on their own."""
        n = len(condition)
        if not self.moves_states:
            rest = self.loading.new_zeros(n, self.config.n_latent)
            normal = dist.Normal(rest, torch.ones_like(rest))
            return pyro.sample("X.z", normal.to_event(1))
        return draw_state(*self.cell_path(values, condition), self.motion.at_start(n))

    def state_log_prob(
        self,
        values: dict[str, Tensor],
        z: Tensor,
        condition: Tensor,
        table: Conditions | None = None,
        reversal: BackwardChain | None = None,
    ) -> Tensor:
        """Log prior density of X.z of cells, (n,); see `motion.state_log_prob`."""
        if not self.moves_states:
            return dist.Normal(torch.zeros_like(z), 1.0).log_prob(z).sum(-1)
        way = self.cell_path(values, condition, table)
        return state_log_prob(z, *way, self.motion.at_start(len(z)), reversal)

    def cell_shift(
        self,
        values: dict[str, Tensor],
        condition: Tensor,
        batch: Tensor,
        covariates: Tensor | None = None,
        conditions: Conditions | None = None,
    ) -> Tensor:
        """Log-mean shift of each cell, (cells, G): its condition's, its batch's, its covariates'.

        `conditions` is the table that `condition` refers to; default: the screen's own.
        """
        return self.shift_parts(values, condition, batch, covariates, conditions).dense()

    def shift_parts(
        self,
        values: dict[str, Tensor],
        condition: Tensor,
        batch: Tensor,
        covariates: Tensor | None = None,
        conditions: Conditions | None = None,
    ) -> CellShift:
        """Log-mean shifts of cells as rows of small tables; arguments as in `cell_shift`."""
        rows, inverse = torch.unique(condition, return_inverse=True)
        table = self.conditions if conditions is None else conditions
        shift = shared_shift(values, condition, lambda: self.shift(values, table.select(rows)))
        parts = CellShift((shift,), (inverse,))
        if self.n_batches > 1:
            parts = CellShift((shift, values["eta"]), (inverse, batch))
        if self.config.n_covariates:
            parts = parts._replace(covariates=covariates, per_covariate=values["V.covariate"])
        return parts

    def view(
        self,
        values: dict[str, Tensor],
        logits: Tensor,
        log_size: Tensor,
        z: Tensor,
        offset: tuple[Tensor, Tensor] | None = None,
    ) -> Distribution:
        """The measurement view V: counts given log relative expression and cell state.

        `offset`: a table, and for each cell the rows of it to be added to its logits.
        """
        return self.measurement.likelihood(values, logits, log_size, z, offset)


class _EventShaped(Messenger):
    """Globals keep their event shape; `Predictive` hands them over with the plate's dimension."""

    def _pyro_post_sample(self, msg: dict) -> None:
        shape = msg["fn"].event_shape
        if msg["value"].dim() > len(shape):
            msg["value"] = msg["value"].reshape(shape)


class _RealMixture(dist.MixtureSameFamily):
    """Mixture over the real line; torch's own support has no transform, which NUTS asks for."""

    support = dist.constraints.real


def _sample(name: str, loc: Tensor, scale: Tensor) -> Tensor:
    return pyro.sample(name, EventNormal(loc, scale))


def _numbers(like: Tensor, values: Sequence[float]) -> Tensor:
    """Numbers on a tensor's device, written there: to copy them would be to wait for it."""
    return torch.stack([like.new_full((), value) for value in values])


def _centred(name: str, shape: tuple[int, ...], scale: Tensor) -> Tensor:
    return pyro.sample(name, EventNormal(None, scale, shape))
