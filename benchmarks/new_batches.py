"""Pseudobulks of batches and laboratories that were never measured: do intervals hold them?

Simulated screens of 10 perturbations and 100 genes. The model is fitted to some of the batches and
predicts the mean counts of every condition in the others, with `batch="new"`, or an unseen
`laboratory`. Coverage is that of 90% intervals. Anchors: the same fit with η = 0, what `predict`
says without a column of batches; the laboratories' screen fitted without `laboratory_key`, its
unseen laboratories taken for new batches; RMSE (of log1p mean counts) of the pooled cells of the
same condition in the batches fitted. Genes of one batch are independent draws here, batches and
laboratories are what counts for the error of coverage: it is that over (batch or laboratory, gene).

"left out" is `leave_one_laboratory_out`: each laboratory of a screen in turn is left out and its
pseudobulks predicted. Anchors: the same refits with η = 0; the mean of the condition elsewhere.

    python benchmarks/new_batches.py --parts screens left_out
"""

from __future__ import annotations

import argparse

import numpy as np
import pandas as pd
from code_state import FIT
from common import covered, quiet, run_all, write_results

import pyrocell
from pyrocell.transfer import leave_one_laboratory_out

ROOMS = (*FIT, "transfer")  # that the figures depend on
COMMON = {"n_perturbations": 10, "n_genes": 100, "n_cells_per_condition": 60, "n_controls": 600}
COMMON |= {"mean_library": 2000.0}

# what, batches fitted, batches in all, sd of batches, batches by laboratory, sd of these, seed
SCREENS = [
    ("batches", 4, 8, 0.2, None, 0.0, 301),
    ("batches", 8, 12, 0.1, None, 0.0, 302),
    ("laboratories", 10, 17, 0.1, (3, 2, 2, 1, 2, 2, 2, 3), 0.3, 303),
]

# sd of batches, batches by laboratory, sd of these, seed
LEFT_OUT = [(0.1, (2, 1, 2, 2, 1, 2), 0.3, 304)]


def left_out(sd: float, laboratories: tuple[int, ...], laboratory_sd: float, seed: int) -> dict:
    """Each laboratory of a screen left out in turn."""
    quiet()
    n_batches = sum(laboratories)
    cells = n_batches * COMMON["n_cells_per_condition"] // 4
    adata = pyrocell.simulate.screen(
        n_batches=n_batches,
        batch_sd=sd,
        laboratories=laboratories,
        laboratory_sd=laboratory_sd,
        seed=seed,
        **COMMON | {"n_cells_per_condition": cells, "n_controls": 4 * cells},
    )
    pyrocell.PyroCell.setup_anndata(adata, laboratory_key="laboratory")
    table = leave_one_laboratory_out(
        pyrocell.PyroCell(adata), n_samples=400, min_cells=10, seed=seed
    )
    weight = table.n_pseudobulks / table.n_pseudobulks.sum()
    pooled = lambda name: float((weight * table[name]).sum())  # noqa: E731
    return {
        "screen": "left out",
        "laboratories": len(table),
        "pseudobulks": int(table.n_pseudobulks.sum()),
        "sd": sd,
        "seed": seed,
        "coverage": pooled("coverage"),
        "coverage_range": [table.coverage.min(), table.coverage.max()],
        "average_coverage": pooled("coverage_average"),
        "average_coverage_range": [table.coverage_average.min(), table.coverage_average.max()],
        "rmse": float(np.sqrt((weight * table.rmse**2).sum())),
        "pooled_rmse": float(np.sqrt((weight * table.rmse_average**2).sum())),
    }


