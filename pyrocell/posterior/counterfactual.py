"""Counts expected of measured cells under another treatment (eq. 6)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pandas as pd
import torch
import xarray as xr
from anndata import AnnData
from torch import Tensor

from pyrocell._core.random import seeded, stream
from pyrocell.data.loader import CellDataset
from pyrocell.generative.state_dynamics import invert_path, propagate
from pyrocell.posterior.cell_state import draw_own_state, drawn_loading
from pyrocell.posterior.draws import check_draws
from pyrocell.posterior.fitted_screen import Draws, FittedScreen
from pyrocell.posterior.output import INTERVAL, OutputTarget, annotated
from pyrocell.posterior.summaries import summaries
from pyrocell.posterior.unseen import UnseenShift, without_unseen
from pyrocell.posterior.unseen.requests import KnowledgeOrNone
from pyrocell.screen.conditions import Conditions

__all__ = ["counterfactual"]


def counterfactual(
    fit: FittedScreen,
    cells: CellDataset,
    obs: pd.DataFrame,
    target: pd.DataFrame,
    n_samples: int,
    credible_level: float,
    progress: Callable[..., Iterable],
    keep: OutputTarget,
    knowledge: KnowledgeOrNone | None = None,
) -> AnnData | xr.Dataset:
    """Expected counts of cells under another treatment, cells × genes."""
    genes, parts = fit.screen.genes, fit.parts(len(cells))
    measured, unseen = target, None
    if knowledge is not None:
        measured, asked, _ = without_unseen(fit, target, knowledge)
        unseen = UnseenShift(fit, knowledge, measured, asked, n_samples)
    found = summaries(
        lambda some: _expected(fit, cells, measured, n_samples, some, unseen),
        parts,
        len(genes),
        n_samples,
        credible_level,
        keep.memory_budget,
        progress,
    )
    treatment = {k: v for k, v in target.iloc[0].items()}
    if unseen is not None:
        treatment["unseen"] = bool(unseen.unseen[0])
    if keep.path is not None:
        coords = {"cell": (("cell",), obs.index), "gene": (("gene",), genes)}
        dims, chunk = dict.fromkeys(INTERVAL, ("cell", "gene")), {"cell": parts[0].stop}
        attrs = {f"counterfactual_{k}": v for k, v in treatment.items()}
        return keep.store(found, coords, dims, chunk, credible_level=credible_level, **attrs)
    own = [column for column in obs if not str(column).startswith("_scvi")]
    out = annotated(found, obs[own].copy(), genes, credible_level)
    if unseen is not None:
        out.obs["unseen"] = treatment["unseen"]
    out.uns["counterfactual"] = treatment
    return out


# ---------------------------------------------------------------------- draws
def _expected(
    fit: FittedScreen,
    cells: CellDataset,
    frame: pd.DataFrame,
    n_samples: int,
    parts: Sequence[slice],
    unseen: UnseenShift | None = None,
) -> Draws:
    """Counts expected of cells under the treatment of `frame`, (cells, G).

    C(x, p, m) = F(F⁻¹(x)) (eq. 6): the cell keeps its resting state z, batch and size factor;
    its condition's response is replaced by the requested one.
    """
    check_draws(n_samples)
    target, guide = fit.part(frame), fit.posterior.guide

    @torch.no_grad()
    def expect(values: dict[str, Tensor], s: int, part: slice) -> np.ndarray:
        values = fit.with_turnover(values, s)
        own = stream("cells", s, part.start)  # the globals are common to all parts, z is not
        rows = np.arange(part.start, part.stop)
        args = {k: v.to(fit.model.loading.device) for k, v in cells.rows(rows).items()}
        theta, conditions = fit.model.measurement.theta(values), target.conditions
        with drawn_loading(fit.model, guide.mean_count, theta, s):
            z = draw_own_state(guide, values, args, own, cells.conditions)
            shift = fit.shift(values, conditions, target.unseen, s)
            if unseen is not None:
                shift = shift + unseen(s, 0, shift)
            if fit.model.n_batches > 1:
                shift = shift + values["eta"][args["batch"]]
            if "covariates" in args:
                shift = shift + args["covariates"] @ values["V.covariate"]
            z = _elsewhere(fit, values, z, args, conditions, cells.conditions, own)
            logits = fit.model.resting_logits(values, z) + shift
            return fit.model.view(values, logits, args["log_size"], z).mean.cpu().numpy()

    some = fit.asked_of([target])
    for s, values in enumerate(fit.posterior.draws(n_samples, perturbations=some)):
        yield (expect(values, s, part) for part in parts)


def _elsewhere(
    fit: FittedScreen,
    values: dict[str, Tensor],
    z: Tensor,
    cells: dict[str, Tensor],
    condition: Conditions,
    table: Conditions | None,
    seed: int,
) -> Tensor:
    """Where cells at z (n, d) would be in the one condition asked for, with the luck they had.

    Back to where they set out from and on from there; z itself where states do not move.
    """
    if not fit.model.moves_states:
        return z
    reversal = getattr(fit.posterior.guide, "reversal", None)
    with seeded(z.device, "past", seed):
        start, driving_noise = invert_path(
            z, *fit.model.cell_path(values, cells["condition"], table), reversal
        )
    driving_noise = None if driving_noise is None else driving_noise[:, None]
    return propagate(start[None], *fit.model.path_of(values, condition), driving_noise)[0]
