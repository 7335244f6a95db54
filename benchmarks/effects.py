"""Do effects hold: screens with known effects, shuffled labels, halves, replicates, kinds of cells.

Every table is that of a default `train()`; other tools and an answer without a model (every effect
is zero) are scored in the same run. Seeds 301 to 303 were not used to choose anything; seeds below
100 were. Truth of simulated and thinned screens is the log ratio of expected shares; `_in_gauge`
sets it against the genes that a perturbation does not touch, which is what the table states.

    python benchmarks/effects.py --jobs 2
    python benchmarks/effects.py --parts ordinary --kinds 100 thinned --no-peers
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import anndata as ad
import effect_peers
import effect_screens as screens
import numpy as np
import pandas as pd
import torch
from common import covered, part_of, quiet, run_all, shared, write_results

import pyrocell

SEEDS = (301, 302, 303)
ORDINARY = {
    "30": {"n": 30},
    "100": {},
    "300": {"n": 300},
    "programs": {"programs": True},
    "guides": {"guides": True, "escape": 0.2},
}
SPARSE = {"n_perturbations": 20, "n": 300, "n_controls": 200, "n_genes": 2000, "depth": 60.0}
SPARSE |= {"theta": 0.01, "n_batches": 2}
REAL = {
    "stimulation": ("datlinger2021_jurkat_tcr.h5ad", {"media_key": "media"}, ["batch", "media"]),
    "thp1": ("papalexi2021_thp1_eccite.h5ad", {}, ["batch"]),
    "k562": ("norman2019_k562_crispra.h5ad", {"perturbation_type": "CRISPRa"}, ["batch"]),
}
CASCADE = ("ZAP70", "LCK", "LAT")


def usable(adata: ad.AnnData) -> ad.AnnData:
    """Genes that were seen, and cells with counts."""
    adata = adata[:, np.asarray(adata.X.sum(0)).ravel() > 0].copy()
    return adata[np.asarray(adata.X.sum(1)).ravel() > 0].copy()


def fitted(adata: ad.AnnData, setup: dict | None = None, **options) -> pyrocell.PyroCell:
    """A model of a screen, trained with defaults."""
    pyrocell.PyroCell.setup_anndata(adata, **(setup or {}))
    model = pyrocell.PyroCell(adata)
    model.train(progress_bar=False, **options)
    return model


def listed(effects: pd.DataFrame) -> pd.DataFrame:
    """The columns that a score takes."""
    return effects.assign(
        rank=effects["lfsr"], listed_5=effects["fdr"] <= 0.05, listed_10=effects["fdr"] <= 0.1
    )


# ---------------------------------------------------------------------- known effects
def simulated(kind: str, seed: int) -> ad.AnnData:
    """A screen of one kind."""
    if kind == "thinned":
        return screens.thinned(seed, shared("papalexi2021_thp1_eccite.h5ad"))
    if kind.startswith("sparse"):
        return screens.screen(seed, **SPARSE, silent=1.0 if kind == "sparse_silent" else 0.4)
    return screens.screen(seed, **ORDINARY[kind])


def known(kind: str, seed: int, peers: bool) -> dict:
    """Scores of the posterior's table, of the counts alone, and of other tools."""
    adata = simulated(kind, seed)
    start = time.time()
    model = fitted(adata.copy(), seed=seed)
    trained = time.time() - start
    effects = model.perturbation_effects()
    free = model.perturbation_effects(shrunken=False)
    alone = free.assign(rank=free["p"], listed_5=free["q"] <= 0.05, listed_10=free["q"] <= 0.1)
    out = {
        "kind": kind,
        "seed": seed,
        "train_seconds": round(trained, 1),
        "programs": model.programs_.rank,
        "posterior": screens.score(listed(effects), adata),
        "counts_alone": screens.score(alone, adata),
        "disagreement": disagreement(effects, free),
    }
    for name, peer in (effect_peers.installed() if peers else {}).items():
        start = time.time()
        out[name] = screens.score(peer(adata), adata)
        out[name]["seconds"] = round(time.time() - start, 1)
    return out


