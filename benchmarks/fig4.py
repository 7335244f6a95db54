"""The paper's Fig. 4: a gene-space neural ODE with eq. 5's loss, and with eq. 9 added.

Eleven knockouts of the hiPSC time course are held out at day 5; S of eq. 9 is the other twelve and
the control at day 5, as in the paper. 100 seeds, the same initial networks for both losses.

What the paper leaves open was settled before day 5 was looked at, on another task with other seeds:
day 4 of the eleven, with no later cells of theirs. The epoch at which to stop is the minimum of the
mean curve of that task.

    python benchmarks/fig4.py --out fig4.png --jobs 2
    python benchmarks/fig4.py --reading every_day    # eq. 9 read otherwise, 20 seeds, no figure
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pandas as pd
from common import part_of, run_all, write_results
from hipsc_day5 import DAY, ELEVEN, baselines, level
from scipy import stats

import pyrocell

ROOMS = ("data", "proof_of_principle", "screen")  # that the figures depend on
SEEDS = range(100)
STOP_SEEDS = range(1000, 1020)  # for the choice of the epoch; also used in development
READING_SEEDS = range(100, 120)
# What else the text could mean: X of eq. 5, weight of eq. 9, days on which S is steady.
READINGS = {
    "same_day": ("same_time", 1.0, False),  # X is the control of the day predicted
    "weight_10": ("pooled", 10.0, False),
    "every_day": ("pooled", 1.0, True),
}
CHUNK = 10
CURVES = ("held_out", "loss")
EPOCHS = 1000
EQ5, EQ9 = "eq. 5", "eq. 5 + eq. 9"


def fitted(day: float, start: str, weight: float, every_day: bool, seeds: list[int]) -> dict:
    """Fit without one day of the eleven, and what comes after it; error by epoch and knockout."""
    adata = pyrocell.datasets.hipsc_timecourse()
    later = adata.obs["perturbation"].isin(ELEVEN) & (adata.obs["time"] > day)
    ode = pyrocell.PseudobulkODE(
        adata[~later.to_numpy()], size_factor_key="size_factor", start=start
    )
    held_out = pd.DataFrame({"perturbation": ELEVEN, "time": day})
    about = ode.screen.conditions[["perturbation", "time"]]
    steady = about[~about["perturbation"].isin(ELEVEN)] if every_day else None
    history = ode.fit(seeds, EPOCHS, steady_state_weight=weight, steady=steady, held_out=held_out)
    truth = ode.levels.droplevel("media").loc[list(zip(ELEVEN, [day] * len(ELEVEN)))]
    error = (ode.predict(held_out, return_seeds=True).to_numpy() - truth.to_numpy()) ** 2
    curve, loss = (history.pivot(index="seed", columns="epoch", values=c) for c in CURVES)
    return {
        "day": day,
        "start": start,
        "weight": weight,
        "every_day": every_day,
        "seeds": f"{seeds[0]}-{seeds[-1]}",
        "final": round(float(curve.iloc[:, -1].mean()), 5),
        "curve": curve.to_numpy(),
        "loss": loss.to_numpy(),
        "by_knockout": error.mean(-1),
    }


def anchors() -> dict[str, float]:
    """Errors at day 5 without a model, and what sampling of the held-out cells alone would give."""
    adata = pyrocell.datasets.hipsc_timecourse()
    out = (adata.obs["perturbation"].isin(ELEVEN) & (adata.obs["time"] == DAY)).to_numpy()
    seen, unseen = adata[~out], adata[out]
    truth = np.stack([level(unseen, name, DAY) for name in ELEVEN])
    found = {k: float(((v - truth) ** 2).mean()) for k, v in baselines(seen, ELEVEN).items()}
    noise = []
    for name in ELEVEN:
        cells = unseen[unseen.obs["perturbation"] == name].X.toarray().astype(float)
        noise.append(cells.var(0, ddof=1) / len(cells) / (1 + cells.mean(0)) ** 2)
    return found | {"sampling_noise": float(np.mean(noise))}


def paired(with_eq9: np.ndarray, without: np.ndarray) -> dict:
    """Mean difference of pairs with its 95% interval, and Wilcoxon's test."""
    difference = with_eq9 - without
    half = stats.sem(difference) * stats.t.ppf(0.975, len(difference) - 1)
    return {
        EQ5: without.mean(),
        EQ9: with_eq9.mean(),
        "difference": difference.mean(),
        "lower": difference.mean() - half,
        "upper": difference.mean() + half,
        "relative": difference.mean() / without.mean(),
        "lower_in": float((difference < 0).mean()),
        "wilcoxon_p": stats.wilcoxon(difference).pvalue if difference.any() else 1.0,
    }


def comparison(runs: dict[str, dict], stop: dict[str, int] | None) -> pd.DataFrame:
    """Both losses at the last epoch, at the one chosen on day 4, and at each seed's own best."""
    curves = [runs[name]["curve"] for name in (EQ9, EQ5)]
    rows = {"final epoch": paired(*(c[:, -1] for c in curves))}
    if stop:
        chosen = [c[:, stop[name]] for c, name in zip(curves, (EQ9, EQ5))]
        rows["epoch chosen on day 4"] = paired(*chosen)
    rows["oracle: best epoch of each seed"] = paired(*(c.min(1) for c in curves))
    knockouts = [runs[name]["by_knockout"].mean(0) for name in (EQ9, EQ5)]
    rows["final epoch, pairs are the 11 knockouts"] = paired(*knockouts)
    return pd.DataFrame(rows).T


