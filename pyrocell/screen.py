"""A screen: which cell had which perturbations, medium, time and batch, and what that can tell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from pyrocell.aliasing import (
    Layout,
    LayoutComponent,
    aliased_table,
    layout_components,
    warn_of_layout,
)
from pyrocell.errors import ConflictingTypesError, UnknownLabelError
from pyrocell.labels import listed, split_label, suggestion
from pyrocell.parsing import (
    condition_arrays,
    encode_batches,
    encode_times,
    read_labels,
    split_conditions,
    tabulate,
)

__all__ = ["Screen"]

_LAYOUT_FIELDS = (
    "membership exposure time_index perturbations media baseline_media times batches "
    "baseline_observed"
).split()
_REQUEST_COLUMNS = ("perturbation", "media", "time", "batch")


@dataclass(frozen=True, eq=False)
class Screen:
    """Conditions of a screen, their layout over batches, and the contrasts it can estimate.

    A condition is a set of perturbations, a medium and a time. Build one with `from_labels`.

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
        False if all cells were in one medium that is not the baseline asked for; that medium then
        serves as `baseline_media`, and nothing can be said about cells outside it.
    times
        (T,) times in increasing order, in the unit of the data; empty if there are none.
    batches, guides
        (B,) batches; names of the guides.
    conditions
        (C rows) perturbation, media, time (NaN where none), n_cells; unperturbed baseline first.
    membership, exposure
        (C, K) sparse and (C, J) float32, 0/1.
    duration, time_index
        (C,) float32 time (1 where there are no times), and (C,) int64 index into `times` (-1 for a
        time that the screen does not have, 0 where there are none).
    target
        (K,) int64 column of the perturbation's own gene in `genes`, -1 if not measured.
    cell_condition, cell_batch, cell_guide
        (N,) int64 indices; `cell_guide` is None without guides, and -1 where a cell has none.
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

    @classmethod
    def from_labels(
        cls,
        genes: Any,
        perturbation: Any,
        *,
        control: str = "control",
        perturbation_type: Any = "knockout",
        media: Any = None,
        baseline_media: str = "baseline",
        time: Any = None,
        batch: Any = None,
        guide: Any = None,
        columns: Mapping[str, str] | None = None,
        like: Screen | None = None,
    ) -> Screen:
        """Read a screen from one label per cell.

        Parameters
        ----------
        genes
            (G,) gene names.
        perturbation
            (N,) labels; genes of a combination are joined by `+`.
        control
            Label of unperturbed cells.
        perturbation_type
            "knockout", "CRISPRi" or "CRISPRa" for all cells, or (N,) of these; one cell's may be
            joined by `+` in the order of its genes.
        media, time, batch, guide
            (N,) labels, times (numbers ≥ 0), batches and guides; None where the screen has none.
        baseline_media
            Label of the medium without stimulus.
        columns
            How to call each argument in messages, e.g. `{"batch": 'batch_key="lane"'}`.
        like
            A screen whose perturbations, media, times and batches to keep: for new cells of a
            screen that was seen before.

        Raises
        ------
        ScreenError
            If a label is missing, there are no controls or only controls, or a time is not ≥ 0.
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
            batch=batch,
            guide=guide,
            columns=columns or {},
            like=like,
        )
        fields = tabulate(cells)
        layout = Layout(
            present=fields["layout"].to_numpy() > 0,
            **{name: fields[name] for name in _LAYOUT_FIELDS},
        )
        aliased = aliased_table(layout) if like is None else like.aliased
        if like is None:
            warn_of_layout(layout, aliased, fields["layout"], baseline_media)
        return cls(genes=pd.Index(genes, dtype=object), aliased=aliased, **fields)

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
        return self.genes.get_indexer(list(self.perturbation_genes)).astype(np.int64)

    @cached_property
    def is_control(self) -> np.ndarray:
        """(C,) bool: conditions without perturbation."""
        return np.diff(self.membership.indptr) == 0

    @property
    def aliased_contrasts(self) -> pd.DataFrame:
        """The rows of `aliased` that cannot be estimated."""
        return self.aliased[~self.aliased["estimable"]].reset_index(drop=True)

    @cached_property
    def _index(self) -> dict[str, int]:
        return {name: k for k, name in enumerate(self.perturbations)}

    @cached_property
    def _by_gene(self) -> dict[str, list[int]]:
        by_gene: dict[str, list[int]] = {}
        for k, gene in enumerate(self.perturbation_genes):
            by_gene.setdefault(gene, []).append(k)
        return by_gene

    @cached_property
    def _condition_index(self) -> dict[tuple[str, str, float], int]:
        times = [self.times[t] if self.times and t >= 0 else 0.0 for t in self.time_index]
        keys = zip(self.conditions["perturbation"], self.conditions["media"], times, strict=True)
        return {key: c for c, key in enumerate(keys)}

    def _single(self, gene: str, kind: str | None, label: str) -> int:
        """Index of one part of a label."""
        known = self._by_gene.get(gene)
        if known is None:
            options = [*self.perturbations, self.control]
            where = "" if gene == label else f' in "{label}"'
            raise UnknownLabelError(
                f'perturbation "{gene}"{where} is not in the screen{suggestion(gene, options)}'
            )
        matching = [k for k in known if kind in (None, self.perturbation_types[k])]
        if len(matching) == 1:
            return matching[0]
        have = listed(f'"{gene} ({self.perturbation_types[k]})"' for k in known)
        problem = "occurs with several types" if matching else f"has no type {kind}"
        raise UnknownLabelError(f'perturbation "{gene}" {problem} in the screen; say {have}')

    def indices(self, label: str) -> list[int]:
        """Return the perturbations that a label stands for, as sorted indices.

        Raises
        ------
        UnknownLabelError
            If a gene is not a perturbation of the screen, with close matches.
        ConflictingTypesError
            If one gene is given two types.
        """
        found = {self._single(g, kind, label) for g, kind in split_label(str(label), self.control)}
        genes = [self.perturbation_genes[k] for k in found]
        for gene in genes:
            if genes.count(gene) > 1:
                raise ConflictingTypesError(f'"{label}" gives gene "{gene}" two types')
        return sorted(found)

    def parse(self, label: str) -> np.ndarray:
        """Return the (K,) float32 0/1 genotype of a label such as `"A+B"`; see `indices`."""
        genotype = np.zeros(len(self.perturbations), dtype=np.float32)
        genotype[self.indices(label)] = 1.0
        return genotype

    def label_of(self, perturbations: Any) -> str:
        """Return the canonical label of perturbations given by index."""
        return "+".join(self.perturbations[k] for k in sorted(perturbations)) or self.control

    def media_index(self, label: str) -> int:
        """Return the index of a medium, -1 for the baseline; raise UnknownLabelError otherwise."""
        label, options = str(label).strip(), [self.baseline_media, *self.media]
        if label in options:
            return options.index(label) - 1
        raise UnknownLabelError(
            f'medium "{label}" is not in the screen{suggestion(label, options)}'
        )

    def condition_of(
        self, perturbation: str, media: str | None = None, time: float | None = None
    ) -> int:
        """Return the index of a measured condition.

        Parameters
        ----------
        perturbation, media, time
            Label, medium (default: baseline) and time (may be left out if there is only one).

        Raises
        ------
        UnknownLabelError
            If a label is unknown, or no cell was measured in that condition.
        """
        label = self.label_of(self.indices(perturbation))
        medium = self.baseline_media if media is None else str(media).strip()
        self.media_index(medium)
        if time is None and len(self.times) > 1:
            raise UnknownLabelError(f"time= is needed: one of {listed(self.times)}")
        moment = 0.0 if not self.times else self.times[0]
        if time is not None and self.times:
            moment = min(self.times, key=lambda t: abs(t - time))
            if not np.isclose(moment, time):
                raise UnknownLabelError(f"time {time} is not in the screen: {listed(self.times)}")
        try:
            return self._condition_index[label, medium, moment]
        except KeyError:
            at = f" at time {moment:g}" if self.times else ""
            raise UnknownLabelError(
                f'no cell was measured with perturbation "{label}" in medium "{medium}"{at}; see '
                "screen.conditions for those that were"
            ) from None

    def encode(self, frame: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Turn requested conditions into arrays.

        Parameters
        ----------
        frame
            Columns perturbation; media (default: baseline); time (may be left out if the screen has
            at most one; any number ≥ 0); batch (default, and where NaN: no batch).

        Returns
        -------
        genotype (n, K) float32, exposure (n, J) float32, duration (n,) float32, and batch index
        (n,) int64, -1 for the average over batches.

        Raises
        ------
        UnknownLabelError
            If a column or label is not one of the screen's.
        """
        for column in frame.columns:
            if column not in (*_REQUEST_COLUMNS, "n_cells"):
                raise UnknownLabelError(
                    f'column "{column}" is not understood{suggestion(column, _REQUEST_COLUMNS)}'
                )
        if "perturbation" not in frame:
            raise UnknownLabelError('the table of conditions needs a column "perturbation"')
        n = len(frame)
        genotype = np.zeros((n, len(self.perturbations)), dtype=np.float32)
        for label, rows in frame.groupby("perturbation", dropna=False).indices.items():
            genotype[np.ix_(rows, self.indices(label))] = 1.0
        exposure = np.zeros((n, len(self.media)), dtype=np.float32)
        if "media" in frame:
            for label, rows in frame.groupby("media", dropna=False).indices.items():
                if (j := self.media_index(label)) >= 0:
                    exposure[rows, j] = 1.0
        duration = encode_times(frame.get("time"), n, self.times)
        return genotype, exposure, duration, encode_batches(frame.get("batch"), n, self.batches)

    def components(self) -> list[LayoutComponent]:
        """Return the connected components of the layout graph, largest first (paper, Fig. 6)."""
        return layout_components(self.layout)

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the cells as plain lists and strings, for JSON."""
        conditions = self.conditions.astype({"time": object})
        conditions["time"] = conditions["time"].where(self.conditions["time"].notna(), None)
        return {
            "genes": [str(gene) for gene in self.genes],
            "perturbations": list(self.perturbations),
            "perturbation_genes": list(self.perturbation_genes),
            "perturbation_types": list(self.perturbation_types),
            "control": self.control,
            "media": list(self.media),
            "baseline_media": self.baseline_media,
            "baseline_observed": self.baseline_observed,
            "times": list(self.times),
            "batches": list(self.batches),
            "guides": list(self.guides),
            "conditions": conditions.to_dict("list"),
            "layout": self.layout.to_numpy().tolist(),
            "aliased": self.aliased.to_dict("list"),
        }

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Screen:
        """Rebuild a screen from `to_dict`, without its cells."""
        names = ("perturbations", "perturbation_genes", "perturbation_types")
        conditions = pd.DataFrame(saved["conditions"]).astype({"time": float})
        media = {name: j for j, name in enumerate(saved["media"])} | {saved["baseline_media"]: -1}
        arrays = condition_arrays(
            split_conditions(conditions["perturbation"], saved["perturbations"]),
            conditions["media"].map(media).to_numpy(np.int64),
            conditions["time"].to_numpy(),
            len(saved["perturbations"]),
            len(saved["media"]),
            saved["times"],
        )
        return cls(
            genes=pd.Index(saved["genes"], dtype=object),
            **{name: tuple(saved[name]) for name in names},
            control=saved["control"],
            media=tuple(saved["media"]),
            baseline_media=saved["baseline_media"],
            times=tuple(saved["times"]),
            batches=tuple(saved["batches"]),
            guides=tuple(saved["guides"]),
            baseline_observed=saved["baseline_observed"],
            conditions=conditions,
            layout=pd.DataFrame(saved["layout"], columns=list(saved["batches"])),
            aliased=pd.DataFrame(saved["aliased"]).astype({"estimable": bool}),
            **arrays,
        )
