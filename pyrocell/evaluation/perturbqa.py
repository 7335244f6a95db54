"""PerturbQA's tasks (Wu et al. 2025) as questions to a fitted model.

Does perturbing one gene change the expression of another, and if so does it go up? Which process
do the genes of a cluster have in common, and does the model say that they act alike?
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.stats import false_discovery_control, hypergeom

from pyrocell._core.messages import did_you_mean
from pyrocell.errors import ScreenError, UnknownLabelError
from pyrocell.evaluation.pairs import pair_columns
from pyrocell.posterior.draws import check_draws

if TYPE_CHECKING:
    from pyrocell.model import PyroCell

__all__ = ["perturbqa", "perturbqa_sets"]

_REGION = float(np.log(1.25))
_AT_ONCE = 2**25  # numbers of draws that are held at once
_TINY = 1e-12  # expected counts below which a ratio means nothing
MEASURED, BY_KNOWLEDGE = "measured", "knowledge"
_NO_ANSWER = "never measured: give knowledge="


def perturbqa(
    model: PyroCell,
    pairs: pd.DataFrame,
    knowledge: Any = None,
    *,
    media: str | None = None,
    time: float | None = None,
    region: float = _REGION,
    n_samples: int = 400,
) -> pd.DataFrame:
    """PerturbQA's two tasks, asked of a fitted model: does a gene change, and which way.

    Parameters
    ----------
    model
        Trained.
    pairs
        A row per question: perturbation (or "pert"), a label or a gene, and gene, the one that is
        read out. Other columns, such as label, are kept.
    knowledge
        Prior knowledge of genes, handed on to :meth:`pyrocell.PyroCell.predict`, for perturbations
        that were never measured; without it they have no answer (NaN).
    media, time
        Where; default: the baseline medium, the last time.
    region
        Natural-log fold change beyond which a gene counts as changed.
    n_samples
        Posterior draws.

    Returns
    -------
    DataFrame
        `pairs` with mean (posterior mean of the natural-log fold change of expected counts against
        control), p_changed = P(its size is above `region`), p_up = P(up | changed), taken from the
        draws beyond the region, or P(up) where fewer than 20 are, and answer: "measured",
        "knowledge", or why there is none. What perturbations were measured is a statement about
        these cells; what was not is one about the knowledge, and as sure as that is.

    Raises
    ------
    UnknownLabelError
        If a column is not there, or a gene not in the screen.
    ScreenError
        If `region` is not above zero.
    """
    check_draws(n_samples)
    if not region > 0:
        raise ScreenError(f"region={region} must be above 0: a change that counts")
    asked = pair_columns(pairs)
    screen = model.screen
    column = screen.genes.astype(str).get_indexer(pd.Index(asked["gene"]))
    if (column < 0).any():
        gene = asked["gene"][column < 0].iloc[0]
        raise UnknownLabelError(
            f'gene "{gene}" is not in the screen{did_you_mean(gene, list(screen.genes))}'
        )
    names, row = np.unique(asked["perturbation"].to_numpy(str), return_inverse=True)
    answer = np.array([_answer(model, name, knowledge) for name in names], dtype=object)
    found = np.full((len(asked), 3), np.nan)
    place: dict[str, Any] = {"media": screen.baseline_media if media is None else media}
    if screen.times:
        place["time"] = screen.times[-1] if time is None else time
    for kind in (MEASURED, BY_KNOWLEDGE):
        mine = np.flatnonzero(answer == kind)
        arguments = {"knowledge": knowledge} if kind == BY_KNOWLEDGE else {}
        step = max(1, _AT_ONCE // (n_samples * len(screen.genes)) - 1)
        for first in range(0, len(mine), step):
            some = mine[first : first + step]
            draws = _effect_draws(model, list(names[some]), place, n_samples, arguments)
            position = np.full(len(names), -1)
            position[some] = np.arange(len(some))
            rows = np.flatnonzero(position[row] >= 0)
            found[rows] = _said(draws[:, position[row[rows]], column[rows]], region)
    table = dict(zip(("mean", "p_changed", "p_up"), found.T))
    return asked.assign(**table, answer=answer[row])


def _answer(model: PyroCell, name: str, knowledge: Any) -> str:
    """Where the answer to a perturbation comes from."""
    try:
        model.screen.indices(name)
    except UnknownLabelError:
        return BY_KNOWLEDGE if knowledge is not None else _NO_ANSWER
    return MEASURED


def _effect_draws(
    model: PyroCell,
    names: Sequence[str],
    place: Mapping[str, Any],
    n_samples: int,
    arguments: Mapping[str, Any],
) -> np.ndarray:
    """Joint draws of log-fold changes of expected counts against control, (S, names, G)."""
    frame = pd.DataFrame({"perturbation": [model.screen.control, *names]}).assign(**place)
    draws = model.predict(frame, n_samples=n_samples, return_draws=True, **arguments)
    level = np.log(np.maximum(np.asarray(draws, np.float32), _TINY))
    return level[:, 1:] - level[:, :1]


def _said(draws: np.ndarray, region: float) -> np.ndarray:
    """Mean, P(changed) and P(up | changed), (n, 3), from draws (S, n)."""
    beyond = np.abs(draws) > region
    n = beyond.sum(0)
    up = ((draws > 0) & beyond).sum(0)
    # one half of a draw on either side, so that no answer is without doubt
    sure = (up + 0.5) / (n + 1)
    plain = ((draws > 0).sum(0) + 0.5) / (len(draws) + 1)
    changed = (n + 0.5) / (len(draws) + 1)
    return np.column_stack([draws.mean(0), changed, np.where(n >= 20, sure, plain)])


# ---------------------------------------------------------------------- sets of genes
def perturbqa_sets(
    model: PyroCell,
    clusters: Mapping[str, Sequence[str]] | Sequence[Sequence[str]],
    gene_sets: Mapping[str, Sequence[str]],
    *,
    media: str | None = None,
    time: float | None = None,
    n_samples: int = 200,
) -> pd.DataFrame:
    """PerturbQA's set enrichment, asked of a fitted model: what the genes of a cluster share.

    Parameters
    ----------
    model
        Trained.
    clusters
        Clusters of perturbations, or of genes that are read out, by name or in a list.
    gene_sets
        Named sets of genes among which to look, such as those of a .gmt file.
    media, time
        Where effects are compared; default: the baseline medium, the last time.
    n_samples
        Posterior draws.

    Returns
    -------
    DataFrame
        A row per cluster and set that share a gene, the most surprising first: cluster, kind
        ("perturbations" or "genes"), gene_set, n_cluster, n_set and overlap (within the
        perturbations, or genes, of the screen), p (hypergeometric) and q (Benjamini and Hochberg
        over the sets of a cluster); and what the posterior says of the shared members: alike, the
        mean correlation of their effects (of perturbations over genes, of genes over
        perturbations) less that of all pairs, with lower and upper (90%); NaN for one member.

    Raises
    ------
    ScreenError
        If nothing of a cluster is in the screen.
    """
    check_draws(n_samples)
    named = clusters if isinstance(clusters, Mapping) else dict(enumerate(clusters))
    screen = model.screen
    place: dict[str, Any] = {"media": screen.baseline_media if media is None else media}
    if screen.times:
        place["time"] = screen.times[-1] if time is None else time
    draws = _effect_draws(model, screen.perturbations, place, n_samples, {})
    universes = {"perturbations": list(screen.perturbation_genes), "genes": list(screen.genes)}
    rows: list[dict[str, Any]] = []
    for name, members in named.items():
        inside = {k: set(members) & set(map(str, all_)) for k, all_ in universes.items()}
        kind = max(inside, key=lambda k: len(inside[k]))  # the first of two alike
        if not inside[kind]:
            raise ScreenError(
                f'cluster "{name}": none of its {len(members)} genes is a perturbation or a gene '
                "of the screen"
            )
        effects = draws if kind == "perturbations" else draws.transpose(0, 2, 1)
        universe = {str(gene): i for i, gene in enumerate(universes[kind])}
        found = _enriched(inside[kind], universe, gene_sets)
        for row in found:
            row |= {"cluster": name, "kind": kind}
            row |= _alike(effects, [universe[g] for g in row.pop("shared")])
        rows += found
    order = ["cluster", "kind", "gene_set", "n_cluster", "n_set", "overlap", "p", "q"]
    return pd.DataFrame(rows, columns=[*order, "alike", "lower", "upper"])


def _enriched(
    members: set[str], universe: Mapping[str, int], gene_sets: Mapping[str, Sequence[str]]
) -> list[dict[str, Any]]:
    """Sets that share a gene with the members, by the chance of sharing so many."""
    rows: list[dict[str, Any]] = []
    n_tested = 0
    for name, genes in gene_sets.items():
        inside = {g for g in genes if g in universe}
        n_tested += bool(inside)
        shared = sorted(members & inside)
        if shared:
            p = hypergeom.sf(len(shared) - 1, len(universe), len(inside), len(members))
            sizes = {"n_cluster": len(members), "n_set": len(inside), "overlap": len(shared)}
            rows.append({"gene_set": name, **sizes, "p": float(p), "shared": shared})
    if rows:
        # sets that share nothing were looked at, too
        p = np.concatenate([[row["p"] for row in rows], np.ones(n_tested - len(rows))])
        for row, q in zip(rows, false_discovery_control(p)):
            row["q"] = float(q)
    return sorted(rows, key=lambda row: (row["p"], -row["overlap"]))


def _alike(effects: np.ndarray, members: Sequence[int]) -> dict[str, float]:
    """Mean correlation of some rows of effects (S, rows, columns), less that of all rows."""
    if len(members) < 2:
        return dict.fromkeys(("alike", "lower", "upper"), float("nan"))
    rows = effects - effects.mean(2, keepdims=True)
    rows = rows / np.maximum(np.linalg.norm(rows, axis=2, keepdims=True), _TINY)

    def mean_correlation(some: np.ndarray) -> np.ndarray:
        n = some.shape[1]
        return (np.square(some.sum(1)).sum(1) - n) / (n * (n - 1))

    found = mean_correlation(rows[:, list(members)]) - mean_correlation(rows)
    lower, upper = np.percentile(found, [5, 95])
    return {"alike": float(found.mean()), "lower": float(lower), "upper": float(upper)}
