"""What perturbations do to genes: the posterior's table, and what the counts alone say.

Both tables have a row per perturbation and gene and the same first columns: mean, sd, lower and
upper of the natural-log fold change against controls, log2fc (the mean in doublings), the counts of
the gene in both groups of cells, and whether these are too few to say anything.

On counts without size factors of their own the change is that against the genes which a condition
does not touch: when some genes gain a share of all counts the others lose it alike, and no gene is
called down for that (as with DESeq2's size factors). `predict` returns counts, with that share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from scipy.special import digamma, polygamma
from scipy.stats import f as f_distribution

from pyrocell._core.messages import listed
from pyrocell._core.threading import in_threads
from pyrocell.errors import ScreenError, UnknownLabelError, warn
from pyrocell.posterior.draws import check_draws, check_level
from pyrocell.posterior.gene_level.counts import LevelCounts
from pyrocell.posterior.output import Keep
from pyrocell.posterior.queries import Queries
from pyrocell.posterior.summaries import summaries
from pyrocell.screen.screen import Screen

__all__ = ["expected_false_signs", "perturbation_effects", "unshrunken_effects"]

FEWEST_COUNTS = 5  # below it in both groups of cells nothing is listed
SUMMARIES = ("mean", "sd", "lower", "upper", "lfsr")
COLUMNS = (
    *SUMMARIES,
    *("fdr", "log2fc", "prob_direction", "count", "count_control", "few_counts"),
)
_HELD = 2**25  # draws held at once
_GENES_AT_ONCE = 512  # of an interval, by one thread

Found = Iterator[tuple[slice, dict[str, np.ndarray]]]


def expected_false_signs(lfsr: np.ndarray, usable: np.ndarray) -> np.ndarray:
    """Expected share of wrong signs in the list that ends at each entry, the surest first.

    Parameters
    ----------
    lfsr
        Local false sign rates: probabilities that the effect is zero or of the other sign.
    usable
        Entries that may be listed; others are 1, as last of all.
    """
    out = np.ones(len(lfsr), np.float32)
    index = np.flatnonzero(usable)
    order = index[np.argsort(lfsr[index], kind="stable")]
    out[order] = np.cumsum(lfsr[order], dtype=float) / np.arange(1, len(order) + 1)
    return out


def perturbation_effects(
    queries: Queries,
    perturbations: Sequence[str],
    media: str,
    time: float | None,
    n_samples: int,
    credible_level: float,
    progress: Callable[..., Iterator],
    keep: Keep,
) -> pd.DataFrame | xr.Dataset:
    """Posterior of the change of each gene under each perturbation; see `PyroCell`."""
    if not perturbations:
        raise ScreenError("perturbations=[] names none; leave it out for all of them")
    check_draws(n_samples)
    check_level(credible_level)
    screen = queries.screen
    kept = queries.request_of_states(perturbations, media, time)
    if kept is None:
        where = perturbations, media, time
        found = _from_draws(queries, *where, n_samples, credible_level, keep, progress)
    else:
        found = _from_states(queries, kept, n_samples, credible_level, progress)
    when = np.nan if time is None else float(time)
    n, genes = len(perturbations), screen.genes
    counts, control = queries.counts_of(perturbations, media, time)
    blocks = _blocks(found, counts, control)
    if keep.path is not None:
        coords = {
            "perturbation": (("perturbation",), list(perturbations)),
            "gene": (("gene",), genes),
            "media": media,
            "time": when,
        }
        dims = dict.fromkeys(COLUMNS, ("perturbation", "gene"))
        chunk = {"perturbation": max(1, 2**19 // max(len(genes), 1))}
        said = {"credible_level": credible_level, "n_samples": n_samples}
        return keep.store(blocks, coords, dims, chunk, **said)
    columns = {name: np.empty((n, len(genes)), np.float32) for name in COLUMNS}
    for rows, values in blocks:
        for name, value in values.items():
            columns[name][rows] = value
    columns["few_counts"] = columns["few_counts"].astype(bool)
    for name in ("count", "count_control"):
        columns[name] = columns[name].astype(np.int64)
    return _long(columns, list(perturbations), genes, media, when)


def _blocks(found: Found, counts: np.ndarray, control: np.ndarray) -> Found:
    """The columns of some rows after the other, and last what needs all rows: `fdr`."""
    lfsr, few = np.empty(counts.shape, np.float32), np.empty(counts.shape, bool)
    for rows, values in found:
        here = counts[rows]
        few[rows] = (here < FEWEST_COUNTS) & (control < FEWEST_COUNTS)
        lfsr[rows] = values["lfsr"]
        yield (
            rows,
            {
                **{name: values[name] for name in SUMMARIES},
                "log2fc": values["mean"] / np.log(2),
                "prob_direction": 1 - values["lfsr"],
                "count": here,
                "count_control": np.broadcast_to(control, here.shape),
                "few_counts": few[rows],
            },
        )
    fdr = expected_false_signs(lfsr.ravel(), ~few.ravel())
    yield slice(0, len(counts)), {"fdr": fdr.reshape(counts.shape)}


def _long(
    columns: dict[str, np.ndarray],
    perturbations: list[str],
    genes: pd.Index,
    media: str,
    time: float,
) -> pd.DataFrame:
    index = pd.MultiIndex.from_product([perturbations, genes], names=["perturbation", "gene"])
    out = pd.DataFrame({k: np.ravel(v) for k, v in columns.items()}, index=index).reset_index()
    out.insert(1, "media", media)
    out.insert(2, "time", time)
    return out


def _interval(draws: np.ndarray, credible_level: float) -> np.ndarray:
    """Lower and upper end, (2, n, G), of draws (S, n, G); slices of the genes in threads."""
    tail = 50 * (1 - credible_level)
    out = np.empty((2, *draws.shape[1:]), np.float32)
    edges = range(0, draws.shape[2], _GENES_AT_ONCE)

    def work(i: int) -> None:
        genes = slice(edges[i], edges[i] + _GENES_AT_ONCE)
        ends = [tail, 100 - tail]
        out[:, :, genes] = np.percentile(draws[..., genes], ends, axis=0, method="weibull")

    in_threads(work, len(edges))
    return out


def _from_states(
    queries: Queries,
    asked: Any,
    n_samples: int,
    credible_level: float,
    progress: Callable[..., Iterator],
) -> Found:
    """Summaries that are exact given each kept state; draws for the interval alone."""
    n_genes = len(queries.screen.genes)
    step = max(1, _HELD // (n_samples * n_genes))
    parts = [slice(a, min(a + step, len(asked.blocks))) for a in range(0, len(asked.blocks), step)]
    for part in progress(parts):
        found = queries.gene_level.columns(asked.of_rows(part), n_samples)
        lower, upper = _interval(found.draws, credible_level)
        sure = np.maximum(found.above, found.below)
        yield (
            part,
            {
                "mean": found.mean,
                "sd": found.sd,
                "lower": lower,
                "upper": upper,
                "lfsr": np.clip(1 - sure, 0, 1),
            },
        )


def _from_draws(
    queries: Queries,
    perturbations: Sequence[str],
    media: str,
    time: float | None,
    n_samples: int,
    credible_level: float,
    keep: Keep,
    progress: Callable[..., Iterator],
) -> Found:
    """Summaries of joint draws, for conditions and models that the states do not speak of."""
    parts = queries.parts(len(perturbations))
    found = summaries(
        lambda some: queries.effects(perturbations, media, time, n_samples, some),
        parts,
        len(queries.screen.genes),
        n_samples,
        credible_level,
        keep.memory_budget,
        progress,
    )
    for rows, values in found:
        yield rows, {**values, "lfsr": 1 - values["prob_direction"]}


# ---------------------------------------------------------------------- counts alone
def unshrunken_effects(
    screen: Screen,
    counts: LevelCounts,
    perturbations: Sequence[str] | None,
    media: str,
    time: float | None,
    credible_level: float,
) -> pd.DataFrame:
    """Effects as the counts alone tell them; see `PyroCell.perturbation_effects`.

    Under a flat prior on log levels the level of a condition is that of a gamma variable whose
    relative variance is that of its counts: 1 / (T + ½) for counting, and what cells and replicates
    vary. The ratio of two is then F, and so are interval and p-value, bounded where no count was
    seen, and of the size stated where counts are few.

    Parameters
    ----------
    counts
        The likelihood of levels.
    perturbations
        Labels; None: every single perturbation that was measured there.

    Raises
    ------
    UnknownLabelError
        If a perturbation that was named, or the control, was not measured there.
    """
    check_level(credible_level)
    control = screen.condition_of(screen.control, media, time)
    names, rows = _measured(screen, perturbations, media, time)
    spread = counts.spread(np.log(counts.noise.theta))

    def shape_and_level(c: np.ndarray | int) -> tuple[np.ndarray, np.ndarray]:
        total = counts.total[c].astype(float) + 0.5
        return 1 / (1 / total + spread[c]), np.log(total / counts.depth[c])

    own, other = shape_and_level(np.array(rows)), shape_and_level(control)
    away = counts.share[rows] - counts.share[control]  # (n, H)
    batch = np.einsum("nh,ghk->ngk", away, counts.eta_root)
    own_shape = 1 / (1 / own[0] + (batch**2).sum(-1))
    ratio = own[1] - other[1]  # (n, G) log
    mean = ratio + (digamma(own_shape) - np.log(own_shape))
    mean -= digamma(other[0]) - np.log(other[0])
    sd = np.sqrt(polygamma(1, own_shape) + polygamma(1, other[0]))
    tail = (1 - credible_level) / 2
    law = f_distribution(2 * own_shape, 2 * np.broadcast_to(other[0], own_shape.shape))
    lower, upper = (ratio + np.log(np.maximum(law.ppf(q), 1e-300)) for q in (tail, 1 - tail))
    below = law.cdf(np.exp(-ratio))
    p = np.clip(2 * np.minimum(below, 1 - below), 0, 1)
    here, there = counts.raw[rows].astype(np.int64), counts.raw[control].astype(np.int64)
    few = (here < FEWEST_COUNTS) & (there < FEWEST_COUNTS)
    columns = {
        "mean": mean,
        "sd": sd,
        "lower": lower,
        "upper": upper,
        "p": p,
        "q": _adjusted(p.ravel(), ~few.ravel()).reshape(p.shape),
        "log2fc": mean / np.log(2),
        "prob_direction": np.maximum(below, 1 - below),
        "count": here,
        "count_control": np.broadcast_to(there, here.shape),
        "few_counts": few,
    }
    when = np.nan if time is None else float(time)
    return _long(columns, names, screen.genes, media, when)


def _measured(
    screen: Screen, perturbations: Sequence[str] | None, media: str, time: float | None
) -> tuple[list[str], list[int]]:
    """Labels and their conditions; by default those measured there, with a word on the others."""
    if perturbations is not None:
        if not len(perturbations):
            raise ScreenError("perturbations=[] names none; leave it out for all of them")
        return list(perturbations), [screen.condition_of(p, media, time) for p in perturbations]
    names, rows, missing = [], [], []
    for name in screen.perturbations:
        try:
            rows.append(screen.condition_of(name, media, time))
            names.append(name)
        except UnknownLabelError:
            missing.append(name)
    at = "" if time is None else f" at time {time:g}"
    if not names:
        raise UnknownLabelError(
            f'no perturbation was measured alone in medium "{media}"{at}; name combinations with '
            "perturbations=, or leave shrunken=False out"
        )
    if missing:
        warn(
            f'left out, since they were not measured alone in medium "{media}"{at}: '
            f"{listed(missing)}"
        )
    return names, rows


def _adjusted(p: np.ndarray, usable: np.ndarray) -> np.ndarray:
    """Benjamini and Hochberg's adjusted p-values; 1 for what may not be listed."""
    out = np.ones(len(p))
    index = np.flatnonzero(usable)
    order = index[np.argsort(-p[index], kind="stable")]
    rank = np.arange(len(order), 0, -1)
    out[order] = np.minimum.accumulate(p[order] * len(order) / rank).clip(max=1)
    return out