def disagreement(effects: pd.DataFrame, free: pd.DataFrame) -> float:
    """Share of well-counted genes whose posterior mean is outside the counts' own 99% interval."""
    both = effects.merge(free, on=["perturbation", "gene"], suffixes=("", "_free"))
    well = (both["count"] >= 50) & (both["count_control"] >= 50)
    away = (both["mean"] - both["mean_free"]).abs() > 2.576 * both["sd_free"]
    return float(away[well].mean()) if well.any() else np.nan


# ---------------------------------------------------------------------- nothing to be found
def real(name: str) -> tuple[ad.AnnData, dict, list[str]]:
    """A real screen, its columns, and what labels are shuffled within."""
    if name == "hipsc":
        columns = {"time_key": "time", "size_factor_key": "size_factor"}
        return pyrocell.datasets.hipsc_timecourse(), columns, ["batch"]
    file, columns, within = REAL[name]
    return usable(shared(file)), columns, within


def shuffled(name: str, seed: int) -> dict:
    """What is said of labels that mean nothing, the worst of media and times."""
    source, setup, within = real(name)
    adata = screens.shuffled(seed, source, within)
    model = fitted(adata, setup, seed=seed)
    total = np.asarray(adata.X.sum(0)).ravel()
    well = adata.var_names[np.argsort(total)[-400:]]
    rows = []
    for medium in (model.screen.baseline_media, *model.screen.media):
        for moment in model.screen.times or (None,):
            where = {"media": medium, "time": moment}
            effects = model.perturbation_effects(**where)
            free = model.perturbation_effects(**where, shrunken=False)
            mean = effects.pivot(index="perturbation", columns="gene", values="mean")
            rows.append(
                {
                    "excluding_zero": excludes(effects),
                    "listed": float((effects["fdr"] <= 0.1).mean()),
                    "common": float(np.sqrt((mean.mean(0)[well] ** 2).mean())),
                    "rms": float(np.sqrt((effects["mean"] ** 2).mean())),
                    "p_below_5": float((free["p"] < 0.05).mean()),
                    "q_below_10": float((free["q"] <= 0.1).mean()),
                }
            )
    out = {"screen": name, "seed": seed, **pd.DataFrame(rows).max().to_dict()}
    if model.screen.media:
        gains = model.media_gains()
        out |= {"gain_sd": float(gains["mean"].std()), "gain_posterior_sd": gains["sd"].mean()}
    return out


def excludes(effects: pd.DataFrame) -> float:
    """Share of intervals that do not hold zero."""
    return float(((effects["lower"] > 0) | (effects["upper"] < 0)).mean())


def kinds(n: int, times: bool, seed: int) -> dict:
    """Random labels in a mixture of three kinds of cells."""
    model = fitted(
        screens.kinds(seed, n, times), {"time_key": "time" if times else None}, seed=seed
    )
    tables = [model.perturbation_effects(time=t) for t in model.screen.times or (None,)]
    return {
        "cells": n,
        "times": times,
        "seed": seed,
        "excluding_zero": max(excludes(t) for t in tables),
        "listed": max(float((t["fdr"] <= 0.1).mean()) for t in tables),
    }


