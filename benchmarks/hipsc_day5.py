"""Hold-out of day 5 on the hiPSC knockout time course, against anchors without a model.

A: eleven knockouts held out at day 5 together; B: the other twelve; L: one knockout at a time, all
23. Scores are on log1p of the mean count; 90% intervals include the sampling noise of the held-out
pseudobulk. `movers` is the error of the three knockouts that still move between days 4 and 5, CRPS
that of the predictive draws. With several `--dynamics` L is compared knockout by knockout, the
first against each other one. `--day 4` forgets day 5 and holds out day 4: for development.

    python benchmarks/hipsc_day5.py --splits A B L --seeds 5 --jobs 2
    python benchmarks/hipsc_day5.py --splits L --dynamics relaxation node
"""

from __future__ import annotations

import argparse

import numpy as np
import pandas as pd
from common import covered, part_of, run_all, write_results
from scipy.stats import binomtest, wilcoxon

import pyrocell

ELEVEN = "JARID2 ZNF90 ZNF649 RUNX1T1 POU5F1 SOX2 ZNF398 PRDM14 VENTX MYC ZIC2".split()
MOVERS = ("POU5F1", "PRDM14", "RUNX1T1")
DAY = 5.0


def held_out_day(split: str, held: list[str], seed: int, day: float = DAY, **options) -> dict:
    """Fit without the held-out knockouts' last day and predict it; `options` are the model's."""
    adata = pyrocell.datasets.hipsc_timecourse()
    adata = adata[(adata.obs["time"] <= day).to_numpy()]
    out = (adata.obs["perturbation"].isin(held) & (adata.obs["time"] == day)).to_numpy()
    seen, unseen = adata[~out].copy(), adata[out]
    pyrocell.PyroCell.setup_anndata(seen, time_key="time", size_factor_key="size_factor")
    model = pyrocell.PyroCell(seen, **options)
    model.train(seed=seed, progress_bar=False)
    request = pd.DataFrame(
        {
            "perturbation": held,
            "time": day,
            "batch": str(unseen.obs["batch"].iloc[0]),
            "n_cells": [int((unseen.obs["perturbation"] == name).sum()) for name in held],
        }
    )
    draws = np.log1p(model.predict(request, n_samples=300, return_draws=True).to_numpy())
    truth = np.stack([level(unseen, name, day) for name in held])
    lower, upper = np.percentile(draws, [5, 95], axis=0)
    error = (draws.mean(0) - truth) ** 2
    movers = [i for i, name in enumerate(held) if name in MOVERS]
    without = baselines(seen, held, day)
    anchors = {name: float(((a - truth) ** 2).mean()) for name, a in without.items()}
    scores = crps(draws, truth).mean(1)
    return {
        "split": split,
        "dynamics": options.get("dynamics", "relaxation"),
        "seed": seed,
        "held": held if len(held) == 1 else len(held),
        "mse": float(error.mean()),
        "movers": float(error[movers].mean()) if movers else np.nan,
        "crps": float(scores.mean()),
        "coverage": covered(lower, upper, truth),
        "by_knockout": dict(zip(held, error.mean(1).round(5).tolist())),
        "crps_by_knockout": dict(zip(held, scores.round(5).tolist())),
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


def baselines(seen, held: list[str], day: float = DAY) -> dict[str, np.ndarray]:
    """Predictors without a model."""
    before, control = day - 1, "control"
    names = [n for n in seen.obs["perturbation"].unique() if n not in (*held, control)]
    others_now = np.mean([level(seen, n, day) for n in names], axis=0)
    others_before = np.mean([level(seen, n, before) for n in names], axis=0)
    own = np.stack([level(seen, n, before) for n in held])
    change = level(seen, control, day) - level(seen, control, before)
    return {
        "control": np.tile(level(seen, control, day), (len(held), 1)),
        "carry_forward": own,
        "own_plus_control_change": own + change,
        "own_plus_others_change": own + others_now - others_before,
    }


def paired(table: pd.DataFrame) -> dict[str, dict]:
    """Errors of the first dynamics against those of each other one, knockout by knockout."""
    wide = table.pivot_table(index="held", columns="dynamics", values="mse", sort=False)
    first, out = wide.columns[0], {}
    for other in wide.columns[1:]:
        both = wide[[first, other]].dropna()
        less = both[other] - both[first]
        better, untied = int((less < 0).sum()), int((less != 0).sum())
        out[f"{other} against {first}"] = {
            "knockouts": len(both),
            "better": better,
            "mean_difference": float(less.mean()),
            "standard_error": float(less.sem()),
            "p_sign": float(binomtest(better, untied).pvalue),
            "p_wilcoxon": float(wilcoxon(both[other], both[first]).pvalue),
        }
    return out


def main() -> None:
    """Run the splits asked for and print their means."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--splits", nargs="+", default=["A", "B", "L"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--dynamics", nargs="+", default=["relaxation"])
    parser.add_argument("--day", type=float, default=DAY)
    args = parser.parse_args()
    adata = pyrocell.datasets.hipsc_timecourse()
    knockouts = [n for n in sorted(adata.obs["perturbation"].unique()) if n != "control"]
    held = {"A": ELEVEN, "B": [n for n in knockouts if n not in ELEVEN]}
    jobs = [
        (s, held[s], seed, args.day, dynamics)
        for s in args.splits
        if s in held
        for dynamics in args.dynamics
        for seed in range(args.seeds)
    ]
    if "L" in args.splits:
        jobs += [("L", [name], 0, args.day, d) for name in knockouts for d in args.dynamics]
    table = pd.DataFrame(run_all(one_fit, jobs, args.jobs))
    scores = table.drop(columns=["held", "by_knockout", "crps_by_knockout", "seed"])
    means = scores.groupby(["split", "dynamics"], sort=False).mean()
    print(means.round(5).to_string())
    splits = {f"{split}, {d}": row for (split, d), row in means.to_dict("index").items()}
    left_out = table[table["split"] == "L"]
    left_out = left_out.assign(held=[h[0] if isinstance(h, list) else h for h in left_out["held"]])
    tests = paired(left_out) if len(left_out) else {}
    for name, test in tests.items():
        print(name, {k: round(v, 5) for k, v in test.items()})
    write_results(
        "hipsc_day5",
        {
            part_of(parser, args): {
                "day": args.day,
                "splits": splits,
                "paired": tests,
            }
        },
        range(args.seeds),
    )


def one_fit(split: str, held: list[str], seed: int, day: float, dynamics: str) -> dict:
    """One line of the table."""
    return held_out_day(split, held, seed, day, dynamics=dynamics)


if __name__ == "__main__":
    main()
