"""An AnnData registered as a screen, through scvi-tools' manager and fields."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from pyrocell._compat import (
    MODEL_NAME,
    REGISTRY_KEYS,
    SETUP_ARGS,
    SETUP_METHOD,
    AnnDataManager,
    fields,
    managers_of,
    materialise_view,
    obs_table,
    own_identity,
    var_table,
)
from pyrocell._core.messages import did_you_mean, join_names
from pyrocell.data.backed import BackedCounts, is_stored
from pyrocell.data.covariates import with_covariates
from pyrocell.data.fingerprint import Fingerprint
from pyrocell.data.guide_matrix import read_guide_sets
from pyrocell.data.joined import VIEWS, features_of, log_depths, plain
from pyrocell.data.own_genes import own_columns, warn_of_guides
from pyrocell.data.setup import ScreenSetup
from pyrocell.data.statistics import CountStatistics, count_sums
from pyrocell.data.time_zero import warn_of_time_zero
from pyrocell.data.validation import (
    as_csr,
    batch_totals,
    check_counts,
    check_sparse,
    check_totals,
    check_values,
    count_matrix,
    location,
    warn_of_absent_genes,
)
from pyrocell.errors import ScreenError, UnknownLabelError
from pyrocell.screen.feature_views import FeatureViews
from pyrocell.screen.label_reading import control_label, read_perturbations, warn_of_labels
from pyrocell.screen.labels import check_text, encode_labels
from pyrocell.screen.screen import Screen
from pyrocell.screen.sets import GuideSets

__all__ = ["CellTensors", "ScreenManager", "cell_tensors", "register", "screen_of"]

_ROLES = (
    "perturbation batch media time guide perturbation_type perturbation_time media_time laboratory"
).split()
_REGISTRY_ENTRY = "pyrocell"  # beside scvi-tools' own entries in the manager's registry


class CellTensors(NamedTuple):
    """What the model sees of each cell beside its labels.

    Attributes
    ----------
    counts
        (N, G) float32 CSR, in memory or stored.
    log_size_factor
        (N,) float32 natural logarithm of depth.
    covariates
        (N, n_cov) float32: continuous ones standardised, categorical ones as 0/1 per level after
        the first.
    covariate_names
        (n_cov,) "age" or "donor[d2]".
    sums
        What starting values need of all counts.
    views, kinds
        Views of the features, and what the counts of each are; None where there is one.
    """

    counts: sp.csr_matrix | BackedCounts
    log_size_factor: np.ndarray
    covariates: np.ndarray
    covariate_names: tuple[str, ...]
    sums: CountStatistics
    views: FeatureViews | None = None
    kinds: tuple[str, ...] = ()


class ScreenManager(AnnDataManager):
    """An AnnDataManager that checks everything before it touches the AnnData.

    Attributes
    ----------
    screen
        The registered cells as a `Screen`; after a transfer, in terms of the source's labels.
    source, others
        Registry entry of the screen that these are more cells of; managers by their AnnData's uuid.
    """

    screen: Screen
    source: Mapping[str, Any] | None
    others: Mapping[str, AnnDataManager] | None = None
    fingerprint: Fingerprint | None = None

    _adata: Callable[[], AnnData | None] = staticmethod(lambda: None)

    @property
    def adata(self) -> AnnData | None:
        """The registered AnnData."""
        return self._adata()

    @adata.setter
    def adata(self, value: AnnData | None) -> None:
        self._adata = lambda: value

    def hold_weakly(self, managers: dict[str, AnnDataManager]) -> None:
        """Leave the AnnData to its users, and a table of managers when it is gone.

        A class keeps its managers for good, and through them would keep every AnnData.
        """
        key, adata = self.adata_uuid, self.adata
        self._adata = weakref.ref(adata)

        def forget() -> None:
            if managers.get(key) is self:
                del managers[key]

        weakref.finalize(adata, forget)

    def check_unchanged(self) -> None:
        """Raise ScreenError if the AnnData has changed since it was registered."""
        if self.fingerprint is None:
            return
        adata = self.adata
        assert adata is not None  # who asks holds it
        counts = None
        if self.fingerprint.counts is not None:
            layer = self.registry[SETUP_ARGS]["layer"]
            counts = count_matrix(adata, layer)
            check_sparse(counts, layer)
        columns, matrix = list(self.fingerprint.columns), self.fingerprint.matrix_key
        self.fingerprint.check(Fingerprint.of(adata, counts, columns, matrix))

    @property
    def covariate_names(self) -> tuple[str, ...]:
        """Columns of the covariates: "age" or "donor[d2]"."""
        return _covariate_names(self.registry[_REGISTRY_ENTRY]["covariates"])

    def register_fields(
        self, adata: AnnData, source_registry: dict | None = None, **transfer_kwargs: Any
    ) -> None:
        """Check and register an AnnData; with `source_registry`, as more cells of that screen."""
        args = self.registry[SETUP_ARGS]
        source = (source_registry or {}).get(_REGISTRY_ENTRY)
        screen = _read_screen(adata, args, source)
        levels = _read_covariates(adata, args) if source is None else source["covariates"]
        covariates = _encode_covariates(adata, levels)
        if source is None:
            screen = with_covariates(screen, covariates, _covariate_names(levels))
        _check_kinds(adata, args, source_registry)
        materialise_view(adata)
        own_identity(adata, self.others or {})
        if source_registry is not None and "field_registries" not in source_registry:
            source_registry = None  # read from a model's file, which keeps the screen alone
        if source_registry is not None:
            # Combinations of known perturbations may be new; all else was checked above.
            transfer_kwargs["extend_categories"] = True
        with warnings.catch_warnings():
            # Says a category code; the screen has named the perturbation already.
            warnings.filterwarnings("ignore", message="Category .* has fewer than 3 cells")
            super().register_fields(adata, source_registry, **transfer_kwargs)
        self.screen, self.source = screen, source
        counts = count_matrix(adata, args["layer"], stored=True)
        in_memory = None if is_stored(counts) else counts
        matrix = args.get("guide_matrix_key")
        self.fingerprint = Fingerprint.of(adata, in_memory, _columns_read(args), matrix)
        self.registry[_REGISTRY_ENTRY] = {
            "screen": screen.to_dict() if source is None else source["screen"],
            "covariates": levels,
        }
        if VIEWS in adata.uns:
            kept = adata.uns[VIEWS] if source is None else source.get("views", adata.uns[VIEWS])
            self.registry[_REGISTRY_ENTRY]["views"] = plain(kept)


def _columns_read(args: Mapping[str, Any]) -> list[str]:
    """Columns of `.obs` that a setup names."""
    elsewhere = ("gene_symbol_key", "guide_matrix_key")
    keys = [v for k, v in args.items() if k.endswith("_key") and k not in elsewhere]
    for several in (args["categorical_covariate_keys"], args["continuous_covariate_keys"]):
        keys.extend(several or ())
    return [key for key in keys if key is not None]


def _check_kinds(adata: AnnData, args: Mapping[str, Any], source: Mapping | None) -> None:
    """Raise unless labels that scvi-tools encodes are all text or all numbers, as at the fit."""
    keys = [(name, args[name]) for name in ("batch_key", "perturbation_key") if args[name]]
    keys += [
        ("categorical_covariate_keys", key) for key in args["categorical_covariate_keys"] or ()
    ]
    for name, key in keys:
        values = pd.unique(np.asarray(adata.obs[key].dropna().astype(object)))
        text = [value for value in values if isinstance(value, str)]
        if text and len(text) < len(values):
            other = next(value for value in values if not isinstance(value, str))
            raise ScreenError(
                f'{name}="{key}" holds text ("{text[0]}") and numbers ({other}); make all of them '
                f'text: adata.obs["{key}"] = adata.obs["{key}"].astype(str)'
            )
    before = (source or {}).get("field_registries", {})
    for field, (name, key) in zip(("batch", "labels"), keys, strict=False):
        state = before.get(field, {}).get("state_registry", {})
        known = state.get("categorical_mapping")
        if known is None or not len(known):
            continue
        was_text = isinstance(known[0], str)
        is_text = isinstance(adata.obs[key].iloc[0], str)
        if was_text != is_text:
            kind = "text" if was_text else "numbers"
            to = "str" if was_text else "int"
            raise ScreenError(
                f'{name}="{key}" held {kind} when the model was fitted; make it so again: '
                f'adata.obs["{key}"] = adata.obs["{key}"].astype({to})'
            )


def _column(adata: AnnData, key: str, argument: str, optional: bool = True) -> pd.Series:
    """Return a column of `.obs`, or raise UnknownLabelError with close matches."""
    if key not in adata.obs:
        optional = optional and not argument.endswith("_keys")  # covariates have no default
        without = f"; {argument}=None if there is none" if optional else ""
        raise UnknownLabelError(
            f'{argument}="{key}" is not a column of adata.obs'
            f"{did_you_mean(key, adata.obs.columns)}{without}"
        )
    column = obs_table(adata)[key]
    if isinstance(column, pd.DataFrame):
        raise ScreenError(
            f'{argument}="{key}" names {column.shape[1]} columns of adata.obs; keep one'
        )
    return column


def _check_object(adata: Any) -> None:
    """Raise unless `adata` is an AnnData in memory with cells, genes and unique gene names."""
    if not isinstance(adata, AnnData):
        hint = ""
        if hasattr(adata, "mod"):
            hint = (
                '; pass one modality, mdata.mod["rna"], or register several together with '
                "PyroCell.setup_mudata"
            )
        raise ScreenError(f"adata is a {type(adata).__name__}, not an AnnData{hint}")
    if adata.isbacked and adata.is_view:
        raise ScreenError(
            f'adata is a view of the file "{adata.filename}"; load its cells first: '
            "adata = adata.to_memory()"
        )
    var = var_table(adata)
    types = var["feature_types"].astype(str) if "feature_types" in var else None
    if types is not None and types.nunique() > 1 and (types == "Gene Expression").any():
        others = types[types != "Gene Expression"].value_counts()
        raise ScreenError(
            f"adata has {int(others.sum())} rows that are no genes ("
            f"{join_names(f'{n} {kind}' for kind, n in others.items())}), whose counts would be "
            "taken for expression and depth; leave them out with adata = "
            'adata[:, adata.var["feature_types"] == "Gene Expression"].copy()'
        )
    if not adata.n_obs or not adata.n_vars:
        raise ScreenError(f"adata has {adata.n_obs} cells and {adata.n_vars} genes; nothing to fit")
    check_text(adata.var_names.astype(str), "adata.var_names")
    if not adata.var_names.is_unique:
        twice = adata.var_names[adata.var_names.duplicated()].unique()
        raise ScreenError(
            f"adata.var_names has {len(twice)} gene names more than once ({join_names(twice)}); "
            "make them unique with adata.var_names_make_unique(), or add up their counts"
        )


def _check_genes(adata: AnnData, genes: pd.Index) -> None:
    """Raise unless the genes are the ones the model was fitted on, in the same order."""
    here = pd.Index(adata.var_names, dtype=object)
    there = pd.Index(genes, dtype=object)
    if here.equals(there):
        return
    missing, extra = there.difference(here), here.difference(there)
    if len(missing):
        raise UnknownLabelError(
            f"adata lacks {len(missing)} of the {len(there)} genes of the model "
            f"({join_names(missing)}){did_you_mean(missing[0], extra) if len(extra) else ''}"
        )
    what = f"{len(extra)} genes that the model does not have" if len(extra) else "another order"
    raise ScreenError(f"adata.var_names has {what}; pass adata[:, model.adata.var_names].copy()")


def _numbers(adata: AnnData, key: str, argument: str) -> np.ndarray:
    """Return a column of finite numbers as (N,) float64, or raise ScreenError."""
    column = _column(adata, key, argument)
    if not pd.api.types.is_numeric_dtype(column.dtype) or column.dtype.kind == "c":
        raise ScreenError(
            f'{argument}="{key}" holds {column.dtype} values such as "{column.iloc[0]}"; numbers '
            f'are needed: adata.obs["{key}"] = adata.obs["{key}"].astype(float)'
        )
    values = column.to_numpy(dtype=np.float64)
    bad = int((~np.isfinite(values)).sum())
    if bad:
        raise ScreenError(
            f'{argument}="{key}" has {bad} of {len(values)} cells with NaN or infinite values; '
            "fill them in, or leave those cells out"
        )
    return values


def _check_size_factor(adata: AnnData, key: str | None) -> None:
    """Raise unless the size factors are numbers above zero."""
    if key is None:
        return
    values = _numbers(adata, key, "size_factor_key")
    if (values <= 0).any():
        raise ScreenError(
            f'size_factor_key="{key}" has {int((values <= 0).sum())} cells with values ≤ 0, the '
            f"lowest {values.min():g}; a size factor is the depth of a cell, such as its total "
            "counts, not a logarithm"
        )


def screen_of(adata: AnnData, args: Mapping[str, Any]) -> Screen:
    """The screen of some cells and features of a registered AnnData; nothing is registered."""
    return _read_screen(adata, args, None, checked=True)


def _read_screen(
    adata: AnnData, args: Mapping[str, Any], source: Mapping | None, checked: bool = False
) -> Screen:
    """Check an AnnData against the arguments of the setup and read its labels.

    `checked` where its counts are known to be some.
    """
    _check_object(adata)
    like = None if source is None else Screen.from_dict(source["screen"])
    if like is not None:
        _check_genes(adata, like.genes)
    columns, values = {}, {}
    for role in _ROLES:
        argument, key = f"{role}_key", args.get(f"{role}_key")
        columns[role] = argument if key is None else f'{argument}="{key}"'
        found = key is not None
        values[role] = _column(adata, key, argument) if found else None
    _check_size_factor(adata, args["size_factor_key"])
    if args.get("guide_matrix_key") is not None:
        values["perturbation"] = read_guide_sets(adata, args, all_occur=like is None)
        columns["perturbation"] = f'guide_matrix_key="{args["guide_matrix_key"]}"'
    labels, separator = values["perturbation"], args.get("combination_separator", "+")
    where = columns["perturbation"]
    control = control_label(args["control"])
    if isinstance(labels, GuideSets):
        labels = None  # whose targets were read with them
    elif labels is not None:
        values["perturbation"] = read_perturbations(
            labels, args["control"], separator, where, all_occur=like is None
        )
    if not checked:  # counts in a file are checked when they are first read
        checked = is_stored(count_matrix(adata, args["layer"], stored=True))
    if not checked:
        check_counts(adata, args["layer"], **_count_options(args, like))
    if values["perturbation_type"] is None:
        values["perturbation_type"] = args["perturbation_type"]
        columns["perturbation_type"] = "perturbation_type"
    if like is None and labels is not None:
        numbers = pd.Series(np.asarray(values["perturbation"])).astype(str).value_counts()
        occurring = {str(label): int(n) for label, n in numbers.items()}
        warn_of_labels(occurring, control, adata.var_names, where)
    screen = Screen.from_labels(
        adata.var_names,
        **values,
        control=control,
        baseline_media=args["baseline_media"] if like is None else like.baseline_media,
        columns=columns,
        like=like,
    )
    if like is None:
        screen = replace(screen, own_columns=_own_columns(adata, screen, args))
    if like is None and not checked:
        counts = count_matrix(adata, args["layer"])
        totals = batch_totals(counts, screen.cell_batch, len(screen.batches))
        warn_of_absent_genes(totals, screen.batches, adata.var_names)
    if adata.n_vars == 1 and args["size_factor_key"] is None:
        raise ScreenError(
            "adata has one gene, whose share of all counts is always 1; name the depth of cells "
            "over all genes in size_factor_key="
        )
    if len(screen.batches) == adata.n_obs > len(screen.conditions):
        raise ScreenError(
            f"{columns['batch']} has another value in every cell, so no two cells share a batch; "
            "name the column of lanes, plates or days, or batch_key=None"
        )
    return screen


def _own_columns(adata: AnnData, screen: Screen, args: Mapping[str, Any]) -> np.ndarray:
    """(K,) column of each perturbation's own gene; -1 if not measured, or aimed at none."""
    out = np.full(len(screen.perturbations), -1, dtype=np.int64)
    aimed = np.array([kind != "treatment" for kind in screen.perturbation_types], dtype=bool)
    genes = [gene for gene, at in zip(screen.perturbation_genes, aimed, strict=True) if at]
    out[aimed] = own_columns(adata, genes, args.get("gene_symbol_key"))
    warn_of_guides(adata, genes)
    return out


