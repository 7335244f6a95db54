"""What a medium does to the genes of control cells, against the baseline medium at the same time.

The kept states hold the response of every medium that was measured beside the baseline; its
mixture of scales is summed out given all else, sweep by sweep, so that mean, standard deviation and
sign are smoother than the draws behind the interval. Where the states do not speak (variational
models, times at which one of the two was not measured) joint draws do.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from pyrocell.errors import ScreenError
from pyrocell.posterior.counts_alone import FEWEST_COUNTS, long_table
from pyrocell.posterior.draws import check_draws, check_level
from pyrocell.posterior.effects import counts_of_rows, draws_against_first, expected_false_signs
from pyrocell.posterior.fitted_screen import FittedScreen

__all__ = ["media_effects"]


def media_effects(
    fit: FittedScreen,
    media: Sequence[str],
    time: float | None,
    n_samples: int,
    credible_level: float,
) -> pd.DataFrame:
    """Posterior of the change of each gene in each medium; see `PyroCell.media_effects`."""
    check_draws(n_samples)
    check_level(credible_level)
    screen = fit.screen
    if not media:
        raise ScreenError(
            "the screen has no medium beside the baseline; name the column of media in media_key="
            if not screen.media
            else "media=[] names none; leave it out for all of them"
        )
    if screen.baseline_media in media:
        raise ScreenError(
            f'media="{screen.baseline_media}" is the baseline, which the others are compared with'
        )
    found = [
        _from_states(fit, medium, time, credible_level)
        or _from_draws(fit, medium, time, n_samples, credible_level)
        for medium in media
    ]
    columns = {name: np.stack([one[name] for one in found]) for name in found[0]}
    counts = [counts_of_rows(fit, screen.control, m, time) for m in (*media, screen.baseline_media)]
    here, there = np.stack(counts[:-1]).astype(np.int64), counts[-1].astype(np.int64)
    few = (here < FEWEST_COUNTS) & (there < FEWEST_COUNTS)
    fdr = expected_false_signs(columns["lfsr"].ravel(), ~few.ravel())
    columns |= {
        "fdr": fdr.reshape(few.shape),
        "log2fc": columns["mean"] / np.log(2),
        "prob_direction": 1 - columns["lfsr"],
        "count": here,
        "count_control": np.broadcast_to(there, here.shape),
        "few_counts": few,
    }
    when = np.nan if time is None else float(time)
    table = long_table(columns, [screen.control] * len(media), screen.genes, "", when)
    table["media"] = np.repeat(np.asarray(media, dtype=object), len(screen.genes))
    return table


def _from_states(
    fit: FittedScreen, medium: str, time: float | None, credible_level: float
) -> dict[str, np.ndarray] | None:
    """Summaries of a response that was measured; None where it was not."""
    kept, screen = fit.gene_level, fit.screen
    if time is not None and not screen.times:
        return None  # the draws will say what is wrong with it
    if kept is None or "response_summary" not in kept.tensors:
        return None
    node = 0
    if screen.times:
        near = np.flatnonzero(np.isclose(screen.times, np.nan if time is None else time))
        node = int(near[0]) if len(near) else -1
    contexts = kept.context(screen.media_index(medium), node)
    if contexts is None:
        return None
    mean, square, above, below = kept.array("response_summary")[contexts].astype(float)
    tail = 50 * (1 - credible_level)
    draws = kept.array("level")[:, contexts]
    lower, upper = np.percentile(draws, [tail, 100 - tail], axis=0, method="weibull")
    return {
        "mean": mean,
        "sd": np.sqrt(np.maximum(square - mean**2, 0.0)),
        "lower": lower,
        "upper": upper,
        "lfsr": np.clip(1 - np.maximum(above, below), 0, 1),
    }


def _from_draws(
    fit: FittedScreen, medium: str, time: float | None, n_samples: int, credible_level: float
) -> dict[str, np.ndarray]:
    """Summaries of joint draws."""
    screen = fit.screen
    frame = pd.DataFrame(
        {"perturbation": screen.control, "media": [screen.baseline_media, medium], "time": time}
    )
    draws = draws_against_first(fit, frame, n_samples)[:, 0]
    tail = 50 * (1 - credible_level)
    lower, upper = np.percentile(draws, [tail, 100 - tail], axis=0)
    mean = draws.mean(0)
    wrong = (np.sign(draws) != np.sign(mean)).mean(0)
    return {"mean": mean, "sd": draws.std(0), "lower": lower, "upper": upper, "lfsr": wrong}
