"""Predictions of conditions that were held out, scored beside what no model would say."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.stats import wilcoxon

from pyrocell._core.progress import progress
from pyrocell._core.random import stream
from pyrocell.errors import ScreenError, ScreenWarning
from pyrocell.evaluation.anchors import (
    ADDITIVE,
    ANCHORS,
    MEAN,
    NO_CHANGE,
    REPLICATE,
    Anchor,
    SeenCells,
)
from pyrocell.evaluation.external import TOOLS, external_scores
from pyrocell.evaluation.pseudobulks import Pseudobulks
from pyrocell.evaluation.refit import again
from pyrocell.evaluation.splits import as_splits, held_out_of
from pyrocell.metrics.deltas import (
    crps,
    delta_scores,
    discrimination,
    mean_by,
    weights_of_evidence,
)
from pyrocell.model import PyroCell
from pyrocell.posterior.draws import check_draws, check_level
from pyrocell.posterior.unseen.requests import POPULATION
from pyrocell.screen.events import EVENTS

if TYPE_CHECKING:
    from pyrocell.screen.screen import Screen

__all__ = ["METRICS", "MODEL", "Evaluation", "evaluate"]

MODEL = "pyrocell"
# Rank and weighted metrics first.
METRICS = (
    *("discrimination", "spearman", "de_overlap", "de_direction", "de_auroc", "wmse"),
    *("mse", "pearson", "crps", "coverage"),
)
_AT_ONCE = 2**26  # numbers of draws that are held at once
_MEAN_AND_SPREAD = "the mean of the others, and how they differ"
_FEWEST = 4  # cells of which two halves can be made


@dataclass(frozen=True)
class Evaluation:
    """What `pyrocell.metrics.evaluate` found.

    Attributes
    ----------
    scores
        A row for each held-out condition and method: split, perturbation, media, time, n_cells,
        n_changed (genes found to differ from controls in the held-out cells), method, the metrics
        (see `evaluate`), mse_noise (what the sampling noise of the held-out cells alone adds to
        `mse`: a forecast of the truth would score it), and note.
    summary
        A row for each method: n_conditions, the mean of every metric over conditions, and, against
        the mean of the others on the same conditions, the share with a smaller mse and with a
        smaller wmse, and p of Wilcoxon's signed ranks for wmse.
    predicted
        AnnData of the same rows, × genes: `.X` levels (log1p of mean counts at the depth
        `.uns["depth"]`), `.layers["delta"]` changes against controls; with "lower", "upper" where
        a method has intervals, NaN elsewhere. `.obs["method"]` "observed" are the held-out cells.
    external
        Scores of cell-eval and scPertEval, where they are installed: tool, method, perturbation,
        media, time, metric, value.
    """

    scores: pd.DataFrame
    summary: pd.DataFrame
    predicted: AnnData
    external: pd.DataFrame = field(default_factory=pd.DataFrame)

    def __repr__(self) -> str:
        n = self.scores.drop_duplicates(["split", "perturbation", "media", "time"]).shape[0]
        return f"Evaluation of {n} held-out conditions\n{self.summary.to_string()}"

    def _repr_html_(self) -> str:
        return cast("Any", self.summary)._repr_html_()


def evaluate(
    model: PyroCell | AnnData,
    held_out: Any,
    *,
    knowledge: Any = None,
    constructor: Mapping[str, Any] | None = None,
    train: Mapping[str, Any] | None = None,
    n_samples: int = 200,
    credible_level: float = 0.9,
    n_halves: int = 10,
    min_cells: int = 10,
    seed: int = 0,
    external: Sequence[str] = TOOLS,
    progress_bar: bool = False,
) -> Evaluation:
    """Hold conditions out, train again without them, predict them, and score that beside anchors.

    Cells of the held-out conditions are removed before the rest is registered, so that nothing of
    them reaches the model; genes, and size factors of cells, are those of the whole screen.
    Control cells are never held out. Every row of the result has the same cells for its truth, and
    every condition a row for the model and for each anchor.

    Parameters
    ----------
    model
        A model, trained or not, whose options are taken for those trained here (it is left as it
        is), or an AnnData registered with `PyroCell.setup_anndata`. Counts in memory.
    held_out
        One split, or a list of them, each of which costs a training; see
        :func:`pyrocell.metrics.splits`. A split is a list of labels of perturbations or
        combinations; a dict of lists with keys "perturbation", "combination", "media", "time" (what
        fits all keys is held out: ``{"perturbation": ["SOX2"], "time": [5.0]}``); or a DataFrame
        with a row per condition and columns among perturbation, media, time. Conditions in the same
        place whose perturbations include a held-out one's go with it and are not predicted.
    knowledge
        Prior knowledge of genes, handed on to :meth:`pyrocell.PyroCell.predict` for perturbations
        that are not seen. Without it, and for genes that it does not cover, these are answered by
        the population of the others: their mean, and for an interval how they differ; `note` says
        so.
    constructor, train
        Arguments of `PyroCell` to change, and of `PyroCell.train`.
    n_samples, credible_level
        Posterior draws, and mass of the intervals, which include the sampling noise of as many
        cells as were held out.
    n_halves
        Random halves of the held-out cells behind the replicate.
    min_cells
        Conditions with fewer cells are removed like the others but not scored, and are no anchors.
    seed
        Of trainings, draws and halves.
    external
        Of "cell_eval" and "scperteval", which to run on the same predictions if they are installed.
    progress_bar
        Show progress over splits.

    Returns
    -------
    Evaluation
        `scores` with the metrics, all over genes but the perturbations' own:

        - discrimination: share of the other conditions of that medium and time whose observed
          change is less like the prediction than the condition's own (1 best, .5 chance);
        - spearman of predicted and observed changes; de_overlap, de_direction, de_auroc: changed
          genes among those predicted to change most, their signs, and how they are ranked
          (:func:`pyrocell.metrics.delta_scores`);
        - wmse: mean squared error weighted by how surely a gene differs from the *other*
          perturbed cells, where saying the mean of the others is worth nothing;
        - mse, pearson: the usual ones, which reward the mean of the others;
        - crps, the absolute error where a method has no distribution, and coverage of intervals.

        Methods: "pyrocell"; "mean of the others"; "additive" (the sum of the perturbations alone,
        or the condition's own change at the nearest other time or in the baseline medium added to
        the controls); "no change" (controls); "replicate" (half of the held-out cells against the
        other half, with the noise of both: a forecast can score better than it).

    Raises
    ------
    ScreenError, UnknownLabelError
        If a split names what is not there, leaves nothing to learn from, or no held-out condition
        has `min_cells` cells; if counts are in a file.

    Notes
    -----
    Anchors without a model beat most published ones (Ahlmann-Eltze et al. 2025); weighted metrics
    are Mejia et al.'s (2025).
    """
    check_draws(n_samples)
    check_level(credible_level)
    if min_cells < _FEWEST or n_halves < 1:
        raise ScreenError(
            f"min_cells={min_cells} must be at least {_FEWEST}, n_halves={n_halves} 1"
        )
    base = model if isinstance(model, PyroCell) else PyroCell(model, **dict(constructor or {}))
    bulk = _pseudobulks(base)
    listed = as_splits(held_out)
    found = [held_out_of(base.screen, patterns) for patterns in listed]
    options = _Options(
        dict(constructor or {}),
        {"seed": seed, "progress_bar": False} | dict(train or {}),
        *(knowledge, n_samples, credible_level, n_halves, min_cells, seed),
    )
    rows: list[dict[str, Any]] = []
    for i, split in enumerate(progress(progress_bar)(found, desc="splits")):
        asked = split.asked & (bulk.screen.conditions["n_cells"].to_numpy() >= min_cells)
        if asked.any():
            rows += _Split(base, bulk, asked, ~split.removed, options).rows(i)
    if not rows:
        raise ScreenError(
            f"no held-out condition has min_cells={min_cells} cells; lower it, or hold others out"
        )
    out = _collected(rows, bulk)
    if external:
        return Evaluation(*out, external_scores(Evaluation(*out), base, external, seed=seed))
    return Evaluation(*out)


def _pseudobulks(model: PyroCell) -> Pseudobulks:
    cells = model._cells
    if model.adata.isbacked or not hasattr(cells.counts, "indptr"):
        raise ScreenError(
            "the counts of the cells are in a file; evaluate() takes some of the cells away and "
            "needs them in memory: adata = adata.to_memory(), and register that"
        )
    size = cells.size
    return Pseudobulks(model.screen, cast("Any", cells.counts), size, float(np.median(size)))


@dataclass(frozen=True)
class _Options:
    """How splits are trained and scored; see `evaluate`."""

    constructor: dict[str, Any]
    train: dict[str, Any]
    knowledge: Any
    n_samples: int
    credible_level: float
    n_halves: int
    min_cells: int
    seed: int


@dataclass(frozen=True)
class _Forecast:
    """Levels of one condition: their mean (G,), draws (S, G), and how they were made."""

    level: np.ndarray
    draws: np.ndarray
    note: str


@dataclass(frozen=True, eq=False)
class _Request:
    """What a model is asked about one held-out condition.

    Attributes
    ----------
    condition
        Row of the screen's conditions.
    frame
        The condition in each of its cells' batches, as `predict` takes it.
    shares
        (batches,) share of each in the condition's depth.
    knowledge, note
        What stands in for perturbations that were never seen, None where all were; what to say.
    """

    condition: int
    frame: pd.DataFrame
    shares: np.ndarray
    knowledge: Any
    note: str


@dataclass(frozen=True, eq=False)
class _Split:
    """Some held-out conditions, a model without them, and their scores."""

    base: PyroCell
    bulk: Pseudobulks
    asked: np.ndarray
    seen: np.ndarray
    options: _Options

    @property
    def screen(self) -> Screen:
        return self.bulk.screen

    def rows(self, number: int) -> list[dict[str, Any]]:
        """A row per condition and method; arrays of genes under keys that begin with "_"."""
        known = SeenCells(self.bulk, self.seen, self.options.min_cells)
        forecasts = self._forecasts(self._fit())
        out = []
        for c, forecast in forecasts.items():
            out += self._condition(c, known, forecast, number)
        return out

    def _fit(self) -> PyroCell:
        """A model of the cells that are seen."""
        rows = np.flatnonzero(self.seen[self.screen.cell_condition])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ScreenWarning)
            fit = again(self.base, self.base.adata[rows].copy(), self.options.constructor)
            fit.train(**self.options.train)
        return fit

    # ------------------------------------------------------------------ one condition
    def _condition(
        self, c: int, known: SeenCells, forecast: _Forecast, number: int
    ) -> list[dict[str, Any]]:
        screen, bulk = self.screen, self.bulk
        rows = bulk.cells(np.arange(len(screen.conditions)) == c)
        controls, note = known.controls(c)
        reference = bulk.matched(controls, rows)
        truth = bulk.level(rows) - reference
        own = screen.target[np.flatnonzero(screen.genotype[c])]
        genes = np.setdiff1d(np.arange(len(screen.genes)), own)
        judge = _Judge.of(bulk, c, rows, controls, genes, self.options.min_cells)
        where = screen.conditions.iloc[c][["perturbation", "media", "time"]].to_dict()
        shared = {"split": number, **where, "n_cells": len(rows), "n_changed": judge.n_changed}
        halves, noise = self._replicate(c, rows, reference, judge)
        anchors = {
            MEAN: known.mean_of_others(c),
            ADDITIVE: known.additive(c),
            NO_CHANGE: Anchor(np.zeros_like(truth), ""),
        }
        level = self.options.credible_level
        found = [judge.forecast(forecast, truth, reference, level)]
        found += [judge.anchor(name, anchor, truth) for name, anchor in anchors.items()]
        found.append(halves)
        for row in found:
            row["note"] = "; ".join(filter(None, [row["note"], note]))
            row["_level"] = row["_delta"] + reference
        observed = {"method": "observed", "_delta": truth, "_level": truth + reference}
        return [shared | {"mse_noise": noise} | row for row in (*found, observed)]

    def _replicate(
        self, c: int, rows: np.ndarray, reference: np.ndarray, judge: _Judge
    ) -> tuple[dict[str, Any], float]:
        """Half of the cells as a forecast of the other half; and the noise of all in `mse`."""
        rng = np.random.default_rng(stream("halves", self.options.seed, c))
        batch = self.screen.cell_batch[rows]
        scores, noise = [], []
        first = np.zeros(0)
        for _ in range(self.options.n_halves):
            order = rng.permutation(len(rows))
            order = order[np.argsort(batch[order], kind="stable")]
            first, second = (self.bulk.level(rows[order[i::2]]) - reference for i in (0, 1))
            scores.append(judge.scores(first, second))
            noise.append(np.mean((first - second)[judge.genes] ** 2) / 4)
        row = mean_by(scores) | {"coverage": np.nan, "method": REPLICATE}
        row["note"] = "half of the cells against the other half"
        return row | {"_delta": first}, float(np.mean(noise))

    # ------------------------------------------------------------------ the model
    def _forecasts(self, fit: PyroCell) -> dict[int, _Forecast]:
        """What the model, and prior knowledge where it is needed, says of every condition."""
        asked = [self._request(int(c), fit) for c in np.flatnonzero(self.asked)]
        found: dict[int, _Forecast] = {}
        for knowledge in (None, POPULATION, self.options.knowledge):
            some = [one for one in asked if one.knowledge is knowledge]
            for one, draws in self._answers(fit, some, knowledge):
                found[one.condition] = _Forecast(draws.mean(0), draws, one.note)
        return {one.condition: found[one.condition] for one in asked}

    def _request(self, c: int, fit: PyroCell) -> _Request:
        """A condition in the batches of its cells, and what is known of it."""
        screen, rows = self.screen, self.bulk.cells(np.arange(len(self.seen)) == c)
        carried = np.flatnonzero(screen.genotype[c])
        unseen = [k for k in carried if screen.perturbations[k] not in fit.screen.perturbations]
        names = " and ".join(screen.perturbations[k] for k in unseen)
        knowledge, note = None, ""
        if unseen:
            knowledge, note = POPULATION, f"{names} never seen: {_MEAN_AND_SPREAD}"
            if _knows(self.options.knowledge, [screen.perturbation_genes[k] for k in unseen]):
                knowledge, note = self.options.knowledge, f"{names} by prior knowledge"
        batches, n_cells = self.bulk.batches(rows)
        size = np.bincount(screen.cell_batch[rows], self.bulk.size[rows])[batches]
        frame = pd.DataFrame([screen.treatments.iloc[c].to_dict()] * len(batches))
        if unseen:  # perturbed at the start, which `predict` takes for granted of these
            frame = frame.drop(columns=list(EVENTS), errors="ignore")
        if len(fit.screen.batches) > 1:
            labels = [screen.batches[b] for b in batches]
            frame["batch"] = [n if n in fit.screen.batches else None for n in labels]
        return _Request(c, frame.assign(n_cells=n_cells), size / size.sum(), knowledge, note)

    def _answers(
        self, fit: PyroCell, requests: Sequence[_Request], knowledge: Any
    ) -> Iterator[tuple[_Request, np.ndarray]]:
        """Requests with draws of levels (S, G), as many asked at once as may be held."""
        most = max(1, _AT_ONCE // (self.options.n_samples * len(self.screen.genes)))
        arguments = {} if knowledge is None else {"knowledge": knowledge}
        waiting: list[_Request] = []
        for i, request in enumerate(requests):
            waiting.append(request)
            n = sum(len(one.frame) for one in waiting)
            last = i == len(requests) - 1
            if not last and n + len(requests[i + 1].frame) <= most:
                continue
            draws = np.asarray(
                fit.predict(
                    pd.concat([one.frame for one in waiting], ignore_index=True),
                    n_samples=self.options.n_samples,
                    size_factor=self.bulk.depth,
                    return_draws=True,
                    **arguments,
                )
            )
            first = 0
            for one in waiting:
                mine = draws[:, first : first + len(one.frame)]
                first += len(one.frame)
                yield one, np.log1p(np.einsum("sbg,b->sg", mine, one.shares))
            waiting = []


def _knows(knowledge: Any, genes: Sequence[str]) -> bool:
    """Whether prior knowledge was given that covers all of these genes."""
    if knowledge is None or knowledge is POPULATION:
        return False
    matched = getattr(knowledge, "matched", None)
    return matched is None or bool(matched(list(genes)).notna().any(axis=1).all())


@dataclass(frozen=True, eq=False)
class _Judge:
    """What the forecasts of one condition are held against.

    Attributes
    ----------
    genes
        Positions of the genes that count: all but the perturbations' own.
    weights, changed
        Of those genes.
    candidates, own
        (n, genes) observed changes of the conditions of that place; which is the one predicted.
    """

    genes: np.ndarray
    weights: np.ndarray
    changed: np.ndarray
    candidates: np.ndarray
    own: int

    @classmethod
    def of(
        cls,
        bulk: Pseudobulks,
        c: int,
        rows: np.ndarray,
        controls: np.ndarray,
        genes: np.ndarray,
        min_cells: int,
    ) -> _Judge:
        """From the observed cells of the condition and of all others in its place."""
        screen = bulk.screen
        row = screen.conditions.iloc[c]
        here = screen.at(row["media"], row["time"]) & ~screen.is_control
        here &= screen.conditions["n_cells"].to_numpy() >= min_cells
        places = np.flatnonzero(here)
        each = [bulk.cells(np.arange(len(here)) == k) for k in places]
        candidates = np.array([bulk.delta(cells, controls)[genes] for cells in each])
        here[c] = False
        others = bulk.cells(here)
        beside = others if len(others) > 1 else controls
        statistic, _ = bulk.welch(rows, beside)
        return cls(
            genes,
            weights_of_evidence(statistic[genes]),
            bulk.changed(rows, controls, genes)[genes],
            candidates,
            int(np.flatnonzero(places == c)[0]),
        )

    @property
    def n_changed(self) -> int:
        return int(self.changed.sum())

    def scores(self, predicted: np.ndarray, truth: np.ndarray) -> dict[str, float]:
        """Scores of a change against another, (G,) both, with its absolute error as crps."""
        mine, its = predicted[self.genes], truth[self.genes]
        candidates = self.candidates.copy()
        candidates[self.own] = its
        return {
            "discrimination": discrimination(mine, candidates, self.own),
            **delta_scores(mine, its, self.weights, self.changed),
            "crps": float(np.abs(mine - its).mean()),
        }

    def anchor(self, method: str, anchor: Anchor, truth: np.ndarray) -> dict[str, Any]:
        row: dict[str, Any] = {"method": method, "note": anchor.note, "coverage": np.nan}
        if anchor.delta is None:
            return row | dict.fromkeys(METRICS, np.nan) | {"_delta": np.full_like(truth, np.nan)}
        return row | self.scores(anchor.delta, truth) | {"_delta": anchor.delta}

    def forecast(
        self, forecast: _Forecast, truth: np.ndarray, reference: np.ndarray, level: float
    ) -> dict[str, Any]:
        draws = forecast.draws - reference
        lower, upper = np.percentile(draws, [50 * (1 - level), 50 * (1 + level)], axis=0)
        inside = ((lower <= truth) & (truth <= upper))[self.genes]
        delta = forecast.level - reference
        row = self.scores(delta, truth) | {
            "crps": float(crps(draws[:, self.genes], truth[self.genes]).mean()),
            "coverage": float(inside.mean()),
        }
        bounds = {"_lower": lower + reference, "_upper": upper + reference}
        return {"method": MODEL, "note": forecast.note, **row, "_delta": delta, **bounds}


# ---------------------------------------------------------------------- tables
def _collected(
    rows: list[dict[str, Any]], bulk: Pseudobulks
) -> tuple[pd.DataFrame, pd.DataFrame, AnnData]:
    """The tables of all conditions."""
    names = ["split", "perturbation", "media", "time", "n_cells", "n_changed"]
    order = [*names, "method", *METRICS, "mse_noise", "note"]
    arrays = {k: [row.get(k) for row in rows] for k in ("_level", "_delta", "_lower", "_upper")}
    table = pd.DataFrame([{k: v for k, v in row.items() if k in order} for row in rows])
    table = table.reindex(columns=order)
    obs = table[[*names, "method"]].set_axis(pd.Index([str(i) for i in range(len(table))]))
    none = np.full(len(bulk.screen.genes), np.nan)
    stacked = {
        name: np.array([none if row is None else row for row in found], dtype=np.float32)
        for name, found in arrays.items()
    }
    predicted = AnnData(stacked.pop("_level"), obs=obs, var=pd.DataFrame(index=bulk.screen.genes))
    for name, values in stacked.items():
        predicted.layers[name.removeprefix("_")] = values
    predicted.uns["depth"] = bulk.depth
    scores = table[table["method"] != "observed"].reset_index(drop=True)
    scores["note"] = scores["note"].fillna("")
    return scores, _summary(scores), predicted


def _summary(scores: pd.DataFrame) -> pd.DataFrame:
    """Means by method, and how often each is better than the mean of the others."""
    keys = ["split", "perturbation", "media", "time"]
    wide = {
        name: scores.pivot_table(index=keys, columns="method", values=name, dropna=False)
        for name in ("mse", "wmse")
    }
    rows = []
    for method in (MODEL, *ANCHORS):
        mine = scores[scores["method"] == method]
        row: dict[str, Any] = {"method": method, "n_conditions": int(mine["mse"].notna().sum())}
        row |= {name: float(mine[name].mean()) for name in METRICS}
        for name, table in wide.items():
            row[f"better_{name}"] = np.nan
            if method in table and MEAN in table and method != MEAN:
                both = table[[method, MEAN]].dropna()
                if len(both):
                    row[f"better_{name}"] = float((both[method] < both[MEAN]).mean())
        row["p_wmse"] = _paired_p(wide["wmse"], method)
        rows.append(row)
    return pd.DataFrame(rows).set_index("method")


def _paired_p(table: pd.DataFrame, method: str) -> float:
    """Two-sided p of Wilcoxon's signed ranks against the mean of the others; NaN below six."""
    if method == MEAN or method not in table or MEAN not in table:
        return np.nan
    less = (table[method] - table[MEAN]).dropna()
    if len(less) < 6 or not (less != 0).any():
        return np.nan
    return float(cast("Any", wilcoxon(less)).pvalue)
