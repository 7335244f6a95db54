"""V for surface proteins: antibody counts, background and foreground (after totalVI).

A protein's count is background where no antibody is bound, and otherwise background and foreground
together; either is negative binomial. The state moves the foreground alone. Background differs
between proteins and, since what floats in a lane and sticks to cells is the lane's own, between
batches.

Source: Gayoso et al. (2021), the generative idea; the likelihood is written anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.nn.functional import softplus

from pyrocell.distributions import EventLogNormal, EventNormal, Start
from pyrocell.distributions.counts import with_offset
from pyrocell.priors import Priors
from pyrocell.views.base import View

__all__ = ["AntibodyCounts", "ProteinView"]

_BACKGROUND_SD, _BATCH_SD = 1.0, 0.5
_LEAST_LEFT = 0.02  # of the foreground, however far a mean is said to fall
_GATE_LOC, _GATE_SD = (-3.0, -1.0), (1.5, 0.5)
_BACKGROUND_SHARE = (0.02, 0.9)  # of the mean, between which background starts
_LEAST_FOREGROUND = 0.1  # of the mean, at the start
_NOTHING_BOUND = 30.0  # logit of being background alone, of isotype controls


class ProteinView(View):
    """Antibody counts.

    Sites: `V.background` (G,) log mean background; `V.background_batch` (B, G) what it differs by
    in each batch, its mean over batches zero; `V.background_dispersion` and `V.dispersion` (G,)
    inverse dispersions without and with foreground; `V.gate` (G, 2) the logit of a cell's being
    background although its state says foreground: a line in the log ratio of foreground to
    background.

    Parameters
    ----------
    n_genes, n_latent
        Proteins, and d.
    priors
        That of log θ.
    composition
        Not used: antibodies do not compete for reads with each other in the way that transcripts
        do, and a cell's depth is part of its state.
    dropout
        Not used.
    n_batches
        Batches that background is told apart in.
    controls
        Positions of isotype controls, which bind nothing: their counts are background alone. What
        batches do to their background on average they do to that of all, and the others'
        `V.background_batch` is what they differ from it by.
    """

    dims = {
        "V.background": ("gene",),
        "V.background_batch": ("batch", "gene"),
        "V.background_dispersion": ("gene",),
        "V.dispersion": ("gene",),
        "V.gate": ("gene", "gate"),
    }
    composition = False
    depth = "one"
    by_batch = True
    slopes = (0.05, 1.0)  # the share of foreground in the mean
    curved = True
    one: Tensor
    centre: Tensor
    binds: Tensor

    def __init__(
        self,
        n_genes: int,
        n_latent: int,
        priors: Priors,
        composition: bool = False,
        dropout: str = "curve",
        n_batches: int = 1,
        controls: Sequence[int] = (),
    ):
        super().__init__()
        self.n_genes, self.n_batches, self.scales = n_genes, n_batches, priors
        self.register_buffer("one", torch.ones(()), persistent=False)
        self.register_buffer("centre", torch.zeros(n_genes))  # of log background
        binds = torch.ones(n_genes)
        binds[list(controls)] = 0.0
        self.controls = list(controls)
        self.register_buffer("binds", binds, persistent=False)

    def prepare(self, mean: Tensor, low: Tensor, usual: Tensor) -> None:
        """Centre the prior of background at the low end of the counts."""
        least, most = _BACKGROUND_SHARE
        low = low.clamp(least * mean + 1e-3, most * mean + 1e-3)
        self.centre.copy_(torch.where(self.binds > 0, low, mean + 1e-3).log())

    def starting_logits(self, log_mean: Tensor) -> Tensor:
        """What foreground adds to background."""
        mean = log_mean.exp()
        return (mean - self.centre.exp()).clamp_min(_LEAST_FOREGROUND * mean).log()

    def priors(self) -> dict[str, EventNormal | EventLogNormal]:
        """Background, dispersions and gate."""
        p, one, g = self.scales, self.one, (self.n_genes,)
        out: dict[str, EventNormal | EventLogNormal] = {
            "V.background": EventNormal(self.centre, _BACKGROUND_SD * one),
            "V.background_dispersion": EventLogNormal(1.0 * one, p.dispersion_sd * one, g),
            "V.dispersion": EventLogNormal(1.0 * one, p.dispersion_sd * one, g),
            "V.gate": EventNormal(
                one.new_tensor(_GATE_LOC).expand(*g, 2), one.new_tensor(_GATE_SD)
            ),
        }
        if self.n_batches > 1:
            shape = (self.n_batches, self.n_genes)
            out["V.background_batch"] = EventNormal(None, _BATCH_SD * one, shape)
        return out

    def starting_values(self, log_dispersion: Tensor) -> dict[str, Start]:
        """Background at the counts' low end, dispersions near those by moments."""
        gate = torch.tensor(_GATE_LOC).expand(self.n_genes, 2)
        out = {
            "V.background": Start(self.centre.clone(), torch.tensor(0.1)),
            "V.background_dispersion": Start(
                torch.full((self.n_genes,), 1.0), torch.tensor(0.1), positive=True
            ),
            "V.dispersion": Start(log_dispersion.clamp_min(1.0), torch.tensor(0.1), positive=True),
            "V.gate": Start(gate, torch.tensor([0.3, 0.1])),
        }
        if self.n_batches > 1:
            zeros = torch.zeros(self.n_batches, self.n_genes)
            out["V.background_batch"] = Start(zeros, torch.tensor(0.1))
        return out

    def background(self, values: dict[str, Tensor], batch: Tensor | None = None) -> Tensor:
        """Log mean background, (G,), or (cells, G) of cells of batches (cells,), -1 the average."""
        common = values["V.background"]
        if batch is None or self.n_batches == 1:
            return common
        table = values["V.background_batch"]
        table = table - table.mean(0)
        if self.controls:
            table = table + table[:, self.controls].mean(1, keepdim=True) * self.binds
        table = torch.cat([table, torch.zeros_like(table[:1])])  # row -1
        return common + table[batch.long()]

    def likelihood(
        self,
        values: dict[str, Tensor],
        logits: Tensor,
        log_size: Tensor,
        z: Tensor,
        offset: tuple[Tensor, Tensor] | None = None,
        batch: Tensor | None = None,
    ) -> AntibodyCounts:
        """Mixture of background and foreground; `batch` (cells,), -1 the average of batches."""
        logits = with_offset(logits, offset)
        low = self.background(values, batch)
        return AntibodyCounts(
            low.expand_as(logits),
            logits,
            self._gate(values, logits, low),
            values["V.background_dispersion"].log(),
            values["V.dispersion"].log(),
        )

    def _gate(self, values: dict[str, Tensor], log_fore: Tensor, low: Tensor) -> Tensor:
        """Logit of being background."""
        intercept, slope = values["V.gate"].unbind(-1)
        gate = intercept + slope * (log_fore - low).clamp(-8.0, 8.0)
        return gate + _NOTHING_BOUND * (1 - self.binds) if self.controls else gate

    def moments(
        self, values: dict[str, Tensor], log_mu: Tensor, z: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Mean and variance of counts, background included; see `View.moments`."""
        low = self.background(values)
        gate = self._gate(values, log_mu, low)
        counts = AntibodyCounts(
            low.expand_as(log_mu),
            log_mu,
            gate,
            values["V.background_dispersion"].log(),
            values["V.dispersion"].log(),
        )
        return counts.mean, counts.variance

    def information(self, values: dict[str, Tensor], mean: Tensor, log_size: Tensor) -> Tensor:
        """Fisher information of log foreground, about: what is background tells nothing of it."""
        share = (1 - self.background(values).exp() / mean).clamp(0.0, 1.0)
        return share.square() * mean / (1 + mean / self.theta(values))

    def logit_shift(self, shift: Tensor, slope: Tensor) -> Tensor:
        """See `View.logit_shift`: background stays, and foreground alone moves the mean.

        With a share w of foreground at rest the mean is 1 − w + w exp(x) times that at rest, and a
        straight line would have it exp(w x).
        """
        mean = torch.exp((slope * shift).clamp(-20.0, 20.0))
        left = (mean - 1 + slope).clamp_min(_LEAST_LEFT * slope)
        return torch.where(slope < 1, (left / slope).log(), shift)

    def theta(self, values: dict[str, Tensor]) -> Tensor:
        """θ of each protein where there is foreground, (G,)."""
        return values["V.dispersion"]


class AntibodyCounts(TorchDistribution):
    """Negative binomial background, or background and foreground: a mixture.

    Batch shape (cells,), event shape (proteins,).

    Parameters
    ----------
    log_low, log_fore
        (cells, proteins) log mean of background, and of what foreground adds to it.
    gate
        (cells, proteins) logit of background alone.
    log_theta_low, log_theta
        (proteins,) log inverse dispersions of background, and of both.
    """

    arg_constraints = {  # pyright: ignore[reportAssignmentType]
        "log_fore": constraints.real_vector
    }
    support = constraints.independent(  # pyright: ignore[reportAssignmentType]
        constraints.nonnegative_integer, 1
    )
    has_rsample = False

    def __init__(
        self,
        log_low: Tensor,
        log_fore: Tensor,
        gate: Tensor,
        log_theta_low: Tensor,
        log_theta: Tensor,
        validate_args: bool | None = None,
    ) -> None:
        self.log_low, self.log_fore, self.gate = log_low, log_fore, gate
        self.log_theta_low, self.log_theta = log_theta_low, log_theta
        shape = torch.broadcast_shapes(log_low.shape, log_fore.shape)
        super().__init__(shape[:-1], shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> AntibodyCounts:
        """A distribution like it over a larger batch."""
        new = cast("AntibodyCounts", self._get_checked_instance(type(self), _instance))
        new.__dict__.update(self.__dict__)
        TorchDistribution.__init__(
            new, torch.Size(batch_shape), self.event_shape, validate_args=False
        )
        return new

    @property
    def log_high(self) -> Tensor:
        """Log mean of background and foreground together."""
        return torch.logaddexp(self.log_low, self.log_fore)

    @property
    def mean(self) -> Tensor:
        """Mean count, (..., cells, proteins)."""
        return self.log_low.exp() + torch.sigmoid(-self.gate) * self.log_fore.exp()

    @property
    def variance(self) -> Tensor:
        """Variance of the counts, (..., cells, proteins)."""
        low, high, share = self.log_low.exp(), self.log_high.exp(), torch.sigmoid(-self.gate)
        second_low = low + low.square() * (1 + torch.exp(-self.log_theta_low))
        second_high = high + high.square() * (1 + torch.exp(-self.log_theta))
        return (1 - share) * second_low + share * second_high - self.mean.square()

    def sample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:
        """Draw counts, (*sample_shape, ..., cells, proteins)."""
        shape = torch.Size(sample_shape) + self.batch_shape + self.event_shape
        with torch.no_grad():
            bound = torch.rand(shape, device=self.gate.device) >= torch.sigmoid(self.gate)
            mu = torch.where(bound, self.log_high.exp(), self.log_low.exp())
            theta = torch.where(bound, self.log_theta.exp(), self.log_theta_low.exp())
            rate = torch.distributions.Gamma(theta, torch.ones_like(theta)).sample() / theta
            return torch.poisson(rate * mu)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log probability per cell, (..., cells), of counts, dense or in torch's CSR layout."""
        return self.by_protein(value).sum(-1)

    def by_protein(self, value: Tensor) -> Tensor:
        """Log probability of every count, (..., cells, proteins)."""
        x = value if value.layout == torch.strided else value.to_dense()
        x = x.to(self.log_fore.dtype)
        return cast(
            "Tensor",
            _LogProb.apply(
                x, self.log_low, self.log_fore, self.gate, self.log_theta_low, self.log_theta
            ),
        )


class _LogProb(torch.autograd.Function):
    """Log probability of antibody counts; the value and its gradient share all that is costly."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, low: Tensor, fore: Tensor, gate: Tensor, a: Tensor, b: Tensor
    ) -> Tensor:
        """The value; parameters as in `AntibodyCounts`."""
        bound = torch.sigmoid(fore - low)  # share of foreground in the mean where there is any
        high = low + softplus(fore - low)
        background, of_low, of_a = _negative_binomial(x, low, a)
        both, of_high, of_b = _negative_binomial(x, high, b)
        odds = gate + background - both
        share = torch.sigmoid(odds)  # that this count is of background alone
        total = both.sub_(softplus(gate)).add_(softplus(odds)).sub_(torch.lgamma(x + 1))
        of_high.mul_(1 - share)
        of_fore = of_high * bound
        of_low.mul_(share).add_(of_high).sub_(of_fore)
        of_gate = share - torch.sigmoid(gate)
        ctx.save_for_backward(of_low, of_fore, of_gate, of_a.mul_(share), of_b.mul_(1 - share))
        ctx.shapes = [t.shape for t in (low, fore, gate, a, b)]
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of everything but the counts."""
        whole = zip(ctx.saved_tensors, ctx.shapes, strict=True)
        return None, *((grad * slope).sum_to_size(shape) for slope, shape in whole)


def _negative_binomial(
    x: Tensor, log_mu: Tensor, log_theta: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Log probability of counts without their factorial, and slopes in log mean and log theta."""
    theta = log_theta.exp()
    u, total = log_mu - log_theta, x + theta
    high = softplus(u)
    value = torch.lgamma(total).sub_(torch.lgamma(theta))
    value.add_(x * u).sub_(total * high)
    pulled = torch.sigmoid(u).mul_(total)
    of_theta = torch.digamma(total).sub_(torch.digamma(theta)).mul_(theta)
    of_theta.sub_(x).sub_(high.mul_(theta)).add_(pulled)
    return value, x - pulled, of_theta
