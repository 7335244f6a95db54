"""Many perturbations of few cells: what drawing those of a minibatch alone does to the answers.

Simulated screens of 300 perturbations of 25 cells and 750 controls, 200 genes, 3 batches, effects
of RMS .3, a fifth of the perturbations silent. Each is fitted twice from the same start, with the
same cells held out and as many steps of 128 cells: drawing all perturbations at every step, or
those of the minibatch. Printed for each: held-out evidence per cell, RMSE of the effects and their
correlation with the truth, coverage and width of 90% intervals, processor time. Anchors without a
model: no effect at all, and pseudobulk changes.

    python benchmarks/many_perturbations.py
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from batch_recovery import gauge, pseudobulk_effects, rms
from common import covered, part_of, quiet, write_results

from pyrocell import PyroCell, TrainingConfig, simulate
from pyrocell.posterior.effects import effect_draws
from pyrocell.training.fit import held_out_elbo

SEEDS = (4100, 4101, 4102)
SCREEN = {
    "n_perturbations": 300,
    "n_genes": 200,
    "n_cells_per_condition": 25,
    "n_controls": 750,
    "n_batches": 3,
    "mean_library": 1500.0,
    "effect_rms": 0.3,
    "silent_fraction": 0.2,
}
BATCH_SIZE, DRAWS, EVALUATIONS = 128, 100, 5
WAYS = {"all": False, "of the minibatch": True}


def fit(adata: AnnData, by_minibatch: bool, steps: int) -> tuple[PyroCell, float]:
    """A trained model and the seconds of processor time that it took."""
    PyroCell.setup_anndata(adata, batch_key="batch")
    model = PyroCell(adata)
    config = TrainingConfig(steps=steps, min_epochs=1, by_minibatch=by_minibatch)
    start = time.process_time()
    model.train(config=config, batch_size=BATCH_SIZE, progress_bar=False, accelerator="cpu")
    return model, time.process_time() - start


def evidence(model: PyroCell) -> float:
    """log p(x | z) + log p(z) − log q(z) of held-out cells, per cell, mean over draws."""
    parts = model.module.model, model.module.guide
    cells = model.module_arguments(model.validation_indices_)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found = [float(held_out_elbo(*parts, cells).mean()) for _ in range(EVALUATIONS)]
    return float(np.mean(found))


def weights(truth: dict) -> np.ndarray:
    """Weights of genes in the gauge in which the simulator states effects, (G,)."""
    expression = np.asarray(truth["expression"], float).ravel()
    return expression / expression.sum()


def score(adata: AnnData, by_minibatch: bool, steps: int) -> dict[str, float]:
    """How near the answers of one fit are to the truth."""
    truth = adata.uns["truth"]
    names, weight = list(truth["effect"].index), weights(truth)
    true = gauge(truth["effect"].to_numpy(float), weight)
    model, seconds = fit(adata.copy(), by_minibatch, steps)
    draws = effect_draws(model.fitted, names, model.screen.baseline_media, None, DRAWS)
    draws = gauge(draws, weight)
    lower, upper = np.percentile(draws, [5, 95], axis=0)
    mean, silent = draws.mean(0), np.asarray(truth["silent"], bool)
    return {
        "evidence": evidence(model),
        "rmse": rms(mean - true),
        "rmse_silent": rms((mean - true)[silent]),
        "correlation": float(np.corrcoef(mean.ravel(), true.ravel())[0, 1]),
        "coverage": covered(lower, upper, true),
        "width": float((upper - lower).mean()),
        "seconds": seconds,
    }


def anchors(adata: AnnData) -> dict[str, dict[str, float]]:
    """RMSE without a model."""
    truth = adata.uns["truth"]
    weight = weights(truth)
    true = gauge(truth["effect"].to_numpy(float), weight)
    bulk = pseudobulk_effects(adata, list(truth["effect"].index), weight)
    return {"no effect": {"rmse": rms(true)}, "pseudobulk": {"rmse": rms(bulk - true)}}


def main() -> None:
    """Print a table and the line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--steps", type=int, default=2000)
    options = parser.parse_args()
    quiet()
    rows = {}
    for seed in options.seeds:
        adata = simulate.screen(seed=seed, **SCREEN)
        for name, by_minibatch in WAYS.items():
            rows[seed, name] = score(adata, by_minibatch, options.steps)
            print(seed, name, {k: round(v, 4) for k, v in rows[seed, name].items()}, flush=True)
        rows |= {(seed, name): found for name, found in anchors(adata).items()}
    table = pd.DataFrame(rows).T.rename_axis(["seed", "drawn"])
    print(table.round(4).to_string())
    mean = table.groupby(level="drawn", sort=False).mean()
    print(mean.round(4).to_string())
    write_results(
        "many_perturbations",
        {part_of(parser, options): {"steps": options.steps, **mean.T.to_dict()}},
        options.seeds,
    )


if __name__ == "__main__":
    main()
