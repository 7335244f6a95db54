"""Summaries of the terms of a change, by gene and by step, with the cells behind each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from pyrocell.posterior.draws import summarise
from pyrocell.posterior.explain.conditions import Asked
from pyrocell.posterior.explain.drawn import Drawn
from pyrocell.posterior.explain.terms import (
    BATCH,
    MEDIUM,
    ON_MEDIUM,
    OWN,
    READING,
    TIME,
    UNSEEN,
    Term,
)
from pyrocell.posterior.fitted_screen import FittedScreen
from pyrocell.screen.screen import Screen

__all__ = ["REGION", "TOTAL", "names_of", "table_by_gene", "table_by_step"]

TOTAL = "total"
REGION = 0.05  # root mean square over genes below which a step does next to nothing
_WRITTEN = 4  # conditions that are written out


def names_of(terms: Sequence[Term], screen: Screen) -> list[str]:
    """Names of terms, with the perturbation where there are several."""
    several = len({term.driver for term in terms if term.driver >= 0}) > 1
    return [
        f"{screen.perturbations[term.driver]}: {term.kind}"
        if several and term.driver >= 0
        else term.kind
        for term in terms
    ]


# ---------------------------------------------------------------------- the data behind
def _behind(screen: Screen, found: Drawn, term: Term | None) -> np.ndarray:
    """(C,) bool: conditions whose cells say how large a term is; `term` None: the answer's own."""
    asked, against = found.asked, found.against
    mine = list(asked.perturbations)
    member = screen.membership.tocsc()
    none = np.zeros(len(screen.conditions), bool)
    carries = [np.asarray(member[:, [k]].sum(1)).ravel() > 0 for k in mine]
    in_medium = none if asked.medium < 0 else screen.exposure[:, asked.medium] > 0
    if term is None or term.step == READING:
        return _as(screen, asked)
    if term.driver >= 0:
        return np.asarray(member[:, [term.driver]].sum(1)).ravel() > 0
    if term.step == UNSEEN:
        return none
    if term.step == MEDIUM:
        return screen.is_control & (in_medium | (screen.exposure.sum(1) == 0))
    if term.step == TIME:
        plain = screen.is_control & (screen.exposure.sum(1) == 0)
        ends = [float(x.frame["time"].iloc[0]) for x in (asked, against)]
        return plain & np.isclose(screen.duration[:, None], ends).any(1)
    if term.step == BATCH:
        return ~none
    if term.kind == "gain":
        return in_medium & np.any(carries, axis=0)
    if term.kind == "common to perturbations":
        return ~screen.is_control
    return _same_drivers(screen, found)


def _same_drivers(screen: Screen, found: Drawn) -> np.ndarray:
    """Conditions with just the perturbations and the medium of the answer, at any time."""
    asked = found.asked
    exact = np.diff(screen.membership.tocsr().indptr) == len(asked.perturbations)
    for k in asked.perturbations:
        exact &= np.asarray(screen.membership.tocsc()[:, [k]].sum(1)).ravel() > 0
    if asked.medium >= 0:
        return exact & (screen.exposure[:, asked.medium] > 0)
    return exact & (screen.exposure.sum(1) == 0)


def _as(screen: Screen, asked: Asked) -> np.ndarray:
    """The condition itself: its perturbations, medium and time; nothing where it has unseen."""
    if asked.unseen_genes:
        return np.zeros(len(screen.conditions), bool)
    label = screen.label_of(asked.perturbations)
    medium = screen.baseline_media if asked.medium < 0 else screen.media[asked.medium]
    here = screen.carriers(label) & (screen.conditions["media"] == medium).to_numpy()
    if screen.times and "time" in asked.frame:
        here &= np.isclose(screen.duration, float(asked.frame["time"].iloc[0]))
    for event in ("perturbed_at", "exposed_at"):
        if event in screen.conditions:
            at = asked.frame[event].iloc[0] if event in asked.frame else 0.0
            applies = bool(asked.perturbations) if event[0] == "p" else asked.medium >= 0
            if applies:
                here &= np.isclose(screen.conditions[event], 0.0 if pd.isna(at) else float(at))
    return here


def _data(screen: Screen, found: Drawn, terms: Sequence[Term] | None) -> dict[str, object]:
    """Columns n_cells, n_batches, conditions and measured, of terms that belong together."""
    each = [_behind(screen, found, None)]
    if terms is not None:
        each = [_behind(screen, found, term) for term in terms]
    there = np.any(each, axis=0)
    batch = [t for t in terms or () if t.step == BATCH]
    layout = screen.layout.to_numpy()[there]
    if batch and "batch" in found.asked.frame:
        kept = [b == str(found.asked.frame["batch"].iloc[0]) for b in screen.batches]
        layout = layout[:, kept]
    cells = layout.sum(0)
    names = [_name(screen, row) for row in screen.conditions[there].to_dict("records")]
    more = f"; {len(names) - _WRITTEN:,} more" if len(names) > _WRITTEN else ""
    return {
        "n_cells": int(cells.sum()),
        "n_batches": int((cells > 0).sum()),
        "conditions": "; ".join(names[:_WRITTEN]) + more,
        "measured": bool(cells.sum() > 0),
    }


