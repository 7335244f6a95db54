"""Hold-out of day 5 on the hiPSC knockout time course, against anchors without a model.

A: eleven knockouts held out at day 5 together; B: the other twelve; L: one knockout at a time, all
23. Scores are on log1p of the mean count; 90% intervals include the sampling noise of the held-out
pseudobulk. `movers` is the error of the three knockouts that still move between days 4 and 5, CRPS
that of the predictive draws, `--dynamics` another form of waiting.

    python benchmarks/hipsc_day5.py --splits A B L --seeds 5 --jobs 2
"""

from __future__ import annotations

import argparse

import numpy as np
import pandas as pd
from common import covered, report, run_all

import pyrocell

ELEVEN = "JARID2 ZNF90 ZNF649 RUNX1T1 POU5F1 SOX2 ZNF398 PRDM14 VENTX MYC ZIC2".split()
MOVERS = ("POU5F1", "PRDM14", "RUNX1T1")
DAY = 5.0


def held_out_day5(split: str, held: list[str], seed: int, dynamics: str) -> dict:
    """Fit without the held-out knockouts' day 5 and predict it."""
    adata = pyrocell.datasets.hipsc_timecourse()
    out = (adata.obs["perturbation"].isin(held) & (adata.obs["time"] == DAY)).to_numpy()
    seen, unseen = adata[~out].copy(), adata[out]
    pyrocell.PyroCell.setup_anndata(seen, time_key="time", size_factor_key="size_factor")
    model = pyrocell.PyroCell(seen, dynamics=dynamics)
    model.train(seed=seed, progress_bar=False)
    request = pd.DataFrame(
        {
            "perturbation": held,
            "time": DAY,
            "batch": str(unseen.obs["batch"].iloc[0]),
            "n_cells": [int((unseen.obs["perturbation"] == name).sum()) for name in held],
        }
    )
    draws = np.log1p(model.predict(request, n_samples=300, return_draws=True).to_numpy())
    truth = np.stack([level(unseen, name, DAY) for name in held])
    lower, upper = np.percentile(draws, [5, 95], axis=0)
    error = (draws.mean(0) - truth) ** 2
    movers = [i for i, name in enumerate(held) if name in MOVERS]
    anchors = {name: float(((a - truth) ** 2).mean()) for name, a in baselines(seen, held).items()}
    return {
        "split": split,
        "seed": seed,
        "held": held if len(held) == 1 else len(held),
        "mse": float(error.mean()),
        "movers": float(error[movers].mean()) if movers else np.nan,
        "crps": float(crps(draws, truth).mean()),
        "coverage": covered(lower, upper, truth),
        "by_knockout": dict(zip(held, error.mean(1).round(5).tolist())),
        **anchors,
    }


def crps(draws: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Continuous ranked probability score of draws (S, ...), unbiased in their number."""
    n = len(draws)
    weight = (2 * np.arange(1, n + 1) - n - 1).reshape(-1, *[1] * truth.ndim)
    apart = (weight * np.sort(draws, axis=0)).sum(0) / (n * (n - 1))  # half the mean difference
    return np.abs(draws - truth).mean(0) - apart


def level(adata, name: str, day: float) -> np.ndarray:
    """log1p of the mean count of one condition."""
    rows = ((adata.obs["perturbation"] == name) & (adata.obs["time"] == day)).to_numpy()
    return np.log1p(np.asarray(adata.X[rows].mean(0)).ravel())


def baselines(seen, held: list[str]) -> dict[str, np.ndarray]:
    """Predictors without a model."""
    before, control = DAY - 1, "control"
    names = [n for n in seen.obs["perturbation"].unique() if n not in (*held, control)]
    others_now = np.mean([level(seen, n, DAY) for n in names], axis=0)
    others_before = np.mean([level(seen, n, before) for n in names], axis=0)
    own = np.stack([level(seen, n, before) for n in held])
    change = level(seen, control, DAY) - level(seen, control, before)
    return {
        "control": np.tile(level(seen, control, DAY), (len(held), 1)),
        "carry_forward": own,
        "own_plus_control_change": own + change,
        "own_plus_others_change": own + others_now - others_before,
    }


def main() -> None:
    """Run the splits asked for and print their means."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--splits", nargs="+", default=["A", "B", "L"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--dynamics", default="relaxation")
    args = parser.parse_args()
    adata = pyrocell.datasets.hipsc_timecourse()
    knockouts = [n for n in sorted(adata.obs["perturbation"].unique()) if n != "control"]
    held = {"A": ELEVEN, "B": [n for n in knockouts if n not in ELEVEN]}
    jobs = [
        (s, held[s], seed, args.dynamics)
        for s in args.splits
        if s in held
        for seed in range(args.seeds)
    ]
    if "L" in args.splits:
        jobs += [("L", [name], 0, args.dynamics) for name in knockouts]
    table = pd.DataFrame(run_all(held_out_day5, jobs, args.jobs))
    means = table.drop(columns=["held", "by_knockout", "seed"]).groupby("split").mean()
    print(means.round(5).to_string())
    report("hipsc_day5", dynamics=args.dynamics, seeds=args.seeds, splits=means.to_dict("index"))


if __name__ == "__main__":
    main()
