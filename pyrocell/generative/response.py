"""F and η as deterministic functions of the sites: who is shifted by how much (eqs. 1-15)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from pyrocell.generative.batch_noise import BatchNoise
from pyrocell.generative.config import ModelConfig, gather_nodes
from pyrocell.generative.interactions import Interactions, grown
from pyrocell.generative.screen_tensors import ScreenTensors
from pyrocell.generative.starting_values import ScreenStatistics
from pyrocell.generative.state_dynamics import StateDynamics, arm_path
from pyrocell.operators import (
    Production,
    ResponseParameters,
    bounded_rate,
    bounded_weight,
    condition_rate,
    gain_limit,
    respond_in_order,
)
from pyrocell.operators.dynamics.flow import Segment, StateField
from pyrocell.operators.response import FASTEST
from pyrocell.operators.state import State
from pyrocell.operators.waiting import onset_curve, relative_curve, relative_onset
from pyrocell.priors import Priors
from pyrocell.screen.conditions import Conditions
from pyrocell.screen.screen import Screen
from pyrocell.views import VIEWS, JointView, View
from pyrocell.views.decoder import CurvedDecoder

__all__ = ["COMMON", "COURSE", "ONSET", "SLOPE", "ScreenMap"]

COMMON, COURSE, SLOPE = "P.common", "W.course", "V.slope"
ONSET = "W.onset"  # derived of the rates: kept among the values while a guide needs it often


def _view_of(config: ModelConfig, priors: Priors, n_genes: int, n_batches: int) -> View:
    """The view, or several side by side."""
    common: dict[str, Any] = {
        "n_latent": config.n_latent,
        "priors": priors,
        "composition": config.composition,
        "dropout": config.dropout,
    }
    features = config.features
    if features is not None:
        kinds = [VIEWS[view["kind"]] for view in config.views]
        return JointView(features, kinds, n_batches=n_batches, **common)
    out = VIEWS[config.likelihood](n_genes=n_genes, **common)
    out.composition = out.composition and config.composition
    return out


class ScreenMap(ScreenTensors):
    """Point parameters, the screen as tensors, and the map from sites to log-mean shifts.

    Parameters
    ----------
    screen
        The registered screen.
    config, priors
        Shape and priors of the model.
    statistics
        Starting values.
    """

    baseline_centre: Tensor
    kl_weight: Tensor

    def __init__(
        self, screen: Screen, config: ModelConfig, priors: Priors, statistics: ScreenStatistics
    ):
        super().__init__(screen, config, priors)
        self.noise = BatchNoise(screen, config, priors)
        self.loading = nn.Parameter(statistics.loading.clone())  # (d, G)
        if config.decoder == "curved":
            self.curvature = CurvedDecoder(config.n_latent)
        if self.has_field:
            self.field = CurvedDecoder(2 * self.n_axes)
        if self.moves_states:
            self.motion = StateDynamics(config.n_latent, self.clock)
        self.measurement = _view_of(config, priors, self.n_genes, self.n_batches)
        self.measurement.prepare(statistics.mean, statistics.low, statistics.usual)
        self.log_effect_scale = nn.Parameter(torch.full((self.n_axes,), math.log(priors.effect_sd)))
        if self.has_time and config.gene_residual:
            self.log_residual_scale = nn.Parameter(torch.tensor(math.log(priors.walk_sd)))
            self.logit_persistence = nn.Parameter(torch.tensor(1.5))
        if self.n_interactions:
            self.interactions = Interactions(priors)
        self.residual_start = priors.walk_sd if self.has_time else priors.residual_sd
        start = self.measurement.starting_logits(statistics.baseline)
        self.register_buffer("baseline_centre", start.clone())
        self.register_buffer("kl_weight", torch.tensor(1.0))

    @property
    def can_resample(self) -> bool:
        """Whether there is what the layout cannot tell, and gene-level parts that can take it."""
        there = bool(len(self.noise.unidentified)) and self.config.gene_residual
        return there and not self.follows_gain

    def interaction_scale(
        self, values: dict[str, Tensor], genotype: Tensor, exposure: Tensor
    ) -> Tensor:
        """Prior standard deviation of the interactions of arms (A, K) and (A, J); (A, G)."""
        alone = [
            self.low_rank(values, operator) + values[f"{operator}.residual"] if n else None
            for operator, n in (("P", self.n_perturbations), ("M", self.n_media))
        ]
        return self.interactions.scale(genotype, exposure, alone)

    def interaction_grown(self, values: dict[str, Tensor], conditions: Conditions) -> Tensor:
        """Share of `P.interaction` in each condition, (C,); see `interactions.grown`."""
        return grown(conditions, self.response_parameters(values), self.reference_time)

    def log_decay(self, values: dict[str, Tensor]) -> Tensor:
        """log μ of each perturbed gene's product, (K,): never slower than the response itself."""
        return values["W.log_rate"][: self.n_perturbations] + values["W.decay_ratio"]

    def log_turnover_centre(self, values: dict[str, Tensor]) -> Tensor:
        """Prior centre of log ρ, a scalar: cascades are lost at the pace at which cells respond."""
        per_time = self.loading.new_full((), -math.log(self.clock))
        return values.get("W.log_rate_base", per_time) + self.priors.turnover_loc

    def axes(self, values: dict[str, Tensor]) -> Tensor:
        """Loadings of (y_z, y_r), (..., d + r, G); the own part's rows have unit RMS over genes."""
        own = values["V.loading"]
        own = own / own.square().mean(-1, keepdim=True).sqrt().clamp_min(1e-6)
        shape = (*own.shape[:-2], *self.loading.shape)  # own axes may be more than were trained
        return torch.cat([self.loading.expand(shape), own], -2)

    def response_parameters(self, values: dict[str, Tensor]) -> ResponseParameters:
        """Parameters of P, M and W in the form that the operators take."""
        k, j = self.n_perturbations, self.n_media
        one = self.loading.new_ones(())
        turnover = values.get("M.turnover", self.log_turnover_centre(values).exp().expand(j))
        at_once = one.new_full((), math.log(FASTEST / self.reference_time))
        base = values.get("W.log_rate_base", at_once)
        return ResponseParameters(
            effect=values["P.effect"],
            media_effect=values.get("M.effect", one.new_zeros(0, values["P.effect"].shape[-1])),
            gain=values.get("M.gain", one.new_ones(k, self.n_media)),
            turnover=turnover,
            log_rate=values.get("W.log_rate", base.expand(k + j)),
            base_log_rate=base,
            reference_time=self.reference_time,
            log_decay=values.get("W.log_decay"),
            field=self._field(values) if self.has_field else None,
            at_once=not self.has_rates,
        )

    def _field(self, values: dict[str, Tensor]) -> Production:
        """h(y, Δ) of eq. 25: zero at rest with its slope, contractive if so configured."""
        direction = self.field.direction
        weight = bounded_weight(values["W.field"], direction[: self.n_axes], self.config.lipschitz)
        return Production(direction, self.field.offset, weight)

    def step_scale(self, values: dict[str, Tensor], operator: str) -> Tensor:
        """Prior standard deviation of the residual's steps, (K or J, T - 1, G).

        Variance per step: (a² s_k² s_g² + b² (low-rank effect)²) Δt, so it widens with the distance
        from the measured times.
        """
        if not self.has_time:
            n = self.n_perturbations if operator == "P" else self.n_media
            return self.loading.new_zeros(n, 0, self.n_genes)
        constant, relative = values["W.process_noise"]
        low_rank = self.low_rank(values, operator)[:, 1:]
        own = self._walk_scale(values, operator)
        variance = (constant * own).square() + (relative * low_rank).square()
        return (variance * self.time_steps[:, None] / self.step_unit).sqrt()

    def residual_scale(self, values: dict[str, Tensor]) -> Tensor:
        """Prior width of a perturbation's residual at its first time: learned in a time course."""
        if self.has_time:
            return self.log_residual_scale.exp() * self._walk_scale(values, "P")[:, 0]
        return self.loading.new_full((), self.priors.residual_sd)

    def persistence(self) -> Tensor:
        """Share of a residual that is kept from one measured time to the next, (T - 1,)."""
        if not self.has_time:
            return self.time_steps
        return self.logit_persistence.sigmoid().pow(self.time_steps / self.step_unit)

    def _walk_scale(self, values: dict[str, Tensor], operator: str) -> Tensor:
        """Relative size of a driver's residual by gene, (K or J, 1, G)."""
        n = self.n_perturbations
        driver = values["W.driver_scale"]
        driver = driver[:n] if operator == "P" else driver[n:]
        return (driver[:, None] * values["W.gene_scale"])[:, None]

    def low_rank(self, values: dict[str, Tensor], operator: str) -> Tensor:
        """Low-rank response of each driver at the nodes of its residual's walk, (K or J, T, G)."""
        return self.driver_response(values, operator) @ self.axes(values)

    def driver_response(self, values: dict[str, Tensor], operator: str) -> Tensor:
        """Response of each driver along the axes, at the nodes of its walk, (K or J, T, D)."""
        effect = values["P.effect" if operator == "P" else "M.effect"][:, None]  # (n, 1, D)
        if not self.has_time:
            return effect
        curve = self.onset(values) if operator == "P" else self._growth(values)  # (K or J, T)
        return curve[..., None] * effect

    def onset(self, values: dict[str, Tensor]) -> Tensor:
        """Response of each perturbation alone at the measured times, 1 at the reference, (K, T)."""
        if not self.has_rates:
            return self.loading.new_ones(self.n_perturbations, self.n_times)
        if ONSET in values:  # computed before, in this step
            return values[ONSET]
        rate, decay = (
            bounded_rate(log_rate, self.reference_time)[..., None]
            for log_rate in (
                values["W.log_rate"][..., : self.n_perturbations],
                values["W.log_decay"],
            )
        )
        return relative_onset(rate, decay, self._walk_times()[None], self.reference_time)

    def _growth(self, values: dict[str, Tensor]) -> Tensor:
        """Response to each medium alone at the measured times, 1 at the reference, (J, T)."""
        if not self.has_rates:
            return self.loading.new_ones(self.n_media, self.n_times)
        rate = values["W.log_rate"][self.n_perturbations :].exp()[:, None]
        return relative_curve(rate, self._walk_times()[None], self.reference_time)

    def _walk_times(self) -> Tensor:
        first = self.duration.min()
        return torch.cat([first[None], first + self.time_steps.cumsum(0)])

    def resting_logits(self, values: dict[str, Tensor], z: Tensor) -> Tensor:
        """Log relative expression of unperturbed cells in states z (n, d), (n, G)."""
        return torch.addmm(values["V.baseline"], *self.decoding(values, z))

    def decoding(self, values: dict[str, Tensor], z: Tensor) -> tuple[Tensor, Tensor]:
        """Features of states z (n, d), (n, H), and their weights on log expression, (H, G)."""
        if self.config.decoder == "linear":
            return z, self.loading
        features = torch.cat([z, self.curvature(z)], 1)
        return features, torch.cat([self.loading, values["V.curvature"]])

    def shift(self, values: dict[str, Tensor], conditions: Conditions) -> Tensor:
        """Log-mean shift of each condition against rest, η excluded, (C, G), log-fold change."""
        return self.shift_of(values, self.state_of(values, conditions), conditions)

    def state_of(self, values: dict[str, Tensor], conditions: Conditions) -> State:
        """State of each condition's cells, from rest through its own order of steps."""
        return respond_in_order(
            conditions.genotype,
            conditions.exposure,
            conditions.duration,
            conditions.perturbed_at,
            conditions.exposed_at,
            self.response_parameters(values),
        )

    def displacement(
        self, values: dict[str, Tensor], state: State, conditions: Conditions
    ) -> Tensor:
        """y of cells in a given state, with what drift adds to it, (C, D)."""
        y = self.dynamics.displace(values, state.y, conditions)
        if not self.has_drift:
            return y
        rate = values["W.log_rate_base"].exp()
        curve = relative_curve(rate, conditions.duration, self.reference_time)
        drift = curve[:, None] * values["W.drift"]
        return y + torch.cat([drift.new_zeros(len(drift), self.config.n_latent), drift], 1)

    def drift_at_nodes(self, values: dict[str, Tensor]) -> Tensor:
        """What drift adds to the log means of unperturbed cells at the measured times, (T, G)."""
        rate = values["W.log_rate_base"].exp()
        curve = relative_curve(rate, self._walk_times(), self.reference_time)
        return torch.outer(curve, values["W.drift"] @ self.axes(values)[self.config.n_latent :])

    def shift_of(self, values: dict[str, Tensor], state: State, conditions: Conditions) -> Tensor:
        """Log-mean shift of cells in a given state, however they came there, (C, G)."""
        out = self.plain_shift(values, state, conditions)
        if SLOPE in values:
            return self.measurement.logit_shift(out, values[SLOPE])
        return out

    def plain_shift(
        self, values: dict[str, Tensor], state: State, conditions: Conditions
    ) -> Tensor:
        """The sum of all parts of the shift, (C, G)."""
        y, axes = self.displacement(values, state, conditions), self.axes(values)
        carried, measured = conditions.genotype, self.target >= 0
        place, k = (carried * measured).nonzero(as_tuple=True)  # of conditions, own genes measured
        own = carried[place, k] * values["P.on_target"][k]
        if not self.config.gene_residual:
            out = y @ axes
        else:
            out = torch.addmm(self._residual(values, conditions), y, axes)
            if len(k):  # the level there is P.on_target; the residual only moves in time
                level = values["P.residual"][k, 0, self.target[k]]
                own = own - self._begun(conditions)[place, 0] * level
        if self.has_time:  # W(X, 0) = X: nothing has happened yet
            own = own * self._has_begun(conditions)[place, 0]
        return out.index_put((place, self.target[k]), own, accumulate=True)

    def _begun(self, conditions: Conditions) -> Tensor:
        """Share of a walk's first node that has set in, (C, 1)."""
        one = torch.ones_like(conditions.duration)[:, None]
        walk = one.new_ones(1, self.n_times, 1)
        return self._at_nodes(one, walk, conditions, conditions.perturbed_at)

    @staticmethod
    def _has_begun(conditions: Conditions) -> Tensor:
        """1 where time has passed since the perturbation, 0 where none has, (C, 1)."""
        return (conditions.duration > conditions.perturbed_at).to(conditions.duration)[:, None]

    def _residual(self, values: dict[str, Tensor], conditions: Conditions) -> Tensor:
        walk, genotype = values["P.residual"], conditions.genotype  # (K, T, G)
        if self.has_time:
            genotype = genotype * self._has_begun(conditions)
        out = self._at_nodes(genotype, walk, conditions, conditions.perturbed_at)
        set_in = self.set_in(values, conditions)[:, None]  # (C, 1)
        if COMMON in values:
            out = out + (genotype.sum(1, keepdim=True) > 0) * values[COMMON]
        if COURSE in values:
            out = out + self._course(values[COURSE], conditions.duration)
        if self.n_media:
            met, walk = conditions.exposure, values["M.residual"]
            if self.follows_gain or COMMON in values:
                limit = gain_limit(conditions.genotype, values["M.gain"])
                met = met * (1 - set_in * (1 - limit))
            out = out + self._at_nodes(met, walk, conditions, conditions.exposed_at)
        if "P.interaction" in values:
            extra = values["P.interaction"][conditions.interaction.clamp_min(0)]
            out = out + extra * self.interaction_grown(values, conditions)[:, None] * set_in
        return out

    def _course(self, course: Tensor, duration: Tensor) -> Tensor:
        """Course (T, G) of unperturbed cells at given times, linear between those measured."""
        nodes = self._walk_times()
        if len(nodes) == 1:
            return course.expand(len(duration), -1)
        above = torch.searchsorted(nodes, duration).clamp(1, len(nodes) - 1)
        share = (duration - nodes[above - 1]) / (nodes[above] - nodes[above - 1])
        share = share.clamp(0, 1)[:, None]
        return (1 - share) * course[above - 1] + share * course[above]

    def _at_nodes(self, weight: Tensor, walk: Tensor, conditions: Conditions, at: Tensor) -> Tensor:
        """Residuals of the drivers of each condition, (C, G).

        A walk's nodes are the measured times since an event at 0. After a later event it is read
        between the nodes, linearly in the time since, from zero at the event itself.
        """
        out = gather_nodes(weight, walk, conditions.time_index)
        later = at > 0
        if not self.has_time or not bool(later.any()):
            return out
        rows, nodes = later.nonzero()[:, 0], self._walk_times()
        since = (conditions.duration - at)[rows]
        above = torch.searchsorted(nodes, since).clamp_max(self.n_times - 1)
        below = (above - 1).clamp_min(0)
        start = torch.where(above > 0, nodes[below], 0.0)
        share = ((since - start) / (nodes[above] - start)).clamp_max(1.0)[:, None]
        mine = weight[rows]
        first = gather_nodes(mine, walk, below) * (above > 0)[:, None]
        between = (1 - share) * first + share * gather_nodes(mine, walk, above)
        return out.index_copy(0, rows, between)

    def set_in(self, values: dict[str, Tensor], conditions: Conditions) -> Tensor:
        """Share of what a perturbation does to the response to a medium that has set in, (C,).

        All of it, unless the medium came first: then a response is lost at the turnover of its
        cascade, and then at its own rate.
        """
        genotype, exposure = conditions.genotype, conditions.exposure
        lost = (conditions.exposed_at < conditions.perturbed_at) & exposure.any(1)
        ones = torch.ones_like(conditions.duration)
        if not bool(lost.any()):
            return ones
        params = self.response_parameters(values)
        turnover = (exposure * params.turnover).sum(1)
        rate = condition_rate(genotype, exposure, params)[:, 0]
        since = (conditions.duration - conditions.perturbed_at).clamp_min(0)
        return torch.where(lost, onset_curve(rate, turnover, since), ones)

    def path_of(
        self, values: dict[str, Tensor], conditions: Conditions, rows: Tensor | None = None
    ) -> tuple[tuple[Segment, ...], StateField]:
        """How resting states of each condition go, and the field they go along."""
        field = self.motion.field(values)
        return arm_path(conditions, self.response_parameters(values), field, rows), field

    def cell_path(
        self, values: dict[str, Tensor], condition: Tensor, table: Conditions | None = None
    ) -> tuple[tuple[Segment, ...], StateField]:
        """How resting states of cells go, given their conditions; `table` as in `cell_shift`."""
        rows, inverse = torch.unique(condition, return_inverse=True)
        table = self.conditions if table is None else table
        return self.path_of(values, table.select(rows), inverse)

    def imposed_change(self, values: dict[str, Tensor]) -> Tensor:
        """What the assumptions imposed hold to be zero, (contrasts, G), log-fold change."""
        assert self.imposed is not None
        conditions, contrast, genes = self.imposed
        conditions = Conditions(*(x.to(self.loading.device) for x in conditions))
        contrast, genes = contrast.to(self.loading), genes.to(self.loading)
        return genes * (contrast @ self.shift(values, conditions))
