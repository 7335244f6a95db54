"""Two fates, one blocked by a knockout: does the model carry cells to the right ones (App. C.1)?

Cells progress and choose between fates A and B once they have come far enough: a pitchfork in the
plane, integrated here in steps of 1/200, with noise. A knockout blocks fate B (those cells stay
undecided), one tips the balance towards B, one halves the progress, one does nothing. Counts are
negative binomial with programmes of genes along progress and fates, in four lanes of all times.

Knockouts are measured at times 1, 2 and 3 and predicted at 4, where only controls are measured.
Fates of predicted cells are read as a user would: by a classifier of expression, trained on the
cells measured, whose fates are known. Anchors: the knockout's own last share; the controls' share
at the time asked for; and what sampling as many cells as were measured leaves of error.
"""

from __future__ import annotations

import argparse

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from common import part_of, run_all, write_results

import pyrocell

SEEDS = (701, 702, 703)
TIMES = (0.0, 1.0, 2.0, 3.0, 4.0)
KNOCKOUTS = ("BLOCK", "TIP", "SLOW", "INERT")
FATES = ("undecided", "A", "B")
N_GENES, N_CELLS = 300, 400
STEP = 1 / 200


def states(knockout: str, t: float, n: int, rng: np.random.Generator) -> np.ndarray:
    """Progress and fate axis of n cells after a time, (n, 2)."""
    progress = 0.3 * rng.standard_normal(n)
    fate = 0.15 * rng.standard_normal(n)
    speed = 0.5 if knockout == "SLOW" else 1.0
    for _ in range(round(t / STEP)):
        open_ = np.tanh(np.maximum(progress - 1.0, 0))  # the fork opens beyond progress 1
        force = 3.0 * (open_ * fate - fate**3) - 0.5 * (1 - open_) * fate
        if knockout == "BLOCK":
            force = np.where(fate > 0, -0.5 * fate, force)
        if knockout == "TIP":
            force = force + 0.12
        progress = progress + STEP * speed + 0.2 * np.sqrt(STEP) * rng.standard_normal(n)
        fate = fate + STEP * force + 0.3 * np.sqrt(STEP) * rng.standard_normal(n)
    return np.stack([progress, fate], 1)


def fates(state: np.ndarray) -> np.ndarray:
    """Name of each cell's fate."""
    return np.where(state[:, 1] > 0.5, "B", np.where(state[:, 1] < -0.5, "A", "undecided"))


