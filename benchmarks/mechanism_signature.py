"""Panels of genes that tell a perturbation from controls, on held-out cells.

On the embedded screen (last day), on the THP-1 screen (batches held out) and on screens of known
truth with redundant genes: AUROC of the panel with 3 and 10 genes, beside as many genes with the
largest |z|, all genes, and panels with labels shuffled; whether intervals of the AUROC hold that of
many other cells; and where prediction and inference part. Seeds below 100 are for development.
"""

from __future__ import annotations

import argparse
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from common import part_of, quiet, run_all, shared, write_results

import pyrocell
from pyrocell.posterior.signature import auroc

SIZES = (3, 10)
FEWEST = 60  # cells of a perturbation
NOT_SURE = "of the ten genes, not sure (lfsr > .05)"
NOT_TOP = "of the ten genes, not among the ten surest"


def screen(name: str) -> tuple[ad.AnnData, dict[str, Any]]:
    if name == "embedded":
        setup = {"time_key": "time", "size_factor_key": "size_factor"}
        return pyrocell.datasets.hipsc_timecourse(), setup
    adata = shared("papalexi2021_thp1_eccite.h5ad")
    medium = str(adata.obs["media"].iloc[0])
    return adata, {"media_key": "media", "baseline_media": medium}


def real(name: str, seed: int) -> dict[str, Any]:
    """Means over perturbations of a real screen."""
    adata, setup = screen(name)
    pyrocell.PyroCell.setup_anndata(adata, **setup)
    model = pyrocell.PyroCell(adata)
    model.train(max_epochs=8, seed=seed, accelerator="cpu", progress_bar=False)
    tables = []
    for perturbation in model.screen.perturbations:
        try:
            tables.append(model.signature(perturbation, seed=seed, n_shuffles=5))
        except pyrocell.errors.ScreenError:
            continue  # too few cells
    table = pd.concat(tables)
    table = table[table["n_train"] + table["n_test"] >= FEWEST]
    strong = table.groupby("perturbation")["auroc_all"].transform("first") > 0.75
    out: dict[str, Any] = {"seed": seed, "n": int(table["perturbation"].nunique())}
    for kind, part in (("all", table), ("strong", table[strong])):
        out[kind] = {"n": int(part["perturbation"].nunique())}
        for k in SIZES:
            mine = part[part["rank"] == k]
            names = ("auroc_with", "auroc_top_z", "auroc_shuffled", "auroc_all")
            out[kind][str(k)] = {name: float(mine[name].mean()) for name in names}
        out[kind][NOT_SURE] = float((part["lfsr"] > 0.05).mean())
        out[kind][NOT_TOP] = float((part["z_rank"] > 10).mean())
    return out


def simulated(seed: int) -> dict[str, Any]:
    """Redundant genes: ten copies of one response, and three genes with one of their own.

    A larger sample of cells of the same kind says what the AUROC of each panel is.
    """
    adata, many = cells(seed, 150, 4), cells(seed, 1_500, 1)
    pyrocell.PyroCell.setup_anndata(adata)
    model = pyrocell.PyroCell(adata)
    model.train(max_epochs=8, seed=seed, accelerator="cpu", progress_bar=False)
    found = model.signature("A", 10, seed=seed, n_shuffles=5)
    depth = np.asarray(many.X.sum(1))
    usual = np.median(np.asarray(adata.X.sum(1)))
    levels = pd.DataFrame(np.log1p(many.X.toarray() / depth * usual), columns=many.var_names)
    responds = (many.obs["perturbation"] == "A").to_numpy()
    # the panel of that size, as it was fitted: only the last has its coefficients in the table
    last = found.iloc[-1]
    scale = found["coefficient"].to_numpy() / levels[found["gene"]].std().to_numpy()
    truth = auroc(levels[found["gene"]].to_numpy() @ scale, responds, np.zeros(len(many)))
    three = found[found["rank"] == 4]
    return {
        "seed": seed,
        "auroc_with": float(last["auroc_with"]),
        "auroc_with_4": float(three["auroc_with"].iloc[0]),
        "auroc_top_z_4": float(three["auroc_top_z"].iloc[0]),
        "auroc_shuffled": float(last["auroc_shuffled"]),
        "auroc_of_many_cells": truth,
        "inside": float(last["lower"] <= truth <= last["upper"]),
        "own responses in the first 4": int(
            found["gene"].head(4).isin(["g10", "g11", "g12"]).sum()
        ),
        "of largest |z| in 4": int((found[found["rank"] <= 4]["z_rank"] <= 4).sum()),
    }


