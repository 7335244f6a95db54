"""Answers of one view, where features of several are one axis; and of one not measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import anndata as ad
import numpy as np
import pandas as pd
import torch

from pyrocell._core.random import seeded
from pyrocell.data.loader import CellDataset
from pyrocell.errors import ScreenError
from pyrocell.generative.config import ModelConfig
from pyrocell.posterior.cell_state import draw_own_state
from pyrocell.posterior.draws import check_draws, check_level
from pyrocell.posterior.effects import expected_false_signs
from pyrocell.posterior.fitted_screen import FittedScreen
from pyrocell.screen.feature_views import FeatureViews
from pyrocell.screen.screen import Screen
from pyrocell.views import JointView

__all__ = ["imputed", "rows_of_view", "views_of"]


def views_of(config: ModelConfig, view: str | None) -> FeatureViews | None:
    """Views of a model; None of a model of one.

    Raises
    ------
    ScreenError, UnknownLabelError
        If a view is asked of a model that has one, or that it does not have.
    """
    features = config.features
    if features is None and view is not None:
        raise ScreenError(
            f'view="{view}" was asked of a model with one view; register several with '
            "PyroCell.setup_mudata"
        )
    if features is not None and view is not None:
        features.of(view)
    return features


def rows_of_view(
    table: pd.DataFrame, screen: Screen, features: FeatureViews | None, view: str | None
) -> pd.DataFrame:
    """A table with a row per feature, with its view beside it, and of one view where asked.

    The expected share of false signs is then that of the lists of this view.
    """
    if features is None:
        return table
    names = dict(zip(screen.genes, features.labels(), strict=True))
    out = table.copy()
    out.insert(list(out).index("gene") + 1, "view", out["gene"].map(names))
    if view is None:
        return out
    features.of(view)
    out = out[out["view"] == view].reset_index(drop=True)
    if {"fdr", "lfsr", "few_counts"} <= set(out):
        out["fdr"] = expected_false_signs(out["lfsr"].to_numpy(), ~out["few_counts"].to_numpy())
    return out


def imputed(
    fit: FittedScreen,
    cells: CellDataset,
    obs: pd.DataFrame,
    view: str,
    n_samples: int,
    credible_level: float,
    batch_size: int,
    progress: Callable[..., Iterable],
    seed: int,
) -> ad.AnnData:
    """A view of cells whether it was measured in them or not; see `PyroCell.impute`.

    The state of a cell is drawn from its posterior given the views that it has, and the counts of
    the view asked for from the likelihood there.
    """
    check_draws(n_samples)
    check_level(credible_level)
    features = views_of(fit.model.config, view)
    measurement = fit.model.measurement
    assert features is not None and isinstance(measurement, JointView)
    assert cells.depths is not None
    v, part = features.of(view), features.slices[features.of(view)]
    shape = (len(cells), features.sizes[v])
    mean, square = np.zeros(shape), np.zeros(shape)
    lower, upper = np.zeros((2, *shape), np.float32)
    tail = 50 * (1 - credible_level)
    draws = list(fit.posterior.draws(n_samples))
    for start in progress(range(0, len(cells), batch_size)):
        rows = np.arange(start, min(start + batch_size, len(cells)))
        counts = np.empty((n_samples, len(rows), shape[1]), np.float32)
        args = {k: x.to(fit.model.loading.device) for k, x in cells.rows(rows).items()}
        known = args["log_size"]
        depth = known.clone()
        lacks = ~torch.isfinite(depth[:, v])
        depth[lacks, v] = measurement.usual[v]
        for s, values in enumerate(draws):
            with torch.no_grad(), seeded(depth.device, "impute", seed, s, start):
                z = draw_own_state(fit.posterior.guide, values, args, s, cells.conditions)
                labels = args["condition"], args["batch"], args.get("covariates")
                shift = fit.model.cell_shift(values, *labels, cells.conditions)
                logits = fit.model.resting_logits(values, z) + shift
                found = measurement.likelihood(values, logits, depth, z)
                expected = found.parts[v].mean.cpu().numpy()
                counts[s] = found.parts[v].sample().cpu().numpy()
            mean[rows] += expected / n_samples
            square[rows] += expected.astype(float) ** 2 / n_samples
        lower[rows], upper[rows] = np.percentile(counts, [tail, 100 - tail], axis=0)
    var = pd.DataFrame(index=fit.screen.genes[part].astype(str))
    out = ad.AnnData(mean.astype(np.float32), obs=obs.copy(), var=var)
    sd = np.sqrt(np.maximum(square - mean**2, 0.0)).astype(np.float32)
    out.layers["sd"], out.layers["lower"], out.layers["upper"] = sd, lower, upper
    out.obs["measured"] = np.isfinite(cells.depths[:, v])
    out.uns["credible_level"] = credible_level
    return out
