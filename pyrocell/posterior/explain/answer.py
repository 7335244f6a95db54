"""Joint draws of the terms of a change, on the scale of effects or on that of counts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch import Tensor

from pyrocell.errors import ScreenError
from pyrocell.posterior.draws import check_draws, check_level
from pyrocell.posterior.explain.conditions import Asked, Given, gene_places, read_asked
from pyrocell.posterior.explain.drawn import Drawn
from pyrocell.posterior.explain.tables import names_of, table_by_gene, table_by_step
from pyrocell.posterior.explain.terms import (
    READING,
    STEPS,
    TIME,
    Levels,
    Side,
    Term,
    base_levels,
    gain_of,
    levels_of,
    terms_of,
)
from pyrocell.posterior.fitted_screen import FittedScreen
from pyrocell.posterior.populations import moments, resting_cells
from pyrocell.posterior.unseen import neighbours
from pyrocell.posterior.unseen.requests import KnowledgeOrNone
from pyrocell.posterior.views import views_of

__all__ = ["Request", "drawn_terms", "explain"]

SCALES, TABLES = ("effect", "counts"), ("gene", "step")
_NOTHING = 1e-6  # log-fold change; a term that never exceeds it is left out
_NEIGHBOURS = 10


@dataclass(frozen=True)
class Request:
    """What is asked of `explain`; see `PyroCell.explain`."""

    perturbation: Given
    gene: str | Sequence[str] | None = None
    media: str | None = None
    time: float | None = None
    batch: str | None = None
    against: Given | None = None
    n_samples: int = 500
    credible_level: float = 0.9
    by: str = "gene"
    scale: str = "effect"
    by_axis: bool = False
    view: str | None = None
    knowledge: KnowledgeOrNone | None = None


def explain(
    fit: FittedScreen,
    request: Request,
    size_factor: float,
    return_draws: bool,
    progress: Callable[..., Iterable],
) -> pd.DataFrame | xr.DataArray:
    """The change of a condition as a sum of terms; see `PyroCell.explain`."""
    check_level(request.credible_level)
    for name, value, known in (("scale", request.scale, SCALES), ("by", request.by, TABLES)):
        if value not in known:
            raise ScreenError(f'{name}="{value}" is not one of "{known[0]}" and "{known[1]}"')
    found = drawn_terms(fit, request, size_factor, progress)
    if return_draws:
        names = [*names_of(found.terms, fit.screen), "total"]
        values = np.concatenate([found.values, found.total[:, None]], 1)
        genes = list(fit.screen.genes[found.places])
        coords = {"term": names, "gene": genes}
        return xr.DataArray(values, dims=("draw", "term", "gene"), coords=coords)
    table = (table_by_gene if request.by == "gene" else table_by_step)(
        fit, found, request.credible_level
    )
    table.attrs |= {
        "condition": found.asked.name,
        "against": found.against.name,
        "scale": request.scale,
        "by": request.by,
        "credible_level": request.credible_level,
        "n_genes": len(found.places),
    }
    if found.asked.unseen_genes:
        table.attrs["neighbours"] = _neighbours(fit, request, found.asked)
    return table


@torch.no_grad()
def drawn_terms(
    fit: FittedScreen,
    request: Request,
    size_factor: float,
    progress: Callable[..., Iterable] = iter,
) -> Drawn:
    """Joint draws of the terms; those of `predict`."""
    check_draws(request.n_samples)
    if request.by_axis and fit.gene_level is not None:
        raise ScreenError(
            "by_axis=True asks for single programs, but the chains of the gene-level phase number "
            "theirs each in its own way, and only their sum means the same in all; leave it out"
        )
    n, model = request.n_samples, fit.model
    features = views_of(model.config, request.view)
    part = slice(None)
    if features is not None and request.view is not None:
        part = features.slices[features.of(request.view)]
    places = gene_places(fit.screen, request.gene, part)
    asked = read_asked(
        fit, request.perturbation, request.media, request.time, request.batch, n, request.knowledge
    )
    against = _against(fit, request, asked)
    sides = [Side.of(fit, asked), Side.of(fit, against)]
    counts = request.scale == "counts"
    cells = None
    if counts or model.moves_states:
        cells = resting_cells(fit.data, model, fit.posterior.seed)
    level = levels_of(fit, cells if model.moves_states else None)
    parts = [fit.part(side.asked.frame) for side in sides]
    draws = fit.posterior.draws(n, perturbations=fit.asked_of(parts))
    kept: dict[Term, np.ndarray] = {}
    total = np.empty((n, len(places)), np.float32)
    gain = np.empty(n, np.float32)
    for s, values in enumerate(progress(draws)):
        values = fit.with_turnover(values, s)
        found, whole = _difference(fit, values, sides, s, level, request.by_axis)
        change = None
        if counts:
            assert cells is not None
            logs = [_log_counts(fit, values, side, s, cells, size_factor) for side in sides]
            change = logs[0] - logs[1]
        elif not model.moves_states and fit.gene_level is None and model.measurement.compositions:
            logs = [_relative(fit, values, side, s) for side in sides]
            change = logs[0] - logs[1]
        if change is not None:
            name = "composition and curvature" if counts else "composition"
            found[Term(READING, name)], whole = change - whole, change
        for term, value in found.items():
            if term not in kept:
                kept[term] = np.zeros((n, len(places)), np.float32)
            kept[term][s] = value.cpu().numpy()[places]
        total[s] = whole.cpu().numpy()[places]
        gain[s] = gain_of(values, asked)
    if not kept:
        raise ScreenError(
            f"{asked.name} is compared with itself: nothing was done to its cells; name a "
            "perturbation, or media= or against= that differ"
        )
    order = sorted(kept, key=lambda term: STEPS.index(term.step))
    there = [term for term in order if np.abs(kept[term]).max(initial=0.0) > _NOTHING]
    there = there or order[:1]
    held = np.stack([kept[term] for term in there], 1)
    has_gain = asked.medium >= 0 and bool(asked.perturbations)
    return Drawn(there, held, total, gain if has_gain else None, asked, against, places)


def _against(fit: FittedScreen, request: Request, asked: Asked) -> Asked:
    """What the condition is compared with: controls in the baseline medium at its time."""
    screen, given = fit.screen, request.against
    row: dict[str, object] = {
        "perturbation": screen.control,
        "media": screen.baseline_media,
    }
    if screen.times:
        row["time"] = float(asked.frame["time"].iloc[0]) if "time" in asked.frame else np.nan
    if isinstance(given, str):  # the same, but for what was perturbed
        mine = asked.frame.drop(columns=["batch", "laboratory"], errors="ignore")
        given = mine.assign(perturbation=given)
    elif given is None:
        given = row
    elif isinstance(given, Mapping):
        given = row | dict(given)
    return read_asked(fit, given, None, None, None, request.n_samples, request.knowledge)


def _difference(
    fit: FittedScreen,
    values: dict[str, Tensor],
    sides: Sequence[Side],
    draw: int,
    level: Levels,
    by_axis: bool,
) -> tuple[dict[Term, Tensor], Tensor]:
    """Terms of the first side less those of the second, and of both sums."""
    (out, total), (other, less) = (
        terms_of(fit, values, side, draw, level, by_axis) for side in sides
    )
    for term, value in other.items():
        out[term] = out[term] - value if term in out else -value
    if not torch.equal(sides[0].whole.duration, sides[1].whole.duration):
        ends = [base_levels(fit, values, side, draw, level) for side in sides]
        out[Term(TIME, "time")] = ends[0] - ends[1]
        total = total + out[Term(TIME, "time")]
    return out, total - less


def _shift(fit: FittedScreen, values: dict[str, Tensor], side: Side, draw: int) -> Tensor:
    """Logits of a condition against rest, (1, G), as `predict` has them."""
    asked = side.asked
    shift = fit.shift(values, side.whole, side.not_measured, draw, asked.order)
    if asked.unseen is not None:
        shift = shift + asked.unseen(draw, 0, shift)
    if fit.model.n_batches > 1:
        shift = shift + side.noise.draw(values, draw)
    if fit.gene_level is not None and (side.noise.request.new >= 0).any():
        genotype, exposure = side.whole.genotype, side.whole.exposure
        if fit.model.has_time:
            begun = (side.whole.duration > 0)[:, None]
            genotype, exposure = genotype * begun, exposure * begun
        new = side.noise.request.new
        shift = shift + fit.gene_level.in_new_batches(draw, genotype, exposure, new)
    return shift


def _relative(fit: FittedScreen, values: dict[str, Tensor], side: Side, draw: int) -> Tensor:
    """Log expression per unit of depth of an average cell, (G,), as effects are measured."""
    shift = _shift(fit, values, side, draw)
    return fit.model.measurement.relative(values["V.baseline"] + shift)[0]


def _log_counts(
    fit: FittedScreen,
    values: dict[str, Tensor],
    side: Side,
    draw: int,
    cells: dict[str, Tensor],
    size_factor: float,
) -> Tensor:
    """Log of the counts that `predict` expects, (G,)."""
    shift = _shift(fit, values, side, draw)
    z = fit.states(values, cells, side.whole, draw, side.asked.order)
    return moments(fit.model, values, z, shift, size_factor)[0][0].log()


def _neighbours(fit: FittedScreen, request: Request, asked: Asked) -> list[dict]:
    """Measured perturbations and sources that carry what is said of an unseen one."""
    assert request.knowledge is not None
    where = str(asked.frame["media"].iloc[0]) if "media" in asked.frame else None
    media = fit.screen.baseline_media if where is None else where
    time = float(asked.frame["time"].iloc[0]) if fit.screen.times else None
    if isinstance(request.knowledge, str):
        return []
    genes = list(asked.unseen_genes)
    found = neighbours(fit, genes, request.knowledge, media, time, _NEIGHBOURS, 100)
    return found.to_dict("records")
