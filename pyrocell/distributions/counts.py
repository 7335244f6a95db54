"""Negative binomial counts, with and without dropout, from logits and over sparse minibatches.

x ~ ZINB(μ, θ, dropout): a count is 0 with the probability of dropout, and otherwise negative
binomial with mean μ and variance μ + μ²/θ. The likelihood is that of the measurement view V.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from pyrocell.distributions._backends import automatic, chosen, compiled_likelihood, likelihood_path
from pyrocell.distributions.event_normal import broadcast
from pyrocell.distributions.kernels.counts_torch import (
    EntryLogProb,
    gate_curve,
    log_mean,
    log_zero_probability,
    reference_log_prob,
)

__all__ = [
    "NegativeBinomial",
    "ZeroInflatedNegativeBinomial",
    "compiled_likelihood",
    "likelihood_path",
    "with_offset",
]

MAX_LOG_THETA = 60.0  # beyond this either way, single precision is left to the general formula


def with_offset(logits: Tensor, offset: tuple[Tensor, Tensor] | None) -> Tensor:
    """Logits of cells (..., cells, genes) with rows of a table (R, genes) added to them.

    `offset` is the table and, for each cell, the rows of it (cells, n); None adds nothing.
    """
    if offset is None:
        return logits
    table, rows = offset
    return sum((table[row] for row in rows.unbind(1)), logits)


class _Counts(TorchDistribution):
    """What both families share: mean, inverse dispersion, and a gate that may be absent."""

    arg_constraints = {  # pyright: ignore[reportAssignmentType] a property of torch's
        "logits": constraints.real_vector,
        "log_theta": constraints.real_vector,
    }
    support = constraints.independent(  # pyright: ignore[reportAssignmentType] as above
        constraints.nonnegative_integer, 1
    )
    has_rsample = False

    log_theta: Tensor
    gate_intercept: Tensor | None = None
    gate_slope: Tensor | None = None
    gate_logits: Tensor | None = None
    log_size: Tensor | None
    composition: bool

    def __init__(
        self,
        logits: Tensor,
        log_theta: Tensor,
        log_size: Tensor | None,
        composition: bool,
        validate_args: bool | None,
        offset: tuple[Tensor, Tensor] | None,
    ) -> None:
        self._logits, self._offset, self.log_theta = logits, offset, log_theta
        self.log_size, self.composition = log_size, composition
        per_gene = [self.log_theta, self.gate_intercept, self.gate_slope, self.gate_logits]
        batches = [t.shape[:-1] for t in [logits, *per_gene] if t is not None]
        if log_size is not None:
            batches.append(log_size.shape)
        batch_shape = broadcast(*batches)
        super().__init__(batch_shape, logits.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> _Counts:
        """A distribution like it over a larger batch."""
        new = cast("_Counts", self._get_checked_instance(type(self), _instance))
        new.__dict__.update(self.__dict__)
        TorchDistribution.__init__(
            new, torch.Size(batch_shape), self.event_shape, validate_args=False
        )
        new._validate_args = self._validate_args
        return new

    @property
    def logits(self) -> Tensor:
        """Log relative expression, or log mean count, offset included, (..., cells, genes)."""
        return with_offset(self._logits, self._offset)

    @property
    def log_mu(self) -> Tensor:
        """Log mean count of what is not dropped, (..., cells, genes)."""
        log_mu = log_mean(self.logits, self.log_size, self.composition)
        return log_mu.expand(self.batch_shape + self.event_shape)

    def _gate(self, log_mu: Tensor) -> Tensor | None:
        """Logit of dropout, broadcastable to log μ."""
        if self.gate_intercept is not None:
            assert self.gate_slope is not None
            return gate_curve(log_mu, self.gate_intercept, self.gate_slope)
        return self.gate_logits

    @property
    def zero_probability(self) -> Tensor:
        """Probability of a zero count, (..., cells, genes)."""
        log_mu = self.log_mu
        return log_zero_probability(log_mu, self.log_theta, self._gate(log_mu)).exp()

    @property
    def mean(self) -> Tensor:
        """Mean count, dropout included, (..., cells, genes)."""
        log_mu = self.log_mu
        gate = self._gate(log_mu)
        return log_mu.exp() if gate is None else log_mu.exp() * torch.sigmoid(-gate)

    @property
    def variance(self) -> Tensor:
        """Variance of the counts, dropout included, (..., cells, genes)."""
        log_mu = self.log_mu
        gate, mu = self._gate(log_mu), log_mu.exp()
        extra = torch.exp(-self.log_theta)  # variance per squared mean
        if gate is None:
            return mu * (1 + mu * extra)
        return mu * torch.sigmoid(-gate) * (1 + mu * (extra + torch.sigmoid(gate)))

    def sample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:
        """Draw counts, (*sample_shape, ..., cells, genes)."""
        shape = torch.Size(sample_shape) + self.batch_shape + self.event_shape
        with torch.no_grad():
            log_mu = self.log_mu
            gate = self._gate(log_mu)
            theta = self.log_theta.exp()
            rate = torch.distributions.Gamma(theta.expand(shape), 1.0).sample() / theta
            counts = torch.poisson(rate * log_mu.exp())
            if gate is not None:
                counts *= torch.rand_like(counts) >= torch.sigmoid(gate)
        return counts

    def log_prob(self, value: Tensor) -> Tensor:
        """Log probability per cell, (..., cells).

        Parameters
        ----------
        value
            Counts, (..., cells, genes), dense, or (cells, genes) in torch's CSR layout; of any
            number type.

        Raises
        ------
        ValueError
            If the shape does not fit, or, where arguments are validated, if a count is negative or
            not whole.
        """
        if self._validate_args:
            self._validate_sample(value)
        shape = self._whole_shape(value)
        path = self._choose_path(value)
        if path == "rows" and self._fits_rows():
            out = self._by_rows(value, shape)
            if bool(torch.isfinite(out.detach()).all()):  # else out of the kernel's range
                return out
        log_mu = self.log_mu.expand(shape)
        if path == "reference":
            x = value if value.layout == torch.strided else value.to_dense()
            return reference_log_prob(log_mu, self.log_theta, self._gate(log_mu), x)
        return self._by_entries(value, log_mu, path == "compiled")

    def _choose_path(self, value: Tensor) -> str:
        path = chosen()
        if path != "auto":
            return path
        parameters = self._parameters()
        double = any(t.dtype == torch.float64 for t in parameters)
        return automatic(double, all(t.device.type == "cpu" for t in (value, *parameters)))

    def _parameters(self) -> list[Tensor]:
        names = ("log_theta", "gate_intercept", "gate_slope", "gate_logits", "log_size")
        found = [self._logits, *(t for n in names if (t := getattr(self, n)) is not None)]
        return found if self._offset is None else [*found, self._offset[0]]

    def _fits_rows(self) -> bool:
        """Whether the kernel may be asked: single precision, parameters finite and per gene."""
        curve = [t for t in (self.gate_intercept, self.gate_slope) if t is not None]
        per_gene = [self.log_theta, *curve]
        gates = curve if self.gate_logits is None else [self.gate_logits]
        return (
            all(t.dtype == torch.float32 for t in self._parameters())
            and all(t.dim() == 1 or t.shape[-2] == 1 for t in per_gene)
            and bool((self.log_theta.detach().abs() <= MAX_LOG_THETA).all())
            and all(bool(torch.isfinite(t.detach()).all()) for t in gates)
        )

    def _by_rows(self, value: Tensor, shape: torch.Size) -> Tensor:
        """The kernel over CSR rows, once for every leading sample dimension."""
        from pyrocell.distributions.kernels.counts_autograd import RowLogProb  # loads numba

        matrix = torch.Size((1, *shape)[-2:])
        lead = shape[:-2]
        log_size = self._logits.new_zeros(()) if self.log_size is None else self.log_size
        logits, offset = self._logits, self._offset
        if lead or offset is None or logits.shape != matrix:
            logits = self.logits
            none = torch.zeros(matrix[0], 0, dtype=torch.long)
            offset = logits.new_zeros(0, matrix[1]), none

        def part(t: Tensor | None, index: tuple[int, ...], event: torch.Size) -> Tensor | None:
            return None if t is None else t.expand(lead + event)[index]

        def per_gene(t: Tensor | None, index: tuple[int, ...]) -> Tensor | None:
            row = t if t is None or t.dim() > 1 else t[None]
            row = part(row, index, torch.Size((1, shape[-1])))
            return None if row is None else row[0]

        shared = value.dim() <= 2
        counts = _compressed(value, matrix) if shared else None
        parts = []
        for index in np.ndindex(*lead):
            parts.append(
                RowLogProb.apply(
                    part(logits, index, matrix),
                    per_gene(self.log_theta, index),
                    per_gene(self.gate_intercept, index),
                    per_gene(self.gate_slope, index),
                    part(self.gate_logits, index, matrix),
                    part(log_size, index, matrix[:1]),
                    *offset,
                    self.composition,
                    *(counts or _compressed(value.expand(shape)[index], matrix)),
                )
            )
        return torch.stack(parts).reshape(shape[:-1])

    def _by_entries(self, value: Tensor, log_mu: Tensor, compiled: bool) -> Tensor:
        """Torch operations with the gradient written out."""
        shape, gate, log_theta = log_mu.shape, self._gate(log_mu), self.log_theta
        if value.dim() > 2 or len(shape) == 1:  # every sample has counts of its own: more rows
            rows = torch.Size((shape[:-1].numel(), shape[-1]))
            value = value.expand(shape).reshape(rows)
            log_mu = log_mu.reshape(rows)
            log_theta = log_theta if log_theta.dim() == 1 else log_theta.expand(shape).reshape(rows)
            gate = None if gate is None else gate.expand(shape).reshape(rows)
        start, column, count = _compressed(value, log_mu.shape[-2:])
        cells = torch.arange(len(start) - 1, device=start.device)
        row = torch.repeat_interleave(cells, start.diff(), output_size=len(column))
        seen = count > 0
        if not bool(seen.all()):
            row, column, count = row[seen], column[seen], count[seen]
        entries = log_mu, log_theta, gate, row, column, count
        return EntryLogProb.apply(*entries, compiled).reshape(shape[:-1])

    def _whole_shape(self, value: Tensor) -> torch.Size:
        """Shape of the answer before genes are summed over."""
        if value.shape[-1:] == self.event_shape:
            try:
                return broadcast(self.batch_shape + self.event_shape, value.shape)
            except RuntimeError:
                pass
        raise ValueError(
            f"counts of shape {tuple(value.shape)} do not fit a distribution over "
            f"{tuple(self.batch_shape)} cells of {self.event_shape[0]} genes; pass all genes of "
            "the cells in this minibatch"
        )

    def _validate_sample(self, value: Tensor) -> None:
        counts = value if value.layout == torch.strided else value.values()
        wrong = counts < 0
        if counts.is_floating_point():
            wrong |= counts != counts.round()
        if bool(wrong.any()):
            raise ValueError(
                f"x contains {counts[wrong][0].item():g}, which is not a count; pass raw counts, "
                "neither normalised nor log-transformed"
            )


def _compressed(x: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor, Tensor]:
    """Row starts, columns and values of counts, (cells, G), dense or CSR; dense may broadcast."""
    if x.layout == torch.sparse_csr:
        start, column, count = x.crow_indices(), x.col_indices(), x.values()
        fits = (start.diff() <= shape[-1]).all()
        if len(column):
            fits &= (column.min() >= 0) & (column.max() < shape[-1])
        if len(start) != shape[0] + 1 or not bool(fits):
            raise ValueError(
                f"x is not a valid CSR matrix of {shape[0]} cells by {shape[1]} genes; build it "
                "from a scipy.sparse.csr_matrix after sum_duplicates()"
            )
        return start.long(), column.long(), count.float()
    x = x.expand(shape)
    row, column = x.nonzero(as_tuple=True)
    start = torch.zeros(shape[0] + 1, dtype=torch.long, device=x.device)
    start[1:] = torch.bincount(row, minlength=shape[0]).cumsum(0)
    return start, column, x[row, column].float()


class NegativeBinomial(_Counts):
    """Negative binomial counts of cells by genes.

    Batch shape (cells,), event shape (genes,); leading sample dimensions are allowed.

    Parameters
    ----------
    logits
        (cells, genes) log relative expression where `composition`, else log mean count.
    log_theta
        (genes,) log inverse dispersion: the variance is μ + μ²/θ.
    log_size
        (cells,) log size factor, added to the log mean; none is 0.
    composition
        Whether μ = exp(log_size) · softmax(logits), so that a cell's means sum to its size.
    offset
        (R, genes) table and (cells, n) rows of it that are added to the logits of each cell.
    """

    def __init__(
        self,
        logits: Tensor,
        log_theta: Tensor,
        log_size: Tensor | None = None,
        composition: bool = True,
        validate_args: bool | None = None,
        offset: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        super().__init__(logits, log_theta, log_size, composition, validate_args, offset)


class ZeroInflatedNegativeBinomial(_Counts):
    """Negative binomial counts of cells by genes, some of them dropped to zero.

    Batch shape (cells,), event shape (genes,); leading sample dimensions are allowed. The logit of
    the dropout probability is gate_intercept + gate_slope · log μ, or given entry by entry.

    Parameters
    ----------
    logits
        (cells, genes) log relative expression where `composition`, else log mean count.
    log_theta
        (genes,) log inverse dispersion: the variance before dropout is μ + μ²/θ.
    gate_intercept, gate_slope
        (genes,) the dropout curve in log μ.
    gate_logits
        (cells, genes) logits of dropout, instead of the curve.
    log_size
        (cells,) log size factor, added to the log mean; none is 0.
    composition
        Whether μ = exp(log_size) · softmax(logits), so that a cell's means sum to its size.
    offset
        (R, genes) table and (cells, n) rows of it that are added to the logits of each cell.

    Raises
    ------
    ValueError
        Unless exactly one of the curve and `gate_logits` is given.
    """

    def __init__(
        self,
        logits: Tensor,
        log_theta: Tensor,
        gate_intercept: Tensor | None = None,
        gate_slope: Tensor | None = None,
        gate_logits: Tensor | None = None,
        log_size: Tensor | None = None,
        composition: bool = True,
        validate_args: bool | None = None,
        offset: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        curve = [gate_intercept is not None, gate_slope is not None]
        if curve != [gate_logits is None] * 2:
            raise ValueError(
                "dropout needs either gate_intercept and gate_slope or gate_logits alone; "
                "for counts without dropout use NegativeBinomial"
            )
        self.gate_intercept, self.gate_slope = gate_intercept, gate_slope
        self.gate_logits = gate_logits
        super().__init__(logits, log_theta, log_size, composition, validate_args, offset)
