"""Draws with the names of their dimensions, as ArviZ takes them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributions as dist

from pyrocell._compat import inference_data
from pyrocell._core.messages import did_you_mean
from pyrocell._core.random import seeded
from pyrocell.errors import ScreenError
from pyrocell.generative.cell_shift import shifts_shared
from pyrocell.generative.model import GenerativeModel
from pyrocell.noise.content import content_names
from pyrocell.posterior.draws import check_draws
from pyrocell.posterior.effects import effect_draws
from pyrocell.posterior.fitted_screen import FittedScreen
from pyrocell.posterior.guides import guide_names
from pyrocell.posterior.streaming_quantiles import memory_bytes
from pyrocell.screen.screen import Screen

__all__ = ["Wanted", "chosen_cells", "labelled", "to_arviz"]

EFFECT = "effect"
GROUPS = ("posterior", "observed_data", "posterior_predictive", "log_likelihood")
_PARTICLES = 16  # states of a cell over which its likelihood is averaged
_CHAINS, _FEWEST = 4, 4  # chains that independent draws are laid out in, and draws of each
_AT_WORK = 2**27  # bytes that the cells worked on take, whatever the answer's size
_TABLES = 16  # of cells × genes that are held while some cells are worked on

_DIMS = {
    "P.effect": ("perturbation", "axis"),
    "P.on_target": ("perturbation",),
    "P.residual": ("perturbation", "time", "gene"),
    "P.common": ("gene",),
    "P.guide_efficacy": ("guide",),
    "P.guide_escapers": ("guide",),
    "P.interaction": ("arm", "gene"),
    "M.effect": ("media", "axis"),
    "M.gain": ("perturbation", "media"),
    "M.turnover": ("media",),
    "M.residual": ("media", "time", "gene"),
    "W.log_rate_base": (),
    "W.log_rate": ("driver",),
    "W.decay_ratio": ("perturbation",),
    "W.log_decay": ("perturbation",),
    "W.field": ("field_feature", "axis"),
    "W.flow": ("state_feature", "state_axis"),
    "P.flow": ("perturbation", "code"),
    "M.flow": ("media", "code"),
    "W.noise": ("state_axis",),
    "W.drift": ("own_axis",),
    "W.course": ("time", "gene"),
    "W.process_noise": ("part",),
    "W.gene_scale": ("gene",),
    "W.driver_scale": ("driver",),
    "V.baseline": ("gene",),
    "V.slope": ("gene",),
    "V.loading": ("own_axis", "gene"),
    "V.curvature": ("feature", "gene"),
    "V.covariate": ("covariate", "gene"),
    "eta": ("batch", "gene"),
    "eta.content": ("content", "gene"),
    "eta.scale": ("gene",),
    "eta.free": ("contrast", "gene"),
    "assumed.scale": ("assumption",),
    "eta.laboratory": ("laboratory", "gene"),
    "eta.laboratory_scale": ("gene",),
}


def labelled(
    samples: dict[str, np.ndarray],
    screen: Screen,
    model: GenerativeModel,
    covariates: Sequence[str],
    guides: Sequence[str] = (),
) -> tuple[dict[str, np.ndarray], dict[str, list], dict[str, list[str]]]:
    """Draws, coordinates and dimension names of sites."""
    own_axis = [f"r{i + 1}" for i in range(model.config.n_response)]
    own_axis += [f"p{i + 1}" for i in range(_n_programs(samples, model))]
    coords = {
        "perturbation": list(screen.perturbations),
        "media": list(screen.media),
        "time": list(screen.times) or [0.0],
        "gene": list(screen.genes),
        "batch": list(screen.batches),
        "laboratory": list(screen.laboratories),
        "driver": [*screen.perturbations, *screen.media],
        "arm": _arms(screen, model),
        "guide": list(guides),
        "axis": [*(f"z{i + 1}" for i in range(model.config.n_latent)), *own_axis],
        "own_axis": own_axis,
        "state_axis": [f"z{i + 1}" for i in range(model.config.n_latent)],
        "code": [f"c{i + 1}" for i in range(model.motion.n_codes if model.moves_states else 0)],
        "part": ["constant", "proportional"],
        "gate": ["intercept", "slope"],
        "covariate": list(covariates),
        "content": content_names(screen),
        "assumption": model.uncertain.kinds,
    }
    for dim, part in model.measurement.coords.items():
        coords[dim] = list(screen.genes[part])
    known = _DIMS | model.measurement.dims | model.dynamics.dims
    dims = {site: list(known[site]) for site in samples if site in known}
    used = {dim for names in dims.values() for dim in names}
    return dict(samples), {dim: values for dim, values in coords.items() if dim in used}, dims


def _n_programs(samples: dict[str, np.ndarray], model: GenerativeModel) -> int:
    """Axes of draws that the model's own are followed by."""
    n_response, n_axes = model.config.n_response, model.n_axes
    more = [samples[s].shape[-2] - n_response for s in ("V.loading",) if s in samples]
    more += [samples[s].shape[-1] - n_axes for s in ("P.effect", "M.effect") if s in samples]
    more += [samples[s].shape[-1] - n_response for s in ("W.drift",) if s in samples]
    return max(more, default=0)


