"""Aliased contrasts: what the layout of a screen cannot tell apart, whatever the model.

The layout is the linear design over (condition, batch) pairs that have cells: one column per batch,
perturbation, medium, perturbation in a medium, and time after the first. A contrast is estimable if
no vector of the design's null space touches its column; the vectors that do name what it is mixed
with (paper, Fig. 6 and App. B.2).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import splu

from pyrocell._core.messages import join_names
from pyrocell.errors import warn

__all__ = [
    "Layout",
    "LayoutComponent",
    "aliased_table",
    "layout_components",
    "null_space",
    "warn_of_layout",
]

_RIDGE = 1e-8  # relative to unit columns; leakage of the projection is (ridge / eigenvalue)³
_POWER = 3
_TOUCHED = 1e-6  # a null vector touches a column above this, entries being about 1
_NAMED = 20  # partners that `aliased_with` lists
_SHOWN = 8  # reasons that are spelt out in the warning
_MAX_VECTORS = 128  # above this nullity contrasts are found all the same, but not their partners


@dataclass(frozen=True)
class Layout:
    """Where the cells of a screen are, with the names of everything.

    Attributes
    ----------
    membership
        (C, K) sparse 0/1: perturbations of each condition.
    exposure
        (C, J) 0/1: media of each condition.
    time_index
        (C,) index into `times`.
    present
        (C, B) bool: pairs of condition and batch that have cells.
    """

    membership: sp.csr_array
    exposure: np.ndarray
    time_index: np.ndarray
    present: np.ndarray
    perturbations: tuple[str, ...]
    media: tuple[str, ...]
    baseline_media: str
    times: tuple[float, ...]
    batches: tuple[str, ...]
    baseline_observed: bool = True

    def batches_of(self, conditions: np.ndarray) -> np.ndarray:
        """Indices of the batches that hold any of the conditions, given as a (C,) mask."""
        return np.flatnonzero(self.present[conditions].any(axis=0))

    def held_by(self, batches: np.ndarray) -> np.ndarray:
        """(C,) mask of the conditions held by any of the batches, given by index."""
        return np.any(self.present[:, batches], axis=1)

    def perturbed(self, perturbation: int) -> np.ndarray:
        """(C,) mask of the conditions with a perturbation."""
        columns = self._columns
        mask = np.zeros(len(self.present), dtype=bool)
        mask[columns.indices[slice(*columns.indptr[perturbation : perturbation + 2])]] = True
        return mask

    @cached_property
    def _columns(self) -> sp.csc_array:
        return sp.csc_array(self.membership)

    @cached_property
    def unperturbed(self) -> np.ndarray:
        """(C,) mask of the conditions without perturbation."""
        return np.diff(self.membership.indptr) == 0


class LayoutComponent(NamedTuple):
    """Conditions and batches that are linked by cells (paper, Fig. 6)."""

    conditions: np.ndarray
    batches: tuple[str, ...]


def _design(layout: Layout) -> tuple[sp.csc_array, list[tuple[str, int, int]]]:
    """Design matrix (pairs with cells, columns) and what each column is: (kind, index, index)."""
    condition, batch = np.nonzero(layout.present)
    rows = np.arange(len(condition))
    genotype = layout.membership[condition]
    exposure = layout.exposure[condition]
    blocks, columns = [], []
    for j in range(len(layout.media)):
        gain = sp.csc_array(genotype.multiply(exposure[:, [j]]))
        gain.eliminate_zeros()
        seen = np.flatnonzero(np.diff(gain.indptr))
        blocks.append(gain[:, seen])
        columns += [("gain", int(k), j) for k in seen]
    if len(layout.times) > 1:
        onehot = np.eye(len(layout.times))[layout.time_index[condition]][:, 1:]
        blocks.append(sp.csc_array(onehot))
        columns += [("time", t, -1) for t in range(1, len(layout.times))]
    blocks += [sp.csc_array(exposure), genotype.tocsc()]
    columns += [("media", j, -1) for j in range(len(layout.media))]
    columns += [("perturbation", k, -1) for k in range(len(layout.perturbations))]
    shape = (len(rows), len(layout.batches))
    blocks.append(sp.csc_array((np.ones(len(rows)), (rows, batch)), shape=shape))
    columns += [("batch", b, -1) for b in range(len(layout.batches))]
    blocks = [block for block in blocks if block.shape[1]]
    return sp.csc_array(sp.hstack(blocks, format="csc").astype(float)), columns


def null_space(design: sp.csc_array) -> tuple[np.ndarray, bool]:
    """Vectors (columns, d) of the null space up to column scale, and whether they span it.

    Random vectors are projected by a few rounds of ridge-regularised inverse iteration on the
    sparse normal matrix, so that thousands of perturbations cost one sparse factorisation.
    """
    norms = np.sqrt(design.power(2).sum(axis=0))
    scaled = design @ sp.diags_array(1.0 / np.where(norms > 0, norms, 1.0))
    n_columns = len(norms)
    normal = sp.csc_array(scaled.T @ scaled) + _RIDGE * sp.eye_array(n_columns, format="csc")
    factor = splu(
        sp.csc_matrix(normal), permc_spec="MMD_AT_PLUS_A", options={"SymmetricMode": True}
    )
    rng = np.random.default_rng(0)
    n_vectors = min(32, n_columns)
    while True:
        vectors = rng.standard_normal((n_columns, n_vectors))
        for _ in range(_POWER):
            vectors = factor.solve(vectors) * _RIDGE
        basis, size, _ = np.linalg.svd(vectors, full_matrices=False)
        nullity = int((size > _TOUCHED).sum())
        complete = nullity < n_vectors or n_vectors == n_columns
        if complete or n_vectors >= _MAX_VECTORS:
            return basis[:, :nullity], complete
        n_vectors = min(4 * n_vectors, n_columns)


def _circuits(basis: np.ndarray) -> np.ndarray:
    """(d, columns) bool: supports of a reduced null-space basis, earlier columns being pivots."""
    work = basis.T.copy()
    norms = np.linalg.norm(work, axis=0)
    done = 0
    for column in np.flatnonzero(norms > _TOUCHED):
        if done == len(work):
            break
        row = done + int(np.argmax(np.abs(work[done:, column])))
        if abs(work[row, column]) < 1e-3 * norms[column]:
            continue
        work[[done, row]] = work[[row, done]]
        work[done] /= work[done, column]
        others = np.arange(len(work)) != done
        work[others] -= np.outer(work[others, column], work[done])
        done += 1
    return np.abs(work) > 1e-5


def _column_name(layout: Layout, column: tuple[str, int, int]) -> str:
    """Name of a column as it appears in `name` and `aliased_with`."""
    kind, i, j = column
    if kind == "gain":
        return f"{layout.perturbations[i]} × {layout.media[j]}"
    if kind == "time":
        return f"{layout.times[i]:g}"
    if kind == "media" and i < 0:
        return layout.baseline_media
    return {
        "media": layout.media,
        "perturbation": layout.perturbations,
        "batch": layout.batches,
    }[kind][i]


def _partners(
    layout: Layout, columns: list[tuple[str, int, int]], circuits: np.ndarray, position: int
) -> list[str]:
    """Names of what a contrast is mixed with: batches where there are any, other contrasts else."""
    through = circuits[circuits[:, position]]
    if not len(through):
        return []
    shortest = through[np.argmin(through.sum(axis=1))]
    others = [columns[i] for i in np.flatnonzero(shortest) if i != position]
    batches = [column for column in others if column[0] == "batch"]
    return [
        ("time " if column[0] == "time" else "") + _column_name(layout, column)
        for column in batches or others
    ]


def _together(names: list[str]) -> str:
    return f"batch {names[0]}" if len(names) == 1 else f"batches {join_names(names)}"


def _reason_of_medium(layout: Layout, name: str, mask: np.ndarray) -> str:
    """Say why a medium's effect on controls is not estimable, if no batch is to blame."""
    if (mask & layout.unperturbed).any() or not mask.any():
        return ""
    return (
        f"no control cell received medium {name}: the response to it and what each perturbation "
        "does to that response cannot be told apart; only sums of them are identified; add "
        f"control cells in medium {name}"
    )