def cells(seed: int, n: int, n_batches: int) -> ad.AnnData:
    """n cells of A and 3 n controls; genes 0-9 share what varies from cell to cell."""
    rng = np.random.default_rng([seed, n])
    label = np.repeat(["A", "control"], [n, 3 * n])
    batch = rng.integers(0, n_batches, 4 * n)
    hit = label == "A"
    log = np.full((4 * n, 60), 1.5) + 0.2 * rng.normal(size=(n_batches, 60))[batch]
    log[:, :10] += rng.normal(0, 0.6, (4 * n, 1)) + 0.7 * hit[:, None]
    log[:, 10:13] += 0.35 * hit[:, None] * np.array([1, -1, 1])
    counts = rng.poisson(np.exp(log)).astype(np.float32)
    obs = pd.DataFrame({"perturbation": label, "batch": [f"b{b}" for b in batch]})
    obs.index = [f"cell{i}" for i in range(4 * n)]
    genes = pd.DataFrame(index=[f"g{i}" for i in range(60)])
    return ad.AnnData(sp.csr_matrix(counts), obs, genes)


def rows_of(part: str, runs: list[dict[str, Any]]) -> list[list[Any]]:
    """Rows of the table on the page: what, pyrocell, anchor, null."""
    mean = lambda get: float(np.mean([get(r) for r in runs]))  # noqa: E731
    if part == "simulated":
        return [
            [
                "redundant genes, 4 genes, AUROC (largest abs. z; labels shuffled)",
                mean(lambda r: r["auroc_with_4"]),
                mean(lambda r: r["auroc_top_z_4"]),
                mean(lambda r: r["auroc_shuffled"]),
            ],
            ["the same: of the 3 genes with a response of their own, among the first 4",
             mean(lambda r: r["own responses in the first 4"]), None, None],
            ["the same: 90% intervals of the AUROC hold that of 6,000 other cells",
             mean(lambda r: r["inside"]), None, None],
        ]  # fmt: skip
    rows = []
    for kind in ("all", "strong"):
        found = [r[kind] for r in runs]
        head = f"{part}, {found[0]['n']} {'' if kind == 'all' else 'strong '}perturbations"
        for k in SIZES:
            values = pd.DataFrame([f[str(k)] for f in found]).mean()
            what = f"{head}, {k} genes, AUROC (largest abs. z; labels shuffled)"
            rows.append([what, *values[["auroc_with", "auroc_top_z", "auroc_shuffled"]]])
        rows.append(["the same: all genes", values["auroc_all"], None, None])
        for key in (NOT_SURE, NOT_TOP):
            rows.append([f"the same: {key}", float(np.mean([f[key] for f in found])), None, None])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--parts", nargs="+", default=["embedded", "thp1", "simulated"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[301])
    parser.add_argument("--screens", type=int, default=10)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--no-write", action="store_true")
    arguments = parser.parse_args()
    quiet()
    for name in arguments.parts:
        seeds = arguments.seeds
        if name == "simulated":
            seeds = [seeds[0] + i for i in range(arguments.screens)]
            runs = run_all(simulated, [(seed,) for seed in seeds], arguments.jobs)
        else:
            runs = run_all(real, [(name, seed) for seed in seeds], arguments.jobs)
        figures = {"rows": rows_of(name, runs), "of_seeds": runs}
        for row in figures["rows"]:
            print(row)
        if not arguments.no_write:
            part = part_of(parser, arguments, name, ("parts", "no_write"))
            rooms = ("posterior", "model", "generative", "guide", "training")
            write_results("mechanism_signature", {part: figures}, seeds, rooms=rooms)


if __name__ == "__main__":
    main()
