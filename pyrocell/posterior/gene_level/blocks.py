"""Which conditions each driver moves, and by which of its coefficients: the sampler's layout.

Drivers are the controls (what controls lack and every perturbation has), the perturbations, and the
combinations that were measured (what they do beyond the sum of their parts).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import scipy.sparse as sp

from pyrocell.posterior.gene_level.prior import components, starting_weights
from pyrocell.screen.screen import Screen

__all__ = ["Blocks", "Clock", "block_layout", "medium_of_conditions"]


@dataclass(frozen=True)
class Clock:
    """How responses unfold over the measured times.

    Attributes
    ----------
    onset
        (C, K) sparse: share of a perturbation's response that each condition shows, 1 at the
        reference time.
    growth
        (C,) share of an interaction that each condition shows.
    walk
        (T, T) factor of the walk of gene-level effects over times, see `prior.walk_root`.
    course
        (K, T) share of each perturbation's response that has set in at each measured time.
    begun
        (C,) bool: conditions in which a perturbation has had time to do something.
    """

    onset: sp.csr_array
    growth: np.ndarray
    walk: np.ndarray
    course: np.ndarray
    begun: np.ndarray


@dataclass(frozen=True, eq=False)
class Blocks:
    """Drivers and their rows, as `kernels.draw_blocks` takes them.

    Attributes
    ----------
    row_start, rows, owned
        (blocks + 1,), (rows,) conditions, and whether their working responses are the block's.
    span, dims
        (blocks, 2) components of each block in `dims`, (components,) numbers of columns k.
    mixture_start, mixtures, factor_start, factors, coefficient_start
        Matrices of rows and of coefficients by component, flat.
    media
        For each block, the media that its coefficients beyond the walk belong to.
    reference
        (blocks,) medium that the walk itself is measured in, -1 for the baseline.
    target
        (blocks,) gene of the perturbation itself, -1 for none.
    kind
        (blocks,) blocks of a kind have the same components, and share their weights.
    kinds
        Number of components of each kind.
    members
        Matrices F of each block's components, see `prior.components`.
    stored
        (blocks,) bool: drivers that meet in a condition with others; their draws are kept.
    of_row
        For each block, (rows, coefficients): how its coefficients add up to each of its rows.
    arms
        Perturbations of each combination, by block: {block: (perturbations)}.
    n_perturbations
        K; block 0 are the controls, 1..K the perturbations, and combinations after them.
    """

    row_start: np.ndarray
    rows: np.ndarray
    owned: np.ndarray
    span: np.ndarray
    dims: np.ndarray
    mixture_start: np.ndarray
    mixtures: np.ndarray
    factor_start: np.ndarray
    factors: np.ndarray
    coefficient_start: np.ndarray
    media: list[tuple[int, ...]]
    reference: np.ndarray
    target: np.ndarray
    kind: np.ndarray
    kinds: list[int]
    stored: np.ndarray
    of_row: list[np.ndarray]
    arms: dict[int, tuple[int, ...]]
    n_perturbations: int
    n_times: int
    members: list[list[np.ndarray]] = field(repr=False, default_factory=list)

    def __len__(self) -> int:
        return len(self.target)

    @cached_property
    def owned_start(self) -> np.ndarray:
        """(blocks + 1,) first owned row of each block in `owned_rows`."""
        n = [int(self.owned[a:b].sum()) for a, b in zip(self.row_start, self.row_start[1:])]
        return np.concatenate([[0], np.cumsum(n)])

    @cached_property
    def owned_rows(self) -> np.ndarray:
        """(C,) conditions by the block that owns them."""
        return self.rows[self.owned]

    @cached_property
    def precision_start(self) -> np.ndarray:
        """(blocks + 1,) first entry of each block's precision matrix of owned rows."""
        return np.concatenate([[0], np.cumsum(np.diff(self.owned_start) ** 2)])

    @cached_property
    def owner(self) -> tuple[np.ndarray, np.ndarray]:
        """(C,) block that owns each condition, and its place among the block's owned rows."""
        n = np.diff(self.owned_start)
        block = np.zeros(len(self.owned_rows), np.int64)
        place = np.zeros(len(self.owned_rows), np.int64)
        block[self.owned_rows] = np.repeat(np.arange(len(self)), n)
        place[self.owned_rows] = np.concatenate([np.arange(i) for i in n])
        return block, place

    @cached_property
    def spike_learned(self) -> np.ndarray:
        """(blocks,) whether the spike has a width."""
        return self.dims[self.span[:, 0]] > 0

    @property
    def most_components(self) -> int:
        """Components of the kind that has most."""
        return max(self.kinds)

    def starting_weights(self) -> np.ndarray:
        """(blocks, components) weights of each block's components, zero beyond its own."""
        out = np.zeros((len(self), self.most_components))
        for b, (low, high) in enumerate(self.span):
            out[b, : high - low] = starting_weights(high - low)
        return out

    @cached_property
    def stored_coefficients(self) -> np.ndarray:
        """Positions of the coefficients of blocks that are kept."""
        return np.flatnonzero(np.repeat(self.stored, np.diff(self.coefficient_start)))

    def outputs(self, blocks: np.ndarray, medium: int, node: int, growth: float) -> np.ndarray:
        """What chosen blocks do in one medium at one measured time, as flat factors (1, k).

        One row a component, component after component, block after block.
        """
        parts = []
        for b in blocks:
            row = np.zeros(self.n_times + len(self.media[b]))
            row[node] = 1.0
            if medium in self.media[b]:
                row[self.n_times + self.media[b].index(medium)] = growth
            parts += [row @ f for f in self.members[b]]
        return np.concatenate(parts) if parts else np.zeros(0)


