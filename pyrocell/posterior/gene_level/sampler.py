"""Gibbs sampler of everything that moves the levels of genes, given the counts of every condition.

    x_cg = s_tg + w_c R_mtg + Σ_{k in c} (onset_ck y_k λ_g + e_kcg) + o_c + ζ_c D_g        (levels)

s is the level of the average perturbed cell in the baseline medium at a time, so that the error of
the few controls is part of every effect and not of any one; controls lack what all perturbations
do, x = s − u. R is the response to a medium at a time, zero or of one of several sizes (were it
free, gains w could shrink at no cost while it grows), w what the condition's perturbations leave of
it. λ and y are sparse programs, e what single genes do beyond them (`prior`), o a shift that a
condition has in all genes alike (a share of expression is lost by all when one gains it), ζ the
state in which the sampled cells of a condition happened to be, along the loading D on which cells
differ: errors of genes are correlated.

A sweep draws batch noise, then the effects of every block from the exact likelihood (quadrature),
then the other parts with the blocks' effects integrated out, given each block's component, from the
likelihood's normal approximation at the levels drawn last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Protocol

import numpy as np
import scipy.sparse as sp

from pyrocell._core.threading import parallel_for
from pyrocell.posterior.gene_level import kernels
from pyrocell.posterior.gene_level.blocks import Blocks
from pyrocell.posterior.gene_level.counts import LevelCounts
from pyrocell.posterior.gene_level.overdispersion import draw_log_theta
from pyrocell.posterior.gene_level.prior import SCALES, SPIKES
from pyrocell.screen.feature_views import places_of

__all__ = [
    "LEAST_OWN",
    "Contexts",
    "GainPrior",
    "Sampler",
    "State",
    "add_offsets",
    "gain_of_conditions",
    "own_weights",
]

_AT_ONCE = 128  # genes of a task
_SPIKES = 0.2  # genes, as a share of all, that are counted as unmoved before any is looked at
_FAVOUR = 2.0  # power of the share of genes that do not move, by which `_SPIKES` is multiplied
_COMMON_SPIKES = 1.0  # genes, as a share of all, that count as unmoved by what all drivers do
_LOADING_SPIKES = 1.0  # the same for the loading of a program
_ACTIVE_SPIKES = 0.2  # perturbations, as a share of all, that count as not moving a program
_ALIKE = 20.0  # genes that the weights of all drivers count as, in those of one
_LOADING_SCALES = np.array([0.2, 0.4, 0.8, 1.6])
_RESPONSE_SCALES = np.array([0.1, 0.2, 0.4, 0.8, 1.6, 3.2])
_THETA_EVERY = 4  # sweeps between draws of θ, which the cells decide more than the levels do
LEAST_OWN = 0.4  # of a gene's noise that is its own and not the cells' state
_OFFSET_SD, _OFFSET_FREEDOM = 0.02, 4.0
_NUMBERS = 2**22  # worked on at once
_LARGEST_STEP = 2.0
_STEEPEST_LINK = 2.0
_FEWEST = 50  # features that a view counts as at least, in what is taken for unmoved beforehand
_OWN_SPIKE = 0.2  # weight of "does not change" for the transcript of the perturbed gene


@dataclass(frozen=True)
class Contexts:
    """Media and times in which cells were measured.

    Attributes
    ----------
    of_condition
        (C,) context of each condition.
    medium, node
        (Q,) medium, -1 for the baseline, and measured time.
    rest
        (Q,) context of the baseline medium at the same time, -1 where there is none.
    """

    of_condition: np.ndarray
    medium: np.ndarray
    node: np.ndarray
    rest: np.ndarray

    def __len__(self) -> int:
        return len(self.medium)

    @property
    def is_response(self) -> np.ndarray:
        """(Q,) contexts whose level is that of `rest` and a response to the medium."""
        return (self.medium >= 0) & (self.rest >= 0)


@dataclass(frozen=True)
class GainPrior:
    """Mixture of normals: what a perturbation leaves of the response to a medium."""

    weights: np.ndarray
    locs: np.ndarray
    scales: np.ndarray


@dataclass(frozen=True)
class State:
    """One joint draw, but for the blocks' effects, which follow from it; see the module.

    Attributes
    ----------
    seed
        Of the draw of the blocks that was made in the sampler.
    level
        (Q, G) s of contexts, R of those that respond to a medium, see `Contexts.is_response`.
    offset, state
        (C,) o and (C, d) ζ; with several views (C, parts), see `Sampler`, and (C, V d).
    loading, activity
        (G, r) λ and (K, r) y.
    eta
        (H, G) batch noise of groups.
    log_theta
        (G,) overdispersion between cells.
    gain
        (K, J).
    log_weights
        (blocks, components).
    spike
        (blocks,) width of the spike, in units of `prior.REST`.
    common
        (G,) u, what all perturbations do.
    kept
        (coefficients, G) of the blocks that are kept, see `Blocks.stored_coefficients`.
    imputation
        Number of the draw of who responded, where guides are part of the model.
    """

    seed: int
    level: np.ndarray
    offset: np.ndarray
    state: np.ndarray
    loading: np.ndarray
    activity: np.ndarray
    eta: np.ndarray
    log_theta: np.ndarray
    gain: np.ndarray
    log_weights: np.ndarray
    spike: np.ndarray
    common: np.ndarray
    kept: np.ndarray
    imputation: int = 0


class Responders(Protocol):
    """Draws who responded between sweeps; see `pyrocell.posterior.strength`."""

    def due(self, sweep: int, burn_in: int) -> bool:
        """Whether to draw anew before a sweep."""
        ...

    def renew(self, sampler: Sampler) -> int:
        """Draw, hand the sampler the counts (`Sampler.adopt`), and give the draw's number."""
        ...


