"""Effects as the counts alone tell them: intervals and p-values without a prior on effects."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.special import digamma, polygamma
from scipy.stats import f as f_distribution

from pyrocell._core.messages import join_names
from pyrocell.errors import ScreenError, UnknownLabelError, warn
from pyrocell.posterior.draws import check_level
from pyrocell.posterior.gene_level.counts import LevelCounts
from pyrocell.screen.screen import Screen

__all__ = ["FEWEST_COUNTS", "long_table", "unshrunken_columns", "unshrunken_effects"]

FEWEST_COUNTS = 5  # below it in both groups of cells nothing is listed


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
    own_shape = 1 / (1 / own[0] + counts.noise_variance(rows, control))
    ratio = own[1] - other[1]  # (n, G) log
    mean = ratio + (digamma(own_shape) - np.log(own_shape))
    mean -= digamma(other[0]) - np.log(other[0])
    sd = np.sqrt(polygamma(1, own_shape) + polygamma(1, other[0]))
    tail = (1 - credible_level) / 2
    law = f_distribution(2 * own_shape, 2 * np.broadcast_to(other[0], own_shape.shape))
    lower, upper = (ratio + np.log(np.maximum(law.ppf(q), 1e-300)) for q in (tail, 1 - tail))
    below = law.cdf(np.exp(-ratio))
    columns = unshrunken_columns(
        mean, sd, lower, upper, below, counts.raw[rows], counts.raw[control]
    )
    when = np.nan if time is None else float(time)
    return long_table(columns, names, screen.genes, media, when)


def unshrunken_columns(
    mean: np.ndarray,
    sd: np.ndarray,
    lower: np.ndarray,
    upper: np.ndarray,
    below: np.ndarray,
    count: np.ndarray,
    count_control: np.ndarray,
) -> dict[str, np.ndarray]:
    """Columns of a table without a prior, (n, G) each.

    Parameters
    ----------
    mean, sd, lower, upper, below
        (n, G) of each effect; `below` is the probability that it is negative.
    count, count_control
        (n, G) counts of the cells that differ, and (G,) of those they are compared with.
    """
    p = np.clip(2 * np.minimum(below, 1 - below), 0, 1)
    here, there = count.astype(np.int64), count_control.astype(np.int64)
    few = (here < FEWEST_COUNTS) & (there < FEWEST_COUNTS)
    return {
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
            f"{join_names(missing)}"
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


def long_table(
    columns: dict[str, np.ndarray],
    perturbations: list[str],
    genes: pd.Index,
    media: str | np.ndarray,
    time: float,
) -> pd.DataFrame:
    """Columns (perturbations, genes) as one row per pair."""
    index = pd.MultiIndex.from_product([perturbations, genes], names=["perturbation", "gene"])
    out = pd.DataFrame({k: np.ravel(v) for k, v in columns.items()}, index=index).reset_index()
    out.insert(1, "media", media)
    out.insert(2, "time", time)
    return out
