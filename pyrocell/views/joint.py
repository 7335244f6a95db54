"""Several views of one hidden state: each measures features of its own, in the cells that have it.

The features of all views are one axis, view after view. What is known of how a cell was measured
comes as one table, (cells, V + 1): its log depth in each view, −inf where the view was not
measured, and the batch, −1 for an average one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn
from torch.distributions import Distribution

from pyrocell.distributions import Start
from pyrocell.priors import Priors
from pyrocell.screen.feature_views import FeatureViews
from pyrocell.views.base import View

__all__ = ["JointCounts", "JointView"]


class JointView(View):
    """Views side by side; the sites of all but the first carry the view's name.

    Parameters
    ----------
    features
        Names of the views, and how many features each has.
    kinds
        (V,) what makes each view.
    n_latent, priors, composition, dropout
        As for one view; `composition` is that of the first.
    n_batches
        Batches.
    """

    usual: Tensor

    def __init__(
        self,
        features: FeatureViews,
        kinds: Sequence[Callable[..., View]],
        n_latent: int,
        priors: Priors,
        composition: bool,
        dropout: str,
        n_batches: int,
    ):
        super().__init__()
        self.features, self.composition = features, composition
        made = []
        every = zip(kinds, features.sizes, features.own_controls, strict=True)
        for i, (kind, size, controls) in enumerate(every):
            by_batch = getattr(kind, "by_batch", False)
            more = {"n_batches": n_batches, "controls": controls} if by_batch else {}
            shares = composition if i == 0 else True
            common = {"priors": priors, "composition": shares, "dropout": dropout}
            made.append(kind(n_genes=size, n_latent=n_latent, **common, **more))
        self.views = nn.ModuleList(made)
        self.before = ["", *(f"{name}." for name in features.names[1:])]
        # of each view, by what stands before: the names of its sites here, by those it knows
        self.names = {
            before: {site: self._named(site, before) for site in view.priors()}
            for view, before in zip(made, self.before, strict=True)
        }
        # log depth of a usual cell
        self.register_buffer("usual", torch.zeros(len(features)))

    @property
    def parts(self) -> list[tuple[View, slice, str]]:
        """Each view, its features, and what stands before the names of its sites."""
        every = zip(self.views, self.features.slices, self.before, strict=True)
        return [(cast("View", view), part, before) for view, part, before in every]

    @staticmethod
    def _named(site: str, before: str) -> str:
        return f"V.{before}{site.removeprefix('V.')}"

    def _own(self, values: dict[str, Tensor], before: str) -> dict[str, Tensor]:
        """Sites of a view under the names that it knows."""
        return {site: values[name] for site, name in self.names[before].items()}

    @property
    def dims(self) -> dict[str, tuple[str, ...]]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Names of the dimensions of sites; the features of a view have its name."""
        out = {}
        for view, _, before in self.parts:
            for site, dims in view.dims.items():
                one = before.rstrip(".") or self.features.names[0]
                named = tuple(one if dim == "gene" else dim for dim in dims)
                out[self._named(site, before)] = named
        return out

    @property
    def coords(self) -> dict[str, slice]:
        """The features of each view, by its name."""
        return dict(zip(self.features.names, self.features.slices, strict=True))

    @property
    def compositions(self) -> list[slice]:
        """Features whose expression sums to one in every cell."""
        return [part for view, part, _ in self.parts if view.compositions]

    @property
    def limits(self) -> tuple[np.ndarray, np.ndarray]:
        """Least and greatest change of log means with logits, (G,) each."""
        both = np.array([view.slopes for view, _, _ in self.parts])
        return self.features.spread(both[:, 0]), self.features.spread(both[:, 1])

    def prepare(self, mean: Tensor, low: Tensor, usual: Tensor) -> None:
        """Hand each view its own, and keep usual depths."""
        if len(usual) == len(self.usual):  # those of a file come with its tensors
            self.usual.copy_(usual)
        for view, part, _ in self.parts:
            view.prepare(mean[part], low[part], usual)

    def starting_logits(self, log_mean: Tensor) -> Tensor:
        """Those of each view."""
        return torch.cat([view.starting_logits(log_mean[part]) for view, part, _ in self.parts])

    # ------------------------------------------------------------------ sites
    def priors(self) -> dict[str, Distribution]:
        """Priors of the sites of all views."""
        return {
            self._named(site, before): prior
            for view, _, before in self.parts
            for site, prior in view.priors().items()
        }

    def starting_values(self, log_dispersion: Tensor) -> dict[str, Start]:
        """Starts of the sites of all views."""
        return {
            self._named(site, before): start
            for view, part, before in self.parts
            for site, start in view.starting_values(log_dispersion[part]).items()
        }

    # ------------------------------------------------------------------ counts
    def likelihood(
        self,
        values: dict[str, Tensor],
        logits: Tensor,
        log_size: Tensor,
        z: Tensor,
        offset: tuple[Tensor, Tensor] | None = None,
    ) -> JointCounts:
        """Counts of all views; `log_size` is the table of the module, (cells, V + 1).

        Means of a view that a cell lacks are those at its usual depth.
        """
        seen = torch.isfinite(log_size[:, :-1])
        depth = torch.where(seen, log_size[:, :-1], self.usual)  # of means that are asked for
        parts, sizes = [], self.features.sizes
        # split: the gradient of slices would be as many tables of zeros as there are views
        tables = [None] * len(sizes) if offset is None else offset[0].split(sizes, -1)
        each = zip(self.parts, logits.split(sizes, -1), tables, strict=True)
        for i, ((view, _, before), own_logits, table) in enumerate(each):
            own = None if offset is None or table is None else (table, offset[1])
            more = {"batch": log_size[:, -1]} if getattr(view, "by_batch", False) else {}
            mine = self._own(values, before)
            parts.append(view.likelihood(mine, own_logits, depth[:, i], z, own, **more))
        return JointCounts(parts, self.features, seen)

    def moments(
        self, values: dict[str, Tensor], log_mu: Tensor, z: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Mean and variance of counts; see `View.moments`."""
        found = [
            view.moments(self._own(values, before), log_mu[..., part], z)
            for view, part, before in self.parts
        ]
        mean, variance = (torch.cat(each, -1) for each in zip(*found, strict=True))
        return mean, variance

    def theta(self, values: dict[str, Tensor]) -> Tensor:
        """Inverse dispersions of all features, (G,)."""
        return torch.cat([view.theta(self._own(values, before)) for view, _, before in self.parts])

    def information(self, values: dict[str, Tensor], mean: Tensor, log_size: Tensor) -> Tensor:
        """That of each view, 0 in cells where it was not measured."""
        seen = torch.isfinite(log_size[:, :-1])
        found = []
        for i, (view, part, before) in enumerate(self.parts):
            own = view.information(self._own(values, before), mean[..., part], log_size[:, i])
            found.append(own * seen[:, i, None])
        return torch.cat(found, -1)

    @property
    def curved(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether any view is."""
        return any(view.curved for view, _, _ in self.parts)

    def logit_shift(self, shift: Tensor, slope: Tensor) -> Tensor:
        """That of each view."""
        return torch.cat(
            [view.logit_shift(shift[..., part], slope[part]) for view, part, _ in self.parts], -1
        )

    # ------------------------------------------------------------------ depths
    def log_depth(self, size_factor: float) -> Tensor:
        """(G,): of the first view as asked for, of the others as usual."""
        depth = self.usual.clone()
        depth[0] = float(np.log(size_factor))
        sizes = torch.tensor(self.features.sizes, device=depth.device)
        return depth.repeat_interleave(sizes)

    def depth_of(self, log_size: Tensor, size_factor: float | None) -> Tensor:
        """Of views that a cell lacks the usual one."""
        if size_factor is not None:
            return self.log_depth(size_factor).exp()
        depth = torch.where(torch.isfinite(log_size[:, :-1]), log_size[:, :-1], self.usual)
        sizes = torch.tensor(self.features.sizes, device=depth.device)
        return depth.exp().repeat_interleave(sizes, 1)

    def cell_depth(self, like: Tensor, size_factor: float) -> Tensor:
        """Table of cells that all views are measured in, in an average batch."""
        depth = self.usual.clone()
        depth[0] = float(np.log(size_factor))
        row = torch.cat([depth, depth.new_full((1,), -1.0)])
        return row.to(like).expand(len(like), -1)


class JointCounts(TorchDistribution):
    """Counts of several views, each in the cells that have it; batch (cells,), event (features,).

    Parameters
    ----------
    parts
        Distribution of the counts of each view.
    features
        Their features.
    seen
        (cells, V) whether a view was measured.
    """

    arg_constraints = {}  # pyright: ignore[reportAssignmentType]
    support = constraints.independent(  # pyright: ignore[reportAssignmentType]
        constraints.nonnegative_integer, 1
    )
    has_rsample = False

    def __init__(
        self, parts: Sequence[TorchDistribution], features: FeatureViews, seen: Tensor
    ) -> None:
        self.parts, self.features, self.seen = list(parts), features, seen
        self.whole = bool(seen.all())
        event = torch.Size([sum(features.sizes)])
        super().__init__(parts[0].batch_shape, event, validate_args=False)

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> JointCounts:
        """A distribution like it over a larger batch."""
        new = cast("JointCounts", self._get_checked_instance(type(self), _instance))
        new.__dict__.update(self.__dict__)
        new.parts = [part.expand(batch_shape) for part in self.parts]
        TorchDistribution.__init__(
            new, torch.Size(batch_shape), self.event_shape, validate_args=False
        )
        return new

    @property
    def mean(self) -> Tensor:
        """Mean counts, (..., cells, features), measured or not."""
        return torch.cat([part.mean for part in self.parts], -1)

    @property
    def variance(self) -> Tensor:
        """Variance of the counts, (..., cells, features)."""
        return torch.cat([part.variance for part in self.parts], -1)

    def sample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:
        """Draw counts, (*sample_shape, ..., cells, features); zero where there is no view."""
        drawn = []
        for i, part in enumerate(self.parts):
            counts = part.sample(torch.Size(sample_shape))
            drawn.append(counts * self.seen[:, i, None])
        return torch.cat(drawn, -1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log probability per cell, (..., cells), of counts, dense or in torch's CSR layout."""
        return self.by_view(value).sum(-1)

    def by_view(self, value: Tensor) -> Tensor:
        """Log probability of each view's counts, (..., cells, V); 0 where it was not measured."""
        found = []
        for i, (part, own) in enumerate(zip(self.parts, _columns(value, self.features))):
            log_p = part.log_prob(own)
            if not self.whole:
                log_p = torch.where(self.seen[:, i], log_p, torch.zeros_like(log_p))
            found.append(log_p)
        return torch.stack(found, -1)


def _columns(value: Tensor, features: FeatureViews) -> list[Tensor]:
    """Counts of each view; rows of CSR are in the order of their columns."""
    if value.layout == torch.strided:
        return [value[..., part] for part in features.slices]
    start, column, count = value.crow_indices(), value.col_indices(), value.values()
    if value.device.type == "cpu":
        from pyrocell.distributions.kernels.split_rows import split_rows  # loads numba

        return split_rows(value, features.sizes)
    out = []
    for part in features.slices:
        mine = (column >= part.start) & (column < part.stop)
        before = torch.cat([start.new_zeros(1), mine.cumsum(0)])
        own = torch.sparse_csr_tensor(
            before[start],
            column[mine] - part.start,
            count[mine],
            (len(start) - 1, part.stop - part.start),
            check_invariants=False,
        )
        out.append(own)
    return out
