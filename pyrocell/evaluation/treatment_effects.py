"""Average treatment effects as SAMS-VAE evaluates them: of cells drawn, against cells measured.

The effect of a perturbation is the difference of mean log2(1 + counts per 10,000) between its
cells and controls (Bereket and Karaletsos 2023, their "perturbseq" estimate). The predicted one is
that of cells drawn from the posterior predictive at the depths of the measured ones, so that what
depth and sparsity do to such means is in both alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from pyrocell._compat import SETUP_ARGS
from pyrocell.errors import ScreenError
from pyrocell.metrics.deltas import correlation

if TYPE_CHECKING:
    from pyrocell.model import PyroCell

__all__ = ["average_treatment_effect"]

_DEPTHS = 5
_TOP = 20
_FEWEST = 10  # cells


def average_treatment_effect(
    model: PyroCell,
    perturbations: Sequence[str] | str,
    adata: ad.AnnData | None = None,
    media: str | None = None,
    time: float | None = None,
    n_samples: int = 20,
    n_cells: int = 50,
    seed: int = 0,
) -> pd.DataFrame:
    """Correlation over genes of the average treatment effects predicted and measured.

    Parameters
    ----------
    model
        A trained model; the perturbations need not be in its screen if their genes are.
    perturbations
        Labels, such as doubles that were held out.
    adata
        Cells with these labels and control cells, with the columns that were registered, raw
        counts; default: those of the model. Controls that the model has seen share their noise with
        predictions and anchors and raise every correlation but `replicate`, by much where they are
        few: keep some from it.
    media, time
        Where; default: baseline medium, last time.
    n_samples, n_cells
        Posterior draws, and cells drawn of each at each of five depths.
    seed
        Of the halves behind `replicate`.

    Returns
    -------
    DataFrame with a row per perturbation: n_cells measured; pearson, over genes, and pearson_top,
    over the 20 genes with the largest measured effect; rmse; as anchors the pearson of additive,
    the sum of the effects measured for its perturbations alone in the cells of the model (NaN where
    one was not), of mean, that of all perturbed cells of the model, and of replicate, half of the
    cells for the other half (both with half of the controls): what so many cells allow.

    Raises
    ------
    ScreenError
        If a label has fewer than ten cells.
    UnknownLabelError
        If a label has a gene that is not in the screen.
    """
    names = [perturbations] if isinstance(perturbations, str) else list(perturbations)
    screen = model.screen
    names = [screen.label_of(screen.indices(name)) for name in names]
    media = screen.baseline_media if media is None else media
    if time is None and screen.times:
        time = screen.times[-1]
    own = _Levels(model, model.adata, media, time)
    told = own if adata is None else _Levels(model, adata, media, time)
    controls = told if len(told.rows(screen.control)) >= _FEWEST else own
    for name in names:
        if len(told.rows(name)) < _FEWEST:
            raise ScreenError(
                f'"{name}" has {len(told.rows(name))} cells in medium "{media}", and {_FEWEST} are '
                "needed to measure its effect; give adata= with its cells, media= or time="
            )
    if len(controls.rows(screen.control)) < _FEWEST:
        raise ScreenError(f'there are no {_FEWEST} control cells in medium "{media}"')
    labels = [screen.control, *names]
    depth = controls.size[controls.rows(screen.control)]
    predicted = np.mean(
        [_drawn(model, labels, media, time, q, n_samples, n_cells) for q in _depths(depth)], 0
    )
    base, own_base = controls.mean(screen.control), own.mean(screen.control)
    perturbed = own.label != screen.control
    everyone = own.logged[perturbed].mean(0) - own_base if perturbed.any() else None
    rng = np.random.default_rng(seed)
    rows = []
    for name, found in zip(names, predicted[1:] - predicted[0], strict=True):
        measured = told.mean(name) - base
        alone = [screen.perturbations[k] for k in screen.indices(name)]
        whole = len(alone) > 1 and min(len(own.rows(a)) for a in alone) >= _FEWEST
        total = np.sum([own.mean(a) - own_base for a in alone], 0) if whole else None
        top = np.argsort(-np.abs(measured))[:_TOP]
        halves = told.half_effects(name, controls, screen.control, rng)
        rows.append(
            {
                "perturbation": name,
                "n_cells": len(told.rows(name)),
                "pearson": correlation(found, measured),
                "pearson_top": correlation(found[top], measured[top]),
                "rmse": float(np.sqrt(np.mean((found - measured) ** 2))),
                "additive": np.nan if total is None else correlation(total, measured),
                "mean": np.nan if everyone is None else correlation(everyone, measured),
                "replicate": correlation(*halves),
            }
        )
    return pd.DataFrame(rows)


class _Levels:
    """log2(1 + counts per 10,000) of the cells of a medium at a time, and their labels."""

    def __init__(self, model: PyroCell, adata: ad.AnnData, media: str, time: float | None):
        args = model.adata_manager.registry[SETUP_ARGS]
        if args.get("perturbation_key") is None:
            raise ScreenError("cells have no column of perturbations (perturbation_key=)")
        screen, obs = model.screen, adata.obs
        here = np.ones(adata.n_obs, bool)
        if args["media_key"] is not None:
            here &= (obs[args["media_key"]].astype(str) == media).to_numpy()
        if args["time_key"] is not None and time is not None:
            here &= np.isclose(obs[args["time_key"]].astype(float), time)
        rows = np.flatnonzero(here)
        label = obs[args["perturbation_key"]].astype(str).to_numpy()[rows]
        control = args["control"]
        also = [control] if isinstance(control, str) else list(control)
        known = {n: screen.control for n in also}
        for name in np.unique(label):
            if name not in known:
                known[name] = screen.label_of(screen.indices(name))
        self.label = np.array([known[n] for n in label], dtype=object)
        counts: Any = adata.X if args["layer"] is None else adata.layers[args["layer"]]
        counts = sp.csr_matrix(counts[rows], dtype=np.float64)
        self.size = np.asarray(counts.sum(1)).ravel()
        self.logged = _logged(counts, self.size)

    def rows(self, label: str) -> np.ndarray:
        return np.flatnonzero(self.label == label)

    def mean(self, label: str) -> np.ndarray:
        return self.logged[self.rows(label)].mean(0)

    def half_effects(
        self, label: str, controls: _Levels, control: str, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """The effect by one half of the cells and of the controls, and by the other."""
        mine, theirs = (rng.permutation(r) for r in (self.rows(label), controls.rows(control)))
        first, second = (
            self.logged[mine[i::2]].mean(0) - controls.logged[theirs[i::2]].mean(0) for i in (0, 1)
        )
        return first, second


def _logged(counts: sp.csr_matrix, size: np.ndarray) -> np.ndarray:
    """(n, G) log2(1 + counts per 10,000)."""
    return np.log2(1 + counts.toarray() * (1e4 / np.maximum(size, 1))[:, None])


def _depths(size: np.ndarray) -> np.ndarray:
    return np.quantile(size, (np.arange(_DEPTHS) + 0.5) / _DEPTHS)


def _drawn(
    model: PyroCell,
    labels: list[str],
    media: str,
    time: float | None,
    depth: float,
    n_samples: int,
    n_cells: int,
) -> np.ndarray:
    """Mean level of cells drawn of each label, (labels, G), at the depth of some measured cells."""
    screen = model.screen
    table: dict[str, object] = {"perturbation": labels}
    if screen.media:
        table["media"] = media
    if time is not None:
        table["time"] = time
    composed = model.module.config.composition
    size = float(depth) if composed else None
    cells = model.simulate_cells(pd.DataFrame(table), n_cells, n_samples, size)
    counts = sp.csr_matrix(cells.X, dtype=np.float64)
    logged = _logged(counts, np.asarray(counts.sum(1)).ravel())
    each = np.tile(np.arange(len(labels)).repeat(n_cells), n_samples)
    return np.stack([logged[each == i].mean(0) for i in range(len(labels))])
