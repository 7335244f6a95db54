"""Stimulus before knockout, predicted from arms in which the knockout came first.

Cells of random gene networks (`order_harissa.py`). The model is fitted to all arms but stimulus →
knockout of perturbed cells (controls tell both orders of timing), and in two networks again with
half of those arms. Predicted are the arms it was not shown, 2, 5, 10 and 18 mRNA lifetimes
after the knockout; scored is the log-fold change against unperturbed cells in baseline medium, over
all genes but the target, its error free of the error of the truth (products of independent halves).

Beside it, from the counts of the other arms ("counts") and from the same fit ("fit"):

- blind to order: the same knockout's knockout → stimulus arm, at the same time of harvest
- gain locked: control after the same stimulus, plus what the knockout does in baseline medium
- knockout ignored: control after the same stimulus
- halfway: the average of the first two

    python benchmarks/order_of_operations.py            # reported networks
    python benchmarks/order_of_operations.py --develop  # those it was developed on
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
import pandas as pd
from anndata import AnnData
from common import part_of, quiet, run_all, write_results
from order_harissa import BLOCKING, DELAY, REVERSED, TIMES, Arms, simulate

import pyrocell

DEVELOPMENT, REPORTED = (0, 1, 2, 3), (100, 101, 102, 103)
HALVES = (("R1", "A2", "B1", "B3"), ("A1", "A3", "B2", "U1"))  # seen with even and odd seeds
PSEUDOCOUNT = 0.1
SETTINGS = {"interactions": True}  # a lost gene leaves the response upstream of it: not one gain


def log_level(counts: np.ndarray, genes: np.ndarray, depth: float) -> np.ndarray:
    """Log of counts as shares of the genes compared, in a cell of the given depth."""
    counts = counts[..., genes]
    return np.log(depth * counts / counts.sum(-1, keepdims=True) + PSEUDOCOUNT)


class Measured:
    """Log-fold changes of arms against resting cells, (times, genes); one knockout's genes."""

    def __init__(self, arms: Arms, knockout: str):
        self.arms, self.knockout = arms, knockout
        self.genes = (arms.adata.var_names != knockout).nonzero()[0]
        self.depth = arms.expected["control", "base"][..., self.genes].sum(-1).mean()

    def fold(self, counts: np.ndarray, resting: np.ndarray) -> np.ndarray:
        """Log-fold change of counts (..., times, genes); resting cells are averaged over times."""
        levels = (log_level(x, self.genes, self.depth) for x in (counts, resting))
        level, rest = levels
        return level - rest.mean(-2, keepdims=True)

    def truth(self, arm: str) -> np.ndarray:
        """(2, times, genes): two estimates with independent errors."""
        expected = self.arms.expected
        return self.fold(expected[self.knockout, arm], expected["control", "base"])

    def ways(self, of: Callable[[str, str], np.ndarray], name: str) -> dict[str, np.ndarray]:
        """Predictions of the stimulus → knockout arm from what `of` says of the others."""
        resting = of("control", "base")
        ignored, blind = (
            self.fold(of(*a), resting) for a in (("control", "MP"), (self.knockout, "PM"))
        )
        locked = ignored + self.fold(of(self.knockout, "base"), resting)
        return {
            f"{name}, blind to order": blind,
            f"{name}, gain locked": locked,
            f"{name}, knockout ignored": ignored,
            f"{name}, halfway": (blind + locked) / 2,
        }


def pseudobulk(adata: AnnData) -> Callable[[str, str], np.ndarray]:
    """Sums of counts of an arm, (times, genes); its cells are spread evenly over the batches."""
    obs = adata.obs

    def of(perturbation: str, arm: str) -> np.ndarray:
        mine = (obs["perturbation"] == perturbation).to_numpy() & (obs["arm"] == arm).to_numpy()
        rows = [mine & (obs["time"] == t).to_numpy() for t in TIMES]
        return np.stack([np.asarray(adata.X[row].sum(0)).ravel() for row in rows])

    return of


def fit(adata: AnnData, seed: int) -> pyrocell.PyroCell:
    """A trained model of the arms given."""
    adata = adata.copy()
    pyrocell.PyroCell.setup_anndata(
        adata,
        time_key="time",
        media_key="media",
        perturbation_time_key="perturbed_at",
        media_time_key="exposed_at",
    )
    model = pyrocell.PyroCell(adata, **SETTINGS)
    model.train(progress_bar=False, seed=seed)
    return model


def predicted(model: pyrocell.PyroCell) -> Callable[[str, str], np.ndarray]:
    """Expected counts of all arms, (times, genes) each."""
    arms = [(p, arm) for p in ("control", *REVERSED) for arm in ("base", "PM", "MP")]
    rows = [
        (
            p,
            "baseline" if arm == "base" else "stimulus",
            t,
            DELAY * (arm == "MP"),
            DELAY * (arm == "PM"),
        )
        for p, arm in arms
        for t in TIMES
    ]
    columns = ["perturbation", "media", "time", "perturbed_at", "exposed_at"]
    counts = model.predict(pd.DataFrame(rows, columns=columns), n_samples=50).X
    found = dict(zip(arms, counts.reshape(len(arms), len(TIMES), -1), strict=True))
    return lambda perturbation, arm: found[perturbation, arm]


