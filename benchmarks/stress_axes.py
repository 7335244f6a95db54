"""Would axes of batch noise shared by all batches (stress-like) pay, for batches seen and unseen?

Simulated η: a share of its variance follows two axes common to all batches, a batch's content of
dying cells, say; the rest is each gene's own. Per gene and batch counts tell η with the sampling
variance v of a batch of so many cells (.55 a cell, as in batch_recovery's screens). Posterior mean
and variance of η are closed: with the prior of the model, a variance per gene, and with the true
covariance diag + A'A, which a learned one can only approach. Figures: RMSE of η, coverage of 90%
intervals, and, of 20 new batches, coverage of the mean over the 20 genes highest on the first axis:
with a variance per gene, with the true covariance, and with what `predict` learns from the realised
contrasts (`new_batches.shared_axes`). Anchor: η = 0.

    python benchmarks/stress_axes.py
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch
from common import covered, write_results

from pyrocell.noise.contrasts import contrast_matrix
from pyrocell.posterior.new_batches import shared_axes

ROOMS = ("noise", "posterior")  # that the figures depend on
GENES, AXES, SD, CELL_VARIANCE = 200, 2, 0.2, 0.55
N_NEW, SEEDS = 20, range(501, 521)


def judge(n_batches: int, n_cells: int, share: float, seed: int) -> dict:
    """One draw of axes and batches."""
    rng = np.random.default_rng(seed)
    axes = rng.standard_normal((AXES, GENES)) * SD * np.sqrt(share / AXES)
    own = np.full(GENES, SD**2 * (1 - share))
    full = np.diag(own) + axes.T @ axes
    eta = rng.multivariate_normal(np.zeros(GENES), full, n_batches + N_NEW)
    new, eta = eta[n_batches:], eta[:n_batches]
    new = new - eta.mean(0)
    v = CELL_VARIANCE / n_cells
    seen = eta + np.sqrt(v) * rng.standard_normal(eta.shape)
    found = {"batches": n_batches, "cells": n_cells, "share": share, "seed": seed}
    top = np.argsort(-axes[0])[:20]
    wider = 1 + 1 / n_batches

    def programme(prior: np.ndarray) -> float:
        width = 1.645 * np.sqrt(wider * prior[np.ix_(top, top)].mean())
        return float((np.abs(new[:, top].mean(1)) <= width).mean())

    for name, prior in (("by gene", np.diag(np.diag(full))), ("true", full)):
        gain = prior @ np.linalg.inv(prior + v * np.eye(GENES))
        mean, sd = seen @ gain.T, np.sqrt(np.diag(prior - gain @ prior))
        found[f"rmse {name}"] = float(np.sqrt(np.mean((mean - eta) ** 2)))
        found[f"coverage {name}"] = covered(mean - 1.645 * sd, mean + 1.645 * sd, eta)
        found[f"programme {name}"] = programme(prior)
    gain = np.diag(full) / (np.diag(full) + v)
    free = contrast_matrix(n_batches, dtype=torch.float64).numpy().T @ (seen * gain)
    sites = {"eta.free": torch.as_tensor(free)}
    width = np.sqrt(np.diag(full))
    model = SimpleNamespace(noise=SimpleNamespace(scale=lambda _: torch.as_tensor(width)))
    learned = shared_axes(model, sites).numpy()
    correlation = learned.T @ learned
    np.fill_diagonal(correlation, 1.0)
    found["programme learned"] = programme(width[:, None] * correlation * width)
    found["rmse nothing"] = float(np.sqrt(np.mean(eta**2)))
    return found


def main() -> None:
    """All settings and seeds."""
    rows = [
        judge(b, n, share, seed)
        for b, n in ((6, 100), (6, 400), (24, 400))
        for share in (0.0, 0.3, 0.7)
        for seed in SEEDS
    ]
    keys = ["batches", "cells", "share"]
    table = pd.DataFrame(rows).drop(columns="seed").groupby(keys).mean()
    table.index = [f"{b} batches of {n} cells, {share:.0%}" for b, n, share in table.index]
    print(table.round(3).to_string())
    gain = table["rmse true"] / table["rmse by gene"]
    write_results(
        "stress_axes",
        {
            "all": {
                "rmse_ratio": gain.to_dict(),
                **{
                    c.replace(" ", "_"): table[c].to_dict()
                    for c in table
                    if c.startswith("programme")
                },
            }
        },
        SEEDS,
        rooms=ROOMS,
    )


if __name__ == "__main__":
    main()
