"""Effects as the counts alone tell them, where cells carry several guides each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import scipy.sparse as sp
from scipy.special import digamma, gammainc, gammaincinv, polygamma

from pyrocell.data.backed import count_blocks
from pyrocell.data.loader import CellDataset
from pyrocell.errors import UnknownLabelError
from pyrocell.posterior.counts_alone import long_table, unshrunken_columns
from pyrocell.posterior.draws import check_level
from pyrocell.posterior.gene_level.additive import additive_counts
from pyrocell.posterior.gene_level.additive_fit import fit_without_prior
from pyrocell.posterior.gene_level.additive_sampler import AdditiveCounts
from pyrocell.screen.screen import Screen

__all__ = ["unshrunken_sums"]


def unshrunken_sums(
    screen: Screen,
    data: CellDataset,
    perturbations: Sequence[str] | None,
    media: str,
    time: float | None,
    credible_level: float,
) -> pd.DataFrame:
    """Effects of single perturbations without a prior; see `PyroCell.perturbation_effects`.

    The level that the cells of a perturbation have, over what is expected of them without it, is
    that of a gamma variable whose relative variance is that of their counts, times the inflation by
    what is not known of the others.

    Raises
    ------
    UnknownLabelError
        If a label is that of a set, or no cell of the medium and time carries it.
    """
    check_level(credible_level)
    names = list(screen.perturbations if perturbations is None else perturbations)
    here = screen.at(media, time)
    cells = np.flatnonzero(here[data.condition])
    carried = np.asarray(screen.membership[data.condition[cells]].sum(0)).ravel()
    if perturbations is None:
        names = [n for n in names if carried[screen.indices(n)[0]] > 0]
    rows = []
    for name in names:
        wanted = screen.indices(name)
        if len(wanted) != 1:
            raise UnknownLabelError(
                f'"{name}" is no single perturbation: sets of many guides are not measured for '
                "themselves, and their effects are sums; leave shrunken=False out"
            )
        if not carried[wanted[0]]:
            raise UnknownLabelError(f'no cell in medium "{media}" carries "{name}"')
        rows.append(wanted[0])
    every = additive_counts(data.counts, data.log_size, screen)
    fit = fit_without_prior(_some(every, cells))
    total, depth = fit.total[rows] + 0.5, fit.depth[rows]
    shape = total / fit.inflation[rows][:, None]
    ratio = np.log(total / depth)
    mean = ratio + digamma(shape) - np.log(shape)
    tail = (1 - credible_level) / 2
    lower, upper = (
        ratio + np.log(np.maximum(gammaincinv(shape, q) / shape, 1e-300)) for q in (tail, 1 - tail)
    )
    below = gammainc(shape, shape * np.exp(-ratio))  # probability of a negative effect
    raw, everything = _raw_counts(data, cells, screen)
    sd = np.sqrt(polygamma(1, shape))
    columns = unshrunken_columns(mean, sd, lower, upper, below, raw[rows], everything)
    when = np.nan if time is None else float(time)
    return long_table(columns, names, screen.genes, media, when)


def _some(data: AdditiveCounts, cells: np.ndarray) -> AdditiveCounts:
    """Some of the cells."""
    if len(cells) == len(data.log_size):
        return data
    return AdditiveCounts(
        sp.csc_array(sp.csr_array(data.counts)[cells]),
        data.log_size[cells],
        data.batch[cells],
        sp.csr_array(data.carried[cells]),
        data.target,
        data.n_perturbations,
        data.n_batches,
    )


def _raw_counts(
    data: CellDataset, cells: np.ndarray, screen: Screen
) -> tuple[np.ndarray, np.ndarray]:
    """Counts (K, G) of some cells that carry each perturbation, and (G,) of all of them."""
    chosen = np.zeros(len(data), bool)
    chosen[cells] = True
    member = sp.csr_array(screen.membership.astype(float))
    out = np.zeros((len(screen.perturbations), len(screen.genes)))
    everything = np.zeros(len(screen.genes))
    for part, block in count_blocks(data.counts):
        mine = chosen[part]
        some = sp.csr_array(block)[mine]
        out += (member[data.condition[part][mine]].T @ some).toarray()
        everything += np.asarray(some.sum(0)).ravel()
    return out, everything
