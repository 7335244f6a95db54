"""What a fitted model is asked: effects, batch noise, gains, predictions, counterfactuals."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pyrocell.batches import CellData
from pyrocell.errors import ScreenError
from pyrocell.expected import carried_states, moments, resting_cells, resting_states
from pyrocell.local_posterior import draw_own_state, drawn_loading
from pyrocell.motion import arrive, set_out
from pyrocell.new_batches import noise_of_request
from pyrocell.noise import centre
from pyrocell.operators import Protocol, run
from pyrocell.posterior import Posterior, check_draws, summarise
from pyrocell.requested import encode_cells
from pyrocell.screen import Screen
from pyrocell.state import State
from pyrocell.streams import generator, seeded
from pyrocell.structure import Conditions
from pyrocell.views.rna import pseudobulk

__all__ = ["Prediction", "Queries"]

_BLOCK_BYTES = 2**28


@dataclass(frozen=True)
class Prediction:
    """Draws of expected (or pseudobulk) counts of the requested conditions, (S, C, G)."""

    draws: np.ndarray


class Queries:
    """Questions to a fitted model; answers are joint over one set of posterior draws.

    Parameters
    ----------
    posterior
        Draws of the globals.
    screen
        The screen the model was fitted to.
    data
        Its cells (controls among them stand for the resting population).
    """

    def __init__(self, posterior: Posterior, screen: Screen, data: CellData):
        self.posterior, self.screen, self.data = posterior, screen, data
        self.model = posterior.model

    # ------------------------------------------------------------------ tables
    def perturbation_effects(
        self,
        perturbations: list[str],
        media: str,
        time: float | None,
        n_samples: int,
        credible_level: float,
        progress: Callable[[Iterator], Iterator] = iter,
    ) -> pd.DataFrame:
        """Gene-level log-fold change of each perturbation against control, same medium and time."""
        check_draws(n_samples)
        if not perturbations:
            raise ScreenError("perturbations=[] names none; leave it out for all of them")
        genes, tables = self.screen.genes, []
        block = max(1, _BLOCK_BYTES // (4 * n_samples * len(genes)))
        blocks = [perturbations[i : i + block] for i in range(0, len(perturbations), block)]
        for names in progress(blocks):
            draws = self.effect_draws(names, media, time, n_samples)
            summary = summarise(draws, credible_level)
            index = pd.MultiIndex.from_product([names, genes], names=["perturbation", "gene"])
            table = pd.DataFrame({k: v.ravel() for k, v in summary.items()}, index=index)
            tables.append(table.reset_index())
        out = pd.concat(tables, ignore_index=True)
        out.insert(1, "media", media)
        out.insert(2, "time", np.nan if time is None else time)
        return out

    def effect_draws(
        self, perturbations: list[str], media: str, time: float | None, n_samples: int
    ) -> np.ndarray:
        """Joint draws of log-fold changes against control, (S, perturbations, G)."""
        labels = [self.screen.control, *perturbations]
        frame = pd.DataFrame({"perturbation": labels, "media": media, "time": time})
        conditions, noise = self.conditions(frame)
        out = np.empty((n_samples, len(perturbations), len(self.screen.genes)), np.float32)
        moves = self.model.has_motion
        cells = resting_cells(self.data, self.model, self.posterior.seed) if moves else {}
        for s, values in enumerate(self.posterior.draws(n_samples)):
            with torch.no_grad():
                shift = self.shift(values, conditions, noise, s)
                if moves:  # an effect is then also where cells go, of which only means have a size
                    z = self.states(values, cells, conditions, s)
                    level = moments(self.model, values, z, shift, 1.0)[0].log()
                    change = level[1:] - level[:1]
                else:
                    change = self._normalise(values, shift)
                out[s] = change.cpu().numpy()
        return out

    def _normalise(self, values: dict[str, Tensor], shift: Tensor) -> Tensor:
        """Shift against the first row; a change of relative expression where that is modelled."""
        if not self.model.config.composition:
            return shift[1:] - shift[:1]
        level = torch.log_softmax(values["V.baseline"] + shift, -1)
        return level[1:] - level[:1]

    def axes_of_state(self) -> np.ndarray:
        """Loading of z, (d, G), in the gauge of what counts can show."""
        loading = self.model.loading.detach()
        if self.model.config.composition:
            baseline = self.posterior.mean()["V.baseline"].detach()
            loading = centre(loading, torch.softmax(baseline, -1))
        return loading.cpu().numpy().astype(float)

    def batch_effects(
        self, n_samples: int, credible_level: float, by: str = "batch"
    ) -> pd.DataFrame:
        """η of each batch and gene; expression-weighted mean over genes zero (softmax gauge)."""
        draws, names = np.stack([e for e in self.eta_draws(n_samples)]), self.screen.batches
        if by == "laboratory":
            draws = self.model.laboratory_mean.cpu().numpy() @ draws
            names = self.screen.laboratories
        summary = summarise(draws, credible_level)
        index = pd.MultiIndex.from_product([names, self.screen.genes], names=[by, "gene"])
        table = pd.DataFrame({k: v.ravel() for k, v in summary.items()}, index=index)
        return table.drop(columns="prob_direction").reset_index()

    def eta_draws(self, n_samples: int) -> Iterator[np.ndarray]:
        """Draws of η in the gauge of the table, (B, G) each."""
        for values in self.posterior.draws(n_samples):
            eta = values["eta"]
            if self.model.config.composition:
                eta = centre(eta, torch.softmax(values["V.baseline"], -1))
            yield eta.cpu().numpy()

    def media_gains(self, n_samples: int, credible_level: float) -> pd.DataFrame:
        """Gain of each perturbation on each medium's response."""
        draws = self.posterior.samples(n_samples, ["M.gain"])["M.gain"]
        summary = summarise(draws, credible_level)
        index = pd.MultiIndex.from_product(
            [self.screen.perturbations, self.screen.media], names=["perturbation", "media"]
        )
        table = pd.DataFrame({k: v.ravel() for k, v in summary.items()}, index=index)
        return table.drop(columns="prob_direction").reset_index()

    # ------------------------------------------------------------------ predictions
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

    def _interaction_rows(self, genotype: Tensor, exposure: Tensor) -> tuple[Tensor, Tensor]:
        model = self.model
        arms = torch.cat([genotype, exposure], 1)
        seen = torch.cat([model.genotype, model.exposure], 1)
        match = (arms[:, None] == seen[None]).all(-1)  # (C, conditions of the screen)
        known = match.any(1)
        rows = torch.where(known, model.interaction[match.float().argmax(1)], -1)
        several = arms.sum(1) > 1
        unseen = several & ~known if model.n_interactions else torch.zeros_like(several)
        return rows, unseen.float()

    def shift(
        self,
        values: dict[str, Tensor],
        conditions: Conditions,
        unseen: Tensor,
        seed: int,
        protocol: Protocol | None = None,
    ) -> Tensor:
        """Shift of the requested conditions, with the prior's noise for what was never seen."""
        model, values = self.model, self._with_turnover(values, seed)
        if protocol is None:
            shift = model.shift(values, conditions)
        else:
            shift = model.shift_of(values, self._carry_out(protocol, values), conditions)
        if not model.config.gene_residual or not bool((unseen > 0).any()):
            return shift
        stream = generator(shift.device, "unseen", seed)
        noise = lambda: torch.randn(shift.shape, generator=stream, device=shift.device)  # noqa: E731
        shift = shift + unseen[:, :1] * model.priors.interaction_sd * noise()
        if model.has_time:
            constant, relative = values["W.process_noise"]
            own = conditions.genotype @ values["W.driver_scale"][: conditions.genotype.shape[1]]
            own = own[:, None] * values["W.gene_scale"]
            variance = (constant * own).square() + (relative * shift).square()
            perturbed = (conditions.genotype.sum(1, keepdim=True) > 0).float()
            steps = unseen[:, 1:] / model.step_unit
            shift = shift + perturbed * (variance * steps).sqrt() * noise()
        return shift

    def _with_turnover(self, values: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
        """Draws with the turnover of gains: the prior's where the screen has one order of steps."""
        model = self.model
        if "M.turnover" in values or not model.n_media:
            return values
        stream = generator(model.loading.device, "turnover", seed)
        noise = torch.randn(model.n_media, generator=stream, device=model.loading.device)
        log_turnover = model.log_turnover_centre(values) + model.priors.turnover_sd * noise
        return values | {"M.turnover": log_turnover.exp()}

    def _carry_out(
        self, protocol: Protocol, values: dict[str, Tensor], z: Tensor | None = None
    ) -> State:
        screen = self.screen
        names = (
            {n: i for i, n in enumerate(each)} for each in (screen.perturbations, screen.media)
        )
        params = self.model.response_parameters(values)
        if z is not None:
            params = replace(params, motion=self.model.motion.field(values))
            z = z[None]
        return run(protocol, params, *names, types=screen.perturbation_types, z=z)

    def predict(
        self,
        frame: pd.DataFrame,
        n_samples: int,
        size_factor: float,
        progress: Callable[[Iterator], Iterator] = iter,
        protocol: Protocol | None = None,
        batch_content: Mapping[str, float] | None = None,
    ) -> np.ndarray:
        """Draws of expected counts (S, C, G) at the size factor; pseudobulk counts with `n_cells`.

        The mean over the resting population of V's mean; with `n_cells` each draw is the mean count
        of that many simulated cells, so that intervals include the sampling noise. A `protocol`
        says in which order the (one) condition of `frame` came about; `batch_content` what batches
        that were not measured contain.
        """
        check_draws(n_samples)
        if not size_factor > 0:
            raise ScreenError(f"size_factor={size_factor} must be above 0: the depth of a cell")
        conditions, unseen = self.conditions(frame)
        noise = noise_of_request(self.posterior, self.screen, frame, batch_content)
        cells = encode_cells(frame["n_cells"]) if "n_cells" in frame else None
        population = resting_cells(self.data, self.model, self.posterior.seed)
        rng = np.random.default_rng(self.posterior.seed)
        out = np.empty((n_samples, len(frame), len(self.screen.genes)), np.float32)
        for s, values in enumerate(progress(self.posterior.draws(n_samples))):
            with torch.no_grad():
                shift = self.shift(values, conditions, unseen, s, protocol)
                if self.model.n_batches > 1:
                    shift = shift + noise.draw(values, s)
                z = self.states(values, population, conditions, s, protocol)
                mean, variance = moments(self.model, values, z, shift, size_factor)
            out[s] = mean.cpu().numpy()
            if cells is not None:
                out[s] = pseudobulk(mean.cpu().numpy(), variance.cpu().numpy(), cells, rng)
        return out

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
        if not self.model.has_motion:
            return z
        values = self._with_turnover(values, seed)
        if protocol is None:
            return carried_states(z, self.model.way(values, conditions), seed)
        with seeded(z.device, "luck", seed):
            return self._carry_out(protocol, values, z).z

    def counterfactual(
        self, cells: CellData, frame: pd.DataFrame, n_samples: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield (rows, draws (S, cells, G)) of counts expected under the treatment of `frame`.

        C(x, p, m) = F(F⁻¹(x)) (eq. 6): the cell keeps its resting state z, batch and size factor;
        its condition's response is replaced by the requested one.
        """
        check_draws(n_samples)
        conditions, unseen = self.conditions(frame)
        n_genes, mean_count = len(self.screen.genes), self.posterior.guide.mean_count
        block = max(1, _BLOCK_BYTES // (4 * n_samples * n_genes))
        for start in range(0, len(cells), block):
            rows = np.arange(start, min(start + block, len(cells)))
            args = {k: v.to(self.model.loading.device) for k, v in cells.rows(rows).items()}
            draws = np.empty((n_samples, len(rows), n_genes), np.float32)
            for s, values in enumerate(self.posterior.draws(n_samples)):
                theta = values["V.dispersion"]
                with torch.no_grad(), drawn_loading(self.model, mean_count, theta, s):
                    z = draw_own_state(self.posterior.guide, values, args, s, cells.conditions)
                    shift = self.shift(values, conditions, unseen, s)
                    if self.model.n_batches > 1:
                        shift = shift + values["eta"][args["batch"]]
                    if "covariates" in args:
                        shift = shift + args["covariates"] @ values["V.covariate"]
                    z = self._elsewhere(values, z, args, conditions, cells.conditions, s)
                    logits = self.model.resting_logits(values, z) + shift
                    draws[s] = (
                        self.model.view(values, logits, args["log_size"], z).mean.cpu().numpy()
                    )
            yield rows, draws

    def _elsewhere(
        self,
        values: dict[str, Tensor],
        z: Tensor,
        cells: dict[str, Tensor],
        condition: Conditions,
        table: Conditions | None,
        seed: int,
    ) -> Tensor:
        """Where cells at z (n, d) would be in the one condition asked for, with the luck they had.

        Back to where they set out from and on from there; z itself where states do not move.
        """
        if not self.model.has_motion:
            return z
        reversal = getattr(self.posterior.guide, "reversal", None)
        values = self._with_turnover(values, seed)
        with seeded(z.device, "past", seed):
            start, luck = set_out(
                z, *self.model.cell_way(values, cells["condition"], table), reversal
            )
        luck = None if luck is None else luck[:, None]
        return arrive(start[None], *self.model.way(values, condition), luck)[0]

    # ------------------------------------------------------------------ cells
    def latent(self, cells: CellData, batch_size: int) -> np.ndarray:
        """Posterior mean of the resting state z of each cell, (N, d)."""
        values = self.posterior.mean()
        return np.concatenate([loc for loc, _ in self._encoded(values, cells, batch_size)])

    def normalised(
        self, cells: CellData, batch_size: int, library_size: float | None, batch_corrected: bool
    ) -> np.ndarray:
        """Expected expression at posterior means, (N, G); η and covariates removed if corrected."""
        values, out = self.posterior.mean(), []
        model = self.model
        for loc, args in self._encoded(values, cells, batch_size):
            z = torch.as_tensor(loc, device=model.loading.device)
            if batch_corrected:
                table = model.conditions if cells.conditions is None else cells.conditions
                shift = model.shift(values, table.select(args["condition"]))
            else:
                shift = model.cell_shift(
                    values,
                    args["condition"],
                    args["batch"],
                    args.get("covariates"),
                    cells.conditions,
                )
            logits = model.resting_logits(values, z) + shift
            level = torch.softmax(logits, -1) if model.config.composition else logits.exp()
            out.append((level * (1.0 if library_size is None else library_size)).cpu().numpy())
        return np.concatenate(out)

    def _encoded(
        self, values: dict[str, Tensor], cells: CellData, batch_size: int
    ) -> Iterator[tuple[np.ndarray, dict[str, Tensor]]]:
        for start in range(0, len(cells), batch_size):
            rows = np.arange(start, min(start + batch_size, len(cells)))
            args = {k: v.to(self.model.loading.device) for k, v in cells.rows(rows).items()}
            with torch.no_grad():
                loc, _ = self.posterior.guide.encode(
                    values,
                    args["x"],
                    args["condition"],
                    args["batch"],
                    args.get("covariates"),
                    cells.conditions,
                )
                yield loc.cpu().numpy(), args
