"""Labels of cells: turned into codes, split into perturbations, compared with what is known."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from pyrocell._core.messages import did_you_mean
from pyrocell.errors import ConflictingTypesError, ScreenError, UnknownLabelError

__all__ = [
    "CONTROL_SPELLINGS",
    "PERTURBATION_TYPES",
    "check_text",
    "encode_labels",
    "perturbation_type",
    "split_label",
]

PERTURBATION_TYPES = ("knockout", "CRISPRi", "CRISPRa", "treatment")
_TYPE_SPELLINGS = {
    "knockout": "knockout",
    "ko": "knockout",
    "crisprko": "knockout",
    "crispr-ko": "knockout",
    "crispri": "CRISPRi",
    "crispra": "CRISPRa",
    "treatment": "treatment",
    "drug": "treatment",
    "compound": "treatment",
    "stimulus": "treatment",
}
# Not synonyms, RNAi and cDNA are no CRISPR, but what most who write them mean.
_TYPE_HINTS = {
    "knockdown": "CRISPRi",
    "kd": "CRISPRi",
    "repression": "CRISPRi",
    "activation": "CRISPRa",
    "overexpression": "CRISPRa",
    "oe": "CRISPRa",
    "deletion": "knockout",
}
_TYPED_GENE = re.compile(r"^(?P<gene>.+?)\s*\((?P<type>[^()]+)\)$")
_STEM = re.compile(r"[-_. ]?\d+$")
_MISSING = {"", "nan", "NaN", "None", "<NA>"}
# Names that laboratories give to unperturbed cells; they are offered when `control` is not found.
CONTROL_SPELLINGS = (
    "control ctrl nt ntc neg negctrl nontargeting nontarget safetargeting safeharbor scramble "
    "scrambled unperturbed untreated wt wildtype mock aavs1 rosa26"
).split()


def control_suggestion(value: str, labels: Sequence[str]) -> str:
    """Suggest the label that is probably the control: by usual names first, then by spelling."""
    numbered = [label for label in labels if _STEM.sub("", label).casefold() == value.casefold()]
    if len(numbered) > 1:
        return (
            f'; {len(numbered)} labels begin with it: say control="{_STEM.sub("", numbered[0])}*"'
        )
    for label in labels:
        if re.sub(r"[^a-z0-9]", "", label.casefold()) in CONTROL_SPELLINGS:
            return f'; did you mean "{label}"?'
    return did_you_mean(value, labels)


def encode_labels(
    values: Any, column: str, *, allow_missing: bool = False
) -> tuple[np.ndarray, list[str]]:
    """Turn a column of labels into codes.

    Parameters
    ----------
    values
        (N,) labels of any type; categories that no cell uses are dropped.
    column
        How the column is called in messages.
    allow_missing
        Give missing labels the code -1 instead of raising.

    Returns
    -------
    codes (N,) int64 and the labels as stripped strings, in the order of the categories.

    Raises
    ------
    ScreenError
        If a cell has no label, or one that is neither text nor number, or text that a file cannot
        hold.
    """
    _check_labels(values, column)
    categories = pd.Categorical(values).remove_unused_categories()
    labels: dict[str, int] = {}
    merged = np.full(len(categories.categories) + 1, -1, dtype=np.int64)
    for code, category in enumerate(categories.categories):
        label = str(category).strip()
        if label not in _MISSING:
            merged[code] = labels.setdefault(label, len(labels))
    # Codes of pandas are as narrow as 8 bits and would overflow in products.
    codes = merged[categories.codes.astype(np.int64)]
    missing = int((codes < 0).sum())
    texts = [c for c in categories.categories if isinstance(c, str) and c.strip() in _MISSING]
    texts = [text for text in texts if text.strip()]
    name = getattr(values, "name", None)
    where = "adata.obs[column]" if name is None else f"adata.obs[{name!r}]"
    if missing and texts and not allow_missing:
        raise ScreenError(
            f'{column} has {missing} of {len(codes)} cells with the text "{texts[0]}", which is '
            "read as no label; if it is one, call it otherwise: "
            f"{where} = {where}.astype(str).replace({texts[0]!r}, 'unlabelled'); if not, leave "
            f"those cells out: adata[{where}.astype(str) != {texts[0]!r}].copy()"
        )
    if missing and not allow_missing:
        raise ScreenError(
            f"{column} has {missing} of {len(codes)} cells without a label (NaN or empty), the "
            f"first at position {int(np.argmax(codes < 0))}; give them a label, or leave them out "
            f"with adata[{where}.notna()].copy()"
        )
    return codes, list(labels)


def _check_labels(values: Any, column: str) -> None:
    """Raise ScreenError unless labels are text or numbers, and text that files can hold."""
    name = getattr(values, "name", None)
    where = "the column" if name is None else f"adata.obs[{name!r}]"
    if isinstance(getattr(values, "dtype", None), pd.CategoricalDtype):
        values = values.dtype.categories
    if not hasattr(values, "dtype"):
        values = pd.Series(list(values), dtype=object)
    if values.dtype == object:
        odd = (value for value in values if not _is_label(value))
        first = next(odd, None)
        if first is not None:
            kind, more = type(first).__name__, 1 + sum(1 for _ in odd)
            made = '.str.decode("utf-8")' if kind == "bytes" else ".astype(str)"
            raise ScreenError(
                f"{column} has {more} values that are {kind} objects, the first {first!r}; labels "
                f"are text or numbers, such as {where} = {where}{made}"
            )
    elif pd.api.types.is_numeric_dtype(values.dtype) or values.dtype == bool:
        return
    check_text((value for value in pd.unique(values) if isinstance(value, str)), column)


def _is_label(value: Any) -> bool:
    return isinstance(value, str) or (pd.api.types.is_scalar(value) and type(value) is not bytes)


def check_text(texts: Iterable[str], what: str) -> None:
    """Raise ScreenError if a text cannot be written to a file and read again.

    Parameters
    ----------
    texts
        Labels or names.
    what
        How messages call them.
    """
    for text in texts:
        if "\0" in text or not _encodable(text):
            found = "a NUL character" if "\0" in text else "half of a Unicode pair"
            raise ScreenError(
                f"{what} has {text!r}, which holds {found} and would not come back from a file; "
                "write it otherwise"
            )


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def perturbation_type(value: str, column: str = "perturbation_type") -> str:
    """Return the canonical spelling of a perturbation type, or raise ScreenError."""
    spelling = str(value).strip().casefold()
    try:
        return _TYPE_SPELLINGS[spelling]
    except KeyError:
        meant = _TYPE_HINTS.get(spelling, value)
        raise ScreenError(
            f'{column} has the value "{value}", which is not a type of perturbation'
            f"{did_you_mean(meant, PERTURBATION_TYPES)}"
        ) from None


def split_label(label: str, control: str) -> list[tuple[str, str | None]]:
    """Split a perturbation label into its (gene, type) parts; the control contributes none.

    A type is None where the label does not state it as `"GENE (type)"`.

    Raises
    ------
    UnknownLabelError
        If a part of a combination is empty, as in `"GENE+"`.
    """
    if label.strip() == control:
        return []
    parts = []
    for part in (part.strip() for part in label.split("+")):
        if not part:
            raise UnknownLabelError(
                f'perturbation label "{label}" has an empty part; join genes as "A+B", and write '
                f'"{control}" for unperturbed cells'
            )
        if part == control:
            continue
        typed = _TYPED_GENE.match(part)
        if typed and typed["type"].strip().casefold() in _TYPE_SPELLINGS:
            parts.append((typed["gene"], _TYPE_SPELLINGS[typed["type"].strip().casefold()]))
        else:
            parts.append((part, None))
    return parts


def genotype_of(
    label: str, control: str, types: str | None, column: str = "perturbation_type"
) -> frozenset[tuple[str, str]]:
    """Return the set of (gene, type) that a label and its type column stand for.

    Parameters
    ----------
    label
        Genes joined by `+`.
    control
        Label of unperturbed cells.
    types
        One type for all genes of the label, or one per gene joined by `+`; None or unreadable is
        accepted for unperturbed cells only.
    column
        How the type column is called in messages.

    Raises
    ------
    ScreenError
        If a type is missing or unknown, or the numbers of genes and types differ.
    ConflictingTypesError
        If one gene is given two types.
    """
    parts = split_label(label, control)
    if not parts:
        return frozenset()
    if types is None:
        stated: list[str | None] = [None]
    else:
        stated = [perturbation_type(part, column) for part in types.split("+")]
    if len(stated) == 1:
        stated = stated * len(parts)
    if len(stated) != len(parts):
        raise ScreenError(
            f'{column} has the value "{types}" for perturbation "{label}": {len(stated)} types for '
            f"{len(parts)} genes; give one type for all, or one per gene in the same order"
        )
    genotype: dict[str, str] = {}
    for (gene, own), given in zip(parts, stated, strict=True):
        kind = own or given
        if kind is None:
            raise ScreenError(
                f'{column} has no value for cells with perturbation "{label}"; it must be one of '
                f"{', '.join(PERTURBATION_TYPES)}"
            )
        if genotype.setdefault(gene, kind) != kind:
            raise ConflictingTypesError(
                f'perturbation "{label}" gives gene "{gene}" two types, {genotype[gene]} and '
                f"{kind}; a gene can carry one type per cell (paper, below eq. 1)"
            )
    return frozenset(genotype.items())


def single_names(singles: Iterable[tuple[str, str]]) -> Mapping[tuple[str, str], str]:
    """Name every (gene, type), sorted: the gene alone, or "GENE (type)" where it has two."""
    singles = set(singles)
    seen: dict[str, int] = {}
    for gene, _ in singles:
        seen[gene] = seen.get(gene, 0) + 1
    named = {s: s[0] if seen[s[0]] == 1 else f"{s[0]} ({s[1]})" for s in singles}
    return dict(sorted(named.items(), key=lambda item: item[1]))
