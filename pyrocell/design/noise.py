"""How noisy a screen will be: stated by whoever plans it, or read off a fitted model."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from pyrocell.design.fitted import CLASSES, fitted_noise
from pyrocell.errors import DesignError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyrocell.model import PyroCell

__all__ = ["Noise"]


@dataclass(frozen=True)
class Noise:
    """What the planner has to know of genes, batches and effects; natural-log fold changes.

    Every field is one number, or one per class of genes.

    Parameters
    ----------
    cell_variance
        Variance of the log mean expression of a gene that one cell's worth of data leaves: a
        pseudobulk of n cells has `cell_variance / n`. About 1/mean count + overdispersion; see
        `of_counts`.
    batch_sd
        Standard deviation of η over batches (site `eta.scale`).
    effect_sd, gain_sd, change_sd
        Of a perturbation's effect on a gene, around what all perturbations do; of what a medium
        changes of that effect; and of what it changes by from one time to another.
    common_sd
        Of what all perturbations do alike, such as the response to being cut; its gain and change
        are in proportion. With 0 the perturbed cells themselves tell where control lies, and hardly
        any controls are wanted.
    media_sd, drift_sd
        Of the controls' response to a medium, and of their change with time.
    content_sd
        Of the part of η that follows from what a batch contains, per unit of its fraction of
        controls or of a medium (Ω, eq. 19). Scored, not searched over.
    share
        Fraction of the genes in each class; equal if None.

    Raises
    ------
    DesignError
        If a value is out of its range, or fields differ in their number of classes.
    """

    cell_variance: float | Sequence[float] = 2.0
    batch_sd: float | Sequence[float] = 0.1
    effect_sd: float | Sequence[float] = 0.1
    gain_sd: float | Sequence[float] = 0.1
    change_sd: float | Sequence[float] = 0.05
    common_sd: float | Sequence[float] = 0.05
    media_sd: float | Sequence[float] = 0.4
    drift_sd: float | Sequence[float] = 0.2
    content_sd: float | Sequence[float] = 0.0
    share: Sequence[float] | None = None

    def __post_init__(self) -> None:
        """Check, and give every field the same classes."""
        names = [f.name for f in fields(self) if f.name != "share"]
        given = {n: np.atleast_1d(np.asarray(getattr(self, n), float)) for n in names}
        if self.share is not None:
            given["share"] = np.atleast_1d(np.asarray(self.share, float))
        size = max(map(len, given.values()))
        for name, value in given.items():
            if value.ndim != 1 or len(value) not in (1, size):
                raise DesignError(
                    f"{name} has {len(value)} classes of genes, another field {size}; give one "
                    "number, or as many"
                )
            if not np.isfinite(value).all() or (value < 0).any():
                raise DesignError(f"{name}={getattr(self, name)!r}: finite numbers ≥ 0")
            given[name] = np.broadcast_to(value, size).copy()
            object.__setattr__(self, name, given[name])
        if (given["cell_variance"] <= 0).any() or (given["effect_sd"] <= 0).any():
            raise DesignError("cell_variance and effect_sd must be above 0")
        share = given.get("share", np.ones(size))
        if not share.sum() > 0:
            raise DesignError("share: fractions of genes must not all be 0")
        object.__setattr__(self, "share", share / share.sum())

    def __len__(self) -> int:
        """Number of classes of genes."""
        assert self.share is not None  # made when the noise was
        return len(self.share)

    @classmethod
    def of_counts(
        cls,
        mean_count: float | Sequence[float],
        dispersion: float = 2.0,
        state_sd: float = 0.5,
        **stated: float,
    ) -> Noise:
        """Noise of genes with these mean counts per cell.

        Parameters
        ----------
        mean_count
            Mean counts of a gene in a cell: one number, or those of all genes of interest.
        dispersion
            Inverse dispersion θ of the counts of cells in the same state.
        state_sd
            Standard deviation of a gene's log expression over cells at rest.
        **stated
            The other fields of `Noise`.

        Notes
        -----
        A count with mean μ, gamma noise θ and log-normal state has the relative variance
        1/μ + (1 + 1/θ) exp(s²) − 1.
        """
        mean = np.atleast_1d(np.asarray(mean_count, float))
        if not (mean > 0).all() or dispersion <= 0 or state_sd < 0:
            raise DesignError("mean_count and dispersion must be above 0, state_sd at least 0")
        relative = 1 / mean + (1 + 1 / dispersion) * np.exp(state_sd**2) - 1
        return cls(*_classed(relative), **stated)

    @classmethod
    def from_model(cls, model: PyroCell, n_samples: int = 100, **stated: float) -> Noise:
        """Noise as a fitted model and its counts show it; for the next screen of the same kind.

        Parameters
        ----------
        model
            A trained `PyroCell`.
        n_samples
            Posterior draws.
        **stated
            Fields to state instead of reading them off; `batch_sd` must be where the screen has a
            single batch.

        Raises
        ------
        DesignError
            If the screen has one batch and `batch_sd` is not stated.

        Notes
        -----
        Genes are put in classes by their variance per cell, by moments within conditions and
        batches. Sizes are root mean squares over the genes of a class, E[x²] under the posterior.
        """
        return cls(**{**fitted_noise(model, n_samples, frozenset(stated)), **stated})

    def to_frame(self) -> pd.DataFrame:
        """Return a row per class of genes, its share first."""
        names = ["share", *(f.name for f in fields(self) if f.name != "share")]
        return pd.DataFrame({name: getattr(self, name) for name in names})

    def per_well(self, cells: float, well_sd: float) -> Noise:
        """Noise of an arrayed screen, whose layouts count wells: plates are the batches (App. C.2).

        Parameters
        ----------
        cells
            Cells measured in a well.
        well_sd
            Standard deviation over like wells of one plate.
        """
        if not cells > 0 or not well_sd >= 0:
            raise DesignError("cells must be above 0 and well_sd at least 0")
        return replace(self, cell_variance=well_sd**2 + np.asarray(self.cell_variance) / cells)

    def at(self, **changes: float | Sequence[float]) -> Noise:
        """Return the same noise with some fields changed."""
        return replace(self, **changes)


def _classed(variance: np.ndarray) -> tuple[np.ndarray]:
    """Means of equally many genes each, at most CLASSES."""
    if len(variance) <= CLASSES:
        return (variance,)
    return (np.array([part.mean() for part in np.array_split(np.sort(variance), CLASSES)]),)
