"""Perturbations that were never measured, on four real screens: each left out, the model retrained.

The model is trained without the cells of some perturbations and predicts them by GO and Reactome.
Errors are those of log1p of the mean count at one depth, the gene that is perturbed left out, which
no other perturbation says anything of; 90% intervals include the sampling noise of the held-out
pseudobulk. Anchors in the same run, from the same cells: the mean of the other perturbations'
levels, and the control. `shuffled` is the same with the names in the knowledge permuted, and
`population` the model without knowledge. Directions are scored where the truth is certain: genes
that a model of all cells lists at lfsr < .01.

Perturbations are left out `--together` at a time (1: one by one). The gradient phase is short,
since what single genes do comes from the second phase.

    python benchmarks/unseen.py --screens thp1 hipsc k562 stimulation
"""

from __future__ import annotations

import argparse

import numpy as np
import pandas as pd
from code_state import FIT
from common import part_of, quiet, shared, shared_file, write_results
from scipy.stats import binomtest

import pyrocell
from pyrocell.errors import KnowledgeError, UnknownLabelError
from pyrocell.metrics import expected_calibration_error
from pyrocell.posterior.unseen.place import Place

ROOMS = (*FIT, "knowledge")
STIMULUS = "TCR_stimulation"
CERTAIN, REGION, SAMPLES = 0.01, 0.05, 300


# ---------------------------------------------------------------------------------- screens
def screen(name: str):
    """Cells of a screen, the arguments of its registration, and where effects are asked."""
    if name == "thp1":
        return shared("papalexi2021_thp1_eccite.h5ad"), {}, {}
    if name == "hipsc":
        adata = pyrocell.datasets.hipsc_timecourse()
        keys = {"time_key": "time", "size_factor_key": "size_factor"}
        return adata, keys, {"time": 5.0}
    if name == "k562":
        adata = shared("norman2019_k562_crispra.h5ad")
        adata = adata[~adata.obs["perturbation"].astype(str).str.contains("+", regex=False)]
        return adata.copy(), {"perturbation_type": "CRISPRa"}, {}
    adata = shared("datlinger2021_jurkat_tcr.h5ad")
    return adata, {"media_key": "media"}, {"media": STIMULUS}


def usable(adata):
    """Cells with counts, genes seen in forty cells."""
    adata = adata[:, np.asarray((adata.X > 0).sum(0)).ravel() >= 40].copy()
    return adata[np.asarray(adata.X.sum(1)).ravel() > 0].copy()


def gene_sets() -> pyrocell.Knowledge:
    """GO and Reactome."""
    files = [shared_file(f"knowledge/{name}.gmt.gz") for name in ("GO_BP_2021", "Reactome")]
    return pyrocell.Knowledge.from_gene_sets(*files, names=["GO", "Reactome"])


def shuffled(knowledge: pyrocell.Knowledge, genes: list[str], seed: int) -> pyrocell.Knowledge:
    """The same kernels with the names of genes permuted among those covered."""
    found = knowledge.kernel(genes)
    rng = np.random.default_rng(seed)
    some = np.flatnonzero(found.covered.any(0))
    order = rng.permutation(some)
    out = []
    for name, kernel in zip(knowledge.sources, found.kernels, strict=True):
        table = pd.DataFrame(kernel[np.ix_(order, order)], *[[genes[i] for i in some]] * 2)
        out.append(pyrocell.Knowledge.from_kernel(table, name))
    return out[0] + out[1]


# ---------------------------------------------------------------------------------- one fold
def fit(adata, keys: dict, epochs: int, seed: int) -> pyrocell.PyroCell:
    pyrocell.PyroCell.setup_anndata(adata, **keys)
    model = pyrocell.PyroCell(adata)
    model.train(max_epochs=epochs, seed=seed, progress_bar=False)
    return model


