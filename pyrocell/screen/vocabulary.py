"""The names of a screen, and what a label stands for among them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from pyrocell._core.messages import did_you_mean, join_names
from pyrocell.errors import ConflictingTypesError, UnknownLabelError
from pyrocell.screen.labels import split_label

__all__ = ["Vocabulary"]


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Names of perturbations, media, times, batches and laboratories; see `Screen` for each."""

    perturbations: tuple[str, ...]
    perturbation_genes: tuple[str, ...]
    perturbation_types: tuple[str, ...]
    control: str
    media: tuple[str, ...]
    baseline_media: str
    times: tuple[float, ...]
    batches: tuple[str, ...]
    baseline_observed: bool = True
    laboratories: tuple[str, ...] = ()
    batch_laboratory: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    @cached_property
    def _by_gene(self) -> dict[str, list[int]]:
        by_gene: dict[str, list[int]] = {}
        for k, gene in enumerate(self.perturbation_genes):
            by_gene.setdefault(gene, []).append(k)
        return by_gene

    def _single(self, gene: str, kind: str | None, label: str) -> int:
        """Index of one part of a label."""
        known = self._by_gene.get(gene)
        if known is None:
            options = [*self.perturbations, self.control]
            where = "" if gene == label else f' in "{label}"'
            raise UnknownLabelError(
                f'perturbation "{gene}"{where} is not in the screen{did_you_mean(gene, options)}'
            )
        matching = [k for k in known if kind in (None, self.perturbation_types[k])]
        if len(matching) == 1:
            return matching[0]
        have = join_names(f'"{gene} ({self.perturbation_types[k]})"' for k in known)
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

    def label_of(self, perturbations: Iterable[int]) -> str:
        """Return the canonical label of perturbations given by index."""
        return "+".join(self.perturbations[k] for k in sorted(perturbations)) or self.control

    def media_index(self, label: str) -> int:
        """Return the index of a medium, -1 for the baseline; raise UnknownLabelError otherwise."""
        label, options = str(label).strip(), [self.baseline_media, *self.media]
        if label in options:
            return options.index(label) - 1
        raise UnknownLabelError(
            f'medium "{label}" is not in the screen{did_you_mean(label, options)}'
        )
