"""Perturbations that were never measured, on four real screens: each left out, the model retrained.

The model is trained without the cells of some perturbations and predicts them by GO and Reactome.
Errors are those of log1p of the mean count at one depth, the gene that is perturbed left out, which
no other perturbation says anything of; 90% intervals include the sampling noise of the held-out
pseudobulk. Anchors in the same run, from the same cells: the mean of the other perturbations'
levels, and the control. `shuffled` is the same with the names in the knowledge permuted, and
`population` the model without knowledge. Directions are scored where the truth is certain: genes
that a model of all cells lists at lfsr < .01.

Perturbations are left out in `--folds` (0: one by one), so that those left out together are as
unlike each other as GO and Reactome can have them: each keeps its neighbours. The gradient phase is
short, since what single genes do comes from the second phase.

    python benchmarks/unseen.py --screens thp1 hipsc k562 stimulation
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from code_state import FIT
from common import part_of, quiet, shared, shared_file, write_results
from scipy.stats import binomtest

import pyrocell
from pyrocell.metrics import expected_calibration_error
from pyrocell.posterior.unseen.place import Place

ROOMS = (*FIT, "knowledge")
STIMULUS = "TCR_stimulation"
CERTAIN, REGION, SAMPLES, SEEN = 0.01, 0.05, 200, 0.02


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
    """Cells with counts, genes seen in one in fifty cells."""
    often = np.asarray((adata.X > 0).mean(0)).ravel() >= SEEN
    adata = adata[:, often].copy()
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
def fit(
    adata, keys: dict, epochs: int, seed: int, keep: Path | None, name: str
) -> pyrocell.PyroCell:
    """A model of these cells; that of an earlier run where it was kept."""
    place = None if keep is None else keep / f"{name}-{epochs}-{seed}"
    if place is not None and place.is_dir():
        return pyrocell.PyroCell.load(place, adata)
    pyrocell.PyroCell.setup_anndata(adata, **keys)
    model = pyrocell.PyroCell(adata)
    model.train(max_epochs=epochs, seed=seed, progress_bar=False)
    if place is not None:
        model.save(place)
    return model


def levels(adata, keys: dict, where: dict, depth: float) -> pd.DataFrame:
    """log1p of mean counts at one depth, perturbations × genes, in one medium at one time."""
    here = np.ones(adata.n_obs, bool)
    for column, value in where.items():
        here &= (adata.obs[column] == value).to_numpy()
    adata = adata[here]
    labels = adata.obs["perturbation"].astype(str).to_numpy()
    sizes = sizes_of(adata, keys)
    out = {}
    for name in np.unique(labels):
        rows = labels == name
        out[name] = np.asarray(adata.X[rows].sum(0)).ravel() / sizes[rows].sum() * depth
    return np.log1p(pd.DataFrame(out, index=adata.var_names).T)


def left_out(
    name: str, held: list[str], certain: pd.DataFrame, epochs: int, seed: int, keep: Path | None
) -> list[dict]:
    """Rows of the table, one for each perturbation left out and kind of knowledge."""
    adata, keys, where = screen(name)
    adata = usable(adata)
    labels = adata.obs["perturbation"].astype(str)
    seen = adata[~labels.isin(held).to_numpy()].copy()
    model = fit(seen, keys, epochs, seed, keep, "-".join([name, *sorted(held)]))
    depth = float(np.exp(np.median(model._cells.log_size)))
    truth = levels(adata, keys, where, depth)
    batches = batch_mix(adata, keys, where)
    others = truth.drop(index=["control", *held]).mean(0).to_numpy()
    go = gene_sets()
    genes = sorted(set(labels) - {"control"})
    known = go.matched(held).notna().any(axis=1)
    kinds = {"GO and Reactome": go, "shuffled": shuffled(go, genes, seed), "population": None}
    rows = []
    for kind, knowledge in kinds.items():
        for covered in (True, False):
            some = [g for g in held if known[g] == covered]
            used = knowledge if covered else None
            rows += scores(model, some, kind, used, where, truth, others, batches, depth, certain)
    return [{"screen": name, **row} for row in rows]


def scores(
    model, held, kind, knowledge, where, truth, others, batches, depth, certain
) -> list[dict]:
    """Rows of some perturbations, predicted by one kind of knowledge."""
    if not held:
        return []
    genes = np.array(model.screen.genes, str)
    media = where.get("media", model.screen.baseline_media)
    found = predicted(model, held, knowledge, where, depth, batches)
    effects = Place(model.fitted, knowledge, media, where.get("time"), SAMPLES).draws(held)
    control, rows = truth.loc["control"].to_numpy(), []
    for i, gene in enumerate(held):
        keep, t, draws = genes != gene, truth.loc[gene].to_numpy(), np.log1p(found[gene])
        low, high = np.percentile(draws, [5, 95], axis=0, method="weibull")
        mean = draws.mean(0)
        rows.append(
            {
                "held": gene,
                "knowledge": kind,
                "covered": knowledge is not None,
                "mse": ((mean - t) ** 2)[keep].mean(),
                "mean": ((others - t) ** 2)[keep].mean(),
                "no_change": ((control - t) ** 2)[keep].mean(),
                "mse_with_own": ((mean - t) ** 2).mean(),
                "mean_with_own": ((others - t) ** 2).mean(),
                "expected": draws.var(0)[keep].mean(),
                "coverage": ((low <= t) & (t <= high))[keep].mean(),
                "r": np.corrcoef((mean - control)[keep], (t - control)[keep])[0, 1],
                **direction(effects[:, i], gene, genes, certain),
            }
        )
    return rows


def batch_mix(adata, keys: dict, where: dict) -> dict[str, pd.DataFrame]:
    """Cells of each perturbation there by batch, and each batch's share of their depth."""
    here = np.ones(adata.n_obs, bool)
    for column, value in where.items():
        here &= (adata.obs[column] == value).to_numpy()
    obs = adata.obs[here].assign(size=sizes_of(adata, keys)[here])
    labels = obs["perturbation"].astype(str)
    out = {}
    for name, part in obs.groupby(labels):
        by = part.groupby(part["batch"].astype(str))["size"].agg(["size", "sum"])
        out[str(name)] = pd.DataFrame({"n_cells": by["size"], "share": by["sum"] / by["sum"].sum()})
    return out