def levels(adata, keys: dict, where: dict, depth: float) -> pd.DataFrame:
    """log1p of mean counts at one depth, perturbations × genes, in one medium at one time."""
    here = np.ones(adata.n_obs, bool)
    for column, value in where.items():
        here &= (adata.obs[column] == value).to_numpy()
    adata = adata[here]
    labels = adata.obs["perturbation"].astype(str).to_numpy()
    sizes = adata.obs[keys["size_factor_key"]].to_numpy() if "size_factor_key" in keys else None
    if sizes is None:
        sizes = np.asarray(adata.X.sum(1)).ravel()
    out = {}
    for name in np.unique(labels):
        rows = labels == name
        out[name] = np.asarray(adata.X[rows].sum(0)).ravel() / sizes[rows].sum() * depth
    return np.log1p(pd.DataFrame(out, index=adata.var_names).T)


def left_out(name: str, held: list[str], certain: pd.DataFrame, epochs: int, seed: int):
    """Rows of the table, one for each perturbation left out and kind of knowledge."""
    adata, keys, where = screen(name)
    adata = usable(adata)
    labels = adata.obs["perturbation"].astype(str)
    seen = adata[~labels.isin(held).to_numpy()].copy()
    model = fit(seen, keys, epochs, seed)
    depth = float(np.exp(np.median(model._cells.log_size)))
    truth = levels(adata, keys, where, depth)
    cells = count(adata, where)
    others = truth.drop(index=["control", *held]).mean(0).to_numpy()
    go = gene_sets()
    genes = sorted(set(labels) - {"control"})
    kinds = {"GO and Reactome": go, "shuffled": shuffled(go, genes, seed), "population": None}
    media = where.get("media", model.screen.baseline_media)
    rows = []
    for kind, knowledge in kinds.items():
        for gene in held:
            used = "population" if knowledge is None else knowledge
            try:
                found = predicted(model, gene, used, where, depth, cells[gene])
            except UnknownLabelError:
                found = predicted(model, gene, "population", where, depth, cells[gene])
                used = "population"
            own = adata.var_names == gene
            keep = ~own
            t, draws = truth.loc[gene].to_numpy(), np.log1p(found)
            low, high = np.percentile(draws, [5, 95], axis=0, method="weibull")
            mean = draws.mean(0)
            rows.append(
                {
                    "screen": name,
                    "held": gene,
                    "knowledge": kind,
                    "covered": used != "population",
                    "mse": ((mean - t) ** 2)[keep].mean(),
                    "mean": ((others - t) ** 2)[keep].mean(),
                    "no_change": ((truth.loc["control"].to_numpy() - t) ** 2)[keep].mean(),
                    "mse_with_own": ((mean - t) ** 2).mean(),
                    "mean_with_own": ((others - t) ** 2).mean(),
                    "expected": draws.var(0)[keep].mean(),
                    "coverage": ((low <= t) & (t <= high))[keep].mean(),
                    "r": np.corrcoef(
                        (mean - truth.loc["control"])[keep], (t - truth.loc["control"])[keep]
                    )[0, 1],
                    **direction(model, gene, used, media, where.get("time"), certain),
                }
            )
    return rows


def count(adata, where: dict) -> pd.Series:
    """Cells of each perturbation there."""
    here = np.ones(adata.n_obs, bool)
    for column, value in where.items():
        here &= (adata.obs[column] == value).to_numpy()
    return adata.obs["perturbation"].astype(str)[here].value_counts()


def predicted(model, gene, knowledge, where, depth, n_cells) -> np.ndarray:
    """Draws of the pseudobulk of a perturbation that the model has not seen, (S, G)."""
    frame = pd.DataFrame([{"perturbation": gene, **where, "n_cells": n_cells}])
    draws = model.predict(
        frame, n_samples=SAMPLES, size_factor=depth, return_draws=True, knowledge=knowledge
    )
    return draws.to_numpy()[:, 0]


