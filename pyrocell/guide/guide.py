"""The variational family: every dependence that decides whether an interval is honest is in here.

* The encoder must know every log-mean shift its cell received, or it reads batch noise and effects
  as cell state: q(z_n) = N(enc(x_n) − S_n s_n, σ_n), s_n the sampled shift of the cell and S_n the
  Gauss-Newton response of z to it.
* z_n → z_n − u, η_b → η_b + uD leaves the likelihood unchanged, so gene-level sites carry a
  low-rank covariance along the loading D of z.
* The rows of η are correlated as the batch sizes make them, and what is drawn later (an effect, a
  residual, an interaction, a gain) gives back what was drawn before it: cells measure the sum.
"""

from __future__ import annotations

from collections.abc import Iterable

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyrocell.distributions import (
    EventLogNormal,
    EventMultivariateNormal,
    EventNormal,
    LowRankNormal,
    LowRankRow,
    MarkovLowRankNormal,
)
from pyrocell.distributions.kernels.compensation import subtract_share
from pyrocell.generative.cell_shift import CellShift
from pyrocell.generative.response import ONSET
from pyrocell.generative.state_dynamics import draw_past
from pyrocell.guide.encoder import fisher_metric, fisher_weight, row_sums, state_shift
from pyrocell.guide.parameters import GuideParameters, factor_name
from pyrocell.screen.conditions import Conditions
from pyrocell.views import JointView

__all__ = ["Guide"]

_FLOW = (("W.flow", "flow"), ("P.flow", "flow_code"), ("M.flow", "flow_media"))
_COLLAPSED = 1e-3  # an axis of z with this share of the average information is not used


