"""Counts expected of conditions, seen or not: their draws, and the table of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr
from anndata import AnnData
from torch import Tensor

from pyrocell._core.random import stream
from pyrocell.errors import ScreenError
from pyrocell.operators import Protocol
from pyrocell.posterior.draws import check_draws
from pyrocell.posterior.fitted_screen import Draws, FittedScreen, Part, stacked
from pyrocell.posterior.new_batches import RequestedBatchNoise, requested_batch_noise
from pyrocell.posterior.output import INTERVAL, OutputTarget, annotated
from pyrocell.posterior.populations import moments, resting_cells
from pyrocell.posterior.requests import requested
from pyrocell.posterior.summaries import summaries
from pyrocell.posterior.unseen import UnseenShift, without_unseen
from pyrocell.posterior.unseen.requests import KnowledgeOrNone
from pyrocell.screen.events import EVENTS
from pyrocell.screen.requests import encode_cells
from pyrocell.views.rna import pseudobulk

__all__ = ["expected", "predict", "predicted_draws"]


def predict(
    fit: FittedScreen,
    conditions: Protocol | pd.DataFrame,
    n_samples: int,
    size_factor: float,
    credible_level: float,
    return_draws: bool,
    progress: Callable[..., Iterable],
    batch_content: Mapping[str, float] | None,
    keep: OutputTarget,
    knowledge: KnowledgeOrNone | None = None,
) -> AnnData | xr.DataArray | xr.Dataset:
    """Predicted counts of conditions as AnnData or dataset, or their joint draws."""
    screen, unseen = fit.screen, None
    if knowledge is None:
        frame, order = requested(conditions, screen)
        measured = frame
    else:
        measured, asked, order = without_unseen(fit, conditions, knowledge)
        unseen = UnseenShift(fit, knowledge, measured, asked, n_samples)
        frame = unseen.named(measured)
    # a protocol's one row is named by where it ends, so that orders can be compared
    named = frame if order is None else frame.drop(columns=list(EVENTS), errors="ignore")
    names = [" | ".join(map(str, row)) for row in named.itertuples(index=False)]
    parts, genes = fit.parts(len(frame)), list(screen.genes)

    def draws(some: Sequence[slice]) -> Draws:
        request = n_samples, size_factor, some, order, batch_content
        return expected(fit, measured, *request, unseen)

    coords: dict[str, Any] = {"condition": (("condition",), names), "gene": (("gene",), genes)}
    coords |= {str(c): (("condition",), frame[c].to_numpy()) for c in frame}
    chunk = {"condition": parts[0].stop, "draw": 1}
    if return_draws and keep.path is None:
        return _draws_in_memory(draws(parts), n_samples, names, genes, progress)
    if return_draws:
        coords["draw"] = (("draw",), np.arange(n_samples))
        blocks = (
            ((slice(s, s + 1), part), {"counts": values[None]})
            for s, draw in zip(progress(range(n_samples)), draws(parts), strict=False)
            for part, values in zip(parts, draw, strict=True)
        )
        dims = {"counts": ("draw", "condition", "gene")}
        return keep.store(blocks, coords, dims, chunk, size_factor=size_factor)["counts"]
    width = len(genes), n_samples, credible_level, keep.memory_budget
    found = summaries(draws, parts, *width, progress)
    if keep.path is not None:
        attrs = {"size_factor": size_factor, "credible_level": credible_level}
        dims = dict.fromkeys(INTERVAL, ("condition", "gene"))
        return keep.store(found, coords, dims, chunk, n_samples=n_samples, **attrs)
    obs = frame.set_axis(pd.Index([str(i) for i in range(len(frame))]))
    if unseen is not None:
        obs["unseen"] = unseen.unseen
    out = annotated(found, obs, genes, credible_level)
    out.uns["size_factor"] = size_factor
    return out


def _draws_in_memory(
    draws: Draws,
    n_samples: int,
    names: Sequence[str],
    genes: Sequence[str],
    progress: Callable[..., Iterable],
) -> xr.DataArray:
    out = np.empty((n_samples, len(names), len(genes)), np.float32)
    for s, draw in zip(progress(range(n_samples)), draws, strict=False):
        np.concatenate(list(draw), out=out[s])
    coords = {"condition": list(names), "gene": list(genes)}
    return xr.DataArray(out, dims=("draw", "condition", "gene"), coords=coords)


# ---------------------------------------------------------------------- draws
def expected(
    fit: FittedScreen,
    frame: pd.DataFrame,
    n_samples: int,
    size_factor: float,
    parts: Sequence[slice],
    protocol: Protocol | None = None,
    batch_content: Mapping[str, float] | None = None,
    unseen: UnseenShift | None = None,
) -> Draws:
    """Expected counts of conditions at the size factor, (rows, G); pseudobulk with `n_cells`.

    The mean over the resting population of V's mean; with `n_cells` each draw is the mean count
    of that many simulated cells, so that intervals include the sampling noise. A `protocol`
    says in which order the (one) condition of `frame` came about; `batch_content` what batches
    that were not measured contain; `unseen` adds perturbations that were not.
    """
    check_draws(n_samples)
    if not size_factor > 0:
        raise ScreenError(f"size_factor={size_factor} must be above 0: the depth of a cell")
    noise = requested_batch_noise(fit.posterior, fit.screen, frame, batch_content)
    cells = encode_cells(frame["n_cells"]) if "n_cells" in frame else None
    population = resting_cells(fit.data, fit.model, fit.posterior.seed)
    asked = [
        (
            fit.part(frame.iloc[part], part.start),
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
        noise: RequestedBatchNoise,
        cells: np.ndarray | None,
    ) -> np.ndarray:
        conditions = part.conditions
        shift = fit.shift(values, conditions, part.unseen, s, protocol, part.first)
        if unseen is not None:
            shift = shift + unseen(s, part.first, shift)
        if fit.model.n_batches > 1:
            shift = shift + noise.draw(values, s)
        if fit.gene_level is not None and (noise.request.new >= 0).any():
            genotype, exposure = conditions.genotype, conditions.exposure
            if fit.model.has_time:
                begun = (conditions.duration > 0)[:, None]
                genotype, exposure = genotype * begun, exposure * begun
            new = noise.request.new
            shift = shift + fit.gene_level.in_new_batches(s, genotype, exposure, new)
        z = fit.states(values, population, conditions, s, protocol)
        mean, variance = moments(fit.model, values, z, shift, size_factor)
        if cells is None:
            return mean.cpu().numpy()
        rng = np.random.default_rng(stream("pseudobulk", fit.posterior.seed, s, part.first))
        return pseudobulk(mean.cpu().numpy(), variance.cpu().numpy(), cells, rng)

    some = fit.asked_of([part for part, *_ in asked])
    for s, values in enumerate(fit.posterior.draws(n_samples, perturbations=some)):
        yield (expect(values, s, *part) for part in asked)


def predicted_draws(
    fit: FittedScreen,
    frame: pd.DataFrame,
    n_samples: int,
    size_factor: float,
    protocol: Protocol | None = None,
    batch_content: Mapping[str, float] | None = None,
) -> np.ndarray:
    """Draws of expected counts, (S, C, G); see `expected`."""
    request = frame, n_samples, size_factor, fit.parts(len(frame)), protocol, batch_content
    return stacked(expected(fit, *request), n_samples)