def _count_options(args: Mapping[str, Any], like: Any) -> dict[str, bool]:
    """What `check_counts` is to be told; genes are judged when a screen is first seen."""
    return {"has_size_factor": args["size_factor_key"] is not None, "warn_of_genes": like is None}


def _read_covariates(adata: AnnData, args: Mapping[str, Any]) -> dict[str, dict[str, list]]:
    """Levels of each categorical covariate, mean and sd of each continuous one."""
    categorical, continuous = {}, {}
    for key in args["categorical_covariate_keys"] or ():
        argument = "categorical_covariate_keys"
        where = f'{argument}="{key}"'
        categorical[key] = encode_labels(_column(adata, key, argument), where)[1]
        n_levels = len(categorical[key])
        if n_levels == 1 or n_levels == adata.n_obs:
            found = "one value in all cells" if n_levels == 1 else "another value in every cell"
            raise ScreenError(f"{where} has {found}, so nothing depends on it; leave it out")
    for key in args["continuous_covariate_keys"] or ():
        values = _numbers(adata, key, "continuous_covariate_keys")
        if values.std() == 0:
            raise ScreenError(
                f'continuous_covariate_keys="{key}" is {values[0]:g} in all cells, so nothing '
                "depends on it; leave it out"
            )
        continuous[key] = [float(values.mean()), float(values.std())]
    return {"categorical": categorical, "continuous": continuous}


