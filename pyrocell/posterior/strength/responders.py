"""Draws who responded given the effects, and makes the likelihood of levels that of responders.

Between sweeps of the gene-level sampler: efficacies and escapers of all guides are drawn from their
posterior given the effects drawn last, with every cell's indicator summed out (`mixture`), then the
indicators, and the counts of a condition become those of the cells that responded. Effects are
then those of a responding cell, and what is not known of who responded is part of their posterior.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from pyrocell.data.backed import count_blocks
from pyrocell.data.loader import CellDataset
from pyrocell.posterior.gene_level.counts import (
    LevelCounts,
    cell_groups,
    half_of,
    highest_allowed,
)
from pyrocell.posterior.gene_level.sampler import State
from pyrocell.posterior.gene_level.states import IMPUTED
from pyrocell.posterior.strength.cell_evidence import STRENGTHS, EffectPath, log_evidence
from pyrocell.posterior.strength.mixture import GuideDraws, GuideMixture
from pyrocell.screen.guide_pairs import GuidePairs

if TYPE_CHECKING:
    from pyrocell.posterior.gene_level.sampler import Sampler

__all__ = ["Imputation", "Responders"]

EVERY = 6  # sweeps between draws of who responded
_DRAWS = 24  # of efficacies and escapers, for each draw of effects
_FEWEST = 5  # cells of a condition that responded, at least


@dataclass(frozen=True)
class Imputation:
    """One draw of who responded.

    Attributes
    ----------
    counts
        The likelihood of levels from the cells that did, controls among them.
    draws
        Of the guides, given the effects.
    path
        Levels at rest and effects, (C, G), that cells were compared with.
    """

    counts: LevelCounts
    draws: GuideDraws
    path: EffectPath


@dataclass(eq=False)
class Responders:
    """Who responded to which guide, drawn anew between sweeps.

    Attributes
    ----------
    counts
        The likelihood of levels from all cells.
    data
        The cells.
    group
        (N,) noise group of each.
    pairs
        Pairs of perturbation and guide, and the pair of every cell.
    loading
        (d, G) axes on which cells differ at rest.
    shares
        Whether size factors are sums over these genes.
    found
        Every draw, in order.
    """

    counts: LevelCounts
    data: CellDataset
    group: np.ndarray
    pairs: GuidePairs
    loading: np.ndarray
    shares: bool
    found: list[Imputation] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.most = highest_allowed(self.data.counts)
        self.rows = np.flatnonzero(self.pairs.of_cell >= 0)

    def due(self, sweep: int, burn_in: int) -> bool:
        """Whether to draw anew before a sweep."""
        return sweep % EVERY == 0 and sweep >= burn_in // 2

    def renew(self, sampler: Sampler) -> int:
        """Draw who responded given a sampler's effects, and hand it their counts."""
        path = self._path(sampler)
        evidence = np.zeros((len(self.rows), len(STRENGTHS)))
        condition, log_size = self.data.condition, self.data.log_size
        for rows, block in count_blocks(self.data.counts):
            mine = self.rows[(self.rows >= rows.start) & (self.rows < rows.stop)]
            if not len(mine):
                continue
            held = sp.csr_matrix(block[mine - rows.start])
            held.data = np.minimum(held.data, self.most[held.indices])
            at = np.searchsorted(self.rows, mine)
            evidence[at] = log_evidence(
                held, log_size[mine], condition[mine], self.group[mine], path
            )
        mixture = GuideMixture(evidence, self.pairs.of_cell[self.rows], self.pairs.label)
        draws = mixture.draw(_DRAWS, sampler.rng)
        keep = np.ones(len(condition), bool)
        keep[self.rows] = self._enough(draws)
        groups = cell_groups(
            self.data.counts, np.exp(log_size.astype(float)), condition, self.group,
            *(len(self.counts.total), len(self.counts.eta)), self.most, keep,
        )  # fmt: skip
        self.found.append(Imputation(half_of(self.counts, groups), draws, path))
        sampler.adopt(self.found[-1].counts)
        return len(self.found) - 1

    def of_states(self, states: list[State]) -> tuple[list[State], dict[str, np.ndarray]]:
        """States numbered by the draws that they were made under, and those draws as arrays."""
        used, place = np.unique([s.imputation for s in states], return_inverse=True)
        kept = [self.found[i] for i in used]
        stack = lambda of: np.stack([of(each) for each in kept])  # noqa: E731
        out = {f"imputed_{name}": stack(partial(_field, name)) for name in IMPUTED}
        out |= {
            "guide_label": self.pairs.label,
            "guide_number": self.pairs.guide,
            "guide_cells": self.pairs.n_cells,
            "guide_efficacy": stack(lambda each: each.draws.efficacy),
            "guide_escapers": stack(lambda each: each.draws.escapers),
            "guide_scale": self.counts.noise.scale,
            "guide_most": self.most,
            "guide_level": stack(lambda each: each.path.level).mean(0),
            "guide_effect": stack(lambda each: each.path.effect).mean(0),
        }
        states = [replace(s, imputation=int(i)) for s, i in zip(states, place, strict=True)]
        return states, out

    def _enough(self, draws: GuideDraws) -> np.ndarray:
        """Who responded, but a few cells of every condition at least."""
        condition = self.data.condition[self.rows]
        order = np.lexsort((-draws.responded, condition))
        first = np.searchsorted(condition[order], condition[order])
        rank = np.empty(len(order), np.int64)
        rank[order] = np.arange(len(order)) - first
        return draws.indicator | (rank < _FEWEST)

    def _path(self, sampler: Sampler) -> EffectPath:
        """From levels at rest to those of the conditions, as the sampler has them."""
        contexts, blocks = sampler.contexts, sampler.blocks
        q = contexts.of_condition
        level = sampler.level[q]
        responds = contexts.is_response[q]
        level[responds] += sampler.level[contexts.rest[q[responds]]]
        begun = np.asarray(sampler.onset.sum(1)).ravel() > 0
        level = level - begun[:, None] * sampler.coefficients[0]
        moved = sampler.design @ sampler.level
        if sampler.rank:
            moved += (sampler.onset @ sampler.activity) @ sampler.loading.T
        np.add.at(moved, blocks.rows, sampler.effect)
        noise = self.counts.noise
        return EffectPath(
            level=level + sampler.rate,
            effect=np.where(sampler.perturbed[:, None], moved - level, 0.0),
            eta=sampler.eta,
            loading=self.loading,
            theta=np.exp(sampler.log_theta) / noise.scale,
            shares=self.shares,
        )


def _field(name: str, each: Imputation) -> np.ndarray:
    return getattr(each.counts, name)
