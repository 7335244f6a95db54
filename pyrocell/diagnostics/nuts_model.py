"""A plain model of counts of single cells, and the sampler that `second_opinion.py` runs on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import NUTS
from torch import Tensor
from torch.nn.functional import one_hot, softplus

__all__ = ["BlockedNUTS", "CellModel", "size_of"]

Likelihood = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]

SMALLEST, LARGEST = 1 / 20, 30  # sizes considered, in units of the region
LEVEL_SD = 2.0  # of a gene's level in a condition, around the pooled one; natural log
LOADING_SD = 0.3  # of free loadings; natural log per standard deviation of a factor
BATCH_SD = 0.5  # half-normal scale of the standard deviation of batch effects
DISPERSION = (0.7, 1.0)  # location and scale of log θ
_GRID = 4000  # cells of the prior of s, .0017 of its logarithm or less
_NEWTON = 8


def size_of(share: Tensor, region: float) -> Tensor:
    """Quantile function of the prior of s: log-uniform below the region and above it, half each."""
    low = SMALLEST ** (1 - 2 * share)
    high = LARGEST ** (2 * share - 1)
    return region * torch.where(share < 0.5, low, high)


class CellModel:
    """Cells of the conditions compared, and the model of their counts; see `second_opinion.py`.

    Parameters
    ----------
    x, size
        (N, G) counts and (N,) size factors.
    condition, batch
        (N,) codes, conditions in the order of their weights.
    weights
        (C,) of the contrast.
    region
        Root mean square in whose units sizes are.
    loading
        (d, G), or None for `n_factors` free ones.
    """

    def __init__(
        self,
        x: Tensor,
        size: Tensor,
        condition: Tensor,
        batch: Tensor,
        weights: Tensor,
        region: float,
        loading: Tensor | None,
        n_factors: int,
    ) -> None:
        self.x, self.log_size, self.condition, self.batch = x, size.log(), condition, batch
        self.weights, self.region, self.loading = weights, region, loading
        self.n_factors = n_factors if loading is None else len(loading)
        self.n_batches = int(batch.max()) + 1
        member = one_hot(self.condition, len(weights)).to(x.dtype)  # (N, C)
        total = member.T @ x + 0.5
        self.centre = ((x.sum(0) + 0.5) / size.sum()).log()  # (G,)
        self.start = (total / (member.T @ size)[:, None]).log()[:-1]  # (C - 1, G)
        self.unit = (1 / total + 0.5 / member.sum(0)[:, None]).sqrt()[:-1]  # a posterior's width

    def model(self) -> None:
        """Non-centred: d = s × standard normal, η = scale × standard normal."""
        (n, g), one = self.x.shape, self.x.new_ones(())
        normal = lambda *shape: dist.Normal(0 * one, one).expand(shape).to_event(len(shape))  # noqa: E731
        prior = dist.Normal((self.centre - self.start) / self.unit, LEVEL_SD / self.unit)
        values = {
            "share": pyro.sample("share", dist.Uniform(0 * one, one)),
            "standard": pyro.sample("standard", normal(g)),
            "level": pyro.sample("level", prior.to_event(2)),
        }
        theta = dist.LogNormal(DISPERSION[0] * one, DISPERSION[1] * one).expand((g,)).to_event(1)
        values["dispersion"] = pyro.sample("dispersion", theta)
        if self.n_batches > 1:
            values["eta_scale"] = pyro.sample("eta_scale", dist.HalfNormal(BATCH_SD * one))
            values["eta"] = pyro.sample("eta", normal(self.n_batches, g))
        if self.n_factors:
            values["z"] = pyro.sample("z", normal(n, self.n_factors))
            if self.loading is None:
                values["loading"] = pyro.sample("loading", normal(self.n_factors, g))
        change = size_of(values["share"], self.region) * values["standard"]
        logits = self.log_mean(values, change) - values["dispersion"].log()
        counts = dist.NegativeBinomial(values["dispersion"], logits=logits, validate_args=False)
        pyro.sample("x", counts.to_event(2), obs=self.x)

    def log_mean(self, values: dict[str, Tensor], change: Tensor) -> Tensor:
        """Log mean count of each cell, (N, G)."""
        levels = self.start + self.unit * values["level"]  # Normal(centre, LEVEL_SD)
        last = (change - self.weights[:-1] @ levels) / self.weights[-1]
        out = torch.cat([levels, last[None]])[self.condition] + self.log_size[:, None]
        if self.n_batches > 1:
            eta = values["eta_scale"] * values["eta"]
            out = out + (eta - eta.mean(0))[self.batch]
        if self.n_factors:
            loading = LOADING_SD * values["loading"] if self.loading is None else self.loading
            out = out + values["z"] @ loading
        return out

    def last_likelihood(self, values: dict[str, Tensor]) -> Likelihood:
        """Log likelihood of the change given all else, with its slope and curvature by gene.

        The change moves the last condition only: the other levels are parameters of their own.
        """
        rows = self.condition == len(self.weights) - 1
        x, theta, weight = self.x[rows], values["dispersion"], self.weights[-1]
        rest = self.log_mean(values, torch.zeros_like(theta))[rows] - theta.log()

        def at(change: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            logits = rest + change / weight
            p = logits.sigmoid()
            log = x * logits - (x + theta) * softplus(logits)
            slope = (x - (x + theta) * p).sum(0) / weight
            return log.sum(), slope, ((x + theta) * p * (1 - p)).sum(0) / weight**2

        return at


class BlockedNUTS(NUTS):
    """NUTS, and after each step a draw of s and d together given all else, exact by Metropolis.

    Of a change that is weakly seen, "none" and "some" are two modes that NUTS alone rarely leaves.
    """

    def __init__(self, cells: CellModel, **options: Any) -> None:
        super().__init__(cells.model, **options)
        self._cells = cells
        edges = torch.linspace(0, 1, _GRID + 1, dtype=torch.float64)
        self._middle = (edges[1:] + edges[:-1]) / 2

    def sample(self, params: dict[str, Tensor]) -> dict[str, Tensor]:
        """Take a step in all parameters, then one in s and d."""
        state = dict(super().sample(params))
        region = self._cells.region
        assert self.transforms is not None  # since `setup`
        to_values = {name: transform.inv for name, transform in self.transforms.items()}
        values = {k: to_values[k](v) if k in to_values else v for k, v in state.items()}
        now = size_of(values["share"], region) * values["standard"]
        likelihood = self._cells.last_likelihood(values)
        mode, precision = _peak(likelihood, torch.zeros_like(now))
        sizes = size_of(self._middle, region)
        total = sizes[:, None] ** 2 + 1 / precision
        log = -0.5 * (total.log() + mode**2 / total).sum(1)
        cell = torch.multinomial(log.softmax(0), 1)[0]
        share = self._middle[cell] + (torch.rand((), dtype=now.dtype) - 0.5) / _GRID
        s = size_of(share, region)
        variance = 1 / (precision + s**-2)
        new = variance * precision * mode + variance.sqrt() * torch.randn_like(now)

        def surprise(change: Tensor) -> Tensor:
            """How much more likely than the Gaussian from which changes are proposed."""
            return likelihood(change)[0] + 0.5 * (precision * (change - mode) ** 2).sum()

        if torch.rand((), dtype=now.dtype).log() < surprise(new) - surprise(now):
            state["share"], state["standard"] = share.logit(), new / s
            self.clear_cache()
        return state


def _peak(likelihood: Likelihood, start: Tensor) -> tuple[Tensor, Tensor]:
    """Where each gene's likelihood is greatest, and its curvature there, by Newton's method."""
    at = start
    for _ in range(_NEWTON):
        _, slope, curvature = likelihood(at)
        at = at + (slope / curvature).clamp(-1, 1)
    return at, likelihood(at)[2]
