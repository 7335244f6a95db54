"""Held-out conditions of four real screens: the model and every anchor in one table.

Each part trains without the cells of the held-out conditions (`pyrocell.metrics.evaluate`).
`perturbations`: THP-1, its knockouts in folds, by prior knowledge (GO and Reactome).
`combinations`: K562 CRISPRa, doubles with both singles, held out together. `media`: Jurkat, half of
the knockouts at a time in the stimulus. `times`: hiPSC, eleven knockouts and the other twelve at
day 5. `shuffled`: THP-1 with labels permuted within batches, where nothing is left to predict. The
gradient phase is short, since what single genes do comes from the second phase.

    python benchmarks/evaluate.py --parts perturbations combinations media times shuffled
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from code_state import FIT
from common import part_of, quiet, shared, shared_file, write_results

import pyrocell
from pyrocell import metrics

ROOMS = (*FIT, "evaluation", "knowledge", "metrics")
ELEVEN = "JARID2 ZNF90 ZNF649 RUNX1T1 POU5F1 SOX2 ZNF398 PRDM14 VENTX MYC ZIC2".split()
STIMULUS = "TCR_stimulation"


def usable(adata, min_cells: int = 20):
    """Genes seen in enough cells, and cells with counts in them."""
    adata = adata[:, np.asarray((adata.X > 0).sum(0)).ravel() >= min_cells].copy()
    return adata[np.asarray(adata.X.sum(1)).ravel() > 0].copy()


def thp1(cells: int, seed: int):
    """Some cells of the THP-1 screen."""
    adata = usable(shared("papalexi2021_thp1_eccite.h5ad"))
    some = np.random.default_rng(seed).permutation(adata.n_obs)[:cells]
    return adata[np.sort(some)].copy()


def gene_sets() -> pyrocell.Knowledge:
    """GO and Reactome."""
    files = [shared_file(f"knowledge/{name}.gmt.gz") for name in ("GO_BP_2021", "Reactome")]
    return pyrocell.Knowledge.from_gene_sets(*files)


def evaluated(adata, by: Any, args: argparse.Namespace, setup: dict, **options: Any) -> dict:
    """Summary of a screen's held-out conditions; `by` makes splits from a registered screen."""
    pyrocell.PyroCell.setup_anndata(adata, **setup)
    held_out = by(adata) if callable(by) else by
    train = {"max_epochs": args.epochs, "seed": args.seed}
    found = metrics.evaluate(adata, held_out, train=train, seed=args.seed, **options)
    print(found.summary.round(3).to_string(), flush=True)
    noise = found.scores.drop_duplicates(["split", "perturbation", "media", "time"])
    return {
        "methods": {m: row.dropna().to_dict() for m, row in found.summary.iterrows()},
        "mse_noise": float(noise["mse_noise"].mean()),
        "external": len(found.external),
    }


def perturbations(args: argparse.Namespace) -> dict:
    """Knockouts that were never seen, by prior knowledge."""
    adata = thp1(args.cells, args.seed)
    folds = lambda cells: metrics.splits(cells, n_folds=args.folds, seed=args.seed)  # noqa: E731
    return evaluated(adata, folds, args, {}, knowledge=gene_sets())


def combinations(args: argparse.Namespace) -> dict:
    """Doubles with both singles, together."""
    adata = usable(shared("norman2019_k562_crispra.h5ad"))

    def together(cells) -> dict[str, list]:
        folds = metrics.splits(cells, "combination")
        return {"combination": [name for fold in folds for name in fold["combination"]]}

    return evaluated(adata, together, args, {"perturbation_type": "CRISPRa"})


def media(args: argparse.Namespace) -> dict:
    """Knockouts seen at rest, in the stimulus."""
    adata = usable(shared("datlinger2021_jurkat_tcr.h5ad"), 100)
    halves = lambda cells: metrics.splits(cells, "media", 2, args.seed, [STIMULUS])  # noqa: E731
    return evaluated(adata, halves, args, {"media_key": "media"})


def times(args: argparse.Namespace) -> dict:
    """Knockouts seen on days 2 to 4, at day 5."""
    adata = pyrocell.datasets.hipsc_timecourse()
    labels = sorted(set(adata.obs["perturbation"]) - {"control"})
    groups = ELEVEN, [name for name in labels if name not in ELEVEN]
    held = [{"perturbation": group, "time": [5.0]} for group in groups]
    return evaluated(adata, held, args, {"time_key": "time", "size_factor_key": "size_factor"})


def shuffled(args: argparse.Namespace) -> dict:
    """Labels that mean nothing."""
    adata = thp1(args.cells, args.seed)
    rng = np.random.default_rng(1000 + args.seed)
    label = adata.obs["perturbation"].astype(str).to_numpy()
    for rows in (
        pd.Series(label).groupby(adata.obs["batch"].astype(str).to_numpy()).indices.values()
    ):
        label[rows] = label[rng.permutation(rows)]
    adata.obs["perturbation"] = label
    half = lambda cells: metrics.splits(cells, n_folds=2, seed=args.seed)  # noqa: E731
    return evaluated(adata, half, args, {}, knowledge=gene_sets())


PARTS: dict[str, Callable[[argparse.Namespace], dict]] = {
    "combinations": combinations,
    "times": times,
    "media": media,
    "perturbations": perturbations,
    "shuffled": shuffled,
}


def main() -> None:
    """Run the parts asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--seed", type=int, default=200)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--cells", type=int, default=8_000)
    args = parser.parse_args()
    quiet()
    for name in args.parts:
        figures = PARTS[name](args)
        write_results("evaluate", {part_of(parser, args, name): figures}, [args.seed], rooms=ROOMS)


if __name__ == "__main__":
    main()