def _arms(screen: Screen, model: GenerativeModel) -> list[str]:
    """Names of the rows of `P.interaction`, "A+B | medium"."""
    rows = model.interaction.tolist()
    labels = screen.conditions["perturbation"] + " | " + screen.conditions["media"]
    names = {row: label for row, label in zip(rows, labels, strict=True) if row >= 0}
    return [names[row] for row in sorted(names)]


# ---------------------------------------------------------------------- what is asked for
@dataclass(frozen=True)
class Wanted:
    """What an ArviZ container is to hold; see :meth:`pyrocell.PyroCell.to_arviz`.

    Attributes
    ----------
    n
        Draws.
    sites
        Names of sites, or None for all.
    perturbations, genes
        Labels, and positions or None for all.
    groups
        Of `GROUPS`.
    cells
        Positions.
    memory_budget
        That the draws may take.
    """

    n: int
    sites: Sequence[str] | None
    perturbations: Sequence[str]
    genes: np.ndarray | None
    groups: tuple[str, ...]
    cells: np.ndarray
    memory_budget: int | float | str


def chosen_cells(n_cells: int, cells: int | Sequence[int]) -> np.ndarray:
    """Positions of cells: so many at random, or those."""
    if isinstance(cells, int | np.integer):
        if cells < 1:
            raise ScreenError(f"cells={cells} must be at least 1")
        return np.sort(np.random.default_rng(0).permutation(n_cells)[:cells])
    try:
        return np.arange(n_cells)[np.asarray(cells)]
    except IndexError as error:
        raise ScreenError(
            f"cells= holds what is no position among the {n_cells:,} cells of the model; pass "
            "numbers from 0, a mask of all cells, or how many"
        ) from error


