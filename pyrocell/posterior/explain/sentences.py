"""The tables of an explanation in words, from their numbers alone."""

from __future__ import annotations

import pandas as pd

from pyrocell.errors import ScreenError
from pyrocell.posterior.explain.tables import REGION, TOTAL
from pyrocell.posterior.explain.terms import (
    BATCH,
    COMBINED,
    ITSELF,
    MEDIUM,
    ON_MEDIUM,
    OWN,
    PACE,
    READING,
    TIME,
    UNSEEN,
)

__all__ = ["sentences"]

_SURE = 0.9
_BLOCKED = 0.5
_SAID = {
    ITSELF: "By itself it moves genes by",
    MEDIUM: "The medium moves genes of control cells by",
    COMBINED: "Together the perturbations differ from the sum of each alone by",
    PACE: "That the drivers act together, and not one by one, adds",
    TIME: "The course of control cells in time adds",
    BATCH: "The batch adds",
    UNSEEN: "What was not measured adds",
    READING: "The scale on which the change is read adds",
}


def sentences(table: pd.DataFrame, n: int = 5) -> list[str]:
    """What a table of `PyroCell.explain` says.

    Parameters
    ----------
    table
        By step, or by gene.
    n
        Genes that are written out, those with the largest change first.

    Returns
    -------
    Sentences. Sizes are root mean squares over genes of natural-log fold changes, with the interval
    of the table; a step is said to be seen where `prob_seen` is .9.

    Raises
    ------
    ScreenError
        If the table is not one of `explain`.
    """
    if "condition" not in table.attrs or not {"step", "lower", "upper"} <= set(table):
        raise ScreenError(
            "the table is not from model.explain, or lost its attrs on the way; give the table as "
            "it was returned"
        )
    return _of_steps(table) if table.attrs["by"] == "step" else _of_genes(table, n)


def _range(row: pd.Series, value: str, lower: str, upper: str) -> str:
    return f"{row[value]:.2f} ({row[lower]:.2f} to {row[upper]:.2f})"


def _of_steps(table: pd.DataFrame) -> list[str]:
    attrs, whole = table.attrs, table[table["step"] == TOTAL].iloc[0]
    steps = table[table["step"] != TOTAL]
    genes = "gene" if attrs["n_genes"] == 1 else "genes"
    out = [
        f"{attrs['condition']} against {attrs['against']}: {attrs['n_genes']:,} {genes} change by "
        f"{_range(whole, 'rms', 'lower', 'upper')} (root mean square of natural-log fold changes)."
    ]
    seen = steps["prob_seen"] >= _SURE
    for _, row in steps[seen].iterrows():
        out.append(_step(row))
    if (steps["step"] == OWN).any() and not seen[steps["step"] == OWN].all():
        own = steps[steps["step"] == OWN].iloc[0]  # one gene of many is little of a mean square
        if own["value_of"] and (own["value_lower"] > 0 or own["value_upper"] < 0):
            out.append(_step(own))
            seen = seen | (steps["step"] == OWN)
    if (~seen).any():
        names = ", ".join(steps["step"][~seen])
        out.append(f"Not told from nothing (below {REGION:.2f}): {names}.")
    return out


def _step(row: pd.Series) -> str:
    size, value = _range(row, "rms", "lower", "upper"), ""
    if row["value_of"]:
        value = _range(row, "value", "value_lower", "value_upper")
    if row["step"] == OWN:
        if value:
            return f"Its own transcript changes by {value}."
        return f"The own transcripts change by {size} over all genes."
    if row["step"] == ON_MEDIUM:
        said = "It leaves the medium's response as large as in controls, gene by gene it differs"
        if row["value_upper"] < _BLOCKED:
            said = "It blocks the medium's response"
        elif row["value_upper"] < 1:
            said = "It weakens the medium's response"
        elif row["value_lower"] > 1:
            said = "It strengthens the medium's response"
        return f"{said}: gain {value}, which moves genes by {size}."
    return f"{_SAID[row['step']]} {size}."


def _of_genes(table: pd.DataFrame, n: int) -> list[str]:
    total = table[table["term"] == TOTAL].set_index("gene")
    order = total["mean"].abs().sort_values(ascending=False, kind="stable").index[:n]
    against = table.attrs["against"]
    out = []
    for gene in order:
        rows = table[(table["gene"] == gene) & (table["term"] != TOTAL)]
        sure = rows[(rows["lower"] > 0) | (rows["upper"] < 0)]
        sure = sure.sort_values("mean", key=abs, ascending=False, kind="stable")
        parts = [f"{r['term']} {r['mean']:+.2f}" for _, r in sure.iterrows()]
        said = ", ".join(parts) if parts else "no term alone is told from zero"
        whole = _range(total.loc[gene], "mean", "lower", "upper")
        out.append(f"{gene} in {table.attrs['condition']} against {against}: {whole}; {said}.")
    return out
