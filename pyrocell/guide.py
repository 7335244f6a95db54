"""The variational family: every dependence that decides whether an interval is honest is in here.

* The encoder must know every log-mean shift its cell received, or it reads batch noise and effects
  as cell state: q(z_n) = N(enc(x_n) − (1 − σ_n²) P s_n, σ_n), s_n the sampled shift of the cell.
* z_n → z_n − u, η_b → η_b + uD leaves the likelihood unchanged, so gene-level sites carry a low-rank
  covariance along the loading D of z.
* The rows of η are correlated as the batch sizes make them, and a perturbation's residual gives back
  what the baseline and the batches of its cells took (its cells measure the sum).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrocell.distributions import LowRankNormal, MarkovLowRankNormal
from pyrocell.generative import Conditions, GenerativeModel, ScreenStatistics
from pyrocell.screen import Screen

__all__ = ["Guide"]

_RIDGE = 0.01
_LOG_SD_RANGE = (-5.0, 1.0)


class Guide(nn.Module):
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

    def __init__(self, model: GenerativeModel, screen: Screen, statistics: ScreenStatistics):
        super().__init__()
        self._model = (model,)
        self._start(model, screen, statistics)
        self.encoder = Encoder(model.n_genes, model.config.n_hidden, model.config.n_latent)
        self.register_buffer("mean_count", statistics.mean.clone())

    @property
    def model(self) -> GenerativeModel:
        """The generative model this guide belongs to."""
        return self._model[0]

    # ------------------------------------------------------------------ parameters
    def _start(self, model: GenerativeModel, screen: Screen, start: ScreenStatistics) -> None:
        config, g = model.config, model.n_genes
        k, j, n_axes, d = model.n_perturbations, model.n_media, model.n_axes, config.n_latent
        relative, n_cells = start.relative_variance, model.n_cells
        self._gaussian("baseline", start.baseline, start.baseline_scale)
        self.baseline_tau = nn.Parameter(torch.full((1, d), math.log(0.03)))
        self._gaussian("loading", start.response, torch.tensor(0.15))
        self._gaussian("dispersion", start.log_dispersion, torch.tensor(0.1))
        if config.likelihood == "zinb":
            centre = torch.tensor(model.priors.gate_loc).expand(g, 2)
            self._gaussian("gate", centre, torch.tensor([0.5, 0.1]))
        if model.n_batches > 1:
            counts = np.bincount(screen.cell_batch, minlength=model.n_batches)
            per_batch = n_cells / model.n_batches
            self.register_buffer("eta_mix", _layout_mix(model.contrast, counts), persistent=False)
            scale = (relative / per_batch).sqrt().clamp(1e-3, 0.2)
            self._gaussian("eta", torch.zeros(model.n_batches - 1, g), scale)
            self.eta_tau = nn.Parameter(
                torch.full((model.n_batches - 1, d), -0.5 * math.log(per_batch))
            )
            self._gaussian("eta_scale", torch.full((g,), math.log(0.2)), torch.tensor(0.3))
        cells = torch.as_tensor(_driver_cells(screen), dtype=torch.float32)  # (K + J, T, B)
        per_node = cells.sum(-1)
        self._gaussian("effect", start.effect, torch.tensor(0.05), triangular=True)
        self._gaussian("on_target", torch.zeros(k), torch.tensor(0.2))
        if j:
            self._gaussian("media_effect", start.media_effect, torch.tensor(0.05), triangular=True)
            self._gaussian("gain", torch.ones(k, j), torch.tensor(0.1))
            # gain × response is what most cells measure, their ratio only the controls: a direction
            # of its own, so that Adam moves along it
            self.control_log_ratio = nn.Parameter(torch.zeros(j))
            self.control_log_error = nn.Parameter(self._control_error(model, screen, start).log())
            self.gain_kept = nn.Parameter(torch.ones(k, j))
        if model.has_time:
            self._gaussian("rate_base", torch.tensor(model.priors.log_rate_loc), torch.tensor(0.2))
            self._gaussian(
                "rate", torch.full((k + j,), model.priors.log_rate_loc), torch.tensor(0.2)
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
                self._residual("M", cells[k:], per_node[k:], relative, model.priors.media_residual_sd)
        if len(model.several):
            self._joint(model, screen, relative)

    @staticmethod
    def _control_error(model: GenerativeModel, screen: Screen, start: ScreenStatistics) -> Tensor:
        """Relative standard error of each medium's response as the controls measure it, (J,)."""
        control = screen.genotype.sum(1) == 0
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
        self.register_buffer(f"{name}_batch_share", share, persistent=False)

    def _joint(self, model: GenerativeModel, screen: Screen, relative: Tensor) -> None:
        """Parameters and layout of the conditions with several drivers."""
        table = np.zeros((len(screen.conditions), model.n_batches), np.float32)
        np.add.at(table, (screen.cell_condition, screen.cell_batch), 1)
        table = torch.as_tensor(table)[model.several]  # (rows, B)
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
        ratio = (2 * math.log(prior) - noise.log()).clamp(-4, 4)
        self.register_buffer("interaction_log_ratio", ratio)
        self.interaction_kept = nn.Parameter(torch.zeros(model.n_interactions))
        scale = (noise * prior**2 / (noise + prior**2)).sqrt()
        self._gaussian("interaction", torch.zeros(model.n_interactions, model.n_genes), scale)

    def fast_parameters(self) -> list[nn.Parameter]:
        """Parameters of the global sites, trained at the higher rate (design 5.5)."""
        return [p for name, p in self.named_parameters() if not name.startswith("encoder.")]

    # ------------------------------------------------------------------ global sites
    def globals(self) -> dict[str, Tensor]:
        """Sample every global site from the guide."""
        model = self.model
        with pyro.poutine.scale(scale=model.kl_weight):
            values = self._view_sites() | self._noise_sites() | self._operator_sites()
            if model.config.gene_residual:
                values |= self._residual_sites(values)
            if len(model.several):
                values |= self._joint_sites(values)
        return values

    def _normal(self, site: str, name: str, cls: type = dist.Normal) -> Tensor:
        loc, scale = getattr(self, f"{name}_loc"), getattr(self, f"{name}_log_scale").exp()
        return pyro.sample(site, cls(loc, scale).to_event(loc.dim()))

    def _low_rank(self, site: str, name: str, mix: Tensor | None = None) -> Tensor:
        loc = getattr(self, f"{name}_loc")
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
            return pyro.sample(site, _Squeezed(rows))
        return pyro.sample(site, rows)

    def _triangular(self, site: str, name: str, loc: Tensor | None = None) -> Tensor:
        loc = getattr(self, f"{name}_loc") if loc is None else loc
        scale = getattr(self, f"{name}_log_scale").exp()
        chol = getattr(self, f"{name}_lower").tril(-1) + torch.diag_embed(scale)
        normal = dist.MultivariateNormal(loc, scale_tril=chol)
        return pyro.sample(site, normal.to_event(1))

    def _media_effect(self, loc: Tensor) -> Tensor:
        """c with the controls' own error along it: they alone set the scale of the gains."""
        chol = self.media_effect_lower.tril(-1) + torch.diag_embed(
            self.media_effect_log_scale.exp()
        )
        along = self.control_log_error.exp()[:, None] * loc
        covariance = chol @ chol.mT + along[..., :, None] * along[..., None, :]
        root = torch.linalg.cholesky_ex(covariance).L  # a NaN is to be found at its site
        normal = dist.MultivariateNormal(loc, scale_tril=root)
        return pyro.sample("M.effect", normal.to_event(1))

    def _view_sites(self) -> dict[str, Tensor]:
        config = self.model.config
        values = {
            "V.baseline": self._low_rank("V.baseline", "baseline"),
            "V.loading": self._normal("V.loading", "loading"),
            "V.dispersion": self._normal("V.dispersion", "dispersion", dist.LogNormal),
        }
        if config.likelihood == "zinb":
            values["V.gate"] = self._normal("V.gate", "gate")
        if config.n_covariates:
            values["V.covariate"] = self._low_rank("V.covariate", "covariate")
        return values

    def _noise_sites(self) -> dict[str, Tensor]:
        model = self.model
        if model.n_batches == 1:
            return {"eta": model.loading.new_zeros(1, model.n_genes)}
        scale = self._normal("eta.scale", "eta_scale", dist.LogNormal)
        free = self._low_rank("eta.free", "eta", self.eta_mix)
        return {"eta.scale": scale, "eta.free": free, "eta": model.contrast @ free}

    def _operator_sites(self) -> dict[str, Tensor]:
        model = self.model
        values = {
            "P.effect": self._triangular("P.effect", "effect"),
            "P.on_target": self._normal("P.on_target", "on_target"),
        }
        if model.n_media:
            ratio = self.control_log_ratio.exp()[:, None]
            values["M.effect"] = self._media_effect(self.media_effect_loc * ratio)
        if model.has_time:
            values["W.log_rate_base"] = self._normal("W.log_rate_base", "rate_base")
            values["W.log_rate"] = self._normal("W.log_rate", "rate")
        if model.has_drift:
            values["W.drift"] = self._normal("W.drift", "drift")
        return values

    def _residual_sites(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        model, out = self.model, {}
        if model.has_time:
            out["W.process_noise"] = self._normal("W.process_noise", "process", dist.LogNormal)
            out["W.gene_scale"] = self._normal("W.gene_scale", "gene_scale", dist.LogNormal)
            out["W.driver_scale"] = self._normal("W.driver_scale", "driver_scale", dist.LogNormal)
        both = values | out
        out["P.residual"] = self._walk("P", both)
        if model.n_media:
            out["M.residual"] = self._walk("M", both)
        return out

    def _joint_sites(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Interactions and gains: what is left of a condition's sum once its parts are drawn.

        Cells of a condition with several drivers measure the sum of its parts, so what is sampled
        last gives back what the parts took (generalised least squares, z integrated out).
        """
        model, out = self.model, {}
        rows = model.conditions.select(model.several)
        centre = self._centre()
        if model.n_media:
            values = values | {"M.gain": centre["M.gain"]}
        if model.n_interactions:
            zeros = self.interaction_loc.new_zeros(self.interaction_loc.shape)
            values, centre = ({**v, "P.interaction": zeros} for v in (values, centre))
        taken = model.shift(values, rows) - model.shift(centre, rows)
        taken = taken + (values["V.baseline"] - self.baseline_loc)
        if model.n_batches > 1:
            noise = model.contrast @ (values["eta.free"] - self.eta_loc)
            taken = taken + self.several_batch_share @ noise  # (rows, G)
        if model.n_interactions:
            per_arm = self.arm_share @ taken  # (arms, G)
            kept = (self.interaction_log_ratio + self.interaction_kept[:, None]).sigmoid()
            loc = self.interaction_loc - kept * per_arm
            normal = dist.Normal(loc, self.interaction_log_scale.exp())
            out["P.interaction"] = pyro.sample("P.interaction", normal.to_event(2))
            change = out["P.interaction"] - self.interaction_loc
            taken = taken + change[rows.interaction]
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
            model.loading.detach(), self.mean_count, values["V.dispersion"].detach()
        )
        size = metric(response, response).clamp_min(1e-3)  # (J,)
        single = (rows.genotype.sum(1) == 1).float() * self.several_cells
        shift = []
        for j in range(model.n_media):
            slope = metric(taken, response[j].expand_as(taken)) / size[j]  # (rows,)
            weight = rows.genotype * (single * rows.exposure[:, j])[:, None]  # (rows, K)
            shift.append((weight.T @ slope) / weight.sum(0).clamp_min(1e-6))
        loc = centre["M.gain"] - self.gain_kept * torch.stack(shift, 1)
        return pyro.sample("M.gain", dist.Normal(loc, self.gain_log_scale.exp()).to_event(2))

    def _walk(self, name: str, values: dict[str, Tensor]) -> Tensor:
        part = lambda field: getattr(self, f"{name}_residual_{field}")  # noqa: E731
        model = self.model
        taken = values["V.baseline"] - self.baseline_loc
        taken = taken + model.low_rank(values, name) - model.low_rank(self._centre(), name)
        if model.n_batches > 1:
            noise = model.contrast @ (values["eta.free"] - self.eta_loc)  # (B, G)
            taken = taken + getattr(self, f"{name}_batch_share") @ noise  # (n, T, G)
        kept = (getattr(self, f"{name}_log_ratio") + part("kept")[..., None]).sigmoid()
        walk = MarkovLowRankNormal(
            part("loc") - kept * taken,
            part("log_scale").exp(),
            model.loading.detach(),
            part("tau").exp(),
            part("phi"),
            getattr(self, f"{name}_unseen"),
            model.step_scale(values, name).detach(),
            model.persistence().detach(),
        )
        return pyro.sample(f"{name}.residual", walk)

    def _centre(self) -> dict[str, Tensor]:
        """Centres of the sites that a condition's shift depends on."""
        model = self.model
        names = {
            "V.loading": "loading",
            "P.effect": "effect",
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
        loc, scale = self.encode(values, x, condition, batch, covariates)
        with pyro.plate("cells", self.model.n_cells, subsample=index):
            pyro.sample("X.z", dist.Normal(loc, scale).to_event(1))

    def encode(
        self,
        values: dict[str, Tensor],
        x: Tensor,
        condition: Tensor,
        batch: Tensor,
        covariates: Tensor | None = None,
        conditions: Conditions | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Posterior mean and standard deviation of X.z given the sampled globals, (cells, d)."""
        shift = self.model.cell_shift(values, condition, batch, covariates, conditions)
        shift = shift + (values["V.baseline"] - self.baseline_loc)
        dense = x.to_dense() if x.layout != torch.strided else x
        loc, scale = self.encoder(dense)
        weight = (1 - scale.detach().square()).clamp_min(0)
        return loc - weight * (shift @ self._projection(values).T), scale

    def _projection(self, values: dict[str, Tensor]) -> Tensor:
        """Fisher-weighted least-squares map from a log-mean shift to cell state, (d, G)."""
        loading = self.model.loading.detach()
        weighted = loading * _fisher_weight(self.mean_count, values["V.dispersion"].detach())
        ridge = _RIDGE * torch.eye(len(loading), device=loading.device)
        return torch.linalg.solve(weighted @ loading.T + ridge, weighted)


class Encoder(nn.Module):
    """Amortised q(z | x) from log1p counts; a cell's condition and batch enter through the shift."""

    def __init__(self, n_genes: int, n_hidden: int, n_latent: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(n_genes, n_hidden),
            nn.ReLU(),
            nn.Linear(n_hidden, n_hidden),
            nn.ReLU(),
            nn.Linear(n_hidden, 2 * n_latent),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, (cells, d) each."""
        loc, log_scale = self.body(torch.log1p(x)).chunk(2, -1)
        return loc, log_scale.clamp(*_LOG_SD_RANGE).exp()


class _Squeezed(LowRankNormal):
    """A single row of `LowRankNormal` with event shape (G,)."""

    def __init__(self, rows: LowRankNormal):
        self._rows = rows
        super().__init__(rows.loc, rows.scale, rows.axes, rows.tau, rows.mix)
        self._event_shape = rows.loc.shape[-1:]

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        return self._rows.rsample(sample_shape).squeeze(-2)

    def log_prob(self, value: Tensor) -> Tensor:
        return self._rows.log_prob(value.unsqueeze(-2))

    @property
    def mean(self) -> Tensor:
        return self._rows.mean.squeeze(-2)

    @property
    def variance(self) -> Tensor:
        return self._rows.variance.squeeze(-2)


def _fisher_weight(mean: Tensor, theta: Tensor) -> Tensor:
    """Fisher information of a log mean, per cell and gene, (G,)."""
    return mean / (1 + mean / theta)


def fisher_metric(
    loading: Tensor, mean: Tensor, theta: Tensor
) -> Callable[[Tensor, Tensor], Tensor]:
    """Inner product of log-mean shifts by one cell's Fisher information, z integrated out."""
    weight = _fisher_weight(mean, theta)
    weighted = loading * weight
    inner = weighted @ loading.T + torch.eye(len(loading), device=loading.device)

    def product(a: Tensor, b: Tensor) -> Tensor:
        along = torch.linalg.solve(inner, weighted @ b.T)  # (d, n)
        return (a * weight * b).sum(-1) - ((a @ weighted.T) * along.T).sum(-1)

    return product


def _layout_mix(contrast: Tensor, counts: np.ndarray) -> Tensor:
    """Lower-triangular correlation of η's contrasts for these batch sizes, (B − 1, B − 1).

    The data's precision of the contrasts is C' diag(n_b) C; balanced batches give the identity.
    """
    weights = torch.as_tensor(counts / counts.mean(), dtype=contrast.dtype).clamp_min(1e-3)
    precision = contrast.T @ (weights[:, None] * contrast)
    return torch.linalg.cholesky(torch.linalg.inv(precision))


def _driver_cells(screen: Screen) -> np.ndarray:
    """Cells of each driver (perturbations, then media) by time and batch, (K + J, T, B)."""
    n_times, n_batches = max(1, len(screen.times)), len(screen.batches)
    table = np.zeros((len(screen.conditions), n_batches))
    np.add.at(table, (screen.cell_condition, screen.cell_batch), 1)
    drivers = np.concatenate([screen.genotype, screen.exposure], 1)  # (C, K + J)
    out = np.zeros((drivers.shape[1], n_times, n_batches))
    for t in range(n_times):
        rows = screen.time_index == t
        out[:, t] = drivers[rows].T @ table[rows]
    return out
