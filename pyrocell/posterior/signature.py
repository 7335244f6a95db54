"""The few genes that tell cells of a perturbation from controls, on cells that were held out.

Prediction, not inference: a panel is chosen from the counts of some cells and asked about others,
and neither the choice nor the score reads the posterior, which has seen them all. The posterior of
each gene stands beside, for the reader to see where the two part.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp
from scipy.stats import false_discovery_control, norm, rankdata
from sklearn.linear_model import LogisticRegression, orthogonal_mp

from pyrocell._core.random import stream
from pyrocell.data.loader import CellDataset
from pyrocell.errors import ScreenError
from pyrocell.posterior.draws import check_level
from pyrocell.posterior.effects import draws_and_direction
from pyrocell.posterior.fitted_screen import FittedScreen
from pyrocell.screen.screen import Screen

__all__ = ["signature"]

_FEWEST_TRAIN, _FEWEST_TEST = 10, 5  # cells of either kind
_IN_BATCH = 3  # cells of either kind without which a batch says nothing
_MOST_CONTROLS = 10_000
_FEWEST_COUNTS = 10.0  # of a gene in the cells that a panel is chosen from
_RESAMPLES = 400
_RIDGE, _RIDGE_ALL = 0.03, 0.01  # C of the logistic regression on a panel, and on all genes
_SURE = 0.001  # false discovery rate of the genes that are weighed against each other


class _Cells(NamedTuple):
    """Cells of a perturbation and their controls: (n, G) log counts at one depth, and labels."""

    x: np.ndarray
    responds: np.ndarray  # (n,) bool, of the perturbation
    batch: np.ndarray

    def some(self, rows: np.ndarray) -> _Cells:
        return _Cells(*(each[rows] for each in self))


class _Panel(NamedTuple):
    """Genes in the order in which they came in, (k,), and scores of held-out cells, (k, n)."""

    genes: np.ndarray
    coefficient: np.ndarray
    scores: np.ndarray


def signature(
    fit: FittedScreen,
    perturbation: str,
    media: str,
    time: float | None,
    n_genes: int,
    test_size: float,
    own_gene: bool,
    n_shuffles: int,
    n_samples: int,
    credible_level: float,
    seed: int,
) -> pd.DataFrame:
    """A panel, its held-out AUROC, and the posterior of its genes; see `PyroCell.signature`."""
    check_level(credible_level)
    if n_genes < 1 or n_genes != int(n_genes) or n_shuffles < 1:
        raise ScreenError(f"n_genes={n_genes} and n_shuffles={n_shuffles} must be at least 1")
    if not 0 < test_size < 1:
        raise ScreenError(f"test_size={test_size} must be between 0 and 1, such as 0.33")
    screen = fit.screen
    members = screen.indices(perturbation)
    label = screen.label_of(members)
    if not members:
        raise ScreenError(f'"{perturbation}" is the control; name a perturbation to tell from it')
    rng = np.random.default_rng(stream("signature", seed, *members))
    cells = _cells_of(screen, fit.data, label, media, time, rng)
    train, test, held_out = _split(screen, cells, test_size, rng)
    allowed = np.ones(len(screen.genes), bool)
    if not own_gene:
        targets = screen.target[members]
        allowed[targets[targets >= 0]] = False
    panel, anchor, whole = _fitted(cells, train, test, allowed, n_genes)
    told = cells.some(test)
    found = np.array([auroc(s, told.responds, told.batch) for s in panel.scores])
    ends = _intervals(panel.scores, told, credible_level, rng)
    null = _shuffled(cells, train, test, allowed, n_genes, n_shuffles, rng)
    draws, sure = draws_and_direction(fit, [label], media, time, n_samples)
    mean, sd = draws[:, 0].mean(0), draws[:, 0].std(0, ddof=1)
    size = np.abs(mean) / np.maximum(sd, 1e-12)
    n = len(panel.genes)
    when = np.nan if time is None else float(time)
    return pd.DataFrame(
        {
            "perturbation": label,
            "media": media,
            "time": when,
            "gene": screen.genes[panel.genes],
            "rank": np.arange(1, n + 1),
            "coefficient": panel.coefficient,
            "auroc_with": found,
            "lower": ends[0],
            "upper": ends[1],
            "auroc_top_z": [auroc(s, told.responds, told.batch) for s in anchor.scores[:n]],
            "auroc_shuffled": null.mean(0)[:n],
            "shuffled_upper": np.quantile(null, 0.95, axis=0)[:n],
            "auroc_all": auroc(whole, told.responds, told.batch),
            "mean": mean[panel.genes],
            "sd": sd[panel.genes],
            "lfsr": np.clip(1 - sure[0, panel.genes], 0, 1),
            "z_rank": (rankdata(-size, "ordinal")[panel.genes]).astype(int),
            "n_train": int(cells.responds[train].sum()),
            "n_test": int(told.responds.sum()),
            "held_out": held_out,
        }
    )


# ---------------------------------------------------------------------- cells
def _cells_of(
    screen: Screen,
    data: CellDataset,
    label: str,
    media: str,
    time: float | None,
    rng: np.random.Generator,
) -> _Cells:
    """Cells of a perturbation and controls of the same medium, time and batches."""
    if data.conditions is not None or screen.many_sets:
        raise ScreenError(
            "a signature is of cells that carry one perturbation or combination each, and of the "
            "conditions that the model was fitted to"
        )
    size = data.size  # says what to do with several views
    here = screen.at(media, time)
    mine = here & (screen.conditions["perturbation"] == label).to_numpy()
    rows = np.flatnonzero(mine[data.condition])
    where = f'in medium "{media}"' + ("" if time is None else f" at time {time:g}")
    if len(rows) < _FEWEST_TRAIN + _FEWEST_TEST:
        raise ScreenError(
            f'"{label}" has {len(rows)} cells {where}, and a signature needs '
            f"{_FEWEST_TRAIN + _FEWEST_TEST}; name another perturbation, media= or time="
        )
    control = np.flatnonzero((here & screen.is_control)[data.condition])
    if len(control) > _MOST_CONTROLS:
        control = np.sort(rng.choice(control, _MOST_CONTROLS, replace=False))
    both = np.concatenate([rows, control])
    responds = np.arange(len(both)) < len(rows)
    batch = data.batch[both]
    usable = [
        b
        for b in np.unique(batch)
        if min((responds & (batch == b)).sum(), (~responds & (batch == b)).sum()) >= _IN_BATCH
    ]
    if not usable:
        raise ScreenError(
            f'"{label}" shares no batch with {_IN_BATCH} or more control cells {where}, so its '
            "cells differ from controls by batch noise, too, and no panel can be told from it"
        )
    kept = np.isin(batch, usable)
    both, responds, batch = both[kept], responds[kept], batch[kept]
    counts = sp.csr_matrix(data.counts[both], dtype=np.float64)
    counts = sp.csr_matrix(sp.diags(np.median(size[both]) / size[both]) @ counts)
    return _Cells(np.log1p(counts.toarray()).astype(np.float32), responds, batch)


def _split(
    screen: Screen, cells: _Cells, test_size: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, str]:
    """Cells to choose from, cells to be asked about, and what was held out.

    Whole batches where there are two or more that leave enough cells on either side; otherwise
    cells of every batch.
    """
    batches = rng.permutation(np.unique(cells.batch))
    best: tuple[float, np.ndarray] | None = None
    for k in range(1, len(batches)):
        test = np.isin(cells.batch, batches[:k])
        each = [
            (mine & kind).sum()
            for mine in (~test, test)
            for kind in (cells.responds, ~cells.responds)
        ]
        if min(each[:2]) >= _FEWEST_TRAIN and min(each[2:]) >= _FEWEST_TEST:
            off = abs(each[2] / cells.responds.sum() - test_size)
            if best is None or off < best[0]:
                best = off, test
    if best is not None:
        names = [str(screen.batches[b]) for b in np.unique(cells.batch[best[1]])]
        said = f"batches {', '.join(names[:4])}" + (
            f" and {len(names) - 4} more" if len(names) > 4 else ""
        )
        return np.flatnonzero(~best[1]), np.flatnonzero(best[1]), said
    test = np.zeros(len(cells.batch), bool)
    for b in np.unique(cells.batch):
        for kind in (cells.responds, ~cells.responds):
            mine = rng.permutation(np.flatnonzero(kind & (cells.batch == b)))
            n = min(max(1, round(test_size * len(mine))), len(mine) - 1)
            test[mine[:n]] = True
    return np.flatnonzero(~test), np.flatnonzero(test), "cells"


# ---------------------------------------------------------------------- panels
def _weights(cells: _Cells) -> np.ndarray:
    """(n,) weights under which a batch's two kinds of cells weigh alike, as much as it can tell."""
    out = np.zeros(len(cells.batch))
    for b in np.unique(cells.batch):
        mine = cells.batch == b
        each = [mine & cells.responds, mine & ~cells.responds]
        n = [e.sum() for e in each]
        for e, k in zip(each, n, strict=True):
            if min(n):
                out[e] = n[0] * n[1] / (n[0] + n[1]) / k
    return out