def sizes_of(adata, keys: dict) -> np.ndarray:
    """Depth of each cell."""
    if "size_factor_key" in keys:
        return adata.obs[keys["size_factor_key"]].to_numpy(float)
    return np.asarray(adata.X.sum(1)).ravel().astype(float)


def predicted(model, held, knowledge, where, depth, batches) -> dict[str, np.ndarray]:
    """Draws of the pseudobulks of perturbations that the model has not seen, (S, G) each.

    Of as many cells in each batch as were measured, since the mean of the others that they are
    scored against is of the same batches.
    """
    frames = [
        pd.DataFrame({"perturbation": gene, **where, "batch": batches[gene].index}).assign(
            n_cells=batches[gene]["n_cells"].to_numpy()
        )
        for gene in held
    ]
    frame = pd.concat(frames, ignore_index=True)
    draws = model.predict(
        frame,
        n_samples=SAMPLES,
        size_factor=depth,
        return_draws=True,
        knowledge="population" if knowledge is None else knowledge,
    ).to_numpy()
    rows = frame.groupby("perturbation").indices
    shares = {gene: batches[gene]["share"].to_numpy() for gene in held}
    return {gene: np.einsum("sbg,b->sg", draws[:, rows[gene]], shares[gene]) for gene in held}


def direction(draws: np.ndarray, gene: str, genes: np.ndarray, certain: pd.DataFrame) -> dict:
    """Stated probabilities of "up, given a change", and the truth where it is certain."""
    up, down = (draws > REGION).sum(0) + 0.5, (draws < -REGION).sum(0) + 0.5
    mine = certain[(certain["perturbation"] == gene) & (certain["gene"] != gene)]
    columns = pd.Index(genes).get_indexer(mine["gene"])
    stated = (up / (up + down))[columns]
    return {"stated": stated, "up": (mine["mean"] > 0).to_numpy()}


# ---------------------------------------------------------------------------------- all
def run(name: str, n_folds: int, epochs: int, seed: int, keep: Path | None) -> dict:
    """Every perturbation of a screen left out."""
    adata, keys, where = screen(name)
    adata = usable(adata)
    whole = fit(adata, keys, epochs, seed, keep, name)
    table = whole.perturbation_effects(**where)
    certain = table[(table["lfsr"] < CERTAIN) & ~table["few_counts"]]
    names = list(np.random.default_rng(seed).permutation(whole.screen.perturbations))
    folds = folds_of(names, n_folds or len(names))
    rows = []
    for held in folds:
        rows += left_out(name, held, certain, epochs, seed, keep)
        done = pd.DataFrame(rows).groupby("knowledge", sort=False)
        done = done[["mse", "mean", "no_change", "coverage"]].mean()
        print(name, len(rows) // 3, done.round(5).to_dict("index"), flush=True)
    out = {"perturbations": len(names), "folds": len(folds), "epochs": epochs}
    for kind, part in pd.DataFrame(rows).groupby("knowledge", sort=False):
        out[str(kind)] = summary(part)
    weighed = whole.knowledge(gene_sets(), media=where.get("media"), time=where.get("time"))
    out["weighed"] = weighed.to_dict("records")
    return out


def folds_of(names: list[str], n_folds: int) -> list[list[str]]:
    """Folds of like size, each of perturbations that are unlike each other."""
    alike = gene_sets().kernel(names).kernels.mean(0)
    size = -(-len(names) // n_folds)
    folds: list[list[int]] = [[] for _ in range(n_folds)]
    # the ones with the nearest neighbours first, while there is a choice
    near = (alike - np.eye(len(names))).max(1)
    for i in np.argsort(-near, kind="stable"):
        free = [fold for fold in folds if len(fold) < size]
        nearest = [max(alike[i, fold], default=0.0) for fold in free]
        free[int(np.lexsort(([len(fold) for fold in free], nearest))[0])].append(int(i))
    return [[names[i] for i in fold] for fold in folds if fold]


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
        "directions_ece": expected_calibration_error(right, sure) if len(stated) else np.nan,
        "by_perturbation": {
            row.held: [row.mse, row.mean, row.coverage, row.r] for row in part.itertuples()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--screens", nargs="+", default=["thp1", "hipsc", "k562", "stimulation"])
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--keep", type=Path, help="folder of fitted models, used again")
    arguments = parser.parse_args()
    quiet()
    for name in arguments.screens:
        options = arguments.folds, arguments.epochs, arguments.seed, arguments.keep
        found = run(name, *options)
        print(name, {k: v for k, v in found["GO and Reactome"].items() if k != "by_perturbation"})
        part = part_of(parser, arguments, name, but=["screens", "keep"])
        write_results("unseen", {part: found}, [arguments.seed], rooms=ROOMS)


if __name__ == "__main__":
    main()