def predict_new(
    what: str,
    fitted: int,
    n_batches: int,
    sd: float,
    laboratories: tuple[int, ...] | None,
    laboratory_sd: float,
    seed: int,
) -> dict:
    """Simulate, fit the first batches, predict the others."""
    quiet()
    spread = {"laboratories": laboratories, "laboratory_sd": laboratory_sd}
    cells = n_batches * COMMON["n_cells_per_condition"] // 4
    changes = COMMON | {"n_cells_per_condition": cells, "n_controls": 4 * cells}
    adata = pyrocell.simulate.screen(
        n_batches=n_batches,
        batch_sd=sd,
        balanced=laboratories is None,
        seed=seed,
        **spread,
        **changes,
    )
    names = adata.obs["batch"].cat.categories
    inside = adata.obs["batch"].isin(names[:fitted]).to_numpy()
    rest = adata[~inside]
    found = {"screen": what, "fitted": fitted, "new": n_batches - fitted, "sd": sd, "seed": seed}
    own = {} if laboratories is None else {"laboratory_key": "laboratory"}
    model = fit(adata[inside].copy(), seed, **own)
    frame, here, elsewhere, depth = pseudobulks(rest, adata[inside])
    labels = ["batch"] if laboratories is None else ["laboratory", "batch"]
    asked = frame.assign(batch="new") if laboratories is None else frame
    found["coverage"], found["rmse"], found["width"] = judge(model, asked, here, depth)
    found["average_coverage"], _, _ = judge(
        model, frame.drop(columns=labels, errors="ignore"), here, depth
    )
    found["pooled_rmse"] = rmse(elsewhere, here)
    if laboratories is not None:
        flat = fit(adata[inside].copy(), seed)
        plain = frame.drop(columns="laboratory").assign(batch="new")
        found["one_level_coverage"], _, found["one_level_width"] = judge(flat, plain, here, depth)
    return found


def fit(adata, seed: int, **keys: str):
    """A model of these cells."""
    pyrocell.PyroCell.setup_anndata(adata, **keys)
    model = pyrocell.PyroCell(adata)
    model.train(progress_bar=False, seed=seed)
    return model


def pseudobulks(rest, inside) -> tuple[pd.DataFrame, np.ndarray, np.ndarray, float]:
    """Conditions by new batch, their mean counts, those of the condition elsewhere, the depth."""
    depth = float(np.asarray(rest.X.sum(1)).mean())
    keys = ["perturbation", "batch", *(["laboratory"] if "laboratory" in rest.obs else [])]
    frame, here, elsewhere = [], [], []

    def mean(cells) -> np.ndarray:
        total = np.asarray(cells.X.sum(0), float).ravel()
        return depth * total / total.sum()

    for labels, rows in rest.obs.groupby(keys, observed=True).indices.items():
        row = dict(zip(keys, labels, strict=True))
        if len(rows) < 10:
            continue
        row["batch"] = f"new {row['batch']}"
        frame.append(row | {"n_cells": len(rows)})
        here.append(mean(rest[rows]))
        same = inside.obs["perturbation"] == row["perturbation"]
        elsewhere.append(mean(inside[same.to_numpy()]))
    return pd.DataFrame(frame), np.array(here), np.array(elsewhere), depth


def judge(model, frame: pd.DataFrame, here: np.ndarray, depth: float) -> tuple[float, float, float]:
    """Coverage, RMSE and mean relative width of the predictions."""
    out = model.predict(frame, n_samples=400, size_factor=depth)
    lower, upper = out.layers["lower"], out.layers["upper"]
    width = float(np.mean((upper - lower) / np.maximum(out.X, 1e-6)))
    return covered(lower, upper, here), rmse(out.X, here), width


def rmse(one: np.ndarray, other: np.ndarray) -> float:
    """Of log1p."""
    return float(np.sqrt(np.mean((np.log1p(one) - np.log1p(other)) ** 2)))


def main() -> None:
    """Run all screens."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="+", default=["screens", "left_out"])
    parser.add_argument("--jobs", type=int, default=1)
    args = parser.parse_args()
    jobs = {"screens": (predict_new, SCREENS), "left_out": (left_out, LEFT_OUT)}
    for part in args.parts:
        found = run_all(*jobs[part], args.jobs)
        print(pd.DataFrame(found).round(3).to_string())
        write_results("new_batches", {part: found}, [f["seed"] for f in found], rooms=ROOMS)


if __name__ == "__main__":
    main()
