"""Assumptions of the real screens, and what is claimed of them where there is nothing to find.

Each screen is fitted once with its true labels. Then perturbation labels are shuffled within batch,
medium and time, ten times, and the table is formed again with the axes of cell state and the batch
noise of that fit: the evidence knows nothing else of the labels. On the papalexi screen every
non-targeting guide is also treated as a perturbation, against the other controls.

    python benchmarks/assumption_shuffles.py --screens hipsc datlinger papalexi
"""

from __future__ import annotations

import argparse
import warnings

import numpy as np
import pandas as pd
from common import part_of, quiet, run_all, shared, write_results
from real_screens import usable

import pyrocell
from pyrocell.assumptions.table import assumption_table
from pyrocell.contrasts.levels import condition_levels
from pyrocell.screen.screen import Screen

OPTIONS = {"region": 0.05, "prior": 0.5, "concentration": 20.0, "min_count": 5.0, "min_cells": 10.0}
SHUFFLES = range(4000, 4010)
LATE = ("POU5F1", "PRDM14", "RUNX1T1")  # knockouts that still move between days 4 and 5
PATHWAY = ("ZAP70", "LAT", "LCK")


def table_with(model, adata, labels: np.ndarray) -> pd.DataFrame:
    """Table of assumptions for other labels of the same cells."""
    obs, screen = adata.obs, model.screen
    has = {k: obs[k] for k in ("media", "time") if k in obs and obs[k].nunique() > 1}
    if "media" in has:
        has["baseline_media"] = screen.baseline_media
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other = Screen.from_labels(
            list(adata.var_names), labels, batch=obs["batch"].astype(str), **has
        )
    cells = model._cells
    scale = model.posterior_samples(2, ["eta.scale"])["eta.scale"].astype(float)
    size = np.exp(cells.log_size.astype(float))
    draws = [
        condition_levels(cells.counts, size, other.cell_condition, other.cell_batch, s)
        for s in scale
    ]
    axes = model.fitted.axes_of_state()
    return assumption_table(other, draws, axes, model.module.priors, credible_level=0.9, **OPTIONS)


def shuffled(adata, seed: int) -> np.ndarray:
    """Perturbation labels shuffled within batch, medium and time."""
    rng = np.random.default_rng(seed)
    labels = adata.obs["perturbation"].astype(str).to_numpy().copy()
    keys = [k for k in ("batch", "media", "time") if k in adata.obs]
    for rows in adata.obs.groupby(keys, observed=True).indices.values():
        labels[rows] = labels[rng.permutation(rows)]
    return labels


def claims(table: pd.DataFrame) -> dict:
    """Share of perturbations called active, moving, and blocked or halved."""
    table = table[table.testable]
    share = {}
    for name in ("silent_at_baseline", "steady_vs_control", "steady", "necessary"):
        part = table[table.assumption == name]
        if len(part):
            share[f"{name} < .1"] = float((part.posterior < 0.1).mean())
    part = table[table.assumption == "no_response"]
    if len(part):
        share["no_response > .5"] = float((part.posterior > 0.5).mean())
    return share


def judge(name: str) -> dict:
    """Fit one screen, form its table, shuffle."""
    quiet()
    if name == "hipsc":
        adata = pyrocell.datasets.hipsc_timecourse()
        setup = {"time_key": "time", "size_factor_key": "size_factor"}
    elif name == "datlinger":
        adata = usable(shared("datlinger2021_jurkat_tcr.h5ad"), min_cells=40)
        setup = {"media_key": "media"}
    else:
        adata, setup = usable(shared("papalexi2021_thp1_eccite.h5ad")), {}
    pyrocell.PyroCell.setup_anndata(adata, **setup)
    model = pyrocell.PyroCell(adata)
    model.train(seed=0, progress_bar=False)
    true = model.assumptions(n_samples=2)
    lowest = true[true.testable].sort_values("posterior")
    found = {"screen": name, "true labels": claims(true)}
    if name == "hipsc":
        part = lowest[lowest.assumption == "steady_vs_control"]
        found["least likely steady relative to control"] = dict(
            zip(part.perturbation[:5], part.posterior[:5])
        )
    if name == "datlinger":
        part = true[true.assumption == "no_response"].sort_values("posterior", ascending=False)
        found["likeliest blocked or halved"] = dict(zip(part.perturbation[:6], part.posterior[:6]))
        found["slopes"] = dict(zip(part.perturbation[:6], part["size"][:6]))
    null = [claims(table_with(model, adata, shuffled(adata, seed))) for seed in SHUFFLES]
    found["shuffled"] = pd.DataFrame(null).mean().to_dict()
    found["worst shuffle"] = pd.DataFrame(null).max().to_dict()
    if name == "papalexi":
        labels = adata.obs["perturbation"].astype(str).to_numpy().copy()
        guides = adata.obs["guide"].astype(str).to_numpy()
        numbers = pd.Series(guides[labels == "control"]).value_counts()
        kinds = numbers.index[numbers >= 50][: len(numbers) // 2]
        rows = (labels == "control") & np.isin(guides, kinds)
        labels[rows] = guides[rows]
        table = table_with(model, adata, np.array([x.replace("+", "_") for x in labels]))
        mine = table[table.perturbation.isin([k.replace("+", "_") for k in kinds])]
        found["non-targeting guides"] = claims(mine) | {"guides": len(kinds)}
    return found


def main() -> None:
    """Run the screens asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--screens", nargs="+", default=["hipsc", "datlinger", "papalexi"])
    parser.add_argument("--jobs", type=int, default=1)
    args = parser.parse_args()
    found = run_all(judge, [(name,) for name in args.screens], args.jobs)
    write_results(
        "assumption_shuffles",
        {part_of(parser, args): {f.pop("screen"): f for f in found}},
        SHUFFLES,
    )


if __name__ == "__main__":
    main()
