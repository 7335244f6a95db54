"""Importance-weighted log-likelihood of held-out cells, against scvi-tools' SCVI.

Same cells, same batch key, same latent size, hidden width, ZINB and number of particles; a tenth of
the cells held out. SCVI is trained to its early stop.

    python benchmarks/heldout_likelihood.py
"""

from __future__ import annotations

import argparse

import numpy as np
import scvi
from common import part_of, quiet, run_all, shared, write_results

import pyrocell

SCREENS = {
    "papalexi": ("papalexi2021_thp1_eccite.h5ad", "knockout"),
    "norman": ("norman2019_k562_crispra.h5ad", "CRISPRa"),
}
LATENT, HIDDEN, PARTICLES = 10, 128, 100


def compare(name: str, seed: int) -> dict:
    """Fit both models on the same cells and score the rest."""
    file, kind = SCREENS[name]
    adata = shared(file)
    adata = adata[:, np.asarray(adata.X.sum(0)).ravel() > 0].copy()
    adata = adata[np.asarray(adata.X.sum(1)).ravel() > 0].copy()
    test = np.random.default_rng(seed).random(adata.n_obs) < 0.1
    train, held = adata[~test].copy(), adata[test].copy()

    pyrocell.PyroCell.setup_anndata(train, perturbation_type=kind)
    ours = pyrocell.PyroCell(train, n_latent=LATENT, n_hidden=HIDDEN)
    ours.train(seed=seed, progress_bar=False)
    own = ours.get_marginal_ll(held, n_mc_samples=PARTICLES)

    scvi.settings.seed = seed
    theirs_train, theirs_held = adata[~test].copy(), adata[test].copy()
    scvi.model.SCVI.setup_anndata(theirs_train, batch_key="batch")
    theirs = scvi.model.SCVI(theirs_train, n_latent=LATENT, n_hidden=HIDDEN, gene_likelihood="zinb")
    theirs.train(early_stopping=True, accelerator="cpu", enable_progress_bar=False)
    other = theirs.get_marginal_ll(theirs_held, n_mc_samples=PARTICLES, return_mean=False)
    other = np.asarray(other)
    gain = own.to_numpy() - other
    return {
        "screen": name,
        "seed": seed,
        "pyrocell": float(own.mean()),
        "scvi": float(other.mean()),
        "difference": float(gain.mean()),
        "standard_error": float(gain.std() / len(gain) ** 0.5),
        "cells": len(gain),
    }


def main() -> None:
    """Compare on both screens."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--screens", nargs="+", default=list(SCREENS))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1)
    args = parser.parse_args()
    quiet()
    jobs = [(name, seed) for name in args.screens for seed in range(args.seeds)]
    write_results(
        "heldout_likelihood",
        {
            part_of(parser, args): {
                "particles": PARTICLES,
                "results": run_all(compare, jobs, args.jobs),
            }
        },
        range(args.seeds),
    )


if __name__ == "__main__":
    main()
