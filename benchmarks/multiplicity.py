"""Cells with many guides each: are effects as good as from cells with one guide each?

20,000 simulated cells with 8 of 300 guides on average (30 of them controls, 270 targets) against
cells with one guide each and as many cells of every guide, 160,000: the same effects, the same
depth. Errors and coverage of both, beside no change at all, beside the plain log ratio of cells
with and without a guide (no model), and with the guides of cells permuted. A training step at
20,000 cells of 1,000 genes is timed for both, in turns. Seeds below 100 are for development.
"""

from __future__ import annotations

import argparse
import time

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from common import part_of, quiet, run_all, write_results
from effect_screens import score, sparse_effects

import pyrocell

N_GUIDES, N_CONTROLS, PER_CELL = 300, 30, 8
_AT_ONCE = 8192  # cells drawn at once


def many_guides(
    seed: int,
    n_cells: int = 20_000,
    n_guides: int = N_GUIDES,
    n_controls: int = N_CONTROLS,
    per_cell: float = PER_CELL,
    n_genes: int = 200,
    depth: float = 500.0,
    n_batches: int = 2,
) -> ad.AnnData:
    """Cells with several guides: each guide is in a cell or not, whatever others are.

    `per_cell` 1: one guide each, and of every guide as many cells as at 8 of each cell. Effects,
    expression, overdispersion and batches depend on the seed alone.
    """
    rng = np.random.default_rng(seed)
    base = rng.normal(0, 1.5, n_genes)
    base -= np.log(np.exp(base).sum())
    theta = np.exp(rng.normal(np.log(4.0), 0.5, n_genes))
    eta = rng.normal(0, 0.15, (n_batches, n_genes))
    eta -= eta.mean(0)
    loading = rng.normal(0, 0.25, (3, n_genes)) * (rng.random((3, n_genes)) < 0.5)
    effects = np.zeros((n_guides, n_genes))
    effects[n_controls:] = sparse_effects(rng, n_guides - n_controls, n_genes, 0.4, 0.1, False)
    rng = np.random.default_rng([seed, round(per_cell)])
    if per_cell == 1:
        n_cells = n_cells * PER_CELL
        carried = np.zeros((n_cells, n_guides), bool)
        carried[np.arange(n_cells), rng.permutation(n_cells) % n_guides] = True
    else:
        carried = rng.random((n_cells, n_guides)) < per_cell / n_guides
        none = np.flatnonzero(~carried.any(1))
        carried[none, rng.integers(0, n_guides, len(none))] = True
    batch = rng.integers(0, n_batches, n_cells)
    counts = []
    for first in range(0, n_cells, _AT_ONCE):
        i = slice(first, min(first + _AT_ONCE, n_cells))
        n = i.stop - i.start
        level = base + eta[batch[i]] + rng.normal(size=(n, 3)) @ loading + carried[i] @ effects
        share = np.exp(level)
        share /= share.sum(1, keepdims=True)
        size = np.exp(rng.normal(np.log(depth), 0.3, n))
        rate = size[:, None] * share * rng.gamma(theta, 1 / theta, share.shape)
        counts.append(sp.csr_matrix(rng.poisson(rate).astype(np.float32)))
    names = [f"c{i}" for i in range(n_cells)]
    obs = pd.DataFrame({"batch": pd.Categorical([f"batch{b}" for b in batch])}, index=names)
    out = ad.AnnData(sp.vstack(counts, format="csr"), obs=obs)
    out.var_names = [f"g{g:03d}" for g in range(n_genes)]
    guides = [f"sg{k:03d}" for k in range(n_guides)]
    targets = [f"P{k:03d}" if k >= n_controls else "control" for k in range(n_guides)]
    out.obsm["guides"] = sp.csr_matrix(carried.astype(np.int8))
    out.uns["guides"] = pd.DataFrame({"target": targets}, index=guides)
    out.uns["perturbations"] = targets[n_controls:]
    out.varm["truth"] = out.varm["implanted"] = effects[n_controls:].T
    return out


def register(adata: ad.AnnData) -> None:
    """Register many guides as a matrix, one of each cell as labels."""
    carried = sp.csr_array(adata.obsm["guides"])
    if carried.sum() > adata.n_obs:
        pyrocell.PyroCell.setup_anndata(adata, guide_matrix_key="guides")
        return
    targets = adata.uns["guides"]["target"].to_numpy()
    adata.obs["perturbation"] = pd.Categorical(targets[carried.indices])
    pyrocell.PyroCell.setup_anndata(adata)


