"""Tables of effects with unseen perturbations, of what knowledge explains, and of neighbours."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from pyrocell._core.random import stream
from pyrocell.errors import ScreenError
from pyrocell.knowledge import Knowledge
from pyrocell.posterior.counts_alone import long_table
from pyrocell.posterior.draws import summarise
from pyrocell.posterior.effects import (
    columns_of,
    counts_by_label,
    effect_draws,
    expected_false_signs,
)
from pyrocell.posterior.fitted_screen import FittedScreen
from pyrocell.posterior.unseen.place import Place
from pyrocell.posterior.unseen.requests import KnowledgeOrNone, asked_for, sources_of

__all__ = ["REGION", "effects_with_unseen", "knowledge_table", "neighbours"]

REGION = 0.05  # natural-log fold change below which an unseen effect is next to nothing
MEAN = "mean of all"


def effects_with_unseen(
    fit: FittedScreen,
    perturbations: Sequence[str],
    media: str,
    time: float | None,
    n_samples: int,
    credible_level: float,
    knowledge: KnowledgeOrNone,
    of_measured: Callable[[list[str]], pd.DataFrame],
) -> pd.DataFrame:
    """The table of effects, its measured rows as ever, with rows of perturbations never measured.

    Parameters
    ----------
    of_measured
        Gives the rows of measured labels.
    """
    asked = asked_for(fit.screen, perturbations, knowledge)
    known = [label for label, parts in asked.items() if not parts.unseen]
    new = [label for label, parts in asked.items() if parts.unseen]
    tables = [of_measured(known).assign(unseen=False)] if known else []
    if new:
        draws = _draws(fit, [asked[label] for label in new], media, time, n_samples, knowledge)
        found = _summaries(draws, credible_level)
        control = counts_by_label(fit, media, time)(fit.screen.control)
        counts = np.zeros((len(new), len(fit.screen.genes)))
        columns = columns_of(iter([(slice(0, len(new)), found)]), counts, control)
        when = np.nan if time is None else float(time)
        table = long_table(columns, new, fit.screen.genes, media, when)
        tables.append(table.assign(unseen=True))
    out = pd.concat(tables, ignore_index=True) if len(tables) > 1 else tables[0]
    order = pd.Categorical(out["perturbation"], list(asked), ordered=True)
    out = out.iloc[np.argsort(order.codes, kind="stable")].reset_index(drop=True)
    few = out["few_counts"].to_numpy(bool)
    return out.assign(fdr=expected_false_signs(out["lfsr"].to_numpy(np.float32), ~few))


def _draws(fit, asked, media, time, n_samples, knowledge) -> np.ndarray:
    """Joint draws of labels with unseen parts, (S, n, G); parts add."""
    genes = list(dict.fromkeys(gene for a in asked for gene in a.unseen))
    each = Place(fit, sources_of(knowledge), media, time, n_samples).draws(genes)
    out = np.stack([each[:, [genes.index(g) for g in a.unseen]].sum(1) for a in asked], 1)
    rest = list(dict.fromkeys(a.measured for a in asked if a.measured != fit.screen.control))
    if rest:
        own = effect_draws(fit, rest, media, time, n_samples)
        for i, a in enumerate(asked):
            if a.measured in rest:
                out[:, i] += own[:, rest.index(a.measured)]
    return out


def _summaries(draws: np.ndarray, credible_level: float) -> dict[str, np.ndarray]:
    found = summarise(draws, credible_level)
    sure = np.maximum((draws > REGION).mean(0), (draws < -REGION).mean(0))
    return {**found, "lfsr": 1 - sure}


def knowledge_table(
    fit: FittedScreen,
    knowledge: Knowledge,
    media: str,
    time: float | None,
    n_permutations: int,
    credible_level: float,
    n_samples: int,
) -> pd.DataFrame:
    """How much of the effects each source explains; see `PyroCell.knowledge`."""
    if n_permutations < 1:
        raise ScreenError(f"n_permutations={n_permutations} must be at least 1")
    if sources_of(knowledge) is None:
        raise ScreenError("the population of perturbations has no source to weigh")
    place = Place(fit, knowledge, media, time, n_samples)
    regression = place.regression
    fitted = regression.fit
    lower, upper = fitted.share_interval(credible_level)
    rows = []
    for s, name in enumerate(knowledge.sources):
        covered = regression.covered[s]
        rng = np.random.default_rng(stream("knowledge", fit.posterior.seed))
        found = regression.evidence(s, n_permutations, rng)
        low, middle, high = np.quantile(found.shuffled, [0.05, 0.5, 0.95])
        rows.append(
            {
                "source": name,
                "genes_covered": int(covered.sum()),
                "n_perturbations": len(covered),
                "share": fitted.mean_share()[s],
                "lower": lower[s],
                "upper": upper[s],
                "log_bayes_factor": found.log_bayes_factor,
                "shuffled_lower": low,
                "shuffled_median": middle,
                "shuffled_upper": high,
                "p": found.p,
            }
        )
    return pd.DataFrame(rows)


def neighbours(
    fit: FittedScreen,
    perturbations: Sequence[str],
    knowledge: Knowledge,
    media: str,
    time: float | None,
    n_neighbours: int,
    n_samples: int,
) -> pd.DataFrame:
    """Measured perturbations that carry a prediction; see `PyroCell.neighbours`."""
    asked = asked_for(fit.screen, perturbations, knowledge)
    genes = list(dict.fromkeys(gene for a in asked.values() for gene in a.unseen))
    known = [label for label, a in asked.items() if not a.unseen]
    if known:
        raise ScreenError(
            f'perturbation "{known[0]}" was measured; neighbours carry those that were not'
        )
    found = Place(fit, sources_of(knowledge), media, time, n_samples).weights(genes)
    columns = ["perturbation", "neighbour", "source", "weight"]
    names = np.array(fit.screen.perturbations)
    sources = () if isinstance(knowledge, str) else knowledge.sources
    tables = []
    for i, gene in enumerate(genes):
        parts = found.by_source[:, i]  # (S, n)
        rows = [
            (gene, names[k], source, parts[s, k])
            for s, source in enumerate(sources)
            for k in np.flatnonzero(parts[s])
        ]
        table = pd.DataFrame(rows, columns=columns)
        table = table.sort_values("weight", key=np.abs, ascending=False, kind="stable")
        rest = pd.DataFrame([(gene, MEAN, "", 1.0 - parts.sum())], columns=columns)
        tables += [table.head(n_neighbours), rest] if len(table) else [rest]
    return pd.concat(tables, ignore_index=True)
