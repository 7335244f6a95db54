"""What became NaN or infinite in a training, and where first."""

from __future__ import annotations

import warnings
from typing import Any, cast

import torch
from pyro import poutine
from torch import Tensor, nn

from pyrocell.errors import NonFiniteError

__all__ = ["LinAlgError", "find_failure", "non_finite_parameter"]

LinAlgError = torch.linalg.LinAlgError  # pyright: ignore[reportPrivateImportUsage] public in fact


def find_failure(
    model: nn.Module, guide: nn.Module, batch: dict[str, Tensor], step: int
) -> NonFiniteError | None:
    """Return the error to raise if a site or parameter is not finite."""
    site, parameter = _non_finite_site(model, guide, batch), non_finite_parameter(model, guide)
    if not site and not parameter:
        return None
    what = f'site "{site}" is not finite' if site else "a parameter is not finite"
    if parameter:
        what += f" (parameter {parameter} holds NaN or infinity)"
    return NonFiniteError(
        f"training stopped at step {step}: {what}; lower lr and global_lr of TrainingConfig, or "
        "look for extreme counts and covariates",
        site=site or parameter,
    )


def non_finite_parameter(model: nn.Module, guide: nn.Module) -> str:
    """Name of the first parameter that is not finite, or nothing."""
    for owner, module in (("guide", guide), ("model", model)):
        for name, parameter in module.named_parameters():
            if not torch.isfinite(parameter).all():
                return f"{owner}.{name}"
    return ""


def _non_finite_site(model: nn.Module, guide: nn.Module, batch: dict[str, Tensor]) -> str:
    """First site of the guide, then of the model, with a value or log probability not finite."""
    traces = [poutine.trace(), poutine.trace()]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with traces[0]:
                guide(**batch)
            with traces[1], poutine.replay(trace=traces[0].trace):
                model(**batch)
        except (LinAlgError, ValueError):
            pass  # sites before the failure are in the trace
        for tracer in traces:
            nodes = tracer.trace.nodes if hasattr(tracer, "trace") else {}
            for name, node in cast("dict[str, dict[str, Any]]", nodes).items():
                if node["type"] == "sample" and not _is_finite(node):
                    return name
    return ""


def _is_finite(node: dict[str, Any]) -> bool:
    value = node["value"]
    entries = value.values() if value.layout == torch.sparse_csr else value
    try:
        log_prob = node["fn"].log_prob(value)
    except (LinAlgError, ValueError):
        return False
    return bool(torch.isfinite(entries).all() and torch.isfinite(log_prob).all())
