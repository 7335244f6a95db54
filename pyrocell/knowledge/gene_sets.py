"""Files of gene sets, as MSigDB, Reactome and Enrichr give them."""

from __future__ import annotations

import gzip
from pathlib import Path

from pyrocell.errors import KnowledgeError

__all__ = ["read_gmt"]

_NO_SET = (
    "holds no set of genes; a .gmt file has a line for each set: name, description and genes with "
    "tabs between"
)


def read_gmt(path: str | Path) -> dict[str, list[str]]:
    """Sets of genes from a .gmt or .gmt.gz file.

    A line is name, description and genes with tabs between. Files from which members come joined by
    commas in the third column are read, too, and of Enrichr's members with a weight ("STAT1,1.0"),
    each in a column of its own, the name is taken.

    Raises
    ------
    KnowledgeError
        If the file cannot be read or holds no set.
    """
    path = Path(path)
    try:
        opened = gzip.open if path.suffix == ".gz" else open
        with opened(path, "rt", encoding="utf-8") as file:
            lines = file.read().splitlines()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise KnowledgeError(f"{path} cannot be read as sets of genes: {error}") from error
    found = [line.split("\t") for line in lines if line.count("\t") >= 2]
    if not found:
        raise KnowledgeError(f"{path} {_NO_SET}")
    return {name: _members(columns) for name, _, *columns in found}


def _members(columns: list[str]) -> list[str]:
    filled = [column for column in columns if column.strip()]
    if len(filled) == 1:
        names = filled[0].split(",")
        if len(names) == 2 and _is_number(names[1]):
            names = names[:1]
    else:
        names = [column.split(",")[0] for column in filled]
    return list(dict.fromkeys(name.strip() for name in names if name.strip()))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
