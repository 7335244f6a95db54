"""What is asked and answered in names: conditions of protocols, levels, dimensions of sites."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from pyrocell.contrasts.levels import ConditionLevels, condition_levels
from pyrocell.errors import ProtocolError, ScreenError
from pyrocell.generative.model import GenerativeModel
from pyrocell.noise.content import content_names
from pyrocell.operators import Media, Perturb, Protocol, Wait
from pyrocell.posterior.queries import Queries
from pyrocell.screen.screen import Screen

__all__ = ["labelled", "levels", "protocol_frame", "requested"]


def protocol_frame(protocol: Protocol, screen: Screen) -> pd.DataFrame:
    """The condition that a protocol ends in: perturbations, medium, and time waited in all.

    Raises
    ------
    ProtocolError
        If the protocol adds several media, which no condition of a screen has.
    """
    media = protocol.media
    if len(media) > 1:
        raise ProtocolError(
            f"{protocol} adds {len(media)} media; the screen measured one at a time"
        )
    names = [
        screen.perturbations[i]
        for step in protocol.perturbations
        for i in screen.indices(step.gene)
    ]
    row = {
        "perturbation": "+".join(sorted(names)) or screen.control,
        "media": media[0] if media else screen.baseline_media,
    }
    if screen.times:
        row |= {"time": protocol.duration} | _event_times(protocol)
    return pd.DataFrame([row])


def _event_times(protocol: Protocol) -> dict[str, float]:
    """When a protocol first perturbs, and first changes the medium, where not at its start."""
    found: dict[str, float] = {}
    clock = 0.0
    for step in protocol.steps:
        if isinstance(step, Wait):
            clock += step.time
        else:
            found.setdefault("perturbed_at" if isinstance(step, Perturb) else "exposed_at", clock)
    return {event: time for event, time in found.items() if time > 0}


def _usual_order(protocol: Protocol) -> bool:
    """Whether a protocol is the screen's own: perturb, then media, then wait (eq. 4)."""
    order = [{Perturb: 0, Media: 1, Wait: 2}[type(step)] for step in protocol.steps]
    return order == sorted(order)


def requested(
    conditions: Protocol | pd.DataFrame, screen: Screen
) -> tuple[pd.DataFrame, Protocol | None]:
    """A table of conditions, and the protocol where its order is not the screen's own."""
    order = None
    if isinstance(conditions, Protocol):
        order = None if _usual_order(conditions) else conditions
        conditions = protocol_frame(conditions, screen)
    if not isinstance(conditions, pd.DataFrame) or conditions.empty:
        what = "an empty one" if isinstance(conditions, pd.DataFrame) else repr(conditions)
        raise ScreenError(
            "conditions must be a Protocol, or a table with a row per condition and a column "
            f'"perturbation", not {what}'
        )
    return conditions.reset_index(drop=True), order


def levels(queries: Queries, n_samples: int, ratio: float = 1.0) -> list[ConditionLevels]:
    """Levels of all conditions under draws of the scale of batch noise, times a ratio."""
    data, screen = queries.data, queries.screen
    if data.conditions is not None:
        raise ScreenError("the cells have conditions that this model was not built for")
    size = np.exp(data.log_size.astype(float))
    scales = [(np.ones(len(screen.genes)),)]  # of no consequence in one batch
    if len(screen.batches) > 1:
        sites = ["eta.scale", *["eta.laboratory_scale"] * queries.model.has_laboratories]
        draws = queries.posterior.samples(n_samples, sites)
        scales = [
            tuple(ratio * each.astype(float) for each in one)
            for one in zip(*draws.values(), strict=True)
        ]
    nested = (screen.batch_laboratory,) if queries.model.has_laboratories else ()
    return [
        condition_levels(data.counts, size, data.condition, data.batch, own, *nested, *common)
        for own, *common in scales
    ]


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
    "V.dispersion": ("gene",),
    "V.gate": ("gene", "gate"),
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
        "code": [f"c{i + 1}" for i in range(model.motion.n_codes if model.has_motion else 0)],
        "part": ["constant", "proportional"],
        "gate": ["intercept", "slope"],
        "covariate": list(covariates),
        "content": content_names(screen),
        "assumption": model.uncertain.kinds,
    }
    dims = {site: list(_DIMS[site]) for site in samples if site in _DIMS}
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
