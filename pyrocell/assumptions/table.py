"""Whether the assumptions of a screen hold: one posterior per assumption and condition.

Each assumption is a statement about a contrast of conditions in gene space: that its root mean
square over genes is below a region of practical equivalence, or that its slope on the controls'
response is below one half. The prior puts a share π of the conditions inside; sizes are
log-uniform on either side of the border, so that nothing is said about how far. The likelihood is
that of `levels.py`, with the batch noise and the axes of cell state that the fitted model found.
All is summed in closed form; where the layout cannot test an assumption the prior stands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pandas as pd

from pyrocell.assumptions.guide_agreement import AGREE, Found, one_is_off
from pyrocell.assumptions.memory import KEPT, both_orders, kept_evidence
from pyrocell.assumptions.spec import Assume, check_assumed
from pyrocell.assumptions.testability import Comparison, comparisons
from pyrocell.contrasts.evidence import (
    ContrastEstimate,
    log_mean_exp,
    log_size_evidence,
    log_slope_evidence,
    without_common,
)
from pyrocell.contrasts.grids import between, normalised, realised, summary
from pyrocell.contrasts.levels import ConditionLevels
from pyrocell.errors import ScreenError
from pyrocell.priors import Priors
from pyrocell.screen.screen import Screen

__all__ = ["assumption_table"]

SMALLEST, LARGEST = 1 / 20, 30  # sizes considered, in units of the region
SLOPES = np.linspace(-0.5, 2.5, 61) + 1e-9  # no point on the border
OWN_SIZES = np.array([0.02, 0.05, 0.1, 0.2, 0.4])  # RMS of a response beside the controls'
HALF = 0.5  # slope below which a response is called blocked
_FOLDS, _FEWEST, _MOST_AXES = 5, 8, 8
_LEAST_REACH = 3  # grid point outside the region that the largest size of a screen reaches
_SHARES = np.linspace(0.0025, 0.9975, 200)


@dataclass(frozen=True)
class _Answer:
    """What a likelihood says about one row; `n_genes` 0 where no gene can be judged.

    `against`: log Bayes factor of every size outside the region against the inside, (sizes,).
    """

    log_bayes_factor: float = 0.0
    against: np.ndarray = field(default_factory=lambda: np.zeros(1))
    p_rope: float = np.nan
    size: float = np.nan
    lower: float = np.nan
    upper: float = np.nan
    n_genes: int = 0


def assumption_table(
    screen: Screen,
    draws: Sequence[ConditionLevels],
    loading: np.ndarray,
    priors: Priors,
    *,
    region: float,
    prior: float,
    concentration: float,
    min_count: float,
    min_cells: float,
    credible_level: float,
    assume: Sequence[Assume] = (),
    guides: Sequence[Mapping[tuple[str, str], Sequence[Found]]] = (),
    progress: Callable[[Iterable], Iterable] = iter,
) -> pd.DataFrame:
    """Posterior of every assumption; see `PyroCell.assumptions`.

    Parameters
    ----------
    draws
        Levels under draws of the fitted model's batch noise: evidence is averaged over them.
    loading
        (d, G) axes of the cells' resting state.
    guides
        For every draw, by perturbation and medium, what was found of each guide
        (`guide_agreement.OffTarget`).
    """
    rows = comparisons(screen)
    check_assumed(assume, rows)
    if not 0 < region < 1:
        raise ScreenError(f"region={region} is a root mean square log-fold change, such as 0.05")
    if not 0 < prior < 1 or concentration <= 0:
        raise ScreenError(
            f"prior={prior} must lie between 0 and 1 and concentration={concentration} above 0"
        )
    answers: list[list[_Answer]] = [[] for _ in rows]
    groups = _groups(screen, rows)
    for levels, members in progress([(levels, m) for levels in draws for m in groups]):
        group = partial(_Group, screen, levels, loading, min_count, min_cells)
        found = _judged([rows[i] for i in members], group, region, priors, credible_level)
        for i, answer in zip(members, found, strict=True):
            answers[i].append(answer)
    for i, row in enumerate(rows) if guides else ():
        if row.assumption == "guides_agree":
            found = [each.get((row.perturbation, row.media)) for each in guides]
            answers[i] = [_agreement(each) for each in found if each]
    table = pd.DataFrame(
        {
            "assumption": [row.assumption for row in rows],
            "perturbation": [row.perturbation for row in rows],
            "media": [row.media for row in rows],
            "testable": [row.testable for row in rows],
            "reason": [row.reason for row in rows],
            "prior": [
                {"no_response": _blocked_prior(priors), "guides_agree": AGREE}.get(
                    row.assumption, prior
                )
                for row in rows
            ],
        }
    )
    given = {i: a.probability for a in assume for i, row in enumerate(rows) if a.covers(row)}
    for i, probability in given.items():
        table.loc[i, "prior"] = probability
    against = [_pooled(found) for found in answers]
    log_factor = np.array([-log_mean_exp(each) for each in against])
    spread = np.array([np.std([a.log_bayes_factor for a in found] or [0.0]) for found in answers])
    table["posterior"] = table["prior"]
    for _, members in table[table.testable].groupby(["assumption", "media"], sort=False):
        free = np.array([i for i in members.index if i not in given], dtype=int)
        if len(free):
            mean = table["prior"].to_numpy()[free[0]]
            seen = [against[i] for i in free]
            table.loc[free, "posterior"] = _with_shared_prior(seen, mean, concentration)
    for i, probability in given.items():
        if table.testable[i] and 0 < probability < 1:
            odds = np.log(probability / (1 - probability)) + log_factor[i]
            table.loc[i, "posterior"] = 1 / (1 + np.exp(-odds))
    for name in ("p_rope", "size", "lower", "upper"):
        table[name] = [np.mean([getattr(a, name) for a in f]) if f else np.nan for f in answers]
    table.insert(7, "p_rope", table.pop("p_rope"))
    table.insert(8, "log_bayes_factor", np.where(table.testable, log_factor, 0.0))
    error = table.posterior * (1 - table.posterior) * spread / np.sqrt(max(1, len(draws)))
    table.insert(9, "mcse", error)
    table["n_genes"] = [found[0].n_genes if found else 0 for found in answers]
    return table


def _groups(screen: Screen, rows: list[Comparison]) -> list[list[int]]:
    """Testable rows that share their control, and with it the control's error."""
    groups: dict[tuple, list[int]] = {}
    for i, row in enumerate(rows):
        if row.testable and row.assumption != "guides_agree":
            control = sorted((c, a) for c, a in row.weights.items() if screen.is_control[c])
            own = row.perturbation == screen.control
            groups.setdefault((row.assumption, row.media, own or tuple(control)), []).append(i)
    return list(groups.values())


