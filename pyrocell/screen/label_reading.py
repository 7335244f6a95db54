"""Labels as laboratories write them: several names of controls, other separators, leftovers.

What is changed is what was asked for; what only looks wrong is said, with the remedy.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import pandas as pd

from pyrocell._core.messages import join_names
from pyrocell.errors import UnknownLabelError, warn
from pyrocell.screen.labels import CONTROL_SPELLINGS, encode_labels, split_label

__all__ = ["control_label", "read_perturbations", "warn_of_labels"]

PLUS = "plus"  # what a "+" that joins nothing becomes
_LEFTOVERS = (
    "multiplet doublet multiple multi unassigned unassign unknown undetermined negative none "
    "ambiguous other noguide nosgrna unmapped na"
).split()
_SEPARATORS = "_|,;&/"
_GENE = re.compile(r"^[A-Za-z][\w.-]+$")


def _plain(label: str) -> str:
    return re.sub(r"[^a-z0-9]", "", label.casefold())


def _looks_like_control(label: str) -> bool:
    """A usual name of controls, or one with a number after it."""
    return re.sub(r"\d+$", "", _plain(label)) in CONTROL_SPELLINGS


def control_label(control: str | Sequence[str]) -> str:
    """The label that all controls get: the first that is no pattern, else "control"."""
    named = [control] if isinstance(control, str) else list(control)
    return next((name for name in named if not _is_pattern(name)), "control")


def _is_pattern(name: str) -> bool:
    return "*" in name or "?" in name


def read_perturbations(
    values: Any,
    control: str | Sequence[str],
    separator: str | None,
    column: str,
    all_occur: bool = True,
) -> Any:
    """Labels with one name for the controls, and combinations joined by "+".

    Parameters
    ----------
    values
        (N,) labels.
    control
        Label of unperturbed cells, or several; "*" and "?" stand for any characters, any one.
    separator
        What joins the genes of a combination; None: nothing does. A "+" that joins nothing becomes
        "plus".
    column
        How the column is called in messages.
    all_occur
        Whether each name of controls has to be in the column; not in a few cells of a known screen.

    Raises
    ------
    UnknownLabelError
        If one of several names of controls has to be a label of the column, and is none.
    """
    if isinstance(control, str) and not _is_pattern(control) and separator == "+":
        return values
    codes, labels = encode_labels(values, column)
    named = [control] if isinstance(control, str) else [str(name) for name in control]
    is_control = np.zeros(len(labels), bool)
    for name in named:
        pattern = name.replace("[", "[[]")  # only * and ? stand for something else
        matches = np.array([fnmatchcase(label, pattern) for label in labels], bool)
        if all_occur and not matches.any():
            raise UnknownLabelError(
                f'{column} has no label that equals, or fits, control="{name}"; it has '
                f"{join_names(labels, 8)}"
            )
        is_control |= matches
    one = control_label(control)
    read = [one if c else _joined(label, separator) for c, label in zip(is_control, labels)]
    return pd.Series(np.array(read, dtype=object)[codes], name=getattr(values, "name", None))


def _joined(label: str, separator: str | None) -> str:
    if separator == "+":
        return label
    label = label.replace("+", PLUS)
    return label if separator is None else label.replace(separator, "+")


def warn_of_labels(
    labels: Mapping[str, int], control: str, genes: Iterable[str], column: str
) -> None:
    """Warn of labels that are probably no perturbations, or combinations that were not split.

    Parameters
    ----------
    labels
        Number of cells by label, as the column has it.
    control
        Label of unperturbed cells.
    genes
        Names of genes.
    column
        How the column is called in messages.

    Warns
    -----
    ScreenWarning
        For each kind, naming the labels and the remedy.
    """
    if control not in labels:  # an error that says so is about to come
        return
    known = set(genes)
    others = [label for label in labels if label != control]
    single = {label for label in others if "+" not in label}
    like_control = [label for label in others if _looks_like_control(label)]
    if like_control:
        warn(
            f"{column}: {_counted(like_control, labels)} look like controls and are fitted as "
            f"perturbations; if they are, say control={[control, *like_control][:4]!r}, or with a "
            'pattern such as control="non-targeting*"'
        )
    leftover = [label for label in others if _plain(label) in _LEFTOVERS and label not in known]
    leftover = [label for label in leftover if label not in like_control]
    if leftover:
        warn(
            f"{column}: {_counted(leftover, labels)} look like leftovers of guide calling and are "
            "fitted as perturbations; leave such cells out: "
            f"adata[~adata.obs[column].isin({leftover[:4]!r})].copy()"
        )
    for sign in _SEPARATORS:
        joined = [label for label in single if sign in label and _parts_known(label, sign, single)]
        if joined:
            warn(
                f'{column}: {_counted(joined, labels)} are other labels joined by "{sign}" and are '
                "fitted as perturbations of their own; if they are combinations, say "
                f'combination_separator="{sign}"'
            )
    odd: dict[str, str] = {}  # parts that look like no gene, and a label of each
    for label in others:
        if "+" in label and all(part.strip() for part in label.split("+")):
            for gene, _ in split_label(label, control):
                if gene not in single and gene not in known and not _GENE.match(gene):
                    odd.setdefault(gene, label)
    if odd:
        gene, label = next(iter(odd.items()))
        warn(
            f'{column}: "{label}" was split at "+" into genes that do not exist, such as '
            f'"{gene}"; if the "+" joins no genes (a strand, say), pass '
            "combination_separator=None, or rename these labels"
        )


def _parts_known(label: str, sign: str, labels: set[str]) -> bool:
    parts = [part.strip() for part in label.split(sign)]
    return len(parts) > 1 and all(part in labels for part in parts)


def _counted(found: Sequence[str], cells: Mapping[str, int]) -> str:
    return join_names(f'"{label}" ({cells[label]} cells)' for label in found)
