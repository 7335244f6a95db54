"""Another model of the same kind, of other cells."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from anndata import AnnData

from pyrocell._compat import SETUP_ARGS
from pyrocell.assumptions.spec import Assume
from pyrocell.generative.population_objective import DistributionObjective

if TYPE_CHECKING:
    from pyrocell.model import PyroCell

__all__ = ["again"]


def again(model: PyroCell, adata: AnnData, changes: Mapping[str, Any] | None = None) -> PyroCell:
    """An untrained model of other cells, registered and built as a model was.

    Parameters
    ----------
    model
        The model whose registration and options to take; it is left as it is.
    adata
        Cells with the columns that were registered.
    changes
        Arguments of the constructor to change.
    """
    arguments = model.adata_manager.registry[SETUP_ARGS]
    type(model).setup_anndata(adata, **arguments)
    config = model.module.config
    known = inspect.signature(type(model)).parameters
    options = {k: getattr(config, k) for k in known if hasattr(config, k)}
    options |= {
        "assume": [Assume(**a) for a in config.assume],
        "objective": config.objective and DistributionObjective(**config.objective),
        "priors": model.module.priors,
    }
    return type(model)(adata, **(options | dict(changes or {})))