class _Group:
    """Rows of one assumption that share their control."""

    def __init__(
        self,
        screen: Screen,
        levels: ConditionLevels,
        loading: np.ndarray,
        min_count: float,
        min_cells: float,
        rows: list[Comparison],
    ) -> None:
        about_control = rows[0].perturbation == screen.control
        self.parts = [
            {c: a for c, a in row.weights.items() if about_control or not screen.is_control[c]}
            for row in rows
        ]
        self.control = {c: -a for c, a in rows[0].weights.items() if c not in self.parts[0]}
        self.loading = loading
        own = [levels.contrast(part) for part in self.parts]
        self.value = np.stack([c.value for c in own])  # (K, G)
        batches = [levels.batch_variance(row.weights) for row in rows]
        self.variance = np.stack([c.variance for c in own]) + np.stack(batches)
        self.spread = np.array([c.spread for c in own])
        for k, row in enumerate(rows):
            judged = levels.expected[list(row.weights)].min(0) >= min_count
            judged &= levels.per_cell[list(row.weights)].max() * min_cells <= 1
            carried = screen.genotype[list(row.weights)].any(0)
            targets = screen.target[carried]
            judged[targets[targets >= 0]] = False
            self.variance[k, ~judged] = np.inf
        if self.control:
            self.reference = levels.contrast(self.control)

    def _common(self, sizes: np.ndarray, weights: np.ndarray) -> None:
        """Set `level` and `level_variance`: what each row is compared with."""
        shape = self.value.shape
        self.level, self.level_variance = np.zeros(shape), np.zeros(shape)
        if self.control:
            self.level, self.level_variance = without_common(
                self.value,
                self.variance,
                self.reference.value,
                self.reference.variance,
                sizes,
                weights,
            )

    def _reference_spread(self, k: int) -> float:
        """Weight of the loading's covariance in the level a row is compared with."""
        if not self.control:
            return 0.0
        return self.reference.spread * float(
            np.mean(self.level_variance[k] / self.reference.variance)
        )

    def _each(self, judge: Callable[[int, np.ndarray], _Answer]) -> list[_Answer]:
        """Answer of every row, from the genes that can be judged."""
        usable = np.isfinite(self.variance)
        return [judge(k, genes) if genes.any() else _Answer() for k, genes in enumerate(usable)]

    # ------------------------------------------------------------------ sizes
    def sizes(self, region: float, credible_level: float) -> list[_Answer]:
        """P(RMS < region) and its Bayes factor, for every row."""
        low = between(SMALLEST * region, region)
        sizes = np.concatenate([low, between(region, LARGEST * region)])
        inside = sizes < region
        weights = np.where(inside, 0.5 / inside.sum(), 0.5 / (~inside).sum())
        self._common(sizes, weights)
        steps = np.gradient(np.log(sizes))

        def judge(k: int, genes: np.ndarray) -> _Answer:
            contrast = self._against_level(k, genes)
            log, square = log_size_evidence(
                contrast, sizes, self.loading[:, genes], *self._axes(k, genes)
            )
            moving = log[~inside] - log_mean_exp(log[inside])  # against not moving, (sizes,)
            flat = normalised(log + np.log(steps))  # log-uniform over all sizes, no indicator
            whole = normalised(log + np.log(weights))
            return _Answer(
                -float(log_mean_exp(moving)),
                moving,
                float(flat[inside].sum()),
                *realised(square, whole, credible_level),
                int(genes.sum()),
            )

        return self._each(judge)

    def _against_level(self, k: int, genes: np.ndarray) -> ContrastEstimate:
        spread = self.spread[k] + self._reference_spread(k)
        return ContrastEstimate(
            (self.value[k] - self.level[k])[genes],
            (self.variance[k] + self.level_variance[k])[genes],
            np.sqrt(spread) * self.loading[:, genes],
        )

    def _axes(self, k: int, genes: np.ndarray) -> list[np.ndarray]:
        """Axes along which the rows of other folds move beyond their noise, if there are any."""
        others = np.flatnonzero(np.arange(len(self.value)) % _FOLDS != k % _FOLDS)
        if len(others) < _FEWEST:
            return []
        usable = np.isfinite(self.variance[others][:, genes])
        moved = np.where(usable, (self.value - self.level)[others][:, genes], 0.0)
        moved = moved - np.median(moved, axis=0)  # what all share is the control's error
        noise = self._against_level(k, genes)
        scale = np.sqrt(noise.own)
        _, shared, directions = np.linalg.svd(noise.factor / scale, full_matrices=False)
        stretch = np.sqrt(1 + shared**2)[:, None]

        def along(rows: np.ndarray, by: np.ndarray) -> np.ndarray:
            return rows + (rows @ directions.T * (by.T - 1)) @ directions

        white = along(moved / scale, 1 / stretch)
        _, values, rows = np.linalg.svd(white, full_matrices=False)
        edge = (1 + np.sqrt(white.shape[1] / len(white))) ** 2  # Marchenko-Pastur
        signal = values**2 / len(white)
        kept = np.flatnonzero(signal > 1.1 * edge)[:_MOST_AXES]
        if not len(kept):
            return []
        return [along(rows[kept] * np.sqrt(signal[kept] - 1)[:, None], stretch) * scale]

    # ------------------------------------------------------------------ slopes
    def slope_evidence(self) -> np.ndarray:
        """Log evidence of `SLOPES` on the controls' response, (rows, slopes); 0 without genes."""
        weights = np.full(len(OWN_SIZES) + 1, 1 / (len(OWN_SIZES) + 1))
        self._common(np.concatenate([[0.005], OWN_SIZES]), weights)
        out = np.zeros((len(self.value), len(SLOPES)))
        for k, genes in enumerate(np.isfinite(self.variance)):
            response = ContrastEstimate(
                self.value[k, genes],
                self.variance[k, genes],
                np.sqrt(self.spread[k]) * self.loading[:, genes],
            )
            level, error = self.level[k, genes], self.level_variance[k, genes]
            if genes.any():
                out[k] = log_slope_evidence(response, level, error, SLOPES, OWN_SIZES)
        return out

    def slopes(self, priors: Priors, credible_level: float) -> list[_Answer]:
        """P(slope on the controls' response < ½) and its Bayes factor, for every row."""
        blocked = SLOPES < HALF
        density = _gain_density(priors)
        evidence = self.slope_evidence()

        def judge(k: int, genes: np.ndarray) -> _Answer:
            log = evidence[k]
            inside, outside = (
                log_mean_exp(log[side], density[side] / density[side].sum())
                for side in (blocked, ~blocked)
            )
            posterior = normalised(log + np.log(density))
            return _Answer(
                float(inside - outside),
                np.array([outside - inside]),
                float(normalised(log)[blocked].sum()),  # every slope alike
                *summary(SLOPES, posterior, credible_level),
                int(genes.sum()),
            )

        return self._each(judge)