def _reason_of_gene(layout: Layout, gene: str, mask: np.ndarray, partners: list[str]) -> str:
    """Say why a perturbation's effect or gain is not estimable, if no batch is to blame."""
    if mask.any() and not (mask & (layout.exposure.sum(axis=1) == 0)).any():
        media = [layout.media[m] for m in np.flatnonzero(layout.exposure[mask].any(axis=0))]
        return (
            f"{gene} was never measured in medium {layout.baseline_media}, only in "
            f"{join_names(media)}: its effect at baseline and the change it makes to the response "
            f"cannot be told apart; only their sum is identified; add {gene} cells in "
            f"{layout.baseline_media}"
        )
    if partners and set(partners) <= set(layout.perturbations):
        return (
            f"{gene} was measured only in combinations that mix it with {join_names(partners)}: "
            "their effects cannot be told apart; only sums of them are identified; add cells "
            f"with {gene} alone"
        )
    return ""


def _reason_without_batches(layout: Layout, kind: str, what: str, partners: list[str]) -> str:
    """Say what comes with a medium or a time in all cells that tell, where no batch does."""
    times = [name for name in partners if name.startswith("time ")]
    media = [name for name in partners if name in layout.media]
    with_what = join_names(media + times if kind == "time" else times + media, _NAMED)
    if kind == "media" and times:
        remedy = f"measure control cells in {layout.baseline_media} at those times too"
    elif kind == "time" and media:
        remedy = (
            f"measure control cells in {layout.baseline_media} at that time too, or in "
            f"{join_names(media)} at the first time"
        )
    else:
        remedy = "measure one without the other"
    return (
        f"{what} was measured in no cells that tell it from {with_what}: what each does cannot be "
        f"told apart, whatever batches they are in; only their sum is identified; {remedy}"
    )