def _fitted(
    cells: _Cells, train: np.ndarray, test: np.ndarray, allowed: np.ndarray, n_genes: int
) -> tuple[_Panel, _Panel, np.ndarray]:
    """The panel, that of the genes with the largest |z|, and scores (n,) by all genes.

    Batches are adjusted for by what lies half-way between their two kinds of cells. Held-out
    batches need no adjusting, since cells are compared with those of their own batch.
    """
    own, weight = cells.some(train), _weights(cells.some(train))
    x = own.x.astype(np.float64)
    total = np.expm1(own.x).sum(0)
    for b in np.unique(own.batch):
        mine = own.batch == b
        x[mine] -= np.average(x[mine], 0, weight[mine]) if weight[mine].any() else x[mine].mean(0)
    sign = np.where(own.responds, 1.0, -1.0)
    mean = np.average(sign[:, None] * x, 0, weight)  # half the difference
    left = x - sign[:, None] * mean
    variance = np.average(left**2, 0, weight)
    usable = allowed & (variance > 0) & (total >= _FEWEST_COUNTS)
    if not usable.any():
        raise ScreenError("no gene but the perturbed one has 10 counts in these cells")
    scale = np.sqrt(np.where(usable, variance, 1.0))
    genes = np.flatnonzero(usable)
    x = x[:, genes] / scale[genes]
    asked = cells.x[test][:, genes] / scale[genes]
    z = np.abs(mean[genes]) / scale[genes] * np.sqrt(2 * weight.sum())
    n_genes = min(n_genes, len(genes))
    by_z = np.argsort(-z, kind="stable")
    sure = by_z[: int((false_discovery_control(2 * norm.sf(z)) <= _SURE).sum())]
    # among genes that may as well be chance the greedy choice is one of noise
    first = sure[_greedy(x[:, sure], sign, weight, min(n_genes, len(sure)))] if len(sure) else sure
    order = np.concatenate([first, by_z[~np.isin(by_z, first)]])[:n_genes]
    panel = _scored(x, own.responds, weight, asked, order)
    top = _scored(x, own.responds, weight, asked, by_z[:n_genes])
    whole = _regression(x, own.responds, weight, _RIDGE_ALL)
    pack = lambda p: p._replace(genes=genes[p.genes])  # noqa: E731
    return pack(panel), pack(top), asked @ whole


