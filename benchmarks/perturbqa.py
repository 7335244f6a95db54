"""PerturbQA (Wu et al. 2025): labels of pairs of genes from prior knowledge, four cell lines.

Does perturbing one gene change another (de), and does it go up (dir)? Their split: perturbations of
the test pairs have no labels. Everything is chosen by folds of the training perturbations; test
labels are read once, for the scores. AUROC per readout gene, as they score it; calibration over
test pairs, and of the folds. `shuffled` is the same with the names in the knowledge permuted, and
`rates` the readout gene's own rate, the anchor of the probabilities (its AUROC per gene is .5).

The labels (CC BY 4.0) are not kept here: give the folder with k562-de.csv and the others, from
perturbqa/datasets of the authors' repository, by --labels or in the environment as PERTURBQA.
`--edges` takes a table of further knowledge (source, target), such as CollecTRI.

    python benchmarks/perturbqa.py --labels PerturbQA/perturbqa/datasets
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from common import part_of, quiet, shared_file, write_results

import pyrocell
from pyrocell import metrics

ROOMS = ("evaluation", "knowledge", "metrics")
CELLS, TASKS = ("k562", "rpe1", "hepg2", "jurkat"), ("de", "dir")
BINS = 10


class Shuffled:
    """Knowledge with the names of the genes that it covers permuted."""

    def __init__(self, knowledge: pyrocell.Knowledge, seed: int):
        self.knowledge, self.seed = knowledge, seed

    def kernel(self, genes: list[str]) -> np.ndarray:
        """Kernels of the sources, one for all."""
        found = self.knowledge.kernel(genes)
        covered = np.flatnonzero(found.covered.any(0))
        order = np.arange(len(genes))
        order[covered] = np.random.default_rng(self.seed).permutation(covered)
        return found.kernels.mean(0)[np.ix_(order, order)]


def labels(folder: Path, cell: str, task: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Training and test pairs."""
    table = pd.read_csv(folder / f"{cell}-{task}.csv")
    parts = (table[table["split"] == part] for part in ("train", "test"))
    first, second = (part.drop(columns="split").reset_index(drop=True) for part in parts)
    return first, second


def knowledge(edges: Path | None) -> list[pyrocell.Knowledge]:
    """GO and Reactome, and edges where they are given; each a source."""
    files = [shared_file(f"knowledge/{name}.gmt.gz") for name in ("GO_BP_2021", "Reactome")]
    found = [pyrocell.Knowledge.from_gene_sets(file) for file in files]
    if edges is not None:
        found.append(pyrocell.Knowledge.from_edges(pd.read_csv(edges, sep=None, engine="python")))
    return found


def scored(table: pd.DataFrame, train: pd.DataFrame) -> dict[str, Any]:
    """Scores of predictions with labels, and of the genes' own rates."""
    rate = train.groupby("gene")["label"].agg(["sum", "size"]).reindex(table["gene"])
    prior = 5 * train["label"].mean()
    own = ((rate["sum"].fillna(0) + prior) / (rate["size"].fillna(0) + 5)).to_numpy()
    label, p = table["label"].to_numpy(), table["probability"].to_numpy()
    return {
        "auroc_by_gene": metrics.auroc_by_gene(table, table["score"]),
        "auroc_by_gene_folds": table.attrs["auroc"],
        "ece": metrics.expected_calibration_error(label, p, BINS),
        "brier": metrics.brier(label, p),
        "rates": {
            "ece": metrics.expected_calibration_error(label, own, BINS),
            "brier": metrics.brier(label, own),
        },
        "known": float(table["known"].mean()),
        "share": {"train": float(train["label"].mean()), "test": float(label.mean())},
        "covariance": table.attrs["covariance"],
        "pairs": len(table),
    }


def main() -> None:
    """Run the cell lines and tasks asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--labels", type=Path, default=os.environ.get("PERTURBQA"))
    parser.add_argument("--edges", type=Path)
    parser.add_argument("--cells", nargs="+", default=list(CELLS))
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--seed", type=int, default=200)
    parser.add_argument("--shuffled", action="store_true")
    args = parser.parse_args()
    if args.labels is None or not (Path(args.labels) / "k562-de.csv").exists():
        raise SystemExit(
            "PerturbQA's labels are not here: fetch perturbqa/datasets of the authors' repository "
            "and name the folder with --labels or PERTURBQA"
        )
    quiet()
    for cell in args.cells:
        for task in args.tasks:
            train, test = labels(Path(args.labels), cell, task)
            sources = knowledge(args.edges)
            if args.shuffled:
                sources = [Shuffled(source, args.seed) for source in sources]
            found = metrics.predict_pairs(
                train, test.drop(columns="label"), sources, seed=args.seed
            )
            table = found.assign(label=test["label"])
            table.attrs = found.attrs
            figures = scored(table, train)
            print(cell, task, {k: v for k, v in figures.items() if not isinstance(v, dict)})
            part = part_of(parser, args, f"{cell} {task}", ("labels", "cells", "tasks"))
            write_results("perturbqa", {part: figures}, [args.seed], rooms=ROOMS)


if __name__ == "__main__":
    main()
