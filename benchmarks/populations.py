"""Populations of cells: retention against its truth, and what a mean shift leaves unexplained.

Retention: simulated differentiation screens whose shares of held cells are known. Anchors: labels
shuffled, and the share of early cells by the true progress.

Distances: on a real screen, half of each knockout's cells is predicted from controls that were
shifted by the mean difference seen in the other half. Anchors are in the table itself: a replicate
(explained 1) and no effect (explained 0); with shuffled labels there is nothing to explain.

    python benchmarks/populations.py
"""

from __future__ import annotations

import argparse

import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData
from common import part_of, quiet, shared, write_results
from scipy.stats import spearmanr

import pyrocell
from pyrocell.metrics import distribution_distance

ROOMS = ("metrics", "pseudotime")  # that the figures depend on
HELD = {"HOLDS": 0.8, "LEAKY": 0.4, **{f"INERT_{i}": 0.0 for i in range(4)}}
EARLY, CHECKPOINT = 0.25, 0.35
METHODS = ("energy", "mmd", "moments")  # "sinkhorn" takes a hundred times as long


def retained(seed: int) -> pd.DataFrame:
    """Retention of one simulated screen, with its truth and with labels shuffled."""
    adata = pyrocell.simulate.differentiation(
        HELD,
        n_cells=80,
        n_controls=400,
        n_lineages=1 + seed % 2,
        checkpoint=CHECKPOINT,
        effect_rms=0.1,
        seed=seed,
    )
    pyrocell.pseudotime.assign_pseudotime(adata, ("stage", "early"), inplace=True)
    table = pyrocell.pseudotime.retention(adata, EARLY, n_draws=500).iloc[1:]
    share = table["perturbation"].map(HELD)
    stay = EARLY + (1 - CHECKPOINT) * EARLY / CHECKPOINT  # of held cells
    table["truth"] = (1 - share) * EARLY + share * stay - EARLY
    progress, label = adata.uns["truth"]["progress"], adata.obs["perturbation"].to_numpy()
    threshold = np.quantile(progress[label == "control"], EARLY)
    table["by_progress"] = [
        (progress[label == name] <= threshold).mean() - EARLY for name in table["perturbation"]
    ]
    mixed = adata.obs.assign(perturbation=np.random.default_rng(seed).permutation(label))
    mixed = pyrocell.pseudotime.retention(mixed, EARLY, n_draws=500).iloc[1:]
    table["found_shuffled"] = _found(mixed).to_numpy()
    inert = share == 0
    return table.assign(
        kind=np.where(inert, "inert", table["perturbation"]),
        covered=table["truth"].between(table["difference_lower"], table["difference_upper"]),
        found=_found(table),
        order=spearmanr(adata.obs["pseudotime"], progress).statistic,
    )


def _found(table: pd.DataFrame) -> pd.Series:
    return (table["difference_lower"] > 0) | (table["difference_upper"] < 0)


def explained(adata: AnnData, method: str, seed: int, shuffle: bool) -> pd.DataFrame:
    """Half of each knockout predicted from controls shifted by what the other half showed."""
    rng = np.random.default_rng(seed)
    x, label = adata.X.toarray(), adata.obs["perturbation"].astype(str).to_numpy()
    if shuffle:
        label = rng.permutation(label)
    train = rng.random(len(x)) < 0.5
    control = np.flatnonzero((label == "control") & train)
    names = [k for k in np.unique(label) if k != "control" and (label == k).sum() >= 100]
    parts = [
        x[control] + x[(label == k) & train].mean(axis=0) - x[control].mean(axis=0) for k in names
    ]
    obs = pd.DataFrame({"perturbation": np.repeat(names, len(control))})
    obs.index = obs.index.astype(str)
    predicted = AnnData(np.concatenate(parts), obs, adata.var)
    observed = AnnData(x[~train], pd.DataFrame({"perturbation": label[~train]}), adata.var)
    return distribution_distance(predicted, observed, method=method, max_cells=150, seed=seed)


def retention_part(seeds: int) -> dict:
    """Bias, coverage and false alarms over simulated screens."""
    rows = pd.concat([retained(seed) for seed in range(5000, 5000 + seeds)])
    rows["error"] = rows["difference"] - rows["truth"]
    columns = ["truth", "difference", "by_progress", "error", "covered", "found", "found_shuffled"]
    table = rows.groupby("kind")[[*columns, "order"]].mean()
    print("retention, difference from controls (90% intervals)")
    print(table.round(3).to_string(), "\n")
    return table.round(4).to_dict("index")


def distance_part() -> dict:
    """What is explained by a shift of the mean, and how often it is asked in vain."""
    adata = shared("papalexi2021_thp1_eccite.h5ad")
    adata = adata[np.asarray(adata.X.sum(1)).ravel() > 0].copy()
    sc.pp.normalize_total(adata)
    sc.pp.log1p(adata)
    shares = {}
    for method in METHODS:
        found, nothing = (explained(adata, method, 7, shuffle) for shuffle in (False, True))
        shares[method] = {
            "knockouts": len(found),
            "with_effect": int(found["explained"].notna().sum()),
            "with_effect_shuffled": int(nothing["explained"].notna().sum()),
            "explained_median": found["explained"].median(),
            "floor_mean": found["floor"].mean(),
        }
        if method == METHODS[0]:
            shown = found.dropna().sort_values("control", ascending=False).round(4)
            print(shown.head(8).to_string(index=False), "\n")
    print("papalexi, controls shifted by the mean")
    print(pd.DataFrame(shares).T.round(4).to_string(), "\n")
    return shares


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", default=["retention", "distances"])
    parser.add_argument("--seeds", type=int, default=40, help="simulated screens")
    args = parser.parse_args()
    quiet()
    if "retention" in args.parts:
        part, seeds = part_of(parser, args, "retention"), range(5000, 5000 + args.seeds)
        write_results("populations", {part: retention_part(args.seeds)}, seeds, rooms=ROOMS)
    if "distances" in args.parts:
        write_results("populations", {"distances": distance_part()}, rooms=ROOMS)


if __name__ == "__main__":
    main()
