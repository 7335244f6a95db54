"""From counts to report: are guides called right, and what do wrong calls do to the effects?

Simulated screens of two lanes with guide capture (`simulate.write_10x`): 5 % multiplets, ambient
guides by pooled abundance, guides of unequal strength. They are read and called as `pyrocell run`
does, by the mixture, by crispat's Poisson-Gaussian mixture and by a threshold of 5 counts. A call
is right if the set of guides called in a cell is that of its cells. Effects are fitted to the same
cells, once with the labels by the mixture, once with the true ones.

python benchmarks/run_10x.py                 # report seeds
python benchmarks/run_10x.py --seeds 1 2     # development
python benchmarks/run_10x.py --parts calls
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import tempfile
import time
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from code_state import FIT
from common import part_of, quiet, write_results

from pyrocell import PyroCell, preprocess, simulate

ROOMS = (*FIT, "preprocess")  # that the figures depend on
SEEDS = (901, 902, 903)
SCREEN = {"n_perturbations": 20, "n_genes": 200, "n_cells_per_condition": 100, "n_controls": 500}
SCREEN |= {"n_batches": 2, "on_target": -1.0}
# What differs from the defaults of GuideCapture.
CAPTURE = {
    "default": {},
    "ambient 10": {"ambient": 10.0},
    "ambient 30, own 100": {"ambient": 30.0, "own": 100.0},
    "own 10": {"own": 10.0},
}
CRISPAT = ("default", "ambient 10")  # it takes minutes for each
PARTS = ("calls", "effects")


def drawn(seed: int, **capture: float):
    """Cells as they are read, the truth of droplets, the screen they came from."""
    screen = simulate.screen(seed=seed, **SCREEN)
    with tempfile.TemporaryDirectory() as folder:
        truth = simulate.write_10x(screen, folder, simulate.GuideCapture(**capture), seed=seed)
        cells = preprocess.read_10x(folder)
    return cells, truth.loc[cells.obs_names], screen


def by_mixture(cells: ad.AnnData) -> preprocess.GuideCalls:
    return preprocess.assign_guides(
        cells.obsm["guides"],
        names=cells.uns["guides"].index,
        cells=cells.obs_names,
        batch=cells.obs["batch"],
        depth=np.asarray(cells.X.sum(1)).ravel(),
    )


def by_crispat(cells: ad.AnnData) -> np.ndarray | None:
    """Guides of each cell joined by +, None where crispat is not installed."""
    if importlib.util.find_spec("crispat") is None:
        return None
    from crispat import ga_poisson_gauss

    names = cells.uns["guides"].index
    counts = ad.AnnData(
        cells.obsm["guides"].astype(np.float32),
        pd.DataFrame(index=cells.obs_names),
        pd.DataFrame(index=names),
    )
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        counts.write_h5ad(Path(folder) / "guides.h5ad")
        ga_poisson_gauss(f"{folder}/guides.h5ad", f"{folder}/out/", make_plots=False)
        called = pd.read_csv(f"{folder}/out/assignments.csv")
    called["order"] = names.get_indexer(called["gRNA"])
    joined = called.sort_values("order").groupby("cell")["gRNA"].agg("+".join)
    return joined.reindex(cells.obs_names).fillna("").to_numpy()


def calls(seed: int) -> dict:
    """Share of cells whose guides are right, by method."""
    found = {}
    for name, capture in CAPTURE.items():
        cells, truth, _ = drawn(seed, **capture)
        mine = by_mixture(cells)
        counts, names = cells.obsm["guides"], cells.uns["guides"].index
        threshold = preprocess.assign_guides(counts, "threshold", names=names)
        said = {
            "mixture": mine.cells["guides"],
            "threshold 5": threshold.cells["guides"],
            "crispat": by_crispat(cells) if name in CRISPAT else None,
        }
        right = {
            method: float((np.asarray(guides) == truth["guides"].to_numpy()).mean())
            for method, guides in said.items()
            if guides is not None
        }
        found[name] = right | {"mixture expects": float(mine.cells["probability"].mean())}
        print(seed, name, found[name], flush=True)
    return found


def effects(seed: int) -> dict:
    """RMSE of effects by called and by true labels of the same cells, natural log."""
    cells, truth, screen = drawn(seed)
    targets = preprocess.guide_targets(cells.uns["guides"], genes=cells.var_names)
    labelled = preprocess.label_cells(cells, by_mixture(cells), targets)
    kept = preprocess.choose_genes(
        preprocess.filter_genes(preprocess.filter_cells(labelled)), len(screen.var_names)
    )
    true = kept.copy()
    sets = truth.loc[kept.obs_names, "guides"].str.split("+")
    true.obs["perturbation"] = pd.Categorical(
        ["+".join(sorted({targets[g] for g in s} - {"control"})) or "control" for s in sets]
    )
    wrong = np.asarray(kept.obs["perturbation"].astype(str) != true.obs["perturbation"].astype(str))
    result = {"cells": kept.n_obs, "labels wrong": float(wrong.mean())}
    for name, adata in (("called", kept), ("true", true)):
        start = time.time()
        PyroCell.setup_anndata(adata)
        model = PyroCell(adata)
        model.train(seed=seed, progress_bar=False)
        result[f"rmse {name}"], result[f"inside 90 % {name}"] = scored(model, screen)
        result[f"seconds {name}"] = round(time.time() - start)
    result["ratio"] = result["rmse called"] / result["rmse true"]
    print(seed, result, flush=True)
    return result


def scored(model: PyroCell, screen: ad.AnnData) -> tuple[float, float]:
    """RMSE, and share of true effects inside 90 % intervals, in the gauge of the truth."""
    truth = screen.uns["truth"]
    weights = pd.Series(np.asarray(truth["expression"], float).ravel(), screen.var_names)
    table = model.perturbation_effects(credible_level=0.9)
    wide = {c: table.pivot(index="perturbation", columns="gene", values=c) for c in
            ("mean", "lower", "upper")}  # fmt: skip
    names = truth["effect"].index
    effect = truth["effect"][wide["mean"].columns]
    w = weights[effect.columns] / weights[effect.columns].sum()
    mean, lower, upper = (wide[c].loc[names] for c in ("mean", "lower", "upper"))
    gauge = (mean - effect).mul(w, axis=1).sum(1)
    error = (mean - effect).sub(gauge, axis=0).to_numpy()
    inside = (lower.sub(gauge, axis=0) <= effect) & (effect <= upper.sub(gauge, axis=0))
    return float(np.sqrt((error**2).mean())), float(inside.to_numpy().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    arguments = parser.parse_args()
    quiet()
    parts = {name: [globals()[name](seed) for seed in arguments.seeds] for name in arguments.parts}
    figures = {}
    if "calls" in parts:
        figures["calls"] = {
            name: pd.DataFrame([found[name] for found in parts["calls"]]).mean().to_dict()
            for name in CAPTURE
        }
    if "effects" in parts:
        table = pd.DataFrame(parts["effects"])
        figures["effects"] = {"mean": table.mean().to_dict(), "each": table.to_dict("records")}
    named = {part_of(parser, arguments, part): found for part, found in figures.items()}
    write_results("run_10x", named, arguments.seeds, rooms=ROOMS)


if __name__ == "__main__":
    main()
