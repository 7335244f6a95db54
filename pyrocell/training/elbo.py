"""The ELBO of a minibatch: of all sites for training, of the cells' own for held-out evidence."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, cast

import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn

from pyrocell.distributions import log_prob_by_row

__all__ = ["held_out_elbo", "negative_elbo"]

_Nodes = dict[str, dict[str, Any]]  # whose entries Pyro has filled in


def negative_elbo(
    model: nn.Module,
    guide: nn.Module,
    batch: dict[str, Tensor],
    row_weights: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """One draw of the negative ELBO, differentiable, nats.

    What `Trace_ELBO` computes for a guide that is reparametrised throughout; terms under one scale
    are scaled together.

    Parameters
    ----------
    model, guide
        Pyro callables that take the minibatch as keywords.
    batch
        The minibatch.
    row_weights
        By site: weights (n,) of the rows of its value, where only some of them were drawn.
    """
    q = poutine.trace(guide).get_trace(**batch)
    p = poutine.trace(poutine.replay(model, q)).get_trace(**batch)
    terms: dict[float, list[Tensor]] = {}  # by scale
    for trace, sign in ((p, -1.0), (q, 1.0)):
        for name, node in cast("_Nodes", trace.nodes).items():
            if node["type"] != "sample" or node["infer"].get("_deterministic"):
                continue
            if site_is_subsample(node):  # pyright: ignore[reportArgumentType] a TypedDict of Pyro's
                continue
            if row_weights and name in row_weights:
                log_prob = row_weights[name] @ log_prob_by_row(node["fn"], node["value"])
            else:
                log_prob = node["fn"].log_prob(node["value"])
                log_prob = log_prob.sum() if log_prob.dim() else log_prob
            terms.setdefault(sign * float(node["scale"]), []).append(log_prob)
    return cast("Tensor", sum(scale * torch.stack(found).sum() for scale, found in terms.items()))


def held_out_elbo(model: nn.Module, guide: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Per-cell ELBO terms of the local sites, (cells,), nats."""
    with torch.no_grad(), warnings.catch_warnings():
        q = poutine.trace(guide).get_trace(**batch)
        p = poutine.trace(poutine.replay(model, q)).get_trace(**batch)
        terms = []
        parts = [(p, "x", 1.0), (p, "X.z", 1.0), (q, "X.z", -1.0)]
        if "X.path" in q.nodes:
            parts += [(p, "X.path", 1.0), (q, "X.path", -1.0)]
        for trace, site, sign in parts:
            node = cast("_Nodes", trace.nodes)[site]
            terms.append(sign * node["fn"].log_prob(node["value"]))
    return torch.stack(terms).sum(0)