def expression(state: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Log relative expression, (n, G): programmes of progress and of either fate."""
    progress, fate = state.T
    own = np.stack([progress - 1.5, np.maximum(fate, 0) * 1.5, np.maximum(-fate, 0) * 1.5, fate], 1)
    weight = rng.standard_normal((4, N_GENES)) * np.array([0.35, 0.6, 0.6, 0.3])[:, None]
    weight *= rng.random((4, N_GENES)) < 0.4
    baseline = rng.normal(0.0, 1.2, N_GENES)
    return baseline + own @ weight


def screen(seed: int) -> AnnData:
    """Cells of all conditions and times; `.obs` holds the true fate of each."""
    rng = np.random.default_rng(seed)
    frames, all_states = [], []
    for t in TIMES:
        for knockout in ("control", *KNOCKOUTS):
            n = 2 * N_CELLS if knockout == "control" else N_CELLS
            state = states(knockout, t, n, rng)
            all_states.append(state)
            batch = [f"lane{i % 4}" for i in range(n)]
            frame = {"perturbation": knockout, "time": t, "batch": batch, "fate": fates(state)}
            frames.append(pd.DataFrame(frame))
    obs = pd.concat(frames, ignore_index=True)
    state = np.concatenate(all_states)
    level = expression(state, rng) + 0.1 * rng.standard_normal((len(state), 1))
    names, batch = np.unique(obs.batch, return_inverse=True)
    level = level + rng.normal(0, 0.1, (len(names), N_GENES))[batch]
    share = np.exp(level)
    share /= share.sum(1, keepdims=True)
    depth = rng.lognormal(np.log(2500), 0.3, (len(state), 1))
    counts = rng.poisson(rng.gamma(5.0, share * depth / 5.0))
    obs.index = [f"cell{i}" for i in range(len(obs))]
    adata = AnnData(sp.csr_matrix(counts.astype(np.float32)), obs=obs)
    adata.var_names = [f"g{i}" for i in range(N_GENES)]
    adata.obsm["truth"] = state
    return adata


def true_shares(knockout: str, t: float) -> pd.Series:
    """Shares of fates among 20,000 cells."""
    label = fates(states(knockout, t, 20_000, np.random.default_rng(0)))
    return pd.Series(label).value_counts(normalize=True).reindex(FATES, fill_value=0.0)


def evaluate(seed: int, dynamics: str, epochs: int | None) -> dict:
    """Largest error over fates of each condition's shares, averaged: measured and held out."""
    adata = screen(seed)
    later = (adata.obs.time == TIMES[-1]) & (adata.obs.perturbation != "control")
    seen = adata[~later].copy()
    pyrocell.PyroCell.setup_anndata(
        seen, batch_key="batch", perturbation_key="perturbation", control="control", time_key="time"
    )
    model = pyrocell.PyroCell(seen, n_latent=5, n_response=4, dynamics=dynamics, likelihood="nb")
    model.train(max_epochs=epochs, progress_bar=False)
    frame = pd.DataFrame(
        [{"perturbation": k, "time": t} for k in ("control", *KNOCKOUTS) for t in TIMES[1:]]
    )
    table = model.fate_proportions(frame, "fate", n_samples=20)
    rows, share = [], seen.obs.groupby(["perturbation", "time"], observed=True).fate
    measured = share.value_counts(normalize=True).unstack(fill_value=0.0).reindex(columns=FATES)
    for (knockout, t), part in table.groupby(["perturbation", "time"]):
        truth = true_shares(knockout, t)
        part = part.set_index("fate").reindex(FATES)
        held = knockout != "control" and t == TIMES[-1]
        anchors = {}
        if held:
            anchors = {
                "own_last": _worst(measured.loc[(knockout, TIMES[-2])], truth),
                "control": _worst(measured.loc[("control", t)], truth),
            }
        rows.append(
            {
                "knockout": knockout,
                "time": t,
                "held": held,
                "error": _worst(part["mean"], truth),
                "blocked_b": part.loc["B", "mean"] if knockout == "BLOCK" else np.nan,
                "covered": ((part.lower <= truth) & (truth <= part.upper)).mean(),
                "cells": _worst(measured.loc[(knockout, t)], truth) if not held else np.nan,
                **anchors,
            }
        )
    out = pd.DataFrame(rows)
    print(out.round(3).to_string(), flush=True)
    held, moving = out[out.held], ~out.held
    return {
        "seed": seed,
        "dynamics": dynamics,
        "measured": out.error[moving].mean(),
        "measured_cells": out.cells[moving].mean(),
        "held": held.error.mean(),
        "held_own_last": held.own_last.mean(),
        "held_control": held.control.mean(),
        "blocked_b": out.blocked_b[out.held].mean(),
        "covered": out.covered.mean(),
        "elbo": float(model.history.validation_elbo.iloc[-1]),
    }


def _worst(share: pd.Series, truth: pd.Series) -> float:
    return float((share.reindex(FATES, fill_value=0.0) - truth).abs().max())


def main() -> None:
    """Fit every dynamics to every seed's screen."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--dynamics", nargs="+", default=["relaxation", "flow", "sde"])
    parser.add_argument("--epochs", type=int, default=None)
    parser.add_argument("--jobs", type=int, default=1)
    args = parser.parse_args()
    jobs = [(seed, name, args.epochs) for seed in args.seeds for name in args.dynamics]
    table = pd.DataFrame(run_all(evaluate, jobs, args.jobs))
    print(table.round(3).to_string())
    mean = table.groupby("dynamics").mean(numeric_only=True)
    write_results(
        "branching",
        {
            part_of(parser, args): {
                "true_blocked_b": float(true_shares("BLOCK", TIMES[-1])["B"]),
                **{name: row.to_dict() for name, row in mean.iterrows()},
            }
        },
        args.seeds,
    )


if __name__ == "__main__":
    main()
