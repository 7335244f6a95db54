"""What a fitted model can be asked about single cells; the work is done in lower rooms."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr
from anndata import AnnData

from pyrocell import answers, tables
from pyrocell.batches import CellData
from pyrocell.criticism import importance_log_likelihood
from pyrocell.errors import ScreenError
from pyrocell.operators import Protocol
from pyrocell.posterior import Posterior
from pyrocell.progress import progress
from pyrocell.queries import Queries
from pyrocell.screen import Screen
from pyrocell.simulated import fate_proportions, simulate_cells
from pyrocell.streaming import MEMORY_BUDGET
from pyrocell.tables import Keep
from pyrocell.threads import on_few_threads

__all__ = ["CellAnswers"]


class CellAnswers:
    """Questions about cells, measured or expected; a part of `Answers`."""

    screen: Screen
    adata: AnnData
    posterior: Posterior
    _queries: Queries
    _cells: CellData
    _cells_of: Callable[[AnnData | None], tuple[CellData, pd.DataFrame]]

    @on_few_threads
    def counterfactual(
        self,
        adata: AnnData | None = None,
        perturbation: str | None = None,
        media: str | None = None,
        time: float | None = None,
        n_samples: int = 50,
        credible_level: float = 0.9,
        progress_bar: bool = False,
        path: str | Path | None = None,
        memory_budget: int | float | str = MEMORY_BUDGET,
        overwrite: bool = False,
    ) -> AnnData | xr.Dataset:
        """Expected counts of the same cells under another treatment (eq. 6).

        A cell keeps its resting state, batch and depth. Default: control, baseline, last time.
        `path`, `memory_budget`, `overwrite`: as in :meth:`PyroCell.perturbation_effects`.

        Returns
        -------
        AnnData, cells × genes: `.X` posterior mean, layers "lower", "upper", "sd". With `path`, an
        xarray.Dataset (cell, gene) of mean, sd, lower, upper.
        """
        cells, obs = self._cells_of(adata)
        target = pd.DataFrame(
            {
                "perturbation": [perturbation or self.screen.control],
                "media": [media or self.screen.baseline_media],
            }
        )
        if self.screen.times or time is not None:
            target["time"] = self.screen.times[-1] if time is None else time
        bar, keep = progress(progress_bar), Keep(memory_budget, path, overwrite)
        return tables.counterfactual(
            self._queries, cells, obs, target, n_samples, credible_level, bar, keep
        )

    @on_few_threads
    def get_latent_representation(
        self,
        adata: AnnData | None = None,
        batch_size: int = 2048,
        progress_bar: bool = False,
        path: str | Path | None = None,
        overwrite: bool = False,
    ) -> np.ndarray | xr.Dataset:
        """Posterior mean of each cell's resting state z, (cells, n_latent).

        With `path`, written there as a zarr store, `batch_size` cells at a time: an xarray.Dataset
        with `latent` (cell, axis).
        """
        cells, obs = self._cells_of(adata)
        queries = self._queries
        blocks = queries.latent(cells, batch_size)
        axes = "axis", [f"z{i + 1}" for i in range(queries.model.config.n_latent)]
        bar, keep = progress(progress_bar), Keep(MEMORY_BUDGET, path, overwrite)
        return tables.cells_by(blocks, "latent", obs, axes, batch_size, bar, keep)

    @on_few_threads
    def get_normalized_expression(
        self,
        adata: AnnData | None = None,
        library_size: float | None = 1.0,
        batch_corrected: bool = True,
        batch_size: int = 2048,
        progress_bar: bool = False,
        path: str | Path | None = None,
        overwrite: bool = False,
    ) -> pd.DataFrame | xr.Dataset:
        """Expected expression of each cell, (cells, genes); without batch noise if corrected.

        With `path`, written there as a zarr store, `batch_size` cells at a time: an xarray.Dataset
        with `expression` (cell, gene).
        """
        cells, obs = self._cells_of(adata)
        blocks = self._queries.normalised(cells, batch_size, library_size, batch_corrected)
        genes = "gene", self.screen.genes
        bar, keep = progress(progress_bar), Keep(MEMORY_BUDGET, path, overwrite)
        values = tables.cells_by(blocks, "expression", obs, genes, batch_size, bar, keep)
        if path is not None:
            return values
        return pd.DataFrame(values, index=obs.index, columns=self.screen.genes)

    @on_few_threads
    def get_marginal_ll(
        self, adata: AnnData | None = None, n_mc_samples: int = 100, batch_size: int = 512
    ) -> pd.Series:
        """Importance-weighted log-likelihood of each cell, nats; globals from the posterior."""
        cells, obs = self._cells_of(adata)
        values = importance_log_likelihood(self.posterior, cells, n_mc_samples, batch_size)
        return pd.Series(values, index=obs.index, name="log_likelihood")

    @on_few_threads
    def simulate_cells(
        self,
        conditions: Protocol | pd.DataFrame,
        n_cells: int = 100,
        n_samples: int = 10,
        size_factor: float | None = None,
        path: str | Path | None = None,
        overwrite: bool = False,
    ) -> AnnData:
        """Cells that would be found in conditions, measured or not.

        Control cells are displaced as each condition displaces them, all alike. With
        ``dynamics="flow"`` or ``"sde"`` cells set out from where the model has them at time 0 and
        are carried along their own states, so that populations may stretch and branch.

        Parameters
        ----------
        conditions
            As in :meth:`predict`.
        n_cells
            Cells of each condition and posterior draw.
        n_samples
            Posterior draws.
        size_factor
            Depth of the cells; default: the median of the data.
        path, overwrite
            Write the cells there, an h5ad file, as they are drawn, and return it opened (backed).

        Returns
        -------
        AnnData, simulated cells × genes: `.X` counts without batch noise, `.obs` the condition and
        the posterior `draw`, `.obsm["X_pyrocell"]` the cell's state.
        """
        frame, order = answers.requested(conditions, self.screen)
        if size_factor is None:
            size_factor = float(np.exp(np.median(self._cells.log_size)))
        wanted = n_samples, n_cells, size_factor, path, overwrite
        return simulate_cells(self._queries, frame, order, *wanted)

    @on_few_threads
    def fate_proportions(
        self,
        conditions: Protocol | pd.DataFrame,
        key: str,
        n_samples: int = 50,
        credible_level: float = 0.9,
        progress_bar: bool = False,
    ) -> pd.DataFrame:
        """Shares of cell fates in conditions, measured or not (App. C.1).

        What a fate looks like is learned from the cells measured, by a logistic regression of their
        fate on their expected expression; then cells carried to each condition are classified.

        Parameters
        ----------
        conditions
            As in :meth:`predict`.
        key
            Column of `adata.obs` with the fate or type of each cell; missing where unknown.
        n_samples
            Posterior draws.
        credible_level
            Mass of the intervals. They hold the uncertainty of the field's weights and codes, not
            of its features nor of a sample of cells, and are too narrow (docs/dynamics.md).

        Returns
        -------
        DataFrame with the columns of the conditions, fate, mean, sd, lower, upper.

        Raises
        ------
        ScreenError
            If the column is not there, or labels fewer than two fates of ten cells.
        """
        if key not in self.adata.obs:
            raise ScreenError(
                f'adata.obs has no column "{key}"; give the one that names the fate of each cell'
            )
        frame, order = answers.requested(conditions, self.screen)
        blocks = self._queries.normalised(self._cells, 2048, 1.0, True)
        return fate_proportions(
            self._queries,
            frame,
            order,
            blocks,
            self.adata.obs[key],
            n_samples,
            credible_level,
            progress(progress_bar),
        )
