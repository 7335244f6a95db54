"""Simulated screens with several views of one hidden state, and what is true of them.

RNA is negative binomial about a share of the cell's depth, proteins are antibody counts of
background (which differs between batches) and foreground, chromatin is Poisson about a share of
fragments. A fifth of the perturbations each: nothing, RNA alone, protein alone, and two fifths all
views. Cells differ along three axes that all views share. None of the package's code is used.
"""

from __future__ import annotations

from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from mudata import MuData

KINDS = ("silent", "rna", "protein", "both", "both")


def view_screen(
    seed: int,
    n_cells: int = 6_000,
    n_perturbations: int = 40,
    n_genes: int = 300,
    n_proteins: int = 30,
    n_regions: int = 0,
    n_batches: int = 3,
    size: float = 0.3,
) -> tuple[MuData, dict[str, Any]]:
    """A MuData with modalities rna, prot and atac (where there are regions), and its truth."""
    rng = np.random.default_rng(seed)
    kinds = np.array([KINDS[k % len(KINDS)] for k in range(n_perturbations)])
    condition = rng.integers(0, n_perturbations + 3, n_cells) - 3  # three shares of controls
    condition = np.maximum(condition, -1)
    batch = rng.integers(0, n_batches, n_cells)
    z = rng.normal(size=(n_cells, 3))
    programs = rng.normal(size=(n_perturbations, 4)) * (rng.random((n_perturbations, 4)) < 0.4)

    def effects(n: int, moved: np.ndarray) -> np.ndarray:
        loading = rng.normal(size=(4, n)) * (rng.random((4, n)) < 0.25)
        own = rng.normal(size=(n_perturbations, n)) * (rng.random((n_perturbations, n)) < 0.08)
        out = size * (programs @ loading + own)
        out[~moved] = 0.0
        return np.vstack([out, np.zeros(n)])  # row -1: controls

    def centred(n: int, sd: float) -> np.ndarray:
        out = rng.normal(0, sd, (n_batches, n))
        return out - out.mean(0)

    def named(name: str, counts: np.ndarray, features: list[str]) -> ad.AnnData:
        out = ad.AnnData(sp.csr_matrix(counts.astype(np.float32)), obs=obs.copy())
        out.var_names = features
        return out

    labels = [f"P{k:03d}" for k in range(n_perturbations)] + ["control"]
    obs = pd.DataFrame(
        {"perturbation": np.array(labels)[condition], "batch": [f"b{b}" for b in batch]},
        index=[f"c{i}" for i in range(n_cells)],
    )
    mods, truth = {}, {"kinds": dict(zip(labels, kinds))}
    # RNA
    base = rng.normal(0, 1.3, n_genes)
    of_rna = effects(n_genes, np.isin(kinds, ["rna", "both"]))
    level = base + of_rna[condition] + centred(n_genes, 0.15)[batch]
    level += z @ rng.normal(0, 0.3, (3, n_genes))
    share = np.exp(level)
    share /= share.sum(1, keepdims=True)
    depth = np.exp(rng.normal(np.log(3.0 * n_genes), 0.3, n_cells))
    theta = np.exp(rng.normal(np.log(4.0), 0.4, n_genes))
    rate = depth[:, None] * share * rng.gamma(theta, 1 / theta, share.shape)
    genes = [f"g{i:03d}" for i in range(n_genes)]
    mods["rna"] = named("rna", rng.poisson(rate), genes)
    truth["rna"] = pd.DataFrame(of_rna[:-1], labels[:-1], genes)
    # proteins
    low = np.exp(rng.normal(1.8, 0.6, n_proteins) + centred(n_proteins, 0.3))  # (B, P)
    of_protein = effects(n_proteins, np.isin(kinds, ["protein", "both"]))
    fore, eta = rng.normal(3.2, 1.2, n_proteins), centred(n_proteins, 0.15)
    along, dead = rng.normal(0, 0.45, (3, n_proteins)), 0.03
    spread = np.exp(rng.normal(np.log(8.0), 0.3, n_proteins))

    def foreground(z: np.ndarray, c: Any, b: Any) -> np.ndarray:
        return np.exp(fore + of_protein[c] + eta[b] + z @ along)

    bound = rng.random((n_cells, n_proteins)) >= dead
    mean = low[batch] + bound * foreground(z, condition, batch)
    counts = rng.poisson(mean * rng.gamma(spread, 1 / spread, mean.shape))
    proteins = [f"prot{i:02d}" for i in range(n_proteins)]
    mods["prot"] = named("prot", counts, proteins)
    truth["expected_protein"] = pd.DataFrame(mean, obs.index, proteins)
    rest = np.random.default_rng(0).normal(size=(4_000, 3))
    levels = [
        np.log(
            np.mean(
                [low[b] + (1 - dead) * foreground(rest, c, b).mean(0) for b in range(n_batches)], 0
            )
        )
        for c in range(-1, n_perturbations)
    ]
    truth["protein"] = pd.DataFrame(np.array(levels[1:]) - levels[0], labels[:-1], proteins)
    if n_regions:
        of_region = effects(n_regions, kinds == "both")
        level = rng.normal(0, 1.0, n_regions) + of_region[condition]
        level = level + centred(n_regions, 0.15)[batch] + z @ rng.normal(0, 0.3, (3, n_regions))
        share = np.exp(level)
        share /= share.sum(1, keepdims=True)
        fragments = np.exp(rng.normal(np.log(0.7 * n_regions), 0.3, n_cells))
        regions = [f"chr1:{i}" for i in range(n_regions)]
        mods["atac"] = named("atac", rng.poisson(fragments[:, None] * share), regions)
        truth["chromatin"] = pd.DataFrame(of_region[:-1], labels[:-1], regions)
    return MuData(mods), truth


