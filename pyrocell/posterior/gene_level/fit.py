"""Gene-level posterior of a fitted screen: counts, layout, number of programs, sampling.

The gradient phase of training learns what cells tell: how they differ, their dropout, the pace of
responses. What single genes do is then drawn from its conditional posterior, which counts of
conditions decide (see `sampler`). Programs shared by perturbations must earn their place: they are
kept where effects found in one half of the cells of every condition predict those of the other half
better with them than without.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp
import torch

from pyrocell._core.random import stream
from pyrocell.data.loader import CellDataset
from pyrocell.generative.model import GenerativeModel
from pyrocell.guide.guide import Guide
from pyrocell.operators.arms import respond_in_order
from pyrocell.posterior.draws import Posterior
from pyrocell.posterior.gene_level.additive import fit_additive
from pyrocell.posterior.gene_level.blocks import Clock, block_layout, medium_of_conditions
from pyrocell.posterior.gene_level.counts import (
    LevelCounts,
    apart,
    cell_groups,
    half_of,
    highest_allowed,
    level_counts,
    side_by_side,
)
from pyrocell.posterior.gene_level.prior import REST, walk_root
from pyrocell.posterior.gene_level.sampler import Contexts, GainPrior, Sampler
from pyrocell.posterior.gene_level.states import GeneLevel, Layout
from pyrocell.posterior.populations import resting_cells, resting_states
from pyrocell.posterior.strength.responders import Responders
from pyrocell.priors import Priors
from pyrocell.screen.feature_views import places_of
from pyrocell.screen.guide_pairs import guide_pairs
from pyrocell.screen.screen import Screen
from pyrocell.views import JointView

__all__ = [
    "Programs",
    "arms_of",
    "counts_of_screen",
    "fit_gene_level",
    "has_gene_level",
    "layout_of",
]

_BURN_IN, _STATES, _FEWER_STATES = 32, 32, 16
_GUIDES_BURN_IN = 48  # where who responded is drawn too
_CHAINS, _SMALL = 4, 2**17  # where there are so few levels, chains that each find their programs
_SHORT_SWEEPS, _SHORT_BURN_IN = 48, 20
_LARGE = 2**20  # levels from which fewer states are kept
_MOST_GENES = 1000  # that programs are tried on
_SURE = 2.0  # standard errors by which programs must be better
_SLOPE_STEP = 0.1


@dataclass(frozen=True)
class Programs:
    """Whether programs shared by perturbations predict other cells of theirs.

    Attributes
    ----------
    rank
        Number of programs kept.
    shared
        Whether they move the features of all views; otherwise each view has that many of its own.
    gain
        {rank tried: (gain in nats of log likelihood of held-out halves, standard error)}.
    """

    rank: int
    gain: dict[int, tuple[float, float]]
    shared: bool = True

    @classmethod
    def of(cls, saved: dict | None) -> Programs | None:
        """From a model file."""
        if saved is None:
            return None
        gain = {int(rank): (float(x), float(se)) for rank, (x, se) in saved["gain"].items()}
        return cls(saved["rank"], gain, saved.get("shared", True))


def has_gene_level(model: GenerativeModel) -> bool:
    """Whether the gene-level sites of a model are drawn from their conditional posterior.

    Not where resting states move on their own (an effect is then also where cells go), under a
    neural ODE (responses are then no sum of parts), where arms differ in when cells were perturbed
    or met the medium, under imposed assumptions or an objective on populations, under another
    dynamics or prior of effects than those of the package, and without gene-level effects. Where
    nearly every cell has a set of perturbations of its own, in one medium at one time alone.
    """
    return (
        model.config.gene_residual
        and not (model.many_sets and (model.n_media or model.has_time))
        and not model.moves_states
        and not model.has_field
        and (model.dynamics.gene_level or bool(model.dynamics.integrated))
        and model.config.effect_prior == "normal"
        and not model.objective.weight
        and not model.follows_gain
        and model.imposed is None
        and not len(model.uncertain)
    )


def _clock(model: GenerativeModel, screen: Screen, values: dict) -> Clock:
    """How responses unfold, at posterior means of the rates."""
    membership = sp.csr_array(screen.membership.astype(float))
    begun = screen.duration > 0 if screen.times else np.ones(len(screen.conditions), bool)
    n_times = max(1, len(screen.times))
    if not model.has_time:
        ones = np.ones(len(screen.conditions))
        course = np.ones((len(screen.perturbations), 1))
        return Clock(membership * begun[:, None], ones, np.ones((1, 1)), course, begun)
    rows = model.conditions
    params = model.response_parameters(values)
    params = replace(
        params,
        effect=params.effect.new_ones(len(params.effect), 1),
        media_effect=params.media_effect.new_zeros(len(params.media_effect), 1),
        field=None,
    )
    with torch.no_grad():
        shown = respond_in_order(
            rows.genotype, rows.exposure, rows.duration, rows.perturbed_at, rows.exposed_at, params
        ).y[:, 0]
        all_arms = rows._replace(interaction=torch.zeros_like(rows.interaction))
        growth = model.interaction_grown(values, all_arms)
        kept = model.persistence()
        course = model.onset(values).cpu().numpy().astype(float)
        constant = float(values["W.process_noise"][0])
        relative = constant / float(model.log_residual_scale.exp())
    n_drivers = np.maximum(np.diff(screen.membership.indptr), 1)
    share = sp.diags_array(shown.cpu().numpy() / n_drivers * begun) @ membership
    steps = np.diff(screen.times) / model.step_unit
    before = np.array(screen.times) <= 0
    walk = walk_root(steps, kept.cpu().numpy().astype(float), relative, before)
    assert len(walk) == n_times
    grown = growth.cpu().numpy().astype(float)
    return Clock(sp.csr_array(share), grown, walk, course * ~before, begun)


def _contexts(screen: Screen) -> Contexts:
    """Media and times that were measured, the baseline first."""
    medium = medium_of_conditions(screen)
    node = np.maximum(screen.time_index, 0)
    pairs, inverse = np.unique(np.stack([medium, node], 1), axis=0, return_inverse=True)
    place = {tuple(pair): q for q, pair in enumerate(pairs.tolist())}
    rest = [place.get((-1, t), -1) if m >= 0 else q for q, (m, t) in enumerate(pairs.tolist())]
    return Contexts(inverse.ravel(), pairs[:, 0], pairs[:, 1], np.array(rest))


def layout_of(model: GenerativeModel, screen: Screen, values: dict, rest: float = REST) -> Layout:
    """The layout that states of this screen refer to.

    Parameters
    ----------
    values
        Posterior means.
    rest
        Unit of the width of perturbations' spikes in the states.
    """
    clock = _clock(model, screen, values)
    genotype = sp.csr_array(screen.membership.astype(float))
    blocks = block_layout(screen, clock, rest)
    return Layout(blocks, _contexts(screen), clock.onset, genotype, clock.growth)


def _noise_groups(screen: Screen) -> tuple[np.ndarray, list[np.ndarray]]:
    """(N,) noise group of each cell, and the levels of noise, the finest first.

    A medium varies from batch to batch, so that its lanes in a batch share what those of another
    medium do not.
    """
    batch = screen.cell_batch
    laboratory = screen.batch_laboratory if len(screen.laboratories) > 1 else None
    levels = [np.arange(len(screen.batches))]
    if laboratory is not None:
        levels.append(laboratory)
    if len(screen.batches) < 2 or not screen.media:
        return batch, levels
    medium = medium_of_conditions(screen)[screen.cell_condition] + 1
    code = batch * (1 + len(screen.media)) + medium
    met, group = np.unique(code, return_inverse=True)
    home = met // (1 + len(screen.media))
    if len(met) == len(screen.batches):  # each batch holds one medium
        return batch, levels
    return group, [np.arange(len(met)), *(level[home] for level in levels)]


def _drivers(screen: Screen) -> np.ndarray:
    """(C,) number of the set of perturbations of each condition, -1 for controls."""
    sets = screen.conditions["perturbation"].astype(str).to_numpy()
    codes = np.full(len(sets), -1)
    perturbed = ~screen.is_control
    codes[perturbed] = np.unique(sets[perturbed], return_inverse=True)[1]
    return codes


def counts_of_screen(screen: Screen, data: CellDataset, priors: Priors) -> LevelCounts:
    """The likelihood of the levels of all conditions; needs no fitted model."""
    group, noise_levels = _noise_groups(screen)
    return side_by_side(
        [
            level_counts(
                own.counts,
                own.size,
                screen.cell_condition[cells],
                group[cells],
                len(screen.conditions),
                noise_levels,
                _drivers(screen),
                priors.eta_sd,
                priors.replicate_sd,
            )
            for own, cells in data.by_view
        ]
    )


def fit_gene_level(
    model: GenerativeModel,
    guide: Guide,
    screen: Screen,
    data: CellDataset,
    counts: LevelCounts | None,
    seed: int = 0,
    bar: Callable[..., Iterable] = iter,
    programs: bool | int = True,
    guides: bool = True,
) -> tuple[GeneLevel, Programs]:
    """Draw the gene-level sites of a model whose other parameters are fitted.

    Parameters
    ----------
    model, guide, screen, data
        The fitted model and its cells.
    counts
        Their likelihood, see `counts_of_screen`; None where sets of perturbations are many, and
        effects are drawn from the cells themselves (see `additive`).
    seed
        Of the sampler.
    bar
        Shows progress over sweeps.
    programs
        Whether to try programs shared by perturbations; a number fixes how many there are.
    guides
        Whether cells may not have responded to their guide, where guides are registered.
    """
    posterior = Posterior(model, guide, seed)
    values = {name: value.detach() for name, value in posterior.mean().items()}
    if counts is None:
        extra = _calibration(model, guide, data, values, seed)
        return fit_additive(model, screen, data, extra, seed, bar), Programs(0, {})
    layout = layout_of(model, screen, values)
    group, noise_levels = _noise_groups(screen)
    loading = _loading(model, values)
    found = Programs(0, {})
    rank = min(model.config.n_response, len(screen.perturbations) - 1)
    common = {"model": model, "screen": screen, "layout": layout, "loading": loading}
    common["links"] = None if data.views is None else data.views.links
    if programs is True and rank > 0:
        halves = _halves(data, screen, group, counts, seed)
        found = _try_programs(halves, rank, common, seed)
    elif programs is not True and programs:
        found = Programs(int(programs), {})
    n_levels = len(screen.conditions) * len(screen.genes)
    chains = [
        _sampler(
            counts,
            found.rank,
            seed=stream("gene level", seed, i) % 2**31,
            shared=found.shared,
            **common,
        )
        for i in range(_CHAINS if n_levels <= _SMALL else 1)
    ]
    n_states = _STATES if n_levels <= _LARGE else _FEWER_STATES
    states, per_chain = [], n_states // len(chains)
    pairs = guide_pairs(screen) if guides and data.views is None else None
    responders, burn_in = None, _BURN_IN
    if pairs is not None:
        shares = model.config.composition
        responders = Responders(counts, data, group, pairs, loading, shares)
        burn_in = _GUIDES_BURN_IN
    for chain in chains:
        sweeps = burn_in + 2 * per_chain
        states += list(chain.run(sweeps, burn_in, bar, responders=responders))[::2]
    extra = _at_nodes(model, screen, values) | _calibration(model, guide, data, values, seed)
    extra["rest"] = np.array(REST)
    extra |= _batches(screen, noise_levels) | _widths(counts, values, noise_levels, screen)
    if responders is not None:
        states, of_guides = responders.of_states(states)
        extra |= of_guides
    kept = GeneLevel.of(chains, states, extra)
    kept.join(layout, arms_of(model, screen))
    return kept, found


def arms_of(model: GenerativeModel, screen: Screen) -> list[tuple[int, tuple[int, ...], int]]:
    """Each row of `P.interaction`: its number, perturbations and medium (-1: the baseline)."""
    member, medium = screen.membership.tocsr(), medium_of_conditions(screen)
    found = {}
    for c, arm in enumerate(model.interaction.tolist()):
        if arm >= 0:
            mine = member.indices[member.indptr[c] : member.indptr[c + 1]]
            found[arm] = tuple(sorted(mine.tolist())), int(medium[c])
    return [(arm, *found[arm]) for arm in sorted(found)]


def _widths(
    counts: LevelCounts, values: dict, noise_levels: list[np.ndarray], screen: Screen
) -> dict[str, np.ndarray]:
    """How much wider than the guide's (G,) batch noise is, of batches and of laboratories.

    And how much, between batches, responses to media vary, (G,), and effects, (K, G): standard
    deviations.
    """
    squares = counts.eta_width**2
    ones = np.ones(squares.shape[1])
    out = {"ratio_batch": ones, "ratio_laboratory": ones, "media_noise": 0 * ones}
    out["effect_noise"] = np.sqrt(_between_batches(counts, screen))
    if len(screen.batches) < 2:
        return out
    laboratories = len(screen.laboratories) > 1
    if laboratories:
        squares, common = squares[:-1], squares[-1]
        usual = values["eta.laboratory_scale"].cpu().numpy()
        out["ratio_laboratory"] = np.sqrt(common) / usual
    if len(squares) > 1:
        out["media_noise"] = np.sqrt(squares[0])
    out["ratio_batch"] = np.sqrt(squares[-1]) / values["eta.scale"].cpu().numpy()
    return out


def _between_batches(counts: LevelCounts, screen: Screen) -> np.ndarray:
    """(K, G) variance of an effect between batches, from conditions with least else in them."""
    member = screen.membership.tocsr()
    n_drivers = np.diff(member.indptr)
    out = np.zeros((len(screen.perturbations), counts.replicate.shape[1]))
    for k in range(len(out)):
        mine = member[:, [k]].nonzero()[0]
        if len(mine):
            fewest = n_drivers[mine].min()
            out[k] = counts.replicate[mine[n_drivers[mine] == fewest]].mean(0) / fewest
    return out


def _batches(screen: Screen, noise_levels: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Batch of every noise group, cells of each batch by measured time, and (K, T) times ahead.

    Those after the last at which a perturbation was measured.
    """
    nested = len(noise_levels[0]) > len(screen.batches)
    home = noise_levels[1] if nested else np.arange(len(screen.batches))
    node = np.maximum(screen.time_index, 0)
    cells = np.zeros((len(screen.batches), max(1, len(screen.times))))
    np.add.at(cells.T, node, screen.layout.to_numpy(dtype=float))
    member = (screen.membership.T > 0).astype(float)  # (K, C)
    seen = np.stack([member @ (node == t) for t in range(cells.shape[1])], 1) > 0
    later = np.flip(np.cumsum(np.flip(seen, 1), 1), 1) > 0  # seen then or after
    ahead = ~later
    ahead[:, 0] = False
    return {"batch_of_group": home, "batch_cells": cells, "ahead": ahead.astype(float)}


