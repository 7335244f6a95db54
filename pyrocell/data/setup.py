"""The arguments of `setup_anndata`, declared once for the class, the registration and the shell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from typing import Any

import numpy as np
import pandas as pd

from pyrocell.data.guide_targets import plain_targets
from pyrocell.errors import ScreenError
from pyrocell.screen.labels import PERTURBATION_TYPES

__all__ = ["COLUMNS", "ScreenSetup", "resembling_columns"]

_COLUMN, _LABEL = "COLUMN", "LABEL"
# How columns are usually called that an argument could have named.
_LOOKS_LIKE = {
    "batch_key": "batch lane plate library gem_group replicate channel".split(),
    "media_key": "media medium stim stimulus stimulation treatment drug condition cytokine".split(),
    "time_key": "time day days hour hours timepoint time_point".split(),
    "guide_key": "guide guides sgrna grna guide_id sgrna_id".split(),
    "laboratory_key": "lab laboratory site".split(),
    "categorical_covariate_keys": "donor patient cell_line sex genotype".split(),
}


def _argument(default: Any, help: str, metavar: str = _COLUMN, **more: Any) -> Any:
    return field(default=default, metadata={"help": help, "metavar": metavar, **more})


@dataclass(frozen=True, kw_only=True)
class ScreenSetup:
    """Columns of `.obs`, and labels in them; see :meth:`pyrocell.PyroCell.setup_anndata`.

    The metadata of each field are the `help`, `metavar` and `choices` of its option in the shell.
    """

    layer: str | None = _argument(None, "layer of the counts; .X if not given", "NAME")
    batch_key: str | None = _argument("batch", "'' where there is none")
    perturbation_key: str | None = _argument(
        "perturbation", "genes, combinations joined by +; '' where nothing was perturbed"
    )
    control: str | Sequence[str] = _argument(
        "control", "of unperturbed cells; may hold * and ?", _LABEL
    )
    combination_separator: str | None = _argument(
        "+", "joins the genes of a combination; '' where nothing does", "SIGN"
    )
    perturbation_type: str = _argument(
        "knockout", "of all cells", _LABEL, choices=PERTURBATION_TYPES
    )
    perturbation_type_key: str | None = _argument(None, "type of each cell")
    media_key: str | None = _argument(None, "medium or stimulus")
    baseline_media: str | None = _argument(
        "baseline", "of the medium without stimulus; '' where all cells met one stimulus", _LABEL
    )
    time_key: str | None = _argument(None, "times as numbers")
    perturbation_time_key: str | None = _argument(
        None, "when each cell was perturbed, on the clock of the times"
    )
    media_time_key: str | None = _argument(
        None, "when each cell met its medium, on the clock of the times"
    )
    gene_symbol_key: str | None = _argument(
        None, "column of .var with the names of genes that the labels use; found if not given"
    )
    guide_key: str | None = _argument(
        None, "guide of each cell; guides differ in strength, cells may not have responded"
    )
    guide_matrix_key: str | None = _argument(
        None,
        "entry of .obsm, cells by guides, of cells with several guides; in the place of a column "
        "of perturbations",
        "NAME",
    )
    guide_targets: Any = _argument(  # noqa: RUF009
        None,
        "target of each guide: a table .csv or .tsv with columns guide and gene, or an entry of "
        ".uns",
        "TABLE",
    )
    guide_threshold: float | None = _argument(
        None,
        "least value of the matrix with which a cell has a guide; needed for counts",
        "X",
        type=float,
    )
    laboratory_key: str | None = _argument(None, "laboratory that made each batch")
    size_factor_key: str | None = _argument(
        None, "depth of each cell; its total counts if not given"
    )
    categorical_covariate_keys: Sequence[str] | None = _argument(
        None, "a categorical covariate; may be repeated"
    )
    continuous_covariate_keys: Sequence[str] | None = _argument(
        None, "a continuous covariate; may be repeated"
    )

    def __post_init__(self) -> None:
        one = not isinstance(self.control, (list, tuple, set, np.ndarray, pd.Index, pd.Series))
        control = str(self.control) if one else [str(name) for name in self.control]
        object.__setattr__(self, "control", control)
        if not self.control:
            raise ScreenError(
                f"control={self.control!r} names no label; give the label of unperturbed cells"
            )
        for name in ("categorical_covariate_keys", "continuous_covariate_keys"):
            keys = getattr(self, name)
            if keys is not None:
                keys = [keys] if isinstance(keys, str) else list(keys)
            object.__setattr__(self, name, keys)
        object.__setattr__(self, "guide_targets", plain_targets(self.guide_targets))
        if self.guide_matrix_key is not None:
            self._check_matrix()
        for argument in fields(self):
            if argument.name.endswith(("_key", "_keys")) or argument.name == "layer":
                _check_name(argument.name, getattr(self, argument.name))

    def _check_matrix(self) -> None:
        """Leave out the column whose place the matrix takes; refuse what goes with it."""
        object.__setattr__(self, "perturbation_key", None)
        for name in ("perturbation_type_key", "guide_key"):
            if getattr(self, name) is not None:
                raise ScreenError(
                    f"{name} is of cells with one guide each and cannot be read beside "
                    "guide_matrix_key; "
                    + (
                        "say perturbation_type=, or targets such as GENE (CRISPRa)"
                        if name == "perturbation_type_key"
                        else "leave it out"
                    )
                )


def _check_name(argument: str, value: Any) -> None:
    """Raise ScreenError unless an argument is a name, several where it takes them, or None."""
    for name in value if argument.endswith("_keys") and value is not None else [value]:
        if name is not None and not isinstance(name, str | int):
            what = {"layer": "a layer", "guide_matrix_key": "an entry of adata.obsm"}.get(
                argument, "a column of adata.obs"
            )
            raise ScreenError(
                f"{argument} is given a {type(name).__name__}; give the name of {what}, or None"
            )


COLUMNS: tuple[Field, ...] = fields(ScreenSetup)


def resembling_columns(
    columns: Sequence[str], arguments: Mapping[str, Any]
) -> dict[str, list[str]]:
    """Columns that look as if they belonged to the screen, by the argument that names none.

    Parameters
    ----------
    columns
        Of `.obs`.
    arguments
        Of `setup_anndata`.
    """
    taken = set()
    for name, value in arguments.items():
        if name.endswith(("_key", "_keys")):
            taken.update([value] if isinstance(value, str) else value or ())
    found = {}
    for argument, words in _LOOKS_LIKE.items():
        alike = [c for c in columns if c not in taken and c.casefold() in words]
        if alike and not arguments.get(argument):
            found[argument] = alike
    return found