class Sampler:
    """Sampler for one screen.

    Parameters
    ----------
    counts
        The likelihood.
    blocks, contexts
        The layout.
    onset
        (C, K) sparse, see `Clock`.
    noise_loading
        (d, G) axes D on which cells of a condition differ, of a standard normal state.
    rank
        Number of programs; with several views, where they are not shared, of each view.
    shared
        Whether programs move the features of all views.
    offsets
        Whether conditions have a shift in all genes alike: depths that are sums over these genes.
        With several views, the features of each view whose depths are such sums.
    gain_prior
        Prior of gains; None where they are 1.
    genotype
        (C, K) sparse 0/1.
    n_media
        J.
    seed
        Of everything random.
    links
        (G, G) sparse weights of features that programs are expected to move as those they are
        linked to; None where there are none, or programs are not shared.
    """

    def __init__(
        self,
        counts: LevelCounts,
        blocks: Blocks,
        contexts: Contexts,
        onset,
        genotype,
        noise_loading: np.ndarray,
        rank: int = 0,
        shared: bool = True,
        offsets: bool | Sequence[slice] = True,
        gain_prior: GainPrior | None = None,
        n_media: int = 0,
        seed: int = 0,
        links: sp.csr_array | None = None,
    ):
        self.counts, self.blocks, self.contexts = counts, blocks, contexts
        self.onset, self.genotype = onset.tocsr(), genotype.tocsr()
        self.by_driver = onset.tocsc()
        self.gain_prior = gain_prior
        self.offsets = [slice(None)] * offsets if isinstance(offsets, bool) else list(offsets)
        self.rng, self.seed = np.random.default_rng(seed), seed
        n_conditions, n_genes = counts.total.shape
        self.n_conditions, self.n_genes = n_conditions, n_genes
        self.n_perturbations, self.n_media = blocks.n_perturbations, n_media
        self.rate = np.log(counts.rate).astype(np.float32)
        self.views = places_of(counts.sizes or (n_genes,))
        # what is unmoved before any feature is looked at counts as of so many
        fewest = min(n_genes, _FEWEST)
        self.counted = [max(part.stop - part.start, fewest) for part in self.views]
        self.moved = [slice(0, n_genes)] if shared else self.views  # features that programs move
        self.axis_spans = [part for part in self.moved for _ in range(rank)]  # of each program
        self.rank = len(self.axis_spans)
        self.links = links if shared and links is not None and links.nnz else None
        self.linked = [] if self.links is None else np.flatnonzero(np.diff(self.links.indptr))
        self.link_slope = 0.0
        self._split_noise(noise_loading)
        self.perturbed = np.asarray(self.genotype.sum(1)).ravel() > 0
        self._start()
        self.parts, self.part_view = [], []
        for v, part in enumerate(self.views):
            n_tasks = 2 * -(-(part.stop - part.start) // (2 * _AT_ONCE))  # even, for two threads
            edges = np.linspace(part.start, part.stop, n_tasks + 1).astype(int)
            mine = [(int(a), int(b)) for a, b in pairwise(edges) if b > a]
            self.parts += mine
            self.part_view += [v] * len(mine)
        rows = np.arange(0, n_conditions + 16, 16).clip(max=n_conditions)
        self.row_parts = [(a, b) for a, b in pairwise(rows) if b > a]
        self.all_genes = np.arange(n_genes)

    # ------------------------------------------------------------------ start
    def _split_noise(self, loading: np.ndarray) -> None:
        """The part of the loading that the noise of genes has room for."""
        # the cells of a condition that have a view need not be those that have another, and are in
        # states of their own
        whole = np.zeros((len(self.views), *loading.shape))
        for v, part in enumerate(self.views):
            whole[v, :, part] = loading[:, part]
        loading = whole.reshape(-1, loading.shape[1])
        spread = self.counts.spread(np.log(self.counts.noise.theta))
        shared = self.counts.shared_noise(loading)
        room = ((1 - LEAST_OWN) * spread / np.maximum(shared, 1e-12)).min(0)
        self.noise_loading = (loading * np.sqrt(np.minimum(1.0, room))).astype(np.float32)
        self.log_theta = np.log(self.counts.noise.theta)
        self._set_spread()

    def _set_spread(self) -> None:
        """What is the genes' own of their noise, beside the state of the cells."""
        whole = self.counts.spread(self.log_theta)
        shared = self.counts.shared_noise(self.noise_loading)
        self.spread = np.maximum(whole - shared, LEAST_OWN * whole).astype(np.float32)

    def _draw_overdispersion(self) -> None:
        """θ given the levels, which a burst may have moved or not."""
        counts = self.counts
        self.log_theta = draw_log_theta(
            counts.noise.log_weight, counts.total, self.depth, counts.within, counts.between,
            self.x, counts.reference - self.rate, self.rng,
        )  # fmt: skip
        self._set_spread()

    def _start(self) -> None:
        blocks, n_conditions, n_genes = self.blocks, self.n_conditions, self.n_genes
        n_contexts = len(self.contexts)
        zeros = lambda *shape: np.zeros(shape, np.float32)  # noqa: E731
        self.x, self.effect = zeros(n_conditions, n_genes), zeros(len(blocks.rows), n_genes)
        self.precision = zeros(int(blocks.precision_start[-1]), n_genes)
        self.response = zeros(n_conditions, n_genes)
        self.level = np.zeros((n_contexts, n_genes))
        several = (len(self.offsets),) if self.counts.sizes else ()
        self.offset = np.zeros((n_conditions, *several))
        self.offset_sd = np.full(len(self.offsets), 0.3)
        self.state = np.zeros((n_conditions, len(self.noise_loading)))
        self.loading = np.zeros((n_genes, self.rank))
        self.activity = np.zeros((self.n_perturbations, self.rank))
        self.active_share = np.full(self.rank, 0.3)
        self.loading_weights = np.tile(
            [0.8, *[0.2 / len(_LOADING_SCALES)] * len(_LOADING_SCALES)], (self.rank, 1)
        )
        self.gain = np.ones((self.n_perturbations, self.n_media))
        self.eta = self.counts.eta.copy()
        n_views = len(self.views)
        self.weights = np.stack([blocks.starting_weights()] * n_views)  # (V, blocks, components)
        depth = np.log(self.counts.depth) + self.rate  # at the pooled rate: levels start at zero
        self.log_depth = depth.astype(np.float32)
        self.depth = np.exp(self.log_depth)
        pooled = np.zeros((n_contexts, n_genes))
        for q in range(n_contexts):  # each context at its own pooled level
            mine = self.contexts.of_condition == q
            total, deep = self.counts.total[mine].sum(0), self.depth[mine].sum(0)
            pooled[q] = np.log((total + 0.5) / (deep + 0.5))
            self.x[mine] = pooled[q]
        responds = self.contexts.is_response
        self.level = pooled.copy()
        self.level[responds] -= pooled[self.contexts.rest[responds]]
        n = len(_RESPONSE_SCALES)
        self.response_weights = np.tile([0.5, *[0.5 / n] * n], (n_contexts, 1))
        self.own_weights = own_weights(blocks)
        self.spike = np.ones((n_views, len(blocks)))
        self.spike_weights = np.full((n_views, len(SPIKES)), 1 / len(SPIKES))
        programs = zeros(self.n_perturbations if self.rank else 0, n_genes)
        self._summed_up, self.imputation = False, 0
        self._responses = np.zeros((n_contexts, 2, n_genes)), np.zeros(n_contexts)
        self._summed = [0, zeros(int(blocks.coefficient_start[-1]), n_genes), programs]
        self.design = self._design()

    def _design(self) -> np.ndarray:
        """(C, Q) how levels and responses of contexts make up the level of each condition."""
        contexts = self.contexts
        out = np.zeros((self.n_conditions, len(contexts)))
        c = np.arange(self.n_conditions)
        q = contexts.of_condition
        out[c, q] = gain_of_conditions(contexts, self.genotype, self.gain)
        responds = np.flatnonzero(contexts.is_response[q])
        out[responds, contexts.rest[q[responds]]] = 1.0
        return out

    # ------------------------------------------------------------------ sweeps
    def run(
        self,
        sweeps: int,
        burn_in: int,
        bar: Callable[..., Iterable] = iter,
        learn_spikes: bool = True,
        responders: Responders | None = None,
    ) -> Iterator[State]:
        """Sweep, and yield the state of every sweep after the first `burn_in`."""
        for sweep in bar(range(sweeps)):
            if responders is not None and responders.due(sweep, burn_in):
                self.imputation = responders.renew(self)
            self._draw_noise()
            if sweep % _THETA_EVERY == 0:
                self._draw_overdispersion()
            state = self._state(sweep) if sweep >= burn_in else None
            self._summed_up = state is not None
            learns = learn_spikes and sweep >= burn_in // 2  # programs are looked for first
            share = self._draw_blocks(self.seed * 1_000_003 + sweep, SPIKES if learns else ())
            if state is not None:
                self._sum_up()
                yield self._with_effects(state)
            self._draw_weights(share)
            if learns:
                self._draw_spikes()
            self._draw_levels()
            if self.offsets:
                self._draw_offsets()
            if len(self.noise_loading):
                self._draw_states()
            if self.gain_prior is not None:
                self._draw_gains()
            if self.rank:
                if sweep == max(5, burn_in // 4):
                    self._start_programs()
                if sweep >= max(5, burn_in // 4):
                    for axis in range(self.rank):
                        self._draw_loading(axis)
                        self._draw_activity(axis)
                    if self.links is not None:
                        self._draw_link_slope()

    def adopt(self, counts: LevelCounts) -> None:
        """Go on with the counts of other cells of the same conditions."""
        self.counts = counts
        self._set_spread()
        moved = counts.moved(self.eta)
        self.log_depth = (np.log(counts.depth) + self.rate + moved).astype(np.float32)
        self.depth = np.exp(self.log_depth)

    def _state(self, sweep: int) -> State:
        return State(
            seed=self.seed * 1_000_003 + sweep,
            level=self.level.astype(np.float32),
            offset=self.offset.copy(),
            state=self.state.astype(np.float32),
            loading=self.loading.astype(np.float32),
            activity=self.activity.astype(np.float32),
            eta=self.eta.astype(np.float32),
            log_theta=self.log_theta.astype(np.float32),
            gain=self.gain.copy(),
            log_weights=self._of_views(np.log(self.weights + 1e-30)),
            spike=self._of_views(self.spike.copy()),
            common=np.zeros(0, np.float32),
            kept=np.zeros((0, self.n_genes), np.float32),
            imputation=self.imputation,
        )

    def _of_views(self, values: np.ndarray) -> np.ndarray:
        """Values of views, without that dimension where there is one."""
        return values if len(self.views) > 1 else values[0]

    def _sum_up(self) -> None:
        self._summed[0] += 1
        self._summed[1] += self.coefficients
        if self.rank:
            self._summed[2] += (self.activity @ self.loading.T).astype(np.float32)

    def means(self) -> dict[str, np.ndarray]:
        """Means over sweeps: of coefficients, and of what programs do, (K, G) or (0, G).

        And mean and second moment of responses to media, (Q, 2, G), their mixture summed out.
        """
        n, coefficients, program = self._summed
        summed, sweeps = self._responses
        return {
            "mean_coefficients": coefficients / n,
            "mean_program": program / n,
            "response_summary": summed / np.maximum(sweeps, 1)[:, None, None],
        }

    def _with_effects(self, state: State) -> State:
        found = self.coefficients
        return replace(state, common=found[0].copy(), kept=found[self.blocks.stored_coefficients])

    def _draw_noise(self) -> None:
        """Batch noise from its posterior with levels free; levels of contexts move along."""
        counts = self.counts
        if len(counts.eta) == 1:
            return
        normal = self.rng.standard_normal((self.n_genes, len(counts.eta)))
        eta = counts.eta + np.einsum("ghk,gk->hg", counts.eta_root, normal)
        self.eta = eta
        moved = counts.moved(eta)  # (C, G), of log depths
        log_depth = (np.log(counts.depth) + self.rate + moved).astype(np.float32)
        change = log_depth - self.log_depth
        self.log_depth, self.depth = log_depth, np.exp(log_depth)
        mean = np.zeros((len(self.contexts), self.n_genes))
        for q in range(len(self.contexts)):
            mine = self.contexts.of_condition == q
            weight = counts.total[mine].sum(1)
            mean[q] = (weight @ change[mine]) / max(weight.sum(), 1e-12)
        responds = self.contexts.is_response
        self.level -= mean
        self.level[responds] += mean[self.contexts.rest[responds]]
        self._relevel()

    def _relevel(self) -> None:
        """Levels of conditions from the parts, after a part has moved."""
        blocks = self.blocks
        x = self.design @ self.level
        add_offsets(x, self.offset, self.offsets)
        if len(self.noise_loading):
            x += self.state @ self.noise_loading
        if self.rank:
            x += (self.onset @ self.activity) @ self.loading.T
        self.x = x.astype(np.float32)
        np.add.at(self.x, blocks.rows, self.effect)

    def _draw_blocks(self, seed: int, widths: Sequence[float]) -> np.ndarray:
        """Draw effects; give how many genes each component has, and keep evidence of widths."""
        blocks = self.blocks
        share = np.zeros((len(self.parts), *self.weights.shape[1:]))
        coefficients = np.zeros((int(blocks.coefficient_start[-1]), self.n_genes), np.float32)
        arguments = [self._arguments(v) for v in range(len(self.views))]
        table, center = np.zeros((0, 4, self.n_genes)), np.zeros((0, self.n_genes))
        chosen, tried = np.arange(len(blocks)), np.array(widths, dtype=float)
        evidence = np.zeros((len(self.parts), len(blocks), len(tried)))

        def draw(i: int) -> None:
            kernels.draw_blocks(
                *self.parts[i], np.array([seed]), chosen, *arguments[self.part_view[i]], self.x,
                self.effect, share[i], blocks.precision_start, self.precision, self.response,
                coefficients[None], table, center, center, tried, evidence[i],
            )  # fmt: skip

        parallel_for(draw, len(self.parts))
        self.coefficients, self.evidence = coefficients, self._by_view(evidence)
        return self._by_view(share)

    def _by_view(self, values: np.ndarray) -> np.ndarray:
        """Sums over the parts (n, ...) of each view, (V, ...)."""
        out = np.zeros((len(self.views), *values.shape[1:]))
        np.add.at(out, self.part_view, values)
        return out

    def _arguments(self, view: int) -> tuple:
        log_weights, spike = np.log(self.weights[view] + 1e-30), self.spike[view]
        blocks, counts = self.blocks, self.counts
        return (
            np.arange(len(blocks)), blocks.row_start, blocks.rows, blocks.owned,
            blocks.mixture_start, blocks.span,
            blocks.dims, blocks.mixtures, blocks.coefficient_start, blocks.factor_start,
            blocks.factors, log_weights, self.own_weights, spike, blocks.target,
            counts.total, self.depth, self.spread,
        )  # fmt: skip

    def _draw_weights(self, share: np.ndarray) -> None:
        """Weights of components: each block's around those of all blocks of its kind."""
        for v in range(len(self.views)):
            self._draw_weights_of(v, share[v].copy())

    def _draw_weights_of(self, view: int, share: np.ndarray) -> None:
        """Those of a view; share (blocks, components) is how many genes each component has."""
        blocks, rng = self.blocks, self.rng
        part, n_genes = self.views[view], self.counted[view]
        # where few genes move, small sizes could take in many that do not, so the spike is
        # favoured; where most move there is less to take in
        unmoved = share[1:, 0].mean() / (part.stop - part.start) if len(share) > 1 else 1.0
        share[:, 0] += _SPIKES * unmoved**_FAVOUR * n_genes
        share[0, 0] += _COMMON_SPIKES * n_genes
        for kind, n in enumerate(blocks.kinds):
            mine = np.flatnonzero(blocks.kind == kind)
            if n == 1:
                continue
            common = rng.dirichlet(share[mine, :n].sum(0) + 1)
            for b in mine:
                self.weights[view, b, :n] = rng.dirichlet(share[b, :n] + _ALIKE * common + 1e-3)

    def _draw_spikes(self) -> None:
        """Width of each perturbation's spike, given which genes are in it."""
        mine = np.flatnonzero(self.blocks.spike_learned)
        if not len(mine):
            return
        for v in range(len(self.views)):
            log = self.evidence[v, mine] + np.log(self.spike_weights[v])
            share = np.exp(log - log.max(1, keepdims=True))
            share /= share.sum(1, keepdims=True)
            chosen = _choose(share.T, self.rng)
            self.spike[v, mine] = np.array(SPIKES)[chosen]
            self.spike_weights[v] = self.rng.dirichlet(share.sum(0) + 0.5)

    def _sums(self, kernel: Callable, *arguments) -> None:
        blocks = self.blocks
        layout = (blocks.owned_start, blocks.owned_rows, blocks.precision_start)
        fields = (self.precision, self.response)

        def work(i: int) -> None:
            kernel(*self.parts[i], arguments[0], *layout, *fields, *arguments[1:])

        parallel_for(work, len(self.parts))

    def _move(self, rows: np.ndarray, change: np.ndarray) -> None:
        """Add rows (C,) × change (G,) to the levels."""
        change = change.astype(np.float32)

        def work(i: int) -> None:
            kernels.move_genes(*self.parts[i], rows, change, self.x, self.response)

        parallel_for(work, len(self.parts))

    def _move_rows(self, change: np.ndarray) -> None:
        """Add change (C, G) to the levels."""
        change = change.astype(np.float32)
        self.x += change
        self.response -= change

    def _draw_levels(self) -> None:
        """Levels under a flat prior, and responses to media under a mixture of scales."""
        n_contexts, rng = len(self.contexts), self.rng
        curvature = np.zeros((self.n_genes, n_contexts, n_contexts))
        gradient = np.zeros((self.n_genes, n_contexts))
        self._sums(kernels.frame_sums, self.design, curvature, gradient)
        known = np.full((self.n_genes, n_contexts), 1e-6)  # prior precision
        for q in np.flatnonzero(self.contexts.is_response).tolist():
            known[:, q] = self._scale_of_response(q, curvature[:, q, q], gradient[:, q])
            gradient[:, q] -= known[:, q] * self.level[q]
        curvature += known[:, :, None] * np.eye(n_contexts)
        root = np.linalg.cholesky(curvature)
        mean = np.linalg.solve(curvature, gradient[..., None])[..., 0]
        normal = rng.standard_normal((self.n_genes, n_contexts, 1))
        noise = np.linalg.solve(np.swapaxes(root, 1, 2), normal)[..., 0]
        change = np.clip(mean + noise, -_LARGEST_STEP, _LARGEST_STEP).T
        self.level += change
        for q in range(n_contexts):
            self._move(self.design[:, q].copy(), change[q])

    def _scale_of_response(self, q: int, curvature: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        """Draw the size that each gene's response has, and give its prior precision, (G,)."""
        pull = gradient + curvature * self.level[q]
        share = _scale_shares(self.response_weights[q], _RESPONSE_SCALES, curvature, pull)
        self.response_weights[q] = self.rng.dirichlet(share.sum(1) + 1)
        if self._summed_up:
            self._sum_response(q, share[1:], curvature, pull)
        chosen = _choose(share, self.rng)
        return np.where(chosen > 0, _RESPONSE_SCALES[np.maximum(chosen - 1, 0)] ** -2, 1e8)

    def _sum_response(
        self, q: int, share: np.ndarray, curvature: np.ndarray, pull: np.ndarray
    ) -> None:
        """Add the moments of a response given all else; share (scales, G)."""
        variance = 1 / (curvature + _RESPONSE_SCALES[:, None] ** -2)
        mean = pull * variance
        summed, sweeps = self._responses
        sweeps[q] += 1
        summed[q] += (share * mean).sum(0), (share * (mean**2 + variance)).sum(0)

    def _row_sums(self, value: np.ndarray, genes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Σ_g v² P and Σ_g v P r of every condition, (C,) each."""
        blocks = self.blocks
        curvature, gradient = np.zeros(self.n_conditions), np.zeros(self.n_conditions)

        def work(i: int) -> None:
            kernels.row_sums(
                *self.row_parts[i], genes, *blocks.owner, blocks.owned_start, blocks.owned_rows,
                blocks.precision_start, self.precision, self.response, value, curvature, gradient,
            )  # fmt: skip

        parallel_for(work, len(self.row_parts))
        return curvature, gradient

    def _draw_offsets(self) -> None:
        """Shifts of conditions in all genes alike; controls have none."""
        rng, moved = self.rng, self.perturbed
        for i, part in enumerate(self.offsets):
            genes, width = self.all_genes[part], self.offset_sd[i]
            alike = np.zeros((1, self.n_genes), np.float32)
            alike[:, part] = 1.0
            offset = self.offset[:, i] if self.offset.ndim > 1 else self.offset
            curvature, gradient = self._row_sums(alike, genes)
            precision = curvature + width**-2
            mean = (gradient - offset * width**-2) / precision
            change = mean + rng.standard_normal(self.n_conditions) / np.sqrt(precision)
            change = np.where(moved, np.clip(change, -_LARGEST_STEP, _LARGEST_STEP), 0.0)
            offset += change
            self._move_rows(
                change[:, None] * alike
                if len(genes) < self.n_genes
                else np.broadcast_to(change[:, None], self.x.shape)
            )
            square = _OFFSET_FREEDOM * _OFFSET_SD**2 + (offset[moved] ** 2).sum()
            freedom = moved.sum() + _OFFSET_FREEDOM
            self.offset_sd[i] = np.sqrt(square / rng.chisquare(freedom))

    def _draw_states(self) -> None:
        """Where the cells of each condition happened to be, along the axes of cell state.

        Conditions of a block depend on each other and are drawn one after the other, those of
        different blocks at once.
        """
        normal = self.rng.standard_normal(self.state.shape)
        _, place = self.blocks.owner
        size = max(1, _NUMBERS // self.noise_loading.size)
        for j in range(int(place.max()) + 1):
            rows = np.flatnonzero(place == j)
            for first in range(0, len(rows), size):
                self._draw_states_of(rows[first : first + size], j, normal)

    def _draw_states_of(self, rows: np.ndarray, place: int, normal: np.ndarray) -> None:
        """Draw the states of conditions, each at the same place of a block of its own."""
        axes, blocks = self.noise_loading, self.blocks
        block = blocks.owner[0][rows]
        start, n = blocks.owned_start[block], np.diff(blocks.owned_start)[block]
        at = blocks.precision_start[block] + place * n
        weight = self.precision[at + place]  # (rows, G)
        pull = np.zeros(weight.shape)
        for other in range(int(n.max())):
            has = np.flatnonzero(n > other)
            response = self.response[blocks.owned_rows[start[has] + other]]
            pull[has] += self.precision[at[has] + other] * response
        curvature = (axes * weight[:, None, :]) @ axes.T  # (rows, d, d)
        old = self.state[rows]
        right = pull @ axes.T + np.einsum("rde,re->rd", curvature, old)
        per_cell = np.atleast_2d(self.counts.per_cell)[:, rows]  # (V, rows)
        per_axis = np.repeat(per_cell, len(axes) // len(per_cell), axis=0).T  # (rows, axes)
        precision = curvature + np.eye(len(axes)) / per_axis[:, None, :]
        mean = np.linalg.solve(precision, right[..., None])[..., 0]
        root = np.linalg.cholesky(precision).swapaxes(-1, -2)
        new = mean + np.linalg.solve(root, normal[rows][..., None])[..., 0]
        change = ((new - old) @ axes).astype(np.float32)
        self.state[rows] = new
        self.x[rows] += change
        self.response[rows] -= change

    def _draw_gains(self) -> None:
        """What each perturbation leaves of the response to each medium."""
        prior, contexts = self.gain_prior, self.contexts
        if not self.gain_rows:
            return
        assert prior is not None
        q, genotype = contexts.of_condition, self.genotype
        for k, rows, medium in self.gain_rows:
            response = np.empty((len(rows), self.n_genes), np.float32)
            for value, c in zip(response, rows, strict=True):
                present = genotype.indices[genotype.indptr[c] : genotype.indptr[c + 1]]
                value[:] = self.gain[present[present != k], medium].prod() * self.level[q[c]]
            curvature, gradient = self._sums_of_rows(rows, response)
            old = self.gain[k, medium]
            pull = gradient + curvature * old
            variance = prior.scales**2
            log = np.log(prior.weights) - 0.5 * np.log1p(variance * curvature)
            log += 0.5 * (
                (pull + prior.locs / variance) ** 2 / (curvature + 1 / variance)
                - prior.locs**2 / variance
            )
            share = np.exp(log - log.max())
            j = self.rng.choice(len(share), p=share / share.sum())
            precision = curvature + 1 / variance[j]
            mean = (pull + prior.locs[j] / variance[j]) / precision
            new = float(np.clip(mean + self.rng.standard_normal() / np.sqrt(precision), -1.0, 4.0))
            self.gain[k, medium] = new
            change = np.float32(new - old) * response
            self.x[rows] += change
            self.response[rows] -= change
        self.design = self._design()

    @cached_property
    def gain_rows(self) -> list[tuple[int, np.ndarray, int]]:
        """Each gain that something was measured of: perturbation, conditions, medium."""
        columns, contexts = self.genotype.tocsc(), self.contexts
        q = contexts.of_condition
        can, medium = contexts.is_response[q], contexts.medium[q]
        found = []
        for k in range(self.n_perturbations):
            mine = columns.indices[columns.indptr[k] : columns.indptr[k + 1]]
            mine = mine[can[mine]]
            found += [(k, mine[medium[mine] == m], int(m)) for m in np.unique(medium[mine])]
        return found

    def _sums_of_rows(self, rows: np.ndarray, value: np.ndarray) -> tuple[float, float]:
        """Σ v'Pv and Σ v'Pr over blocks, v zero but for some rows, where it is `value`."""
        blocks = self.blocks
        block, place = blocks.owner
        of_row = dict(zip(rows.tolist(), value, strict=True))
        curvature, gradient = 0.0, 0.0
        for c, own in of_row.items():
            b = block[c]
            mine = blocks.owned_rows[blocks.owned_start[b] : blocks.owned_start[b + 1]]
            at = blocks.precision_start[b] + place[c] * len(mine)
            for i, r in enumerate(mine.tolist()):
                known = self.precision[at + i] * own
                gradient += float(known @ self.response[r])
                if r in of_row:
                    curvature += float(known @ of_row[r])
        return curvature, gradient

    # ------------------------------------------------------------------ programs
    def _start_programs(self) -> None:
        """Activities from the leading directions of the effects drawn, turned to be sparse."""
        found = np.zeros((self.n_perturbations, self.n_genes))
        weight = np.zeros((self.n_perturbations, 1))
        blocks = self.blocks
        for b in range(1, 1 + self.n_perturbations):
            span = slice(blocks.row_start[b], blocks.row_start[b + 1])
            found[b - 1] = self.effect[span].sum(0)
            weight[b - 1] = span.stop - span.start
        found /= np.maximum(weight, 1)
        rank = self.rank // len(self.moved)
        for i, part in enumerate(self.moved):
            left, size, right = np.linalg.svd(found[:, part], full_matrices=False)
            r = min(rank, len(size))
            turn = _varimax(right[:r].T * size[:r])
            activity = left[:, :r] @ turn
            activity /= np.maximum(activity.std(0), 1e-9)
            axes = slice(i * rank, i * rank + r)
            self.activity[:, axes] = np.where(np.abs(activity) > 0.3, activity, 0.0)

    def _draw_loading(self, axis: int) -> None:
        rng = self.rng
        rows = np.asarray(self.onset @ self.activity[:, axis])
        curvature, gradient = np.zeros(self.n_genes), np.zeros(self.n_genes)
        if rows.any():
            self._sums(kernels.coefficient_sums, rows, curvature, gradient)
        old = self.loading[:, axis].copy()
        centre = 0.0
        if self.links is not None and self.link_slope:
            centre = self.link_slope * (self.links @ old)
        pull = gradient + curvature * (old - centre)  # of what is not the centre
        scales = _LOADING_SCALES
        share = _scale_shares(self.loading_weights[axis], scales, curvature, pull)
        chosen = _choose(share, rng)
        part = self.axis_spans[axis]
        n_genes = part.stop - part.start
        if n_genes < self.n_genes:  # a program of one view
            elsewhere = np.ones(self.n_genes, bool)
            elsewhere[part] = False
            chosen, share[:, elsewhere] = np.where(elsewhere, 0, chosen), 0.0
        precision = curvature + scales[np.maximum(chosen - 1, 0)] ** -2
        drawn = pull / precision + rng.standard_normal(self.n_genes) / np.sqrt(precision)
        new = centre + np.where(chosen > 0, drawn, 0.0)
        prior = 10 * np.array([0.8, *[0.2 / len(scales)] * len(scales)])
        prior[0] += _LOADING_SPIKES * n_genes
        self.loading_weights[axis] = rng.dirichlet(share.sum(1) + prior)
        self.loading[:, axis] = new
        if rows.any():
            self._move(rows, new - old)

    def _draw_link_slope(self) -> None:
        """What the loadings of features are of those of the features that they are linked to.

        Given the latter, which the former do not inform: theirs is the clearer measurement.
        """
        assert self.links is not None
        near = (self.links @ self.loading)[self.linked].ravel()
        left = self.loading[self.linked].ravel() - self.link_slope * near
        variance = max(float((left**2).mean()), 1e-4)
        precision = near @ near / variance + 1.0
        pull = near @ (left + self.link_slope * near) / variance
        drawn = pull / precision + self.rng.standard_normal() / np.sqrt(precision)
        self.link_slope = float(np.clip(drawn, -_STEEPEST_LINK, _STEEPEST_LINK))

    def _draw_activity(self, axis: int) -> None:
        rng = self.rng
        loading = self.loading[:, axis]
        genes = np.flatnonzero(loading)
        n, share = self.n_perturbations, self.active_share[axis]
        curvature, gradient = np.zeros(n), np.zeros(n)
        old = self.activity[:, axis].copy()
        if len(genes):
            curvature, gradient = self._sums_of_drivers(loading, genes)
        pull = gradient + curvature * old
        odds = np.log(share / (1 - share)) - 0.5 * np.log1p(curvature)
        odds += 0.5 * pull**2 / (curvature + 1)
        on = rng.random(n) < 1 / (1 + np.exp(-np.clip(odds, -50, 50)))
        drawn = (pull + np.sqrt(curvature + 1) * rng.standard_normal(n)) / (curvature + 1)
        self.activity[:, axis] = np.where(on, drawn, 0.0)
        spikes = _ACTIVE_SPIKES * n
        share = rng.beta(on.sum() + 0.5, n - on.sum() + 0.5 + spikes)
        self.active_share[axis] = np.clip(share, 0.5 / n, 1 - 0.5 / n)
        if len(genes):
            rows = self.onset @ (self.activity[:, axis] - old)
            self._move_rows(np.outer(rows, loading))

    def _sums_of_drivers(
        self, loading: np.ndarray, genes: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Curvature and gradient of every activity, (K,) each, the others held."""
        blocks = self.blocks
        block, place = blocks.owner
        own, pull = self._row_sums(loading[None].astype(np.float32), genes)
        pull = self.by_driver.T @ pull
        curvature = self.by_driver.power(2).T @ own
        several = np.diff(blocks.owned_start) > 1
        square = (loading[genes] ** 2).astype(np.float32)
        columns = self.by_driver
        for k in range(self.n_perturbations):
            mine = columns.indices[columns.indptr[k] : columns.indptr[k + 1]]
            value = columns.data[columns.indptr[k] : columns.indptr[k + 1]]
            if not several[block[mine]].any():
                continue
            for i, c in enumerate(mine):
                n = blocks.owned_start[block[c] + 1] - blocks.owned_start[block[c]]
                at = blocks.precision_start[block[c]] + place[c] * n
                for j, d in enumerate(mine):
                    if j != i and block[d] == block[c]:
                        between = self.precision[at + place[d], genes] @ square
                        curvature[k] += value[i] * value[j] * between
        return np.asarray(curvature).ravel(), np.asarray(pull).ravel()


def add_offsets(x: np.ndarray, offset: np.ndarray, parts: Sequence[slice]) -> None:
    """Add to levels x (C, G) what conditions have in all features of a part alike.

    `offset` is (C, parts), or (C,) where there is one.
    """
    for i, part in enumerate(parts):
        x[:, part] += (offset[:, i] if offset.ndim > 1 else offset)[:, None]


def gain_of_conditions(contexts: Contexts, genotype: sp.csr_array, gain: np.ndarray) -> np.ndarray:
    """(C,) product of the gains (K, J) of a condition's perturbations on its medium's response."""
    q = contexts.of_condition
    medium, out = contexts.medium[q], np.ones(len(q))
    for c in np.flatnonzero(contexts.is_response[q]) if gain.size else ():
        mine = genotype.indices[genotype.indptr[c] : genotype.indptr[c + 1]]
        out[c] = gain[mine, medium[c]].prod()
    return out


def _scale_shares(
    weights: np.ndarray, scales: np.ndarray, curvature: np.ndarray, pull: np.ndarray
) -> np.ndarray:
    """Probabilities of a spike and of normals of given scales, (1 + n, G), for normal likelihoods.

    The log likelihood of a coefficient b is pull b − curvature b² / 2; weights (1 + n,).
    """
    variance = scales[:, None] ** 2
    log = np.log(weights[1:] + 1e-30)[:, None] - 0.5 * np.log1p(variance * curvature)
    log = log + 0.5 * pull**2 / (curvature + 1 / variance)
    log = np.concatenate([np.full((1, len(pull)), np.log(weights[0] + 1e-30)), log])
    share = np.exp(log - log.max(0))
    return share / share.sum(0)


def _choose(share: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw a row for every column of probabilities."""
    return (rng.random(share.shape[1]) > share.cumsum(0)).sum(0).clip(max=len(share) - 1)


def own_weights(blocks: Blocks) -> np.ndarray:
    """(blocks, components) log weights for the gene that a perturbation is aimed at.

    Its transcript changes or does not, and stays so: the components after the spike are constant in
    time and alike in all media.
    """
    out = np.full((len(blocks), blocks.most_components), -50.0)
    for b, (low, high) in enumerate(blocks.span):
        n = min(high - low, 1 + len(SCALES))
        out[b, 0] = np.log(_OWN_SPIKE if n > 1 else 1.0)
        if n > 1:
            out[b, 1:n] = np.log((1 - _OWN_SPIKE) / (n - 1))
    return out


def _varimax(loading: np.ndarray, rounds: int = 60) -> np.ndarray:
    """Rotation (r, r) that makes loadings (G, r) simple (Kaiser 1958)."""
    turn = np.eye(loading.shape[1])
    for _ in range(rounds):
        turned = loading @ turn
        left, _, right = np.linalg.svd(
            loading.T @ (turned**3 - turned * (turned**2).mean(0)), full_matrices=False
        )
        turn = left @ right
    return turn
