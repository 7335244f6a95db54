"""Every import that is private to another package, or moves between its versions.

Checked against scvi-tools 1.4.2 (Python 3.11) and 1.5.1 (Python 3.12); `tests/test_registration.py`
holds a test for each name.
"""

from __future__ import annotations

from typing import Any

from anndata import AnnData
from scvi import REGISTRY_KEYS
from scvi.data import AnnDataManager, fields
from scvi.data._utils import _check_if_view

__all__ = [
    "MODEL_NAME",
    "REGISTRY_KEYS",
    "SETUP_ARGS",
    "SETUP_METHOD",
    "AnnDataManager",
    "fields",
    "inference_data",
    "materialise_view",
]

# Keys of an AnnDataManager's registry, in scvi.data._constants on both versions.
MODEL_NAME = "model_name"
SETUP_METHOD = "setup_method_name"
SETUP_ARGS = "setup_args"


def inference_data(
    draws: dict[str, Any], coords: dict[str, Any], dims: dict[str, list[str]]
) -> Any:
    """ArviZ' container of posterior draws: InferenceData before ArviZ 1.0, a DataTree since."""
    import arviz as az  # a tenth of the time that pyrocell takes to import; few ask for it

    if int(az.__version__.split(".")[0]) >= 1:
        return az.from_dict({"posterior": draws}, coords=coords, dims=dims)
    return az.from_dict(posterior=draws, coords=coords, dims=dims)


def materialise_view(adata: AnnData) -> None:
    """Turn a view into an AnnData of its own, in place; its parent stays as it is."""
    _check_if_view(adata, copy_if_view=True)
