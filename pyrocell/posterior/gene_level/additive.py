"""Gene-level posterior of a screen whose cells carry several guides each: fitted, kept, asked.

Conditions are then nearly as many as cells. Effects of targets, and of the sets that have cells
enough for an interaction, are drawn by `additive_sampler`, and every draw is kept: what is asked of
a set is the sum over its members in each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import scipy.sparse as sp
import torch

from pyrocell._core.random import stream
from pyrocell.data.backed import count_blocks
from pyrocell.data.loader import CellDataset
from pyrocell.generative.model import GenerativeModel
from pyrocell.posterior.gene_level.additive_sampler import (
    AdditiveCounts,
    AdditiveSampler,
    AdditiveState,
)
from pyrocell.posterior.gene_level.blocks import Blocks
from pyrocell.posterior.gene_level.counts import highest_allowed
from pyrocell.posterior.gene_level.prior import CALLED, REST
from pyrocell.posterior.gene_level.sampler import Contexts
from pyrocell.posterior.gene_level.states import Columns, GeneLevel, Layout, Request
from pyrocell.screen.screen import Screen

__all__ = ["AdditiveLevel", "additive_arms", "additive_counts", "additive_layout", "fit_additive"]

_BURN_IN = 24
_STATES = ((2**20, 64), (2**22, 32), (2**62, 16))  # effects up to which so many draws are kept


def additive_counts(
    counts: object, log_size: np.ndarray, screen: Screen, arms: Sequence[tuple[int, ...]] = ()
) -> AdditiveCounts:
    """Cells with their counts and drivers.

    Parameters
    ----------
    counts
        (N, G) CSR counts, in memory or stored; they are held in memory, by genes.
    log_size
        (N,) log size factors.
    screen
        The screen, with its cells.
    arms
        Sets of perturbations that have an interaction.
    """
    most = highest_allowed(counts)
    parts = []
    for _, block in count_blocks(counts):
        held = sp.csr_array(block, dtype=np.float32, copy=True)
        held.data = np.minimum(held.data, most[held.indices].astype(np.float32))
        parts.append(held)
    membership = sp.csr_array(screen.membership)
    blocks = [membership]
    if arms:
        size = np.diff(membership.indptr)
        exact = [
            (size == len(arm)) & (np.asarray(membership[:, list(arm)].sum(1)).ravel() == len(arm))
            for arm in arms
        ]
        blocks.append(sp.csr_array(np.stack(exact, 1).astype(np.float32)))
    drivers = sp.csr_array(sp.hstack(blocks, format="csr"))[screen.cell_condition]
    carried = sp.csr_array(drivers.astype(np.float32))
    carried.sort_indices()
    return AdditiveCounts(
        sp.csc_array(sp.vstack(parts, format="csc")),
        np.asarray(log_size, float),
        screen.cell_batch.astype(np.int64),
        carried,
        np.concatenate([screen.target, np.full(len(arms), -1)]).astype(np.int64),
        len(screen.perturbations),
        len(screen.batches),
    )


def _sets_with_interaction(model: GenerativeModel, screen: Screen) -> list[tuple[int, ...]]:
    """Perturbations of each arm that has an interaction, by its number."""
    member = sp.csr_array(screen.membership)
    rows = model.interaction.cpu().numpy()
    first = [int(np.flatnonzero(rows == arm)[0]) for arm in range(model.n_arms)]
    start = member.indptr
    return [tuple(sorted(member.indices[start[c] : start[c + 1]].tolist())) for c in first]


def additive_layout(model: GenerativeModel, screen: Screen) -> Layout:
    """What of the screen the draws refer to: one medium and time, a coefficient for each driver."""
    k = len(screen.perturbations)
    sets = _sets_with_interaction(model, screen)
    n = 1 + k + len(sets)
    none, zero = np.zeros(0, np.int64), np.zeros(n + 1, np.int64)
    blocks = Blocks(
        row_start=zero, rows=none, owned=none.astype(bool), span=np.zeros((n, 2), np.int64),
        dims=none, mixture_start=zero, mixtures=none.astype(float), factor_start=zero,
        factors=none.astype(float), coefficient_start=np.arange(n + 1), media=[()] * n,
        reference=np.full(n, -1), target=np.concatenate([[-1], screen.target, [-1] * len(sets)]),
        kind=np.zeros(n, np.int64), kinds=[1], stored=np.ones(n, bool),
        of_row=[np.zeros((0, 1))] * n, arms={1 + k + i: members for i, members in enumerate(sets)},
        n_perturbations=k, n_times=1,
    )  # fmt: skip
    n_conditions = len(screen.conditions)
    contexts = Contexts(
        np.zeros(n_conditions, np.int64), np.array([-1]), np.zeros(1, np.int64), np.array([0])
    )
    member = sp.csr_array(screen.membership.astype(float))
    return Layout(blocks, contexts, member, member, np.ones(n_conditions))


def fit_additive(
    model: GenerativeModel,
    screen: Screen,
    data: CellDataset,
    extra: dict[str, np.ndarray],
    seed: int = 0,
    bar: Callable[..., Iterable] = iter,
) -> AdditiveLevel:
    """Draw the effects of a fitted model's screen.

    Parameters
    ----------
    model, screen, data
        The model and its cells.
    extra
        How log means follow the model's logits: `logit`, `log_mean`, `slope`, (G,) each.
    seed
        Of the sampler.
    bar
        Shows progress over sweeps.
    """
    cells = additive_counts(
        data.counts, data.log_size, screen, _sets_with_interaction(model, screen)
    )
    sampler = AdditiveSampler(
        cells, model.config.composition, stream("gene level", seed, 0) % 2**31
    )
    size = sampler.n * sampler.n_genes
    n_states = next(n for most, n in _STATES if size <= most)
    states = list(sampler.run(_BURN_IN + n_states, _BURN_IN, bar))
    kept = AdditiveLevel.of_sampler(sampler, states, extra)
    kept.join(additive_layout(model, screen), additive_arms(model, screen))
    return kept


def additive_arms(model: GenerativeModel, screen: Screen) -> list[tuple[int, tuple[int, ...], int]]:
    """Rows of `P.interaction`: number, perturbations, and the medium, which is the baseline."""
    return [(arm, s, -1) for arm, s in enumerate(_sets_with_interaction(model, screen))]


class AdditiveLevel(GeneLevel):
    """Posterior of effects that add up: every draw of every driver, and exact summaries of each.

    Beside the tensors that `GeneLevel` has of levels and batch noise: `effect` (S, n, G) in half
    precision, and `summary` (4, n, G), mean, second moment and the probabilities of being above and
    below what is called an effect, of which the last draws are averages over sweeps.
    """

    @classmethod
    def of_sampler(
        cls,
        sampler: AdditiveSampler,
        states: Sequence[AdditiveState],
        extra: dict[str, np.ndarray],
    ) -> AdditiveLevel:
        """Collect the draws of a sampler."""
        data, rate = sampler.data, sampler.rate
        n_states, k, n_genes = len(states), data.n_perturbations, sampler.n_genes
        centre = np.stack([s.level.mean(0) for s in states])  # (S, G)
        eta = np.stack([s.level for s in states]) - centre[:, None]
        cells = np.bincount(data.batch, minlength=data.n_batches).astype(float)
        arrays = {
            "additive": np.ones(1),
            "seed": np.array([s.seed for s in states]),
            "spike": np.stack([s.spike for s in states]),
            "offset": np.stack([s.offset for s in states]),
            "level": (centre - np.log(rate))[:, None],
            "common": np.zeros((n_states, n_genes)),
            "activity": np.zeros((n_states, k, 0)),
            "loading": np.zeros((n_states, n_genes, 0)),
            "gain": np.ones((n_states, k, 0)),
            "eta": eta,
            "summary": sampler.moments(),
            "counts_rate": rate,
            "counts_total": sampler.total[None],
            "onset_at": np.ones((k, 1)),
            "growth_at": np.ones(1),
            "begun_at": np.ones(1),
            "ahead": np.zeros((k, 1)),
            "mean_program": np.zeros((0, n_genes)),
            "batch_of_group": np.arange(data.n_batches),
            "batch_cells": cells[:, None],
            "ratio_batch": np.ones(n_genes),
            "ratio_laboratory": np.ones(n_genes),
            "media_noise": np.zeros(n_genes),
            "effect_noise": np.zeros((k, n_genes)),
            **extra,
        }
        tensors = {}
        for name, values in arrays.items():
            kind = np.float32 if np.asarray(values).dtype.kind == "f" else np.int64
            tensors[name] = torch.as_tensor(np.asarray(values, dtype=kind))
        tensors["effect"] = torch.as_tensor(np.stack([s.effect for s in states]).astype(np.float16))
        return cls(tensors)

    def coefficients(self, draw: int | None, blocks: np.ndarray) -> list[np.ndarray]:
        """What drivers do to genes, (1, G) each, in one joint draw; None: their means."""
        rows = np.asarray(blocks) - 1
        if draw is None:
            found = self.array("summary")[0][rows]
        else:
            found = self.effect[draw % len(self)][torch.as_tensor(rows)].float().cpu().numpy()
        return list(found[:, None])

    def request(self, sets: Sequence[tuple[int, ...]], medium: int, node: int) -> Request | None:
        """Conditions as the draws know them; None if an interaction was not measured that may be.

        They know perturbations, and all sums of them where no set has an interaction of its own.
        """
        arms = {members: b for b, members in self._layout.blocks.arms.items()}
        found = [1 + s[0] if len(s) == 1 else arms.get(tuple(sorted(s)), 0) for s in sets]
        if medium >= 0 or (arms and min(found, default=0) < 1):
            return None
        return Request(np.array(found), [tuple(sorted(s)) for s in sets], medium, node)

    def columns(self, asked: Request, n_samples: int) -> Columns:
        """Effects of conditions against unperturbed cells; see `GeneLevel.columns`.

        Of perturbations alone from the summaries, of sets from the joint draws.
        """
        n, n_genes = len(asked), self.counts_total.shape[1]
        sums = np.zeros((len(self), n, n_genes), np.float32)
        out = np.zeros((4, n, n_genes))
        for i, members in enumerate(asked.members):
            drivers = [*members, *([asked.blocks[i] - 1] if len(members) > 1 else [])]
            drivers = [int(d) for d in drivers if d >= 0]
            sums[:, i] = self.effect[:, drivers].float().sum(1).cpu().numpy()
            if len(members) == 1:
                out[:, i] = self.summary[:, members[0]].cpu().numpy()
                continue
            width = REST * np.sqrt((self.array("spike")[:, list(members)] ** 2).sum(1))
            least = CALLED * width[:, None]
            mine = sums[:, i]
            out[:, i] = (
                mine.mean(0),
                (mine**2).mean(0),
                (mine > least).mean(0),
                (mine < -least).mean(0),
            )
        mean, square, above, below = out
        sd = np.sqrt(np.maximum(square - mean**2, 0.0))
        draws = sums[np.arange(n_samples) % len(self)]
        return Columns(mean, sd, above, below, draws)

    def interaction_width(self, draw: int, shape: tuple[int, ...], first: int) -> np.ndarray:
        """Standard deviations of departures from additivity that were not measured, (n, G).

        As large as measured ones are; none where no set has cells enough for one.
        """
        measured = sorted(self._layout.blocks.arms)
        if not measured:
            return np.zeros(shape)
        squares = self.array("summary")[1][np.array(measured) - 1]
        return np.broadcast_to(np.sqrt(squares.mean(0)), shape)
