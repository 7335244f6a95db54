"""Cells of a network in grnlab with RNA and surface proteins: mRNA and protein are its two stages.

Every gene of the network is knocked out and looked at long after; 150 other genes stand still, so
that depth says little of the network. Antibodies see the proteins of the network over a background
that differs between batches. None of the package's code is used.
"""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from mechanistic_grnlab import CLONES, GRID, Grnlab
from mudata import MuData
from networks import draw_network

STILL, CELLS, CONTROLS, BATCHES = 150, 60, 400, 3
DEPTH, FOREGROUND = 1_500, 40.0
UNTIL = 20.0  # mRNA lifetimes after the knockout
PROTEIN_SHAPE = 6.0  # of the gamma factor of a cell's protein


def grnlab_screen(seed: int) -> tuple[MuData, dict[str, pd.DataFrame]]:
    """A MuData with modalities rna and prot, and true effects on log mean counts."""
    import grnlab

    rng = np.random.default_rng(seed)
    network = draw_network(rng)
    world = Grnlab(network, rng)
    genes, signals = list(network.genes), world._signals(None, 0.0)
    means = {}
    for name in [None, *genes]:
        runs = [
            grnlab.simulate(
                clone, UNTIL, GRID, initial_condition=rest, knockout=name, stimulus=signals
            )
            for clone, rest in zip(world.clones, world.rest, strict=True)
        ]
        ends = [(run.mrna[-1, world.first :], run.protein[-1, world.first :]) for run in runs]
        means[name or "control"] = np.moveaxis(np.array(ends), 0, 1)  # (2, clones, genes)
    label = np.repeat(["control", *genes], [CONTROLS, *[CELLS] * len(genes)])
    n, clone = len(label), rng.integers(CLONES, size=len(label))
    batch, depth = rng.integers(0, BATCHES, n), rng.gamma(5, 1 / 5, n)
    state = np.stack([means[k][:, c] for k, c in zip(label, clone, strict=True)], 1)
    obs = pd.DataFrame(
        {"perturbation": label, "batch": batch.astype(str)}, [f"cell{i}" for i in range(n)]
    )

    def noise(size: int) -> np.ndarray:
        eta = rng.normal(0, 0.15, (BATCHES, size))
        return np.exp(eta - eta.mean(0))[batch]

    def modality(mean: np.ndarray, names: list[str]) -> ad.AnnData:
        counts = sp.csr_matrix(rng.poisson(mean).astype(np.float32))
        return ad.AnnData(counts, obs.copy(), pd.DataFrame(index=names))

    usual = means["control"].mean(1)  # (2, genes)
    still = np.exp(rng.normal(0, 1.0, STILL)) * usual[0].mean()
    mrna = state[0] * rng.gamma(world.shape, 1 / world.shape, state[0].shape)
    whole = np.concatenate([mrna, np.tile(still, (n, 1)) * rng.gamma(4, 1 / 4, (n, STILL))], 1)
    scale = DEPTH / (usual[0].sum() + still.sum())
    rna = depth[:, None] * scale * whole * noise(whole.shape[1])
    weight = FOREGROUND * np.exp(rng.normal(0, 0.5, len(genes))) / np.maximum(usual[1], 1e-9)
    low = np.exp(rng.normal(1.8, 0.5, len(genes)) + rng.normal(0, 0.25, (BATCHES, len(genes))))
    protein = state[1] * weight * rng.gamma(PROTEIN_SHAPE, 1 / PROTEIN_SHAPE, state[1].shape)
    names = [*genes, *[f"still{i}" for i in range(STILL)]]
    antibodies = [f"ab-{gene}" for gene in genes]
    parts = {
        "rna": modality(rna, names),
        "prot": modality(low[batch] + protein * noise(len(genes)), antibodies),
    }
    effects, background = {}, low.mean(0)
    for part, columns in (("rna", names), ("prot", antibodies)):
        rows = np.zeros((len(genes), len(columns)))
        for i, name in enumerate(genes):
            mean = means[name].mean(1)
            if part == "rna":
                rows[i, : len(genes)] = np.log((mean[0] + 1e-3) / (usual[0] + 1e-3))
            else:
                rows[i] = np.log((background + weight * mean[1]) / (background + weight * usual[1]))
        effects[part] = pd.DataFrame(rows, genes, columns)
    return MuData(parts), effects
