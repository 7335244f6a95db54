"""Small screens of cells with several guides each, and their truth."""

from __future__ import annotations

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData


def crowd(
    seed: int = 0,
    n_cells: int = 1500,
    n_guides: int = 30,
    n_controls: int = 4,
    per_cell: float = 6.0,
    n_genes: int = 30,
    share: float = 0.2,
) -> AnnData:
    """Cells with guides sg00..., the first of which target nothing; `.uns["effect"]` the truth."""
    rng = np.random.default_rng(seed)
    base = rng.normal(0, 0.7, n_genes)
    effect = np.zeros((n_guides, n_genes))
    hit = rng.random(effect.shape) < share
    effect[hit] = rng.uniform(0.3, 1.0, hit.sum()) * rng.choice([-1, 1], hit.sum())
    effect[:n_controls] = 0
    carried = rng.random((n_cells, n_guides)) < per_cell / n_guides
    none = np.flatnonzero(~carried.any(1))
    carried[none, rng.integers(0, n_guides, len(none))] = True
    batch = rng.integers(0, 2, n_cells)
    level = base + carried @ effect + np.where(batch[:, None] > 0, 0.1, -0.1)
    size = np.exp(rng.normal(np.log(20.0), 0.3, n_cells))
    rate = size[:, None] * np.exp(level) * rng.gamma(4, 1 / 4, level.shape)
    obs = pd.DataFrame({"batch": [f"b{b}" for b in batch]}, index=[f"c{i}" for i in range(n_cells)])
    obs["depth"] = size
    out = AnnData(sp.csr_matrix(rng.poisson(rate).astype(np.float32)), obs=obs)
    out.var_names = [f"g{g:02d}" for g in range(n_genes)]
    guides = [f"sg{k:02d}" for k in range(n_guides)]
    targets = ["control" if k < n_controls else f"T{k:02d}" for k in range(n_guides)]
    out.obsm["guides"] = sp.csr_matrix(carried.astype(np.int8))
    out.uns["guides"] = pd.DataFrame({"target": targets}, index=guides)
    out.uns["effect"] = effect
    return out


def labels_of(adata: AnnData) -> np.ndarray:
    """The same sets of targets as labels joined by +."""
    carried = sp.csr_array(adata.obsm["guides"])
    targets = adata.uns["guides"]["target"].to_numpy()
    rows = np.split(carried.indices, carried.indptr[1:-1])
    return np.array(
        ["+".join(sorted(set(targets[row]) - {"control"})) or "control" for row in rows],
        dtype=object,
    )
