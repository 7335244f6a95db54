"""PyroCell: the user's door. Registers, trains, asks; lower rooms work out every answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scvi.model.base import BaseModelClass
from torch import Tensor

from pyrocell._compat import MODEL_NAME, SETUP_ARGS, SETUP_METHOD
from pyrocell.asking import Answers
from pyrocell.assume import Assume
from pyrocell.batches import CellData, split_cells
from pyrocell.checkpoints import Checkpoints
from pyrocell.errors import ModelFileError
from pyrocell.gene_level.fit import Programs, fit_gene_level, has_gene_level
from pyrocell.module import ScreenModule
from pyrocell.objectives import DistributionObjective
from pyrocell.posterior import Posterior
from pyrocell.priors import Priors
from pyrocell.progress import progress
from pyrocell.queries import Queries
from pyrocell.registration import CellTensors, ScreenManager, cell_tensors, register
from pyrocell.screen import Screen
from pyrocell.storage import read_model, write_model
from pyrocell.structure import ModelConfig, check_options
from pyrocell.threads import few_threads
from pyrocell.training import TrainingConfig, train

__all__ = ["PyroCell"]


class PyroCell(Answers, BaseModelClass):
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
        How a response unfolds in time: "relaxation" to a plateau in closed form; "node", a neural
        ODE of production and decay beside it (eq. 25); "none", all at once (App. D.1).
    lipschitz
        Of the neural ODE: bound on the slope of production in the response. Below 1 two solutions
        always approach each other (App. B.2); None: no bound.
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
    decoder
        "curved": log expression bends away from a line in z far from rest, responses stay additive
        in it; "linear": it does not.
    priors
        Prior scales, in units of natural-log fold change.
    assume
        Assumptions to train under, such as ``[Assume.steady("POU5F1")]``: the loss terms of eqs. 9
        and 14; with a probability below 1, as a mixture. `assumptions()` takes them as priors.
    objective
        Distance between populations to add to the log joint (eq. 23), see `DistributionObjective`.

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
        decoder: str = "curved",
        priors: Priors | None = None,
        assume: Sequence[Assume] = (),
        lipschitz: float | None = 0.9,
        objective: DistributionObjective | None = None,
    ):
        super().__init__(adata)
        self.screen = self.adata_manager.screen
        tensors = cell_tensors(self.adata_manager)
        self._cells = self._cell_data(self.adata_manager, tensors)
        args = self.adata_manager.registry[SETUP_ARGS]
        config = ModelConfig(
            n_latent=n_latent,
            n_response=n_response,
            dynamics=dynamics,
            lipschitz=lipschitz,
            likelihood=likelihood,
            n_hidden=n_hidden,
            gene_residual=gene_residual,
            interactions=interactions,
            composition=args["size_factor_key"] is None,
            n_covariates=0 if self._cells.covariates is None else self._cells.covariates.shape[1],
            content_dependent_noise=content_dependent_noise,
            dropout=dropout,
            decoder=decoder,
            assume=tuple(asdict(a) for a in assume),
            objective=None if objective is None else asdict(objective),
        )
        check_options(config)
        sums, priors = tensors.sums, priors or Priors()
        self._hold(ScreenModule.from_sums(sums, self.screen, config, priors))
        self.init_params_ = self._get_init_params(locals())

    def _hold(self, module: ScreenModule) -> None:
        self.module, self._seed, self._counts = module, 0, None
        self.programs_ = self.shuffle_check_ = None
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
        perturbation_time_key: str | None = None,
        media_time_key: str | None = None,
        guide_key: str | None = None,
        laboratory_key: str | None = None,
        size_factor_key: str | None = None,
        categorical_covariate_keys: Sequence[str] | None = None,
        continuous_covariate_keys: Sequence[str] | None = None,
        source_registry: dict | None = None,
    ) -> None:
        """Check an AnnData and register it; nothing is changed unless everything is in order.

        Parameters
        ----------
        adata
            Cells × genes with raw counts, in memory or in a file (:func:`pyrocell.read_backed`), of
            which only columns are read here; a view becomes an AnnData of its own.
        layer
            Layer with the counts; None for `.X`.
        batch_key, perturbation_key, perturbation_type_key, media_key, time_key
            Columns of `.obs`; None where the screen has none. Genes of a combination are joined by
            "+"; times are numbers ≥ 0.
        perturbation_time_key, media_time_key
            Columns with the time, on the clock of `time_key`, at which each cell was perturbed and
            met its medium, for arms that differ in order; default: 0. Ignored where it did not.
        control, baseline_media
            Labels of unperturbed cells and of the medium without stimulus. Cells with non-targeting
            guides are controls under this one label.
        perturbation_type
            "knockout", "CRISPRi" or "CRISPRa", where no column states it.
        guide_key
            Column with the guide of each cell, kept as `screen.guides` and `screen.cell_guide` for
            checks of your own; the model does not use it: guides of a perturbation share an effect.
        laboratory_key
            Column with the laboratory that made each batch: batch noise then has two levels.
        size_factor_key
            Column with the depth of each cell; default: its total counts over these genes.
        categorical_covariate_keys, continuous_covariate_keys
            Columns with further properties of cells.
        source_registry
            Registry of the manager of a screen seen before, to register more cells of it.

        Raises
        ------
        ScreenError, CountError, UnknownLabelError, ConflictingTypesError
            Naming the column, the value and the remedy.

        Warns
        -----
        ScreenWarning
            About what the screen cannot tell.
        """
        arguments = {k: v for k, v in locals().items() if k not in ("cls", "adata")}
        cls.register_manager(register(cls, adata, **arguments))

    def _cell_data(self, manager: ScreenManager, cells: CellTensors | None = None) -> CellData:
        """Cells of a manager in terms of the model's conditions, or with a table of their own."""
        cells = cell_tensors(manager) if cells is None else cells
        data = CellData(
            cells.counts,
            manager.screen.cell_condition,
            manager.screen.cell_batch,
            cells.log_size_factor,
            cells.covariates if cells.covariates.shape[1] else None,
        )
        if manager.screen is self.screen:
            return data
        here, there = (screen.treatments for screen in (manager.screen, self.screen))
        rows = pd.MultiIndex.from_frame(there).get_indexer(pd.MultiIndex.from_frame(here))
        if (rows >= 0).all():
            return replace(data, condition=rows[data.condition])
        posterior = Posterior(self.module.model, self.module.guide)
        table, _ = Queries(posterior, self.screen, data).conditions(here)
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
        checkpoint_dir: str | Path | None = None,
        checkpoint_minutes: float = 10.0,
        resume: bool = True,
        gene_level: bool = True,
        **trainer_kwargs: Any,
    ) -> None:
        """Fit the model by stochastic variational inference.

        Without arguments it does the right thing: enough epochs for the size of the screen, a tenth
        of the cells held out for the validation ELBO.

        Parameters
        ----------
        max_epochs
            Passes over the training cells; default: as many as `config.steps` steps take.
        accelerator, devices
            As in Lightning; by default one device. Several are a process each, started here or by
            torchrun or SLURM: see "Several processes" in docs/performance.md.
        train_size
            Share of cells trained on; the rest gives the validation ELBO.
        batch_size
            Cells per step and process.
        early_stopping
            Stop when the validation ELBO no longer rises.
        seed
            The same seed gives the same result on the same machine.
        progress_bar
            Show progress.
        config
            Optimisation settings.
        checkpoint_dir, checkpoint_minutes, resume
            Directory, for this training alone, where a checkpoint is written every so many minutes;
            called again with the same arguments, a training that was stopped goes on from the last.
        gene_level
            After the gradient phase draw what single genes do from its conditional posterior, from
            all cells. False leaves it to the variational posterior, which is often falsely certain.
        **trainer_kwargs
            Passed to Lightning's Trainer.

        Raises
        ------
        NonFiniteError
            If a loss is not finite, naming the site.
        ModelFileError
            If checkpoints are damaged or of another training, naming what differs.
        ProcessError
            If one of several processes dies.
        """
        config = config or TrainingConfig()
        if batch_size is not None:
            config = replace(config, batch_size=batch_size)
        checkpoints = None
        if checkpoint_dir is not None:
            screen = {**self.module.settings(), "screen": self.registry["pyrocell"]}
            checkpoints = Checkpoints(checkpoint_dir, checkpoint_minutes, resume, screen)
        split = split_cells(len(self._cells), train_size, seed)
        self.history_ = train(
            self.module.model,
            self.module.guide,
            self._cells,
            *split,
            config,
            max_epochs=max_epochs,
            accelerator=accelerator,
            devices=devices,
            early_stopping=early_stopping,
            seed=seed,
            progress_bar=progress_bar,
            checkpoints=checkpoints,
            **trainer_kwargs,
        )
        self.module.gene_level = self.programs_ = None
        if gene_level and has_gene_level(self.module.model):
            with few_threads(len(self.screen.genes)):
                self.module.gene_level, self.programs_ = fit_gene_level(
                    self.module.model,
                    self.module.guide,
                    self.screen,
                    self._cells,
                    self._level_counts,
                    seed,
                    partial(progress(progress_bar), desc="gene level"),
                )
        self.train_indices_, self.validation_indices_ = split
        self._seed = seed
        self.is_trained_ = True
        self.module.eval()

    @property
    def history(self) -> pd.DataFrame:
        """Loss and validation ELBO by epoch."""
        return pd.DataFrame() if self.history_ is None else self.history_

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
            "programs": None if self.programs_ is None else asdict(self.programs_),
        }
        history = self.history if self.is_trained_ else None
        write_model(dir_path, self.module.saved_state(), settings, history, overwrite)
        if save_anndata:
            self.adata.write_h5ad(Path(dir_path) / "adata.h5ad")

    @classmethod
    def load(cls, dir_path: str | Path, adata: AnnData) -> PyroCell:
        """Read a model that `save` wrote, for the cells it was fitted to or others of that screen.

        Raises
        ------
        ModelFileError, ScreenError
            If the files are missing, damaged or of another model; if cells do not fit the screen.
        """
        state, settings, history = read_model(dir_path)
        try:
            screen = Screen.from_dict(settings["screen"]["screen"])
            listed = settings["priors"].items()
            priors = {k: tuple(v) if isinstance(v, list) else v for k, v in listed}
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
        model.programs_ = Programs.of(settings.get("programs"))
        module.eval()
        return model