def _greedy(x: np.ndarray, sign: np.ndarray, weight: np.ndarray, n_genes: int) -> np.ndarray:
    """Genes by orthogonal matching pursuit: each time what best tells what the others leave."""
    root = np.sqrt(weight)
    columns = root[:, None] * x
    columns = columns / np.maximum(np.linalg.norm(columns, axis=0), 1e-12)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it may stop early, where genes are copies of others
        path = orthogonal_mp(columns, root * sign, n_nonzero_coefs=n_genes, return_path=True)
    path = np.asarray(path).reshape(columns.shape[1], -1)
    order: list[int] = []
    for step in path.T:
        order += [int(g) for g in np.flatnonzero(step) if g not in order]
    return np.array(order[:n_genes], dtype=np.int64)


def _regression(x: np.ndarray, responds: np.ndarray, weight: np.ndarray, c: float) -> np.ndarray:
    """(k,) coefficients per standard deviation, of a logistic regression with a ridge."""
    model = LogisticRegression(C=c, fit_intercept=False, max_iter=1000)
    used = weight > 0
    return model.fit(x[used], responds[used], sample_weight=weight[used]).coef_[0]


def _scored(
    x: np.ndarray, responds: np.ndarray, weight: np.ndarray, asked: np.ndarray, order: np.ndarray
) -> _Panel:
    """Scores of held-out cells by the first gene, the first two, and so on."""
    coefficient, scores = np.zeros(0), []
    for k in range(1, len(order) + 1):
        coefficient = _regression(x[:, order[:k]], responds, weight, _RIDGE)
        scores.append(asked[:, order[:k]] @ coefficient)
    return _Panel(order, coefficient, np.array(scores))