def _loading(model: GenerativeModel, values: dict) -> np.ndarray:
    loading = model.measurement.gauge(model.loading.detach(), values["V.baseline"])
    return loading.detach().cpu().numpy().astype(float)


def _sampler(
    counts: LevelCounts,
    rank: int,
    model: GenerativeModel,
    screen: Screen,
    layout: Layout,
    loading: np.ndarray,
    links: sp.csr_array | None,
    seed: int,
    shared: bool = True,
) -> Sampler:
    p = model.priors
    gains = None
    if screen.media:
        gains = GainPrior(
            *(np.array(x, float) for x in (p.gain_weights, p.gain_locs, p.gain_scales))
        )
    return Sampler(
        counts,
        layout.blocks,
        layout.contexts,
        layout.onset,
        layout.genotype,
        loading,
        rank=rank,
        shared=shared,
        offsets=_offsets(model, counts),
        gain_prior=gains,
        n_media=len(screen.media),
        seed=seed,
        links=links,
    )


def _offsets(model: GenerativeModel, counts: LevelCounts) -> bool | list[slice]:
    """Features whose levels a condition may move all alike: those that are shares of a depth."""
    if not counts.sizes:
        return model.config.composition
    view = model.measurement
    assert isinstance(view, JointView)
    parts = zip(view.parts, places_of(counts.sizes), strict=True)
    return [place for (own, _, _), place in parts if own.compositions and place.stop > place.start]


