"""PyroCell: the user's door. Registers, trains, asks; lower rooms work out every answer."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd
import torch
import xarray as xr
from anndata import AnnData
from mudata import MuData
from scvi.model.base import BaseModelClass
from torch import Tensor

from pyrocell._compat import MODEL_NAME, SETUP_ARGS, SETUP_METHOD, obs_table, var_table
from pyrocell._core.messages import did_you_mean, facts_html
from pyrocell._core.progress import progress
from pyrocell._core.threading import few_threads, in_turn, limit_threads, work_of
from pyrocell.assumptions.spec import Assume
from pyrocell.assumptions.steady_state import steady_state_screen
from pyrocell.assumptions.table import assumption_table
from pyrocell.assumptions.testability import testability
from pyrocell.data.joined import as_mudata, joined, remember
from pyrocell.data.joined import joint_of as _joint_of
from pyrocell.data.loader import CellDataset, split_cells
from pyrocell.data.model_files import cells_beside, read_model, write_model
from pyrocell.data.registration import (
    CellTensors,
    ScreenManager,
    cell_tensors,
    register,
    screen_of,
)
from pyrocell.errors import ModelFileError, ScreenError, UnknownLabelError, warn
from pyrocell.generative.config import ModelConfig, check_options
from pyrocell.generative.population_objective import DistributionObjective
from pyrocell.knowledge import Knowledge
from pyrocell.operators import Protocol
from pyrocell.posterior.additive_alone import unshrunken_sums
from pyrocell.posterior.arviz import Wanted, chosen_cells, to_arviz
from pyrocell.posterior.batch_effects import batch_effects
from pyrocell.posterior.cells import cells_by, latent, normalised, normalised_draws, positions_of
from pyrocell.posterior.counterfactual import counterfactual
from pyrocell.posterior.counts_alone import unshrunken_effects
from pyrocell.posterior.draws import Posterior
from pyrocell.posterior.effect_checks import effect_checks, shuffle_table, shuffled_cells
from pyrocell.posterior.effect_tables import (
    differential_expression,
    effects_adata,
    media_expression,
    ranked_genes,
)
from pyrocell.posterior.effects import perturbation_effects
from pyrocell.posterior.embeddings import embeddings
from pyrocell.posterior.explain import Request as ExplainRequest
from pyrocell.posterior.explain import explain
from pyrocell.posterior.fitted_screen import FittedScreen
from pyrocell.posterior.gains import media_gains
from pyrocell.posterior.gene_level.counts import LevelCounts
from pyrocell.posterior.gene_level.fit import (
    Programs,
    counts_of_screen,
    fit_gene_level,
    has_gene_level,
)
from pyrocell.posterior.guides import (
    agreement,
    guide_table,
    response_probability,
    response_share,
)
from pyrocell.posterior.lag import view_lag
from pyrocell.posterior.levels import levels
from pyrocell.posterior.mask import mask_table
from pyrocell.posterior.media_effects import media_effects
from pyrocell.posterior.module import ScreenModule
from pyrocell.posterior.network import network_table, regulator_table
from pyrocell.posterior.output import OutputTarget
from pyrocell.posterior.prediction import predict
from pyrocell.posterior.predictive_check import (
    importance_log_likelihood,
    posterior_predictive_check,
)
from pyrocell.posterior.requests import requested
from pyrocell.posterior.signature import signature
from pyrocell.posterior.simulate_cells import fate_proportions, simulate_cells
from pyrocell.posterior.summaries import MEMORY_BUDGET
from pyrocell.posterior.temporal_shift import temporal_shift
from pyrocell.posterior.unseen import (
    effects_with_unseen,
    knowledge_table,
    neighbours,
    place_of,
)
from pyrocell.posterior.unseen.requests import KnowledgeOrNone
from pyrocell.posterior.views import imputed, rows_of_view, views_of
from pyrocell.priors import Priors
from pyrocell.screen.guide_pairs import numbered_as
from pyrocell.screen.screen import Screen
from pyrocell.training.checkpoints import Checkpoints
from pyrocell.training.fit import TrainingConfig, train
from pyrocell.views import USUAL, depth_of

if TYPE_CHECKING:
    import arviz as az

__all__ = ["PyroCell"]


class PyroCell(BaseModelClass):
    """Generative model of a CRISPR perturbation screen with a single-cell readout.

    Parameters
    ----------
    adata
        AnnData registered with :meth:`setup_anndata`, or MuData with :meth:`setup_mudata`.
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
    effect_prior
        Prior of effects along the axes of response; default: `priors.effect`, "normal" or
        "sparse". Others are made known by
        `pyrocell.generative.effects.register`, as are dynamics and likelihoods beside those named.

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

    adata: AnnData
    adata_manager: ScreenManager

    def __init__(
        self,
        adata: AnnData | MuData,
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
        effect_prior: str | None = None,
    ):
        super().__init__(_joint_of(adata))
        priors = priors or Priors()
        self.screen = self.adata_manager.screen
        with few_threads(len(self.screen.genes)):
            tensors = cell_tensors(self.adata_manager)
            self._cells = self._cell_data(self.adata_manager, tensors)
            args = self.adata_manager.registry[SETUP_ARGS]
            config = ModelConfig(
                n_latent=n_latent,
                n_response=n_response,
                dynamics=dynamics,
                effect_prior=priors.effect if effect_prior is None else effect_prior,
                lipschitz=lipschitz,
                likelihood=likelihood,
                n_hidden=n_hidden,
                gene_residual=gene_residual,
                interactions=interactions,
                composition=args["size_factor_key"] is None,
                n_covariates=0
                if self._cells.covariates is None
                else self._cells.covariates.shape[1],
                content_dependent_noise=content_dependent_noise,
                dropout=dropout,
                decoder=decoder,
                assume=tuple(asdict(a) for a in assume),
                objective=None if objective is None else asdict(objective),
                views=_views_of(tensors),
            )
            check_options(config)
            self._hold(ScreenModule.from_sums(tensors.sums, self.screen, config, priors))
        self.init_params_ = self._get_init_params(locals())

    def _hold(self, module: ScreenModule) -> None:
        self.module, self._seed, self._counts = module, 0, None
        self.programs_ = self.shuffle_check_ = None
        self.interrupted_ = False
        self._model_summary_string = (
            f"PyroCell: {len(self.screen.perturbations)} perturbations, "
            f"{1 + len(self.screen.media)} media, {max(1, len(self.screen.times))} times, "
            f"{len(self.screen.batches)} batches; {module.config}"
        )

    def __repr__(self) -> str:
        return "\n".join(["PyroCell", *(f"  {name}: {value}" for name, value in self._facts())])

    def _repr_html_(self) -> str:
        return facts_html("PyroCell", self._facts())

    def _facts(self) -> list[tuple[str, str]]:
        """What the model is and how far it is, for people."""
        config, trained = self.module.config, "not trained: model.train()"
        if self.is_trained_:
            trained = f"trained for {len(self.history)} epochs"
            trained += ", interrupted" if self.interrupted_ else ""
        return [
            *self.screen.facts(),
            *(
                [("counts", f"{config.likelihood}, {config.decoder} decoder")]
                if not config.views
                else [(v["name"], f"{v['kind']}, {v['size']:,} features") for v in config.views]
            ),
            (
                "axes",
                f"{config.n_latent} of resting state, {config.n_response} further of response",
            ),
            ("dynamics", str(config.dynamics)),
            ("state", trained),
        ]

    # ------------------------------------------------------------------ registration
    @classmethod
    def setup_anndata(
        cls,
        adata: AnnData,
        layer: str | None = None,
        batch_key: str | None = "batch",
        perturbation_key: str | None = "perturbation",
        control: str | Sequence[str] = "control",
        combination_separator: str | None = "+",
        perturbation_type: str = "knockout",
        perturbation_type_key: str | None = None,
        media_key: str | None = None,
        baseline_media: str | None = "baseline",
        time_key: str | None = None,
        perturbation_time_key: str | None = None,
        media_time_key: str | None = None,
        gene_symbol_key: str | None = None,
        guide_key: str | None = None,
        guide_matrix_key: str | None = None,
        guide_targets: Any = None,
        guide_threshold: float | None = None,
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
            Columns of `.obs`; None where the screen has none: without perturbations all cells are
            controls, and `media_effects` is what is asked. Genes of a combination are joined by
            "+"; times are numbers ≥ 0.
        perturbation_time_key, media_time_key
            Columns with the time, on the clock of `time_key`, at which each cell was perturbed and
            met its medium, for arms that differ in order; default: 0. Ignored where it did not.
        control, baseline_media
            Labels of unperturbed cells and of the medium without stimulus (None where all cells
            met the same stimulus, so that nothing is known of cells without it). Controls may have
            several names: ``control=["NT", "AAVS1"]``, or a pattern, ``control="non-targeting*"``;
            they are one group, called by the first name that is no pattern, or else "control".
        combination_separator
            What joins the genes of a combination in a label; None where nothing does (a "+" in a
            label then becomes "plus").
        perturbation_type
            "knockout", "CRISPRi", "CRISPRa", or "treatment" (a drug or a stimulus, which is not
            aimed at the transcript of a gene), where no column states it.
        gene_symbol_key
            Column of `.var` with the names of genes that labels use, by which the gene of each
            perturbation is found; default: `.var_names`, or a column that has more of them.
        guide_key
            Column with the guide of each cell (empty where not known): guides differ in strength,
            and cells may not have responded, see :meth:`guides`. Kept as `screen.guides` and
            `screen.cell_guide`.
        guide_matrix_key, guide_targets, guide_threshold
            Of cells with several guides, in the place of `perturbation_key`: the entry of `.obsm`
            with a matrix of cells by guides, sparse, an array or a table, such as
            :func:`pyrocell.preprocess.guide_matrix` makes; what each guide targets, as a table with
            columns guide and gene, a dictionary, or the name of such an entry of `.uns` (default:
            the column target or gene of ``.uns[guide_matrix_key]``), with the label of the control
            for guides that target nothing; and the least value with which a cell has a guide, where
            the matrix holds other values than 0 and 1. Names of guides are the columns of a table,
            or ``.uns[guide_matrix_key]``. What was done to a cell is then the set of its targets; a
            cell whose guides target nothing is a control, and one without a guide is refused.
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

    @classmethod
    def setup_mudata(
        cls,
        mdata: MuData,
        rna: str | None = None,
        protein: str | None = None,
        chromatin: str | None = None,
        batch_key: str | Mapping[str, str] | None = "batch",
        kinds: Mapping[str, str] | None = None,
        layers: Mapping[str, str | None] | None = None,
        isotypes: Sequence[str] = (),
        links: pd.DataFrame | None = None,
        path: str | Path | None = None,
        **arguments: Any,
    ) -> None:
        """Check a MuData and register it: several views of one hidden state.

        Cells may have any of the views, and need not have the same. `mdata` is left as it is; the
        model works on one AnnData of all features, `model.adata`, whose `.var["view"]` says which
        view measures a feature. That is made here: register again after `mdata` has changed.

        Parameters
        ----------
        mdata
            A modality for each view, with raw counts.
        rna, protein, chromatin
            Names of modalities; None where there is none. Antibodies of "protein" are counts of
            background and foreground, "chromatin" fragments per region.
        batch_key
            Column with the batch of each cell, of `mdata.obs` or of its modalities; or one for each
            view, ``{"rna": "lane", "protein": "pool"}``. Batch noise is then that of the batches of
            a cell together.
        kinds
            What the counts of a view are, where it is not the usual: a name of
            `pyrocell.views.VIEWS`, such as ``{"chromatin": "binary fragments"}``.
        layers
            Layer of the counts of a view; default: `.X` of its modality.
        isotypes
            Proteins that are isotype controls: they bind nothing, so that all their counts are
            background, and what batches do to them is expected of all other antibodies.
        links
            Regions of chromatin that are thought to regulate a gene, columns region and gene and,
            if they differ, weight; pairs that were not measured are left out. Where perturbations
            move programs that RNA and chromatin share, a region's part in a program is expected to
            be in proportion to that of its genes; the proportion is learned, and is 0 where links
            say nothing.
        path
            New .h5ad file for the counts of all views, which then stay there; modalities may be in
            files themselves. Default: in memory. :func:`pyrocell.read_backed` opens it again.
        **arguments
            As in :meth:`setup_anndata`; columns are looked for in `mdata.obs` and in `.obs` of the
            modalities, by their own names.

        Raises
        ------
        ScreenError, CountError, UnknownLabelError, ConflictingTypesError
            Naming modality, column, value and remedy.
        """
        named = {"rna": rna, "protein": protein, "chromatin": chromatin}
        modalities = {view: name for view, name in named.items() if name is not None}
        adata, batch = join_views(
            mdata, modalities, batch_key, kinds, layers, arguments, isotypes, path, links
        )
        cls.setup_anndata(adata, batch_key=batch, **arguments)
        remember(mdata, adata)

    @classmethod
    def register_manager(cls, adata_manager: ScreenManager) -> None:
        """Keep a manager by the identity of its AnnData, for as long as that is there."""
        super().register_manager(adata_manager)
        managers: dict[str, Any] = cls._setup_adata_manager_store
        adata_manager.hold_weakly(managers)

    def _register_manager_for_instance(self, adata_manager: ScreenManager) -> None:
        super()._register_manager_for_instance(adata_manager)
        weakref.finalize(self, self._per_instance_manager_store.pop, self.id, None)
        managers: dict[str, Any] = self._per_instance_manager_store[self.id]
        adata_manager.hold_weakly(managers)

    def _cell_data(self, manager: ScreenManager, cells: CellTensors | None = None) -> CellDataset:
        """Cells of a manager in terms of the model's conditions, or with a table of their own."""
        cells = cell_tensors(manager) if cells is None else cells
        data = CellDataset(
            cells.counts,
            manager.screen.cell_condition,
            manager.screen.cell_batch,
            cells.log_size_factor,
            cells.covariates if cells.covariates.shape[1] else None,
            views=cells.views,
            depths=cells.sums.depths,
        )
        if manager.screen is self.screen:
            return data
        here, there = (screen.treatments for screen in (manager.screen, self.screen))
        rows = pd.MultiIndex.from_frame(there).get_indexer(pd.MultiIndex.from_frame(here))
        if (rows >= 0).all():
            return replace(data, condition=rows[data.condition])
        posterior = Posterior(self.module.model, self.module.guide)
        table, _ = FittedScreen(posterior, self.screen, data).conditions(here)
        return replace(data, conditions=table)

    def _cells_of(self, adata: AnnData | MuData | None) -> tuple[CellDataset, pd.DataFrame]:
        """Cells of an AnnData on this model's axes, and their `.obs`."""
        adata = None if adata is None else _joint_of(adata)
        if adata is None or adata is self.adata:
            return self._cells, obs_table(self.adata)
        adata = self._validate_anndata(adata)
        manager = cast("ScreenManager", self.get_anndata_manager(adata, required=True))
        return self._cell_data(manager), obs_table(adata)

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
    @in_turn
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
        guides: bool = True,
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
        guides
            Where guides are registered: a cell may not have responded to its guide, and guides
            differ in strength (:meth:`guides`). False takes all cells of a label as alike.
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
        self.interrupted_ = self.history_.attrs.pop("interrupted", False)
        if gene_level and not self.interrupted_ and has_gene_level(self.module.model):
            self._draw_gene_level(seed, progress_bar, guides)
        elif gene_level and not self.interrupted_ and self.screen.many_sets:
            warn(
                "cells have many guides each, and several media or times, or another option under "
                "which effects on single genes are not drawn from the counts: they keep the "
                "variational posterior, whose intervals are too narrow; fit one medium and time "
                "by itself for intervals that hold"
            )
        self.train_indices_, self.validation_indices_ = split
        self._seed = seed
        self.is_trained_ = True
        self.module.eval()

    def _draw_gene_level(self, seed: int, progress_bar: bool, guides: bool) -> None:
        """The second phase of training; Ctrl-C leaves the posterior of the first."""
        try:
            with few_threads(work_of(self.screen)):
                self.module.gene_level, self.programs_ = fit_gene_level(
                    self.module.model,
                    self.module.guide,
                    self.screen,
                    self._cells,
                    None if self.screen.many_sets else self._level_counts,
                    seed,
                    partial(progress(progress_bar), desc="gene level"),
                    guides=guides,
                )
        except KeyboardInterrupt:
            self.interrupted_ = True
            warn(
                "training was interrupted before the effects on single genes were drawn; the model "
                "can be asked, but says of them what the variational posterior does, which is too "
                "sure: train again"
            )

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
        cells = self.adata if save_anndata else None
        write_model(dir_path, self.module.saved_state(), settings, history, overwrite, cells)

    @classmethod
    def load(cls, dir_path: str | Path, adata: AnnData | MuData | None = None) -> PyroCell:
        """Read a model that `save` wrote, for the cells it was fitted to or others of that screen.

        Without `adata`: for the cells that ``save(save_anndata=True)`` wrote beside it.

        Raises
        ------
        ModelFileError, ScreenError
            If the files are missing, damaged or of another model; if cells do not fit the screen.
        """
        state, settings, history = read_model(dir_path)
        kept = settings.get("screen", {}).get("views")
        adata = cells_beside(dir_path, settings) if adata is None else _joint_of(adata, kept)
        try:
            screen = Screen.from_dict(settings["screen"]["screen"])
            listed = settings["priors"].items()
            priors: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in listed}
            config = ModelConfig(**settings["config"])
            with few_threads(len(screen.genes)):
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
            guide = numbered_as(screen, model.adata_manager.screen)
            model.screen = replace(
                screen, cell_condition=cells.condition, cell_batch=cells.batch, cell_guide=guide
            )
        model.is_trained_, model._seed, model.history_ = trained, seed, history
        model.programs_ = Programs.of(settings.get("programs"))
        module.eval()
        return model

    # ------------------------------------------------------------------ questions
    @property
    def posterior(self) -> Posterior:
        """Joint draws of the global sites."""
        self._check_if_trained(warn=True)
        return self.module.posterior(self._seed)

    @property
    def fitted(self) -> FittedScreen:
        """Posterior, screen and cells together: what the questions in `pyrocell.posterior` take."""
        return FittedScreen(self.posterior, self.screen, self._cells, self.module.gene_level)

    def testability(self, view: str | None = None) -> pd.DataFrame:
        """Which assumptions the layout of the screen can test, and why; needs no training.

        Parameters
        ----------
        view
            Of a model of several views: by the cells that have this one, see :meth:`screen_of`.

        Returns
        -------
        DataFrame with assumption, perturbation, media, testable, reason; see
        `pyrocell.assumptions.testability`.
        """
        return testability(self.screen if view is None else self.screen_of(view))

    def screen_of(self, view: str) -> Screen:
        """The screen of one of several views: the cells that have it, and its features.

        Its layout, `aliased` and `aliased_contrasts` say what that view can tell apart.
        """
        return self._cells_of_view(view)[0]

    def _cells_of_view(self, view: str) -> tuple[Screen, CellDataset]:
        """The screen and the cells of a view, with conditions of their own."""
        features = views_of(self.module.config, view)
        assert features is not None
        data, cells = self._cells.of_view(view)
        own = self.adata[cells, features.slices[features.of(view)]]
        args = self.adata_manager.registry[SETUP_ARGS]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what there is to say was said of the whole screen
            screen = screen_of(own, args)
        labels = {"condition": screen.cell_condition, "batch": screen.cell_batch}
        return screen, replace(data, **labels, conditions=None)

    @limit_threads
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
        view: str | None = None,
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
        view
            Of a model of several views: the view in which they are to hold, such as "protein"; by
            default they are to hold in all of them together.

        Returns
        -------
        DataFrame with a row per assumption, perturbation and medium: testable and reason (see
        :meth:`testability`), prior, posterior (that it holds; the prior, to the last digit, where
        the layout cannot test it), p_rope (the same with sizes log-uniform and no prior share),
        log_bayes_factor (for holding), mcse (of posterior), size (root mean square, or slope on the
        controls' response for `no_response`) with lower and upper, n_genes.
        """
        given = [*(Assume(**a) for a in self.module.config.assume), *assume]
        fit = self.fitted.without_sums
        features, screen, axes = views_of(self.module.config, view), fit.screen, fit.axes_of_state()
        if features is None or view is None:
            found = levels(fit, n_samples)
        else:
            part = features.slices[features.of(view)]
            screen, cells = self._cells_of_view(view)
            of_one = FittedScreen(fit.posterior, screen, cells)
            found, axes = levels(of_one, n_samples, part=part), axes[:, part]
        return assumption_table(
            screen,
            found,
            axes,
            self.module.priors,
            region=region,
            prior=prior,
            concentration=concentration,
            min_count=min_count,
            min_cells=min_cells,
            credible_level=credible_level,
            assume=given,
            guides=[]
            if features is not None
            else [
                {key: [found for _, found in mine] for key, mine in each.items()}
                for each in agreement(self.fitted, region, min_count, 1)
            ],
            progress=progress(progress_bar),
        )

    @limit_threads
    def guides(self, credible_level: float = 0.9, region: float = 0.05) -> pd.DataFrame:
        """How far each guide goes, how many of its cells responded, and whether it agrees.

        Needs guides, ``setup_anndata(adata, guide_key=...)``. Effects of the model are then those
        of a cell that responded to the average guide of its perturbation.

        Parameters
        ----------
        credible_level
            Of the intervals.
        region
            Root mean square over genes (natural-log fold change, own gene left out) below which
            what a guide has of its own counts as nothing.

        Returns
        -------
        DataFrame with a row per perturbation and guide: n_cells; efficacy, how far its responding
        cells go along the effect, in units of the average responding cell of the perturbation, with
        lower and upper; response_share, of its cells that responded, with response_lower and
        response_upper; off_target, the root mean square of what it does beside, and agree, the
        posterior that this is below the region (prior .9 that all guides of a perturbation agree;
        NaN where it has no other guide with ten cells to be compared with). Where the cells cannot
        tell, as for a perturbation that does nothing, efficacy and response_share are as wide as
        their prior.

        Raises
        ------
        ScreenError
            If guides were not registered, or not made part of the model.
        """
        return guide_table(self.fitted, credible_level, region)

    @limit_threads
    def response_probability(self, adata: AnnData | None = None) -> pd.Series:
        """Probability that each cell responded to its guide, by cell; 0 for controls.

        Parameters
        ----------
        adata
            Cells of the same perturbations and guides; default: those of the fit.

        Raises
        ------
        ScreenError
            If guides were not registered, or if a cell has a guide that the fit did not see.
        """
        cells, obs = self._cells_of(adata)
        own = adata is None or adata is self.adata
        guide = self.screen.cell_guide
        if not own:
            other = self.get_anndata_manager(cast("AnnData", adata), required=True)
            guide = numbered_as(self.screen, cast("ScreenManager", other).screen)
        found = response_probability(self.fitted, cells, guide)
        return pd.Series(found, obs.index, name="response_probability")

    @limit_threads
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

    @limit_threads
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
        *,
        knowledge: KnowledgeOrNone | None = None,
        view: str | None = None,
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
        knowledge
            What is known of genes, by which perturbations may be named that are not in the screen;
            or "population": nothing is, and they are like any perturbation of the screen. The table
            gets a column `unseen`. An effect that was not measured counts as next to nothing below
            .05, and its `count` is 0.

        view
            Of a model of several views: the effects on the features of one, whose list `fdr` is
            then of; default: of all. The table gets a column `view`.

        Returns
        -------
        DataFrame with a row per perturbation and gene: perturbation, media, time, gene; mean, sd,
        lower, upper (natural logarithms); lfsr, the probability that the sign of the mean is wrong
        or the effect next to nothing (the spike of its prior), and fdr, the expected share of these
        in the list that ends at this row (take fdr <= .1 for a list at 10%); log2fc, the mean in
        doublings; prob_direction, 1 − lfsr;
        count and count_control, counts of the gene in both groups of cells, and few_counts where
        both are below 5, which is never listed; where cells have many guides these are the cells
        that carry the perturbation, whatever else they carry, and all cells. `shrunken=False`: p
        (two-sided) and q (Benjamini and Hochberg) in the place of lfsr and fdr. On counts without
        size factors the change is against the genes that a perturbation does not touch (shrunken)
        or against all (not).
        With `path`, an xarray.Dataset (perturbation, gene) of the same, read when asked for.

        Raises
        ------
        DiskError
            If `path` is taken or its disk too full.
        UnknownLabelError
            If a perturbation is not in the screen, and no knowledge of it is given.
        """
        names = self.screen.perturbations if perturbations is None else perturbations
        names = [names] if isinstance(names, str) else list(names)
        media = self.screen.baseline_media if media is None else media
        if time is None and self.screen.times:
            time = self.screen.times[-1]
        features = views_of(self.module.config, view)
        if view is not None and path is not None:
            raise ScreenError("path= writes the effects of all views; leave view= out")

        def in_view(table: pd.DataFrame) -> pd.DataFrame:
            return rows_of_view(table, self.screen, features, view)

        if knowledge is not None:
            if path is not None or not shrunken:
                raise ScreenError("knowledge= goes neither with path= nor with shrunken=False")

            def measured(some: list[str]) -> pd.DataFrame:
                asked = some, media, time, n_samples, credible_level, progress_bar
                return cast("pd.DataFrame", self.perturbation_effects(*asked))

            asked = names, media, time, n_samples, credible_level, knowledge
            return in_view(effects_with_unseen(self.fitted, *asked, measured))
        if not shrunken:
            if path is not None:
                raise ScreenError(
                    "path= is for summaries of draws; shrunken=False makes none, leave it out"
                )
            asked = None if perturbations is None else names
            if self.screen.many_sets:
                self._check_conditions()
                where = media, time, credible_level
                return unshrunken_sums(self.screen, self._cells, asked, *where)
            where = self.screen, self._level_counts, asked, media, time, credible_level
            return in_view(unshrunken_effects(*where))
        keep = OutputTarget(memory_budget, path, overwrite)
        bar = progress(progress_bar)
        asked = names, media, time, n_samples, credible_level, bar, keep
        found = perturbation_effects(self.fitted, *asked)
        return found if path is not None else in_view(cast("pd.DataFrame", found))

    @limit_threads
    def knowledge(
        self,
        knowledge: Knowledge,
        n_permutations: int = 200,
        media: str | None = None,
        time: float | None = None,
        n_samples: int = 100,
        credible_level: float = 0.9,
    ) -> pd.DataFrame:
        """How much of what perturbations do is explained by what was known of their genes.

        Parameters
        ----------
        knowledge
            Sources, weighed together.
        n_permutations
            Shuffles of the names of genes, for each source.
        media, time
            Where effects are taken; default: baseline medium, last time.
        n_samples
            Posterior draws.
        credible_level
            Of `lower` and `upper`.

        Returns
        -------
        DataFrame with a row per source: source, genes_covered, n_perturbations, share (of the
        variance of effects off their mean; posterior mean) with lower and upper, log_bayes_factor
        (of the source alone against none), shuffled_lower, shuffled_median and shuffled_upper (5,
        50 and 95% of the same with names shuffled) and p, (1 + shuffles that reach it) / (1 + all).

        Raises
        ------
        KnowledgeError
            If no source knows a perturbed gene.
        ScreenError
            If there are fewer than three perturbations.
        """
        asked = n_permutations, credible_level, n_samples
        return knowledge_table(self.fitted, knowledge, *place_of(self.screen, media, time), *asked)

    @limit_threads
    def neighbours(
        self,
        perturbations: str | Sequence[str],
        knowledge: Knowledge,
        media: str | None = None,
        time: float | None = None,
        n_neighbours: int = 10,
        n_samples: int = 100,
    ) -> pd.DataFrame:
        """Measured perturbations that carry the prediction of those that are not in the screen.

        Parameters
        ----------
        perturbations
            Labels that are not in the screen.
        knowledge
            As in :meth:`perturbation_effects`.
        media, time
            Where effects are taken; default: baseline medium, last time.
        n_neighbours
            At most, for each; the largest weights first.
        n_samples
            Posterior draws.

        Returns
        -------
        DataFrame with perturbation, neighbour, source, weight: the prediction is the sum of the
        neighbours' effects, each times its weight. The last row of each has the weight of the mean
        of all perturbations.
        """
        names = [perturbations] if isinstance(perturbations, str) else list(perturbations)
        place = place_of(self.screen, media, time)
        return neighbours(self.fitted, names, knowledge, *place, n_neighbours, n_samples)

    @limit_threads
    def effects_adata(
        self,
        perturbations: Sequence[str] | None = None,
        media: str | None = None,
        time: float | None = None,
        n_samples: int = 200,
        credible_level: float = 0.9,
    ) -> AnnData:
        """:meth:`perturbation_effects` as perturbations × genes, for scanpy and decoupler.

        Returns
        -------
        AnnData. `X` and layer `lfc`: posterior means of natural-log fold changes; layers `log2fc`,
        `sd`, `lower`, `upper`, `lfsr`, `fdr`, `count`; `.obs` with perturbation, n_cells, n_up and
        n_down (genes listed at fdr <= .1) and media; `.var` with count_control.
        """
        asked = (perturbations, media, time, n_samples, credible_level)
        table = cast("pd.DataFrame", self.perturbation_effects(*asked))
        return effects_adata(table, self.fitted)

    @limit_threads
    def embeddings(
        self,
        of: str = "genes",
        perturbations: Sequence[str] | None = None,
        media: str | None = None,
        time: float | None = None,
        n_axes: int = 10,
        axes: str = "response",
        n_samples: int = 200,
        *,
        view: str | None = None,
    ) -> AnnData:
        """Genes, or perturbations, as points: coordinates along the principal axes of the response.

        Parameters
        ----------
        of
            "genes" or "perturbations".
        perturbations
            Labels whose effects span the axes; default: every single perturbation.
        media, time
            Where effects are taken; default: baseline medium, last time.
        n_axes
            At most.
        axes
            "response": singular vectors of the posterior mean of effects, the same for all draws.
            "state", of genes alone: principal axes along which resting cells differ; loadings of
            the model are points there, and their `sd` is NaN. "both": one beside the other.
        n_samples
            Posterior draws.
        view
            Of a model of several views: the features of one; default: of all.

        Returns
        -------
        AnnData of names × axes: `X` posterior mean, layer `sd`. Natural-log fold changes: a gene's
        coordinates have the root mean square of its change over perturbations for their length, as
        far as the axes show it, a perturbation's that over genes. `.var` has share, of the squared
        mean effects that an axis carries, and signal, the share of the squared coordinates that is
        not posterior variance. The index is named "symbol" for genes: ``to_df().to_csv(path)`` is
        what gene-benchmark's `PreComputedEncoder` reads.

        Raises
        ------
        UnknownLabelError
            If `of`, `axes`, a view or a perturbation is not known.
        """
        features = views_of(self.module.config, view)
        some = slice(None)
        if view is not None:
            assert features is not None
            some = features.slices[features.of(view)]
        names = self.screen.perturbations if perturbations is None else perturbations
        names = [names] if isinstance(names, str) else list(names)
        place = place_of(self.screen, media, time)
        return embeddings(self.fitted, of, names, *place, n_axes, axes, n_samples, some)

    @limit_threads
    def differential_expression(
        self,
        adata: AnnData | None = None,
        groupby: str | None = None,
        group1: str | Sequence[str] | None = None,
        group2: str | None = None,
        mode: str = "change",
        delta: float = 0.25,
        fdr_target: float = 0.05,
        media: str | None = None,
        time: float | None = None,
        n_samples: int = 200,
    ) -> pd.DataFrame:
        """Effects of perturbations or media with scvi-tools' columns of differential expression.

        Parameters
        ----------
        adata
            The cells that the model was fitted to; left out, those.
        groupby
            The registered column of perturbations, or that of media, in which control cells are
            compared; default: perturbations.
        group1
            Perturbations, combinations included, or media; default: every one.
        group2
            What they are compared with; default: control, or the baseline medium, which is the only
            choice there.
        mode
            "change": is the fold change larger than `delta`? scvi-tools' "vanilla" is not offered.
        delta
            Log2 fold change from which a gene counts as changed.
        fdr_target
            Expected share of genes that are not changed by `delta` among those listed.
        media, time
            Where to compare; default: baseline medium, last time.
        n_samples
            Posterior draws.

        Returns
        -------
        DataFrame, genes by comparison, the likeliest to be changed first: proba_de, proba_not_de,
        bayes_factor (log odds), scale1 and scale2 (shares of all counts), lfc_mean, lfc_median,
        lfc_std, lfc_min, lfc_max (log2), raw means, shares of cells that are not zero,
        `is_de_fdr_<fdr_target>`, comparison, group1, group2. proba_not_de is never below the local
        false sign rate of :meth:`perturbation_effects` (of media: :meth:`media_effects`), which
        hold more: intervals, and rates that a sign is wrong. Genes with too few counts in both
        groups are not listed.

        Raises
        ------
        ScreenError
            If the cells are compared by anything but their perturbation or medium.
        """
        keys = self.adata_manager.registry[SETUP_ARGS]
        key, media_key = keys["perturbation_key"], keys["media_key"]
        if mode != "change":
            raise ScreenError(f'mode="{mode}" is not offered; use mode="change"')
        if groupby not in (None, key, media_key):
            raise ScreenError(
                f'groupby="{groupby}" is neither the column of perturbations, "{key}", nor that of '
                f"media, {media_key!r}; what batches do is in batch_effects(), and other columns "
                "are not part of the model"
            )
        if adata is not None and adata is not self.adata:
            raise ScreenError(
                "effects are those of the cells the model was fitted to; leave out adata"
            )
        of_media = groupby is not None and groupby != key
        every = self.screen.media if of_media else self.screen.perturbations
        names = every if group1 is None else group1
        names = [names] if isinstance(names, str) else list(names)
        if time is None and self.screen.times:
            time = self.screen.times[-1]
        depth = float(np.exp(self._cells.log_size).mean())
        options = (time, delta, fdr_target, n_samples, depth)
        if of_media:
            return media_expression(self.fitted, names, group2, media, *options)
        reference = self.screen.control if group2 is None else group2
        media = self.screen.baseline_media if media is None else media
        return differential_expression(self.fitted, names, reference, media, *options)

    @limit_threads
    def to_rank_genes_groups(
        self,
        adata: AnnData,
        key_added: str = "rank_genes_groups",
        perturbations: Sequence[str] | None = None,
        media: str | None = None,
        time: float | None = None,
        n_samples: int = 200,
    ) -> None:
        """Put effects where scanpy's `rank_genes_groups` puts its own, so that its plots work.

        Parameters
        ----------
        adata
            Gets `.uns[key_added]`; nothing else of it changes. scanpy's plots look up `.obs` of the
            registered column of perturbations there.
        key_added, perturbations, media, time, n_samples
            As in scanpy and in :meth:`perturbation_effects`. `scores` are posterior mean over sd,
            `pvals` the local false sign rate, `pvals_adj` the expected share of wrong signs in the
            list that ends at a gene: neither is a p-value.
        """
        table = self.perturbation_effects(perturbations, media, time, n_samples)
        found = ranked_genes(cast("pd.DataFrame", table), self.screen.control)
        found["params"]["groupby"] = self.adata_manager.registry[SETUP_ARGS]["perturbation_key"]
        adata.uns[key_added] = found

    @limit_threads
    @limit_threads
    def signature(
        self,
        perturbation: str,
        n_genes: int = 10,
        media: str | None = None,
        time: float | None = None,
        test_size: float = 0.33,
        own_gene: bool = False,
        n_shuffles: int = 20,
        n_samples: int = 200,
        credible_level: float = 0.9,
        seed: int = 0,
    ) -> pd.DataFrame:
        """The few genes that tell cells of a perturbation from controls, on held-out cells.

        From the counts of some cells (log, at equal depth, batches adjusted for) genes are chosen
        one after the other, each for what the others leave (orthogonal matching pursuit among those
        that differ at a false discovery rate of .001; then by |z|), and a logistic regression on
        them is asked about the other cells. The posterior has no part in that.

        Parameters
        ----------
        perturbation
            A label that was measured, combinations included.
        n_genes
            Size of the panel.
        media, time
            Where; default: baseline medium, last time.
        test_size
            Share of the cells of the perturbation to hold out: whole batches, where two or more
            hold it and controls, and otherwise cells of each batch.
        own_gene
            Whether the perturbed gene itself may be in the panel.
        n_shuffles
            Of labels within batches, for the null.
        n_samples
            Posterior draws.
        credible_level
            Of `lower` and `upper`.
        seed
            Of the split, the shuffles and the intervals.

        Returns
        -------
        DataFrame with a row per gene of the panel: gene, rank, coefficient (log odds per standard
        deviation, in the whole panel); auroc_with, the probability that a held-out cell of the
        perturbation scores above a held-out control of its batch by this gene and those before it,
        with lower and upper (held-out cells resampled; the panel as it is); auroc_top_z, the same
        by as many genes with the largest |z| in the same cells; auroc_shuffled and shuffled_upper,
        mean and 95% of panels chosen with labels shuffled; auroc_all, by all genes; mean, sd and
        lfsr of the gene's effect in the posterior, z_rank, its place by |mean / sd| among all
        genes; n_train and n_test, cells of the perturbation; held_out, "cells" or which batches.

        Raises
        ------
        ScreenError
            If there are too few cells, or none share a batch with controls.
        UnknownLabelError
            If the perturbation is not in the screen.
        """
        place = place_of(self.screen, media, time)
        asked = n_genes, test_size, own_gene, n_shuffles, n_samples, credible_level, seed
        return signature(self.fitted, perturbation, *place, *asked)

    def effect_checks(self) -> pd.DataFrame:
        """Whether effects agree with the counts alone, and whether controls explain them.

        Returns
        -------
        DataFrame with check, value, verdict ("good", "poor" or "controls differ") and reason: the
        share of well-counted genes whose posterior mean is outside the 99% interval of
        `shrunken=False`, and the root mean square of what all perturbations do alike.
        """
        share = response_share(self.fitted)
        return effect_checks(self.perturbation_effects, self.screen, share=share)

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
        if max_epochs < 1 or n_cells < 2:
            raise ScreenError(f"max_epochs={max_epochs} must be at least 1, n_cells={n_cells} 2")
        if not self.screen.perturbations:
            raise ScreenError("the screen has no perturbation, so there are no labels to shuffle")
        arguments = dict(self.adata_manager.registry[SETUP_ARGS])
        some = shuffled_cells(self.adata, arguments, n_cells, seed)
        arguments["layer"] = None
        self.setup_anndata(some, **arguments)
        config = asdict(self.module.config)
        for name in ("composition", "n_covariates", "assume", "objective", "views"):
            config.pop(name)
        other = type(self)(some, priors=self.module.priors, **config)
        other.train(max_epochs=max_epochs, seed=seed, progress_bar=progress_bar)
        table = shuffle_table(other.perturbation_effects, other.screen, n_samples)
        self.shuffle_check_ = table
        return table

    def _check_conditions(self) -> None:
        """Raise ScreenError unless the cells' conditions are those of the model."""
        if self._cells.conditions is not None:
            raise ScreenError("the cells have conditions that this model was not built for")

    @property
    def _level_counts(self) -> LevelCounts:
        """The counts of all conditions as a likelihood of their levels; needs no training."""
        self._check_conditions()
        if self._counts is None:
            self._counts = counts_of_screen(self.screen, self._cells, self.module.priors)
        return self._counts

    @limit_threads
    def mask(self, n_samples: int = 400) -> pd.DataFrame:
        """On which axes of the response each perturbation has an effect, under a sparse prior.

        Needs ``PyroCell(adata, priors=Priors(effect="sparse"))``. What the cells say of an effect
        is taken out of the variational posterior and every set of axes is weighed by its marginal
        likelihood, effects summed out; see `pyrocell.posterior.mask`.

        Parameters
        ----------
        n_samples
            Posterior draws.

        Returns
        -------
        DataFrame with a row per perturbation and axis: perturbation, axis (as in
        :meth:`to_arviz`); inclusion, the probability that the perturbation has an effect there;
        prior; mean and sd of the effect in the posterior, size of its mean and the learned width of
        effects that are there, both as root mean square log-fold change over genes.

        Raises
        ------
        ScreenError
            If the model has another prior on effects.
        """
        return mask_table(self.fitted, n_samples)

    @limit_threads
    def batch_effects(
        self,
        n_samples: int = 200,
        credible_level: float = 0.9,
        by: str = "batch",
        view: str | None = None,
    ) -> pd.DataFrame:
        """η of every batch and gene: batch, gene, mean, sd, lower, upper (natural log).

        `by="laboratory"`: of every laboratory, the average over its batches. `view` is one of those
        of a model of several views; the table has then a column of that name.
        """
        features = views_of(self.module.config, view)
        if len(self.screen.batches) == 1:
            raise ScreenError(
                "the screen has one batch, so batch noise cannot be told from anything else; "
                "register a batch_key with at least two batches"
            )
        if by not in ("batch", "laboratory"):
            raise ScreenError(f'by="{by}" is neither "batch" nor "laboratory"')
        if by == "laboratory" and not self.screen.laboratories:
            raise ScreenError("the screen has no laboratories; register a laboratory_key")
        table = batch_effects(self.fitted, n_samples, credible_level, by)
        return rows_of_view(table, self.screen, features, view)

    @limit_threads
    def media_effects(
        self,
        media: str | Sequence[str] | None = None,
        time: float | None = None,
        n_samples: int = 200,
        credible_level: float = 0.9,
        view: str | None = None,
    ) -> pd.DataFrame:
        """Log-fold change of each gene of control cells in a medium, against the baseline medium.

        Parameters
        ----------
        media
            Labels; default: every medium beside the baseline.
        time
            Where to compare; default: the last time.
        n_samples
            Posterior draws, where the response was not measured in controls or is variational.
        credible_level
            Mass of the equal-tailed interval.
        view
            Of a model of several views; default: all, with a column of that name.

        Returns
        -------
        DataFrame with the columns of `perturbation_effects`: perturbation is the control; count is
        that of control cells in the medium and count_control that in the baseline medium.

        Raises
        ------
        ScreenError
            If the screen has no medium beside the baseline.
        """
        names = self.screen.media if media is None else media
        names = [names] if isinstance(names, str) else list(names)
        if time is None and self.screen.times:
            time = self.screen.times[-1]
        features = views_of(self.module.config, view)
        table = media_effects(self.fitted, names, time, n_samples, credible_level)
        return rows_of_view(table, self.screen, features, view)

    @limit_threads
    def media_gains(self, n_samples: int = 500, credible_level: float = 0.9) -> pd.DataFrame:
        """Gain of each perturbation on each medium's response: 0 blocked, 1 untouched.

        Of the hidden state, and so the same in every view.
        """
        if not self.screen.media:
            raise ScreenError(
                "the screen has one medium, so no gain can be asked for; register a media_key with "
                "at least one medium beside the baseline"
            )
        return media_gains(self.fitted, n_samples, credible_level)

    @limit_threads
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
        *,
        knowledge: KnowledgeOrNone | None = None,
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
            Depth of the cells predicted; default: the median of the data. With several views that
            of the first; the others are predicted at their median.
        credible_level
            Mass of the intervals.
        return_draws
            Return joint draws as an xarray.DataArray (draw, condition, gene) instead.
        batch_content
            What new batches contain, where batch noise depends on it: fractions of cells by name
            (the control's label, a medium, a type); default: as in the average batch.
        path, memory_budget, overwrite
            As in :meth:`perturbation_effects`; draws are written as they come.
        knowledge
            As in :meth:`perturbation_effects`: conditions may then name perturbations that are not
            in the screen, and `.obs` gets a column `unseen`. In combinations their effects add.

        Returns
        -------
        AnnData, conditions × genes: `.X` posterior mean, layers "lower", "upper", "sd". With
        `path`, an xarray.Dataset (condition, gene) of mean, sd, lower, upper.
        """
        if size_factor is None:
            size_factor = float(np.exp(np.median(self._cells.log_size)))
        return predict(
            self.fitted,
            conditions,
            n_samples,
            size_factor,
            credible_level,
            return_draws,
            progress(progress_bar),
            batch_content,
            OutputTarget(memory_budget, path, overwrite),
            knowledge,
        )

    @limit_threads
    def explain(
        self,
        perturbation: str | Mapping[str, Any] | pd.DataFrame | Protocol,
        gene: str | Sequence[str] | None = None,
        media: str | None = None,
        time: float | None = None,
        batch: str | None = None,
        against: str | Mapping[str, Any] | pd.DataFrame | Protocol | None = None,
        n_samples: int = 500,
        credible_level: float = 0.9,
        return_draws: bool = False,
        progress_bar: bool = False,
        *,
        by: str = "gene",
        scale: str = "effect",
        by_axis: bool = False,
        size_factor: float | None = None,
        view: str | None = None,
        knowledge: KnowledgeOrNone | None = None,
    ) -> pd.DataFrame | xr.DataArray:
        """The change of genes in a condition as a sum of what each step of the experiment does.

        Parameters
        ----------
        perturbation
            The condition: the label of a perturbation or combination, a table with one row or a
            dictionary as in :meth:`predict` (perturbation, media, time, perturbed_at, exposed_at,
            batch), or a `Protocol`.
        gene
            Name, or several; default: all.
        media, time, batch
            Of the condition, where it is given by its label; default: baseline medium, last time,
            the average over batches.
        against
            What it is compared with, in the same forms. A label: that in the same medium at the
            same time. A dictionary: what differs from the default, control cells in the baseline
            medium at the same time: ``{"media": "IFNG"}`` is the comparison of
            :meth:`perturbation_effects` in that medium.
        n_samples
            Joint posterior draws, those of :meth:`predict`.
        credible_level
            Mass of the equal-tailed intervals.
        return_draws
            Return the draws as an xarray.DataArray (draw, term, gene), the total as last term.
        by
            "gene": a row per gene and term. "step": a row per step of the experiment, over all
            genes asked for: the largest first, then the own transcript and the total.
        scale
            "effect": the change that :meth:`perturbation_effects` reports. "counts": that of the
            counts that :meth:`predict` expects, with one more term, what the share of other genes
            and the curves from states to counts add.
        by_axis
            A term for each axis of response, where there is no gene-level phase.
        size_factor
            Depth of the cells, for ``scale="counts"``; default: the median of the data.
        view
            Of a model of several views: the features of one.
        knowledge
            As in :meth:`perturbation_effects`, for perturbations that are not in the screen;
            `.attrs["neighbours"]` are then the perturbations and sources that carry the answer.

        Returns
        -------
        DataFrame. By gene: gene, term, step; mean, sd, lower, upper (natural-log fold change) and
        prob_direction; share, of the absolute sizes of all terms of the gene, posterior mean;
        n_cells, n_batches and conditions that say how large the term is, and measured, whether
        there are any. The last row of a gene is "total". In every draw the terms add up to it.
        By step: step, terms; size, the root mean square over genes of the posterior means; rms with
        lower and upper, the posterior of the root mean square, in which what is not known of each
        gene counts; prob_seen, how often what two draws have in common, the mean over genes of
        their products, is above .05²; share, of the sum of squares;
        value with value_lower and value_upper, the number named by value_of (the gain, or the
        change of the own transcript); and the cells behind it, as above.
        :func:`pyrocell.posterior.explain.sentences` says either in words.

        Raises
        ------
        ScreenError
            If more than one condition is asked for.
        UnknownLabelError
            If a label, a gene or a view is not in the screen.
        """
        if size_factor is None:
            size_factor = float(np.exp(np.median(self._cells.log_size)))
        request = ExplainRequest(
            perturbation=perturbation,
            gene=gene,
            media=media,
            time=time,
            batch=batch,
            against=against,
            n_samples=n_samples,
            credible_level=credible_level,
            by=by,
            scale=scale,
            by_axis=by_axis,
            view=view,
            knowledge=knowledge,
        )
        return explain(self.fitted, request, size_factor, return_draws, progress(progress_bar))

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

        Needs no training. See :func:`pyrocell.assumptions.steady_state.steady_state_screen` for the
        estimator and the columns.

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
            cells.size,
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

    @limit_threads
    def posterior_predictive_check(
        self,
        n_samples: int = 50,
        n_cells: int = 5000,
        credible_level: float = 0.99,
        view: str | None = None,
    ) -> pd.DataFrame:
        """Mean, variance and zero fraction of each gene, observed and in replicated data.

        Of a model of several views with a column `view`, and of one of them where it is asked for;
        cells that lack a view count as zero there, observed and replicated alike.
        """
        features = views_of(self.module.config, view)
        table = posterior_predictive_check(
            self.posterior, self._cells, self.screen.genes, n_samples, n_cells, credible_level
        )
        return rows_of_view(table, self.screen, features, view)

    @limit_threads
    def impute(
        self,
        view: str,
        adata: AnnData | MuData | None = None,
        indices: Sequence[int] | None = None,
        n_samples: int = 100,
        credible_level: float = 0.9,
        batch_size: int = 512,
        progress_bar: bool = False,
    ) -> AnnData:
        """A view of cells, measured in them or not, from the views that they have.

        Parameters
        ----------
        view
            Such as "protein".
        adata
            Cells, registered; default: those that the model was fitted to.
        indices
            Positions of cells; default: all.
        n_samples
            Joint draws of parameters and of the states of cells.
        credible_level
            Of the intervals.
        batch_size
            Cells worked on at once.
        progress_bar
            Show progress.

        Returns
        -------
        AnnData, cells × features of the view: `.X` expected counts, layer "sd" of what is expected,
        layers "lower" and "upper" an interval of the count that would be measured; `.obs` with
        `measured`, whether it was. Cells that have the view inform their own expected counts. Cells
        that lack it are predicted at the view's usual depth, in their own batch.
        """
        self._check_if_trained(warn=True)
        cells, obs = self._cells_of(adata)
        if indices is not None:
            cells, obs = cells.subset(np.asarray(indices)), obs.iloc[np.asarray(indices)]
        asked = view, n_samples, credible_level, batch_size
        return imputed(self.fitted, cells, obs, *asked, progress(progress_bar), self._seed)

    def lag(
        self,
        view: str,
        after: str | None = None,
        media: str | None = None,
        credible_level: float = 0.9,
    ) -> pd.DataFrame:
        """Whether a view follows another with a lag, from the counts; needs no training.

        Parameters
        ----------
        view
            Such as "protein".
        after
            The view it may follow; default: the first.
        media
            Where; default: the baseline medium.
        credible_level
            Of the interval.

        Returns
        -------
        DataFrame with one row: view, after; lag, the time constant with which one follows the
        other, in units of the screen's times, posterior median given that there is one, with lower
        and upper; log_bayes_factor for a lag against none, and posterior of a lag at even odds;
        n_times, n_features. Effects at each time are free; see `pyrocell.posterior.lag`.

        Raises
        ------
        ScreenError
            If there are fewer than three times after zero.
        """
        features = views_of(self.module.config, view)
        assert features is not None
        media = self.screen.baseline_media if media is None else media
        first = features.names[0] if after is None else after
        asked = features, view, first, media, credible_level
        return view_lag(self.screen, self._cells, self._level_counts, *asked)

    @limit_threads
    def network(
        self,
        regulators: str | Sequence[str] | None = None,
        targets: str | Sequence[str] | None = None,
        media: str | None = None,
        region: float = 0.1,
        credible_level: float = 0.9,
        n_samples: int = 200,
    ) -> pd.DataFrame:
        """Who regulates whom: directed edges with probabilities, direct effects against indirect.

        A sparse network is fitted to the effects of all perturbations at all times, with the errors
        of what explains carried on by joint draws; see `pyrocell.posterior.network.edges`.

        Parameters
        ----------
        regulators
            Labels of perturbations, or genes that were not perturbed; default: all perturbations
            that were measured alone.
        targets
            Genes; default: all.
        media
            Where; default: the baseline medium.
        region
            Natural-log fold change beyond which a direct effect counts as one, for p_size.
        credible_level
            Of the intervals.
        n_samples
            Posterior draws of the network.

        Returns
        -------
        DataFrame with a row per regulator and target: mean, sd, lower and upper of the size, the
        change of the target's log level (natural) when the regulator is lost and other perturbed
        genes are where they were, 0 in draws without the edge; probability of the edge; p_size =
        P(|size| > region); total, total_lower, total_upper: the whole effect of the perturbation at
        the last time, what goes through other genes included; rests_on: "measured" (the regulator
        was perturbed), "timed" (also at several times, so that the order of responses tells direct
        from indirect), "virtual" (it was not perturbed: size is what the target is in cells where
        the regulator is one natural-log unit lower, an association by the resting state); and
        identified, False for the last, whose probability is the learned share of edges among pairs.
        An edge is direct as far as the other perturbed genes go: what runs through a gene that was
        never perturbed looks direct.

        Raises
        ------
        UnknownLabelError
            If a regulator or target is not in the screen.
        ScreenError
            If no perturbation was measured alone there, or cells carry many guides.
        """
        media = self.screen.baseline_media if media is None else media
        asked = regulators, targets, media, region, credible_level, n_samples, self._seed
        return network_table(self.fitted, self._level_counts, *asked)

    @limit_threads
    def regulators(
        self,
        gene: str,
        media: str | None = None,
        region: float = 0.1,
        credible_level: float = 0.9,
        n_samples: int = 200,
        virtual: bool = False,
    ) -> pd.DataFrame:
        """What regulates a gene: the rows of :meth:`network` for one target, likeliest first.

        Parameters
        ----------
        gene
            The target.
        media, region, credible_level, n_samples
            As in :meth:`network`.
        virtual
            Also list genes that were not perturbed, by association alone (`identified` False).

        Returns
        -------
        DataFrame as of :meth:`network`.

        Raises
        ------
        UnknownLabelError
            If the gene is not in the screen.
        """
        media = self.screen.baseline_media if media is None else media
        asked = [gene], media, region, credible_level, n_samples, self._seed
        where = self.fitted, self._level_counts
        return regulator_table(network_table(*where, None, *asked, virtual=virtual))

    @limit_threads
    def temporal_shift(
        self,
        perturbations: Sequence[str] | None = None,
        media: str | None = None,
        n_samples: int = 200,
        credible_level: float = 0.9,
        seed: int = 0,
    ) -> pd.DataFrame:
        """How far each perturbation delays or advances the course of the controls, as one number.

        Levels under a perturbation are m(t) = c(t − δ) + o(t) in every gene: the controls' course,
        shifted by δ, and something else of a size that is learned; see
        `pyrocell.contrasts.shifted_course`.

        Parameters
        ----------
        perturbations
            Default: all of the screen, one at a time.
        media
            Where; default: the baseline medium.
        n_samples
            Draws from which `explained`, `other` and `effect` are.
        credible_level
            Of the intervals.
        seed
            Of these draws.

        Returns
        -------
        DataFrame with a row for each perturbation: perturbation, media; shift δ in units of the
        screen's times, above zero where it delays, the mean given that there is one, with sd, lower
        and upper; p_delayed, p_advanced and p_none, which sum to 1, at even odds of no shift
        beforehand; explained, the share of the squared effect that the shift explains, with
        explained_lower and explained_upper; other, the root mean square of the rest, and effect,
        that of the whole, natural-log fold change over genes and times; n_times, n_genes; testable,
        and reason where it is not.

        Raises
        ------
        UnknownLabelError
            If the screen has no such perturbation or medium.
        """
        media = self.screen.baseline_media if media is None else str(media)
        asked = perturbations, media, n_samples, credible_level, seed
        return temporal_shift(self.fitted, *asked)

    def to_mudata(self, answer: AnnData) -> MuData:
        """An answer over the features of all views, such as of `predict`, by view.

        Raises
        ------
        ScreenError
            If the model has one view, or the features are others.
        """
        features = self.module.config.features
        if features is None:
            raise ScreenError("the model has one view, and its answers are AnnData of that")
        if not answer.var_names.equals(self.screen.genes.astype(str)):
            raise ScreenError("the features of this AnnData are not those of the model")
        answer = answer.copy()
        answer.var["feature"] = var_table(self.adata)["feature"].to_numpy()
        return as_mudata(answer, features)

    @limit_threads
    def posterior_samples(
        self, n: int = 200, sites: Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        """Joint draws of the global sites by name, (n, ...) each."""
        return self.posterior.samples(n, None if sites is None else list(sites))

    @limit_threads
    def to_arviz(
        self,
        n: int = 200,
        sites: Sequence[str] | None = None,
        *,
        perturbations: Sequence[str] | None = None,
        groups: Sequence[str] = ("posterior",),
        cells: int | Sequence[int] = 200,
        genes: Sequence[str] | None = None,
        memory_budget: int | float | str = MEMORY_BUDGET,
    ) -> az.InferenceData | Any:
        """Joint draws as ArviZ takes them (InferenceData or DataTree), their dimensions named.

        The model page lists sites, dimensions and labels. `effect` (perturbation, gene) is what
        :meth:`perturbation_effects` summarises: natural-log fold changes in the baseline medium at
        the last time. Its draws are those of single genes given the counts and do not belong to the
        same draw of the sites. Draws are no Markov chain; they are laid out as four where there are
        16 or more and a multiple of 4, so that ArviZ's `r_hat` and `ess` are defined. Sites that
        are the same in all draws are then in the group `constant_data`, unless `sites` names them.

        Parameters
        ----------
        n
            Draws.
        sites
            Sites, "effect" among them; default: all.
        perturbations
            Of `effect`; default: every single one.
        groups
            Also "observed_data", "posterior_predictive" (counts drawn for the same cells, each with
            a state drawn from the guide) and "log_likelihood" (of each cell, its state averaged
            out), for `az.plot_ppc` and `az.loo`.
        cells
            How many cells, drawn at random, or which, in those groups.
        genes
            Of `effect` and of counts; default: all.
        memory_budget
            Bytes, or a text such as "2 GiB", that the draws may take.

        Raises
        ------
        ScreenError
            If the draws would not fit (the message says what to leave out), or a site, group or
            cell is not there.
        """
        names = self.screen.perturbations if perturbations is None else perturbations
        columns = positions_of(self.screen.genes, genes)
        some = chosen_cells(len(self._cells), cells)
        sites = [sites] if isinstance(sites, str) else sites and list(sites)
        names = [names] if isinstance(names, str) else list(names)
        groups = [groups] if isinstance(groups, str) else list(groups)
        wanted = Wanted(n, sites, names, columns, tuple(groups), some, memory_budget)
        return to_arviz(
            self.fitted, wanted, self.posterior_samples, self.adata_manager.covariate_names
        )

    # ------------------------------------------------------------------ questions about cells
    @limit_threads
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
        *,
        knowledge: KnowledgeOrNone | None = None,
    ) -> AnnData | xr.Dataset:
        """Expected counts of the same cells under another treatment (eq. 6).

        A cell keeps its resting state, batch and depth. Default: control, baseline, last time.
        `path`, `memory_budget`, `overwrite`, `knowledge`: as in
        :meth:`PyroCell.perturbation_effects`; with knowledge `.obs` gets a column `unseen`.

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
        bar, keep = progress(progress_bar), OutputTarget(memory_budget, path, overwrite)
        asked = target, n_samples, credible_level, bar, keep, knowledge
        return counterfactual(self.fitted, cells, obs, *asked)

    @limit_threads
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
        fit = self.fitted
        blocks = latent(fit, cells, batch_size)
        axes = "axis", [f"z{i + 1}" for i in range(fit.model.config.n_latent)]
        bar, keep = progress(progress_bar), OutputTarget(MEMORY_BUDGET, path, overwrite)
        return cells_by(blocks, "latent", obs, axes, batch_size, bar, keep)

    @limit_threads
    def get_normalized_expression(
        self,
        adata: AnnData | None = None,
        library_size: float | str | None = 1.0,
        batch_corrected: bool = True,
        batch_size: int = 2048,
        progress_bar: bool = False,
        path: str | Path | None = None,
        overwrite: bool = False,
        *,
        indices: Sequence[int] | None = None,
        gene_list: Sequence[str] | None = None,
        n_samples: int | None = None,
        return_mean: bool = True,
        return_numpy: bool = False,
    ) -> pd.DataFrame | np.ndarray | xr.Dataset:
        """Expected expression of each cell, (cells, genes); without batch noise if corrected.

        Parameters
        ----------
        adata
            Cells with the columns that were registered; default: those of the model.
        library_size
            Sum of each cell; "latent" or None: the cell's own depth.
        batch_corrected
            Leave out batch noise and covariates.
        batch_size
            Cells at a time.
        progress_bar
            Show progress.
        path, overwrite
            Write there, as a zarr store, `batch_size` cells at a time; replace what is there.
        indices, gene_list
            Positions of cells and names of genes; default: all.
        n_samples
            Posterior draws of states and parameters; default: at posterior means, as fast as one.
        return_mean
            Average over draws; otherwise (n_samples, cells, genes), which is refused above 2 GiB.
        return_numpy
            An array in the place of a table.

        Returns
        -------
        DataFrame, array, or with `path` an xarray.Dataset with `expression` (cell, gene).

        Raises
        ------
        UnknownLabelError
            If a gene is not in the model.
        """
        cells, obs = self._cells_of(adata)
        if library_size == "latent":
            library_size = None
        if library_size is not None and not (
            not isinstance(library_size, str) and 0 < library_size < np.inf
        ):
            raise ScreenError(
                f"library_size={library_size!r} must be above 0; None: each cell's own depth"
            )
        if indices is not None:
            rows = np.arange(len(obs))[np.asarray(indices)]
            cells, obs = cells.subset(rows), obs.iloc[rows]
        columns = positions_of(self.screen.genes, gene_list)
        genes = "gene", self.screen.genes if columns is None else self.screen.genes[columns]
        shared = (self.fitted, cells, batch_size, library_size, batch_corrected, columns)
        bar, keep = progress(progress_bar), OutputTarget(MEMORY_BUDGET, path, overwrite)
        if n_samples is None:
            blocks = normalised(*shared)
            values = cells_by(blocks, "expression", obs, genes, batch_size, bar, keep)
        else:
            if path is not None:
                raise ScreenError("path= holds posterior means; leave out n_samples, or path")
            values = normalised_draws(*shared, n_samples, return_mean, MEMORY_BUDGET)
        if isinstance(values, xr.Dataset):
            return values
        if return_numpy or values.ndim == 3:
            return values
        return pd.DataFrame(values, index=obs.index, columns=genes[1])

    @limit_threads
    def get_marginal_ll(
        self, adata: AnnData | None = None, n_mc_samples: int = 100, batch_size: int = 512
    ) -> pd.Series:
        """Importance-weighted log-likelihood of each cell, nats; globals from the posterior."""
        cells, obs = self._cells_of(adata)
        values = importance_log_likelihood(self.posterior, cells, n_mc_samples, batch_size)
        return pd.Series(values, index=obs.index, name="log_likelihood")

    @limit_threads
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
        frame, order = requested(conditions, self.screen)
        if size_factor is None:
            size_factor = float(np.exp(np.median(self._cells.log_size)))
        wanted = n_samples, n_cells, size_factor, path, overwrite
        return simulate_cells(self.fitted, frame, order, *wanted)

    @limit_threads
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
        frame, order = requested(conditions, self.screen)
        blocks = normalised(self.fitted, self._cells, 2048, 1.0, True)
        return fate_proportions(
            self.fitted,
            frame,
            order,
            blocks,
            obs_table(self.adata)[key],
            n_samples,
            credible_level,
            progress(progress_bar),
        )


def _views_of(cells: CellTensors) -> tuple[dict[str, Any], ...]:
    """Views as the model's settings have them; none where there is one."""
    if cells.views is None:
        return ()
    views = cells.views
    every = zip(views.names, cells.kinds, views.sizes, views.own_controls, strict=True)
    return tuple(
        {"name": name, "kind": kind, "size": size} | ({"controls": own} if own else {})
        for name, kind, size, own in every
    )


def join_views(
    mdata: MuData,
    modalities: Mapping[str, str],
    batch_key: str | Mapping[str, str] | None,
    kinds: Mapping[str, str] | None,
    layers: Mapping[str, str | None] | None,
    arguments: Mapping[str, Any],
    isotypes: Sequence[str] = (),
    path: str | Path | None = None,
    links: pd.DataFrame | None = None,
) -> tuple[AnnData, str | None]:
    """One AnnData of the modalities of views by name, and its column of batches.

    Parameters are those of :meth:`PyroCell.setup_mudata`; `arguments` of `setup_anndata` say which
    columns must be there, and none may be of one view.
    """
    for known, names in ((USUAL, modalities), (modalities, kinds or ())):
        unknown = [view for view in names if view not in known]
        if unknown:
            raise UnknownLabelError(
                f'"{unknown[0]}" is no view{did_you_mean(unknown[0], list(known))}'
            )
    for argument in ("size_factor_key", "guide_key", "guide_matrix_key", "layer"):
        if arguments.get(argument) is not None:
            instead = ", and name layers={...}" if argument == "layer" else ""
            raise ScreenError(f"{argument} is of one view; with several leave it out{instead}")
    what = {view: (kinds or {}).get(view, USUAL[view]) for view in modalities}
    depths = {view: depth_of(kind) for view, kind in what.items()}
    needed = [v for k, v in arguments.items() if k.endswith("_key") and v]
    for several in ("categorical_covariate_keys", "continuous_covariate_keys"):
        needed += list(arguments.get(several) or ())
    needed.append(arguments.get("perturbation_key", "perturbation"))
    if isinstance(batch_key, str):
        needed.append(batch_key)
    if len(isotypes) and "protein" not in modalities:
        raise ScreenError("isotypes are features of proteins; name their modality in protein=")
    controls = {"protein": list(isotypes)} if len(isotypes) else None
    links = None if links is None else _checked_links(links, mdata, modalities)
    return joined(mdata, modalities, what, depths, batch_key, layers, needed, controls, path, links)


def _checked_links(
    links: pd.DataFrame, mdata: MuData, modalities: Mapping[str, str]
) -> pd.DataFrame:
    """Links of regions to genes as `joined` takes them."""
    for view in ("rna", "chromatin"):
        if view not in modalities:
            raise ScreenError(f"links are between rna and chromatin; name the modality in {view}=")
    for column in ("region", "gene"):
        if column not in links:
            raise UnknownLabelError(f'links has no column "{column}"{did_you_mean(column, links)}')
    weight = links["weight"] if "weight" in links else pd.Series(1.0, links.index)
    if not (np.isfinite(weight) & (weight > 0)).all():
        raise ScreenError("weights of links must be above 0")
    genes, regions = (mdata.mod[modalities[v]].var_names for v in ("rna", "chromatin"))
    known = links["gene"].isin(genes) & links["region"].isin(regions)
    if not known.any():
        raise UnknownLabelError(
            f"none of the {len(links)} links is between a gene of "
            f'mdata["{modalities["rna"]}"] and a region of mdata["{modalities["chromatin"]}"]'
            f"; there are: {genes[0]}, {regions[0]}, ..."
        )
    found = {"first": links["gene"], "second": links["region"], "weight": weight}
    out = pd.DataFrame(found)[known].astype({"first": str, "second": str, "weight": float})
    return out.assign(view="chromatin")
