"""Kept states of the sampler as tensors of a model file, and the effects that follow from one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from pyrocell._core.random import generator
from pyrocell._core.threading import parallel_for
from pyrocell.posterior.gene_level import kernels
from pyrocell.posterior.gene_level.blocks import Blocks
from pyrocell.posterior.gene_level.counts import moved_by, shared_noise
from pyrocell.posterior.gene_level.prior import CALLED
from pyrocell.posterior.gene_level.sampler import (
    LEAST_OWN,
    Contexts,
    Sampler,
    State,
    add_offsets,
    gain_of_conditions,
    own_weights,
)
from pyrocell.screen.feature_views import places_of

__all__ = ["Columns", "GeneLevel", "Layout", "Request"]

_AT_ONCE = 128  # genes of a task
_STATE = [f.name for f in fields(State)]
IMPUTED = ("total", "depth", "within", "between", "per_cell", "share")  # of those who responded
_COUNTS = ("total", "depth", "within", "between", "per_cell", "share", "eta", "rate", "raw")
_USUAL_GAIN = 0.3  # off 1, two standard deviations of gains that leave a response untouched
_FRESH = 7_919  # seeds of draws that the sampler did not make


@dataclass(frozen=True, eq=False)
class Layout:
    """What of the screen the states refer to; made anew from the screen, not kept in files.

    Attributes
    ----------
    blocks, contexts
        See there.
    onset
        (C, K) sparse share of a perturbation's response that a condition shows.
    genotype
        (C, K) sparse 0/1.
    growth
        (C,) share of an interaction that a condition shows.
    """

    blocks: Blocks
    contexts: Contexts
    onset: sp.csr_array
    genotype: sp.csr_array
    growth: np.ndarray


@dataclass(frozen=True)
class Request:
    """Conditions whose effects are asked for, in one medium at one measured time.

    Attributes
    ----------
    blocks
        (n,) the driver that each condition has to itself.
    members
        Perturbations of each.
    medium, node
        Medium, -1 for the baseline, and position of the time.
    """

    blocks: np.ndarray
    members: list[tuple[int, ...]]
    medium: int
    node: int

    def __len__(self) -> int:
        return len(self.blocks)

    def of_rows(self, rows: slice) -> Request:
        """Some of the conditions."""
        return Request(self.blocks[rows], self.members[rows], self.medium, self.node)


@dataclass(frozen=True)
class Columns:
    """Effects of n perturbations in one medium at one time, natural-log fold change, (n, G) each.

    `above` and `below` are probabilities of being above and below zero, exact given the states;
    `draws` (S, n, G) float32.
    """

    mean: np.ndarray
    sd: np.ndarray
    above: np.ndarray
    below: np.ndarray
    draws: np.ndarray


class GeneLevel:
    """Posterior of the gene-level sites: kept states, and the likelihood that effects follow from.

    Each tensor is an attribute of its name.

    Parameters
    ----------
    tensors
        As `of` makes them, or as a file holds them.
    """

    def __init__(self, tensors: dict[str, Tensor]):
        # of files from before the spike's width was learned, and before guides were part of it
        if "spike" not in tensors and "log_weights" in tensors:
            tensors = tensors | {"spike": torch.ones(tensors["log_weights"].shape[:-1])}
        if "imputation" not in tensors:
            none = torch.zeros(len(tensors["seed"]), dtype=torch.int64)
            tensors = tensors | {"imputation": none}
        self.tensors = tensors
        self.layout: Layout | None = None
        self.arms: list[tuple[int, tuple[int, ...], int]] = []

    @classmethod
    def of(
        cls, chains: Sequence[Sampler], states: Sequence[State], extra: dict[str, np.ndarray]
    ) -> GeneLevel:
        """Collect the states of samplers of one screen, and more arrays by name."""
        sampler = chains[0]
        means = [chain.means() for chain in chains]
        arrays = {name: np.stack([np.asarray(getattr(s, name)) for s in states]) for name in _STATE}
        arrays |= {f"counts_{name}": getattr(sampler.counts, name) for name in _COUNTS}
        arrays |= {"noise_loading": sampler.noise_loading, **extra}
        if sampler.counts.sizes:
            arrays["view_sizes"] = np.array(sampler.counts.sizes)
            places = [sampler.all_genes[part] for part in sampler.offsets]
            ends = [(part[0], part[-1] + 1) for part in places]
            arrays["offset_parts"] = np.array(ends, dtype=np.int64).reshape(-1, 2)
        arrays |= {name: np.mean([m[name] for m in means], 0) for name in means[0]}
        tensors = {}
        for name, values in arrays.items():
            kind = np.float32 if np.asarray(values).dtype.kind == "f" else np.int64
            tensors[name] = torch.as_tensor(np.asarray(values, dtype=kind))
        return cls(tensors)

    def __getattr__(self, name: str) -> Tensor:
        try:
            return self.__dict__["tensors"][name]
        except KeyError:
            raise AttributeError(f"the states have no {name!r}") from None

    def join(self, layout: Layout, arms: list[tuple[int, tuple[int, ...], int]]) -> None:
        """Say what of the screen the states refer to; `arms` are the rows of `P.interaction`."""
        self.layout, self.arms = layout, arms

    def __len__(self) -> int:
        """Number of states."""
        return len(self.seed)

    def array(self, name: str) -> np.ndarray:
        """A kept array."""
        return getattr(self, name).cpu().numpy()

    def part(self, name: str, draw: int) -> np.ndarray:
        """A part of the state that a draw is of."""
        return getattr(self, name)[draw % len(self)].cpu().numpy()

    # ------------------------------------------------------------------ effects
    def coefficients(self, draw: int | None, blocks: np.ndarray) -> list[np.ndarray]:
        """Coefficients of chosen blocks, (T + J, G) each, in one joint draw; None: their means."""
        layout = self._layout
        start = layout.blocks.coefficient_start
        if draw is None:
            mean = self.array("mean_coefficients")
            return [mean[start[b] : start[b + 1]] for b in blocks]
        out: dict[int, np.ndarray] = {}
        stored = layout.blocks.stored
        if stored.any():
            place = np.full(start[-1], -1)
            place[layout.blocks.stored_coefficients] = np.arange(
                len(layout.blocks.stored_coefficients)
            )
            kept = self.part("kept", draw)
            for b in blocks[stored[blocks]]:
                out[b] = kept[place[start[b] : start[b + 1]]]
        fresh = blocks[~stored[blocks]]
        if len(fresh):
            found = self._draw(draw, fresh)[0][0]
            ends = np.cumsum([start[b + 1] - start[b] for b in fresh])
            out |= dict(zip(fresh, np.split(found, ends[:-1]), strict=True))
        return [out[b] for b in blocks]

    def request(self, sets: Sequence[tuple[int, ...]], medium: int, node: int) -> Request | None:
        """Conditions as the states know them; None if they do not know one.

        They know perturbations alone, and combinations that were measured.
        """
        blocks = self._layout.blocks
        arms = {members: b for b, members in blocks.arms.items()}
        found = [1 + s[0] if len(s) == 1 else arms.get(tuple(sorted(s)), -1) for s in sets]
        if min(found, default=-1) < 0:
            return None
        return Request(np.array(found), [tuple(sorted(s)) for s in sets], medium, node)

    def context(self, medium: int, node: int) -> int | None:
        """Number of a medium at a time as a response to it; None if it was not measured so."""
        contexts = self._layout.contexts
        found = (contexts.medium == medium) & (contexts.node == node) & contexts.is_response
        return int(np.flatnonzero(found)[0]) if found.any() else None

    def columns(self, asked: Request, n_samples: int) -> Columns:
        """Effects of conditions against controls of the same medium and time.

        All states are summed up, however few draws are asked for; draws take turns among states.
        """
        blocks, n_genes = asked.blocks, self.counts_total.shape[1]
        n = len(blocks)
        growth = float(self.array("growth_at")[asked.node])
        begun = float(self.array("begun_at")[asked.node])
        factors = self._layout.blocks.outputs(blocks, asked.medium, asked.node, growth)
        summed = np.zeros((n, 4, n_genes))
        draws = np.empty((n_samples, n, n_genes), np.float32)
        stored = np.flatnonzero(self._layout.blocks.stored[blocks])
        for s in range(len(self)):
            center, least = self._center(s, asked, growth)
            lost, usual = self._lost(s, asked)
            center = begun * center + np.where(usual, 0.0, lost)
            mine = range(s, n_samples, len(self))
            turns = max(1, len(mine))
            one = np.zeros_like(summed)
            found, _ = self._draw(s, blocks, factors, center, least, one, turns)
            # a gain near 1 is no effect of its own, but moves the mean all the same
            rest = np.where(usual, lost, 0.0)
            one[:, 1] += rest * (2 * one[:, 0] + rest)
            one[:, 0] += rest
            summed += one
            for row in stored:  # joint with what meets them in a condition: drawn before
                found[:, row] = self._shown(s, blocks[row], asked, growth)
            if len(mine):
                draws[s :: len(self)] = np.float32(begun) * found + np.float32(center + rest)
        mean, square, above, below = np.swapaxes(summed, 0, 1) / len(self)
        sd = np.sqrt(np.maximum(square - mean**2, 0.0))
        return Columns(begun * mean, begun * sd, begun * above, begun * below, draws)

    def _lost(self, s: int, asked: Request) -> tuple[np.ndarray, np.ndarray]:
        """What a condition lacks of its medium's response, (n, G): (gain − 1) × response.

        And (n, 1) whether its gain is one that most perturbations have, near 1.
        """
        response = self._response(s, asked)
        gain, n = self.part("gain", s), len(asked.members)
        if response is None:
            return np.zeros((n, self.counts_total.shape[1])), np.ones((n, 1), bool)
        left = np.array([gain[list(mine), asked.medium].prod() for mine in asked.members])[:, None]
        return (left - 1) * response, np.abs(left - 1) < _USUAL_GAIN

    def _response(self, s: int, asked: Request) -> np.ndarray | None:
        """(G,) what the medium does to cells without perturbation, at the time or the nearest."""
        contexts = self._layout.contexts
        there = np.flatnonzero((contexts.medium == asked.medium) & contexts.is_response)
        if asked.medium < 0 or not len(there):
            return None
        nearest = there[np.abs(contexts.node[there] - asked.node).argmin()]
        return self.part("level", s)[nearest].astype(float)

    def _center(self, s: int, asked: Request, growth: float) -> tuple[np.ndarray, np.ndarray]:
        """What is known of effects before the blocks asked for are drawn, (n, G).

        And how large a change must be to be more than what a perturbation does to most genes, (n,
        G), see `least` in `kernels.draw_blocks`. Where programs say that a gene moves, less is
        enough.
        """
        layout, spike = self._layout.blocks, self.part("spike", s)
        out = np.repeat(self.part("common", s)[None].astype(float), len(asked.blocks), 0)
        activity = self.part("activity", s)
        onset = self.array("onset_at")[:, asked.node]
        if activity.shape[1]:
            loading = self.part("loading", s).T
            for row, members in zip(out, asked.members, strict=True):
                mine = list(members)
                row += (onset[mine] @ activity[mine]) @ loading
        spike = np.atleast_2d(spike)  # (V, blocks)
        usual = np.zeros((len(asked.blocks), len(spike)))
        for i, members in enumerate(asked.members):
            for b in (1 + k for k in members):
                if layout.spike_learned[b]:
                    usual[i] += (spike[:, b] * layout.members[b][0][asked.node, 0]) ** 2
        each = np.repeat(np.sqrt(usual), self._sizes or (out.shape[1],), axis=1)
        least = np.maximum(CALLED * each - np.abs(out), 0.0)
        for i, members in enumerate(asked.members):
            for k in members if len(members) > 1 else ():
                out[i] += self._shown(s, 1 + k, asked, growth)
        return out, least

    def _shown(self, s: int, block: int, asked: Request, growth: float) -> np.ndarray:
        """What a kept block does in the medium at the time asked for, (G,)."""
        blocks = self._layout.blocks
        (found,) = self.coefficients(s, np.array([block]))
        out = found[asked.node]
        if asked.medium in blocks.media[block]:
            place = blocks.n_times + blocks.media[block].index(asked.medium)
            out = out + growth * found[place]
        return out

    def interaction_width(self, draw: int, shape: tuple[int, ...], first: int) -> np.ndarray:
        """Standard deviations of departures from additivity that were not measured, (n, G).

        Drawn for every gene from the sizes that measured ones have: mostly zero.
        """
        b = self._layout.blocks
        rng = np.random.default_rng([int(self.part("seed", draw)), draw, first])
        measured = sorted(b.arms)
        if not measured:
            return np.zeros(shape)
        members = b.members[measured[0]]
        log_weights = self.part("log_weights", draw)  # (blocks, components), or of each view
        of_measured = np.exp(log_weights[..., measured, : len(members)])
        weights = of_measured.reshape(-1, len(members)).mean(0)
        sizes = np.array([np.sqrt((f**2).sum(1)).max() if f.size else 0.0 for f in members])
        return rng.choice(sizes, p=weights / weights.sum(), size=shape)

    def in_new_batches(
        self, draw: int, genotype: Tensor, exposure: Tensor, new: np.ndarray
    ) -> Tensor:
        """How far effects and responses of conditions are off their average in new batches, (n, G).

        Parameters
        ----------
        draw
            Conditions of the same new batch share what its draw says of a perturbation or medium.
        genotype, exposure
            (n, K) and (n, J) 0/1.
        new
            (n,) number of the new batch, -1 where it is none.
        """
        out = genotype.new_zeros(len(genotype), self.counts_total.shape[1])
        drivers = (
            ("effect in a new batch", genotype, self.effect_noise),
            ("response in a new batch", exposure, self.media_noise.expand(exposure.shape[1], -1)),
        )
        for name, present, width in drivers:
            for c, k in present.nonzero().tolist():
                if new[c] >= 0:
                    stream = generator(out.device, name, draw, int(new[c]), k)
                    noise = torch.randn(out.shape[1], generator=stream, device=out.device)
                    out[c] += width[k].to(out) * noise / self.slope.to(out)
        return out

    @property
    def _layout(self) -> Layout:
        if self.layout is None:
            raise RuntimeError("the states were not joined to their screen")
        return self.layout

    def _draw(
        self,
        draw: int,
        blocks: np.ndarray,
        factors: np.ndarray | None = None,
        center: np.ndarray | None = None,
        least: np.ndarray | None = None,
        table: np.ndarray | None = None,
        turns: int = 1,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draw the effects of blocks given all else in a state, (turns, coefficients, G).

        And what they add to their rows in the first draw.

        Parameters
        ----------
        draw, turns
            The number of the first, and how many, each as many states after the other.
        factors
            What to draw of them, one number a block (see `Blocks.outputs`); None: coefficients.
        center, least, table
            (n, G), (n, G) and (n, 4, G): see `kernels.draw_blocks`.
        """
        b = self._layout.blocks
        n_genes = self.counts_total.shape[1]
        spans = [slice(b.row_start[i], b.row_start[i + 1]) for i in blocks]
        rows = [b.rows[s] for s in spans]
        conditions, local = np.unique(np.concatenate(rows), return_inverse=True)
        x, total, depth, spread = self._levels(draw, conditions, blocks)
        lengths = np.array([len(r) for r in rows])
        start = lambda n: np.concatenate([[0], np.cumsum(n)]).astype(np.int64)  # noqa: E731
        mixtures = [b.mixtures[b.mixture_start[i] : b.mixture_start[i + 1]] for i in blocks]
        span, sizes = b.span[blocks], np.diff(b.coefficient_start)[blocks]
        if factors is None:
            parts = [b.factors[b.factor_start[i] : b.factor_start[i + 1]] for i in blocks]
            factors, factor_start = np.concatenate(parts), start([len(p) for p in parts])
        else:
            sizes = np.ones(len(blocks), np.int64)
            factor_start = start([b.dims[low:high].sum() for low, high in span])
        found = np.zeros((turns, int(sizes.sum()), n_genes), np.float32)
        effect = np.zeros((int(lengths.sum()), n_genes), np.float32)
        none = np.zeros((0, n_genes), np.float32)
        table = np.zeros((0, 4, n_genes)) if table is None else table
        center = np.zeros((0, n_genes)) if center is None else center
        least = center if least is None else least
        several = bool(self._sizes)
        log_weights, spike = (
            self.part(name, draw).astype(float)[
                (slice(None), blocks) if several else (None, blocks)
            ]
            for name in ("log_weights", "spike")
        )  # (V, blocks, ...)
        first = draw // len(self)
        seeds = int(self.part("seed", draw)) + _FRESH * np.arange(first, first + turns)
        chosen = np.arange(len(blocks))
        edges, view = [], []
        for v, part in enumerate(places_of(self._sizes or (n_genes,))):
            firsts = range(part.start, part.stop, _AT_ONCE)
            edges += [(a, min(a + _AT_ONCE, part.stop)) for a in firsts]
            view += [v] * len(firsts)
        share = np.zeros((len(edges), len(blocks), log_weights.shape[2]))

        widths, evidence = np.zeros(0), np.zeros((0, 0))
        layout = (
            chosen, blocks, start(lengths), local, np.ones(len(local), bool),
            start([len(m) for m in mixtures]), span, b.dims, np.concatenate(mixtures),
            start(sizes), factor_start, factors,
        )  # fmt: skip
        own, target = own_weights(b)[blocks], b.target[blocks]
        nowhere = np.zeros(len(blocks) + 1, np.int64)

        def work(i: int) -> None:
            kernels.draw_blocks(
                *edges[i], seeds, *layout, log_weights[view[i]], own, spike[view[i]], target,
                total, depth, spread, x, effect, share[i], nowhere, none, none, found, table,
                center, least, widths, evidence,
            )  # fmt: skip

        parallel_for(work, len(edges))
        return found, effect

    def _levels(self, draw: int, rows: np.ndarray, blocks: np.ndarray) -> tuple[np.ndarray, ...]:
        """Levels of conditions without the effects of chosen blocks; total, depth, spread."""
        layout = self._layout
        part = lambda name: self.part(name, draw).astype(float)  # noqa: E731
        counts = partial(self._counts, draw=draw)
        gain = gain_of_conditions(layout.contexts, layout.genotype.tocsr(), part("gain"))[rows]
        q = layout.contexts.of_condition[rows]
        level = part("level")
        x = gain[:, None] * level[q]
        responds = np.flatnonzero(layout.contexts.is_response[q])
        x[responds] += level[layout.contexts.rest[q[responds]]]
        ends = self.tensors.get("offset_parts")
        parts = [slice(None)] if ends is None else [slice(a, b) for a, b in ends.tolist()]
        add_offsets(x, part("offset")[rows], parts)
        loading = self.array("noise_loading")
        x += part("state")[rows] @ loading
        activity = part("activity")
        if activity.shape[1]:
            x += (layout.onset[rows] @ activity) @ part("loading").T
        self._add_stored(x, draw, rows, blocks)
        sizes = self._sizes
        own = (lambda a: a[:, rows]) if sizes else (lambda a: a[rows])  # of views, or of one
        moved = moved_by(own(counts("share")), part("eta") - counts("eta"), sizes)
        depth = counts("depth")[rows] * np.exp(np.log(counts("rate")) + moved)
        whole = counts("within")[rows] * np.exp(-part("log_theta")) + counts("between")[rows]
        whole += 1e-6
        shared = shared_noise(own(counts("per_cell")), loading, sizes)
        spread = np.maximum(whole - shared, LEAST_OWN * whole)
        single = lambda a: np.ascontiguousarray(a, np.float32)  # noqa: E731
        return single(x), single(counts("total")[rows]), single(depth), single(spread)

    @property
    def _sizes(self) -> tuple[int, ...]:
        """(V,) numbers of features of views, where there are several."""
        found = self.tensors.get("view_sizes")
        return () if found is None else tuple(found.tolist())

    def _counts(self, name: str, draw: int) -> np.ndarray:
        """A part of the likelihood of levels, from the cells that responded where that is known."""
        if (found := self.tensors.get(f"imputed_{name}")) is not None:
            return found[int(self.part("imputation", draw))].cpu().numpy()
        return self.array(f"counts_{name}")

    def _add_stored(self, x: np.ndarray, draw: int, rows: np.ndarray, without: np.ndarray) -> None:
        """Add effects of kept blocks to their rows, but for those about to be drawn."""
        b = self._layout.blocks
        if not b.stored.any():
            return
        kept, at = self.part("kept", draw), 0
        where = np.full(len(self._layout.growth), -1)
        where[rows] = np.arange(len(rows))
        for i in np.flatnonzero(b.stored):
            n = b.coefficient_start[i + 1] - b.coefficient_start[i]
            mine = where[b.rows[b.row_start[i] : b.row_start[i + 1]]]
            if i not in without and (mine >= 0).any():
                seen = mine >= 0
                x[mine[seen]] += b.of_row[i][seen] @ kept[at : at + n]
            at += n
