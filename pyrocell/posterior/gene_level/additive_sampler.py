"""Gibbs sampler of the effects of guides' targets, from cells that each carry several.

Where nearly every cell has a set of targets of its own, levels of conditions are those of single
cells, and a table of them is cells by genes. Effects are additive there, and what counts say of
them are sums over the cells that carry a target: a sweep costs the guides that cells have, times
genes, whatever the number of sets. See `additive_kernels` for the likelihood; the prior of effects
is that of `prior`, a spike with a learned width and a mixture of scales, weights by perturbation.

    log μ_ig = log ℓ_i + a_b(i)g + Σ_{k in i} (o_k + e_kg)

a is the level of unperturbed cells in a batch, normal about its centre s, o what a perturbation
does to all genes alike (a share of expression is lost by all when one gains it).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import scipy.sparse as sp

from pyrocell._core.threading import parallel_for
from pyrocell.posterior.gene_level.additive_kernels import draw_genes
from pyrocell.posterior.gene_level.overdispersion import (
    Overdispersion,
    overdispersion_of_cells,
    pooled_overdispersion,
)
from pyrocell.posterior.gene_level.prior import (
    CALLED,
    REST,
    SCALES,
    SPIKES,
    starting_weights,
)

__all__ = ["AdditiveCounts", "AdditiveSampler", "AdditiveState"]

_AT_ONCE = 64  # genes of a task
_SPIKES, _FAVOUR, _ALIKE = 0.2, 2.0, 20.0  # as in `sampler`
_OFFSET_SD, _OFFSET_FREEDOM = 0.02, 4.0
_OWN_SPIKE = 0.2
_NO_SPIKE = 1e-3  # width of the spike of interactions, which are zero or not
_WIDTH, _WIDTH_WEIGHT, _NARROWEST = 0.1, 4.0, 1e-3  # of levels of batches about their centre
_LEARN_AT = (0.35, 0.8)  # shares of the burn-in after which overdispersion is learned anew
_NUMBERS = 2**24  # levels of sampled cells held at once


@dataclass(frozen=True, eq=False)
class AdditiveCounts:
    """Cells with their counts and drivers.

    Attributes
    ----------
    counts
        (N, G) CSC, no count above the third highest of its gene.
    log_size, batch
        (N,) log size factors and codes.
    carried
        (N, n) CSR 0/1: drivers of each cell, the K perturbations, then sets with an interaction.
    target
        (n,) gene of each perturbation itself, -1 for none.
    n_perturbations, n_batches
        K and B.
    """

    counts: sp.csc_array
    log_size: np.ndarray
    batch: np.ndarray
    carried: sp.csr_array
    target: np.ndarray
    n_perturbations: int
    n_batches: int

    @property
    def shape(self) -> tuple[int, int]:
        """Drivers and genes."""
        return len(self.target), len(self.counts.indptr) - 1


@dataclass(frozen=True, eq=False)
class AdditiveState:
    """One joint draw.

    `effect` (n, G), `offset` (n,), `level` (B, G), `centre` (G,), and `spike` (n,), the widths of
    spikes in units of `prior.REST`.
    """

    seed: int
    effect: np.ndarray
    offset: np.ndarray
    level: np.ndarray
    centre: np.ndarray
    spike: np.ndarray


class AdditiveSampler:
    """Sampler for one screen.

    Parameters
    ----------
    data
        The cells.
    offsets
        Whether drivers have a shift in all genes alike: depths that are sums over these genes.
    seed
        Of everything random.
    """

    def __init__(self, data: AdditiveCounts, offsets: bool = True, seed: int = 0):
        self.data, self.offsets, self.seed = data, offsets, seed
        self.rng = np.random.default_rng(seed)
        n, n_genes = data.shape
        self.n, self.n_genes = n, n_genes
        self.by_driver = sp.csc_array(data.carried)
        size = np.exp(data.log_size)
        total = np.asarray(data.counts.sum(0)).ravel()
        self.total = total
        self.rate = np.maximum(total, 0.5) / size.sum()
        self._start_levels(size)
        self.effect = np.zeros((n, n_genes), np.float32)
        self.component = np.zeros((n, n_genes), np.int8)
        self.offset, self.offset_sd = np.zeros(n), 0.1
        self.is_arm = np.arange(n) >= data.n_perturbations
        self.spike = np.ones(n)
        self.spike_weights = np.full(len(SPIKES), 1 / len(SPIKES))
        self.weights = np.tile(starting_weights(1 + len(SCALES)), (n, 1))
        self._learn_overdispersion(at_effects=False)
        edges = np.linspace(0, n_genes, 2 * -(-n_genes // (2 * _AT_ONCE)) + 1).astype(int)
        self.parts = [(int(a), int(b)) for a, b in pairwise(edges) if b > a]
        self.table, self.n_summed = np.zeros((4, n, n_genes)), 0

    def _start_levels(self, size: np.ndarray) -> None:
        """Levels of batches at their pooled rates, about those of all cells."""
        data, n_batches = self.data, self.data.n_batches
        member = sp.csr_array(
            (np.ones(len(size)), (data.batch, np.arange(len(size)))), shape=(n_batches, len(size))
        )
        counted = sp.csr_array(member @ data.counts).toarray()
        deep = np.bincount(data.batch, size, n_batches)
        few = 20.0  # counts at the rate of all cells
        self.level = np.log((counted + few) / (deep[:, None] + few / self.rate))
        self.centre = self.level.mean(0)
        self.width = np.full(self.n_genes, _WIDTH)

    # ------------------------------------------------------------------ overdispersion
    def _learn_overdispersion(self, at_effects: bool = True) -> None:
        """θ and f of every gene from a sample of cells, at the effects summed up so far."""
        data, n_cells = self.data, len(self.data.log_size)
        most = max(1000, _NUMBERS // self.n_genes)
        chosen = np.sort(np.random.default_rng(0).permutation(n_cells)[:most])
        counts = sp.csc_matrix(sp.csr_array(data.counts)[chosen])
        log_size, batch = data.log_size[chosen], data.batch[chosen]
        if at_effects:
            effect = self.table[0] / max(self.n_summed, 1) + self.offset[:, None]
            level = self.level[batch] + data.carried[chosen] @ effect
            self.noise = overdispersion_of_cells(counts, log_size, level)
        else:
            self.noise = pooled_overdispersion(counts, log_size, batch, self.level)

    # ------------------------------------------------------------------ sweeps
    def run(
        self, sweeps: int, burn_in: int, bar: Callable[..., Iterable] = iter
    ) -> Iterator[AdditiveState]:
        """Sweep, and yield the state of every sweep after the first `burn_in`."""
        learn = {max(1, int(share * burn_in)) for share in _LEARN_AT}
        for sweep in bar(range(sweeps)):
            if sweep in learn:
                self._learn_overdispersion()
            if sweep in {*learn, burn_in, burn_in // 2 // 2}:
                self.table[:], self.n_summed = 0.0, 0
            self._sweep(sweep, learn_spikes=sweep >= burn_in // 3)
            if sweep >= burn_in:
                yield AdditiveState(
                    self.seed * 1_000_003 + sweep,
                    self.effect.copy(),
                    self.offset.copy(),
                    self.level.astype(np.float32),
                    self.centre.astype(np.float32),
                    self.spike.copy(),
                )

    def _sweep(self, sweep: int, learn_spikes: bool) -> None:
        data, n_parts = self.data, len(self.parts)
        share = np.zeros((n_parts, self.n, 1 + len(SCALES)))
        moments = np.zeros((n_parts, 2, self.n))
        tried = REST * np.array(SPIKES)
        evidence = np.zeros((n_parts, self.n, len(tried)))
        own = np.log([_OWN_SPIKE, *[(1 - _OWN_SPIKE) / len(SCALES)] * len(SCALES)])
        wide = np.where(self.is_arm, _NO_SPIKE, REST * self.spike)
        noise: Overdispersion = self.noise
        arguments = (
            data.log_size, data.batch, self.by_driver.indptr, self.by_driver.indices,
            data.carried.indptr, data.carried.indices, data.counts.indptr, data.counts.indices,
            data.counts.data, self.level, self.centre, self.width, self.effect, self.component,
            self.offset, np.log(self.weights + 1e-30), own, np.array([1.0, *SCALES]) ** -2.0,
            wide**-2.0, data.target, noise.inverse, noise.factor, tried,
            np.where(self.is_arm, 0.0, CALLED * wide),
        )  # fmt: skip

        def work(i: int) -> None:
            seed = (self.seed * 7_919 + sweep) % 2**31
            draw_genes(*self.parts[i], seed, *arguments, share[i], moments[i], evidence[i],
                       self.table)  # fmt: skip

        parallel_for(work, n_parts)
        self.n_summed += 1
        self._draw_weights(share.sum(0))
        if learn_spikes:
            self._draw_spikes(evidence.sum(0))
        if self.offsets:
            self._draw_offsets(moments.sum(0))
        if data.n_batches > 1:
            self._draw_widths()

    def _draw_weights(self, share: np.ndarray) -> None:
        """Weights of components: each perturbation's around those of all, as in `sampler`."""
        for mine in (np.flatnonzero(~self.is_arm), np.flatnonzero(self.is_arm)):
            if not len(mine):
                continue
            counted = share[mine].copy()
            unmoved = counted[:, 0].mean() / self.n_genes
            counted[:, 0] += _SPIKES * unmoved**_FAVOUR * self.n_genes
            common = self.rng.dirichlet(counted.sum(0) + 1)
            gamma = self.rng.gamma(counted + _ALIKE * common + 1e-3)
            self.weights[mine] = gamma / gamma.sum(1, keepdims=True)

    def _draw_spikes(self, evidence: np.ndarray) -> None:
        """Width of each perturbation's spike, given which genes are in it."""
        mine = np.flatnonzero(~self.is_arm)
        log = evidence[mine] + np.log(self.spike_weights + 1e-30)
        share = np.exp(log - log.max(1, keepdims=True))
        share /= share.sum(1, keepdims=True)
        chosen = (self.rng.random(len(mine))[:, None] > share.cumsum(1)).sum(1)
        self.spike[mine] = np.array(SPIKES)[chosen.clip(max=len(SPIKES) - 1)]
        self.spike_weights = self.rng.dirichlet(share.sum(0) + 0.5)

    def _draw_offsets(self, moments: np.ndarray) -> None:
        """Shifts of all genes alike; interactions have none."""
        precision = moments[0] + self.offset_sd**-2
        drawn = moments[1] / precision + self.rng.standard_normal(self.n) / np.sqrt(precision)
        self.offset = np.where(self.is_arm, 0.0, drawn.clip(-1.0, 1.0))
        mine = self.offset[~self.is_arm]
        square = _OFFSET_FREEDOM * _OFFSET_SD**2 + (mine**2).sum()
        self.offset_sd = float(np.sqrt(square / self.rng.chisquare(len(mine) + _OFFSET_FREEDOM)))

    def _draw_widths(self) -> None:
        """Width of levels of batches about their centre, shrunk to that of all genes."""
        square = ((self.level - self.centre) ** 2).sum(0)
        common = square.mean() / self.data.n_batches
        freedom = self.data.n_batches + _WIDTH_WEIGHT
        drawn = (square + _WIDTH_WEIGHT * common) / self.rng.chisquare(freedom, self.n_genes)
        self.width = np.sqrt(drawn).clip(_NARROWEST, 3.0)

    def moments(self) -> np.ndarray:
        """(4, n, G): mean, second moment, and probabilities above and below zero, of all sweeps."""
        return self.table / max(self.n_summed, 1)