def medium_of_conditions(screen: Screen) -> np.ndarray:
    """(C,) medium of each condition, -1 for the baseline."""
    if not screen.exposure.shape[1]:
        return np.full(len(screen.exposure), -1)
    return np.where(screen.exposure.any(1), screen.exposure.argmax(1), -1)


def block_layout(screen: Screen, clock: Clock, rest: float = 0.0) -> Blocks:
    """Lay out the drivers of a screen; `rest` is the width of the spike of perturbations."""
    membership = screen.membership.tocsr()
    n_drivers = np.diff(membership.indptr)
    medium = medium_of_conditions(screen)
    n_perturbations, n_times = len(screen.perturbations), max(1, len(screen.times))
    node = np.maximum(screen.time_index, 0)
    by_driver = membership.tocsc()
    pointers = zip(membership.indptr, membership.indptr[1:])
    sets = [tuple(sorted(membership.indices[a:b].tolist())) for a, b in pointers]
    combinations = sorted({s for s in sets if len(s) > 1})
    rows_of = [np.flatnonzero(n_drivers == 0)]
    rows_of += [by_driver.indices[a:b] for a, b in zip(by_driver.indptr, by_driver.indptr[1:])]
    rows_of += [np.flatnonzero([s == c for s in sets]) for c in combinations]
    arms = {1 + n_perturbations + i: c for i, c in enumerate(combinations)}
    meets = np.zeros(1 + n_perturbations + len(combinations), bool)
    for b, c in arms.items():
        meets[[b, *(1 + k for k in c)]] = True
    kinds: dict[tuple, int] = {}
    members: list[list[np.ndarray]] = []
    parts: dict[str, list] = {name: [] for name in ("rows", "owned", "mixture", "factor", "span")}
    media, kind, reference, rows_of_block = [], [], [], []
    dims: list[int] = []
    first_of_kind: list[tuple[int, int]] = []
    for b, rows in enumerate(rows_of):
        rows = np.sort(np.asarray(rows, dtype=np.int64))
        met = sorted({int(m) for m in medium[rows]})
        is_control, is_arm = b == 0, b in arms
        own = met[0] if met else -1
        extra = () if is_control else tuple(m for m in met if m != own)
        walk = np.ones((1, 1)) if is_arm or is_control else clock.walk
        course = np.ones(1) if is_arm or is_control else clock.course[b - 1]
        key = (is_control, is_arm, len(extra))
        found = components(walk, course, len(extra), 0.0 if is_control or is_arm else rest)
        if len(walk) < n_times:  # one number for all times
            found = [np.vstack([np.repeat(f[:1], n_times, 0), f[1:]]) for f in found]
        if key not in kinds:
            kinds[key] = len(kinds)
            first_of_kind.append((len(dims), len(dims) + len(found)))
            dims += [f.shape[1] for f in found]
        members.append(found)
        kind.append(kinds[key])
        of_row = np.zeros((len(rows), n_times + len(extra)))
        shown = clock.growth[rows] if is_arm else np.where(clock.begun[rows], 1.0, 0.0)
        of_row[np.arange(len(rows)), node[rows]] = 1.0 if is_control else shown
        for j, m in enumerate(extra):
            of_row[medium[rows] == m, n_times + j] = clock.growth[rows][medium[rows] == m]
        if is_control:
            of_row = -of_row * clock.begun[rows][:, None]
        parts["rows"].append(rows)
        rows_of_block.append(of_row)
        parts["owned"].append(
            n_drivers[rows] == 1 if 0 < b <= n_perturbations else np.ones(len(rows), bool)
        )
        parts["mixture"].append(np.concatenate([(of_row @ f).ravel() for f in found]))
        parts["factor"].append(np.concatenate([f.ravel() for f in found]))
        parts["span"].append(first_of_kind[kind[-1]])
        media.append(extra)
        reference.append(own)

    def starts(arrays: list) -> np.ndarray:
        return np.concatenate([[0], np.cumsum([len(a) for a in arrays])]).astype(np.int64)

    target = np.full(len(rows_of), -1, np.int64)
    target[1 : 1 + n_perturbations] = screen.target
    return Blocks(
        row_start=starts(parts["rows"]),
        rows=np.concatenate(parts["rows"]).astype(np.int64),
        owned=np.concatenate(parts["owned"]),
        span=np.array(parts["span"], np.int64),
        dims=np.array(dims, np.int64),
        mixture_start=starts(parts["mixture"]),
        mixtures=np.concatenate(parts["mixture"]),
        factor_start=starts(parts["factor"]),
        factors=np.concatenate(parts["factor"]),
        coefficient_start=np.concatenate([[0], np.cumsum([n_times + len(m) for m in media])]),
        media=media,
        reference=np.array(reference),
        target=target,
        kind=np.array(kind),
        kinds=[high - low for low, high in first_of_kind],
        stored=meets,
        of_row=rows_of_block,
        arms=arms,
        n_perturbations=n_perturbations,
        n_times=n_times,
        members=members,
    )
