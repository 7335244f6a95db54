"""Parameters of the guide, created eagerly and started at the scale the counts suggest.

A log standard deviation that starts at an arbitrary value has not arrived when training ends, and
the interval is then honest by luck or not at all.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Distribution, constraints

from pyrocell.distributions import Start
from pyrocell.generative.model import GenerativeModel
from pyrocell.generative.starting_values import ScreenStatistics
from pyrocell.generative.state_dynamics import BackwardChain
from pyrocell.guide.encoder import Encoder, fisher_metric
from pyrocell.noise.content import condition_cells, driver_cells, layout_mix
from pyrocell.screen.screen import Screen

__all__ = ["GuideParameters"]

_MOTION = ("flow_", "state_noise_", "reversal.")  # names of parameters of how states move


def factor_name(site: str) -> str:
    """Name of a declared site's factor: "V.dispersion" is `dispersion_loc` and so on."""
    return site.partition(".")[2].replace(".", "_")


def start_at_prior(prior: Distribution) -> Start:
    """Where a factor starts of which nothing is known but the prior: at its mean, a tenth wide."""
    mean, wide = prior.mean.detach(), torch.tensor(0.1)
    support = getattr(prior.support, "base_constraint", prior.support)
    if support is constraints.real:
        return Start(mean, wide)
    if support is constraints.positive:
        return Start(mean.log(), wide, positive=True)
    raise TypeError(f"a declared site is real or positive, not in {prior.support}")


