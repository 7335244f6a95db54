"""Whether the model reproduces the data it was fitted to, and how it scores unseen cells."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
import torch.distributions as dist

from pyrocell._core.random import seeded
from pyrocell.data.loader import CellDataset
from pyrocell.generative.cell_shift import shifts_shared
from pyrocell.posterior.draws import Posterior

__all__ = ["importance_log_likelihood", "posterior_predictive_check"]

_STATISTICS = ("mean", "variance", "zero_fraction")
_AT_ONCE = 2**21  # counts replicated at once


def posterior_predictive_check(
    posterior: Posterior,
    cells: CellDataset,
    genes: pd.Index,
    n_samples: int,
    n_cells: int,
    credible_level: float,
) -> pd.DataFrame:
    """Compare statistics of each gene between observed and replicated counts.

    Each replicate draws the globals, every cell's state from q(z | x), and counts from V.

    Returns
    -------
    DataFrame with gene, statistic, observed, expected, lower, upper, inside.
    """
    model, guide = posterior.model, posterior.guide
    rng = np.random.default_rng(posterior.seed)
    chosen = np.sort(rng.permutation(len(cells))[:n_cells])
    table = model.conditions if cells.conditions is None else cells.conditions
    used = np.unique(cells.condition[chosen])
    table = table.select(torch.as_tensor(used, device=model.loading.device))
    met = table.genotype.any(0).nonzero()[:, 0].cpu().numpy()
    # positions in the shorter table, of the chosen cells; no other is looked at
    place = np.searchsorted(used, cells.condition)
    cells = replace(cells, condition=place, conditions=table)
    size = max(1, _AT_ONCE // len(genes))
    parts = [chosen[first : first + size] for first in range(0, len(chosen), size)]

    def arguments(rows: np.ndarray) -> dict[str, torch.Tensor]:
        return {k: v.to(model.loading.device) for k, v in cells.rows(rows).items()}

    @torch.no_grad()
    def replicate(values: dict[str, torch.Tensor], s: int, part: int) -> torch.Tensor:
        args = arguments(parts[part])
        extra = (args["condition"], args["batch"], args.get("covariates"), cells.conditions)
        with seeded(model.loading.device, "replicate", s, part), shifts_shared():
            loc, scale = guide.encode(values, args["x"], *extra, log_size=args["log_size"])
            z = loc + scale * torch.randn_like(loc)
            shift = model.cell_shift(values, *extra)
            logits = model.resting_logits(values, z) + shift
            return model.view(values, logits, args["log_size"], z).sample()

    observed = _statistics(arguments(rows)["x"].to_dense() for rows in parts)
    replicated = np.empty((n_samples, *observed.shape), np.float32)
    for s, values in enumerate(posterior.draws(n_samples, perturbations=met)):
        replicated[s] = _statistics(replicate(values, s, part) for part in range(len(parts)))
    tail = 50 * (1 - credible_level)
    lower, upper = np.percentile(replicated, [tail, 100 - tail], axis=0, method="weibull")
    tables = [
        pd.DataFrame(
            {
                "gene": genes,
                "statistic": name,
                "observed": observed[i],
                "expected": replicated[:, i].mean(0),
                "lower": lower[i],
                "upper": upper[i],
                "inside": (observed[i] >= lower[i]) & (observed[i] <= upper[i]),
            }
        )
        for i, name in enumerate(_STATISTICS)
    ]
    return pd.concat(tables, ignore_index=True)


def _statistics(blocks: Iterable[torch.Tensor]) -> np.ndarray:
    """Mean, variance and zero fraction of each gene, (3, G), of cells that come in blocks."""
    n = 0
    total = square = zero = torch.zeros(())
    for x in blocks:
        x = x.double()
        n, total, square = n + len(x), total + x.sum(0), square + x.square().sum(0)
        zero = zero + (x == 0).double().sum(0)
    variance = (square - total.square() / n) / (n - 1)  # of counts, so exact to rounding
    return torch.stack([total / n, variance, zero / n]).cpu().numpy()


def importance_log_likelihood(
    posterior: Posterior,
    cells: CellDataset,
    n_particles: int,
    batch_size: int,
) -> np.ndarray:
    """log p(x) of each cell by importance sampling z from the guide, globals from the posterior.

    log (1/S) Σ_s p(x | z_s, θ_s) p(z_s) / q(z_s | x, θ_s), nats.
    """
    model, guide = posterior.model, posterior.guide
    total = np.full(len(cells), -np.inf)
    for s, values in enumerate(posterior.draws(n_particles)):
        with torch.no_grad(), seeded(model.loading.device, "importance", s), shifts_shared():
            for start in range(0, len(cells), batch_size):
                rows = np.arange(start, min(start + batch_size, len(cells)))
                args = {k: v.to(model.loading.device) for k, v in cells.rows(rows).items()}
                extra = (args["condition"], args["batch"], args.get("covariates"), cells.conditions)
                loc, scale = guide.encode(values, args["x"], *extra, log_size=args["log_size"])
                q = dist.Normal(loc, scale)
                z = q.sample()
                shift = model.cell_shift(values, *extra)
                logits = model.resting_logits(values, z) + shift
                log_p = model.view(values, logits, args["log_size"], z).log_prob(args["x"])
                reversal = getattr(guide, "reversal", None)
                place = (args["condition"], cells.conditions, reversal)
                weight = log_p + model.state_log_prob(values, z, *place) - q.log_prob(z).sum(-1)
                total[rows] = np.logaddexp(total[rows], weight.cpu().double().numpy())
    return total - np.log(n_particles)
