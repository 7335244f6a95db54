"""What shuffling by runs of neighbours costs a fit, where the file is in random order or sorted.

A screen 30 times smaller than a million cells, and so are batches, runs and pools: 99 perturbations
of 60 cells and 600 controls, 100 genes, 4 batches, minibatches and runs of 16 cells, pools of 512.
Three ways, the same cells and seeds: every cell shuffled by itself; runs of a file in random order;
runs of a file sorted by perturbation and batch, so that a pool holds cells of a third of the
perturbations at most. Figures are medians over seeds of the root mean square error of the effects
on other genes,
natural-log fold change, the share of true effects inside 90% intervals, and the training loss per
cell at the end. The anchor without a model is the error of saying that nothing has an effect.

    python benchmarks/shuffled_blocks.py            # some five minutes per seed on one core

Prints a table, then one line of JSON.
"""

from __future__ import annotations

import argparse
import statistics

import numpy as np
from anndata import AnnData
from common import covered, part_of, quiet, write_results

from pyrocell import PyroCell, TrainingConfig, simulate
from pyrocell.data import loader as batches

SEEDS = (71, 72)
SCREEN = {"n_perturbations": 99, "n_genes": 100, "n_batches": 4, "n_cells_per_condition": 60}
POOL = 512
EPOCHS = 8


def figures(adata: AnnData, block: int, seed: int) -> dict[str, float]:
    """Error and coverage of all effects on all genes, and the loss."""
    PyroCell.setup_anndata(adata)
    model = PyroCell(adata)
    config = TrainingConfig(batch_size=16, shuffle_block=block)
    model.train(
        max_epochs=EPOCHS, train_size=1.0, seed=seed, config=config, progress_bar=False, devices=1
    )
    truth = adata.uns["truth"]["effect"]
    table = model.perturbation_effects(list(truth.index))
    parts = [
        table.pivot(index="perturbation", columns="gene", values=value)
        .loc[truth.index, truth.columns]
        .to_numpy()
        for value in ("mean", "lower", "upper")
    ]
    weight = np.asarray(adata.uns["truth"]["expression"], float)
    off = parts[0] @ weight / weight.sum()  # the truth's gauge
    mean, lower, upper = (part - off[:, None] for part in parts)
    others = truth.index.to_numpy()[:, None] != truth.columns.to_numpy()  # own genes are apart
    mean, lower, upper, true = (part[others] for part in (mean, lower, upper, truth.to_numpy()))
    return {
        "rmse": float(np.sqrt(((mean - true) ** 2).mean())),
        "coverage": covered(lower, upper, true),
        "loss": float(model.history["train_loss"].iloc[-1]),
        "anchor": float(np.sqrt((true**2).mean())),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    args = parser.parse_args()
    quiet()
    batches._POOL = POOL
    found: dict[str, list[dict]] = {"cells": [], "runs, random order": [], "runs, sorted": []}
    for seed in args.seeds:
        adata = simulate.screen(**SCREEN, n_controls=600, mean_library=200.0, seed=seed)
        at_random = adata[np.random.default_rng(seed).permutation(adata.n_obs)].copy()
        in_order = adata[adata.obs.sort_values(["perturbation", "batch"]).index].copy()
        found["cells"].append(figures(at_random.copy(), 1, seed))
        found["runs, random order"].append(figures(at_random, 16, seed))
        found["runs, sorted"].append(figures(in_order, 16, seed))
    names = ("rmse", "coverage", "loss", "anchor")
    print(f"{'shuffled by':20s} " + " ".join(f"{name:>9s}" for name in names))
    table = {
        way: {name: statistics.median(f[name] for f in rows) for name in names}
        for way, rows in found.items()
    }
    for way, row in table.items():
        print(f"{way:20s} " + " ".join(f"{row[name]:9.4f}" for name in names))
    write_results("shuffled_blocks", {part_of(parser, args): table}, args.seeds)


if __name__ == "__main__":
    main()