def only(mdata: MuData, cells: dict[str, np.ndarray]) -> MuData:
    """Modalities in some of their cells, by boolean masks."""
    return MuData({name: mdata.mod[name][mask].copy() for name, mask in cells.items()})


def linked_screen(
    seed: int,
    n_perturbations: int = 30,
    n_cells: int = 3_000,
    n_genes: int = 80,
    n_regions: int = 160,
) -> tuple[MuData, dict[str, pd.DataFrame], pd.DataFrame]:
    """RNA and chromatin that the same three programs move, effects, and links of regions to genes.

    A region is moved by .9 of what its gene is, give or take .05.
    """
    rng = np.random.default_rng(seed)
    rank, names = 3, [f"P{k:02d}" for k in range(n_perturbations)]
    loading = rng.normal(0, 0.4, (rank, n_genes)) * (rng.random((rank, n_genes)) < 0.4)
    activity = rng.normal(size=(n_perturbations, rank))
    activity *= rng.random(activity.shape) < 0.5
    host = rng.integers(0, n_genes, n_regions)
    of_regions = 0.9 * loading[:, host] + rng.normal(0, 0.05, (rank, n_regions))
    label = rng.choice([*range(n_perturbations), *[-1] * 8], n_cells)
    obs = pd.DataFrame(
        {
            "perturbation": np.array([*names, "control"])[label],
            "batch": rng.integers(0, 2, n_cells).astype(str),
        },
        index=[f"cell{i}" for i in range(n_cells)],
    )
    parts, truth = {}, {}
    kinds = (("rna", loading, 600, "gene"), ("atac", of_regions, 160, "region"))
    for name, along, depth, prefix in kinds:
        effect = activity @ along
        logits = rng.normal(0, 0.7, along.shape[1]) + np.vstack([effect, 0 * effect[:1]])[label]
        share = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        counts = rng.poisson(rng.gamma(5, 1 / 5, n_cells)[:, None] * depth * share)
        part = ad.AnnData(sp.csr_matrix(counts.astype(np.float32)), obs=obs.copy())
        part.var_names = [f"{prefix}{i}" for i in range(along.shape[1])]
        parts[name] = part[counts.sum(1) > 0].copy()
        # against features that do not move, as effects are reported
        effect = effect - np.median(effect, 1, keepdims=True)
        truth[name] = pd.DataFrame(effect, names, part.var_names)
    links = pd.DataFrame({"region": parts["atac"].var_names, "gene": [f"gene{g}" for g in host]})
    return MuData(parts), truth, links
