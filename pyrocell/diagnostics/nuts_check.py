r"""A second opinion on a contrast: NUTS on counts of single cells, nothing shared with the first.

`assumptions.py` answers from sums of counts, moments and closed forms. Here a plain model of every
count is sampled instead,

    x_ng ~ NB(ℓ_n exp(β_{c(n)g} + η_{b(n)g} + z_n W_g), θ_g),    Σ_c a_c β_cg = d_g ~ N(0, s²),

with a dispersion for each gene, factors z for each cell, batches as random effects and a prior of s
that is half log-uniform on [region / 20, region] and half on [region, 30 region]: sizes as in the
table of assumptions, effects dense. It is slow and meant for one contrast of a small screen.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from pyro.infer import MCMC
from pyro.infer.autoguide import init_to_median

from pyrocell.assumptions.testability import comparisons
from pyrocell.data.backed import gene_totals
from pyrocell.diagnostics.nuts_model import BlockedNUTS, CellModel, size_of
from pyrocell.errors import ScreenError, ScreenWarning

if TYPE_CHECKING:
    from pyrocell.model import PyroCell

__all__ = ["check_assumption", "second_opinion"]

_TREE_DEPTH = 8


def second_opinion(
    counts: sp.spmatrix | np.ndarray,
    condition: np.ndarray,
    batch: np.ndarray,
    size: np.ndarray,
    weights: Mapping[int, float] | None = None,
    *,
    region: float = 0.05,
    loading: np.ndarray | None = None,
    n_factors: int = 2,
    num_samples: int = 500,
    warmup_steps: int = 300,
    n_chains: int = 2,
    max_cells: int = 200,
    max_genes: int = 60,
    seed: int = 0,
    progress_bar: bool = False,
) -> dict[str, float]:
    """P(RMS log-fold change of a contrast < region), sampled from a model of every count.

    Parameters
    ----------
    counts
        (N, G) raw counts of the cells of the conditions compared.
    condition, batch
        (N,) codes.
    size
        (N,) size factors.
    weights
        Weight a_c of each condition in the contrast; default: condition 1 minus condition 0.
    region
        Root mean square below which a change counts as none; natural-log fold change.
    loading
        (d, G) axes along which cells vary; default: `n_factors` axes learned from the cells.
    num_samples, warmup_steps, n_chains
        Draws kept and draws before them, of each chain.
    max_cells, max_genes
        Of each condition, and in all; more are thinned at random, with a warning.
    seed
        The same seed gives the same answer on the same machine.

    Returns
    -------
    dict with probability (prior one half) and its Monte-Carlo error mcse, from the effective sample
    size ess; r_hat of log s; divergences; size with lower and upper, posterior mean of s and its
    90% interval; rms, posterior mean of the root mean square of d itself; n_cells, n_genes.

    Raises
    ------
    ScreenError
        If a condition of the contrast has no cells, or region is no log-fold change.

    Warns
    -----
    ScreenWarning
        If cells or genes are thinned, or the sampler did not converge.
    """
    condition, batch = np.asarray(condition), np.asarray(batch)
    weights = {0: -1.0, 1: 1.0} if weights is None else dict(weights)
    if not 0 < region < 1:
        raise ScreenError(f"region={region} is a root mean square log-fold change, such as 0.05")
    if empty := [c for c in weights if not (condition == c).any()]:
        raise ScreenError(f"conditions {empty} of the contrast have no cells")
    rng = np.random.default_rng(seed)
    rows = _thinned(rng, condition, weights, max_cells)
    genes = _drawn(rng, np.arange(counts.shape[1]), max_genes, "genes")
    x = sp.csr_matrix(counts)[rows][:, genes].toarray()
    cells = CellModel(
        x=torch.as_tensor(x, dtype=torch.float64),
        size=torch.as_tensor(np.asarray(size, float)[rows]),
        condition=torch.as_tensor([list(weights).index(c) for c in condition[rows]]),
        batch=torch.as_tensor(np.unique(batch[rows], return_inverse=True)[1]),
        weights=torch.tensor(list(weights.values()), dtype=torch.float64),
        region=region,
        loading=None if loading is None else torch.as_tensor(loading[:, genes], dtype=torch.double),
        n_factors=n_factors,
    )
    sizes, rms, divergences = [], [], 0
    for chain in range(n_chains):
        with _own_generator(1000 * seed + chain):
            kernel = BlockedNUTS(
                cells,
                jit_compile=True,
                ignore_jit_warnings=True,
                init_strategy=init_to_median,
                max_tree_depth=_TREE_DEPTH,
            )
            sampler = MCMC(kernel, num_samples, warmup_steps, disable_progbar=not progress_bar)
            sampler.run()
            draws = sampler.get_samples()
            divergences += len(sampler.diagnostics()["divergences"]["chain 0"])
        s = size_of(draws["share"], region)
        sizes.append(s.numpy())
        rms.append((s * draws["standard"].square().mean(-1).sqrt()).numpy())
    out = _summary(np.stack(sizes), np.stack(rms), region)
    out |= {"divergences": divergences, "n_cells": len(rows), "n_genes": len(genes)}
    if out["r_hat"] > 1.05 or divergences > 0.01 * n_chains * num_samples:
        warnings.warn(
            f"the sampler did not converge: r-hat {out['r_hat']:.3f}, {divergences} divergences in "
            f"{n_chains * num_samples} draws; raise num_samples and warmup_steps",
            ScreenWarning,
            stacklevel=2,
        )
    return out


def check_assumption(
    model: PyroCell,
    assumption: str,
    perturbation: str,
    media: str | None = None,
    *,
    min_count: float = 5.0,
    given_loading: bool = True,
    table: pd.DataFrame | None = None,
    **options: Any,
) -> pd.DataFrame:
    """Second opinion on one row of `model.assumptions()`.

    Parameters
    ----------
    model
        A PyroCell; its axes of cell state are taken where `given_loading`, nothing else of its fit.
    assumption, perturbation, media
        The row; baseline medium by default. Not `no_response`, which speaks of a slope.
    min_count
        Counts that a gene needs, at the pooled rate, in every condition compared.
    table
        From `model.assumptions()`: its answer is then set beside the second one, as it is under
        the same prior of one half.
    **options
        Of :func:`second_opinion`.

    Returns
    -------
    DataFrame with one row: assumption, perturbation, media, what :func:`second_opinion` returns,
    and first, the table's answer, NaN without a table. The table knows the control from all other
    perturbations too and the second opinion from the control's own cells alone, so with few control
    cells it is less sure.

    Raises
    ------
    ScreenError
        If the layout cannot test the row, there is no such row, or it speaks of a slope.
    """
    screen = model.screen
    media = screen.baseline_media if media is None else media
    name = (assumption, perturbation, media)
    rows = [r for r in comparisons(screen) if (r.assumption, r.perturbation, r.media) == name]
    if not rows:
        raise ScreenError(f"the screen has no row {', '.join(name)}; see model.testability()")
    if assumption == "no_response":
        raise ScreenError("no_response speaks of a slope; second opinions are on sizes")
    if not rows[0].testable:
        raise ScreenError(f"{', '.join(name)} cannot be tested: {rows[0].reason}")
    weights = rows[0].weights
    counts, size = model._cells.counts, model._cells.size
    condition = screen.cell_condition
    depth = min(size[condition == c].sum() for c in weights)
    rate = gene_totals(counts) / size.sum()
    judged = rate * depth >= min_count
    targets = screen.target[screen.genotype[list(weights)].any(0)]
    judged[targets[targets >= 0]] = False
    axes = model.fitted.axes_of_state()[:, judged] if given_loading else None
    chosen = np.isin(condition, list(weights))
    found = second_opinion(
        counts[chosen][:, judged],
        condition[chosen],
        screen.cell_batch[chosen],
        size[chosen],
        weights,
        loading=axes,
        **options,
    )
    first = np.nan
    if table is not None:
        columns = table[["assumption", "perturbation", "media"]]
        first = 1 / (1 + np.exp(-table.log_bayes_factor[(columns == name).all(axis=1)].iloc[0]))
    labels = dict(zip(("assumption", "perturbation", "media"), name))
    return pd.DataFrame([labels | found | {"first": first}])


def _thinned(
    rng: np.random.Generator, condition: np.ndarray, weights: Mapping[int, float], most: int
) -> np.ndarray:
    rows = [_drawn(rng, np.flatnonzero(condition == c), most, f"cells of {c}") for c in weights]
    return np.sort(np.concatenate(rows))


def _drawn(rng: np.random.Generator, items: np.ndarray, most: int, what: str) -> np.ndarray:
    if len(items) <= most:
        return items
    warnings.warn(
        f"{most} of {len(items)} {what} are used; all would take long", ScreenWarning, stacklevel=3
    )
    return np.sort(rng.choice(items, most, replace=False))


@contextmanager
def _own_generator(seed: int) -> Iterator[None]:
    """Sample with this seed and leave the caller's generators and parameters as they are."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        yield


def _summary(sizes: np.ndarray, rms: np.ndarray, region: float) -> dict[str, float]:
    """Figures from draws of s and of the root mean square of d, (chains, draws) both."""
    import arviz as az  # slow to import

    inside = (sizes < region).astype(float)
    log = np.log(sizes)
    half = log.shape[1] // 2
    halves = log[:, : 2 * half].reshape(-1, half)  # r-hat of one chain: between its halves
    ess = float(az.ess(log, method="bulk"))
    if 0 < inside.mean() < 1:
        ess = min(ess, float(az.ess(inside, method="mean")))
    p = float(inside.mean())
    kept = (p * ess + 0.5) / (ess + 1)  # draws all on one side leave an error, too
    lower, upper = np.quantile(sizes, [0.05, 0.95])
    return {
        "probability": p,
        "mcse": float(np.sqrt(kept * (1 - kept) / ess)),
        "ess": ess,
        "r_hat": float(az.rhat(halves)),
        "size": float(sizes.mean()),
        "lower": float(lower),
        "upper": float(upper),
        "rms": float(rms.mean()),
    }