def _reason(layout: Layout, column: tuple[str, int, int], partners: list[str]) -> str:
    """Say in plain words why a contrast is not estimable, and what would make it so."""
    kind, i, j = column
    name = _column_name(layout, column)
    if kind == "time":
        mask = layout.time_index == i
        what, mixed, elsewhere = f"time {name}", "drift of the control and batch noise", ~mask
        other, remedy, reason = "other time", "measure two times in one batch", ""
    elif kind == "media":
        mask = layout.exposure[:, i] > 0
        what, mixed, elsewhere = f"medium {name}", "the response to it and batch noise", ~mask
        other, remedy = "cell in another medium", "put both media in one batch"
        reason = _reason_of_medium(layout, name, mask)
    else:
        gene, mask = layout.perturbations[i], layout.perturbed(i)
        reason = _reason_of_gene(layout, gene, mask, partners)
        if kind == "gain":
            exposed = layout.exposure[:, j] > 0
            reason = reason or _reason_of_medium(layout, layout.media[j], exposed)
            mask = mask & exposed
        what, mixed, elsewhere = name, "its effect and batch noise", layout.unperturbed
        other, remedy = "control cell", f"add control cells to the batches of {gene}"
    if reason:
        return reason
    if not mask.any():
        return f"{what} was never measured"
    if kind in ("media", "time") and partners and not set(partners) & set(layout.batches):
        return _reason_without_batches(layout, kind, what, partners)
    held = layout.batches_of(mask)
    where = _together([layout.batches[b] for b in held])
    if (layout.held_by(held) & elsewhere).any():
        because = (
            f"{what} was measured in {where}, which nothing measured elsewhere links to the cells "
            "it is compared with"
        )
    else:
        holds = "holds" if len(held) == 1 else "hold"
        because = f"{what} was measured only in {where}, which {holds} no {other}"
    return f"{because}: {mixed} cannot be told apart; only their sum is identified; {remedy}"


def layout_components(counts: pd.DataFrame) -> list[LayoutComponent]:
    """Return the connected components of the layout graph, conditions × batches, largest first."""
    present = sp.coo_array(counts.to_numpy() > 0)
    n_conditions = len(counts)
    graph = sp.block_array([[None, present], [present.T, None]])
    n, label = connected_components(graph, directed=False)
    batches = counts.columns.to_numpy()
    found = [
        LayoutComponent(
            np.flatnonzero(label[:n_conditions] == i), tuple(batches[label[n_conditions:] == i])
        )
        for i in range(n)
    ]
    return sorted(found, key=lambda component: -len(component.conditions))


