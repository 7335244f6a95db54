"""Sizes without a model for every assumption: pseudobulks less their sampling noise.

To be printed beside the model's. Defined as the truth is (`mechanistic_truth.py`), from counts per
cell of median depth in place of expected counts. Squares are products of two random halves of the
cells, whose errors are independent. Every condition has to be spread evenly over the batches, as
the layouts of `mechanistic.py` are: nothing else is done about batch noise.
"""

from __future__ import annotations

from itertools import product

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from mechanistic_truth import PSEUDOCOUNT

from pyrocell.contrasts.pseudobulk import Cells, Reference

__all__ = ["anchors"]

N_SPLITS = 50  # random halves


def anchors(adata: AnnData, seed: int = 0) -> pd.DataFrame:
    """Estimate of every assumption's size, without a model.

    Parameters
    ----------
    adata
        Raw counts with `.obs` perturbation, media, time and batch, as `mechanistic.screens` gives.
    seed
        Of the random halves.

    Returns
    -------
    DataFrame with assumption, perturbation, media, estimate: RMS log-fold change with the sign of
    its square, which may be below zero; for no_response the slope on the control's response.
    Changes are those between the last two times. The smaller, the likelier the assumption holds.
    """
    levels, times = _levels(adata, np.random.default_rng(seed))
    genes = np.asarray(adata.var_names)
    rows = []
    for perturbation, medium in levels:
        others = genes != perturbation
        treated = levels[perturbation, medium][..., others]
        control = levels["control", medium][..., others]
        found = {}
        if len(times) > 1:
            change, usual = (x[:, :, -1] - x[:, :, -2] for x in (treated, control))
            found["steady"] = _rms(change)
            if perturbation == "control" and medium == "baseline":
                found = {"necessary": found["steady"]}
            if perturbation != "control":
                found["steady_vs_control"] = _rms(change - usual)
        if perturbation != "control" and medium == "baseline":
            found["silent_at_baseline"] = _rms(treated - control)
        elif perturbation != "control":
            resting = [levels[p, "baseline"][..., others] for p in (perturbation, "control")]
            response, usual = ((x - y)[:, :, -1] for x, y in zip((treated, control), resting))
            # Cells of the control are others: errors of the two responses are independent.
            slope = np.mean(response.mean((0, 1)) * usual.mean((0, 1))) / np.mean(
                usual[0] * usual[1]
            )
            found["no_response"] = float(slope)
        where = {"perturbation": perturbation, "media": medium}
        rows += [{"assumption": k} | where | {"estimate": v} for k, v in found.items()]
    return pd.DataFrame(rows)


def _levels(adata: AnnData, rng: np.random.Generator) -> tuple[dict, list]:
    """(2, splits, times, genes) log counts in halves, by perturbation and medium; and the times."""
    counts, obs = sp.csr_matrix(adata.X), adata.obs
    size = np.asarray(counts.sum(axis=1), dtype=float).ravel()
    cells = Cells(counts, size / np.median(size), pd.factorize(obs["batch"])[0])
    groups = obs.groupby(["perturbation", "media", "time"], observed=True).indices
    times = sorted(obs["time"].unique())
    levels = {}
    for key in product(obs["perturbation"].unique(), obs["media"].unique()):
        halves = []
        for time in times:
            # Halves of every batch, so that both have the same batch noise.
            found = Reference.of(cells[groups[(*key, time)]], 2, 1, N_SPLITS, rng)
            depth = found.half_depth[..., :1]
            rate = (found.half_rate * depth).sum(axis=2) / depth.sum(axis=2)
            halves.append(np.log(rate + PSEUDOCOUNT))
        levels[key] = np.stack(halves, axis=2)
    return levels, times


def _rms(halves: np.ndarray) -> float:
    square = np.mean(halves[0] * halves[1])
    return float(np.sign(square) * np.sqrt(abs(square)))
