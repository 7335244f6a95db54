"""What process noise is worth at a time that was not measured: CRPS with it and without.

Knockouts of the hiPSC time course held out at day 5 as in `hipsc_day5.py`: A, eleven of them; B,
the other twelve. "Without" is a model of its own, fitted with steps of the gene-level walk a tenth
of their size or less in the prior, so that what was measured last is kept. Scored is CRPS on log1p
of the mean count, over genes, of predictive draws that include the sampling noise of the held-out
cells. Differences are by knockout, the mean of the seeds; standard errors are over knockouts.

    python benchmarks/unseen_times.py
"""

from __future__ import annotations

import argparse

import pandas as pd
from common import part_of, run_all, write_results
from hipsc_day5 import DAY, ELEVEN, held_out_day

import pyrocell

QUIET = {"process_noise_sd": 5e-3, "process_noise_effect": 2e-2, "process_noise_spread": 0.01}
PRIORS = {"with": pyrocell.Priors(), "without": pyrocell.Priors(**QUIET)}


def one_fit(split: str, held: list[str], seed: int, noise: str, day: float) -> dict:
    """Scores of one fit."""
    return {"noise": noise} | held_out_day(split, held, seed, day, priors=PRIORS[noise])


def paired(table: pd.DataFrame) -> dict[str, float]:
    """CRPS with process noise less that without, over knockouts."""
    crps = {noise: pd.DataFrame(list(part["crps_by_knockout"])).mean() for noise, part in table}
    less = crps["with"] - crps["without"]
    return {
        "with": float(crps["with"].mean()),
        "without": float(crps["without"].mean()),
        "difference": float(less.mean()),
        "standard_error": float(less.sem()),
        "better": int((less < 0).sum()),
        "knockouts": len(less),
    }


def main() -> None:
    """Fit with and without, and print both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--splits", nargs="+", default=["A"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--day", type=float, default=DAY)
    args = parser.parse_args()
    names = sorted(pyrocell.datasets.hipsc_timecourse().obs["perturbation"].unique())
    held = {"A": ELEVEN, "B": [n for n in names if n not in (*ELEVEN, "control")]}
    jobs = [
        (split, held[split], seed, noise, args.day)
        for split in args.splits
        for seed in range(args.seeds)
        for noise in PRIORS
    ]
    table = pd.DataFrame(run_all(one_fit, jobs, args.jobs))
    means = table.groupby(["split", "noise"])[["mse", "movers", "crps", "coverage"]].mean()
    print(means.round(5).to_string())
    tests = {split: paired(part.groupby("noise")) for split, part in table.groupby("split")}
    for split, test in tests.items():
        print(split, {k: round(v, 5) for k, v in test.items()})
    scores = {f"{split}, {noise}": row for (split, noise), row in means.to_dict("index").items()}
    write_results(
        "unseen_times",
        {
            part_of(parser, args): {
                "day": args.day,
                "scores": scores,
                "crps": tests,
            }
        },
        range(args.seeds),
    )


if __name__ == "__main__":
    main()
