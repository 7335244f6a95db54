"""Three real screens: on-target and pathway effects, media gains, held-out combinations.

Every score has an anchor without a model beside it. On the stimulation screen the number of own
axes and the likelihood are chosen by the held-out ELBO, as the model page advises; shuffled labels
show what nothing looks like. The cap on epochs was chosen on the stimulation screen itself, and
its replicates were looked at while the start of a medium's response was: its figures are not out
of sample, but for the shuffles, whose seeds are new.

    python benchmarks/real_screens.py --parts papalexi datlinger norman --jobs 2
"""

from __future__ import annotations

import argparse

import numpy as np
import pandas as pd
from common import covered, part_of, quiet, run_all, shared, write_results

import pyrocell

CASCADE, READOUT = ("IFNGR1", "IFNGR2", "JAK2", "STAT1"), ("STAT1", "UBE2L6", "TNFRSF14", "JAK2")
RECEPTOR = ("ZAP70", "LAT", "LCK")
STIMULUS = "TCR_stimulation"


def usable(adata, min_cells: int = 1):
    """Genes seen in enough cells, and cells with counts in them."""
    adata = adata[:, np.asarray((adata.X > 0).sum(0)).ravel() >= min_cells].copy()
    return adata[np.asarray(adata.X.sum(1)).ravel() > 0].copy()


# ---------------------------------------------------------------------------------- papalexi
def papalexi(seed: int) -> dict:
    """On-target effects, the interferon cascade, the predictive check."""
    adata = usable(shared("papalexi2021_thp1_eccite.h5ad"))
    pyrocell.PyroCell.setup_anndata(adata)
    model = pyrocell.PyroCell(adata)
    model.train(seed=seed, progress_bar=False)
    table = model.perturbation_effects(n_samples=400, credible_level=0.95)
    own = table[table.perturbation == table.gene]
    cells = table.set_index(["perturbation", "gene"])
    down = {
        (k, g): float(row.prob_direction if row["mean"] < 0 else 1 - row.prob_direction)
        for k in (*CASCADE, "CAV1")
        for g in READOUT
        for row in [cells.loc[(k, g)]]
    }
    check = model.posterior_predictive_check(n_samples=100)
    inside = check.pivot(index="gene", columns="statistic", values="inside")
    anchor = pooled_change(adata, adata.obs["perturbation"].astype(str).to_numpy())
    return {
        "part": "papalexi",
        "on_target_below_zero": int((own.upper < 0).sum()),
        "on_target_measured": len(own),
        "pairs_down": sum(p >= 0.95 for (k, _), p in down.items() if k != "CAV1"),
        "pairs": len(CASCADE) * len(READOUT),
        "cav1_down": sum(p >= 0.95 for (k, _), p in down.items() if k == "CAV1"),
        "anchor_pairs_negative": sum(
            anchor[k][adata.var_names.get_loc(g)] < 0 for k in CASCADE for g in READOUT
        ),
        "genes_inside": float((inside["zero_fraction"] & inside["variance"]).mean()),
    }


