"""V for RNA: counts with dropout, the zero-inflated negative binomial (section 3, App. B.1).

A count is zero with the probability of dropout, and otherwise negative binomial with mean μ and
inverse dispersion θ (variance μ + μ²/θ). Everything is on the log or logit scale.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, softplus

from pyrocell.distributions import (
    EventLogNormal,
    EventNormal,
    NegativeBinomial,
    Start,
    ZeroInflatedNegativeBinomial,
)
from pyrocell.priors import Priors
from pyrocell.views.base import View

__all__ = [
    "RNAView",
    "count_variance",
    "dropout_logits",
    "mean_counts",
    "pseudobulk",
    "zero_probability",
]


class RNAView(View):
    """Counts of RNA: negative binomial, with dropout or without.

    Parameters
    ----------
    n_genes, n_latent
        G and d.
    priors
        Those of log θ and of the line of dropout.
    composition
        Whether expression is a share of all counts of a cell.
    dropout
        "curve": a line in the log mean; "cell": linear in the cell's state, free per gene.
    zero_inflated
        Whether there is dropout.
    """

    dims = {"V.dispersion": ("gene",), "V.gate": ("gene", "gate")}
    one: Tensor

    def __init__(
        self,
        n_genes: int,
        n_latent: int,
        priors: Priors,
        composition: bool,
        dropout: str,
        zero_inflated: bool = True,
    ):
        super().__init__()
        self.n_genes, self.composition, self.scales = n_genes, composition, priors
        self.zero_inflated, self.by_cell = zero_inflated, dropout == "cell"
        self.register_buffer("one", torch.ones(()), persistent=False)
        if self.by_cell:
            self.gate_loading = nn.Parameter(torch.zeros(n_latent, n_genes))

    def priors(self) -> dict[str, EventNormal | EventLogNormal]:
        """θ and, with dropout, its intercept and slope, by gene."""
        p, one, g = self.scales, self.one, self.n_genes
        dispersion = EventLogNormal(p.dispersion_loc * one, p.dispersion_sd * one, (g,))
        out: dict[str, EventNormal | EventLogNormal] = {"V.dispersion": dispersion}
        if self.zero_inflated:
            loc, sd = (_numbers(one, pair) for pair in (p.gate_loc, p.gate_sd))
            out["V.gate"] = EventNormal(loc.expand(g, 2), sd)
        return out

    def starting_values(self, log_dispersion: Tensor) -> dict[str, Start]:
        """θ by moments, dropout at its prior."""
        out = {"V.dispersion": Start(log_dispersion, torch.tensor(0.1), positive=True)}
        if self.zero_inflated:
            centre = torch.tensor(self.scales.gate_loc).expand(self.n_genes, 2)
            out["V.gate"] = Start(centre, torch.tensor([0.5, 0.1]))
        return out

    def likelihood(
        self,
        values: dict[str, Tensor],
        logits: Tensor,
        log_size: Tensor,
        z: Tensor,
        offset: tuple[Tensor, Tensor] | None = None,
    ) -> NegativeBinomial | ZeroInflatedNegativeBinomial:
        """Negative binomial counts, zero-inflated or not; see `View.likelihood`."""
        log_theta = values["V.dispersion"].log()
        common = {"log_size": log_size, "composition": self.composition, "offset": offset}
        if not self.zero_inflated:
            return NegativeBinomial(logits, log_theta, **common)
        intercept, slope = values["V.gate"].unbind(-1)
        if self.by_cell:
            gate = intercept + z @ self.gate_loading
            return ZeroInflatedNegativeBinomial(logits, log_theta, gate_logits=gate, **common)
        return ZeroInflatedNegativeBinomial(logits, log_theta, intercept, slope, **common)

    def moments(
        self, values: dict[str, Tensor], log_mu: Tensor, z: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Mean and variance of counts, dropout included; see `View.moments`."""
        gate = self._gate(values, log_mu, z)
        log_theta = values["V.dispersion"].log()
        return mean_counts(log_mu, gate), count_variance(log_mu, log_theta, gate)

    def _gate(self, values: dict[str, Tensor], log_mu: Tensor, z: Tensor) -> Tensor | None:
        if not self.zero_inflated:
            return None
        intercept, slope = values["V.gate"].unbind(-1)
        if self.by_cell:
            return (intercept + z @ self.gate_loading)[:, None].expand_as(log_mu)
        return dropout_logits(log_mu, intercept, slope)

    def theta(self, values: dict[str, Tensor]) -> Tensor:
        """θ of each gene, (G,)."""
        return values["V.dispersion"]


def _numbers(like: Tensor, values: tuple[float, ...]) -> Tensor:
    """Numbers on a tensor's device, written there: to copy them would be to wait for it."""
    return torch.stack([like.new_full((), value) for value in values])


def dropout_logits(log_mu: Tensor, intercept: Tensor | float, slope: Tensor | float) -> Tensor:
    """Logit of the probability of dropout, a line in log μ.

    Parameters
    ----------
    log_mu
        Log mean before dropout; shape (..., G).
    intercept, slope
        Per gene; shape (G,). Below zero the slope says what App. B.1 does: detection is biased
        towards highly expressed genes.
    """
    return intercept + slope * log_mu


def mean_counts(log_mu: Tensor, gate_logits: Tensor | None = None) -> Tensor:
    """Mean count, dropout included; shapes broadcast, no dropout when `gate_logits` is None."""
    return torch.exp(log_mu + _log_kept(log_mu, gate_logits))


def count_variance(log_mu: Tensor, log_theta: Tensor, gate_logits: Tensor | None = None) -> Tensor:
    """Variance of a count, dropout included.

    Parameters
    ----------
    log_mu
        Log mean before dropout; shape (..., G).
    log_theta
        Log inverse dispersion; shape (G,).
    gate_logits
        Logit of dropout π; shape (..., G). None: no dropout.

    Notes
    -----
    (1 - π) μ (1 + μ (1/θ + π)).
    """
    mu = log_mu.exp()
    log_kept = _log_kept(log_mu, gate_logits)
    dropped = -torch.expm1(log_kept)
    return torch.exp(log_mu + log_kept) * (1 + mu * (torch.exp(-log_theta) + dropped))


def zero_probability(
    log_mu: Tensor, log_theta: Tensor, gate_logits: Tensor | None = None
) -> Tensor:
    """Probability of a zero; arguments as in :func:`count_variance`.

    π + (1 - π) (1 + μ/θ)^(-θ), which goes to π + (1 - π) exp(-μ) in the Poisson limit.
    """
    log_zero = -log_theta.exp() * softplus(log_mu - log_theta)  # of the negative binomial
    log_kept = _log_kept(log_mu, gate_logits)
    return -torch.expm1(log_kept) + torch.exp(log_kept + log_zero)


def _log_kept(log_mu: Tensor, gate_logits: Tensor | None) -> Tensor:
    """Log probability of no dropout."""
    return torch.zeros_like(log_mu) if gate_logits is None else logsigmoid(-gate_logits)


def pseudobulk(
    mean: np.ndarray, variance: np.ndarray, cells: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Mean count of n cells: a negative binomial total with the sum's mean and variance."""
    n = cells[:, None]
    total, spread = n * mean, n * variance
    excess = np.maximum(spread - total, 1e-9 * total + 1e-12)
    shape = total**2 / excess
    return rng.poisson(rng.gamma(shape, total / shape)) / n
