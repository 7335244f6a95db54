"""The column of each perturbation's own gene, whatever vocabulary names of genes are in."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd
from anndata import AnnData

from pyrocell._compat import var_table
from pyrocell._core.messages import did_you_mean, join_names
from pyrocell.errors import UnknownLabelError, warn

__all__ = ["own_columns", "warn_of_guides"]

_ENOUGH = 0.5  # share of perturbed genes found, below which other columns are looked at


def own_columns(adata: AnnData, genes: Sequence[str], key: str | None) -> np.ndarray:
    """Column of the own gene of each perturbation, (K,) int64, -1 where it is not measured.

    Names are looked up in `.var[key]`, or in `.var_names`; where these have less than half of them
    and one column of `.var` has more than half, in that column. Upper and lower case are told apart
    only where both occur.

    Parameters
    ----------
    genes
        (K,) perturbed genes.
    key
        Column of `.var` with the names of genes that labels use; None: it is found.

    Raises
    ------
    UnknownLabelError
        If there is no such column.

    Warns
    -----
    ScreenWarning
        If a column was found, or less than half of the perturbed genes were.
    """
    if key is not None:
        if key not in adata.var:
            raise UnknownLabelError(
                f'gene_symbol_key="{key}" is not a column of adata.var'
                f"{did_you_mean(key, adata.var.columns)}"
            )
        found = _matched(var_table(adata)[key], genes)
        _warn_of_few(found, genes, f'adata.var["{key}"]')
        return found
    found = _matched(adata.var_names, genes)
    if not len(genes) or (found >= 0).mean() >= _ENOUGH:
        return found
    var = var_table(adata)
    texts = [c for c in var if not pd.api.types.is_numeric_dtype(var[c].dtype)]
    others = {column: _matched(var[column], genes) for column in texts}
    good = {c: match for c, match in others.items() if (match >= 0).mean() >= _ENOUGH}
    if len({tuple(match) for match in good.values()}) == 1:
        column = next(iter(good))
        warn(
            f"{int((found < 0).sum())} of {len(genes)} perturbed genes are not among "
            f'adata.var_names, and adata.var["{column}"] has {int((good[column] >= 0).sum())} of '
            f'them: these are taken; say gene_symbol_key="{column}" to say so yourself'
        )
        return good[column]
    _warn_of_few(found, genes, "adata.var_names")
    return found


def warn_of_guides(adata: AnnData, genes: Sequence[str]) -> None:
    """Warn of rows that are guides of the perturbed genes by their names, and no genes.

    Warns
    -----
    ScreenWarning
        Naming them: their counts are taken for expression and depth.
    """
    known = "|".join(re.escape(gene) for gene in sorted(set(genes), key=len, reverse=True))
    if not known:
        return
    before = rf"(?:sg|guide)[-_ ]?(?:{known})(?:[-_.]?\w+)?"
    guide = re.compile(rf"^(?:{before}|(?:{known})[-_]g\d+)$", re.I)
    found = [name for name in adata.var_names.astype(str) if guide.match(name)]
    if found:
        warn(
            f"{len(found)} rows are guides by their names ({join_names(found, 3)}), and their "
            "counts are taken for expression and depth: all genes then look lower where a guide "
            "is; leave these rows out"
        )


def _matched(names: pd.Series | pd.Index, genes: Sequence[str]) -> np.ndarray:
    """Position of each gene among names; in any case where that is unambiguous."""
    text = pd.Index(names.astype(str))
    exact = pd.Series(np.arange(len(text)), text)
    exact = exact[~exact.index.duplicated()]
    lower = pd.Series(np.arange(len(text)), text.str.casefold())
    lower = lower[~lower.index.duplicated(keep=False)]
    return np.array(
        [exact.get(gene, lower.get(gene.casefold(), -1)) for gene in genes], dtype=np.int64
    )


def _warn_of_few(found: np.ndarray, genes: Sequence[str], where: str) -> None:
    missing = [gene for gene, at in zip(genes, found, strict=True) if at < 0]
    if len(genes) and len(missing) > len(genes) * _ENOUGH:
        warn(
            f"{len(missing)} of {len(genes)} perturbed genes are not in {where} "
            f"({join_names(missing, 3)}), so the change of a perturbed gene's own transcript "
            "cannot be left out of its response; where the genes were measured under other "
            "names, name the column of adata.var that has those of the labels in gene_symbol_key="
        )
