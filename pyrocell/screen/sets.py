"""Cells with several guides: who has which, and which sets of targets have too few cells.

At high multiplicity nearly every cell has a set of its own. Such a set tells nothing of what its
targets do beyond the sum of what each does, so it gets no interaction: it is additive.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import pandas as pd
import scipy.sparse as sp

from pyrocell._core.messages import join_names
from pyrocell.errors import ConflictingTypesError
from pyrocell.screen.labels import genotype_of

__all__ = ["LEAST_CELLS", "MANY_SETS", "GuideSets", "additive_conditions", "genotypes_of_sets"]

# An interaction needs so many cells of its exact set, once more than so many sets have fewer. A set
# of 20 cells with one count each of a gene tells its interaction to about .2 in natural logs, which
# is as large as interactions are; with fewer sets than that, today's small screens, each keeps its
# own, whatever it can tell.
LEAST_CELLS, MANY_SETS = 20, 200


@dataclass(frozen=True, eq=False)
class GuideSets:
    """Which guides each cell has, and what each of them targets.

    Attributes
    ----------
    carried
        (N, n) sparse bool: guides of each cell.
    targets
        (n,) label of what each guide targets, the control's for those that target nothing.
    """

    carried: sp.csr_array
    targets: Sequence[str]

    def __len__(self) -> int:
        """Number of cells."""
        return len(self.carried.indptr) - 1


def genotypes_of_sets(
    sets: GuideSets, control: str, kind: str, column: str
) -> tuple[np.ndarray, list[frozenset[tuple[str, str]]]]:
    """Codes (N,) and the genotype, a set of (gene, type), that each code stands for.

    Parameters
    ----------
    sets
        Guides of all cells.
    control
        Label of guides that target nothing.
    kind
        Type of all perturbations, where a target does not state its own as "GENE (type)".
    column
        How the argument with types is called in messages.

    Raises
    ------
    ConflictingTypesError
        If a cell has guides that give one gene two types.
    """
    parts = [genotype_of(str(target), control, kind, column) for target in sets.targets]
    singles = sorted({single for part in parts for single in part})
    index = {single: k for k, single in enumerate(singles)}
    pairs = [(g, index[single]) for g, part in enumerate(parts) for single in part]
    guide, driver = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    aimed = sp.csr_array(
        (np.ones(len(guide), np.int32), (guide, driver)), shape=(len(parts), len(singles))
    )
    carried = sp.csr_array(sets.carried.astype(np.int32) @ aimed)
    carried.eliminate_zeros()
    carried.sort_indices()
    _check_types(carried, singles)
    code, first = _distinct_rows(carried)
    start = carried.indptr
    found = [
        frozenset(singles[k] for k in carried.indices[start[c] : start[c + 1]])
        for c in first.tolist()
    ]
    return code, found


def _distinct_rows(carried: sp.csr_array) -> tuple[np.ndarray, np.ndarray]:
    """Number of the set of columns in each row, (N,), and the first row of each set.

    Sets are told apart by sums of random numbers of 64 bits, two of them: that two sets of a
    million have the same is less likely than 1e-26.
    """
    n, n_columns = cast("tuple[int, int]", carried.shape)
    words = np.random.default_rng(0).integers(0, 2**64, (2, n_columns), dtype=np.uint64)
    owner = np.repeat(np.arange(n), np.diff(carried.indptr))
    sums = np.zeros((n, 2), np.uint64)
    for j, word in enumerate(words):
        np.add.at(sums[:, j], owner, word[carried.indices])
    _, first, code = np.unique(sums, axis=0, return_index=True, return_inverse=True)
    return np.ravel(code), first


def _check_types(carried: sp.csr_array, singles: Sequence[tuple[str, str]]) -> None:
    """Raise ConflictingTypesError if a cell has one gene with two types."""
    genes = [gene for gene, _ in singles]
    several_types = pd.Series(genes, dtype=object)
    for gene in several_types[several_types.duplicated()].unique():
        mine = [k for k, name in enumerate(genes) if name == gene]
        several = carried[:, mine].astype(bool).sum(1) > 1
        if several.any():
            kinds = join_names(singles[k][1] for k in mine)
            raise ConflictingTypesError(
                f'{int(several.sum())} cells have guides that give gene "{gene}" several types '
                f"({kinds}); a gene can carry one type per cell (paper, below eq. 1)"
            )


def additive_conditions(
    n_drivers: np.ndarray, set_code: np.ndarray, n_cells: np.ndarray
) -> np.ndarray:
    """(C,) bool: conditions of several perturbations that have no interaction of their own.

    None, unless more than `MANY_SETS` sets have fewer than `LEAST_CELLS` cells, over all media and
    times; then those sets.

    Parameters
    ----------
    n_drivers, set_code, n_cells
        (C,) number of perturbations of each condition, number of its set, and cells.
    """
    cells = np.bincount(set_code, n_cells)[set_code]
    few = (n_drivers > 1) & (cells < LEAST_CELLS)
    if len(np.unique(set_code[few])) <= MANY_SETS:
        return np.zeros(len(few), bool)
    return few