def direction(model, gene, knowledge, media, time, certain) -> dict:
    """Stated probabilities of "up, given a change", and the truth where it is certain."""
    used = None if isinstance(knowledge, str) else knowledge
    place = Place(model.fitted, used, media, time, SAMPLES)
    draws = place.draws([gene])[:, 0]
    up, down = (draws > REGION).sum(0) + 0.5, (draws < -REGION).sum(0) + 0.5
    mine = certain[(certain["perturbation"] == gene) & (certain["gene"] != gene)]
    columns = model.screen.genes.get_indexer(mine["gene"])
    stated = (up / (up + down))[columns]
    return {"stated": stated, "up": (mine["mean"] > 0).to_numpy()}


# ---------------------------------------------------------------------------------- all
def run(name: str, together: int, epochs: int, seed: int) -> dict:
    """Every perturbation of a screen left out."""
    adata, keys, where = screen(name)
    adata = usable(adata)
    whole = fit(adata, keys, epochs, seed)
    table = whole.perturbation_effects(**where)
    certain = table[(table["lfsr"] < CERTAIN) & ~table["few_counts"]]
    names = list(np.random.default_rng(seed).permutation(whole.screen.perturbations))
    folds = [names[i : i + together] for i in range(0, len(names), together)]
    rows = []
    for held in folds:
        rows += left_out(name, held, certain, epochs, seed)
        done = pd.DataFrame(rows).groupby("knowledge", sort=False)
        done = done[["mse", "mean", "no_change", "coverage"]].mean()
        print(name, len(rows) // 3, done.round(5).to_dict("index"), flush=True)
    out = {"perturbations": len(names), "left_out_together": together, "epochs": epochs}
    for kind, part in pd.DataFrame(rows).groupby("knowledge", sort=False):
        out[str(kind)] = summary(part)
    try:
        weighed = whole.knowledge(gene_sets(), media=where.get("media"), time=where.get("time"))
        out["weighed"] = weighed.to_dict("records")
    except KnowledgeError as error:
        out["weighed"] = str(error)
    return out


def summary(part: pd.DataFrame) -> dict:
    """Figures of one kind of knowledge on one screen."""
    stated, up = np.concatenate(list(part["stated"])), np.concatenate(list(part["up"]))
    sure = np.maximum(stated, 1 - stated)
    right = (stated > 0.5) == up
    better = int((part["mse"] < part["mean"]).sum())
    return {
        "mse": part["mse"].mean(),
        "mean_of_others": part["mean"].mean(),
        "no_change": part["no_change"].mean(),
        "ratio_to_mean": part["mse"].mean() / part["mean"].mean(),
        "ratio_with_own_gene": part["mse_with_own"].mean() / part["mean_with_own"].mean(),
        "better_than_mean": better,
        "p_sign": binomtest(better, len(part)).pvalue,
        "covered_genes": int(part["covered"].sum()),
        "coverage": part["coverage"].mean(),
        "coverage_lowest": part["coverage"].min(),
        "error_over_expected": part["mse"].mean() / part["expected"].mean(),
        "rank_of_errors": part[["mse", "expected"]].corr("spearman").iloc[0, 1],
        "directions": len(stated),
        "directions_right": right.mean() if len(stated) else np.nan,
        "directions_stated": sure.mean() if len(stated) else np.nan,
        "directions_ece": expected_calibration_error(sure, right) if len(stated) else np.nan,
        "by_perturbation": {
            row.held: [row.mse, row.mean, row.coverage, row.r] for row in part.itertuples()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--screens", nargs="+", default=["thp1", "hipsc", "k562", "stimulation"])
    parser.add_argument("--together", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=7)
    arguments = parser.parse_args()
    quiet()
    for name in arguments.screens:
        found = run(name, arguments.together, arguments.epochs, arguments.seed)
        print(name, {k: v for k, v in found["GO and Reactome"].items() if k != "by_perturbation"})
        part = part_of(parser, arguments, name, but=["screens"])
        write_results("unseen", {part: found}, [arguments.seed], rooms=ROOMS)


if __name__ == "__main__":
    main()