def _encode_covariates(adata: AnnData, levels: Mapping[str, Mapping[str, list]]) -> np.ndarray:
    """Covariates (N, n_cov) float32, in terms of the levels first registered."""
    blocks = [np.zeros((adata.n_obs, 0))]
    for key, known in levels["categorical"].items():
        where = f'categorical_covariate_keys="{key}"'
        codes, labels = encode_labels(_column(adata, key, "categorical_covariate_keys"), where)
        unknown = [label for label in labels if label not in known]
        if unknown:
            raise UnknownLabelError(
                f'{where} has the value "{unknown[0]}", which the model never saw'
                f"{did_you_mean(unknown[0], known)}"
            )
        position = np.array([known.index(label) for label in labels])[codes]
        blocks.append(np.eye(len(known))[position][:, 1:])
    for key, (mean, sd) in levels["continuous"].items():
        values = _numbers(adata, key, "continuous_covariate_keys")
        blocks.append(((values - mean) / sd)[:, None])
    return np.hstack(blocks).astype(np.float32)


def _covariate_names(levels: Mapping[str, Mapping[str, list]]) -> tuple[str, ...]:
    names = [f"{key}[{v}]" for key, known in levels["categorical"].items() for v in known[1:]]
    return (*names, *levels["continuous"])


def register(
    cls: type | None, adata: AnnData, source_registry: dict | None = None, **arguments: Any
) -> ScreenManager:
    """Check an AnnData and register it for a model class, whose name goes into the registry.

    Arguments, errors and warnings are those of :meth:`pyrocell.PyroCell.setup_anndata`.
    """
    args = asdict(ScreenSetup(**arguments))
    setup = {
        MODEL_NAME: getattr(cls, "__name__", "PyroCell"),
        SETUP_METHOD: "setup_anndata",
        SETUP_ARGS: args,
    }
    manager = ScreenManager(fields=_fields(args), setup_method_args=setup)
    manager.others = managers_of(cls)
    manager.register_fields(adata, source_registry)
    return manager