def _sole_medium(layout: Layout) -> str:
    return (
        f"every cell was in medium {layout.baseline_media}: the response to it, and what the "
        "perturbations do without it, cannot be known; effects are differences between cells in it"
    )


def aliased_table(layout: Layout) -> pd.DataFrame:
    """Say for every named contrast whether the layout can estimate it.

    Returns
    -------
    One row per contrast: `contrast` ("perturbation" against the control, "media" against baseline,
    "gain" of a perturbation in a medium, "time" against the first), `name`, `aliased_with` (names
    of batches, or of other contrasts where no batch is involved; empty where nothing was measured,
    and in screens with hundreds of such contrasts), `estimable`, `reason`.
    """
    design, columns = _design(layout)
    basis, complete = null_space(design)
    touched = np.any(np.abs(basis) > _TOUCHED, axis=1)
    circuits = _circuits(basis) if complete else np.zeros((0, len(columns)), dtype=bool)
    rows = {}
    for position, column in enumerate(columns):
        if column[0] == "batch":
            continue
        partners: list[str] = []
        reason = ""
        if touched[position]:
            partners = _partners(layout, columns, circuits, position)
            reason = _reason(layout, column, partners)
        rows[column] = (join_names(partners, _NAMED), not touched[position], reason)
    for j, medium in enumerate(layout.media):
        for k, gene in enumerate(layout.perturbations):
            never = f"{gene} was never measured in medium {medium}"
            rows.setdefault(("gain", k, j), ("", False, never))
    if not layout.baseline_observed:
        rows["media", -1, -1] = ("", False, _sole_medium(layout))
    order = {"perturbation": 0, "media": 1, "gain": 2, "time": 3}
    ordered = sorted(rows, key=lambda column: (order[column[0]], column[2], column[1]))
    return pd.DataFrame(
        [(c[0], _column_name(layout, c), *rows[c]) for c in ordered],
        columns=["contrast", "name", "aliased_with", "estimable", "reason"],
    ).astype({"estimable": bool})


def warn_of_layout(layout: Layout, aliased: pd.DataFrame, counts: pd.DataFrame) -> None:
    """Say loudly, by name, what the layout of a screen cannot answer.

    Parameters
    ----------
    layout, aliased
        The layout and its `aliased_table`.
    counts
        Conditions × batches: numbers of cells.
    """
    if not layout.baseline_observed:
        warn(_sole_medium(layout))
    if len(layout.batches) == 1:
        warn(
            f'all cells are in one batch ("{layout.batches[0]}"): batch noise cannot be separated '
            "from effects, and intervals do not include it; give batch_key= if cells were "
            "processed in several lanes, samples or days"
        )
    else:
        control = counts[layout.unperturbed].sum(axis=0).to_numpy()
        without = [b for b, n in zip(layout.batches, control, strict=True) if n == 0]
        if without:
            warn(
                f"{_together(without)} {'has' if len(without) == 1 else 'have'} no control cells: "
                "effects there lean on controls of other batches, linked only by perturbations "
                "that both have, and intervals are wider"
            )
    cells = layout.membership.T @ counts.sum(axis=1).to_numpy()
    lonely = [layout.perturbations[k] for k in np.flatnonzero(cells == 1)]
    if lonely:
        warn(
            f"{len(lonely)} perturbation{'s have' if len(lonely) > 1 else ' has'} a single cell "
            f"({join_names(lonely)}): what is said about {'them' if len(lonely) > 1 else 'it'} is "
            "mostly the prior"
        )
    mixed = aliased[~aliased["estimable"] & (aliased["name"] != layout.baseline_media)]
    if len(mixed):
        reasons = list(dict.fromkeys(mixed["reason"]))
        warn(
            f"{len(mixed)} of {len(aliased)} contrasts cannot be estimated from this layout:\n- "
            + "\n- ".join(reasons[:_SHOWN])
            + (f"\n- and {len(reasons) - _SHOWN} more" if len(reasons) > _SHOWN else "")
            + "\nSee screen.aliased_contrasts."
        )
