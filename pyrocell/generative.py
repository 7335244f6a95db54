"""The generative model of a screen, as a Pyro callable: F = W ∘ M ∘ P, η, V (eqs. 1-4, 10).

Site names are a public contract; `docs/model.md` lists them with shapes and units.
"""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyrocell.distributions import GaussianWalk, NegativeBinomial, ZeroInflatedNegativeBinomial
from pyrocell.mapping import ScreenMap
from pyrocell.motion import Reversal, draw_state, state_log_prob
from pyrocell.objectives import DistributionObjective
from pyrocell.operators import ResponseParameters
from pyrocell.priors import Priors
from pyrocell.screen import Screen
from pyrocell.structure import Conditions, ModelConfig, ScreenStatistics
from pyrocell.views.rna import dropout_logits

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

    def __init__(
        self, screen: Screen, config: ModelConfig, priors: Priors, statistics: ScreenStatistics
    ):
        super().__init__(screen, config, priors, statistics)
        self.objective = DistributionObjective(**(config.objective or {"weight": 0.0}))
        sizes = torch.bincount(
            torch.as_tensor(screen.cell_condition), minlength=len(screen.conditions)
        )
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
        with poutine.scale(scale=self.kl_weight), _EventShaped():
            values = self._view_sites()
            values |= self._noise_sites()
            values |= self._operator_sites()
            values |= self._residual_sites(values)
            if self.imposed is not None:
                change = self.imposed_change(values)
                normal = dist.Normal(change, self.priors.assumed_sd).to_event(2)
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
            "V.loading": _sample("V.loading", one.new_zeros(self.config.n_response, g), one),
            "V.dispersion": pyro.sample(
                "V.dispersion",
                dist.LogNormal(one.new_full((g,), p.dispersion_loc), p.dispersion_sd).to_event(1),
            ),
        }
        if self.config.likelihood == "zinb":
            values["V.gate"] = _sample(
                "V.gate", one.new_tensor(p.gate_loc).expand(g, 2), one.new_tensor(p.gate_sd)
            )
        if self.config.n_covariates:
            zeros = one.new_zeros(self.config.n_covariates, g)
            values["V.covariate"] = _sample("V.covariate", zeros, p.covariate_sd * one)
        if self.config.decoder == "curved":
            scale = self.curvature.log_scale.exp().expand(-1, g)
            values["V.curvature"] = _sample("V.curvature", torch.zeros_like(scale), scale)
        return values

    def _noise_sites(self) -> dict[str, Tensor]:
        if self.n_batches == 1:
            return {"eta": self.loading.new_zeros(1, self.n_genes)}
        scale = pyro.sample(
            "eta.scale",
            dist.LogNormal(
                self.log_eta_scale.expand(self.n_genes), self.priors.eta_spread
            ).to_event(1),
        )
        values = {"eta.scale": scale}
        if self.has_laboratories:
            loc = self.log_laboratory_scale.expand(self.n_genes)
            spread = dist.LogNormal(loc, self.priors.eta_spread).to_event(1)
            values["eta.laboratory_scale"] = pyro.sample("eta.laboratory_scale", spread)
        if self.has_content:
            zeros = scale.new_zeros(self.content.shape[1], self.n_genes)
            sd = scale.new_tensor(self.priors.content_sd)
            values["eta.content"] = _sample("eta.content", zeros, sd)
        zeros = scale.new_zeros(self.n_batches - 1, self.n_genes)
        values["eta.free"] = _sample("eta.free", zeros, self.eta_scale(values))
        values["eta"] = pyro.deterministic("eta", self.eta(values), event_dim=2)
        if self.has_laboratories:
            offset = self.laboratory_offset(values)
            values["eta.laboratory"] = pyro.deterministic("eta.laboratory", offset, event_dim=2)
        return values

    def _operator_sites(self) -> dict[str, Tensor]:
        p, k, j = self.priors, self.n_perturbations, self.n_media
        one = self.loading.new_ones(())
        values = {
            "P.effect": _sample(
                "P.effect", one.new_zeros(k, self.n_axes), self.log_effect_scale.exp()
            ),
            "P.on_target": _sample(
                "P.on_target", p.on_target_loc * self.on_target_sign, p.on_target_sd * one
            ),
        }
        if j:
            values["M.effect"] = _sample(
                "M.effect", one.new_zeros(j, self.n_axes), p.media_effect_sd * one
            )
            values["M.gain"] = pyro.sample("M.gain", self.gain_prior().to_event(2))
        if self.has_rates:
            per_time = -math.log(self.reference_time)
            loc = one.new_tensor(p.log_rate_loc + per_time)
            base = _sample("W.log_rate_base", loc, p.log_rate_sd * one)
            values["W.log_rate_base"] = base
            values["W.log_rate"] = _sample(
                "W.log_rate", base.expand(k + j), p.log_rate_spread * one
            )
            loc = one.new_full((k,), p.decay_ratio_loc)
            ratio = dist.LogNormal(loc, p.decay_ratio_sd).to_event(1)
            values["W.decay_ratio"] = pyro.sample("W.decay_ratio", ratio)
            decay = self.log_decay(values)
            values["W.log_decay"] = pyro.deterministic("W.log_decay", decay, event_dim=1)
        if self.has_turnover:
            loc = self.log_turnover_centre(values).expand(j)
            turnover = dist.LogNormal(loc, p.turnover_sd).to_event(1)
            values["M.turnover"] = pyro.sample("M.turnover", turnover)
        if self.has_field:
            scale = self.field.log_scale.exp().expand(-1, self.n_axes)
            values["W.field"] = _sample("W.field", torch.zeros_like(scale), scale)
        if self.has_motion:
            noise = (p.state_noise_sd, p.state_noise_spread)
            branches = self.config.dynamics == "sde"
            values |= self.motion.sites(k, j, noise if branches else None)
        if self.has_drift:
            values["W.drift"] = _sample(
                "W.drift", one.new_zeros(self.config.n_response), p.drift_sd * one
            )
        return values

    def _residual_sites(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        if not self.config.gene_residual:
            return {}
        p, out = self.priors, {}
        one = self.loading.new_ones(())
        if self.has_time:
            medians = one.new_tensor([p.process_noise_sd, p.process_noise_effect])
            out["W.process_noise"] = pyro.sample(
                "W.process_noise",
                dist.LogNormal(medians.log(), p.process_noise_spread).to_event(1),
            )
            out["W.gene_scale"] = pyro.sample(
                "W.gene_scale", dist.LogNormal(one.new_zeros(self.n_genes), 0.5).to_event(1)
            )
            drivers = one.new_zeros(self.n_perturbations + self.n_media)
            out["W.driver_scale"] = pyro.sample(
                "W.driver_scale", dist.LogNormal(drivers, 0.5).to_event(1)
            )
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
            zeros = one.new_zeros(self.n_interactions, self.n_genes)
            out["P.interaction"] = _sample("P.interaction", zeros, p.interaction_sd * one)
        return out

    def gain_prior(self) -> dist.MixtureSameFamily:
        """Mixture prior of `M.gain`: blocked, untouched, or anything between and above, (K, J)."""
        p, one = self.priors, self.loading.new_ones(())
        return _RealMixture(
            dist.Categorical(one.new_tensor(p.gain_weights)),
            dist.Normal(one.new_tensor(p.gain_locs), one.new_tensor(p.gain_scales)),
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
        if not self.has_motion:
            normal = dist.Normal(self.loading.new_zeros(n, self.config.n_latent), 1.0)
            return pyro.sample("X.z", normal.to_event(1))
        return draw_state(*self.cell_way(values, condition), self.motion.at_start(n))

    def state_log_prob(
        self,
        values: dict[str, Tensor],
        z: Tensor,
        condition: Tensor,
        table: Conditions | None = None,
        reversal: Reversal | None = None,
    ) -> Tensor:
        """Log prior density of X.z of cells, (n,); see `motion.state_log_prob`."""
        if not self.has_motion:
            return dist.Normal(torch.zeros_like(z), 1.0).log_prob(z).sum(-1)
        way = self.cell_way(values, condition, table)
        return state_log_prob(z, *way, self.motion.at_start(len(z)), reversal)

    def view(
        self,
        values: dict[str, Tensor],
        logits: Tensor,
        log_size: Tensor,
        z: Tensor,
        offset: tuple[Tensor, Tensor] | None = None,
    ) -> NegativeBinomial | ZeroInflatedNegativeBinomial:
        """The measurement view V: counts given log relative expression and cell state.

        `offset`: a table, and for each cell the rows of it to be added to its logits.
        """
        log_theta = values["V.dispersion"].log()
        common = {
            "log_size": log_size,
            "composition": self.config.composition,
            "offset": offset,
        }
        if self.config.likelihood == "nb":
            return NegativeBinomial(logits, log_theta, **common)
        intercept, slope = values["V.gate"].unbind(-1)
        if self.config.dropout == "cell":
            gate = intercept + z @ self.gate_loading
            return ZeroInflatedNegativeBinomial(logits, log_theta, gate_logits=gate, **common)
        return ZeroInflatedNegativeBinomial(logits, log_theta, intercept, slope, **common)

    def gate(self, values: dict[str, Tensor], log_mu: Tensor, z: Tensor) -> Tensor | None:
        """Dropout logits at log means (n, C, G) of cells with state z (n, d); None without."""
        if self.config.likelihood == "nb":
            return None
        intercept, slope = values["V.gate"].unbind(-1)
        if self.config.dropout == "cell":
            return (intercept + z @ self.gate_loading)[:, None].expand_as(log_mu)
        return dropout_logits(log_mu, intercept, slope)


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
    normal = dist.Normal(loc, scale)
    return pyro.sample(name, normal.to_event(len(normal.batch_shape)))
