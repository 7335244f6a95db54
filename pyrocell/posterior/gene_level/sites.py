"""From a kept state to the sites of the generative model: one joint draw of everything.

Levels are log means of observed counts; sites are logits before dropout. About the controls' level
a logit moves the log mean by `slope` (1 without dropout), and the sites are stated accordingly.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from pyrocell._core.random import generator
from pyrocell.generative.model import GenerativeModel
from pyrocell.generative.response import COMMON, COURSE, SLOPE
from pyrocell.posterior.draws import Asked
from pyrocell.posterior.gene_level.states import GeneLevel, Layout

__all__ = ["GeneLevelSites"]

_ABSENT = 1e-6  # loading of a program that no gene is in


@dataclass(frozen=True, eq=False)
class GeneLevelSites:
    """Puts the gene-level sites of kept states in the place of the guide's.

    Attributes
    ----------
    model
        The generative model.
    kept
        The states.
    """

    model: GenerativeModel
    kept: GeneLevel

    def __call__(
        self,
        values: dict[str, Tensor],
        draw: int | None,
        perturbations: Asked = None,
    ) -> dict[str, Tensor]:
        """All sites of one joint draw, those of the gene level from a kept state.

        Parameters
        ----------
        values
            All sites, as the guide draws them.
        draw
            Number of the draw; None: posterior means. Programs are then part of `P.residual`, since
            the mean of a product is not that of its factors.
        perturbations
            Whose `P.residual` is wanted; it is zero for the others. None: all.
        """
        chosen = None if perturbations is None else np.asarray(perturbations)
        return _Draw(self.model, self.kept, values, draw).sites(chosen)


@dataclass(eq=False)
class _Draw:
    model: GenerativeModel
    kept: GeneLevel
    values: dict[str, Tensor]
    draw: int | None

    @property
    def _layout(self) -> Layout:
        assert self.kept.layout is not None  # the states were joined to their screen
        return self.kept.layout

    def sites(self, perturbations: np.ndarray | None) -> dict[str, Tensor]:
        """The sites; see `GeneLevelSites`."""
        model, values = self.model, dict(self.values)
        values |= self._axes()
        values |= self._levels(values)
        chosen = perturbations
        if chosen is None:
            chosen = np.arange(model.n_perturbations)
        values |= self._effects(values, np.asarray(chosen, dtype=np.int64))
        if model.measurement.curved:
            values[SLOPE] = self._slope
        return values | self._guides()

    def _guides(self) -> dict[str, Tensor]:
        """Strength of guides and their escapers, of the draw of who responded."""
        found = self.kept.tensors.get("guide_efficacy")
        if found is None:
            return {}
        out = {}
        for name in ("efficacy", "escapers"):
            draws = self.kept.tensors[f"guide_{name}"].to(self.model.loading)  # (M, D, pairs)
            out[f"P.guide_{name}"] = draws.mean((0, 1))
            if self.draw is not None:
                state = self.draw % len(self.kept)
                turn = (self.draw // len(self.kept)) % draws.shape[1]
                out[f"P.guide_{name}"] = draws[int(self.kept.imputation[state]), turn]
        return out

    def _part(self, name: str) -> Tensor:
        states = getattr(self.kept, name)
        part = states.mean(0) if self.draw is None else states[self.draw % len(self.kept)]
        return part.to(self.model.loading)

    @cached_property
    def _slope(self) -> Tensor:
        return self.kept.slope.to(self.model.loading)

    # ------------------------------------------------------------------ axes
    def _axes(self) -> dict[str, Tensor]:
        """Effects along axes: none along those of the gradient phase, which media keep."""
        model, values = self.model, self.values
        n_axes = model.n_axes
        effect = values["P.effect"].new_zeros(model.n_perturbations, n_axes)
        activity = self._part("activity")
        if not activity.shape[1] or self.draw is None:
            return {"P.effect": effect}
        loading = (self._part("loading") / self._slope[:, None]).T  # (programs, G)
        size = loading.square().mean(1).sqrt()
        loading = torch.where(size[:, None] > 0, loading, torch.full_like(loading, _ABSENT))
        scale = self._same_response()[:, None]
        pad = lambda a: torch.cat([a, a.new_zeros(*a.shape[:-1], len(size))], -1)  # noqa: E731
        out = {
            "P.effect": torch.cat([effect, scale * activity * size], 1),
            "V.loading": torch.cat([values["V.loading"], loading]),
        }
        for site in ("M.effect", "W.drift"):
            if site in values:
                out[site] = pad(values[site])
        return out

    def _same_response(self) -> Tensor:
        """Factor on activities that brings responses of the drawn rates near those fitted."""
        model = self.model
        if not model.has_rates:
            return self.model.loading.new_ones(model.n_perturbations)
        usual = self.kept.onset_at.to(self.model.loading)
        drawn = model.onset(self.values)
        return (usual * drawn).sum(1) / drawn.square().sum(1).clamp_min(1e-6)

    # ------------------------------------------------------------------ levels
    def _levels(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Baseline, its course in time, batch noise, and responses to media."""
        model, contexts = self.model, self._layout.contexts
        level = self._part("level")
        begun = self.kept.begun_at.to(level)[torch.as_tensor(contexts.node)]
        common = self._part("common")
        plain = np.flatnonzero(contexts.medium < 0)
        plain = plain if len(plain) else np.arange(len(contexts))
        control = level[plain] - begun[plain, None] * common  # (contexts, G)
        node = contexts.node[plain]
        start = control.mean(0)
        eta = self._eta(len(model.noise.contrast))
        course = control - start
        out: dict[str, Tensor] = {}
        if model.has_time and model.n_batches > 1 and not model.has_drift:
            moved, course = self._into_batches(course, node)
            eta = eta + moved
        start, eta = start + eta.mean(0), eta - eta.mean(0)
        rate = self.kept.counts_rate.to(level).log()
        log_mean = self.kept.log_mean.to(level)
        out["V.baseline"] = self.kept.logit.to(level) + (start + rate - log_mean) / self._slope
        if model.n_batches > 1:
            out |= self._noise(eta / self._slope, values)
        if model.has_time:
            out[COURSE] = self._course(course / self._slope, node, values)
        out[COMMON] = common / self._slope
        if model.n_media:
            out["M.gain"] = self._part("gain")
            out["M.residual"] = self._media(level, values)
        return out

    def _eta(self, n_batches: int) -> Tensor:
        """Batch noise of each batch, the mean of its groups, (B, G)."""
        eta = self._part("eta")
        home = self.kept.batch_of_group.long()
        out = eta.new_zeros(n_batches, eta.shape[1]).index_add(0, home, eta)
        return out / torch.bincount(home, minlength=n_batches).clamp_min(1)[:, None]

    def _into_batches(self, course: Tensor, node: np.ndarray) -> tuple[Tensor, Tensor]:
        """What of a course in time the batches explain, (B, G), and what is left of it."""
        cells = self.kept.batch_cells.to(course)[:, torch.as_tensor(node)]  # (B, contexts)
        share = cells / cells.sum(1, keepdim=True).clamp_min(1e-6)
        moved = share @ course
        back = cells / cells.sum(0).clamp_min(1e-6)
        return moved, course - back.T @ moved

    def _noise(self, eta: Tensor, values: dict[str, Tensor]) -> dict[str, Tensor]:
        model = self.model
        if model.noise.has_content:
            eta = eta - model.noise.content @ values["eta.content"]
        out = {"eta.free": model.noise.contrast.T @ eta}
        for site, ratio in (("eta.scale", "batch"), ("eta.laboratory_scale", "laboratory")):
            if site in values:
                out[site] = values[site] * getattr(self.kept, f"ratio_{ratio}").to(eta)
        both = values | out
        out["eta"] = model.noise.eta(both)
        if model.noise.has_laboratories:
            out["eta.laboratory"] = model.noise.laboratory_offset(both)
        return out

    def _course(self, course: Tensor, node: np.ndarray, values: dict[str, Tensor]) -> Tensor:
        """What single genes of unperturbed cells do in time beside the drift along axes, (T, G)."""
        model = self.model
        out = course.new_zeros(model.n_times, course.shape[1])
        out[torch.as_tensor(node)] = course
        if model.has_drift:
            out = out - model.drift_at_nodes(values)
        return out

    def _media(self, level: Tensor, values: dict[str, Tensor]) -> Tensor:
        """Gene-level part of responses to media, (J, T, G): what the axes do not show."""
        model, contexts = self.model, self._layout.contexts
        along = model.low_rank(values, "M")  # (J, T, G)
        out = torch.zeros_like(along)
        seen = np.zeros(along.shape[:2], bool)
        plain = {int(t): q for q, (m, t) in enumerate(zip(contexts.medium, contexts.node)) if m < 0}
        for q, (m, t) in enumerate(zip(contexts.medium, contexts.node, strict=True)):
            if m < 0:
                continue
            response = level[q]
            if not contexts.is_response[q]:  # no cell of the baseline medium at that time
                response = response - level[list(plain.values())].mean(0)
            out[m, t] = response / self._slope - along[m, t]
            seen[m, t] = True
        for m, row in enumerate(seen):  # times at which a medium was not measured: as the nearest
            there = np.flatnonzero(row)
            for t in np.flatnonzero(~row) if len(there) else ():
                out[m, t] = out[m, there[np.abs(there - t).argmin()]]
        return out

    # ------------------------------------------------------------------ effects
    def _ahead(self, residual: Tensor, values: dict[str, Tensor]) -> Tensor:
        """Effects at times after a perturbation's last, with the process noise since then."""
        model, ahead = self.model, self.kept.ahead.to(residual) > 0
        if not model.has_time or self.draw is None or not bool(ahead.any()):
            return residual
        step, kept = model.step_scale(values, "P"), model.persistence()
        stream = generator(residual.device, "ahead", self.draw)
        moved, out = torch.zeros_like(residual[:, 0]), [residual[:, 0]]
        for t in range(1, residual.shape[1]):
            noise = torch.randn(moved.shape, generator=stream, device=moved.device)
            on = kept[t - 1] * moved + step[:, t - 1] * noise
            moved = torch.where(ahead[:, t, None], on, torch.zeros_like(moved))
            out.append(residual[:, t] + moved)
        return torch.stack(out, 1)

    def _effects(self, values: dict[str, Tensor], chosen: np.ndarray) -> dict[str, Tensor]:
        model, blocks = self.model, self._layout.blocks
        like = self.model.loading
        n_times, n_genes = model.n_times, model.n_genes
        residual = like.new_zeros(model.n_perturbations, n_times, n_genes)
        arms = np.array(sorted(blocks.arms), dtype=np.int64)
        found = self.kept.coefficients(self.draw, np.concatenate([chosen + 1, arms]))
        by_block = dict(zip((*(chosen + 1).tolist(), *arms.tolist()), found, strict=True))
        tensor = lambda a: torch.as_tensor(a).to(like) / self._slope  # noqa: E731
        if len(chosen):
            walks = np.stack([by_block[int(k) + 1][:n_times] for k in chosen])
            residual[torch.as_tensor(chosen)] = tensor(walks)
        if self.draw is None and self.kept.activity.shape[-1]:
            along = self.kept.mean_program.to(like) / self._slope
            residual = residual + self.kept.onset_at.to(like)[..., None] * along[:, None]
        residual = self._ahead(residual, values)
        own = residual[:, 0].gather(1, model.target.clamp_min(0)[:, None])[:, 0]
        out = {"P.residual": residual}
        out["P.on_target"] = torch.where(model.target >= 0, own, values["P.on_target"])
        if model.n_arms:
            extra = np.zeros((model.n_arms, n_genes), np.float32)
            for arm, perturbed, medium in self.kept.arms:
                members = [1 + k for k in perturbed]
                combined = [b for b in arms if blocks.arms[int(b)] == perturbed]
                for b in (*members, *combined):
                    if b not in by_block:
                        continue
                    if b in combined:
                        extra[arm] += by_block[b][0]
                    if medium in blocks.media[b]:
                        extra[arm] += by_block[b][n_times + blocks.media[b].index(medium)]
            out["P.interaction"] = tensor(extra)
        return out