def _judged(
    rows: list[Comparison],
    group: Callable[[list[Comparison]], _Group],
    region: float,
    priors: Priors,
    credible_level: float,
) -> list[_Answer]:
    """Answers of rows of one assumption that share their control."""
    if rows[0].assumption == "memory":
        usual, reverse = (group(side) for side in both_orders(rows[0]))
        return [_kept(usual, reverse, priors, credible_level)]
    if rows[0].assumption == "no_response":
        return group(rows).slopes(priors, credible_level)
    return group(rows).sizes(region, credible_level)


def _kept(usual: _Group, reverse: _Group, priors: Priors, credible_level: float) -> _Answer:
    """P(more than half of a response is left once its pathway is lost)."""
    sides = usual.slope_evidence(), reverse.slope_evidence()
    log = kept_evidence(*sides, SLOPES, _gain_density(priors))  # (P, κ)
    inside = KEPT > HALF
    against = (log_mean_exp(log[:, ~inside].T) - log_mean_exp(log[:, inside].T)).sum()
    common = normalised(log.sum(0))
    return _Answer(
        -float(against),
        np.array([against]),
        float(common[inside].sum()),
        *summary(KEPT, common, credible_level),
        int((np.isfinite(usual.variance) & np.isfinite(reverse.variance)).any(0).sum()),
    )


