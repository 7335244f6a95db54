"""What was done to the counts, a line for each step, kept with them."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import pandas as pd
from anndata import AnnData

__all__ = ["STEPS", "Step", "add_step", "steps"]

STEPS = "pyrocell_steps"  # entry of .uns
_COLUMNS = ["name", "rule", "before", "after"]


@dataclass(frozen=True)
class Step:
    """A step of the work on the counts.

    Parameters
    ----------
    name
        What was done, such as "filter cells".
    rule
        The rule, with its numbers, in words.
    before, after
        How many cells there were and are; of steps that filter or choose genes, how many genes.
    """

    name: str
    rule: str
    before: int
    after: int


def steps(adata: AnnData) -> pd.DataFrame:
    """What was done to some counts, in order.

    Parameters
    ----------
    adata
        What a function of this module returned.

    Returns
    -------
    Table with the columns name, rule, before, after; without rows where nothing was done. It is
    kept in `.uns["pyrocell_steps"]`, survives writing as .h5ad, and may be handed to
    `pyrocell.report.write`.
    """
    found = adata.uns.get(STEPS)
    return pd.DataFrame(columns=_COLUMNS) if found is None else pd.DataFrame(found)[_COLUMNS].copy()


def add_step(adata: AnnData, step: Step) -> AnnData:
    """The same object with one more line, which replaces the table and leaves the old one alone."""
    table = pd.concat([steps(adata), pd.DataFrame([asdict(step)])], ignore_index=True)
    table.index = table.index.astype(str)  # as files have it
    adata.uns[STEPS] = table.astype({"name": str, "rule": str, "before": int, "after": int})
    return adata
