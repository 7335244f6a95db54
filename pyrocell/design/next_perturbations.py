"""Which perturbations to run next: those after which least remains to be known of the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from pyrocell._core.messages import join_names
from pyrocell.errors import DesignError
from pyrocell.knowledge import Knowledge
from pyrocell.posterior.unseen.place import Place, place_of

if TYPE_CHECKING:
    from pyrocell.model import PyroCell

__all__ = ["next_perturbations"]

_SHARE = 0.9  # of the variance of effects that knowledge is taken to explain without a model
_NOISE = 0.3  # error of a perturbation yet to be measured, in units of the variance of effects
_MEAN = 5.0  # prior variance of what all perturbations do alike


def next_perturbations(
    candidates: Sequence[str],
    knowledge: Knowledge,
    n: int,
    model: PyroCell | None = None,
    measured: Sequence[str] | None = None,
    targets: Sequence[str] | None = None,
    share: float = _SHARE,
    media: str | None = None,
    time: float | None = None,
) -> pd.DataFrame:
    """Perturbations whose measurement tells most of all that are of interest, one after the other.

    Effects are a Gaussian process over genes with the kernel of the knowledge ({doc}`knowledge`);
    the next perturbation is the one that takes most off the variance of all targets, summed. No
    effect needs to be known for that: with a model the shares of the sources are those it found.

    Parameters
    ----------
    candidates
        Genes that could be perturbed; those measured already are left out.
    knowledge
        Sources. A gene that none of them knows is like no other, and tells of itself alone.
    n
        How many to choose.
    model
        A fitted model: what it measured is known, with its error, and its shares are used.
    measured
        Genes that were measured, beside those of the model.
    targets
        Genes whose effects are of interest; default: the candidates.
    share
        Share of the variance of effects that all sources explain together, evenly, where there is
        no model. A larger one trusts knowledge more and spreads the choice more.
    media, time
        Where the model's effects are taken; default: baseline medium, last time.

    Returns
    -------
    DataFrame with a row per choice, in order: rank, perturbation, variance_reduction (share of the
    variance of all targets before any choice that it takes off), and expected_error (mean expected
    squared error of targets that are still not measured, relative to that of the mean of all
    perturbations; below 1 means better than that mean).

    Raises
    ------
    DesignError
        If there are fewer than n candidates, or `share` is not between 0 and 1.
    KnowledgeError
        If no source knows any of the genes.
    """
    if not 0 < share < 1:
        raise DesignError(f"share={share} must be between 0 and 1")
    known, shares, noise = _known(knowledge, model, measured, share, media, time)
    free = [name for name in dict.fromkeys(map(str, candidates)) if name not in set(known)]
    if not 1 <= n <= len(free):
        raise DesignError(
            f"n={n}: {len(free)} candidates are not measured yet ({join_names(free)}); ask for 1 "
            "to as many"
        )
    of_interest = free if targets is None else list(dict.fromkeys(map(str, targets)))
    names = list(dict.fromkeys([*known, *free, *of_interest]))
    place = {name: i for i, name in enumerate(names)}
    kernels = knowledge.kernel(names).kernels
    left = np.tensordot(shares, kernels, 1)
    np.fill_diagonal(left, 1.0)
    left += _MEAN
    if known:
        m = len(known)
        gain = np.linalg.solve(left[:m, :m] + np.diag(noise), left[:m])
        left = left - left[:, :m] @ gain
    rows, open_targets = [], np.array([place[t] for t in of_interest if t not in set(known)])
    if not len(open_targets):
        raise DesignError("all targets are measured already; name others with targets=")
    choice, whole = np.array([place[name] for name in free]), left[open_targets, open_targets].sum()
    for rank in range(1, n + 1):
        spread = left[choice, choice] + _NOISE
        taken = (left[np.ix_(open_targets, choice)] ** 2).sum(0) / spread
        best = int(np.argmax(taken))
        i = choice[best]
        left = left - np.outer(left[:, i], left[i]) / spread[best]
        choice = np.delete(choice, best)
        chosen = {row["perturbation"] for row in rows} | {names[i]}
        rest = [j for j in open_targets if names[j] not in chosen]
        rows.append(
            {
                "rank": rank,
                "perturbation": names[i],
                "variance_reduction": float(taken[best] / whole),
                "expected_error": float(left[rest, rest].mean()) if rest else np.nan,
            }
        )
    return pd.DataFrame(rows)


def _known(
    knowledge: Knowledge,
    model: PyroCell | None,
    measured: Sequence[str] | None,
    share: float,
    media: str | None,
    time: float | None,
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Genes that were measured, shares of the sources, and the error of what was measured."""
    others = list(dict.fromkeys(map(str, measured or ())))
    n_sources = len(knowledge.sources)
    shares = np.full(n_sources, share / n_sources)
    if model is None:
        return others, shares, np.full(len(others), _NOISE)
    regression = Place(
        model.fitted, knowledge, *place_of(model.screen, media, time), 100
    ).regression
    noise = dict(zip(regression.names, regression.fit.noise, strict=True))
    noise |= {name: _NOISE for name in others if name not in noise}
    return list(noise), regression.fit.mean_share(), np.array(list(noise.values()))