def scores(
    arms: Arms, model: pyrocell.PyroCell, knockouts: tuple[str, ...], seen: str
) -> list[dict]:
    """Mean square error of every predictor by knockout and time; order effects beside it."""
    rows, fitted, counted = [], predicted(model), pseudobulk(arms.adata)
    for knockout in knockouts:
        measured = Measured(arms, knockout)
        resting = fitted("control", "base")
        late, early = (measured.fold(fitted(knockout, arm), resting) for arm in ("MP", "PM"))
        ways = {"model": late} | measured.ways(fitted, "fit") | measured.ways(counted, "counts")
        truth, before = measured.truth("MP"), measured.truth("PM")
        for name, fold in ways.items():
            square = ((fold - truth[0]) * (fold - truth[1])).mean(-1)
            for t, time in enumerate(TIMES):
                row = {"seen": seen, "predictor": name, "knockout": knockout}
                row |= {"since": time - DELAY, "square": square[t]}
                if name == "model":
                    row["effect"] = np.vstack([(fold - early)[t], (truth - before)[:, t]])
                rows.append(row)
    return rows


def network(seed: int, twice: bool) -> dict:
    """Fit to one network, and to half of the held-out arms too."""
    arms = simulate(seed)
    obs = arms.adata.obs
    late = (obs["arm"] == "MP") & (obs["perturbation"] != "control")
    half = HALVES[seed % 2]
    held = tuple(p for p in REVERSED if p not in half)
    cases = [("none", ~late, REVERSED), ("half", ~late | obs["perturbation"].isin(half), held)]
    rows, memory = [], {}
    for seen, keep, asked in cases[: 1 + twice]:
        model = fit(arms.adata[keep.to_numpy()], seed)
        rows += scores(arms, model, asked, seen)
        (row,) = model.assumptions().query("assumption == 'memory'").to_dict("records")
        memory[seen] = {k: float(row[k]) for k in ("testable", "prior", "posterior")}
        if seen == "half":
            memory["turnover"] = float(model.posterior_samples(100)["M.turnover"].mean())
    return {"seed": seed, "rows": rows, "memory": memory}


def rmse(table: pd.DataFrame) -> pd.Series:
    """By predictor: by time since the knockout, and their mean."""
    square = table.pivot_table(index="predictor", columns="since", values="square", sort=False)
    by_time = np.sqrt(square.clip(lower=0))
    return by_time.assign(all=by_time.mean(axis=1))


def order_effect(table: pd.DataFrame) -> dict[float, float]:
    """Correlation of the difference between the orders, predicted and true, by time since.

    The truth's variance is the covariance of its halves, so that its error does not lower it; where
    that is not above zero there is no entry.
    """
    out = {}
    for since, rows in table.dropna(subset="effect").groupby("since"):
        cov = np.cov(np.hstack(list(rows["effect"])))
        if cov[1, 2] > 0:  # otherwise the orders do not differ
            out[since] = float((cov[0, 1] + cov[0, 2]) / 2 / np.sqrt(cov[0, 0] * cov[1, 2]))
    return out


def summary(table: pd.DataFrame) -> dict:
    """Print and return the figures of all networks."""
    figures = {}
    for seen in ("none", "half"):
        for group, chosen in (("blocking", True), ("others", False)):
            part = table[(table.seen == seen) & (table.knockout.isin(BLOCKING) == chosen)]
            found, effect = rmse(part), order_effect(part)
            print(f"\n{group} knockouts, {seen} of the arms seen: RMSE by time since the knockout")
            print(found.round(3).to_string())
            print("order effect, r:", {k: round(v, 2) for k, v in effect.items()})
            figures[f"{group}, {seen} seen"] = {
                "rmse": found["all"].to_dict(),
                "order_effect_r": {f"{k:g}": v for k, v in effect.items()},
            }
    return figures


def main() -> None:
    """Fit every network, print the tables and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--develop", action="store_true", help="networks it was developed on")
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    quiet()
    seeds = DEVELOPMENT if options.develop else REPORTED
    results = run_all(network, [(seed, i < 2) for i, seed in enumerate(seeds)], options.jobs)
    figures = summary(pd.DataFrame([row for result in results for row in result["rows"]]))
    memory = {str(result["seed"]): result["memory"] for result in results}
    write_results(
        "order_of_operations",
        {
            part_of(parser, options): {
                "networks": list(seeds),
                "memory": memory,
                **figures,
            }
        },
        seeds,
    )


if __name__ == "__main__":
    main()
