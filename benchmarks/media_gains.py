"""Media gains on simulated screens with few and with many controls, against the truth.

Twenty knockouts, three of which block the response to a medium; 400 genes, 60 cells per condition,
20 or 200 control cells per arm; with and without axes of the response's own. The anchor is the
slope of each knockout's pseudobulk response on the median response.

    python benchmarks/media_gains.py --jobs 2
"""

from __future__ import annotations

import argparse

import numpy as np
import pandas as pd
from common import covered, run_all, write_results

import pyrocell

SEEDS = (401, 402, 403)


def gains(n_controls: int, n_response: int, seed: int) -> dict:
    """Simulate, fit, and compare the gains with the truth."""
    adata = pyrocell.simulate.screen(
        n_perturbations=20,
        n_genes=400,
        n_cells_per_condition=60,
        n_controls=n_controls,
        n_batches=2,
        media=1,
        blocked_fraction=0.15,
        media_rms=0.5,
        effect_rms=0.1,
        mean_library=150.0,
        dispersion=0.5,
        seed=seed,
    )
    truth = adata.uns["truth"]["gain"].to_numpy(dtype=float).ravel()
    pyrocell.PyroCell.setup_anndata(adata, media_key="media")
    model = pyrocell.PyroCell(adata, n_response=n_response)
    model.train(seed=0, progress_bar=False)
    table = model.media_gains(n_samples=500)
    mean, lower, upper = (table[name].to_numpy() for name in ("mean", "lower", "upper"))
    blocked = truth < 0.5
    anchor = pseudobulk_slopes(adata, list(table["perturbation"]))
    return {
        "controls": n_controls,
        "n_response": n_response,
        "seed": seed,
        "elbo": float(model.history["validation_elbo"].dropna().iloc[-1]),
        "blocked_mean": float(mean[blocked].mean()),
        "open_mean": float(mean[~blocked].mean()),
        "blocked_coverage": covered(lower[blocked], upper[blocked], truth[blocked]),
        "open_coverage": covered(lower[~blocked], upper[~blocked], truth[~blocked]),
        "separated": bool(mean[blocked].max() < mean[~blocked].min()),
        "rmse": float(np.sqrt(((mean - truth) ** 2).mean())),
        "anchor_rmse": float(np.sqrt(((anchor - truth) ** 2).mean())),
        "anchor_separated": bool(anchor[blocked].max() < anchor[~blocked].min()),
    }


def pseudobulk_slopes(adata, names: list[str]) -> np.ndarray:
    """Anchor: slope of a knockout's response on the median response, weighted by expression."""
    labels = adata.obs["perturbation"].astype(str).to_numpy()
    met = (adata.obs["media"] != "baseline").to_numpy()

    def level(rows: np.ndarray) -> np.ndarray:
        total = np.asarray(adata.X[rows].sum(0)).ravel() + 0.5
        return np.log(total / total.sum())

    weight = np.exp(level(np.ones(len(labels), bool)))
    responses = np.stack([level((labels == k) & met) - level((labels == k) & ~met) for k in names])
    common = np.median(responses, axis=0)
    return (responses * common * weight).sum(1) / (common**2 * weight).sum()


def main() -> None:
    """Run all screens and pool."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    jobs = [(c, r, s) for c in (20, 200) for r in (0, 8) for s in SEEDS]
    table = pd.DataFrame(run_all(gains, jobs, args.jobs))
    means = table.drop(columns="seed").groupby(["controls", "n_response"]).mean()
    print(means.round(3).to_string())
    figures = {f"{c} controls, {r} axes": row.to_dict() for (c, r), row in means.iterrows()}
    write_results("media_gains", {"all": figures}, SEEDS)


if __name__ == "__main__":
    main()
