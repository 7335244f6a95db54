"""What measured perturbations say of others, in one medium at one time, as joint draws.

A draw of the effect of a perturbation that was never measured is the prediction from all measured
ones, times by how much a measured one was stronger or weaker than predicted from all others, plus
what a measured one, drawn at random, did beside its prediction. Strength and direction are apart:
a prediction that is too small is not one of another sign. What is beside is a vector over genes, so
that most of its genes are near zero and some are not, and genes move together as they do; both
together have the expected error of the new prediction. Effects are drawn from the posterior, so
that the error of their measurement is in it. Where nothing is known the draws are those of the
population of perturbations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from pyrocell._core.random import stream
from pyrocell.errors import ScreenError
from pyrocell.knowledge import EffectRegression, Knowledge, Unseen
from pyrocell.posterior.effects import each_with_direction
from pyrocell.posterior.fitted_screen import FittedScreen
from pyrocell.screen.screen import Screen

__all__ = ["FEWEST", "Place", "place_of"]

FEWEST = 3  # measured perturbations: fewer say nothing of others
_SLOPES = (0.0, 5.0)  # of effects on their predictions, beyond which they are not believed
_LEAST_SLOPE = 0.3
_REST = 0.25  # of the expected error, at least, that is not strength
_LEAST_RATIO, _MOST_RATIO = 0.1, 10.0  # of expected errors, new over measured


@dataclass(frozen=True)
class _Measured:
    """Posterior of the effects of K perturbations on G genes, own genes apart.

    Attributes
    ----------
    mean
        (K, G); at the gene that a perturbation targets, the mean of the others.
    error
        (K,) expected squared length of the error of each, what is common to all left out.
    which
        (S,) perturbation that lends its residual to each draw.
    draws
        (S, G) a draw of its effect.
    own
        (S,) a draw of what a perturbation does to its own gene; nan where none was measured.
    """

    mean: np.ndarray
    error: np.ndarray
    which: np.ndarray
    draws: np.ndarray
    own: np.ndarray


class Place:
    """Effects of unseen perturbations in one medium at one time.

    Parameters
    ----------
    fit
        The fitted model.
    knowledge
        Sources; None: the population of perturbations.
    media, time
        Where.
    n_samples
        Joint draws.

    Raises
    ------
    ScreenError
        If the screen has fewer than three perturbations.
    """

    def __init__(
        self,
        fit: FittedScreen,
        knowledge: Knowledge | None,
        media: str,
        time: float | None,
        n_samples: int,
    ):
        if len(fit.screen.perturbations) < FEWEST:
            raise ScreenError(
                f"{len(fit.screen.perturbations)} perturbations say nothing of others; at least "
                f"{FEWEST} must be in the screen"
            )
        self.fit, self.knowledge = fit, knowledge
        self.media, self.time, self.n_samples = media, time, n_samples

    @cached_property
    def measured(self) -> _Measured:
        """Posterior of what was measured."""
        fit, n_samples = self.fit, self.n_samples
        names, genes = list(fit.screen.perturbations), len(fit.screen.genes)
        target = fit.model.target.cpu().numpy()
        n = len(names)
        mean, error = np.empty((n, genes)), np.empty(n)
        draws, own = np.empty((n_samples, genes)), np.full(n_samples, np.nan)
        which = _turns(n, n_samples, fit.posterior.seed)
        common = np.zeros((n_samples, genes))
        of_own: list[np.ndarray] = []
        found = each_with_direction(fit, names, self.media, self.time, n_samples)
        for k, (effect, _) in enumerate(found):
            mean[k] = effect.mean(0)
            spread = effect - mean[k]
            if target[k] >= 0:
                of_own.append(effect[:, target[k]])
                spread[:, target[k]] = 0.0
            error[k] = (spread**2).sum() / max(n_samples - 1, 1)
            common += spread / n
            mine = which == k
            draws[mine] = effect[mine]
            if target[k] >= 0:
                own[mine] = effect[mine, target[k]]
        if of_own:  # where the one that lends has none, another's
            table = np.stack(of_own)
            other = np.arange(n_samples) % len(table)
            own = np.where(np.isnan(own), table[other, np.arange(n_samples)], own)
        _without_own(mean, target)
        # The error of the control cells is every effect's alike and does not tell them apart.
        shared = (common**2).sum() / max(n_samples - 1, 1) - error.mean() / n
        error = np.maximum(error - max(shared, 0.0), 0.0)
        return _Measured(mean, error, which, draws, own)

    @cached_property
    def regression(self) -> EffectRegression:
        """How effects depend on what is known of genes."""
        mean = self.measured.mean
        genes = self.fit.screen.perturbation_genes
        return EffectRegression(mean @ mean.T, genes, self.knowledge, self.measured.error)

    def weights(self, genes: Sequence[str]) -> Unseen:
        """What each of m genes takes from measured perturbations."""
        return self.regression.predict(genes)

    def _missed(self, left: Unseen) -> tuple[np.ndarray, np.ndarray]:
        """How measured perturbations miss their prediction from all others: strength, and the rest.

        (S,) by how much larger or smaller than predicted, as a share, of mean zero; and (S, G) what
        does not lie along the prediction. Both of a draw are of one perturbation: those that do
        next to nothing do nothing in other directions either.
        """
        measured, which = self.measured, self.measured.which
        target = self.fit.model.target.cpu().numpy()
        known = left.weights[which] @ measured.mean
        has_own = np.flatnonzero(target[which] >= 0)
        seen = measured.draws.copy()
        for table in (known, seen):
            table[has_own, target[which[has_own]]] = 0.0
        length = (known**2).sum(1)
        slope = (known * seen).sum(1) / np.maximum(length, 1e-300)
        slope = slope.clip(*_SLOPES)
        usual = max(float(slope.mean()), _LEAST_SLOPE)
        return slope / usual - slope.mean() / usual, seen - slope[:, None] * known

    def draws(self, genes: Sequence[str]) -> np.ndarray:
        """Joint draws of log-fold changes against control, (S, m, G)."""
        measured, asked = self.measured, self.weights(genes)
        left = self.regression.left_out()
        which = measured.which
        strength, rest = self._missed(left)
        error = np.maximum(left.error[which], 1e-300)
        usual = float(np.mean((rest**2).sum(1) / error))  # of the rest, in units of stated error
        out = np.empty((len(which), len(genes), rest.shape[1]), np.float32)
        for i, gene in enumerate(genes):
            known = asked.weights[i] @ measured.mean
            off = strength[:, None] * known
            # of the expected error, what strength is not
            part = max(asked.error[i] - float((off**2).sum(1).mean()), _REST * asked.error[i])
            ratio = part / max(usual, 1e-300) / error
            scaled = np.sqrt(ratio.clip(_LEAST_RATIO, _MOST_RATIO))[:, None] * rest
            out[:, i] = known + off + scaled - scaled.mean(0)
            place = self.fit.screen.genes.get_indexer(pd.Index([gene]))[0]
            if place >= 0 and not np.isnan(measured.own).any():
                out[:, i, place] = measured.own
        return out


def place_of(screen: Screen, media: str | None, time: float | None) -> tuple[str, float | None]:
    """Medium and time; by default the baseline medium and the last time."""
    last = screen.times[-1] if screen.times else None
    return media or screen.baseline_media, last if time is None else time


def _without_own(mean: np.ndarray, target: np.ndarray) -> None:
    """Put the mean of the others where a perturbation meets its own gene."""
    rows = np.flatnonzero(target >= 0)
    columns = target[rows]
    masked = mean.copy()
    masked[rows, columns] = np.nan
    mean[rows, columns] = np.nan_to_num(np.nanmean(masked[:, columns], axis=0))


def _turns(n: int, n_samples: int, seed: int) -> np.ndarray:
    """Perturbations in random order, all as often as each other."""
    rng = np.random.default_rng(stream("unseen perturbations", seed))
    rounds = [rng.permutation(n) for _ in range(-(-n_samples // n))]
    return np.concatenate(rounds)[:n_samples]
