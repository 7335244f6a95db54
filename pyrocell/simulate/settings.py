"""What a simulated screen should look like."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["ScreenSettings"]

CONTROLS_PER_CONDITION = 5  # times the cells of a perturbation
MOST_RANK = 8  # of effects that a model with default settings holds
_RANGES = (
    ("n_perturbations", 1, math.inf),
    ("n_genes", 2, math.inf),
    ("n_cells_per_condition", 1, math.inf),
    ("n_controls", 1, math.inf),
    ("n_batches", 1, math.inf),
    ("batch_sd", 0, math.inf),
    ("effect_rms", 0, math.inf),
    ("common_rms", 0, math.inf),
    ("rank", 1, MOST_RANK),
    ("sparse_fraction", 0, 1),
    ("silent_fraction", 0, 1),
    ("media", 0, math.inf),
    ("blocked_fraction", 0, 1),
    ("media_rms", 0, math.inf),
    ("drift_rms", 0, math.inf),
    ("content_effect_sd", 0, math.inf),
    ("laboratory_sd", 0, math.inf),
)


@dataclass(frozen=True)
class ScreenSettings:
    """A pooled screen: every perturbation alone, in every medium, at every time, with controls.

    All effects are natural-log fold changes.

    Parameters
    ----------
    n_perturbations, n_genes
        K and G.
    n_cells_per_condition
        Cells of each perturbation in each medium at each time.
    n_controls
        Unperturbed cells in each medium at each time; 5 × `n_cells_per_condition` when None.
    n_batches, batch_sd
        B, and standard deviation of the free contrasts of η.
    effect_rms
        RMS over genes of the effect of each perturbation that is not silent, at the last time.
    common_rms
        RMS over genes of what all perturbed cells do beside, silent or not, such as a response to
        being cut.
    rank, sparse_fraction, in_rank
        Effects are a mixture of `rank` programmes plus gene-level effects on a `sparse_fraction`
        of the genes, which no small rank holds; with `in_rank` the programmes alone.
    silent_fraction
        Fraction of the perturbations without effect in baseline medium.
    media, blocked_fraction, media_rms
        Number of media beside the baseline, fraction of the perturbations that block each
        (gain 0, all others 1), and RMS over genes of the response to a medium.
    times, rate
        Times of measurement after perturbation and medium, and typical rate λ of the response, per
        unit of time. None: one time, all effects at their full value.
    decay
        Typical rate μ at which the product of a perturbed gene is lost, per unit of time. None: at
        once.
    drift_rms
        RMS over genes of what unperturbed cells change from time 0 to the last time.
    on_target
        Log-fold change of the own gene, such as -1. Perturbations are then named after genes of
        the screen; when None after none.
    dispersion
        Inverse dispersion θ of all genes; infinity for Poisson counts.
    dropout
        Intercept and slope of the logit of dropout against log μ; no dropout when None.
    mean_library
        Mean number of counts per cell, before dropout.
    balanced
        True: each condition evenly over batches. False: unevenly, perturbations missing from some
        batches, controls in all.
    content_effect_sd
        Standard deviation of Ω: η then also depends on the fractions of controls and of each
        medium in the batch (eq. 19). Without effect where batches are balanced.
    laboratories, laboratory_sd
        Batches of each laboratory, in order, n_batches in all, and standard deviation of what a
        laboratory adds to all its batches, before its mean over batches is removed. None: one.

    Raises
    ------
    ValueError
        If a value is out of its range.
    """

    n_perturbations: int = 40
    n_genes: int = 200
    n_cells_per_condition: int = 100
    n_controls: int | None = None
    n_batches: int = 3
    batch_sd: float = 0.2
    effect_rms: float = 0.1
    rank: int = 3
    sparse_fraction: float = 0.2
    silent_fraction: float = 0.5
    media: int = 0
    blocked_fraction: float = 0.1
    media_rms: float = 0.4
    times: Sequence[float] | None = None
    rate: float = 1.0
    decay: float | None = None
    drift_rms: float = 0.0
    on_target: float | None = None
    dispersion: float = 2.0
    dropout: tuple[float, float] | None = None
    mean_library: float = 1000.0
    balanced: bool = True
    in_rank: bool = False
    content_effect_sd: float = 0.0
    common_rms: float = 0.0
    laboratories: Sequence[int] | None = None
    laboratory_sd: float = 0.2

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn."""
        for name, least, most in _RANGES:
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                raise ValueError(f"{name}={value!r}: must be from {least:g} to {most:g}")
        if self.rate <= 0 or self.dispersion <= 0 or self.mean_library <= 0:
            raise ValueError("rate, dispersion and mean_library must be above zero")
        if self.times is not None and not (
            len(self.times) and min(self.times) >= 0 and 0 < max(self.times) < math.inf
        ):
            raise ValueError(f"times={self.times!r}: finite, none below zero, one above zero")
        if self.decay is not None and self.decay <= 0:
            raise ValueError("decay must be above zero, or None where products are lost at once")
        if self.drift_rms and self.times is None:
            raise ValueError("drift_rms needs times: without them nothing is seen to drift")
        if self.laboratories is not None and (
            min(self.laboratories, default=0) < 1 or sum(self.laboratories) != self.n_batches
        ):
            raise ValueError(
                f"laboratories={self.laboratories!r}: batches of each, {self.n_batches} in all"
            )
        if self.on_target is not None and self.n_perturbations > self.n_genes:
            raise ValueError("on_target needs a gene per perturbation: n_perturbations > n_genes")
        if not self.balanced and self.controls < self.n_batches:
            raise ValueError(
                f"{self.controls} controls per medium and time cannot be in all of "
                f"{self.n_batches} batches; raise n_controls"
            )

    @property
    def controls(self) -> int:
        """Unperturbed cells in each medium at each time."""
        if self.n_controls is None:
            return CONTROLS_PER_CONDITION * self.n_cells_per_condition
        return self.n_controls

    @property
    def reference_time(self) -> float:
        """The time at which effects are stated: the last, or 1 where there are no times."""
        return 1.0 if self.times is None else float(max(self.times))
