"""A small screen of RNA, proteins and chromatin, and what is true of it."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from mudata import MuData


def small_screen(seed: int = 0, n: int = 700, lacking: float = 0.0) -> tuple[MuData, np.ndarray]:
    """RNA (12), prot (6) and atac (10) of cells; `lacking` of them have no proteins.

    Perturbation A doubles the first gene and the foreground of the first protein, B does nothing.
    The second part is which cells have proteins.
    """
    rng = np.random.default_rng(seed)
    label = rng.choice(["control", "A", "B"], n)
    batch = rng.choice(["b0", "b1"], n)
    z = rng.normal(size=(n, 1))
    level = rng.normal(0, 0.5, 12) + 0.3 * z * rng.normal(size=12)
    level[:, 0] += np.log(2) * (label == "A")
    share = np.exp(level) / np.exp(level).sum(1, keepdims=True)
    rna = rng.poisson(300 * share * rng.gamma(5, 1 / 5, share.shape))
    low = np.array([4.0, 6.0, 5.0, 8.0, 3.0, 5.0]) * np.where(batch == "b0", 1.0, 1.3)[:, None]
    fore = np.exp(np.array([3.5, 3.0, 2.5, 3.5, 1.0, 2.0]) + 0.5 * z * rng.normal(size=6))
    fore[:, 0] *= np.where(label == "A", 2.0, 1.0)
    prot = rng.poisson(low + fore)
    open_ = np.exp(rng.normal(0, 0.5, 10) + 0.4 * z * rng.normal(size=10))
    atac = rng.poisson(30 * open_ / open_.sum(1, keepdims=True))
    obs = pd.DataFrame({"perturbation": label, "batch": batch}, index=[f"c{i}" for i in range(n)])
    has = rng.random(n) >= lacking

    def modality(counts: np.ndarray, name: str, rows: np.ndarray) -> ad.AnnData:
        out = ad.AnnData(sp.csr_matrix(counts.astype(np.float32)), obs=obs.copy())
        out.var_names = [f"{name}{i}" for i in range(counts.shape[1])]
        return out[rows].copy()

    every = np.ones(n, bool)
    parts = {
        "rna": modality(rna, "g", every),
        "prot": modality(prot, "p", has),
        "atac": modality(atac, "r", every & (atac.sum(1) > 0)),
    }
    return MuData(parts), has