def _name(screen: Screen, row: dict) -> str:
    where = f" in {row['media']}" if screen.media else ""
    when = f" at {row['time']:g}" if screen.times else ""
    return f"{row['perturbation']}{where}{when}"


# ---------------------------------------------------------------------- tables
def table_by_gene(fit: FittedScreen, found: Drawn, credible_level: float) -> pd.DataFrame:
    """A row for each gene and term, the total last."""
    screen, n_terms = fit.screen, len(found.terms)
    size = np.abs(found.values)
    share = (size / np.maximum(size.sum(1, keepdims=True), 1e-12)).mean(0)  # (terms, G)
    every = np.concatenate([found.values, found.total[:, None]], 1)
    summary = {k: v.T.ravel() for k, v in summarise(every, credible_level).items()}
    names = [*names_of(found.terms, screen), TOTAL]
    n_genes = len(found.places)
    data = [_data(screen, found, [term]) for term in found.terms] + [_data(screen, found, None)]
    columns = {
        "gene": np.repeat(np.asarray(screen.genes[found.places], object), n_terms + 1),
        "term": names * n_genes,
        "step": [*(term.step for term in found.terms), TOTAL] * n_genes,
        **summary,
        "share": np.concatenate([share, np.ones((1, n_genes))]).T.ravel(),
        **{name: [row[name] for row in data] * n_genes for name in data[0]},
    }
    features = fit.model.config.features
    table = pd.DataFrame(columns)
    if features is not None:
        views = np.repeat(features.labels()[found.places], n_terms + 1)
        table.insert(1, "view", views)
    return table


def table_by_step(fit: FittedScreen, found: Drawn, credible_level: float) -> pd.DataFrame:
    """A row for each step, the largest first, then the own transcript and the total.

    The own transcript is no consequence of a perturbation, and one gene of many; as elsewhere in
    the package it is not compared with what the others do.

    The root mean square of a draw is above zero however little is known. What two draws made apart
    have in common, the mean over genes of their products, is that of the posterior mean, and is
    what says whether there is anything to be seen.
    """
    screen = fit.screen
    names = names_of(found.terms, screen)
    steps = list(dict.fromkeys(term.step for term in found.terms))
    sums = {
        step: found.values[:, [i for i, t in enumerate(found.terms) if t.step == step]].sum(1)
        for step in steps
    }
    sums[TOTAL] = found.total
    square = {step: (x.astype(float) ** 2).mean(1) for step, x in sums.items()}  # (S,) each
    whole = np.maximum(sum(square[step] for step in steps), 1e-12)
    apart = _independent(fit, len(found.total))
    rows = []
    for step, x in sums.items():
        mine = [t for t in found.terms if t.step == step]
        mine = [t for t in mine if t.driver >= 0] or mine
        both = (x.astype(float) @ x.T.astype(float))[apart] / x.shape[1]
        rms = summarise(np.sqrt(square[step]), credible_level)
        rows.append(
            {
                "step": step,
                "terms": ", ".join(n for n, t in zip(names, found.terms) if t.step == step),
                "size": float(np.sqrt(max(both.mean(), 0.0))),
                "rms": float(rms["mean"]),
                "lower": float(rms["lower"]),
                "upper": float(rms["upper"]),
                "prob_seen": float((both > REGION**2).mean()),
                "share": 1.0 if step == TOTAL else float((square[step] / whole).mean()),
                **_value(fit, found, step, credible_level),
                **_data(screen, found, mine or None),
            }
        )
    table = pd.DataFrame(rows)
    last = table["step"].map({OWN: 1, TOTAL: 2}).fillna(0)
    order = np.lexsort([-table["size"].to_numpy(), last.to_numpy()])
    return table.iloc[order].reset_index(drop=True)


def _independent(fit: FittedScreen, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of draws, rows and columns, that are of different states of the sampler."""
    state = np.arange(n) if fit.gene_level is None else np.arange(n) % len(fit.gene_level)
    first, second = np.nonzero(state[:, None] < state)
    if not len(first):
        first = second = np.zeros(1, np.int64)
    return first, second


def _value(
    fit: FittedScreen, found: Drawn, step: str, credible_level: float
) -> dict[str, float | str]:
    """The number that a step is about: the gain of a response, the change of an own transcript."""
    draws, of = None, ""
    if step == ON_MEDIUM and found.gain is not None:
        draws, of = found.gain, "gain"
    own = [t for t in found.terms if t.step == OWN]
    if step == OWN and len(own) == 1:
        target = int(fit.model.target[own[0].driver])
        at = np.flatnonzero(found.places == target)
        draws = found.values[:, found.terms.index(own[0]), at[0]] if len(at) else None
        of = "log-fold change" if len(at) else ""
    if draws is None:
        return {"value_of": "", "value": np.nan, "value_lower": np.nan, "value_upper": np.nan}
    ends = summarise(draws, credible_level)
    return {
        "value_of": of,
        "value": float(ends["mean"]),
        "value_lower": float(ends["lower"]),
        "value_upper": float(ends["upper"]),
    }