class GuideParameters(nn.Module):
    """Parameters and layout tables of `Guide`; arguments as there."""

    mean_count: Tensor
    eta_mix: Tensor
    cells_at_time: Tensor
    effect_value: Tensor
    effect_cells: Tensor
    joined: Tensor
    joined_axes: Tensor
    several_cells: Tensor
    several_batch_share: Tensor
    arm_share: Tensor
    interaction_log_noise: Tensor
    # parameters by `_gaussian`, those that are not looked up by name
    baseline_loc: Tensor
    eta_loc: Tensor
    content_loc: Tensor
    effect_loc: Tensor
    media_effect_loc: Tensor
    gain_loc: Tensor
    gain_log_scale: Tensor
    rate_base_loc: Tensor
    rate_loc: Tensor
    rate_log_scale: Tensor
    decay_loc: Tensor
    decay_log_scale: Tensor
    turnover_loc: Tensor
    turnover_log_scale: Tensor
    field_loc: Tensor
    interaction_loc: Tensor
    interaction_log_scale: Tensor

    def __init__(self, model: GenerativeModel, screen: Screen, statistics: ScreenStatistics):
        super().__init__()
        self._model = (model,)
        self.positive: dict[str, bool] = {}  # sites that components declare
        self._start(model, screen, statistics)
        config, features = model.config, model.config.features
        self.encoder = Encoder(model.n_genes, config.n_hidden, config.n_latent, features)
        if features is not None:
            self.encoder.centre.copy_(torch.log1p(statistics.mean))
        self.register_buffer("mean_count", statistics.mean.clone())

    @property
    def model(self) -> GenerativeModel:
        """The generative model this guide belongs to."""
        return self._model[0]

    # ------------------------------------------------------------------ parameters
    def _start(self, model: GenerativeModel, screen: Screen, start: ScreenStatistics) -> None:
        config, g = model.config, model.n_genes
        k, j, d = model.n_perturbations, model.n_media, config.n_latent
        relative, n_cells = start.relative_variance, model.n_cells
        self._gaussian("baseline", model.baseline_centre, start.baseline_scale)
        self.baseline_tau = nn.Parameter(torch.full((1, d), math.log(0.03)))
        self._gaussian("loading", start.response, torch.tensor(0.15))
        starts = model.measurement.starting_values(start.log_dispersion)
        self.view_sites = self._declare(model.measurement.priors(), starts)
        if config.decoder == "curved":
            zeros = torch.zeros(len(model.curvature.offset), g)
            self._gaussian("curvature", zeros, torch.tensor(0.1))
        if model.n_batches > 1:
            counts = screen.layout.to_numpy(np.int64).sum(0)
            per_batch = n_cells / model.n_batches
            self.register_buffer(
                "eta_mix", layout_mix(model.noise.contrast, counts), persistent=False
            )
            scale = (relative / per_batch).sqrt().clamp(1e-3, 0.2)
            self._gaussian("eta", torch.zeros(model.n_batches - 1, g), scale)
            self.eta_tau = nn.Parameter(
                torch.full((model.n_batches - 1, d), -0.5 * math.log(per_batch))
            )
            if model.noise.has_content:
                self._gaussian(
                    "content", torch.zeros(model.noise.content.shape[1], g), torch.tensor(0.1)
                )
                self.content_kept = nn.Parameter(torch.tensor(2.0))
            self._gaussian("eta_scale", torch.full((g,), math.log(0.2)), torch.tensor(0.3))
        if model.noise.has_laboratories:
            start_at = torch.full((g,), math.log(model.priors.laboratory_sd))
            self._gaussian("laboratory_scale", start_at, torch.tensor(0.3))
        cells = torch.as_tensor(driver_cells(screen), dtype=torch.float32)  # (K + J, T, B)
        per_node = cells.sum(-1)
        self._shared_cells(model, screen)
        width = model.priors.effect_sd
        error = self._sampling_error(model, start, cells.sum((1, 2)))  # (K + J, D)
        shrunk = (error[:k].square().reciprocal() + width**-2).rsqrt()
        self._gaussian("effect", start.effect / width, shrunk / width, triangular=True)
        self._gaussian("on_target", torch.zeros(k), torch.tensor(0.2))
        if j:
            prior = model.priors.media_effect_sd
            shrunk = (error[k:].square().reciprocal() + prior**-2).rsqrt()
            self._gaussian("media_effect", start.media_effect, shrunk, triangular=True)
            self._gaussian("gain", torch.ones(k, j), torch.tensor(0.1))
            # gain × response is what most cells measure, their ratio only the controls: a direction
            # of its own, so that Adam moves along it
            self.control_log_ratio = nn.Parameter(torch.zeros(j))
            self.control_log_error = nn.Parameter(self._control_error(model, screen, start).log())
            self.gain_kept = nn.Parameter(torch.ones(k, j))
        if model.has_rates:
            self._rates(model, per_node)
        if model.has_turnover:
            prior = torch.tensor(model.priors.turnover_sd)
            self._gaussian("turnover", torch.full((j,), model.priors.turnover_loc), prior)
            self.turnover_along_base = nn.Parameter(torch.ones(j))
        if model.has_field:
            zeros = torch.zeros(len(model.field.offset), model.n_axes)
            self._gaussian("field", zeros, torch.tensor(0.5))
        if model.moves_states:
            self._motion(model)
        self.dynamics_sites = self._declare(
            model.dynamics.priors(), model.dynamics.starting_values()
        )
        if model.has_drift:
            self._gaussian("drift", torch.zeros(config.n_response), torch.tensor(0.05))
        if config.n_covariates:
            self._gaussian("covariate", torch.zeros(config.n_covariates, g), torch.tensor(0.03))
            self.covariate_tau = nn.Parameter(
                torch.full((config.n_covariates, d), -0.5 * math.log(n_cells))
            )
        if config.gene_residual:
            if model.has_time:
                p = model.priors
                medians = torch.tensor([p.process_noise_sd, p.process_noise_effect]).log()
                self._gaussian("process", medians, torch.tensor(0.1))
                self._gaussian("gene_scale", torch.zeros(g), torch.tensor(0.2))
                self._gaussian("driver_scale", torch.zeros(k + j), torch.tensor(0.1))
            self._residual("P", cells[:k], per_node[:k], relative, model.residual_start)
            if j:
                self._residual("M", cells[k:], per_node[k:], relative, model.media_residual_sd)
        if len(model.several):
            self._joint(model, screen, relative)
        if len(model.uncertain):
            p = model.priors
            centre = torch.full((len(model.uncertain.kinds),), math.log(p.assumed_sd))
            self._gaussian("assumed", centre, torch.tensor(p.assumed_spread))

    def _rates(self, model: GenerativeModel, cells: Tensor) -> None:
        """Rates: each driver's given the common one, each product's given its driver's."""
        p, k, n = model.priors, model.n_perturbations, len(cells)
        rate = torch.tensor(p.log_rate_loc - math.log(model.reference_time))
        width = torch.tensor(0.5)
        self._gaussian("rate_base", rate, width)
        self._gaussian("rate", rate.expand(n), width)
        self._gaussian("decay", torch.full((k,), p.decay_ratio_loc), width)
        self.rate_along_base = nn.Parameter(torch.full((n,), 0.5))
        self.decay_along_rate = nn.Parameter(torch.zeros(k))
        self.register_buffer("cells_at_time", cells, persistent=False)  # (K + J, T)

    def _motion(self, model: GenerativeModel) -> None:
        """The field of states, its codes, its noise, and the way back along it."""
        width = model.motion
        self._gaussian("flow", torch.zeros_like(width.direction.mT), torch.tensor(0.02))
        codes = width.code_direction.shape[0]
        self._gaussian("flow_code", torch.zeros(model.n_perturbations, codes), torch.tensor(0.3))
        if model.n_media:
            self._gaussian("flow_media", torch.zeros(model.n_media, codes), torch.tensor(0.3))
        if model.dynamics.noisy:
            noise = torch.full((model.config.n_latent,), math.log(model.priors.state_noise_sd))
            self._gaussian("state_noise", noise, torch.tensor(0.1))
            self.reversal = BackwardChain(model.config.n_latent)

    def _shared_cells(self, model: GenerativeModel, screen: Screen) -> None:
        """Cells by perturbation and batch, along the principal axes of who shares cells with whom.

        Without combinations those axes are the perturbations themselves.
        """
        member = screen.membership  # (C, K)
        table = torch.as_tensor(condition_cells(screen))  # (C, B)
        in_pairs = member[np.flatnonzero(np.diff(member.indptr) > 1)].sum(0) > 0  # (K,)
        joined = torch.as_tensor(np.flatnonzero(in_pairs))
        cells = torch.as_tensor(member.T @ table.numpy())  # (K, B)
        value = cells.sum(1)  # (K,)
        part = torch.as_tensor(member[:, joined.numpy()].toarray())
        eigenvalue, axes = torch.linalg.eigh(part.T @ (table.sum(1, keepdim=True) * part))
        value[joined], cells[joined] = eigenvalue.clamp_min(0), axes.T @ cells[joined]
        self.register_buffer("effect_value", value[:, None], persistent=False)
        self.register_buffer("effect_cells", cells, persistent=False)
        self.register_buffer("joined", joined, persistent=False)
        self.register_buffer("joined_axes", axes, persistent=False)

    @staticmethod
    def _sampling_error(model: GenerativeModel, start: ScreenStatistics, cells: Tensor) -> Tensor:
        """Standard error of each driver's displacement along an axis, the others known, (n, D)."""
        loading = model.loading.detach()
        metric = fisher_metric(loading, start.mean, start.log_dispersion.exp())
        axes = torch.cat([loading, start.response])
        return (cells.clamp_min(1)[:, None] * metric(axes, axes).clamp_min(1e-6)).rsqrt()

    @staticmethod
    def _control_error(model: GenerativeModel, screen: Screen, start: ScreenStatistics) -> Tensor:
        """Relative standard error of each medium's response as the controls measure it, (J,)."""
        control = screen.is_control
        cells = screen.conditions.n_cells.to_numpy()
        before = cells[control & (screen.exposure.sum(1) == 0)].sum()
        after = (screen.exposure[control] * cells[control, None]).sum(0)  # (J,)
        harmonic = torch.as_tensor(1 / (1 / np.maximum(before, 1) + 1 / np.maximum(after, 1)))
        axes = torch.cat([model.loading.detach(), start.response])
        metric = fisher_metric(model.loading.detach(), start.mean, start.log_dispersion.exp())
        response = start.media_effect @ axes
        information = harmonic * metric(response, response) + 1
        return information.rsqrt().float().clamp(0.01, 0.5)

    def _gaussian(self, name: str, loc: Tensor, scale: Tensor, triangular: bool = False) -> None:
        setattr(self, f"{name}_loc", nn.Parameter(loc.clone()))
        setattr(self, f"{name}_log_scale", nn.Parameter(scale.log().expand(loc.shape).clone()))
        if triangular:
            lower = torch.zeros(*loc.shape, loc.shape[-1])
            setattr(self, f"{name}_lower", nn.Parameter(lower))

    def _declare(
        self, priors: dict[str, Distribution], starts: dict[str, Start]
    ) -> tuple[str, ...]:
        """Factors of the sites of a component: where it says, or at the means of their priors."""
        for site, prior in priors.items():
            start = starts.get(site) or start_at_prior(prior)
            name = factor_name(site)
            if hasattr(self, f"{name}_loc"):
                raise ValueError(f"{site} has the name of a site that the guide has already")
            self._gaussian(name, start.loc, start.scale)
            self.positive[site] = start.positive
        return tuple(priors)

    def _residual(
        self, name: str, cells: Tensor, per_node: Tensor, relative: Tensor, prior: float
    ) -> None:
        n, t, _ = cells.shape
        n_genes, d = len(relative), self.model.config.n_latent
        noise = (relative / per_node.clamp_min(1)[..., None]).clamp_max(1.0)  # (n, T, G)
        posterior = (noise * prior**2 / (noise + prior**2)).sqrt()
        setattr(self, f"{name}_residual_loc", nn.Parameter(torch.zeros(n, t, n_genes)))
        setattr(self, f"{name}_residual_log_scale", nn.Parameter(posterior.log()))
        tau = -0.5 * per_node.clamp_min(1).log()[..., None].expand(n, t, d)
        setattr(self, f"{name}_residual_tau", nn.Parameter(tau.clone()))
        setattr(self, f"{name}_residual_phi", nn.Parameter(torch.full((n, t), 0.9)))
        ratio = 2 * math.log(prior) - noise.log()  # logit of what the residual can give back
        self.register_buffer(f"{name}_log_ratio", ratio.clamp(-4, 4))
        setattr(self, f"{name}_residual_kept", nn.Parameter(torch.zeros(n, t)))
        seen = per_node > 0
        unseen = ~(seen.flip(1).cumsum(1) > 0).flip(1)
        unseen[:, 0] = False
        share = cells / per_node.clamp_min(1)[..., None]  # (n, T, B)
        self.register_buffer(f"{name}_unseen", unseen, persistent=False)
        setattr(self, f"{name}_has_unseen", bool(unseen.any()))  # a step need not look
        self.register_buffer(f"{name}_batch_share", share, persistent=False)

    def _joint(self, model: GenerativeModel, screen: Screen, relative: Tensor) -> None:
        """Parameters and layout of the conditions with several drivers."""
        table = torch.as_tensor(condition_cells(screen))[model.several]  # (rows, B)
        cells = table.sum(1).clamp_min(1)
        self.register_buffer("several_cells", cells, persistent=False)
        self.register_buffer("several_batch_share", table / cells[:, None], persistent=False)
        if not model.n_interactions:
            return
        member = torch.zeros(model.n_interactions, len(cells))
        member[model.interaction[model.several], torch.arange(len(cells))] = cells
        per_arm = member.sum(1, keepdim=True)
        self.register_buffer("arm_share", member / per_arm, persistent=False)
        noise = (relative / per_arm).clamp_max(1.0)  # (arms, G)
        prior = model.priors.interaction_sd
        self.register_buffer("interaction_log_noise", noise.log())
        self.interaction_kept = nn.Parameter(torch.zeros(model.n_interactions))
        scale = (noise * prior**2 / (noise + prior**2)).sqrt()
        self._gaussian("interaction", torch.zeros(model.n_interactions, model.n_genes), scale)

    def fast_parameters(self) -> list[nn.Parameter]:
        """Parameters of the global sites, trained at the higher rate."""
        return [p for name, p in self.named_parameters() if not name.startswith("encoder.")]

    def state_dynamics_parameters(self) -> list[nn.Parameter]:
        """Those of them that say how states move: field, codes, noise and the way back."""
        return [p for n, p in self.named_parameters() if n.startswith(_MOTION)]
