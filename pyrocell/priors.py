"""Priors of the generative model, in units a biologist knows."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from pyrocell.errors import ScreenError

__all__ = ["Priors"]

_POSITIVE = ("_sd", "_spread", "_scales", "_weights", "_effect")
_MAY_BE_ZERO = ("replicate_sd", "gain_weights")


@dataclass(frozen=True)
class Priors:
    """Prior scales; log-fold changes are natural logarithms, times are in the screen's own unit.

    Attributes
    ----------
    effect_sd
        Starting slab width of `P.effect` per axis; own axes have unit RMS over genes, so this is
        the RMS log-fold change that one axis contributes. Learned by empirical Bayes, per axis.
    effect
        Law of effects along axes: "normal"; "sparse", a perturbation has an effect on an axis or
        next to none (`PyroCell.mask`).
    effect_inclusion, effect_spike
        Of "sparse": prior share of axes on which a perturbation has an effect, and the width of
        next to none, relative to that of an effect.
    media_effect_sd
        Width of `M.effect` per axis.
    residual_sd
        Gene-level residual of a perturbation (RMS log-fold change). Wide enough not to shrink a
        gene measured in 100 cells by much, so that intervals of silent and of active effects are
        both near nominal.
    walk_sd
        The same at the first time of a time course, where it is a starting value and learned.
    media_residual_sd
        The same for a medium. Narrow, because no gain gates it: were it wide it would take over the
        response, and gains would have to cancel it.
    media_gene_sd
        The same where arms differ in when cells were perturbed or met the medium: there it is lost
        with the response, as the gain says, and may be wide.
    interaction_sd, interaction_share
        Gene-level departure from additivity of a condition with several drivers: its constant part,
        and the one relative to what these do alone. Starting values; both are learned.
    on_target_sd, on_target_loc
        Log-fold shift of the perturbation's own gene; the location is signed by type (CRISPRi down,
        CRISPRa up, knockout zero).
    gain_weights, gain_locs, gain_scales
        Mixture prior of `M.gain`: blocked, untouched, anything between or above.
    log_rate_loc, log_rate_sd, log_rate_spread
        Global log relaxation rate times the reference time (the mean of the measured times, so that
        hours and days give the same model), and the spread of drivers around it.
    decay_ratio_loc, decay_ratio_sd
        Log-normal prior of log(μ/λ): by how much the product of a perturbed gene is lost faster
        than cells respond. Onset is symmetric in the two rates, so λ is the slower one.
    turnover_loc, turnover_sd
        log turnover of a started cascade, relative to the screen's common rate of response (to one
        per mean time where it has none): once its pathway is gone it is lost as gene products are,
        so the centre is that of log(μ/λ). Learned where both orders were run.
    drift_sd
        Control drift at the reference time, per own axis.
    eta_sd, eta_spread
        Batch noise per gene: starting median of its standard deviation, and the spread of the log
        standard deviation between genes.
    replicate_sd
        How much an effect varies between batches, standard deviation in a gene, where no effect of
        the screen was measured in two batches; otherwise it is learned.
    laboratory_sd
        What a laboratory adds to all its batches, per gene: starting median of its standard
        deviation; between genes it varies as that of batch noise does.
    content_sd
        Batch noise between a batch without and one wholly of some content (eq. 19), per gene.
    process_noise_sd, process_noise_effect
        Prior medians of the residual's step between measured times: a constant part (per square
        root of the mean step) and a part proportional to the low-rank effect.
    process_noise_spread
        Spread of their logarithms around those medians.
    state_noise_sd, state_noise_spread
        Prior median of what drives resting states apart (``dynamics="sde"``), in standard
        deviations of state per square root of the mean measured time, and its log's spread.
    assumed_sd, assumed_spread
        Log-fold change per gene that an imposed assumption still leaves room for, and the prior
        median of what one with a probability below 1 leaves room for per axis; spread of its
        logarithm. A wide spread lets the scale grow until failing conditions fit in.
    baseline_sd
        Log relative expression of controls around the pooled estimate.
    dispersion_loc, dispersion_sd
        log θ (inverse dispersion).
    gate_loc, gate_sd
        Intercept and slope of the dropout curve, logit against log mean count.
    covariate_sd
        Log-fold change per standard deviation of a covariate.
    """

    effect_sd: float = 0.3
    effect: str = "normal"
    effect_inclusion: float = 0.25
    effect_spike: float = 0.1
    media_effect_sd: float = 2.0
    residual_sd: float = 0.25
    walk_sd: float = 0.08
    media_residual_sd: float = 0.05
    media_gene_sd: float = 0.3
    interaction_sd: float = 0.1
    interaction_share: float = 0.3
    on_target_sd: float = 1.0
    on_target_loc: float = 1.0
    gain_weights: tuple[float, float, float] = (0.15, 0.6, 0.25)
    gain_locs: tuple[float, float, float] = (0.0, 1.0, 0.7)
    gain_scales: tuple[float, float, float] = (0.15, 0.15, 0.6)
    log_rate_loc: float = 0.1
    log_rate_sd: float = 1.0
    log_rate_spread: float = 1.0
    decay_ratio_loc: float = 0.0
    decay_ratio_sd: float = 0.8
    turnover_loc: float = 1.0
    turnover_sd: float = 1.0
    drift_sd: float = 0.2
    eta_sd: float = 0.2
    eta_spread: float = 0.4
    replicate_sd: float = 0.0
    laboratory_sd: float = 0.2
    content_sd: float = 0.3
    process_noise_sd: float = 0.05
    process_noise_effect: float = 0.22
    process_noise_spread: float = 0.1
    state_noise_sd: float = 0.3
    state_noise_spread: float = 0.7
    assumed_sd: float = 0.02
    assumed_spread: float = 0.2
    baseline_sd: float = 2.0
    dispersion_loc: float = 1.0
    dispersion_sd: float = 1.5
    gate_loc: tuple[float, float] = (-4.0, -0.3)
    gate_sd: tuple[float, float] = (1.0, 0.2)
    covariate_sd: float = 0.3

    def __post_init__(self) -> None:
        """Raise ScreenError unless every number is finite, and scales and weights are positive."""
        for field in fields(self):
            name, value = field.name, getattr(self, field.name)
            if isinstance(field.default, str):
                if not isinstance(value, str):
                    raise ScreenError(f'Priors({name}={value!r}) is a name, such as "sparse"')
                continue
            try:
                numbers = np.atleast_1d(np.asarray(value, dtype=float))
            except (TypeError, ValueError):
                raise ScreenError(f"Priors({name}={value!r}) is not a number") from None
            if len(numbers) != np.size(getattr(Priors, name)):
                raise ScreenError(
                    f"Priors({name}={value!r}) must have as many numbers as {field.default!r}"
                )
            if not np.isfinite(numbers).all():
                raise ScreenError(f"Priors({name}={value!r}) must be finite")
            least = 0.0 if name in _MAY_BE_ZERO else np.nextafter(0, 1)
            if name.endswith(_POSITIVE) and (numbers < least).any():
                must = "must not be negative" if least == 0 else "must be above 0"
                raise ScreenError(f"Priors({name}={value!r}) {must}")
        if not sum(self.gain_weights) > 0:
            raise ScreenError(f"Priors(gain_weights={self.gain_weights!r}) must not all be 0")
        for name in ("effect_inclusion", "effect_spike"):
            if not 0 < (value := getattr(self, name)) < 1:
                raise ScreenError(f"Priors({name}={value!r}) must be between 0 and 1")
        if not 0 < self.interaction_share <= 1:
            raise ScreenError(
                f"Priors(interaction_share={self.interaction_share!r}) must be between 0 and 1"
            )
