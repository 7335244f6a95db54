"""Every import that is private to another package, or moves between its versions.

Checked against scvi-tools 1.4.2 (Python 3.11) and 1.5.1 (Python 3.12); `tests/test_registration.py`
holds a test for each name.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, cast

import pandas as pd
from anndata import AnnData
from scvi import REGISTRY_KEYS
from scvi.data import AnnDataManager, fields
from scvi.data._utils import _assign_adata_uuid, _check_if_view
from scvi.train._progress import ProgressBar as EpochBar

__all__ = [
    "MODEL_NAME",
    "REGISTRY_KEYS",
    "SETUP_ARGS",
    "SETUP_METHOD",
    "AnnDataManager",
    "EpochBar",
    "fields",
    "inference_data",
    "managers_of",
    "materialise_view",
    "obs_table",
    "own_identity",
    "var_table",
]

# Keys of an AnnDataManager's registry, in scvi.data._constants on both versions.
MODEL_NAME = "model_name"
SETUP_METHOD = "setup_method_name"
SETUP_ARGS = "setup_args"

_IDENTITY = "_scvi_uuid"  # entry of `.uns` by which scvi-tools finds a registered AnnData


def inference_data(
    groups: dict[str, dict[str, Any]], coords: dict[str, Any], dims: dict[str, list[str]]
) -> Any:
    """ArviZ' container of groups of draws: InferenceData before ArviZ 1.0, a DataTree since."""
    import arviz as az  # a tenth of the time that pyrocell takes to import; few ask for it

    if int(az.__version__.split(".")[0]) >= 1:
        return az.from_dict(groups, coords=coords, dims=dims)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="More chains")
        named: dict[str, Any] = {**groups, "coords": coords, "dims": dims}
        return az.from_dict(**named)


def materialise_view(adata: AnnData) -> None:
    """Turn a view into an AnnData of its own, in place; its parent stays as it is."""
    _check_if_view(adata, copy_if_view=True)


def obs_table(adata: AnnData) -> pd.DataFrame:
    """`.obs` as a table; anndata's types allow for one that is lazy, which pyrocell never makes."""
    return cast("pd.DataFrame", adata.obs)


def var_table(adata: AnnData) -> pd.DataFrame:
    """`.var` as a table; see `obs_table`."""
    return cast("pd.DataFrame", adata.var)


def managers_of(cls: type | None) -> Mapping[str, AnnDataManager]:
    """Managers of the AnnData registered for a model class, by the AnnData's identity."""
    return getattr(cls, "_setup_adata_manager_store", {})


def own_identity(adata: AnnData, managers: Mapping[str, AnnDataManager]) -> None:
    """Give a copy of a registered AnnData, which carries its identity, one of its own."""
    manager = managers.get(adata.uns.get(_IDENTITY, ""))
    if manager is not None and manager.adata is not adata:
        _assign_adata_uuid(adata, overwrite=True)
