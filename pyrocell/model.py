"""PyroCell: the user's door. Registers, trains, asks; every answer is worked out in a lower room."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import arviz as az
import numpy as np
import pandas as pd
from anndata import AnnData
from scvi.model.base import BaseModelClass
from tqdm.auto import tqdm

from pyrocell import answers
from pyrocell._compat import MODEL_NAME, SETUP_ARGS, SETUP_METHOD, inference_data
from pyrocell.batches import CellData
from pyrocell.criticism import importance_log_likelihood, posterior_predictive_check
from pyrocell.errors import ModelFileError, ScreenError
from pyrocell.generative import ModelConfig
from pyrocell.module import ScreenModule
from pyrocell.operators import Protocol
from pyrocell.posterior import Posterior
from pyrocell.priors import Priors
from pyrocell.queries import Queries
from pyrocell.registration import ScreenManager, cell_tensors, register
from pyrocell.screen import Screen
from pyrocell.storage import read_model, write_model
from pyrocell.training import TrainingConfig, train

__all__ = ["PyroCell"]


class PyroCell(BaseModelClass):
    """Generative model of a CRISPR perturbation screen with a single-cell readout.

    Parameters
    ----------
    adata
        AnnData registered with :meth:`setup_anndata`.
    n_latent
        Dimensions d of the resting cell state z.
    n_response
        Axes r of the response's own, beside those of z. 0: a response moves cells only along axes
        on which cells differ anyway.
    dynamics
        How a response unfolds in time: "relaxation".
    likelihood
        "zinb" (dropout as a curve in the log mean) or "nb".
    n_hidden
        Width of the encoder.
    gene_residual
        Give every perturbation and medium a gene-level residual beside its low-rank response.
    interactions
        Give every measured condition with several drivers a gene-level departure from additivity.
    content_dependent_noise
        Let batch noise depend on what the batch contains (eq. 19).
    priors
        Prior scales, in units of natural-log fold change.

    Attributes
    ----------
    screen : Screen
        Conditions, layout and aliased contrasts of the registered cells.
    module : ScreenModule
        `module.model` and `module.guide` are plain Pyro callables.

    Examples
    --------
    >>> adata = pyrocell.datasets.hipsc_timecourse()
    >>> pyrocell.PyroCell.setup_anndata(adata, time_key="time", size_factor_key="size_factor")
    >>> model = pyrocell.PyroCell(adata)
    >>> model.train()
    >>> model.perturbation_effects()
    """

    def __init__(
        self,
        adata: AnnData,
        n_latent: int = 10,
        n_response: int = 8,
        dynamics: str = "relaxation",
        likelihood: str = "zinb",
        n_hidden: int = 128,
        gene_residual: bool = True,
        interactions: bool = True,
        content_dependent_noise: bool = False,
        priors: Priors | None = None,
    ):
        super().__init__(adata)
        self._manager: ScreenManager = self.adata_manager
        self._cells = self._cell_data(self._manager)
        args = self._manager.registry[SETUP_ARGS]
        config = ModelConfig(
            n_latent=n_latent,
            n_response=n_response,
            dynamics=dynamics,
            likelihood=likelihood,
            n_hidden=n_hidden,
            gene_residual=gene_residual,
            interactions=interactions,
            composition=args["size_factor_key"] is None,
            n_covariates=0 if self._cells.covariates is None else self._cells.covariates.shape[1],
            content_dependent_noise=content_dependent_noise,
        )
        self.module = ScreenModule.from_counts(
            self._cells.counts, self._cells.log_size, self.screen, config, priors or Priors()
        )
        self._seed = 0
        self._model_summary_string = (
            f"PyroCell: {len(self.screen.perturbations)} perturbations, "
            f"{1 + len(self.screen.media)} media, {max(1, len(self.screen.times))} times, "
            f"{len(self.screen.batches)} batches; {config}"
        )
        self.init_params_ = self._get_init_params(locals())

    # ------------------------------------------------------------------ registration
    @classmethod
    def setup_anndata(
        cls,
        adata: AnnData,
        layer: str | None = None,
        batch_key: str | None = "batch",
        perturbation_key: str = "perturbation",
        control: str = "control",
        perturbation_type: str = "knockout",
        perturbation_type_key: str | None = None,
        media_key: str | None = None,
        baseline_media: str = "baseline",
        time_key: str | None = None,
        guide_key: str | None = None,
        size_factor_key: str | None = None,
        categorical_covariate_keys: Sequence[str] | None = None,
        continuous_covariate_keys: Sequence[str] | None = None,
        source_registry: dict | None = None,
    ) -> None:
        """Check an AnnData and register it as a screen; see :func:`pyrocell.registration.register`."""
        arguments = {k: v for k, v in locals().items() if k not in ("cls", "adata")}
        cls.register_manager(register(cls, adata, **arguments))

    @property
    def screen(self) -> Screen:
        """The registered screen."""
        return self._manager.screen

    def _cell_data(self, manager: ScreenManager) -> CellData:
        cells = cell_tensors(manager)
        covariates = cells.covariates if cells.covariates.shape[1] else None
        screen = manager.screen
        return CellData(
            cells.counts,
            screen.cell_condition,
            screen.cell_batch,
            cells.log_size_factor,
            covariates,
        )

    def _cells_of(self, adata: AnnData | None) -> tuple[CellData, pd.DataFrame]:
        """Cells of an AnnData on this model's axes, and their `.obs`."""
        if adata is None or adata is self.adata:
            return self._cells, self.adata.obs
        adata = self._validate_anndata(adata)
        manager = self.get_anndata_manager(adata, required=True)
        requested = manager.screen.conditions[["perturbation", "media", "time"]]
        table, _, _ = self._queries.conditions(requested)
        return replace(self._cell_data(manager), conditions=table), adata.obs

    # ------------------------------------------------------------------ training
    def train(
        self,
        max_epochs: int | None = None,
        accelerator: str = "auto",
        devices: int | str = "auto",
        train_size: float = 0.9,
        batch_size: int | None = None,
        early_stopping: bool = False,
        seed: int = 0,
        progress_bar: bool = True,
        config: TrainingConfig | None = None,
        **trainer_kwargs: Any,
    ) -> None:
        """Fit the model by stochastic variational inference.

        Without arguments it does the right thing: enough epochs for the size of the screen, a tenth
        of the cells held out for the validation ELBO.

        Parameters
        ----------
        max_epochs
            Passes over the training cells; by default as many as `config.steps` steps take.
        accelerator, devices
            As in Lightning.
        train_size
            Share of cells trained on; the rest gives the validation ELBO.
        batch_size
            Cells per step.
        early_stopping
            Stop when the validation ELBO no longer rises.
        seed
            The same seed gives the same result on the same machine.
        progress_bar
            Show progress.
        config
            Optimisation settings.
        **trainer_kwargs
            Passed to Lightning's Trainer.

        Raises
        ------
        NonFiniteError
            If a loss is not finite, naming the site.
        """
        config = config or TrainingConfig()
        if batch_size is not None:
            config = TrainingConfig(**{**vars(config), "batch_size": batch_size})
        if not 0 < train_size <= 1:
            raise ScreenError(f"train_size={train_size} must be above 0 and at most 1")
        n_cells = len(self._cells)
        order = np.random.default_rng(seed).permutation(n_cells)
        n_train = max(1, round(train_size * n_cells))
        self.train_indices_ = np.sort(order[:n_train])
        self.validation_indices_ = np.sort(order[n_train:])
        self.history_ = train(
            self.module.model,
            self.module.guide,
            self._cells,
            self.train_indices_,
            self.validation_indices_,
            config,
            max_epochs=max_epochs,
            accelerator=accelerator,
            devices=devices,
            early_stopping=early_stopping,
            seed=seed,
            progress_bar=progress_bar,
            **trainer_kwargs,
        )
        self._seed = seed
        self.is_trained_ = True
        self.module.eval()

    @property
    def history(self) -> pd.DataFrame:
        """Loss and validation ELBO by epoch."""
        return self.history_ if self.is_trained_ else pd.DataFrame()

    # ------------------------------------------------------------------ answers
    @property
    def posterior(self) -> Posterior:
        """Joint draws of the global sites."""
        self._check_if_trained(warn=True)
        return Posterior(self.module.model, self.module.guide, self._seed)

    @property
    def _queries(self) -> Queries:
        return Queries(self.posterior, self.screen, self._cells)

    def perturbation_effects(
        self,
        perturbations: Sequence[str] | None = None,
        media: str | None = None,
        time: float | None = None,
        n_samples: int = 200,
        credible_level: float = 0.9,
        progress_bar: bool = False,
    ) -> pd.DataFrame:
        """Log-fold change of every gene under each perturbation, against control in the same medium.

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

        Returns
        -------
        DataFrame with perturbation, media, time, gene, mean, sd, lower, upper, prob_direction;
        natural logarithms. On counts without size factors the change is one of relative expression.
        """
        names = (
            list(perturbations) if perturbations is not None else list(self.screen.perturbations)
        )
        media = self.screen.baseline_media if media is None else media
        if time is None and self.screen.times:
            time = self.screen.times[-1]
        return self._queries.perturbation_effects(
            names, media, time, n_samples, credible_level, _progress(progress_bar)
        )

    def batch_effects(self, n_samples: int = 200, credible_level: float = 0.9) -> pd.DataFrame:
        """η of every batch and gene: batch, gene, mean, sd, lower, upper (natural log)."""
        return self._queries.batch_effects(n_samples, credible_level)

    def media_gains(self, n_samples: int = 500, credible_level: float = 0.9) -> pd.DataFrame:
        """Gain of each perturbation on each medium's response: 0 blocked, 1 untouched."""
        if not self.screen.media:
            raise ScreenError(
                "the screen has one medium, so no gain can be asked for; register a media_key with "
                "at least one medium beside the baseline"
            )
        return self._queries.media_gains(n_samples, credible_level)

    def predict(
        self,
        conditions: Protocol | pd.DataFrame,
        n_samples: int = 200,
        size_factor: float | None = None,
        credible_level: float = 0.9,
        return_draws: bool = False,
        progress_bar: bool = False,
    ) -> AnnData | Any:
        """Expected counts of conditions, seen or not.

        Parameters
        ----------
        conditions
            A `Protocol`, or a table with perturbation, media, time (those the screen has) and
            optionally batch (default: the average over batches) and n_cells (intervals then include
            the sampling noise of a pseudobulk of that many cells).
        n_samples
            Posterior draws.
        size_factor
            Depth of the cells predicted; default: the median of the data.
        credible_level
            Mass of the intervals.
        return_draws
            Return joint draws as an xarray.DataArray (draw, condition, gene) instead.

        Returns
        -------
        AnnData, conditions × genes: `.X` posterior mean, layers "lower", "upper", "sd".
        """
        if size_factor is None:
            size_factor = float(np.exp(np.median(self._cells.log_size)))
        return answers.predict(
            self._queries,
            conditions,
            n_samples,
            size_factor,
            credible_level,
            return_draws,
            _progress(progress_bar),
        )

    def counterfactual(
        self,
        adata: AnnData | None = None,
        perturbation: str | None = None,
        media: str | None = None,
        time: float | None = None,
        n_samples: int = 50,
        credible_level: float = 0.9,
    ) -> AnnData:
        """Expected counts of the same cells under another treatment (eq. 6).

        A cell keeps its resting state, batch and depth; default: control, baseline medium, last time.

        Returns
        -------
        AnnData, cells × genes: `.X` posterior mean, layers "lower", "upper", "sd".
        """
        cells, obs = self._cells_of(adata)
        target = pd.DataFrame(
            {
                "perturbation": [perturbation or self.screen.control],
                "media": [media or self.screen.baseline_media],
            }
        )
        if self.screen.times:
            target["time"] = self.screen.times[-1] if time is None else time
        return answers.counterfactual(self._queries, cells, obs, target, n_samples, credible_level)

    def get_latent_representation(
        self, adata: AnnData | None = None, batch_size: int = 2048
    ) -> np.ndarray:
        """Posterior mean of each cell's resting state z, (cells, n_latent)."""
        cells, _ = self._cells_of(adata)
        return self._queries.latent(cells, batch_size)

    def get_normalized_expression(
        self,
        adata: AnnData | None = None,
        library_size: float | None = 1.0,
        batch_corrected: bool = True,
        batch_size: int = 2048,
    ) -> pd.DataFrame:
        """Expected expression of each cell, (cells, genes); without batch noise if corrected."""
        cells, obs = self._cells_of(adata)
        values = self._queries.normalised(cells, batch_size, library_size, batch_corrected)
        return pd.DataFrame(values, index=obs.index, columns=self.screen.genes)

    def posterior_predictive_check(
        self, n_samples: int = 50, n_cells: int = 5000, credible_level: float = 0.99
    ) -> pd.DataFrame:
        """Mean, variance and zero fraction of each gene, observed and in replicated data."""
        return posterior_predictive_check(
            self.posterior, self._cells, self.screen.genes, n_samples, n_cells, credible_level
        )

    def get_marginal_ll(
        self, adata: AnnData | None = None, n_mc_samples: int = 100, batch_size: int = 512
    ) -> pd.Series:
        """Importance-weighted log-likelihood of each cell, nats; globals drawn from the posterior."""
        cells, obs = self._cells_of(adata)
        values = importance_log_likelihood(self.posterior, cells, n_mc_samples, batch_size)
        return pd.Series(values, index=obs.index, name="log_likelihood")

    def posterior_samples(
        self, n: int = 200, sites: Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        """Joint draws of the global sites by name, (n, ...) each."""
        return self.posterior.samples(n, None if sites is None else list(sites))

    def to_arviz(self, n: int = 200, sites: Sequence[str] | None = None) -> az.InferenceData | Any:
        """Joint draws with named dimensions, as ArviZ takes them (InferenceData or DataTree)."""
        draws, coords, dims = answers.labelled(self.posterior_samples(n, sites), self.screen)
        return inference_data(draws, coords, dims)

    # ------------------------------------------------------------------ files
    def save(
        self, dir_path: str | Path, overwrite: bool = False, save_anndata: bool = False
    ) -> None:
        """Write the model into a directory: safetensors and JSON, no pickle."""
        settings = {
            **self.module.settings(),
            "registry": {key: self.registry[key] for key in (MODEL_NAME, SETUP_METHOD, SETUP_ARGS)},
            "screen": self.registry["pyrocell"],
            "trained": bool(self.is_trained_),
            "seed": self._seed,
        }
        history = self.history if self.is_trained_ else None
        write_model(dir_path, self.module.state_dict(), settings, history, overwrite)
        if save_anndata:
            self.adata.write_h5ad(Path(dir_path) / "adata.h5ad")

    @classmethod
    def load(cls, dir_path: str | Path, adata: AnnData, accelerator: str = "auto") -> PyroCell:
        """Read a model that `save` wrote, for the cells it was fitted to or others of that screen.

        Raises
        ------
        ModelFileError
            If the files are damaged or belong to another model.
        ScreenError
            If the cells do not fit the saved screen.
        """
        state, settings, history = read_model(dir_path)
        if settings["registry"][MODEL_NAME] != cls.__name__:
            raise ModelFileError(
                f"{dir_path} holds a {settings['registry'][MODEL_NAME]}, not a {cls.__name__}"
            )
        source = {**settings["registry"], "pyrocell": settings["screen"]}
        manager = register(cls, adata, **settings["registry"][SETUP_ARGS], source_registry=source)
        cls.register_manager(manager)
        config, priors = settings["config"], settings["priors"]
        options = ("composition", "n_covariates")
        model = cls(
            adata,
            **{key: value for key, value in config.items() if key not in options},
            priors=Priors(**{k: tuple(v) if isinstance(v, list) else v for k, v in priors.items()}),
        )
        model.module.load_state_dict(state)
        model.is_trained_, model._seed = settings["trained"], settings["seed"]
        if history is not None:
            model.history_ = history
        model.module.eval()
        return model


def _progress(show: bool) -> Any:
    def bar(items: Iterable, **kwargs: Any) -> Iterator:
        return tqdm(items, disable=not show, **kwargs)

    return bar
