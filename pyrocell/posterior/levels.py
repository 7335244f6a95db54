"""Levels of conditions as the counts alone have them, under draws of the width of batch noise."""

from __future__ import annotations

import numpy as np

from pyrocell.contrasts.levels import ConditionLevels, condition_levels
from pyrocell.errors import ScreenError
from pyrocell.posterior.fitted_screen import FittedScreen

__all__ = ["levels"]


def levels(fit: FittedScreen, n_samples: int, ratio: float = 1.0) -> list[ConditionLevels]:
    """Levels of all conditions under draws of the scale of batch noise, times a ratio."""
    data, screen = fit.data, fit.screen
    if data.conditions is not None:
        raise ScreenError("the cells have conditions that this model was not built for")
    size = np.exp(data.log_size.astype(float))
    scales = [(np.ones(len(screen.genes)),)]  # of no consequence in one batch
    if len(screen.batches) > 1:
        sites = ["eta.scale", *["eta.laboratory_scale"] * fit.model.has_laboratories]
        draws = fit.posterior.samples(n_samples, sites)
        scales = [
            tuple(ratio * each.astype(float) for each in one)
            for one in zip(*draws.values(), strict=True)
        ]
    nested = (screen.batch_laboratory,) if fit.model.has_laboratories else ()
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