def _fields(args: Mapping[str, Any]) -> list[Any]:
    """Fields of scvi-tools for the columns it knows; the others are read by the screen."""
    keys = REGISTRY_KEYS
    return [
        # Its own test of counts looks at 20 values, and draws them from numpy's global generator.
        fields.LayerField(keys.X_KEY, args["layer"], is_count_data=False),
        fields.CategoricalObsField(keys.BATCH_KEY, args["batch_key"]),
        fields.CategoricalObsField(keys.LABELS_KEY, args["perturbation_key"]),
        fields.NumericalObsField(keys.SIZE_FACTOR_KEY, args["size_factor_key"], required=False),
        fields.CategoricalJointObsField(keys.CAT_COVS_KEY, args["categorical_covariate_keys"]),
        fields.NumericalJointObsField(keys.CONT_COVS_KEY, args["continuous_covariate_keys"]),
    ]


def cell_tensors(manager: ScreenManager) -> CellTensors:
    """Return counts, depth and covariates of the registered cells; all counts are read once.

    CountError if what a file holds are not counts; those in memory were checked at registration.
    """
    args, adata = manager.registry[SETUP_ARGS], manager.adata
    assert adata is not None  # who asks holds it
    manager.check_unchanged()
    log_size = None
    if args["size_factor_key"] is not None:
        size = _numbers(adata, args["size_factor_key"], "size_factor_key")
        log_size = np.log(size).astype(np.float32)
    matrix = count_matrix(adata, args["layer"], stored=True)
    found, views = features_of(adata), None
    in_file = is_stored(matrix)
    counts: Any = BackedCounts(matrix, location(args["layer"])) if in_file else as_csr(matrix)
    if found is not None:
        depths = log_depths(adata, counts, found[0])
        views, first = (found[0], depths), depths[:, 0]
        usual = np.median(first[np.isfinite(first)]) if np.isfinite(first).any() else 0.0
        log_size = np.where(np.isfinite(first), first, usual).astype(np.float32)
    if in_file:
        sums = _checked_sums(manager, counts, log_size, views)
    else:
        sums = count_sums(counts, manager.screen, log_size, views=views)
    if manager.source is None:
        warn_of_time_zero(sums, manager.screen)
    covariates = _encode_covariates(adata, manager.registry[_REGISTRY_ENTRY]["covariates"])
    whole = (counts, sums.log_size, covariates, manager.covariate_names, sums)
    return CellTensors(*whole) if found is None else CellTensors(*whole, found[0], tuple(found[1]))


def _checked_sums(
    manager: ScreenManager,
    counts: BackedCounts,
    log_size: np.ndarray | None,
    views: tuple[FeatureViews, np.ndarray] | None,
) -> CountStatistics:
    """Sums of counts in a file, and what `register` says of counts in memory."""
    args, adata, screen = manager.registry[SETUP_ARGS], manager.adata, manager.screen
    assert adata is not None

    def look(block: sp.csr_matrix, first_cell: int) -> None:
        check_values(adata, block, args["layer"], first_cell)

    sums = count_sums(counts, screen, log_size, look, views)
    options = _count_options(args, manager.source)
    check_totals(adata, args["layer"], sums.total, sums.batch.sum(0), **options)
    if manager.source is None:
        warn_of_absent_genes(sums.batch, screen.batches, adata.var_names)
    return sums
