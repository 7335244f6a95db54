"""A screen: which cell had which perturbations, medium, time and batch, and what that can tell."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp

from pyrocell._core.messages import facts_html, join_names
from pyrocell.errors import UnknownLabelError
from pyrocell.screen.aliasing import (
    Layout,
    LayoutComponent,
    aliased_table,
    layout_components,
    warn_of_layout,
)
from pyrocell.screen.events import EVENTS, encode_events
from pyrocell.screen.parse import group_cells, read_labels
from pyrocell.screen.requests import encode_noise, encode_treatments
from pyrocell.screen.serialization import screen_fields, screen_to_dict
from pyrocell.screen.sets import additive_conditions
from pyrocell.screen.vocabulary import Vocabulary

__all__ = ["Courses", "Screen"]

_OF_CELLS = ("cell_condition", "cell_batch", "cell_guide")
_LAYOUT_FIELDS = (
    "membership exposure time_index perturbations media baseline_media times batches "
    "baseline_observed"
).split()


class Courses(NamedTuple):
    """Conditions along time, of controls and of single perturbations.

    Attributes
    ----------
    times
        (T,) that have controls.
    control
        (T,) the controls' condition.
    rows
        (K, T) conditions of each perturbation, -1 where it was not measured alone.
    """

    times: np.ndarray
    control: np.ndarray
    rows: np.ndarray

    def some(self, kept: np.ndarray) -> Courses:
        """Some of the times."""
        return Courses(self.times[kept], self.control[kept], self.rows[:, kept])


@dataclass(frozen=True, eq=False)
class Screen:
    """Conditions of a screen, their layout over batches, and the contrasts it can estimate.

    A condition is a set of perturbations, a medium and a time, and where registered the times at
    which cells were perturbed and met the medium. Build one with `from_labels`.

    Attributes
    ----------
    genes
        (G,) gene names.
    perturbations, perturbation_genes, perturbation_types
        (K,) single perturbations in sorted order: name, gene, and type. The name is the gene, or
        "GENE (type)" where the gene occurs with several types.
    control
        Label of unperturbed cells.
    media, baseline_media
        (J,) media other than the baseline, and the baseline.
    baseline_observed
        False if all cells met one stimulus, which then serves as `baseline_media`; nothing can be
        said about cells outside it.
    times
        (T,) times in increasing order, in the unit of the data; empty if there are none.
    batches, guides
        (B,) batches; names of the guides.
    laboratories, batch_laboratory
        (L,) laboratories, empty where none were registered; (B,) int64 index of each batch's.
    conditions
        (C rows) perturbation, media, time (NaN where none), n_cells; unperturbed baseline first.
        `perturbed_at`, `exposed_at` where registered.
    membership, exposure
        (C, K) sparse and (C, J) float32, 0/1.
    duration, time_index
        (C,) float32 time (1 where there are no times), and (C,) int64 index into `times` (-1 for a
        time that the screen does not have, 0 where there are none).
    target
        (K,) int64 column of the perturbation's own gene in `genes`, -1 if not measured.
    cell_condition, cell_batch, cell_guide
        (N,) int64 indices; `cell_guide` is None without guides, and -1 where a cell has none.
    own_columns
        (K,) int64 `target` where names of genes alone do not say it; None where they do.
    layout
        Conditions × batches: numbers of cells.
    aliased
        One row per contrast: `contrast`, `name`, `aliased_with`, `estimable`, `reason`.
    """

    genes: pd.Index
    perturbations: tuple[str, ...]
    perturbation_genes: tuple[str, ...]
    perturbation_types: tuple[str, ...]
    control: str
    media: tuple[str, ...]
    baseline_media: str
    times: tuple[float, ...]
    batches: tuple[str, ...]
    conditions: pd.DataFrame
    membership: sp.csr_array
    exposure: np.ndarray
    duration: np.ndarray
    time_index: np.ndarray
    layout: pd.DataFrame
    aliased: pd.DataFrame
    cell_condition: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    cell_batch: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    cell_guide: np.ndarray | None = None
    guides: tuple[str, ...] = ()
    baseline_observed: bool = True
    laboratories: tuple[str, ...] = ()
    batch_laboratory: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    own_columns: np.ndarray | None = None

    def __repr__(self) -> str:
        return "\n".join(["Screen", *(f"  {name}: {value}" for name, value in self.facts())])

    def _repr_html_(self) -> str:
        return facts_html("Screen", self.facts())

    def facts(self) -> list[tuple[str, str]]:
        """What there is and how much of it, as names and text."""
        mixed = int((~self.aliased["estimable"]).sum())
        found = [
            ("cells", f"{self.n_cells:,} × {len(self.genes):,} genes"),
            (
                "control",
                f"{self.control}, {int(self.conditions['n_cells'][self.is_control].sum()):,} cells",
            ),
            ("perturbations", f"{len(self.perturbations):,}: {join_names(self.perturbations)}"),
            ("media", join_names([self.baseline_media, *self.media])),
            ("times", join_names(f"{t:g}" for t in self.times)),
            ("batches", f"{len(self.batches):,}: {join_names(self.batches)}"),
            ("guides", f"{len(self.guides):,}" if self.guides else ""),
            ("laboratories", join_names(self.laboratories)),
            (
                "sets",
                f"{len(self.conditions):,} conditions; {int(self.additive.sum()):,} sets with too "
                "few cells for an interaction: their effects are sums"
                if self.many_sets
                else "",
            ),
            ("layout", f"{mixed:,} of {len(self.aliased):,} contrasts cannot be told from batches"),
        ]
        return [(name, value) for name, value in found if value and not value.startswith("0: ")]

    @classmethod
    def from_labels(
        cls,
        genes: Any,
        perturbation: Any,
        *,
        control: str = "control",
        perturbation_type: Any = "knockout",
        media: Any = None,
        baseline_media: str | None = "baseline",
        time: Any = None,
        perturbation_time: Any = None,
        media_time: Any = None,
        batch: Any = None,
        guide: Any = None,
        laboratory: Any = None,
        columns: Mapping[str, str] | None = None,
        like: Screen | None = None,
    ) -> Screen:
        """Read a screen from one label per cell.

        Parameters
        ----------
        genes
            (G,) gene names.
        perturbation
            (N,) labels; genes of a combination are joined by `+`. None: no cell was perturbed. Or
            `GuideSets`, the guides of each cell and their targets.
        control
            Label of unperturbed cells.
        perturbation_type
            "knockout", "CRISPRi", "CRISPRa" or "treatment", or (N,) of these; one cell's may be
            joined by `+` in the order of its genes.
        media, time, batch, guide
            (N,) labels, times (numbers ≥ 0), batches and guides; None where the screen has none.
        perturbation_time, media_time
            (N,) times at which the cell was perturbed and met its medium, on the clock of `time`;
            default 0. Values of cells without perturbation, or in baseline medium, are ignored.
        baseline_media
            Label of the medium without stimulus; None where all cells met the same stimulus.
        laboratory
            (N,) laboratories in which the batches were made; None where there is one.
        columns
            How to call each argument in messages, e.g. `{"batch": 'batch_key="lane"'}`.
        like
            A screen whose perturbations, media, times and batches to keep: for new cells of a
            screen that was seen before.

        Raises
        ------
        ScreenError
            If a label is missing, there are no controls or only controls, a time is not ≥ 0, an
            event comes after the harvest, or a batch is in two laboratories.
        UnknownLabelError
            If a label is not one that `control`, `baseline_media` or `like` allows.
        ConflictingTypesError
            If one gene has two types in one cell.

        Warns
        -----
        ScreenWarning
            If the layout cannot answer part of what one would ask; the message says which.
        """
        cells = read_labels(
            perturbation=perturbation,
            control=control,
            perturbation_type=perturbation_type,
            media=media,
            baseline_media=baseline_media,
            time=time,
            perturbation_time=perturbation_time,
            media_time=media_time,
            batch=batch,
            guide=guide,
            laboratory=laboratory,
            columns=columns or {},
            like=None if like is None else like.vocabulary,
        )
        found = group_cells(cells)
        layout = Layout(
            present=found["layout"].to_numpy() > 0,
            **{name: found[name] for name in _LAYOUT_FIELDS},
        )
        aliased = aliased_table(layout) if like is None else like.aliased
        found["own_columns"] = None if like is None else like.own_columns
        if like is None:
            warn_of_layout(layout, aliased, found["layout"])
        return cls(genes=pd.Index(genes, dtype=object), aliased=aliased, **found)

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return int(self.conditions["n_cells"].sum())

    @cached_property
    def genotype(self) -> np.ndarray:
        """(C, K) float32 0/1: perturbations of each condition."""
        return self.membership.toarray()

    @cached_property
    def target(self) -> np.ndarray:
        """(K,) int64 column of each perturbation's own gene, -1 if not measured."""
        if self.own_columns is not None:
            return self.own_columns
        return self.genes.get_indexer(pd.Index(list(self.perturbation_genes))).astype(np.int64)

    @cached_property
    def is_control(self) -> np.ndarray:
        """(C,) bool: conditions without perturbation."""
        return np.diff(self.membership.indptr) == 0

    @cached_property
    def additive(self) -> np.ndarray:
        """(C,) bool: sets of perturbations with too few cells for an interaction of their own.

        Their effects are the sums of those of their members; see `sets.additive_conditions`.
        """
        labels = pd.factorize(self.conditions["perturbation"])[0]
        cells = self.conditions["n_cells"].to_numpy()
        return additive_conditions(np.diff(self.membership.indptr), labels, cells)

    @cached_property
    def many_sets(self) -> bool:
        """Whether there are additive conditions: nearly every cell may have a set of its own."""
        return bool(self.additive.any())

    @cached_property
    def without_sums(self) -> Screen:
        """The screen without additive conditions and their cells: what has a level of its own."""
        if not self.many_sets:
            return self
        kept = np.flatnonzero(~self.additive)
        number = np.cumsum(~self.additive) - 1
        cells = ~self.additive[self.cell_condition]
        return replace(
            self,
            conditions=self.conditions.iloc[kept].reset_index(drop=True),
            membership=sp.csr_array(self.membership[kept]),
            exposure=self.exposure[kept],
            duration=self.duration[kept],
            time_index=self.time_index[kept],
            layout=self.layout.iloc[kept].reset_index(drop=True),
            cell_condition=number[self.cell_condition[cells]],
            cell_batch=self.cell_batch[cells],
            cell_guide=None if self.cell_guide is None else self.cell_guide[cells],
        )

    def carriers(self, label: str) -> np.ndarray:
        """(C,) bool: conditions whose cells stand for a label, in all media and at all times.

        Those of the label; where sets are many, all that have its perturbations among others, and
        for the control all conditions, from which the level of unperturbed cells is inferred.
        """
        if not self.many_sets:
            return (self.conditions["perturbation"] == label).to_numpy()
        wanted = self.indices(label)
        if not wanted:
            return np.ones(len(self.conditions), bool)
        return np.asarray(self.membership[:, wanted].sum(1)).ravel() == len(wanted)

    def at(self, media: str, time: float | None) -> np.ndarray:
        """(C,) bool: conditions in a medium, and at a time unless that is None."""
        here = (self.conditions["media"] == str(media).strip()).to_numpy()
        if self.times and time is not None and not np.isnan(time):
            here = here & np.isclose(self.conditions["time"].to_numpy(dtype=float), time)
        return here

    def courses(self, media: str) -> Courses:
        """Conditions of single perturbations in a medium at every time that has controls there.

        A screen without times has one course point, of time NaN.
        """
        member, here = self.membership.tocsr(), self.at(media, None)
        number = np.diff(member.indptr)
        times, control, rows = [], [], []
        for t, time in enumerate(self.times or (np.nan,)):
            at = here & (self.time_index == t) if self.times else here
            unperturbed = np.flatnonzero(at & (number == 0))
            if not len(unperturbed):
                continue
            mine = np.full(len(self.perturbations), -1)
            single = np.flatnonzero(at & (number == 1))
            mine[member.indices[member.indptr[single]]] = single
            times.append(float(time))
            control.append(int(unperturbed[0]))
            rows.append(mine)
        shape = (len(times), len(self.perturbations))
        each = np.array(control, int), np.reshape(rows, shape).astype(int).T
        return Courses(np.array(times), *each)

    @cached_property
    def perturbed_at(self) -> np.ndarray:
        """(C,) float32 time at which cells were perturbed; 0 where none was registered."""
        return self._event(EVENTS[0])

    @cached_property
    def exposed_at(self) -> np.ndarray:
        """(C,) float32 time at which cells met their medium; 0 where none was registered."""
        return self._event(EVENTS[1])

    def _event(self, name: str) -> np.ndarray:
        times = self.conditions.get(name)
        if times is None:
            times = 0.0 * self.conditions["n_cells"]
        return times.to_numpy(np.float32)

    @property
    def treatments(self) -> pd.DataFrame:
        """Perturbation, media, and (if there are any) times of each condition."""
        columns = ["perturbation", "media", *(["time"] if self.times else [])]
        table = self.conditions[columns]
        if not self.times:
            return table
        return table.assign(perturbed_at=self.perturbed_at, exposed_at=self.exposed_at)

    @property
    def aliased_contrasts(self) -> pd.DataFrame:
        """The rows of `aliased` that cannot be estimated."""
        return self.aliased[~self.aliased["estimable"]].reset_index(drop=True)

    @cached_property
    def _condition_index(self) -> dict[tuple[str, str, float], list[int]]:
        times = [self.times[t] if self.times and t >= 0 else 0.0 for t in self.time_index]
        keys = zip(self.conditions["perturbation"], self.conditions["media"], times, strict=True)
        found: dict[tuple[str, str, float], list[int]] = {}
        for c, key in enumerate(keys):
            found.setdefault(key, []).append(c)
        return found

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The names alone."""
        return Vocabulary(**{f.name: getattr(self, f.name) for f in fields(Vocabulary)})

    def indices(self, label: str) -> list[int]:
        """Return the perturbations of a label as sorted indices; see `Vocabulary.indices`."""
        return self.vocabulary.indices(label)

    def label_of(self, perturbations: Iterable[int]) -> str:
        """Return the canonical label of perturbations given by index."""
        return self.vocabulary.label_of(perturbations)

    def media_index(self, label: str) -> int:
        """Return the index of a medium, -1 for the baseline; raise UnknownLabelError otherwise."""
        return self.vocabulary.media_index(label)

    def condition_of(
        self,
        perturbation: str,
        media: str | None = None,
        time: float | None = None,
        perturbed_at: float | None = None,
        exposed_at: float | None = None,
    ) -> int:
        """Return the index of a measured condition.

        Parameters
        ----------
        perturbation, media, time
            Label, medium (default: baseline) and time (may be left out if there is only one).
        perturbed_at, exposed_at
            When cells were perturbed and met the medium; may be left out if there is only one way.

        Raises
        ------
        UnknownLabelError
            If a label is unknown, or no cell was measured in that condition.
        """
        label = self.label_of(self.indices(perturbation))
        medium = self.baseline_media if media is None else str(media).strip()
        self.media_index(medium)
        if time is None and len(self.times) > 1:
            raise UnknownLabelError(f"time= is needed: one of {join_names(self.times)}")
        moment = self.times[0] if self.times else 0.0
        if time is not None and self.times:
            moment = min(self.times, key=lambda t: abs(t - time))
            if not np.isclose(moment, time):
                raise UnknownLabelError(
                    f"time {time} is not in the screen: {join_names(self.times)}"
                )
        found = self._condition_index.get((label, medium, moment), [])
        for at, known in zip((perturbed_at, exposed_at), (self.perturbed_at, self.exposed_at)):
            found = found if at is None else [c for c in found if np.isclose(known[c], at)]
        if len(found) == 1:
            return found[0]
        at = f" at time {moment:g}" if self.times else ""
        if found:
            ways = join_names(f"{self.perturbed_at[c]:g} and {self.exposed_at[c]:g}" for c in found)
            raise UnknownLabelError(
                f'"{label}" in "{medium}"{at} needs perturbed_at= and exposed_at=, one of {ways}'
            )
        raise UnknownLabelError(
            f'no cell was measured with perturbation "{label}" in medium "{medium}"{at}; see '
            "screen.conditions for those that were"
        )

    def encode(self, frame: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Turn requested conditions into arrays.

        Parameters
        ----------
        frame
            Columns perturbation; media (default: baseline); time (may be left out if the screen has
            at most one; any number ≥ 0); batch and laboratory, see `encode_noise`.

        Returns
        -------
        genotype (n, K) float32, exposure (n, J) float32, duration (n,) float32, and batch index
        (n,) int64, -1 where the noise is not that of one measured batch.

        Raises
        ------
        UnknownLabelError
            If a column or label is not one of the screen's.
        """
        names = self.vocabulary
        return *encode_treatments(names, frame), encode_noise(names, frame).batch

    def encode_events(self, frame: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        """When requested conditions were perturbed and met their medium, two (n,) float32.

        Columns perturbed_at, exposed_at; 0 by default. Errors as `encode` and `events.py`.
        """
        genotype, exposure, duration, _ = self.encode(frame)
        return encode_events(frame, genotype, exposure, duration, bool(self.times))

    def components(self) -> list[LayoutComponent]:
        """Return the connected components of the layout graph, largest first (paper, Fig. 6)."""
        return layout_components(self.layout)

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the cells as plain lists and strings, for JSON."""
        return screen_to_dict(
            {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _OF_CELLS}
        )

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Screen:
        """Rebuild a screen from `to_dict`, without its cells."""
        return cls(**screen_fields(saved))
