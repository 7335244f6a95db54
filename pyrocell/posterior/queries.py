"""What a fitted model is asked: effects, batch noise, gains, predictions, counterfactuals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from torch import Tensor

from pyrocell._core.random import seeded, stream
from pyrocell.data.backed import count_blocks
from pyrocell.data.loader import CellData
from pyrocell.data.statistics import add_by_group
from pyrocell.errors import ScreenError
from pyrocell.generative.state_dynamics import arrive, set_out
from pyrocell.noise.contrasts import centre
from pyrocell.operators import Protocol
from pyrocell.posterior.cell_state import draw_own_state, drawn_loading
from pyrocell.posterior.conditions import Part, RequestedConditions
from pyrocell.posterior.draws import check_draws, summarise
from pyrocell.posterior.gene_level.states import Request
from pyrocell.posterior.new_batches import NoiseOfRequest, noise_of_request
from pyrocell.posterior.populations import moments, resting_cells
from pyrocell.posterior.streaming_quantiles import RunningSummary
from pyrocell.screen.conditions import Conditions
from pyrocell.screen.requests import encode_cells
from pyrocell.views.rna import pseudobulk

__all__ = ["Blocks", "Draws", "Queries"]

Draws = Iterator[Iterator[np.ndarray]]  # of each draw: of each part of the rows, (rows, G)
Blocks = Iterator[tuple[slice, np.ndarray]]  # rows, and the answer for them

_PART = 2**19  # numbers of a table that are worked on at once; does not depend on any budget


class Queries(RequestedConditions):
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

    @staticmethod
    def asked_of(parts: Sequence[Part]) -> np.ndarray:
        """Perturbations that requested conditions carry, in order."""
        carried = [part.rows.genotype.coalesce().indices()[1] for part in parts]
        return np.unique(torch.cat(carried).cpu().numpy()) if carried else np.zeros(0, np.int64)

    def parts(self, n_rows: int) -> list[slice]:
        """Rows of a table of conditions or cells, some at a time."""
        width = max(len(self.screen.genes), self.model.n_perturbations + self.model.n_media)
        size = max(1, _PART // width)
        return [slice(first, min(first + size, n_rows)) for first in range(0, n_rows, size)]

    # ------------------------------------------------------------------ tables
    def effects(
        self,
        perturbations: Sequence[str],
        media: str,
        time: float | None,
        n_samples: int,
        parts: Sequence[slice],
    ) -> Draws:
        """Log-fold changes of perturbations against control, same medium and time, (rows, G)."""
        check_draws(n_samples)
        asked = []
        for part in parts:
            labels = [self.screen.control, *perturbations[part]]
            frame = pd.DataFrame({"perturbation": labels, "media": media, "time": time})
            asked.append(self.part(frame, part.start))
        moves = self.model.has_motion
        cells = resting_cells(self.data, self.model, self.posterior.seed) if moves else None
        some = self.asked_of(asked)
        for s, values in enumerate(self.posterior.draws(n_samples, perturbations=some)):
            yield (self._effect(values, part, s, cells) for part in asked)

    @torch.no_grad()
    def _effect(
        self, values: dict[str, Tensor], part: Part, seed: int, cells: dict[str, Tensor] | None
    ) -> np.ndarray:
        conditions = part.conditions
        shift = self.shift(values, conditions, part.unseen, seed, first=part.first)
        if cells is None:
            return self._normalise(values, shift).cpu().numpy()
        # an effect is then also where cells go, of which only means have a size
        z = self.states(values, cells, conditions, seed)
        level = moments(self.model, values, z, shift, 1.0)[0].log()
        return (level[1:] - level[:1]).cpu().numpy()

    def request_of_states(
        self, perturbations: Sequence[str], media: str, time: float | None
    ) -> Request | None:
        """The conditions as the kept states know them; None where they do not speak of them."""
        screen = self.screen
        sets = [tuple(screen.indices(name)) for name in perturbations]
        medium = screen.media_index(media)
        node = 0
        if screen.times:
            asked = screen.times[-1] if time is None else time
            near = np.flatnonzero(np.isclose(screen.times, asked))
            node = int(near[0]) if len(near) else -1
        if self.gene_level is None or node < 0 or not all(sets):
            return None
        if time is not None and not screen.times:
            return None  # the draws will say what is wrong with it
        return self.gene_level.request(sets, medium, node)

    def counts_of(
        self, perturbations: Sequence[str], media: str, time: float | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Counts (n, G) of perturbed cells in a medium at a time, and (G,) of controls there.

        Zero where none were measured.
        """
        screen = self.screen
        table = self.total_counts
        medium, now = str(media).strip(), screen.conditions
        here = (now["media"] == medium).to_numpy()
        if screen.times and time is not None:
            here = here & np.isclose(now["time"].to_numpy(dtype=float), time)
        labels = now["perturbation"].to_numpy()

        def summed(label: str) -> np.ndarray:
            return table[here & (labels == label)].sum(0)

        names = [screen.label_of(screen.indices(name)) for name in perturbations]
        return np.stack([summed(name) for name in names]), summed(screen.control)

    @cached_property
    def total_counts(self) -> np.ndarray:
        """(C, G) counts of the conditions that the model was fitted to, as they were measured."""
        if self.gene_level is not None:
            return self.gene_level.array("counts_raw")
        out = np.zeros((len(self.screen.conditions), len(self.screen.genes)))
        if self.data.conditions is None:
            for rows, block in count_blocks(self.data.counts):
                add_by_group(out, self.data.condition[rows], sp.csr_matrix(block))
        return out

    def effect_draws(
        self, perturbations: Sequence[str], media: str, time: float | None, n_samples: int
    ) -> np.ndarray:
        """Joint draws of log-fold changes against control, (S, perturbations, G)."""
        if (asked := self.request_of_states(perturbations, media, time)) is not None:
            return self.gene_level.columns(asked, n_samples).draws
        parts = self.parts(len(perturbations))
        return self._stack(self.effects(perturbations, media, time, n_samples, parts), n_samples)

    @staticmethod
    def _stack(draws: Draws, n_samples: int) -> np.ndarray:
        """All draws at once, (S, rows, G)."""
        out: np.ndarray | None = None
        for s, draw in enumerate(draws):
            values = np.concatenate(list(draw))
            out = np.empty((n_samples, *values.shape), np.float32) if out is None else out
            out[s] = values
        return out

    def _normalise(self, values: dict[str, Tensor], shift: Tensor) -> Tensor:
        """Shift against the first row, or where it has a gauge, against the average expression.

        Kept states have one: genes that a condition does not touch have no shift.
        """
        if not self.model.config.composition or self.gene_level is not None:
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
        names, mean = self.screen.batches, None
        if by == "laboratory":
            names, mean = self.screen.laboratories, self.model.laboratory_mean.cpu().numpy()
        running = RunningSummary((len(names), len(self.screen.genes)), n_samples, credible_level)
        for eta in self.eta_draws(n_samples):
            running.add(eta if mean is None else mean @ eta)
        summary = running.summary()
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
    def expected(
        self,
        frame: pd.DataFrame,
        n_samples: int,
        size_factor: float,
        parts: Sequence[slice],
        protocol: Protocol | None = None,
        batch_content: Mapping[str, float] | None = None,
    ) -> Draws:
        """Expected counts of conditions at the size factor, (rows, G); pseudobulk with `n_cells`.

        The mean over the resting population of V's mean; with `n_cells` each draw is the mean count
        of that many simulated cells, so that intervals include the sampling noise. A `protocol`
        says in which order the (one) condition of `frame` came about; `batch_content` what batches
        that were not measured contain.
        """
        check_draws(n_samples)
        if not size_factor > 0:
            raise ScreenError(f"size_factor={size_factor} must be above 0: the depth of a cell")
        noise = noise_of_request(self.posterior, self.screen, frame, batch_content)
        cells = encode_cells(frame["n_cells"]) if "n_cells" in frame else None
        population = resting_cells(self.data, self.model, self.posterior.seed)
        asked = [
            (
                self.part(frame.iloc[part], part.start),
                noise.of_rows(part),
                None if cells is None else cells[part],
            )
            for part in parts
        ]

        @torch.no_grad()
        def expect(
            values: dict[str, Tensor],
            s: int,
            part: Part,
            noise: NoiseOfRequest,
            cells: np.ndarray | None,
        ) -> np.ndarray:
            conditions = part.conditions
            shift = self.shift(values, conditions, part.unseen, s, protocol, part.first)
            if self.model.n_batches > 1:
                shift = shift + noise.draw(values, s)
            if self.gene_level is not None and (noise.request.new >= 0).any():
                begun = (conditions.duration > 0) if self.model.has_time else None
                drivers = conditions.genotype, conditions.exposure
                if begun is not None:
                    drivers = tuple(d * begun[:, None] for d in drivers)
                shift = shift + self.gene_level.in_new_batches(s, *drivers, noise.request.new)
            z = self.states(values, population, conditions, s, protocol)
            mean, variance = moments(self.model, values, z, shift, size_factor)
            if cells is None:
                return mean.cpu().numpy()
            rng = np.random.default_rng(stream("pseudobulk", self.posterior.seed, s, part.first))
            return pseudobulk(mean.cpu().numpy(), variance.cpu().numpy(), cells, rng)

        some = self.asked_of([part for part, *_ in asked])
        for s, values in enumerate(self.posterior.draws(n_samples, perturbations=some)):
            yield (expect(values, s, *part) for part in asked)

    def predict(
        self,
        frame: pd.DataFrame,
        n_samples: int,
        size_factor: float,
        protocol: Protocol | None = None,
        batch_content: Mapping[str, float] | None = None,
    ) -> np.ndarray:
        """Draws of expected counts, (S, C, G); see `expected`."""
        request = frame, n_samples, size_factor, self.parts(len(frame)), protocol, batch_content
        return self._stack(self.expected(*request), n_samples)

    def counterfactual(
        self, cells: CellData, frame: pd.DataFrame, n_samples: int, parts: Sequence[slice]
    ) -> Draws:
        """Counts expected of cells under the treatment of `frame`, (cells, G).

        C(x, p, m) = F(F⁻¹(x)) (eq. 6): the cell keeps its resting state z, batch and size factor;
        its condition's response is replaced by the requested one.
        """
        check_draws(n_samples)
        target, guide = self.part(frame), self.posterior.guide

        @torch.no_grad()
        def expect(values: dict[str, Tensor], s: int, part: slice) -> np.ndarray:
            values = self._with_turnover(values, s)
            own = stream("cells", s, part.start)  # the globals are common to all parts, z is not
            rows = np.arange(part.start, part.stop)
            args = {k: v.to(self.model.loading.device) for k, v in cells.rows(rows).items()}
            theta, conditions = values["V.dispersion"], target.conditions
            with drawn_loading(self.model, guide.mean_count, theta, s):
                z = draw_own_state(guide, values, args, own, cells.conditions)
                shift = self.shift(values, conditions, target.unseen, s)
                if self.model.n_batches > 1:
                    shift = shift + values["eta"][args["batch"]]
                if "covariates" in args:
                    shift = shift + args["covariates"] @ values["V.covariate"]
                z = self._elsewhere(values, z, args, conditions, cells.conditions, own)
                logits = self.model.resting_logits(values, z) + shift
                return self.model.view(values, logits, args["log_size"], z).mean.cpu().numpy()

        some = self.asked_of([target])
        for s, values in enumerate(self.posterior.draws(n_samples, perturbations=some)):
            yield (expect(values, s, part) for part in parts)

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
        with seeded(z.device, "past", seed):
            start, luck = set_out(
                z, *self.model.cell_way(values, cells["condition"], table), reversal
            )
        luck = None if luck is None else luck[:, None]
        return arrive(start[None], *self.model.way(values, condition), luck)[0]

    # ------------------------------------------------------------------ cells
    def latent(self, cells: CellData, batch_size: int) -> Blocks:
        """Posterior mean of the resting state z of each cell, (cells, d), some cells at a time."""
        for rows, loc, _ in self._encoded(self.posterior.mean(), cells, batch_size):
            yield rows, loc

    def normalised(
        self, cells: CellData, batch_size: int, library_size: float | None, batch_corrected: bool
    ) -> Blocks:
        """Expected expression at posterior means, (cells, G), some cells at a time.

        η and covariates are removed if corrected.
        """
        values, model = self.posterior.mean(), self.model
        table = model.conditions if cells.conditions is None else cells.conditions

        @torch.no_grad()
        def expect(loc: np.ndarray, args: dict[str, Tensor]) -> np.ndarray:
            z = torch.as_tensor(loc, device=model.loading.device)
            if batch_corrected:
                rows, own = torch.unique(args["condition"], return_inverse=True)
                shift = model.shift(values, table.select(rows))[own]
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
            return (level * (1.0 if library_size is None else library_size)).cpu().numpy()

        for rows, *cell in self._encoded(values, cells, batch_size):
            yield rows, expect(*cell)

    def _encoded(
        self, values: dict[str, Tensor], cells: CellData, batch_size: int
    ) -> Iterator[tuple[slice, np.ndarray, dict[str, Tensor]]]:
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
            yield slice(start, start + len(rows)), loc.cpu().numpy(), args
