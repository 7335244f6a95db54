"""Choices that fix the shape of a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from pyrocell.errors import ScreenError
from pyrocell.generative.effects import EFFECT_PRIORS
from pyrocell.operators.dynamics import DYNAMICS
from pyrocell.screen.feature_views import FeatureViews, places_of
from pyrocell.views import VIEWS

__all__ = [
    "ModelConfig",
    "check_options",
    "gather_nodes",
    "number_arms",
]

_FEW_SLOTS = 4  # drivers of a condition, up to which their nodes are looked up one by one


@dataclass(frozen=True)
class ModelConfig:
    """Choices that fix the shape of the model; saved with it."""

    n_latent: int = 10
    n_response: int = 8
    dynamics: str = "relaxation"
    lipschitz: float | None = 0.9
    likelihood: str = "zinb"
    gene_residual: bool = True
    interactions: bool = False
    composition: bool = True
    n_hidden: int = 128
    n_covariates: int = 0
    content_dependent_noise: bool = False
    dropout: str = "curve"
    decoder: str = "curved"
    assume: Sequence[dict] = ()  # fields of each `Assume`
    effect_prior: str = "normal"
    objective: dict | None = None  # fields of a `DistributionObjective`
    # name, kind and size of each, where there are several, and controls among its features
    views: Sequence[dict] = ()

    @property
    def features(self) -> FeatureViews | None:
        """Views of the features; None where there is one."""
        if not self.views:
            return None
        names, sizes = ([view[key] for view in self.views] for key in ("name", "size"))
        parts = zip(self.views, places_of(sizes), strict=True)
        controls = tuple(part.start + c for view, part in parts for c in view.get("controls", ()))
        return FeatureViews(tuple(names), tuple(sizes), controls)


def check_options(config: ModelConfig) -> None:
    """Raise unless the shape of the model is one that there is."""
    choices = {
        "dynamics": tuple(DYNAMICS),
        "effect_prior": tuple(EFFECT_PRIORS),
        "likelihood": tuple(VIEWS),
        "dropout": ("curve", "cell"),
        "decoder": ("curved", "linear"),
    }
    for name, known in choices.items():
        if (value := getattr(config, name)) not in known:
            raise ScreenError(f'{name}="{value}" is not one of {", ".join(known)}')
    for name, least in (("n_latent", 1), ("n_response", 0), ("n_hidden", 1)):
        if (value := getattr(config, name)) < least or value != int(value):
            raise ScreenError(f"{name}={value} must be at least {least}, and a whole number")
    if config.objective is not None and DYNAMICS[config.dynamics].integrated == "states":
        raise ScreenError(
            f'dynamics="{config.dynamics}" moves the resting states that objective= compares; '
            "leave one of the two out"
        )
    if config.lipschitz is not None and not config.lipschitz > 0:
        raise ScreenError(f"lipschitz={config.lipschitz} must be above zero, or None for no bound")


def gather_nodes(weight: Tensor, walk: Tensor, time_index: Tensor) -> Tensor:
    """Σ_k weight[c, k] walk[k, time_index[c]] without touching drivers that a condition lacks."""
    slots = int((weight != 0).sum(1).max()) if weight.numel() else 0
    if slots == 0:
        return walk.new_zeros(len(weight), walk.shape[-1])
    if slots == 1 and not weight.requires_grad:  # plain rows of the walk, and none for some
        where, driver = (weight != 0).nonzero(as_tuple=True)
        row = driver * walk.shape[1] + time_index[where]
        nodes, amount = walk.flatten(0, 1), weight[where, driver]
        look = row.device.type == "cpu"  # elsewhere to wait for the answer costs more than it saves
        if not (look and torch.equal(row, torch.arange(len(nodes)))):
            nodes = nodes.index_select(0, row)
        if not (look and bool((amount == 1).all())):
            nodes = amount[:, None] * nodes
        return walk.new_zeros(len(weight), walk.shape[-1]).index_copy_(0, where, nodes)
    if slots > _FEW_SLOTS:  # a sparse product: cells with many guides share few nodes
        where, driver = (weight != 0).nonzero(as_tuple=True)
        start = torch.searchsorted(where, torch.arange(len(weight), device=where.device))
        row = driver * walk.shape[1] + time_index[where]
        return torch.nn.functional.embedding_bag(
            row, walk.flatten(0, 1), start, mode="sum", per_sample_weights=weight[where, driver]
        )
    top, driver = (weight != 0).to(weight.dtype).topk(slots, 1)
    amount = weight.gather(1, driver) * top
    nodes = walk[driver, time_index[:, None]]  # (C, slots, G)
    return (amount[..., None] * nodes).sum(1)


def number_arms(
    membership: sp.csr_array, exposure: np.ndarray, additive: np.ndarray | None = None
) -> tuple[int, np.ndarray]:
    """Number of arms with several drivers, and which of them each condition is, or -1, (C,).

    An arm is a set of perturbations in certain media, at whatever times; `additive` conditions
    (C,) have none.
    """
    membership = sp.csr_array(membership)
    arms: dict[tuple, int] = {}
    rows = np.full(len(exposure), -1, np.int64)
    sums = np.zeros(len(exposure), bool) if additive is None else additive
    for c in np.flatnonzero(~sums).tolist():
        media = exposure[c]
        genes = membership.indices[membership.indptr[c] : membership.indptr[c + 1]]
        drivers = (*np.sort(genes).tolist(), *(-1 - np.flatnonzero(media)).tolist())
        if len(drivers) > 1:
            rows[c] = arms.setdefault(drivers, len(arms))
    return len(arms), rows
