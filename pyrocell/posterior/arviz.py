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
from pyrocell._core.random import seeded
from pyrocell.errors import ScreenError
from pyrocell.generative.cell_shift import shifts_shared
from pyrocell.generative.model import GenerativeModel
from pyrocell.noise.content import content_names
from pyrocell.posterior.draws import check_draws
from pyrocell.posterior.effects import effect_draws
from pyrocell.posterior.fitted_screen import FittedScreen
from pyrocell.posterior.streaming_quantiles import memory_bytes
from pyrocell.screen.screen import Screen

__all__ = ["Wanted", "chosen_cells", "labelled", "to_arviz"]

EFFECT = "effect"
GROUPS = ("posterior", "observed_data", "posterior_predictive", "log_likelihood")
_PARTICLES = 16  # states of a cell over which its likelihood is averaged
_CHAINS, _FEWEST = 4, 4  # chains that independent draws are laid out in, and draws of each

_DIMS = {
    "P.effect": ("perturbation", "axis"),
    "P.on_target": ("perturbation",),
    "P.residual": ("perturbation", "time", "gene"),
    "P.common": ("gene",),
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
    return np.arange(n_cells)[np.asarray(cells)]


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
    _check_size(wanted, len(genes), effects)
    sites = None if wanted.sites is None else [s for s in wanted.sites if s != EFFECT]
    samples = {} if sites == [] else samples_of(n, sites)
    draws, coords, dims = labelled(samples, screen, fit.model, covariates)
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
    laid_out = {
        group: {
            name: values
            if group == "observed_data"
            else values.reshape(chains, n // chains, *values.shape[1:])
            for name, values in held.items()
        }
        for group, held in groups.items()
    }
    return inference_data(laid_out, coords, dims)


def _check_size(wanted: Wanted, n_genes: int, effects: bool) -> None:
    """Raise where the draws of effects or cells would not fit."""
    budget = memory_bytes(wanted.memory_budget)
    per_draw = len(wanted.perturbations) * n_genes if effects else 0
    if "posterior_predictive" in wanted.groups:
        per_draw += len(wanted.cells) * n_genes
    if 4 * wanted.n * per_draw > budget:
        raise ScreenError(
            f"{wanted.n} draws of effects and counts take {4 * wanted.n * per_draw / 2**30:.1f} "
            f"GiB, more than memory_budget={wanted.memory_budget!r}; name perturbations= and "
            "genes=, pass "
            'fewer cells= or n=, name sites= without "effect", or allow more'
        )


@torch.no_grad()
def _of_cells(fit: FittedScreen, wanted: Wanted) -> dict[str, dict[str, np.ndarray]]:
    """Observed counts, counts drawn for the same cells, and the log likelihood of each cell."""
    model, device = fit.model, fit.model.loading.device
    columns = slice(None) if wanted.genes is None else wanted.genes
    args = {k: v.to(device) for k, v in fit.data.rows(wanted.cells).items()}
    extra = (args["condition"], args["batch"], args.get("covariates"), fit.data.conditions)
    predicted, scored = [], []
    some = "log_likelihood" in wanted.groups
    for s, values in enumerate(fit.posterior.draws(wanted.n)):
        with seeded(device, "arviz", s), shifts_shared():
            loc, scale = fit.posterior.guide.encode(values, args["x"], *extra)
            shift = model.cell_shift(values, *extra)
            q = dist.Normal(loc, scale)
            weights = []
            for particle in range(_PARTICLES if some else 1):
                z = q.sample()
                logits = model.resting_logits(values, z) + shift
                view = model.view(values, logits, args["log_size"], z)
                if particle == 0 and "posterior_predictive" in wanted.groups:
                    predicted.append(view.sample()[:, columns].cpu().numpy().astype(np.float32))
                if some:
                    place = (args["condition"], fit.data.conditions)
                    prior = model.state_log_prob(values, z, *place, _reversal(fit))
                    weights.append(view.log_prob(args["x"]) + prior - q.log_prob(z).sum(-1))
            if some:
                total = torch.logsumexp(torch.stack(weights), 0) - math.log(_PARTICLES)
                scored.append(total.cpu().numpy())
    groups = {}
    if "observed_data" in wanted.groups:
        counts = args["x"].to_dense()[:, columns].cpu().numpy()
        groups["observed_data"] = {"counts": counts}
    if predicted:
        groups["posterior_predictive"] = {"counts": np.stack(predicted)}
    if scored:
        groups["log_likelihood"] = {"cells": np.stack(scored)}
    return groups


def _reversal(fit: FittedScreen) -> Any:
    return getattr(fit.posterior.guide, "reversal", None)
