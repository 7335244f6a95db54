"""What a fitted model can be asked, with its defaults; the work is done in lower rooms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
import xarray as xr
from anndata import AnnData

from pyrocell import answers, effects, tables
from pyrocell._compat import SETUP_ARGS, inference_data
from pyrocell.asking_cells import CellAnswers
from pyrocell.assume import Assume
from pyrocell.assumptions import assumption_table
from pyrocell.batches import CellData
from pyrocell.criticism import posterior_predictive_check
from pyrocell.effect_checks import effect_checks, shuffle_check
from pyrocell.errors import ScreenError
from pyrocell.gene_level.counts import LevelCounts
from pyrocell.gene_level.fit import counts_of_screen
from pyrocell.module import ScreenModule
from pyrocell.operators import Protocol
from pyrocell.posterior import Posterior
from pyrocell.progress import progress
from pyrocell.queries import Queries
from pyrocell.registration import ScreenManager
from pyrocell.screen import Screen
from pyrocell.steady_screen import steady_state_screen
from pyrocell.streaming import MEMORY_BUDGET
from pyrocell.tables import Keep
from pyrocell.testability import testability
from pyrocell.threads import on_few_threads

if TYPE_CHECKING:
    import arviz as az

__all__ = ["Answers"]


class Answers(CellAnswers):
    """Questions to a fitted model; mixed into `PyroCell`, which brings the cells and the fit."""

    screen: Screen
    module: ScreenModule
    adata_manager: ScreenManager
    _cells: CellData
    _seed: int
    _counts: LevelCounts | None

    @property
    def posterior(self) -> Posterior:
        """Joint draws of the global sites."""
        self._check_if_trained(warn=True)
        return self.module.posterior(self._seed)

    @property
    def _queries(self) -> Queries:
        return Queries(self.posterior, self.screen, self._cells, self.module.gene_level)

    def testability(self) -> pd.DataFrame:
        """Which assumptions the layout of the screen can test, and why; needs no training.

        Returns
        -------
        DataFrame with assumption, perturbation, media, testable, reason; see
        `pyrocell.testability`.
        """
        return testability(self.screen)

    @on_few_threads
    def assumptions(
        self,
        region: float = 0.05,
        prior: float = 0.5,
        concentration: float = 20.0,
        assume: Sequence[Assume] = (),
        n_samples: int = 4,
        min_count: float = 5.0,
        min_cells: float = 10.0,
        credible_level: float = 0.9,
        progress_bar: bool = False,
    ) -> pd.DataFrame:
        """Whether the assumptions of the screen hold, each with a posterior.

        Parameters
        ----------
        region
            Region of practical equivalence: a change whose root mean square over genes (natural-log
            fold change, own gene left out) is below it counts as none.
        prior, concentration
            Mean and weight of the Beta prior over the share of conditions for which an assumption
            holds; `no_response` takes its mean from the prior of the gain.
        assume
            What is held of chosen conditions: 1 imposes, 0 excludes, between is a prior. What the
            model was trained under is taken as given.
        n_samples
            Draws of the batch noise's scale over which evidence is averaged.
        min_count, min_cells
            Counts that a gene needs, at the pooled rate, in every condition compared, and cells
            that a condition needs; where there are too few, the data say nothing.
        credible_level
            Of `lower` and `upper`.

        Returns
        -------
        DataFrame with a row per assumption, perturbation and medium: testable and reason (see
        :meth:`testability`), prior, posterior (that it holds; the prior, to the last digit, where
        the layout cannot test it), p_rope (the same with sizes log-uniform and no prior share),
        log_bayes_factor (for holding), mcse (of posterior), size (root mean square, or slope on the
        controls' response for `no_response`) with lower and upper, n_genes.
        """
        given = [*(Assume(**a) for a in self.module.config.assume), *assume]
        return assumption_table(
            self.screen,
            answers.levels(self._queries, n_samples),
            self._queries.axes_of_state(),
            self.module.priors,
            region=region,
            prior=prior,
            concentration=concentration,
            min_count=min_count,
            min_cells=min_cells,
            credible_level=credible_level,
            assume=given,
            progress=progress(progress_bar),
        )

    @on_few_threads
    def assumed_indicators(self, n_samples: int = 200) -> pd.DataFrame:
        """Whether assumptions that the model was given with a probability hold, as it sees them.

        Unlike :meth:`assumptions`, which reads the counts free of any prior on effects, this is the
        indicator of the mixture that the model was trained with, see `Assume`: whether the low-rank
        part of a condition's state changes by about `scale` or by whatever the model allows.

        Returns
        -------
        DataFrame with a row per assumption, perturbation and medium: prior, posterior, and scale
        (posterior mean; RMS log-fold change per axis). Empty if the model was given none.
        """
        model = self.module.model
        columns = ["assumption", "perturbation", "media"]
        table = pd.DataFrame(model.uncertain.rows, columns=columns)
        if table.empty:
            return table.reindex(columns=[*columns, "prior", "posterior", "scale"])
        found = [
            (model.uncertain.responsibility(model.uncertain_factor(v)), v["assumed.scale"])
            for v in self.posterior.draws(n_samples)
        ]
        posterior, scale = (torch.stack(part).mean(0) for part in zip(*found, strict=True))
        return table.assign(
            prior=model.uncertain.log_odds.sigmoid().cpu().numpy(),
            posterior=posterior.detach().cpu().numpy(),
            scale=scale[model.uncertain.kind].cpu().numpy(),
        )

    @on_few_threads
    def perturbation_effects(
        self,
        perturbations: Sequence[str] | None = None,
        media: str | None = None,
        time: float | None = None,
        n_samples: int = 200,
        credible_level: float = 0.9,
        progress_bar: bool = False,
        shrunken: bool = True,
        path: str | Path | None = None,
        memory_budget: int | float | str = MEMORY_BUDGET,
        overwrite: bool = False,
    ) -> pd.DataFrame | xr.Dataset:
        """Log-fold change of each gene under each perturbation, against control in that medium.

        Parameters
        ----------
        perturbations
            Labels, combinations included; default: every single perturbation.
        media, time
            Where to compare; default: baseline medium, last time.
        n_samples
            Posterior draws.
        credible_level
            Mass of the equal-tailed interval.
        shrunken
            False: what the counts of these cells alone say, under a flat prior; needs no training.
            Its intervals hold every true size as often as stated and p is that of a test, but
            errors are larger. Conditions must have been measured; those that were not are left
            out of the default. Covariates are left out.
        path
            Write the answer there, as a zarr store, instead of returning it; appears when whole.
        memory_budget
            Bytes, or a text such as "2 GiB", to hold beside the model and one joint draw; where it
            does not hold all rows the draws are made again. The answer does not depend on it.
        overwrite
            Replace a store that is there.

        Returns
        -------
        DataFrame with a row per perturbation and gene: perturbation, media, time, gene; mean, sd,
        lower, upper (natural logarithms); lfsr, the probability that the sign of the mean is wrong
        or the effect zero, and fdr, the expected share of these in the list that ends at this row
        (take fdr <= .1 for a list at 10%); log2fc, the mean in doublings; prob_direction, 1 − lfsr;
        count and count_control, counts of the gene in both groups of cells, and few_counts where
        both are below 5, which is never listed. `shrunken=False`: p (two-sided) and q (Benjamini
        and Hochberg) in the place of lfsr and fdr. On counts without size factors the change is
        against the genes that a perturbation does not touch (shrunken) or against all (not).
        With `path`, an xarray.Dataset (perturbation, gene) of the same, read when asked for.

        Raises
        ------
        DiskError
            If `path` is taken or its disk too full.
        """
        names = self.screen.perturbations if perturbations is None else perturbations
        names = [names] if isinstance(names, str) else list(names)
        media = self.screen.baseline_media if media is None else media
        if time is None and self.screen.times:
            time = self.screen.times[-1]
        if not shrunken:
            if path is not None:
                raise ScreenError(
                    "path= is for summaries of draws; shrunken=False makes none, leave it out"
                )
            asked = None if perturbations is None else names
            return effects.unshrunken_effects(
                self.screen,
                self._level_counts,
                asked,
                media,
                time,
                credible_level,
            )
        keep = Keep(memory_budget, path, overwrite)
        bar = progress(progress_bar)
        return effects.perturbation_effects(
            self._queries, names, media, time, n_samples, credible_level, bar, keep
        )

    @on_few_threads
    def effect_checks(self) -> pd.DataFrame:
        """Whether effects agree with the counts alone, and whether controls explain them.

        Returns
        -------
        DataFrame with check, value, verdict ("good", "poor" or "controls differ") and reason: the
        share of well-counted genes whose posterior mean is outside the 99% interval of
        `shrunken=False`, and the root mean square of what all perturbations do alike.
        """
        return effect_checks(self)  # type: ignore[arg-type]

    def shuffle_check(
        self,
        max_epochs: int = 5,
        n_cells: int = 20_000,
        n_samples: int = 100,
        seed: int = 0,
        progress_bar: bool = True,
    ) -> pd.DataFrame:
        """What a model of these cells says when labels mean nothing; also as `shuffle_check_`.

        Labels are permuted within batch, medium and time, a model like this one is trained for a
        few epochs, and its table of effects is asked.

        Parameters
        ----------
        max_epochs
            Of the gradient phase, which single genes hardly depend on.
        n_cells
            At most; drawn at random.
        n_samples
            Posterior draws behind intervals.
        seed
            Of cells, labels and training.
        progress_bar
            Show progress.

        Returns
        -------
        DataFrame with a row per medium and time: excluding_zero, the share of 90% intervals without
        zero; listed, the share of pairs at fdr <= .1; common, the root mean square of what all
        labels do alike in the best-counted genes; p_below_5, the share of p < .05 in
        `shrunken=False`; verdict, "good" where the first three are at most .1, .002 (or three
        pairs) and .05.
        """
        table = shuffle_check(
            self,  # type: ignore[arg-type]
            max_epochs,
            n_cells,
            n_samples,
            seed,
            progress_bar,
            dict(self.adata_manager.registry[SETUP_ARGS]),
        )
        self.shuffle_check_ = table
        return table

    @property
    def _level_counts(self) -> LevelCounts:
        """The counts of all conditions as a likelihood of their levels; needs no training."""
        if self._cells.conditions is not None:
            raise ScreenError("the cells have conditions that this model was not built for")
        if self._counts is None:
            self._counts = counts_of_screen(self.screen, self._cells, self.module.priors)
        return self._counts

    @on_few_threads
    def batch_effects(
        self, n_samples: int = 200, credible_level: float = 0.9, by: str = "batch"
    ) -> pd.DataFrame:
        """η of every batch and gene: batch, gene, mean, sd, lower, upper (natural log).

        `by="laboratory"`: of every laboratory, the average over its batches.
        """
        if len(self.screen.batches) == 1:
            raise ScreenError(
                "the screen has one batch, so batch noise cannot be told from anything else; "
                "register a batch_key with at least two batches"
            )
        if by not in ("batch", "laboratory"):
            raise ScreenError(f'by="{by}" is neither "batch" nor "laboratory"')
        if by == "laboratory" and not self.screen.laboratories:
            raise ScreenError("the screen has no laboratories; register a laboratory_key")
        return self._queries.batch_effects(n_samples, credible_level, by)

    @on_few_threads
    def media_gains(self, n_samples: int = 500, credible_level: float = 0.9) -> pd.DataFrame:
        """Gain of each perturbation on each medium's response: 0 blocked, 1 untouched."""
        if not self.screen.media:
            raise ScreenError(
                "the screen has one medium, so no gain can be asked for; register a media_key with "
                "at least one medium beside the baseline"
            )
        return self._queries.media_gains(n_samples, credible_level)

    @on_few_threads
    def predict(
        self,
        conditions: Protocol | pd.DataFrame,
        n_samples: int = 200,
        size_factor: float | None = None,
        credible_level: float = 0.9,
        return_draws: bool = False,
        progress_bar: bool = False,
        batch_content: Mapping[str, float] | None = None,
        path: str | Path | None = None,
        memory_budget: int | float | str = MEMORY_BUDGET,
        overwrite: bool = False,
    ) -> AnnData | xr.DataArray | xr.Dataset:
        """Expected counts of conditions, seen or not.

        Parameters
        ----------
        conditions
            A `Protocol`, or a table with perturbation, media, time (those the screen has) and
            optionally batch (default: the average over batches; "new": one that was not measured,
            whose noise is drawn, and how far effects there are off their average), laboratory
            (alone: the average over its batches, or, where it is not in the screen, a batch of a
            new laboratory) and n_cells (intervals then include the sampling noise of a pseudobulk
            of that many cells).
        n_samples
            Posterior draws.
        size_factor
            Depth of the cells predicted; default: the median of the data.
        credible_level
            Mass of the intervals.
        return_draws
            Return joint draws as an xarray.DataArray (draw, condition, gene) instead.
        batch_content
            What new batches contain, where batch noise depends on it: fractions of cells by name
            (the control's label, a medium, a type); default: as in the average batch.
        path, memory_budget, overwrite
            As in :meth:`perturbation_effects`; draws are written as they come.

        Returns
        -------
        AnnData, conditions × genes: `.X` posterior mean, layers "lower", "upper", "sd". With
        `path`, an xarray.Dataset (condition, gene) of mean, sd, lower, upper.
        """
        if size_factor is None:
            size_factor = float(np.exp(np.median(self._cells.log_size)))
        return tables.predict(
            self._queries,
            conditions,
            n_samples,
            size_factor,
            credible_level,
            return_draws,
            progress(progress_bar),
            batch_content,
            Keep(memory_budget, path, overwrite),
        )

    def steady_state_screen(
        self,
        confidence_level: float = 0.9,
        n_draws: int = 1000,
        n_splits: int = 200,
        min_cells: int = 10,
        min_count: float = 5.0,
        seed: int = 0,
        by_gene: bool = False,
        progress_bar: bool = False,
    ) -> pd.DataFrame:
        """How far each condition moves between consecutive times, from the counts alone (App. E).

        Needs no training. See :func:`pyrocell.steady_screen.steady_state_screen` for the estimator
        and the columns.

        Parameters
        ----------
        confidence_level
            Of `lower` and `upper`.
        n_draws, n_splits
            Draws of the sampling error, and random splits of the cells into halves.
        min_cells, min_count
            Cells that a condition needs at a time, and controls in a batch; counts that a gene
            needs, in a pseudobulk, to take a logarithm of.
        seed
            The same seed gives the same table.
        by_gene
            Return the change of every gene and its standard error instead.

        Returns
        -------
        DataFrame with a row per perturbation, medium and pair of consecutive times.
        """
        cells = self._cells
        if cells.conditions is not None:
            raise ScreenError("the cells have conditions that this model was not built for")
        return steady_state_screen(
            cells.counts,
            np.exp(cells.log_size.astype(float)),
            self.screen,
            confidence_level=confidence_level,
            n_draws=n_draws,
            n_splits=n_splits,
            min_cells=min_cells,
            min_count=min_count,
            seed=seed,
            by_gene=by_gene,
            progress=progress(progress_bar),
        )

    @on_few_threads
    def posterior_predictive_check(
        self, n_samples: int = 50, n_cells: int = 5000, credible_level: float = 0.99
    ) -> pd.DataFrame:
        """Mean, variance and zero fraction of each gene, observed and in replicated data."""
        return posterior_predictive_check(
            self.posterior, self._cells, self.screen.genes, n_samples, n_cells, credible_level
        )

    @on_few_threads
    def posterior_samples(
        self, n: int = 200, sites: Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        """Joint draws of the global sites by name, (n, ...) each."""
        return self.posterior.samples(n, None if sites is None else list(sites))

    def to_arviz(self, n: int = 200, sites: Sequence[str] | None = None) -> az.InferenceData | Any:
        """Joint draws as ArviZ takes them (InferenceData or DataTree), their dimensions named.

        The model page lists sites, dimensions and labels.
        """
        covariates = self.adata_manager.covariate_names
        samples = self.posterior_samples(n, sites)
        return inference_data(
            *answers.labelled(samples, self.screen, self.module.model, covariates)
        )
