r"""Whether posteriors mean what they say: simulation-based calibration of the whole model.

Draw the parameters from the prior and a screen from them, fit the screen as a user would, and rank
each true value among draws of its posterior. If inference is exact the ranks are uniform (Talts et
al. 2018); intervals that are too narrow pile them up at both ends. Bands around the empirical
distribution of ranks are simultaneous (Säilynoja, Bürkner & Vehtari 2022).

Many values of one fit share its errors, so their ranks are not independent. Where a replicate has
several, the band is that of as many independent ranks as would vary as much: the spread between
replicates says how many.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from pyro import poutine
from scipy.stats import binom
from torch import Tensor

from pyrocell import parallel
from pyrocell.data.loader import CellDataset
from pyrocell.data.statistics import count_sums
from pyrocell.errors import NonFiniteError, ScreenError, warn
from pyrocell.generative.model import GenerativeModel
from pyrocell.posterior.draws import Posterior
from pyrocell.posterior.module import ScreenModule
from pyrocell.screen.screen import Screen
from pyrocell.training.fit import TrainingConfig, train

if TYPE_CHECKING:
    from pyrocell.model import PyroCell

__all__ = [
    "coverage_table",
    "ecdf_band",
    "ecdf_difference",
    "quantities_of",
    "rank_table",
    "simulation_based_calibration",
]

Quantity = Callable[[GenerativeModel, Mapping[str, Tensor]], Tensor]
LEVELS = (0.5, 0.8, 0.9, 0.95)
_SIMULATIONS = 2000


# ---------------------------------------------------------------------- the whole model
def simulation_based_calibration(
    model: PyroCell,
    n_replicates: int = 20,
    quantities: Mapping[str, Quantity] | None = None,
    n_draws: int = 99,
    max_epochs: int | None = None,
    train_size: float = 0.9,
    config: TrainingConfig | None = None,
    seed: int = 0,
    n_jobs: int = 1,
    progress_bar: bool = True,
    backend: str | None = None,
) -> pd.DataFrame:
    """Ranks of true values among posterior draws, over screens drawn from the model's own prior.

    Parameters
    ----------
    model
        Gives layout, depths of cells, settings and priors, and the values of what is estimated
        without a prior (axes of cell state, learned widths), at which screens are drawn: those of
        the fit, or starting values if it is not trained. It is not changed.
    n_replicates
        Screens drawn and fitted.
    quantities
        Functions of the generative model and the values of its sites, by name; default:
        :func:`quantities_of`.
    n_draws
        Posterior draws among which a true value is ranked.
    max_epochs, train_size, config
        As in `PyroCell.train`.
    seed
        Replicate i is the same for the same seed.
    n_jobs, backend
        Screens fitted at the same time, and where: processes here, or "ray"
        (:func:`pyrocell.parallel.run`).
    progress_bar
        Show progress.

    Returns
    -------
    DataFrame as :func:`rank_table` returns it.

    Warns
    -----
    ScreenWarning
        If training failed on some of the screens; they are left out.
    """
    quantities = quantities_of(model.module.model) if quantities is None else quantities
    start = model._cells
    task = (model.module, model.screen, start, quantities, n_draws, max_epochs, train_size, config)
    jobs = [(*task, 10_000 * seed + i) for i in range(n_replicates)]
    found = parallel.run(_replicate, jobs, n_jobs, backend, progress_bar)
    done = [pairs for pairs in found if pairs is not None]
    if len(done) < n_replicates:
        warn(f"training failed on {n_replicates - len(done)} of {n_replicates} screens")
    return rank_table(done)


def quantities_of(model: GenerativeModel) -> dict[str, Quantity]:
    """Effects of perturbations on genes, and of what there is: batch noise, gains, rates, drift.

    Effects are against control in baseline medium at the last time, (K, G); both they and η in the
    gauge of relative expression where that is modelled. Axes of the response can be turned and are
    no quantities.
    """
    own: dict[str, Quantity] = {"effect": _effect}
    if model.n_batches > 1:
        own["eta"] = _eta
    if model.n_media:
        own["gain"] = lambda _, values: values["M.gain"]
    if model.has_rates:
        own["log_rate"] = lambda _, values: values["W.log_rate"]
    return own


def _effect(model: GenerativeModel, values: Mapping[str, Tensor]) -> Tensor:
    table = model.conditions
    here = (table.exposure.sum(1) == 0) & (table.duration == table.duration.max())
    number = table.genotype.sum(1)
    rows = [(here & (number == n)).nonzero()[:, 0] for n in (0, 1)]
    if not all(map(len, rows)):
        raise ScreenError("no control or no perturbation in baseline medium at the last time")
    level = model.shift(dict(values), table.select(torch.cat([rows[0][:1], rows[1]])))
    if model.measurement.compositions:
        level = model.measurement.relative(values["V.baseline"] + level)
    return level[1:] - level[:1]


def _eta(model: GenerativeModel, values: Mapping[str, Tensor]) -> Tensor:
    return model.measurement.gauge(values["eta"], values["V.baseline"])


def _replicate(
    module: ScreenModule,
    screen: Screen,
    cells: CellDataset,
    quantities: Mapping[str, Quantity],
    n_draws: int,
    max_epochs: int | None,
    train_size: float,
    config: TrainingConfig | None,
    seed: int,
) -> dict[str, tuple[np.ndarray, np.ndarray]] | None:
    """True values and posterior draws of each quantity for one screen; None if training failed."""
    torch.set_num_threads(1)
    model = module.model.cpu()
    arguments = cells.rows(np.arange(len(cells))) | {"x": None}
    with torch.no_grad(), torch.random.fork_rng([]):
        torch.manual_seed(seed)
        trace = poutine.trace(model).get_trace(**arguments)
    nodes = cast("dict[str, dict[str, Any]]", trace.nodes)
    values = {name: node["value"] for name, node in nodes.items() if node["type"] == "sample"}
    with torch.no_grad():
        truth = {name: f(model, values).numpy().ravel() for name, f in quantities.items()}
    counts = sp.csr_matrix(values["x"].numpy().astype(np.float32))
    drawn = CellDataset(counts, cells.condition, cells.batch, cells.log_size, cells.covariates)
    order = np.random.default_rng(seed).permutation(len(cells))
    n_train = max(1, round(train_size * len(cells)))
    sums = count_sums(counts, screen, cells.log_size)
    fitted = ScreenModule.from_sums(sums, screen, module.config, module.priors)
    try:
        train(
            fitted.model,
            fitted.guide,
            drawn,
            np.sort(order[:n_train]),
            np.sort(order[n_train:]),
            config or TrainingConfig(),
            max_epochs=max_epochs,
            accelerator="cpu",
            seed=seed,
            progress_bar=False,
        )
    except NonFiniteError:
        return None
    fitted.eval()
    draws: dict[str, list[np.ndarray]] = {name: [] for name in quantities}
    for sites in Posterior(fitted.model, fitted.guide, seed).draws(n_draws):
        with torch.no_grad():
            for name, f in quantities.items():
                draws[name].append(f(fitted.model, sites).numpy().ravel())
    return {name: (truth[name], np.stack(draws[name])) for name in quantities}


# ---------------------------------------------------------------------- ranks and what they say
def rank_table(
    replicates: Iterable[Mapping[str, tuple[np.ndarray, np.ndarray]]],
) -> pd.DataFrame:
    """Rank of each true value among posterior draws of it.

    Parameters
    ----------
    replicates
        For each fit, by name of the quantity, true values (n,) and draws (L, n).

    Returns
    -------
    DataFrame with a row per replicate, quantity and entry (position in the quantity, row by row):
    rank (draws below the truth, 0 to L), n_draws (L), truth, mean and sd of the draws.

    Raises
    ------
    ScreenError
        If there is no replicate.
    """
    tables = []
    for i, pairs in enumerate(replicates):
        for name, (truth, draws) in pairs.items():
            truth, draws = np.atleast_1d(truth), np.asarray(draws).reshape(len(draws), -1)
            columns = {
                "replicate": i,
                "quantity": name,
                "entry": np.arange(len(truth)),
                "rank": (draws < truth).sum(0),
                "n_draws": len(draws),
                "truth": truth,
                "mean": draws.mean(0),
                "sd": draws.std(0, ddof=1),
            }
            tables.append(pd.DataFrame(columns))
    if not tables:
        raise ScreenError("there are no replicates to rank")
    return pd.concat(tables, ignore_index=True)


def coverage_table(ranks: pd.DataFrame, levels: Sequence[float] = LEVELS) -> pd.DataFrame:
    """How often equal-tailed intervals of the posterior hold the truth.

    Parameters
    ----------
    ranks
        From :func:`rank_table`.
    levels
        Masses of the intervals.

    Returns
    -------
    DataFrame with quantity, level, share (that holds the truth), standard_error (from the spread
    between replicates; NaN with one), n, n_replicates.
    """
    rows = []
    for name, mine in ranks.groupby("quantity", sort=False):
        steps = mine["n_draws"] + 1
        for level in levels:  # a rank stands for 1 / steps of [0, 1]; its part in the interval
            above = np.minimum(mine["rank"] + 1, steps * (1 + level) / 2)
            held = (above - np.maximum(mine["rank"], steps * (1 - level) / 2)).clip(lower=0.0)
            each = held.groupby(mine["replicate"]).agg(["sum", "size"])
            rows.append(
                {
                    "quantity": name,
                    "level": level,
                    "share": held.mean(),
                    "standard_error": _ratio_error(each["sum"], each["size"]),
                    "n": len(held),
                    "n_replicates": len(each),
                }
            )
    return pd.DataFrame(rows)


def ecdf_difference(ranks: pd.DataFrame, level: float = 0.95, seed: int = 0) -> pd.DataFrame:
    """Empirical distribution of the ranks less the uniform one, with a simultaneous band.

    Parameters
    ----------
    ranks
        From :func:`rank_table`.
    level
        Probability that exact posteriors stay inside the band everywhere.
    seed
        Of the simulation.

    Returns
    -------
    DataFrame with quantity, z (in (0, 1)), difference, lower, upper, inside, n_effective. Where
    replicates have several ranks the band needs about ten replicates to be near its level.
    """
    tables = []
    for name, mine in ranks.groupby("quantity", sort=False):
        n_draws, rank = int(mine["n_draws"].iloc[0]), mine["rank"].to_numpy()
        _, replicate = np.unique(mine["replicate"], return_inverse=True)
        n = _effective_number(rank, replicate, n_draws)
        band = ecdf_band(n, n_draws, level, seed=seed)
        share = np.searchsorted(np.sort(rank), np.arange(n_draws), side="right") / len(rank)
        band["difference"] = share - band["z"]
        band["inside"] = band["difference"].between(band["lower"] - 1e-12, band["upper"] + 1e-12)
        tables.append(band.assign(quantity=name, n_effective=n))
    columns = ["quantity", "z", "difference", "lower", "upper", "inside", "n_effective"]
    return pd.concat(tables, ignore_index=True)[columns]


def ecdf_band(
    n: int, n_draws: int, level: float = 0.95, n_simulations: int = _SIMULATIONS, seed: int = 0
) -> pd.DataFrame:
    """Simultaneous band of the ECDF difference of n independent uniform ranks.

    Pointwise binomial intervals of one level, such that a share `level` of simulated uniform
    samples stays inside all of them (Säilynoja et al. 2022, algorithm 2).

    Parameters
    ----------
    n, n_draws
        Number of ranks, and draws L among which each was taken: ranks are 0 to L.
    level, n_simulations, seed
        Of the simulation.

    Returns
    -------
    DataFrame with z = 1 / (L + 1), ..., L / (L + 1), lower, upper.
    """
    rng = np.random.default_rng(seed)
    z = np.arange(1, n_draws + 1) / (n_draws + 1)
    uniform = np.full(n_draws + 1, 1 / (n_draws + 1))
    below = rng.multinomial(n, uniform, n_simulations).cumsum(1)[:, :-1]
    tail = np.minimum(binom.cdf(below, n, z), binom.sf(below - 1, n, z))
    half = np.quantile(tail.min(1), 1 - level)
    return pd.DataFrame(
        {
            "z": z,
            "lower": binom.ppf(half, n, z) / n - z,
            "upper": binom.isf(half, n, z) / n - z,
        }
    )


def _effective_number(rank: np.ndarray, replicate: np.ndarray, n_draws: int) -> int:
    """Number of independent ranks whose distribution function would vary as much (Kish).

    From the variance between replicates, summed over z; at least the number of replicates, at most
    that of the ranks.
    """
    n, z = replicate.max() + 1, np.arange(1, n_draws + 1) / (n_draws + 1)
    part = np.zeros((n, n_draws))
    np.add.at(part, replicate, (rank[:, None] <= np.arange(n_draws)) - z)
    size = np.bincount(replicate)[:, None]
    part -= size * part.sum(0) / len(rank)  # what all share is the departure looked for
    variance = (part**2).sum(0) * n / max(n - 1, 1) / len(rank) ** 2
    independent = (z * (1 - z)).sum() / max(variance.sum(), 1e-12)
    return int(np.clip(round(independent), n, len(rank)))


def _ratio_error(held: pd.Series, size: pd.Series) -> float:
    """Standard error of Σ held / Σ size over replicates."""
    n = len(held)
    if n < 2:
        return float("nan")
    left = held - size * held.sum() / size.sum()
    return float(np.sqrt((left**2).sum() * n / (n - 1)) / size.sum())