class Guide(GuideParameters):
    """Structured Gaussian guide of `GenerativeModel`; parameters are created eagerly.

    Parameters
    ----------
    model
        The generative model (held by reference, its parameters are not the guide's).
    screen
        The registered screen.
    statistics
        Starting values.
    """

    # ------------------------------------------------------------------ global sites
    def globals(self) -> dict[str, Tensor]:
        """Sample every global site from the guide."""
        model = self.model
        with pyro.poutine.scale(scale=float(model.kl_weight)):
            values = self._view_sites()
            values |= self._noise_sites()
            drawn, centre = self._drawn(values), self._centre()
            values |= self._operator_sites(drawn, centre)
            if model.config.gene_residual:
                values |= self._residual_sites(values, drawn, centre)
            if len(model.several):
                values |= self._joint_sites(values, drawn, centre)
            if len(model.uncertain):
                values["assumed.scale"] = self._normal("assumed.scale", "assumed", EventLogNormal)
        values.pop(ONSET, None)
        return values

    # ------------------------------------------------------------------ factors
    def _normal(self, site: str, name: str, cls: type = EventNormal) -> Tensor:
        loc, scale = getattr(self, f"{name}_loc"), getattr(self, f"{name}_log_scale").exp()
        return pyro.sample(site, cls(loc, scale))

    def _declared(self, sites: Iterable[str]) -> dict[str, Tensor]:
        """Sites that a component declares, each from its own factor."""
        return {
            site: self._normal(
                site, factor_name(site), EventLogNormal if self.positive[site] else EventNormal
            )
            for site in sites
        }

    def _turnover(self, rates: dict[str, Tensor]) -> Tensor:
        """ρ given the common rate; the prior, exactly, of media that one order was run of."""
        model = self.model
        scale = self.turnover_log_scale.exp()
        scale = torch.where(model.reversed_media, scale, model.priors.turnover_sd)
        return pyro.sample("M.turnover", EventLogNormal(self._log_turnover(rates), scale))

    def _log_turnover(self, rates: dict[str, Tensor]) -> Tensor:
        """Centre of log ρ at a common rate, (J,)."""
        prior = self.model.log_turnover_centre(rates)
        shift = self.turnover_loc - self.model.priors.turnover_loc
        if self.model.has_rates:
            moved = rates["W.log_rate_base"] - self.rate_base_loc
            shift = shift - (1 - self.turnover_along_base) * moved
        return torch.where(self.model.reversed_media, prior + shift, prior)

    def _rate_sites(self) -> dict[str, Tensor]:
        """Rates in the order common, driver, product: what one takes the next gives back."""
        base = self._normal("W.log_rate_base", "rate_base")
        moved = self.rate_along_base * (base - self.rate_base_loc)
        normal = EventNormal(self.rate_loc + moved, self.rate_log_scale.exp())
        rate = pyro.sample("W.log_rate", normal)
        moved = self.decay_along_rate * (rate - self.rate_loc)[: len(self.decay_loc)]
        ratio = EventLogNormal(self.decay_loc + moved, self.decay_log_scale.exp())
        values = {"W.log_rate_base": base, "W.log_rate": rate}
        values["W.decay_ratio"] = pyro.sample("W.decay_ratio", ratio)
        return values | {"W.log_decay": self.model.log_decay(values)}

    def state_dynamics_sites(self) -> dict[str, Tensor]:
        """Sample the sites of the field of states."""
        values = {
            name: self._normal(name, part) for name, part in _FLOW if hasattr(self, f"{part}_loc")
        }
        if self.model.dynamics.noisy:
            values["W.noise"] = self._normal("W.noise", "state_noise", EventLogNormal)
        return values

    def _low_rank(
        self, site: str, name: str, mix: Tensor | None = None, taken: Tensor | None = None
    ) -> Tensor:
        loc = getattr(self, f"{name}_loc")
        loc = loc if taken is None else loc - taken
        scale = getattr(self, f"{name}_log_scale").exp()
        tau = getattr(self, f"{name}_tau").exp()
        flat = loc.dim() == 1
        rows = LowRankNormal(
            loc.reshape(-1, loc.shape[-1]),
            scale.reshape(-1, loc.shape[-1]),
            self.model.loading.detach(),
            tau,
            mix,
        )
        if flat:
            return pyro.sample(site, LowRankRow(rows))
        return pyro.sample(site, rows)

    def _weights(self, site: str, name: str) -> Tensor:
        """Weights of features in units of their prior's width, as an effect in its own."""
        width = getattr(self.model, name).log_scale.exp()
        loc, scale = getattr(self, f"{name}_loc"), getattr(self, f"{name}_log_scale").exp()
        return pyro.sample(site, EventNormal(loc * width, scale * width))

    def _triangular(self, name: str) -> Tensor:
        """Cholesky factor, its rows in units of their diagonal: steps are relative to the width."""
        lower = getattr(self, f"{name}_lower").tril(-1)
        unit = lower + torch.eye(lower.shape[-1], device=lower.device)
        return getattr(self, f"{name}_log_scale").exp()[..., None] * unit

    def _effect(
        self, drawn: Tensor, rates: dict[str, Tensor], centre: dict[str, Tensor] | None = None
    ) -> Tensor:
        """e in units of its prior's width, so that an axis nobody needs is pruned by its width.

        Along the axes of z it gives back what baseline and η were drawn to be there, and in size
        what the rates were drawn to change.
        """
        model, d = self.model, self.model.config.n_latent
        width = model.log_effect_scale.exp()
        # cells of a combination measure the sum of its effects, so these share what they give back
        precision = (-2 * model.log_effect_scale[:d]).exp()
        back = self.effect_cells @ self._along_state(drawn) / (self.effect_value + precision)
        back = back.index_copy(0, self.joined, self.joined_axes @ back[self.joined])
        loc = self.effect_loc * width
        if centre is not None and self.model.has_rates:
            loc = self._same_response(rates, centre)[:, None] * loc
        loc = torch.cat([loc[:, :d] - back, loc[:, d:]], 1)
        chol = width[:, None] * self._triangular("effect")
        return pyro.sample("P.effect", EventMultivariateNormal(loc, chol))

    def _same_response(self, rates: dict[str, Tensor], centre: dict[str, Tensor]) -> Tensor:
        """Factor on effects that brings a response of drawn rates nearest to the centre's, (K,).

        Least squares over the measured times, weighted by cells.
        """
        model = self.model
        cells = self.cells_at_time[: model.n_perturbations]
        usual, drawn = (model.onset(v) for v in (centre, rates))  # (K, T)
        return (cells * usual * drawn).sum(1) / (cells * drawn.square()).sum(1).clamp_min(1e-6)

    def _along_state(self, drawn: Tensor) -> Tensor:
        """What was drawn of each batch (B, G) on the axes of z, Fisher-weighted, (B, d)."""
        loading = self.model.loading.detach()
        weighted = loading * fisher_weight(self.mean_count, self._centre_theta())
        inner = weighted @ loading.T
        least = (_COLLAPSED * inner.trace() / len(inner)).clamp_min(1e-12)  # all axes may be zero
        ridge = least * torch.eye(len(inner), device=inner.device)
        return torch.linalg.solve(inner + ridge, weighted @ drawn.T).T

    def _centre_theta(self) -> Tensor:
        """Inverse dispersion where the factors of the view are centred, (G,)."""
        centre = self._centre_of(self.view_sites)
        return self.model.measurement.theta({site: loc.detach() for site, loc in centre.items()})

    def _centre_of(self, sites: Iterable[str]) -> dict[str, Tensor]:
        """Where the factors of sites that components declare are centred."""
        found = {site: getattr(self, f"{factor_name(site)}_loc") for site in sites}
        return {site: loc.exp() if self.positive[site] else loc for site, loc in found.items()}

    def _media_effect(self, loc: Tensor) -> Tensor:
        """c with the controls' own error along it: they alone set the scale of the gains."""
        chol = self._triangular("media_effect")
        along = self.control_log_error.exp()[:, None] * loc
        covariance = chol @ chol.mT + along[..., :, None] * along[..., None, :]
        root = torch.linalg.cholesky_ex(covariance).L  # a NaN is to be found at its site
        return pyro.sample("M.effect", EventMultivariateNormal(loc, root))

    def _view_sites(self) -> dict[str, Tensor]:
        config = self.model.config
        values = {
            "V.baseline": self._low_rank("V.baseline", "baseline"),
            "V.loading": self._normal("V.loading", "loading"),
        }
        values |= self._declared(self.view_sites)
        if config.n_covariates:
            values["V.covariate"] = self._low_rank("V.covariate", "covariate")
        if config.decoder == "curved":
            values["V.curvature"] = self._weights("V.curvature", "curvature")
        return values

    def _noise_sites(self) -> dict[str, Tensor]:
        model = self.model
        if model.n_batches == 1:
            return {"eta": model.loading.new_zeros(1, model.n_genes)}
        scale = self._normal("eta.scale", "eta_scale", EventLogNormal)
        values = {"eta.scale": scale}
        if model.noise.has_laboratories:
            common = self._normal("eta.laboratory_scale", "laboratory_scale", EventLogNormal)
            values["eta.laboratory_scale"] = common
        taken = None
        if model.noise.has_content:
            values["eta.content"] = self._normal("eta.content", "content")
            # batches measure the sum: the free part gives back what the content took
            change = model.noise.content @ (values["eta.content"] - self.content_loc)
            taken = self.content_kept.sigmoid() * (model.noise.contrast.T @ change)
        values["eta.free"] = self._low_rank("eta.free", "eta", self.eta_mix, taken)
        values["eta"] = model.noise.eta(values)
        if model.noise.has_laboratories:
            values["eta.laboratory"] = model.noise.laboratory_offset(values)
        return values

    def _operator_sites(self, drawn: Tensor, centre: dict[str, Tensor]) -> dict[str, Tensor]:
        model = self.model
        values = self._rate_sites() if model.has_rates else {}
        if model.has_rates:
            rates = ("W.log_rate", "W.log_decay")
            both = {site: torch.stack([values[site], centre[site]]) for site in rates}
            values[ONSET], centre[ONSET] = model.onset(both)
        if model.has_turnover:
            values["M.turnover"] = self._turnover(values)
        if model.has_field:
            values["W.field"] = self._weights("W.field", "field")
        if model.moves_states:
            values |= self.state_dynamics_sites()
        values |= {
            "P.effect": self._effect(drawn, values, centre),
            "P.on_target": self._normal("P.on_target", "on_target"),
        }
        if model.n_media:
            ratio = self.control_log_ratio.exp()[:, None]
            values["M.effect"] = self._media_effect(self.media_effect_loc * ratio)
        values |= self._declared(self.dynamics_sites)
        if model.has_drift:
            values["W.drift"] = self._normal("W.drift", "drift")
        return values

    def _residual_sites(
        self, values: dict[str, Tensor], drawn: Tensor, centre: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        model, out = self.model, {}
        if model.has_time:
            out["W.process_noise"] = self._normal("W.process_noise", "process", EventLogNormal)
            out["W.gene_scale"] = self._normal("W.gene_scale", "gene_scale", EventLogNormal)
            out["W.driver_scale"] = self._normal("W.driver_scale", "driver_scale", EventLogNormal)
        both = values | out
        out["P.residual"] = self._walk("P", both, drawn, centre)
        if model.n_media:
            out["M.residual"] = self._walk("M", both, drawn, centre)
        return out

    def _joint_sites(
        self, values: dict[str, Tensor], drawn: Tensor, centre: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Interactions and gains: what is left of a condition's sum once its parts are drawn.

        Cells of a condition with several drivers measure the sum of its parts, so what is sampled
        last gives back what the parts took (generalised least squares, z integrated out).
        """
        model, out = self.model, {}
        if not model.n_media and not model.n_interactions:
            return out
        rows = model.conditions.select(model.several)
        if model.n_media:
            values = values | {"M.gain": centre["M.gain"]}
        if model.n_interactions:
            zeros = self.interaction_loc.new_zeros(self.interaction_loc.shape)
            values, centre = ({**v, "P.interaction": zeros} for v in (values, centre))
        taken = model.shift(values, rows) - model.shift(centre, rows)
        taken = taken + self.several_batch_share @ drawn  # (rows, G)
        if model.n_interactions:
            grown = model.interaction_grown(centre, rows)[:, None]  # (rows, 1)
            seen = self.arm_share @ grown.square()  # 0 of arms measured at the start alone
            per_arm = self.arm_share @ (grown * taken) / seen.clamp_min(1e-6)
            width = 2 * model.interaction_scale(centre, *model.arms).log()
            kept = (width - self.interaction_log_noise + self.interaction_kept[:, None]).sigmoid()
            loc = self.interaction_loc - kept * per_arm
            normal = EventNormal(loc, self.interaction_log_scale.exp())
            out["P.interaction"] = pyro.sample("P.interaction", normal)
            change = out["P.interaction"] - self.interaction_loc
            taken = taken + grown * change[rows.interaction]
        if model.n_media:
            out["M.gain"] = self._gain(values, centre, rows, taken)
        return out

    def _gain(
        self,
        values: dict[str, Tensor],
        centre: dict[str, Tensor],
        rows: Conditions,
        taken: Tensor,
    ) -> Tensor:
        model = self.model
        response = model.low_rank(centre, "M").mean(1)  # (J, G)
        metric = fisher_metric(
            model.loading.detach(), self.mean_count, model.measurement.theta(values).detach()
        )
        size = metric(response, response).clamp_min(1e-3)  # (J,)
        single = (rows.genotype.sum(1) == 1).float() * self.several_cells
        shift = []
        for j in range(model.n_media):
            slope = metric(taken, response[j].expand_as(taken)) / size[j]  # (rows,)
            weight = rows.genotype * (single * rows.exposure[:, j])[:, None]  # (rows, K)
            shift.append((weight.T @ slope) / weight.sum(0).clamp_min(1e-6))
        loc = centre["M.gain"] - self.gain_kept * torch.stack(shift, 1)
        return pyro.sample("M.gain", EventNormal(loc, self.gain_log_scale.exp()))

    def _walk(
        self, name: str, values: dict[str, Tensor], drawn: Tensor, centre: dict[str, Tensor]
    ) -> Tensor:
        part = lambda field: getattr(self, f"{name}_residual_{field}")  # noqa: E731
        model, unseen = self.model, getattr(self, f"{name}_unseen")
        # what was drawn before: change of the low-rank response, and each batch's share; (n, T, G)
        now, usual = (model.driver_response(v, name) for v in (values, centre))
        d, share = model.config.n_latent, getattr(self, f"{name}_batch_share")
        change = now[..., :d] - usual[..., :d]  # axes of z are the same in both
        weights = torch.cat([change, now[..., d:], -usual[..., d:], share], -1)
        taken = weights @ torch.cat([model.axes(values), model.axes(centre)[d:], drawn])
        loc = subtract_share(part("loc"), getattr(self, f"{name}_log_ratio"), part("kept"), taken)
        some = [False] * unseen.shape[1]
        if getattr(self, f"{name}_has_unseen"):
            some = unseen.any(0).tolist()
        with torch.no_grad():
            step = model.step_scale(values, name) if any(some) else unseen[:, 1:, None]
        walk = MarkovLowRankNormal(
            loc,
            part("log_scale").exp(),
            model.loading.detach(),
            part("tau").exp(),
            part("phi"),
            unseen,
            step,
            model.persistence().detach(),
            some,
        )
        return pyro.sample(f"{name}.residual", walk)

    def _drawn(self, values: dict[str, Tensor]) -> Tensor:
        """Deviation of the sampled baseline and η from their centres, (B, G)."""
        drawn = (values["V.baseline"] - self.baseline_loc)[None]
        if self.model.n_batches == 1:
            return drawn
        centre = {"eta.free": self.eta_loc}
        if self.model.noise.has_content:
            centre["eta.content"] = self.content_loc
        return drawn + self.model.noise.eta(values) - self.model.noise.eta(centre)

    def _centre(self) -> dict[str, Tensor]:
        """Centres of the sites that a condition's shift depends on."""
        model = self.model
        names = {
            "V.loading": "loading",
            "P.on_target": "on_target",
            "W.log_rate": "rate",
            "W.log_rate_base": "rate_base",
            "W.drift": "drift",
            "P.residual": "P_residual",
            "M.residual": "M_residual",
            "P.interaction": "interaction",
        }
        centre = {
            site: getattr(self, f"{name}_loc")
            for site, name in names.items()
            if hasattr(self, f"{name}_loc")
        }
        centre |= self._centre_of(self.dynamics_sites)
        centre["P.effect"] = self.effect_loc * model.log_effect_scale.exp()
        if model.has_field:
            centre["W.field"] = self.field_loc * model.field.log_scale.exp()
        if model.has_rates:
            centre["W.decay_ratio"] = self.decay_loc.exp()
            centre["W.log_decay"] = model.log_decay(centre)
        if model.has_turnover:
            centre["M.turnover"] = self._log_turnover(centre).exp()
        if model.n_media:
            ratio = self.control_log_ratio.exp()
            centre["M.effect"] = self.media_effect_loc * ratio[:, None]
            centre["M.gain"] = self.gain_loc / ratio
        return centre

    # ------------------------------------------------------------------ the guide
    def forward(
        self,
        x: Tensor,
        index: Tensor,
        condition: Tensor,
        batch: Tensor,
        log_size: Tensor,
        covariates: Tensor | None = None,
    ) -> None:
        """Run the guide on a minibatch; arguments as in `GenerativeModel.forward`."""
        values = self.globals()
        loc, scale = self.encode(values, x, condition, batch, covariates, log_size=log_size)
        with pyro.plate("cells", self.model.n_cells, subsample=index):
            z = pyro.sample("X.z", dist.Normal(loc, scale).to_event(1))
            if self.model.dynamics.noisy:
                draw_past(self.reversal, z, *self.model.cell_path(values, condition))

    def encode(
        self,
        values: dict[str, Tensor],
        x: Tensor,
        condition: Tensor,
        batch: Tensor,
        covariates: Tensor | None = None,
        conditions: Conditions | None = None,
        log_size: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Posterior mean and standard deviation of X.z given the sampled globals, (cells, d).

        `log_size` as in `forward`; with several views it says which were measured.
        """
        shift = self.model.shift_parts(values, condition, batch, covariates, conditions)
        if self.model.config.views:
            assert log_size is not None
            return self._encode_views(values, x, shift, log_size)
        loc, scale = self.encoder(x)
        moved = state_shift(
            shift.plus(values["V.baseline"] - self.baseline_loc),
            row_sums(x) / self.mean_count.sum(),
            self.model.loading.detach(),
            self.mean_count,
            self.model.measurement.theta(values).detach(),
        )
        return loc - moved, scale

    def _encode_views(
        self, values: dict[str, Tensor], x: Tensor, shift: CellShift, log_size: Tensor
    ) -> tuple[Tensor, Tensor]:
        """As `encode`; the shift of a cell moves its state by the views that were measured."""
        view = self.model.measurement
        assert isinstance(view, JointView)
        seen = torch.isfinite(log_size[:, :-1])
        loc, scale = self.encoder(x, seen)
        change = shift.plus(values["V.baseline"] - self.baseline_loc)
        theta = view.theta(values).detach()
        relative = torch.where(seen, log_size[:, :-1] - view.usual, torch.zeros_like(view.usual))
        depth = (relative.exp() * seen).sum(1) / seen.sum(1).clamp_min(1)
        sizes = torch.tensor(view.features.sizes, device=seen.device)
        moved = torch.zeros_like(loc)
        number = 2 ** torch.arange(seen.shape[1], device=seen.device)
        pattern, which = torch.unique(seen.long() @ number, return_inverse=True)
        for i in range(len(pattern)):
            cells = (which == i).nonzero()[:, 0]
            measured = seen[cells[0]].to(self.mean_count).repeat_interleave(sizes)
            some = state_shift(
                change.of_cells(cells) if len(pattern) > 1 else change,
                depth[cells],
                self.model.loading.detach(),
                self.mean_count * measured,
                theta,
            )
            moved = moved.index_copy(0, cells, some)
        return loc - moved, scale
