"""PyroCell: the user's door. Registers, trains, asks; lower rooms work out every answer."""

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
from torch import Tensor
from tqdm.auto import tqdm

from pyrocell import answers
from pyrocell._compat import MODEL_NAME, SETUP_ARGS, SETUP_METHOD, inference_data
from pyrocell.batches import CellData
from pyrocell.criticism import importance_log_likelihood, posterior_predictive_check
from pyrocell.errors import ModelFileError, ScreenError
from pyrocell.module import ScreenModule
from pyrocell.operators import Protocol
from pyrocell.posterior import Posterior
from pyrocell.priors import Priors
from pyrocell.queries import Queries
from pyrocell.registration import ScreenManager, cell_tensors, register
from pyrocell.screen import Screen
from pyrocell.storage import read_model, write_model
from pyrocell.structure import ModelConfig
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
    dropout
        "curve": two numbers per gene, logit of dropout against log mean; "cell": free per cell and
        gene, linear in the cell's state.
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
        interactions: bool = False,
        content_dependent_noise: bool = False,
        dropout: str = "curve",
        priors: Priors | None = None,
    ):
        super().__init__(adata)
        self.screen = self.adata_manager.screen
        self._cells = self._cell_data(self.adata_manager)
        args = self.adata_manager.registry[SETUP_ARGS]
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
            dropout=dropout,
        )
        _check_options(config)
        self._hold(
            ScreenModule.from_counts(
                self._cells.counts, self._cells.log_size, self.screen, config, priors or Priors()
            )
        )
        self.init_params_ = self._get_init_params(locals())

    def _hold(self, module: ScreenModule) -> None:
        self.module, self._seed = module, 0
        self._model_summary_string = (
            f"PyroCell: {len(self.screen.perturbations)} perturbations, "
            f"{1 + len(self.screen.media)} media, {max(1, len(self.screen.times))} times, "
            f"{len(self.screen.batches)} batches; {module.config}"
        )

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
        """Check an AnnData and register it; see :func:`pyrocell.registration.register`."""
        arguments = {k: v for k, v in locals().items() if k not in ("cls", "adata")}
        cls.register_manager(register(cls, adata, **arguments))

    def _cell_data(self, manager: ScreenManager) -> CellData:
        """Cells of a manager in terms of the model's conditions, or with a table of their own."""
        cells = cell_tensors(manager)
        data = CellData(
            cells.counts,
            manager.screen.cell_condition,
            manager.screen.cell_batch,
            cells.log_size_factor,
            cells.covariates if cells.covariates.shape[1] else None,
        )
        if manager.screen is self.screen:
            return data
        here, there = (_treatments(screen) for screen in (manager.screen, self.screen))
        rows = pd.MultiIndex.from_frame(there).get_indexer(pd.MultiIndex.from_frame(here))
        if (rows >= 0).all():
            return replace(data, condition=rows[data.condition])
        posterior = Posterior(self.module.model, self.module.guide)
        table, _, _ = Queries(posterior, self.screen, data).conditions(here)
        return replace(data, conditions=table)

    def _cells_of(self, adata: AnnData | None) -> tuple[CellData, pd.DataFrame]:
        """Cells of an AnnData on this model's axes, and their `.obs`."""
        if adata is None or adata is self.adata:
            return self._cells, self.adata.obs
        adata = self._validate_anndata(adata)
        return self._cell_data(self.get_anndata_manager(adata, required=True)), adata.obs

    def module_arguments(
        self, indices: Sequence[int] | None = None, dense: bool = False
    ) -> dict[str, Tensor]:
        """Arguments of `module.model` and `module.guide` for some cells; default: all.

        Counts are torch CSR, or `dense` as `pyro.infer.Predictive` needs them.
        """
        rows = np.arange(len(self._cells)) if indices is None else np.asarray(indices)
        out = self._cells.rows(rows)
        return out | {"x": out["x"].to_dense()} if dense else out

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
            config = replace(config, batch_size=batch_size)
        if not 0 < train_size <= 1:
            raise ScreenError(f"train_size={train_size} must be above 0 and at most 1")
        if config.batch_size < 1 or (max_epochs is not None and max_epochs < 1):
            raise ScreenError(
                f"batch_size={config.batch_size} and max_epochs={max_epochs} must be at least 1"
            )
        if self._cells.conditions is not None:
            raise ScreenError(
                "adata has conditions that this model was not built for; train a new model on all "
                "cells"
            )
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
        return pd.DataFrame() if self.history_ is None else self.history_

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

        Returns
        -------
        DataFrame with perturbation, media, time, gene, mean, sd, lower, upper, prob_direction;
        natural logarithms. On counts without size factors the change is one of relative expression.
        """
        names = self.screen.perturbations if perturbations is None else perturbations
        names = [names] if isinstance(names, str) else list(names)
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

        A cell keeps its resting state, batch and depth. Default: control, baseline, last time.

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
        """Importance-weighted log-likelihood of each cell, nats; globals from the posterior."""
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
    def load(cls, dir_path: str | Path, adata: AnnData) -> PyroCell:
        """Read a model that `save` wrote, for the cells it was fitted to or others of that screen.

        Raises
        ------
        ModelFileError
            If the files are missing, damaged or belong to another model.
        ScreenError
            If the cells do not fit the saved screen.
        """
        state, settings, history = read_model(dir_path)
        try:
            screen = Screen.from_dict(settings["screen"]["screen"])
            priors = {
                k: tuple(v) if isinstance(v, list) else v for k, v in settings["priors"].items()
            }
            config = ModelConfig(**settings["config"])
            module = ScreenModule.from_state(state, screen, config, Priors(**priors))
            registry, trained, seed = (settings[key] for key in ("registry", "trained", "seed"))
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ModelFileError(
                f"{dir_path} was written by pyrocell {settings.get('version')} and does not fit "
                f"this version: {error}"
            ) from error
        if registry[MODEL_NAME] != cls.__name__:
            raise ModelFileError(f"{dir_path} holds a {registry[MODEL_NAME]}, not a {cls.__name__}")
        source = {**registry, "pyrocell": settings["screen"]}
        cls.register_manager(register(cls, adata, **registry[SETUP_ARGS], source_registry=source))
        model = cls.__new__(cls)
        BaseModelClass.__init__(model, adata)
        model.screen = screen
        model._hold(module)
        model._cells = cells = model._cell_data(model.adata_manager)
        if cells.conditions is None:
            guide = model.adata_manager.screen.cell_guide
            model.screen = replace(
                screen, cell_condition=cells.condition, cell_batch=cells.batch, cell_guide=guide
            )
        model.is_trained_, model._seed, model.history_ = trained, seed, history
        module.eval()
        return model


def _check_options(config: ModelConfig) -> None:
    """Raise unless the shape of the model is one that there is."""
    for name, known in (("dynamics", ("relaxation",)), ("likelihood", ("zinb", "nb"))):
        if (value := getattr(config, name)) not in known:
            raise ScreenError(f'{name}="{value}" is not one of {", ".join(known)}')
    for name, least in (("n_latent", 1), ("n_response", 0), ("n_hidden", 1)):
        if (value := getattr(config, name)) < least:
            raise ScreenError(f"{name}={value} must be at least {least}")


def _treatments(screen: Screen) -> pd.DataFrame:
    """Perturbation, media and time (if any) of each condition."""
    columns = ["perturbation", "media", *(["time"] if screen.times else [])]
    return screen.conditions[columns]


def _progress(show: bool) -> Any:
    def bar(items: Iterable, **kwargs: Any) -> Iterator:
        return tqdm(items, disable=not show, **kwargs)

    return bar