# ---------------------------------------------------------------------- scores
def auroc(score: np.ndarray, responds: np.ndarray, batch: np.ndarray) -> float:
    """Probability that a cell of the perturbation scores above a control of its own batch."""
    above, pairs = 0.0, 0.0
    for b in np.unique(batch):
        mine = batch == b
        positive = responds[mine]
        n, m = int(positive.sum()), int((~positive).sum())
        if n and m:
            above += rankdata(score[mine])[positive].sum() - n * (n + 1) / 2
            pairs += n * m
    return above / pairs if pairs else float("nan")


def _intervals(
    scores: np.ndarray, told: _Cells, credible_level: float, rng: np.random.Generator
) -> np.ndarray:
    """(2, k) ends of intervals of the AUROC, by resampling held-out cells of a batch and kind."""
    groups = [
        np.flatnonzero((told.batch == b) & kind)
        for b in np.unique(told.batch)
        for kind in (told.responds, ~told.responds)
    ]
    found = np.empty((_RESAMPLES, len(scores)))
    for i in range(_RESAMPLES):
        rows = np.concatenate([rng.choice(g, len(g)) for g in groups if len(g)])
        labels = told.responds[rows], told.batch[rows]
        found[i] = [auroc(s[rows], *labels) for s in scores]
    tail = (1 - credible_level) / 2
    return np.quantile(found, [tail, 1 - tail], axis=0)


def _shuffled(
    cells: _Cells,
    train: np.ndarray,
    test: np.ndarray,
    allowed: np.ndarray,
    n_genes: int,
    n_shuffles: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """(n_shuffles, k) AUROC of panels chosen and asked with labels shuffled within batches."""
    out = np.full((n_shuffles, n_genes), np.nan)
    for i in range(n_shuffles):
        responds = cells.responds.copy()
        for part in (train, test):
            for b in np.unique(cells.batch[part]):
                mine = part[cells.batch[part] == b]
                responds[mine] = rng.permutation(responds[mine])
        other = cells._replace(responds=responds)
        panel = _fitted(other, train, test, allowed, n_genes)[0]
        found = [auroc(s, responds[test], cells.batch[test]) for s in panel.scores]
        out[i, : len(found)] = found
        out[i, len(found) :] = found[-1]
    return out
