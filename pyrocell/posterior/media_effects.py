"""What a medium does to the genes of control cells, against the baseline medium at the same time.

The kept states hold the response of every medium that was measured beside the baseline; its
mixture of scales is summed out given all else, sweep by sweep, so that mean and standard deviation
are smoother than the draws behind the interval. Where the states do not speak (variational
models, times at which one of the two was not measured) joint draws do.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.special import ndtr

from pyrocell.errors import ScreenError
from pyrocell.posterior.counts_alone import long_table
from pyrocell.posterior.draws import check_draws, check_level, summarise
from pyrocell.posterior.effects import columns_of, counts_by_label, draws_against_first
from pyrocell.posterior.fitted_screen import FittedScreen
from pyrocell.posterior.gene_level.prior import CALLED

__all__ = ["media_draws", "media_effects"]


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
    each = [
        _from_states(fit, medium, time, credible_level)
        or _from_draws(fit, medium, time, n_samples, credible_level)
        for medium in media
    ]
    # a row of genes for each medium
    found = ((slice(i, i + 1), {k: v[None] for k, v in one.items()}) for i, one in enumerate(each))
    counts, control = (
        [counts_by_label(fit, medium, time)(screen.control) for medium in some]
        for some in (media, [screen.baseline_media])
    )
    columns = columns_of(found, np.stack(counts), control[0])
    of_rows = np.repeat(np.asarray(media, dtype=object), len(screen.genes))
    when = np.nan if time is None else float(time)
    return long_table(columns, [screen.control] * len(media), screen.genes, of_rows, when)


def _from_states(
    fit: FittedScreen, medium: str, time: float | None, credible_level: float
) -> dict[str, np.ndarray] | None:
    """Summaries of a response that was measured; None where it was not."""
    if (context := _context(fit, medium, time)) is None:
        return None
    kept = fit.gene_level
    assert kept is not None
    mean, square = kept.array("response_summary")[context].astype(float)
    sd = np.sqrt(np.maximum(square - mean**2, 0.0))
    # batch noise is drawn apart from responses and hides which are zero, and there is no second
    # response to learn from how many are: an effect is what is beyond so many standard deviations
    sure = ndtr(np.abs(mean) / np.maximum(sd, 1e-6) - CALLED)
    ends = summarise(kept.array("level")[:, context], credible_level)
    return {
        "mean": mean,
        "sd": sd,
        "lower": ends["lower"],
        "upper": ends["upper"],
        "lfsr": 1 - sure,
    }


def _context(fit: FittedScreen, medium: str, time: float | None) -> int | None:
    """Number of a measured response among the kept states; None where they have none."""
    kept, screen = fit.gene_level, fit.screen
    if time is not None and not screen.times:
        return None  # the draws will say what is wrong with it
    if kept is None or "response_summary" not in kept.tensors:
        return None
    node = 0
    if screen.times:
        near = np.flatnonzero(np.isclose(screen.times, np.nan if time is None else time))
        node = int(near[0]) if len(near) else -1
    return kept.context(screen.media_index(medium), node)


def media_draws(
    fit: FittedScreen, medium: str, time: float | None, n_samples: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draws of what a medium does, (S, G), and `prob_direction` of `media_effects`, (G,).

    Kept states are a draw each, however many are asked for.
    """
    found = _from_states(fit, medium, time, 0.9)
    if found is not None:
        assert fit.gene_level is not None
        return fit.gene_level.array("level")[:, _context(fit, medium, time)], 1 - found["lfsr"]
    frame = _frame(fit, medium, time)
    draws = draws_against_first(fit, frame, n_samples)[:, 0]
    return draws, np.maximum((draws > 0).mean(0), (draws < 0).mean(0))


def _frame(fit: FittedScreen, medium: str, time: float | None) -> pd.DataFrame:
    """Control cells in the baseline medium and in another."""
    media = [fit.screen.baseline_media, medium]
    return pd.DataFrame({"perturbation": fit.screen.control, "media": media, "time": time})


def _from_draws(
    fit: FittedScreen, medium: str, time: float | None, n_samples: int, credible_level: float
) -> dict[str, np.ndarray]:
    """Summaries of joint draws."""
    draws = draws_against_first(fit, _frame(fit, medium, time), n_samples)[:, 0]
    found = summarise(draws, credible_level)
    return {**found, "lfsr": 1 - found["prob_direction"]}