def plain_ratios(adata: ad.AnnData) -> np.ndarray:
    """(P, G) log ratio of shares of counts in cells with and without each targeted guide."""
    carried = sp.csr_array(adata.obsm["guides"])[:, N_CONTROLS:].astype(float)
    with_it = (carried.T @ sp.csr_array(adata.X)).toarray()
    without = np.asarray(adata.X.sum(0)).ravel() - with_it
    share = [(x + 0.5) / (x + 0.5).sum(1, keepdims=True) for x in (with_it, without)]
    return np.log(share[0] / share[1])


def one_fit(seed: int, per_cell: int, shuffle: bool, epochs: int) -> dict:
    """Figures of one screen."""
    adata = many_guides(seed, per_cell=per_cell)
    if shuffle:
        order = np.random.default_rng(seed).permutation(adata.n_obs)
        adata.obsm["guides"] = adata.obsm["guides"][order]
        for name in ("truth", "implanted"):
            adata.varm[name] = np.zeros_like(adata.varm[name])
    start = time.time()
    register(adata)
    model = pyrocell.PyroCell(adata)
    setup = time.time() - start
    model.train(max_epochs=epochs, progress_bar=False, accelerator="cpu")
    fitted = time.time() - start - setup
    table = model.perturbation_effects()
    out = {
        "seed": seed,
        "per_cell": per_cell,
        "shuffled": shuffle,
        "n_conditions": len(model.screen.conditions),
        "setup_seconds": setup,
        "fit_seconds": fitted,
        "listed": float((table["fdr"] <= 0.1).mean()),
        "excluding_zero": float(((table["lower"] > 0) | (table["upper"] < 0)).mean()),
    }
    if shuffle:
        return out
    table["rank"] = table["lfsr"]
    for level in (5, 10):
        table[f"listed_{level}"] = table["fdr"] <= level / 100
    truth = adata.varm["truth"].T
    anchor = np.sqrt(np.mean((plain_ratios(adata) - truth) ** 2))
    return out | score(table, adata) | {"rmse_plain_ratio": float(anchor)}


def step_time(seed: int) -> dict:
    """Seconds of a training epoch of both kinds of screen at 20,000 cells, in turns."""
    models = []
    for per_cell in (PER_CELL, 1):
        n_cells = 20_000 if per_cell > 1 else 20_000 // PER_CELL
        adata = many_guides(seed, n_cells, per_cell=per_cell, n_genes=1000)
        register(adata)
        models.append(pyrocell.PyroCell(adata))
    seconds: list[list[float]] = [[], []]
    for turn in range(4):
        for model, mine in zip(models, seconds, strict=True):
            start = time.process_time()
            model.train(max_epochs=3, progress_bar=False, gene_level=False, accelerator="cpu")
            if turn:  # the first compiles
                mine.append(time.process_time() - start)
    many, one = (float(np.median(mine)) for mine in seconds)
    return {"seed": seed, "many": many, "one": one, "ratio": many / one}


def summary(found: list[dict]) -> dict:
    """Means over seeds, and each seed's."""
    numbers = [k for k, v in found[0].items() if isinstance(v, int | float) and k != "seed"]
    return {
        "mean": {k: float(np.mean([f[k] for f in found])) for k in numbers},
        "of_seeds": found,
    }


def main() -> None:
    """Run the parts asked for, and write their figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[301, 302, 303])
    parser.add_argument("--epochs", type=int, default=5, help="of the gradient phase, many guides")
    parser.add_argument("--parts", nargs="+", default=["effects", "shuffled", "step"])
    parser.add_argument("--jobs", type=int, default=1)
    arguments = parser.parse_args()
    quiet()
    parts, epochs = {}, arguments.epochs
    name = lambda part: part_of(parser, arguments, part)  # noqa: E731
    if "effects" in arguments.parts:
        jobs = [
            (s, n, False, epochs if n > 1 else max(1, epochs // PER_CELL))
            for s in arguments.seeds
            for n in (PER_CELL, 1)
        ]
        found = run_all(one_fit, jobs, arguments.jobs)
        both = [[f for f in found if f["per_cell"] == n] for n in (PER_CELL, 1)]
        many, one = (summary(each) for each in both)
        ratios = [a["rmse"] / b["rmse"] for a, b in zip(*both, strict=True)]
        parts[name("effects")] = {"many": many, "one": one, "rmse_ratio": ratios}
    if "shuffled" in arguments.parts:
        jobs = [(s, PER_CELL, True, 2) for s in arguments.seeds]
        parts[name("shuffled")] = summary(run_all(one_fit, jobs, arguments.jobs))
    if "step" in arguments.parts:
        parts[name("step")] = step_time(arguments.seeds[0])
    write_results("multiplicity", parts, arguments.seeds)


if __name__ == "__main__":
    main()
