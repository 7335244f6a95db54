"""Draws with the names of their dimensions, as ArviZ takes them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pyrocell.generative.model import GenerativeModel
from pyrocell.noise.content import content_names
from pyrocell.screen.screen import Screen

__all__ = ["labelled"]

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
    """Draws (1 chain), coordinates and dimension names of sites."""
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
    draws = {site: values[None] for site, values in samples.items()}
    return draws, {dim: values for dim, values in coords.items() if dim in used}, dims


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