def pooled_change(adata, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Anchor: log ratio of pooled relative expression against control."""

    def pooled(rows: np.ndarray) -> np.ndarray:
        total = np.asarray(adata.X[rows].sum(0)).ravel() + 0.5
        return np.log(total / total.sum())

    control = pooled(labels == "control")
    return {k: pooled(labels == k) - control for k in np.unique(labels) if k != "control"}


# ---------------------------------------------------------------------------------- datlinger
def gains(
    n_response: int, likelihood: str, replicate: str | None, shuffle: int | None, seed: int = 0
) -> dict:
    """Gains of the twenty knockouts, on a subset or with shuffled labels if asked."""
    adata = usable(shared("datlinger2021_jurkat_tcr.h5ad"), min_cells=40)
    if replicate is not None:
        adata = usable(adata[adata.obs["batch"] == replicate])
    if shuffle is not None:
        rng = np.random.default_rng(shuffle)
        labels = adata.obs["perturbation"].astype(str).to_numpy()
        groups = adata.obs.groupby(["batch", "media"], observed=True).indices.values()
        for rows in groups:
            labels[rows] = labels[rng.permutation(rows)]
        adata.obs["perturbation"] = labels
    pyrocell.PyroCell.setup_anndata(adata, media_key="media")
    model = pyrocell.PyroCell(adata, n_response=n_response, likelihood=likelihood)
    model.train(seed=seed, progress_bar=False)
    table = model.media_gains(n_samples=1000).sort_values("mean")
    z = (table["mean"] - 1) / table["sd"]
    low = table.set_index("perturbation")
    return {
        "part": "datlinger",
        "n_response": n_response,
        "likelihood": likelihood,
        "replicate": replicate,
        "shuffle": shuffle,
        "elbo": float(model.history["validation_elbo"].dropna().iloc[-1]),
        "lowest": list(table.perturbation[:6]),
        "receptor": {
            k: low.loc[k, ["mean", "lower", "upper"]].astype(float).round(3).tolist()
            for k in RECEPTOR
        },
        "rank": {k: int((table["mean"] < low.loc[k, "mean"]).sum()) + 1 for k in RECEPTOR},
        "z_mean": float(z.mean()),
        "z_sd": float(z.std()),
        "anchor": anchor_gains(adata),
    }


def anchor_gains(adata) -> list[str]:
    """Anchor: the six knockouts with the smallest pooled response along the average response."""
    labels = adata.obs["perturbation"].astype(str).to_numpy()
    met = (adata.obs["media"] == STIMULUS).to_numpy()

    def level(rows: np.ndarray) -> np.ndarray:
        total = np.asarray(adata.X[rows].sum(0)).ravel() + 0.5
        return total / total.sum()

    weight = (level(met) - level(~met)) / level(np.ones(len(met), bool))
    response = {
        k: float(((level((labels == k) & met) - level((labels == k) & ~met)) * weight).sum())
        for k in np.unique(labels)
        if k != "control"
    }
    return sorted(response, key=response.get)[:6]


def datlinger(n_jobs: int, n_shuffles: int) -> dict:
    """Choose own axes and likelihood by held-out ELBO, then replicates and shuffled labels."""
    options = [(axes, kind) for axes in (0, 8) for kind in ("zinb", "nb")]
    choices = run_all(gains, [(*option, None, None) for option in options], n_jobs)
    best = max(choices, key=lambda r: r["elbo"])
    chosen = (best["n_response"], best["likelihood"])
    jobs = [(*chosen, rep, None) for rep in ("rep_1", "rep_2")]
    jobs += [(*chosen, None, 2000 + s) for s in range(n_shuffles)]
    results = run_all(gains, jobs, n_jobs)
    null = [r for r in results if r["shuffle"] is not None]
    return {
        "part": "datlinger",
        "elbo": {f"{r['n_response']} {r['likelihood']}": r["elbo"] for r in choices},
        "chosen": best,
        "replicate_ranks": {r["replicate"]: r["rank"] for r in results if r["replicate"]},
        "shuffled_z_mean": [r["z_mean"] for r in null],
        "shuffled_z_sd": [r["z_sd"] for r in null],
    }


# ---------------------------------------------------------------------------------- norman
def norman(seed: int) -> dict:
    """Doubles with both singles seen, held out together."""
    adata = usable(shared("norman2019_k562_crispra.h5ad"))
    labels = adata.obs["perturbation"].astype(str).to_numpy()
    known = set(labels)
    held = [d for d in sorted(known) if "+" in d and all(s in known for s in d.split("+"))]
    out = np.isin(labels, held)
    seen, unseen = adata[~out].copy(), adata[out].copy()
    pyrocell.PyroCell.setup_anndata(seen, perturbation_type="CRISPRa")
    model = pyrocell.PyroCell(seen)
    model.train(seed=seed, progress_bar=False)
    size = float(np.asarray(seen.X.sum(1)).mean())

    def mean_counts(cells) -> np.ndarray:
        scaled = cells.X.multiply(size / np.asarray(cells.X.sum(1))).tocsr()
        return np.log1p(np.asarray(scaled.mean(0)).ravel())

    truth = np.stack([mean_counts(unseen[unseen.obs["perturbation"] == d]) for d in held])
    cells = [int((labels == d).sum()) for d in held]
    request = pd.DataFrame({"perturbation": held, "n_cells": cells})
    draws = model.predict(request, n_samples=400, size_factor=size, return_draws=True).to_numpy()
    draws = np.log1p(draws)
    lower, upper = np.percentile(draws, [5, 95], axis=0)
    control = mean_counts(seen[seen.obs["perturbation"] == "control"])
    single = {
        s: mean_counts(seen[seen.obs["perturbation"] == s]) - control
        for d in held
        for s in d.split("+")
    }
    additive = np.stack([sum(single[s] for s in d.split("+")) for d in held])
    delta = truth - control
    return {
        "part": "norman",
        "held": held,
        "pearson": correlation(draws.mean(0) - control, delta),
        "additive": correlation(additive, delta),
        "replicate": split_half(unseen, held, mean_counts, control),
        "coverage": covered(lower, upper, truth),
        "mse": float(((draws.mean(0) - truth) ** 2).mean()),
        "additive_mse": float(((additive - delta) ** 2).mean()),
        "control_mse": float((delta**2).mean()),
    }


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Mean over doubles of the Pearson correlation over genes."""
    return float(np.mean([np.corrcoef(x, y)[0, 1] for x, y in zip(a, b)]))


def split_half(unseen, held: list[str], mean_counts, control: np.ndarray) -> float:
    """Correlation of the deltas of two halves of each double's cells."""
    rng = np.random.default_rng(0)
    halves = []
    for name in held:
        rows = rng.permutation(np.flatnonzero(unseen.obs["perturbation"] == name))
        middle = len(rows) // 2
        halves.append([mean_counts(unseen[r]) - control for r in (rows[:middle], rows[middle:])])
    first, second = zip(*halves)
    return correlation(np.stack(first), np.stack(second))


def main() -> None:
    """Run the parts asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="+", default=["papalexi", "datlinger", "norman"])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--shuffles", type=int, default=4)
    args = parser.parse_args()
    quiet()
    if "papalexi" in args.parts:
        write_results("real_screens", {"papalexi": run_all(papalexi, [(0,)], 1)[0]}, [0])
    if "norman" in args.parts:
        write_results("real_screens", {"norman": run_all(norman, [(0,)], 1)[0]}, [0])
    if "datlinger" in args.parts:
        part = part_of(parser, args, "datlinger")
        write_results("real_screens", {part: datlinger(args.jobs, args.shuffles)}, [0])


if __name__ == "__main__":
    main()