# ---------------------------------------------------------------------- real effects
def halves(name: str, seed: int) -> dict:
    """Agreement of effects between halves of the cells of a real screen."""
    source, setup, _ = real(name)
    rng, first = np.random.default_rng(seed), np.zeros(source.n_obs, bool)
    for rows in source.obs.groupby("perturbation", observed=True).indices.values():
        first[rng.permutation(rows)[: len(rows) // 2]] = True
    tables = []
    for half in (first, ~first):
        part = usable(source[half])
        model = fitted(part, setup, seed=seed)
        labels = sorted(set(part.obs["perturbation"].astype(str)) - {"control"})
        asked = pd.DataFrame({"perturbation": ["control", *labels]})
        level = np.log(model.predict(asked, n_samples=100).X)
        table = model.perturbation_effects(labels)
        share = pd.DataFrame(level[1:] - level[0], labels, part.var_names).stack()
        share = share.rename_axis(["perturbation", "gene"]).rename("share").reset_index()
        tables.append(table.merge(share, on=["perturbation", "gene"]))
    both = tables[0].merge(tables[1], on=["perturbation", "gene"], suffixes=("", "_other"))
    sure = both[both["fdr"] <= 0.1]
    well = both[both[["count_control", "count_control_other"]].min(axis=1) >= 20]

    def r(rows: pd.DataFrame, column: str = "mean") -> float:
        return float(np.corrcoef(rows[column], rows[f"{column}_other"])[0, 1])

    return {
        "screen": name,
        "seed": seed,
        "pearson": r(both),
        "pearson_well_counted": r(well),
        "well_counted": len(well) / len(both),
        "pearson_of_shares": r(both, "share"),
        "pearson_of_shares_well_counted": r(well, "share"),
        "listed": len(sure),
        "same_sign": float((np.sign(sure["mean"]) == np.sign(sure["mean_other"])).mean()),
        "same_sign_where_listed_in_both": float(
            (np.sign(sure["mean"]) == np.sign(sure["mean_other"]))[sure["fdr_other"] <= 0.1].mean()
        ),
    }


def guides(seed: int) -> dict:
    """Non-targeting guides of the THP-1 screen as if each were a perturbation."""
    adata = usable(shared("papalexi2021_thp1_eccite.h5ad"))
    control = (adata.obs["perturbation"] == "control").to_numpy()
    adata = adata[control & adata.obs["guide"].notna().to_numpy()].copy()
    guide = adata.obs["guide"].astype(str)
    names = sorted(guide.unique())
    rng = np.random.default_rng(seed)
    tested = sorted(rng.choice(names, 4, replace=False))
    adata.obs["perturbation"] = np.where(guide.isin(tested), guide, "control")
    model = fitted(adata, seed=seed)
    effects = model.perturbation_effects()
    free = model.perturbation_effects(shrunken=False)
    seen = free["count"] + free["count_control"] >= 20
    return {
        "seed": seed,
        "guides": tested,
        "pairs": len(effects),
        "listed": int((effects["fdr"] <= 0.1).sum()),
        "p_below_5": float((free["p"] < 0.05)[seen].mean()),
        "excluding_zero": excludes(effects),
    }


def stimulation(seed: int) -> dict:
    """Gains and lists of the stimulation screen."""
    adata, setup, _ = real("stimulation")
    model = fitted(adata, setup, seed=seed)
    gains = model.media_gains().set_index("perturbation")
    tables = [model.perturbation_effects(media=m) for m in ("baseline", *model.screen.media)]
    sure = pd.concat(tables).query("fdr <= 0.1")
    return {
        "seed": seed,
        "gains": {k: gains.loc[k, ["mean", "lower", "upper"]].tolist() for k in CASCADE},
        "ranks": {k: int((gains["mean"] < gains.loc[k, "mean"]).sum()) + 1 for k in CASCADE},
        "lowest": gains["mean"].sort_values().head(5).round(3).to_dict(),
        "listed": len(sure),
        "listed_below_5_counts": int(((sure["count"] < 5) & (sure["count_control"] < 5)).sum()),
    }


# ---------------------------------------------------------------------- replicates
def replicates(seed: int) -> dict:
    """Batches between which effects vary: intervals of the mean effect, and of a new batch's."""
    adata = screens.replicated(seed)
    model = fitted(adata, seed=seed)
    effects = model.perturbation_effects()
    shape = len(adata.uns["perturbations"]), adata.n_vars
    index = pd.MultiIndex.from_product([adata.uns["perturbations"], adata.var_names])
    table = effects.set_index(["perturbation", "gene"]).reindex(index)
    lower, upper, mean = (table[c].to_numpy().reshape(shape) for c in ("lower", "upper", "mean"))
    truth = screens.in_gauge(adata.varm["truth"].T, adata.varm["implanted"].T)
    free = model.perturbation_effects(shrunken=False).set_index(["perturbation", "gene"])
    free = free.reindex(index)
    names = ["control", *adata.uns["perturbations"]]
    draws = model.predict(
        pd.DataFrame({"perturbation": names, "batch": "new"}), n_samples=400, return_draws=True
    ).to_numpy()
    ratio = np.log(draws[:, 1:]) - np.log(draws[:, :1])
    low, high = np.percentile(ratio, [5, 95], axis=0)
    shift = np.median(np.log(draws[:, 1:] / draws[:, :1]).mean(0) - mean, 1, keepdims=True)
    low_alone, high_alone, alone = (
        free[c].to_numpy().reshape(shape) for c in ("lower", "upper", "mean")
    )  # against all genes: half of which move here
    gauge = np.median(alone - truth, 1, keepdims=True)
    sure = (table["fdr"] <= 0.1).to_numpy().reshape(shape)
    wrong = (adata.varm["implanted"].T == 0) | (np.sign(mean) != np.sign(truth))
    return {
        "seed": seed,
        "mean_effect": covered(lower, upper, truth),
        "listed": int(sure.sum()),
        "false": float(wrong[sure].mean()) if sure.any() else 0.0,
        "mean_effect_counts_alone": covered(low_alone - gauge, high_alone - gauge, truth),
        "new_batch": covered(low - shift, high - shift, adata.varm["new"].T),
        "rmse": float(np.sqrt(np.mean((mean - truth) ** 2))),
    }


def dense(n: int, seed: int) -> dict:
    """Perturbations that move every gene a little: intervals, size, and signs of what is listed."""
    adata = screens.dense(seed, n)
    model = fitted(adata, seed=seed)
    shape = len(adata.uns["perturbations"]), adata.n_vars
    index = pd.MultiIndex.from_product([adata.uns["perturbations"], adata.var_names])
    table = model.perturbation_effects().set_index(["perturbation", "gene"]).reindex(index)
    part = lambda column: table[column].to_numpy().reshape(shape)  # noqa: E731
    truth = adata.varm["truth"].T
    moved = (truth != 0).any(1)
    truth = truth - np.median(truth, 1, keepdims=True)  # against what most genes do
    sure = part("fdr") <= 0.1
    wrong = np.sign(part("mean")) != np.sign(truth)
    return {
        "cells": n,
        "seed": seed,
        "cover": covered(part("lower")[moved], part("upper")[moved], truth[moved]),
        "cover_silent": covered(part("lower")[~moved], part("upper")[~moved], truth[~moved]),
        "rmse": float(np.sqrt(np.mean((part("mean") - truth)[moved] ** 2))),
        "rmse_of_zero": float(np.sqrt(np.mean(truth[moved] ** 2))),
        "rmse_silent": float(np.sqrt(np.mean(part("mean")[~moved] ** 2))),
        "listed": int(sure.sum()),
        "false": float((wrong | ~moved[:, None])[sure].mean()) if sure.any() else 0.0,
    }


# ---------------------------------------------------------------------- media
def media_screen(kind: str, seed: int) -> tuple[ad.AnnData, dict]:
    """Cells with and without a medium, and how they are registered; `.var["truth"]` if known."""
    rng = np.random.default_rng(seed)
    setup = {"media_key": "media", "perturbation_key": None}
    if kind == "shuffled":  # stimulated and resting cells of every label change places
        adata, setup, _ = real("stimulation")
        for rows in adata.obs.groupby(["perturbation", "batch"], observed=True).indices.values():
            column = adata.obs.columns.get_loc("media")
            adata.obs.iloc[rows, column] = adata.obs["media"].to_numpy()[rng.permutation(rows)]
        return adata, setup
    if kind.startswith("kinds"):
        n = int(kind.removeprefix("kinds "))
        adata = screens.kinds(seed, n, False)
        adata.obs["media"] = np.where(rng.random(n) < 0.5, "baseline", "stimulus")
        return adata, setup
    if kind == "donors":
        return screens.donors(seed), setup
    controls, depth = (int(text) for text in kind.split(" controls, depth "))
    adata = pyrocell.simulate.screen(
        n_perturbations=10, n_genes=400, n_cells_per_condition=40, n_controls=controls, n_batches=2,
        media=1, media_rms=0.3, mean_library=depth, dispersion=0.2, seed=seed,
    )  # fmt: skip
    adata.var["truth"] = adata.uns["truth"]["media_effect"].to_numpy()[0]
    return adata, {"media_key": "media"}


def media(kind: str, seed: int) -> dict:
    """`media_effects` where nothing is there, where little was measured, where donors differ."""
    adata, setup = media_screen(kind, seed)
    model = fitted(adata, setup, seed=seed)
    table = model.media_effects()
    sure = (table["fdr"] <= 0.1).to_numpy()
    found = {"kind": kind, "seed": seed, "excluding_zero": excludes(table), "pairs": len(table)}
    found["listed"] = int(sure.sum())
    if "truth" not in adata.var:
        return found
    truth = adata.var.loc[table["gene"], "truth"].to_numpy()
    moved = truth != 0
    still = ~moved if (~moved).any() else np.ones(len(truth), bool)
    truth = truth - np.median((truth - table["mean"])[still])  # against what most genes do
    wrong = ~moved | (np.sign(truth) != np.sign(table["mean"].to_numpy()))
    return found | {
        "cover": covered(table["lower"], table["upper"], truth),
        "false": float(wrong[sure].mean()) if sure.any() else 0.0,
        "rmse": float(np.sqrt(np.mean((table["mean"] - truth) ** 2))),
        "rmse_of_zero": float(np.sqrt(np.mean(truth**2))),
    }


MEDIA = ("shuffled", "kinds 250", "kinds 2000", "60 controls, depth 60", "20 controls, depth 150")
MEDIA += ("60 controls, depth 1000", "donors")


# ---------------------------------------------------------------------- cost
def cost(n_perturbations: int, n_genes: int) -> dict:
    """Seconds that the gene-level phase and a table of effects take, on all cores."""
    torch.set_num_threads(os.cpu_count() or 1)
    adata = screens.screen(
        301, n_perturbations=n_perturbations, n=20, n_controls=1000, n_genes=n_genes, depth=3000.0
    )
    pyrocell.PyroCell.setup_anndata(adata)
    model = pyrocell.PyroCell(adata)
    start = time.time()
    model.train(max_epochs=1, progress_bar=False, gene_level=False)
    without = time.time() - start
    start = time.time()
    model.train(max_epochs=1, progress_bar=False)
    phase = time.time() - start - without
    start = time.time()
    model.perturbation_effects()
    return {
        "perturbations": n_perturbations,
        "genes": n_genes,
        "phase_seconds": round(phase, 1),
        "effects_seconds": round(time.time() - start, 1),
    }


PARTS = (
    "ordinary sparse dense media shuffled kinds halves guides stimulation replicates cost".split()
)


def main() -> None:
    """Run the parts asked for and write what they say."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument("--kinds", nargs="+", default=[*ORDINARY, "thinned"])
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--output", type=Path, default=None)
    args = parser.parse_args()
    quiet()
    seeds, peers = args.seeds, not args.no_peers
    jobs = {
        "ordinary": (known, [(k, s, peers) for k in args.kinds for s in seeds]),
        "sparse": (known, [(k, s, False) for k in ("sparse", "sparse_silent") for s in seeds]),
        "dense": (dense, [(n, s) for n in (20, 60, 200) for s in seeds]),
        "media": (media, [(k, s) for k in MEDIA for s in seeds]),
        "shuffled": (shuffled, [(n, s) for n in (*REAL, "hipsc") for s in seeds]),
        "kinds": (kinds, [(n, t, s) for n in (250, 2000) for t in (False, True) for s in seeds]),
        "halves": (halves, [(n, s) for n in ("thp1", "k562") for s in seeds]),
        "guides": (guides, [(s,) for s in seeds]),
        "stimulation": (stimulation, [(s,) for s in seeds]),
        "replicates": (replicates, [(s,) for s in seeds]),
        "cost": (cost, [(500, 8000)]),
    }
    for part in args.parts:
        function, work = jobs[part]
        only = () if part == "ordinary" else ("kinds", "no_peers")
        found = run_all(function, work, 1 if part == "cost" else args.jobs)
        name = part_of(parser, args, part, only)
        write_results("effects", {name: found}, seeds=seeds, path=args.output)


if __name__ == "__main__":
    main()