# ---------------------------------------------------------------------- programs
def _halves(
    data: CellDataset, screen: Screen, group: np.ndarray, counts: LevelCounts, seed: int
) -> list[LevelCounts]:
    """The likelihood of two halves of the cells of every condition."""
    rng = np.random.default_rng(stream("halves", seed))
    order = rng.permutation(len(group))
    order = order[np.argsort(screen.cell_condition[order], kind="stable")]
    first = np.zeros(len(group), bool)
    first[order[::2]] = True
    shape = len(screen.conditions), len(counts.eta)
    halves: list[list[LevelCounts]] = [[], []]
    for (own, cells), whole in zip(data.by_view, apart(counts), strict=True):
        size = own.size
        most = highest_allowed(own.counts)
        labels = screen.cell_condition[cells], group[cells]
        for half, keep in zip(halves, (first[cells], ~first[cells])):
            found = cell_groups(own.counts, size, *labels, *shape, most, keep)
            half.append(half_of(whole, found))
    return [side_by_side(half) for half in halves]


def _try_programs(halves: list[LevelCounts], rank: int, common: dict, seed: int) -> Programs:
    """Choose the number of programs by how well each half foretells the other."""
    genes = halves[0].total.sum(0) + halves[1].total.sum(0)
    chosen = np.sort(np.argsort(-genes, kind="stable")[:_MOST_GENES])
    common = {**common, "loading": common["loading"][:, chosen]}
    common["layout"] = _of_genes(common["layout"], chosen)
    if common["links"] is not None:
        common["links"] = common["links"][chosen][:, chosen]
    halves = [half.of_features(chosen) for half in halves]
    reference = [_short(half, 0, common, seed + i) for i, half in enumerate(halves)]
    scores = {0: _foretold(reference, reference, halves)}
    gain: dict[int, tuple[float, float]] = {}
    for r in sorted({rank, max(1, rank // 4)}, reverse=True):
        fits = [_short(half, r, common, seed + i) for i, half in enumerate(halves)]
        scores[r] = _foretold(fits, reference, halves)
        better = scores[r] - scores[0]
        error = float(np.sqrt(len(better)) * better.std()) if len(better) > 1 else np.inf
        gain[r] = float(better.sum()), error
    # programs that nothing is in cost nothing: the more that are sure, the better
    sure = [r for r, (g, error) in gain.items() if g > _SURE * error and g > 0]
    rank, shared = max(sure, default=0), True
    if rank and halves[0].sizes:  # what moves one view need not move another: shared if it is sure
        fits = [_short(half, rank, common, seed + i, False) for i, half in enumerate(halves)]
        better = scores[rank] - _foretold(fits, reference, halves)
        error = float(np.sqrt(len(better)) * better.std())
        shared = bool(better.sum() > _SURE * error)
    return Programs(rank, gain, shared)


def _of_genes(layout: Layout, genes: np.ndarray) -> Layout:
    place = {g: i for i, g in enumerate(genes.tolist())}
    target = np.array([place.get(int(t), -1) for t in layout.blocks.target])
    return replace(layout, blocks=replace(layout.blocks, target=target))


def _short(
    counts: LevelCounts, rank: int, common: dict, seed: int, shared: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Levels without effects, and effects of every condition, (C, G) posterior means."""
    seed = stream("programs", seed) % 2**31
    sampler = _sampler(counts, rank, seed=seed, shared=shared, **common)
    level = effect = 0.0
    n = 0
    blocks = sampler.blocks
    for state in sampler.run(_SHORT_SWEEPS, _SHORT_BURN_IN, learn_spikes=False):
        moved = (sampler.onset @ state.activity) @ state.loading.T
        np.add.at(moved, blocks.rows, sampler.effect)
        effect = effect + moved
        level = level + sampler.x - moved - state.state @ sampler.noise_loading
        n += 1
    assert isinstance(level, np.ndarray) and isinstance(effect, np.ndarray)  # of a state at least
    return level / n, effect / n


def _foretold(
    fits: list[tuple[np.ndarray, np.ndarray]],
    reference: list[tuple[np.ndarray, np.ndarray]],
    halves: list[LevelCounts],
) -> np.ndarray:
    """Log likelihood of each half at its own levels with the effects of the other, (C,)."""
    out = 0.0
    for i, half in enumerate(halves):
        x = reference[i][0] + fits[1 - i][1]
        depth = half.depth * half.rate
        k = half.spread(np.log(half.noise.theta))
        log = half.total * x - (half.total + 1 / k) * np.log1p(k * depth * np.exp(x))
        out = out + log.sum(1)
    assert isinstance(out, np.ndarray)  # of a half at least
    return out


# ---------------------------------------------------------------------- to the model's scale
def _at_nodes(model: GenerativeModel, screen: Screen, values: dict) -> dict[str, np.ndarray]:
    """Shares of responses at the measured times, for conditions that were not measured."""
    n, n_times = len(screen.perturbations), max(1, len(screen.times))
    begun = np.array([float(t > 0) for t in screen.times] or [1.0])
    onset, growth = np.ones((n, n_times)), np.ones(n_times)
    if model.has_time:
        with torch.no_grad():
            onset = model.onset(values).cpu().numpy().astype(float)
            rows = model.conditions
            some = rows._replace(interaction=torch.zeros_like(rows.interaction))
            grown = model.interaction_grown(values, some).cpu().numpy()
        for t in range(n_times):
            mine = (screen.time_index == t) & screen.exposure.any(1)
            growth[t] = grown[mine].mean() if mine.any() else 1.0
    return {"onset_at": onset * begun, "growth_at": growth, "begun_at": begun}


@torch.no_grad()
def _calibration(
    model: GenerativeModel, guide: Guide, data: CellDataset, values: dict, seed: int
) -> dict[str, np.ndarray]:
    """How the log mean count of a gene follows the model's logit, at the level of controls.

    (G,) `logit` and the log mean per unit of size there, `log_mean`, and the slope, which dropout
    that falls with expression puts above 1.
    """
    cells = resting_cells(data, model, seed)
    z = resting_states(guide, values, cells, 0, data.conditions)
    depth = model.measurement.log_depth(float(np.exp(np.median(data.log_size))))
    rest = model.resting_logits(values, z)  # (n, G)
    level = model.measurement.relative(rest)

    def log_mean(change: float) -> torch.Tensor:
        """Of every gene if its own logit had moved: the sum over genes stays."""
        log_mu = (level + (change + depth))[:, None]
        mean, _ = model.measurement.moments(values, log_mu, z)
        return mean.mean((0, 1)).log() - depth

    at = log_mean(0.0)
    slope = (log_mean(_SLOPE_STEP) - at) / _SLOPE_STEP
    return {
        "logit": values["V.baseline"].cpu().numpy(),
        "log_mean": at.cpu().numpy(),
        "slope": slope.cpu().numpy().clip(*model.measurement.limits),
    }