def to_arviz(
    fit: FittedScreen,
    wanted: Wanted,
    samples_of: Callable[..., dict[str, np.ndarray]],
    covariates: Sequence[str],
) -> Any:
    """Groups of draws with named dimensions; see :meth:`pyrocell.PyroCell.to_arviz`."""
    check_draws(wanted.n)
    unknown = [name for name in wanted.groups if name not in GROUPS]
    if unknown:
        raise ScreenError(f'groups holds "{unknown[0]}"; there are: {", ".join(GROUPS)}')
    screen, n = fit.screen, wanted.n
    genes = list(screen.genes if wanted.genes is None else screen.genes[wanted.genes])
    effects = wanted.sites is None or EFFECT in wanted.sites
    effects = effects and bool(wanted.perturbations)
    _check_size(wanted, len(genes), effects, fit.posterior.draw(0))
    sites = None if wanted.sites is None else [s for s in wanted.sites if s != EFFECT]
    samples = {} if sites == [] else samples_of(n, sites)
    draws, coords, dims = labelled(samples, screen, fit.model, covariates, guide_names(fit))
    draws = {site: values for site, values in draws.items() if values.size}
    if effects:
        time = screen.times[-1] if screen.times else None
        where = (list(wanted.perturbations), screen.baseline_media, time)
        found = effect_draws(fit, *where, n)
        draws[EFFECT] = found if wanted.genes is None else found[:, :, wanted.genes]
        # Sites have every gene; counts and effects may have some.
        dims[EFFECT] = ["affected_by", "effect_gene"]
        coords |= {"affected_by": list(wanted.perturbations), "effect_gene": genes}
        if list(wanted.perturbations) == list(screen.perturbations):
            dims[EFFECT][0] = "perturbation"
            coords["perturbation"] = coords.pop("affected_by")
        if wanted.genes is None:
            dims[EFFECT][1] = "gene"
            coords["gene"] = coords.pop("effect_gene")
    groups: dict[str, dict[str, np.ndarray]] = {"posterior": draws}
    if len(wanted.groups) > ("posterior" in wanted.groups):
        dims |= {"counts": ["cell", "count_gene"], "cells": ["cell"]}
        coords |= {"cell": wanted.cells.tolist(), "count_gene": genes}
        groups |= _of_cells(fit, wanted)
    chains = _CHAINS if n % _CHAINS == 0 and n >= _CHAINS * _FEWEST else 1
    if chains > 1 and wanted.sites is None:
        groups |= _constant(draws)
    without_draws = "observed_data", "constant_data"
    laid_out = {
        group: {
            name: values
            if group in without_draws
            else values.reshape(chains, n // chains, *values.shape[1:])
            for name, values in held.items()
        }
        for group, held in groups.items()
    }
    return inference_data(laid_out, coords, dims)


def _constant(draws: dict[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """Move sites that are the same in all draws to a group of their own.

    Such as axes of effects that single genes have taken over: `r_hat` is not defined for them.
    """
    still = [site for site, values in draws.items() if (values == values[:1]).all()]
    return {"constant_data": {site: draws.pop(site)[0] for site in still}} if still else {}


def _check_size(
    wanted: Wanted, n_genes: int, effects: bool, values: dict[str, torch.Tensor]
) -> None:
    """Raise where the draws would not fit; `values` is one draw of every site."""
    budget = memory_bytes(wanted.memory_budget)
    asked = values if wanted.sites is None else [s for s in wanted.sites if s != EFFECT]
    unknown = [site for site in asked if site not in values]
    if unknown:
        raise ScreenError(
            f'sites holds "{unknown[0]}"{did_you_mean(unknown[0], [*values, EFFECT])}; there are: '
            f"{', '.join([*values, EFFECT])}"
        )
    size = {site: values[site].numel() for site in asked}
    if effects:
        size[EFFECT] = len(wanted.perturbations) * n_genes
    counts = len(wanted.cells) * n_genes
    if "posterior_predictive" in wanted.groups:
        size["posterior_predictive"] = counts
    if "log_likelihood" in wanted.groups:
        size["log_likelihood"] = len(wanted.cells)
    size = {name: 4 * wanted.n * entries for name, entries in size.items()}
    if "observed_data" in wanted.groups:
        size["observed_data"] = 4 * counts
    total = sum(size.values())
    if total > budget:
        largest = max(size, key=lambda name: size[name])
        raise ScreenError(
            f"{wanted.n} draws take {total / 2**30:.2g} GiB, most of it {largest}, more than "
            f"memory_budget={wanted.memory_budget!r}; name sites=, perturbations= and genes=, pass "
            "fewer cells= or n=, or allow more"
        )


@torch.no_grad()
def _of_cells(fit: FittedScreen, wanted: Wanted) -> dict[str, dict[str, np.ndarray]]:
    """Observed counts, counts drawn for the same cells, and the log likelihood of each cell."""
    wants = {group: group in wanted.groups for group in GROUPS}
    columns = slice(None) if wanted.genes is None else wanted.genes
    n_cells, n_genes = len(wanted.cells), len(fit.screen.genes[columns])
    step = max(1, _AT_WORK // (4 * _TABLES * len(fit.screen.genes)))
    blocks = [slice(a, a + step) for a in range(0, n_cells, step)]
    groups: dict[str, dict[str, np.ndarray]] = {}
    if wants["observed_data"]:
        rows = [fit.data.rows(wanted.cells[block])["x"] for block in blocks]
        counts = np.concatenate([x.to_dense()[:, columns].cpu().numpy() for x in rows])
        groups["observed_data"] = {"counts": counts}
    if wants["posterior_predictive"]:
        drawn = np.empty((wanted.n, n_cells, n_genes), np.float32)
        groups["posterior_predictive"] = {"counts": drawn}
    if wants["log_likelihood"]:
        groups["log_likelihood"] = {"cells": np.empty((wanted.n, n_cells), np.float32)}
    if not (wants["posterior_predictive"] or wants["log_likelihood"]):
        return groups
    for s, values in enumerate(fit.posterior.draws(wanted.n)):
        with seeded(fit.model.loading.device, "arviz", s), shifts_shared():
            for block in blocks:
                drawn, scores = _some_cells(fit, values, wanted.cells[block], wants)
                if drawn is not None:
                    groups["posterior_predictive"]["counts"][s, block] = drawn[:, columns].cpu()
                if scores is not None:
                    groups["log_likelihood"]["cells"][s, block] = scores.cpu()
    return groups


def _some_cells(
    fit: FittedScreen, values: dict[str, torch.Tensor], cells: np.ndarray, wants: dict[str, bool]
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Counts drawn for some cells, (cells, G), and their log likelihoods, in one joint draw."""
    model, device = fit.model, fit.model.loading.device
    args = {k: v.to(device) for k, v in fit.data.rows(cells).items()}
    extra = (args["condition"], args["batch"], args.get("covariates"), fit.data.conditions)
    loc, scale = fit.posterior.guide.encode(values, args["x"], *extra, log_size=args["log_size"])
    shift = model.cell_shift(values, *extra)
    q = dist.Normal(loc, scale)
    drawn, weights = None, []
    for particle in range(_PARTICLES if wants["log_likelihood"] else 1):
        z = q.sample()
        view = model.view(values, model.resting_logits(values, z) + shift, args["log_size"], z)
        if particle == 0 and wants["posterior_predictive"]:
            drawn = view.sample()
        if wants["log_likelihood"]:
            place = (args["condition"], fit.data.conditions)
            prior = model.state_log_prob(values, z, *place, _reversal(fit))
            weights.append(view.log_prob(args["x"]) + prior - q.log_prob(z).sum(-1))
    if not weights:
        return drawn, None
    return drawn, torch.logsumexp(torch.stack(weights), 0) - math.log(_PARTICLES)


def _reversal(fit: FittedScreen) -> Any:
    return getattr(fit.posterior.guide, "reversal", None)