def along(runs: dict[str, dict]) -> pd.DataFrame:
    """Both losses at a few epochs on the way."""
    epochs = [e for e in (25, 50, 100, 200, 300, 500, 700, 1000) if e <= EPOCHS]
    rows = {e: paired(*(runs[name]["curve"][:, e] for name in (EQ9, EQ5))) for e in epochs}
    return pd.DataFrame(rows).T.rename_axis("epoch")


def spread(runs: dict[str, dict]) -> pd.DataFrame:
    """How fast and how steady: epoch of each seed's best, rise after it, spread over seeds."""
    rows = {}
    for name, run in runs.items():
        curve, best = run["curve"], run["curve"].min(1)
        rows[name] = {
            "training loss, final": run["loss"][:, -1].mean(),
            "best epoch, median": np.median(curve.argmin(1)),
            "final / best": (curve[:, -1] / best).mean(),
            "5% of seeds, final": np.quantile(curve[:, -1], 0.05),
            "median, final": np.median(curve[:, -1]),
            "95% of seeds, final": np.quantile(curve[:, -1], 0.95),
            "worst seed, final": curve[:, -1].max(),
            "sd over seeds, final": curve[:, -1].std(ddof=1),
            "sd over seeds, best": best.std(ddof=1),
        }
    return pd.DataFrame(rows).T


def run(plan: list[tuple], n_jobs: int) -> dict[tuple, dict]:
    """Fit every setting of a plan in chunks of its seeds, and put the chunks together."""
    jobs = [
        (*setting, list(seeds[i : i + CHUNK]))
        for *setting, seeds in plan
        for i in range(0, len(seeds), CHUNK)
    ]
    runs: dict[tuple, list] = {}
    for result, (*setting, _) in zip(run_all(fitted, jobs, n_jobs), jobs):
        runs.setdefault(tuple(setting), []).append(result)
    parts = ("curve", "loss", "by_knockout")
    return {k: {p: np.concatenate([r[p] for r in v]) for p in parts} for k, v in runs.items()}


def history(run: dict, seeds: range) -> pd.DataFrame:
    """Curves as `pyrocell.pl.learning_curves` takes them."""
    wide = pd.DataFrame(run["curve"], index=pd.Index(seeds, name="seed"))
    return wide.rename_axis(columns="epoch").stack().rename("held_out").reset_index()


def draw(runs: dict[str, dict], lines: dict[str, float], path: Path) -> None:
    """The figure: error on the held-out conditions against epoch."""
    names = {
        "control": "control at day 5",
        "carry_forward": "own day 4",
        "own_plus_control_change": "own day 4 + control's change",
        "sampling_noise": "sampling noise",
    }
    named = {label: lines[key] for key, label in names.items()}
    curves = {name: history(run, SEEDS) for name, run in runs.items()}
    ax = pyrocell.pl.learning_curves(curves, anchors=named)
    ax.set_title("Day 5 of eleven knockouts, mean and 90% of 100 seeds", fontsize=9)
    ax.figure.savefig(path, dpi=150)


def figure_4(out: Path, n_jobs: int, part: str) -> None:
    """Both losses, 100 seeds each."""
    weights = {EQ5: 0.0, EQ9: 1.0}
    plan = [(DAY, "pooled", w, False, SEEDS) for w in weights.values()]
    plan += [(DAY - 1, "pooled", w, False, STOP_SEEDS) for w in weights.values()]
    found = run(plan, n_jobs)
    runs = {name: found[DAY, "pooled", w, False] for name, w in weights.items()}
    day4 = {name: found[DAY - 1, "pooled", w, False] for name, w in weights.items()}
    stop = {name: int(r["curve"].mean(0).argmin()) for name, r in day4.items()}
    lines = anchors()
    draw(runs, lines, out)
    table, way, seeds = comparison(runs, stop), along(runs), spread(runs)
    print(pd.Series(lines, name="MSE without a model").to_string())
    print(f"\nepoch chosen on day 4: {stop}\n\nMSE at day 5, pairs are seeds\n{table.to_string()}")
    print(f"\n{way.to_string()}\n\n{seeds.T.to_string()}\n\nfigure: {out}")
    parts = {"comparison": table, "along": way, "spread": seeds}
    figures = {name: part.to_dict("index") for name, part in parts.items()}
    figures |= {"stop": stop, "anchors": lines}
    write_results("fig4", {part: figures}, SEEDS, rooms=ROOMS)


def other_reading(name: str, n_jobs: int, part: str) -> None:
    """Both losses under another reading of the text, fewer seeds."""
    start, weight, every_day = READINGS[name]
    keys = {EQ5: (DAY, start, 0.0, False), EQ9: (DAY, start, weight, every_day)}
    found = run([(*key, READING_SEEDS) for key in keys.values()], n_jobs)
    table = comparison({loss: found[key] for loss, key in keys.items()}, None)
    print(f"\n{name}: MSE at day 5, pairs are seeds\n{table.to_string()}")
    figures = {"comparison": table.to_dict("index")}
    write_results("fig4", {part: figures}, READING_SEEDS, rooms=ROOMS)


def main() -> None:
    """Fit, compare, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("fig4.png"))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--reading", choices=READINGS, help="another reading, instead of Fig. 4")
    args = parser.parse_args()
    pd.set_option("display.float_format", "{:.4g}".format, "display.width", 200)
    if args.reading:
        other_reading(args.reading, args.jobs, part_of(parser, args))
    else:
        figure_4(args.out, args.jobs, part_of(parser, args))


if __name__ == "__main__":
    main()