def _agreement(guides: Sequence[Found]) -> _Answer:
    """P(no guide of a perturbation has more than the region of its own); the farthest off sizes."""
    told = [each for each in guides if each["n_genes"]]
    if not told:
        return _Answer()
    against = one_is_off([np.asarray(each["against"]) for each in told], AGREE)[0]
    number = lambda each, name: float(np.asarray(each[name]))  # noqa: E731
    worst = max(told, key=lambda each: number(each, "size"))
    return _Answer(
        -float(log_mean_exp(against)),
        against,
        min(number(each, "p_rope") for each in told),
        number(worst, "size"),
        number(worst, "lower"),
        number(worst, "upper"),
        min(int(number(each, "n_genes")) for each in told),
    )


def _gain_density(priors: Priors) -> np.ndarray:
    parts = zip(priors.gain_weights, priors.gain_locs, priors.gain_scales, strict=True)
    each = (w / s * np.exp(-0.5 * ((SLOPES - m) / s) ** 2) for w, m, s in parts)
    density = sum(each, np.zeros(len(SLOPES)))
    return density / density.sum()


def _blocked_prior(priors: Priors) -> float:
    """P(gain < ½) under the gain's mixture prior."""
    return float(_gain_density(priors)[SLOPES < HALF].sum())


def _pooled(answers: list[_Answer]) -> np.ndarray:
    """Log Bayes factors against the region, averaged over draws of the noise's parameters."""
    return log_mean_exp(np.stack([a.against for a in answers])) if answers else np.zeros(1)


def _with_shared_prior(
    against: Sequence[np.ndarray], mean: float, concentration: float
) -> np.ndarray:
    """Posteriors of rows that share a prior, learned from all of them, exactly.

    Shared are the share π ~ Beta for which the assumption holds, and how far the others move:
    log-uniform between two sizes, every pair of which is as likely at first, the larger at least
    three times the region. So rows whose cells could only have shown an effect larger than any in
    the screen learn nothing from not showing it.
    """
    each = np.exp(np.clip(np.stack(np.broadcast_arrays(*against)), -700, 700))  # (rows, sizes)
    n = each.shape[1]
    low, high = np.triu_indices(n)
    low, high = (at[high >= min(_LEAST_REACH, n - 1)] for at in (low, high))
    total = np.concatenate([np.zeros((len(each), 1)), each.cumsum(1)], 1)
    moving = (total[:, high + 1] - total[:, low]) / (high - low + 1)  # (rows, intervals)
    moving = np.log(np.maximum(moving, 1e-300))[:, None]
    share, rest = np.log(_SHARES)[:, None], np.log1p(-_SHARES)[:, None]
    whole = np.logaddexp(share, rest + moving)  # (rows, shares, intervals)
    a, b = mean * concentration, (1 - mean) * concentration
    weight = normalised((a - 1) * share + (b - 1) * rest + whole.sum(0))
    return (np.exp(share - whole) * weight).sum((1, 2))
