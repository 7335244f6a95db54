"""Summaries of answers larger than memory: some rows at a time, as few times as memory allows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from pyrocell.errors import ScreenError
from pyrocell.posterior.draws import check_draws, check_level
from pyrocell.posterior.fitted_screen import Draws
from pyrocell.posterior.streaming_quantiles import RunningSummary, bytes_per_number, memory_bytes

__all__ = ["MEMORY_BUDGET", "Summaries", "passes", "summaries"]

MEMORY_BUDGET = "2 GiB"
_AT_WORK = 2**27  # bytes that the rows worked on take, whatever the answer's size

Summaries = Iterator[tuple[slice, dict[str, np.ndarray]]]  # rows, and what is said of them


def passes(
    parts: Sequence[slice],
    n_genes: int,
    n_samples: int,
    credible_level: float,
    memory_budget: int | float | str,
) -> list[list[slice]]:
    """Parts of the rows to summarise in one pass over the draws, for every pass there has to be.

    Raises
    ------
    ScreenError
        If the budget is too small for a single part.
    """
    check_draws(n_samples)
    check_level(credible_level)
    per_row = n_genes * bytes_per_number(n_samples, credible_level)
    budget = memory_bytes(memory_budget)
    out: list[list[slice]] = []
    left = 0
    for part in parts:
        need = (part.stop - part.start) * per_row
        if need > left:
            left = budget - _AT_WORK
            out.append([])
        if need > left:
            least = -(-(need + _AT_WORK) // 2**20)
            raise ScreenError(
                f"memory_budget={memory_budget!r} is too small: {n_samples} draws of {n_genes} "
                f'genes need "{least} MiB"'
            )
        out[-1].append(part)
        left -= need
    return out


def summaries(
    draws: Callable[[Sequence[slice]], Draws],
    parts: Sequence[slice],
    n_genes: int,
    n_samples: int,
    credible_level: float,
    memory_budget: int | float | str = MEMORY_BUDGET,
    progress: Callable[[Iterable], Iterable] = iter,
) -> Summaries:
    """Summaries of the draws of a table's rows, the same whatever the budget.

    Parameters
    ----------
    draws
        Gives the draws of some parts of the rows. What of a draw is common to all rows is drawn
        anew, and the same, in every pass.
    parts
        All rows of the table, in parts.
    memory_budget
        Bytes, or a text such as "2 GiB": what running summaries and the rows worked on may take.
    """
    planned = passes(parts, n_genes, n_samples, credible_level, memory_budget)
    ticks = iter(progress(range(len(planned) * n_samples)))
    for together in planned:
        running = [
            RunningSummary((part.stop - part.start, n_genes), n_samples, credible_level)
            for part in together
        ]
        for draw in draws(together):
            next(ticks)
            for each, values in zip(running, draw, strict=True):
                each.add(values)
        for part in together:
            yield part, running.pop(0).summary()
    next(ticks, None)  # closes the bar
