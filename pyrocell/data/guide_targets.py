"""What guides target, in the forms in which it is given, as one dictionary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from pyrocell._core.messages import join_names
from pyrocell.errors import ScreenError

__all__ = ["COLUMNS", "plain_targets"]

COLUMNS = ("target", "gene", "target_gene_name")  # of a table of targets, the first that it has
_GUIDE = "guide"


def plain_targets(targets: Any) -> dict[str, str] | str | None:
    """Targets of guides as a dictionary, the name of an entry of `.uns`, or None.

    Raises
    ------
    ScreenError
        If they are of another kind, a table without columns guide and target, or name a guide
        twice.
    """
    if targets is None or isinstance(targets, str):
        return targets
    if isinstance(targets, pd.DataFrame):
        column = next((name for name in COLUMNS if name in targets), None)
        if column is None:
            raise ScreenError(
                "guide_targets is a table without a column target or gene; it has "
                f"{join_names(targets.columns)}"
            )
        index = targets[_GUIDE] if _GUIDE in targets else targets.index
        targets = pd.Series(targets[column].to_numpy(), index=pd.Index(index))
    if isinstance(targets, pd.Series):
        names = targets.index.astype(str)
        if names.has_duplicates:
            raise ScreenError(
                f"guide_targets names {join_names(names[names.duplicated()].unique())} more than "
                "once; give each guide one target (A+B if it has two)"
            )
        if targets.isna().any():
            raise ScreenError(
                f"guide_targets has no target for {join_names(names[targets.isna().to_numpy()])}; "
                "give guides without target the label of the control"
            )
        targets = dict(zip(names, targets, strict=True))
    if not isinstance(targets, Mapping):
        raise ScreenError(
            f"guide_targets is a {type(targets).__name__}; give a table with columns guide and "
            "gene, a dictionary, or the name of such an entry of adata.uns"
        )
    return {str(guide): str(target).strip() for guide, target in targets.items()}
