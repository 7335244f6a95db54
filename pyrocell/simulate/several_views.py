"""A screen whose cells are measured in several views, with its truth."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from mudata import MuData
from scipy.special import softmax

from pyrocell.operators.waiting import onset_curve

__all__ = ["views"]

_AXES = 3  # of resting cells
_DEAD = 0.03  # share of antibody counts that are background although there is protein


def views(
    n_cells: int = 2_000,
    n_perturbations: int = 8,
    n_genes: int = 60,
    n_proteins: int = 12,
    n_regions: int = 0,
    n_batches: int = 2,
    times: tuple[float, ...] = (),
    lag: float = 0.0,
    without_protein: float = 0.0,
    seed: int = 0,
) -> MuData:
    """Draw a screen of RNA, surface proteins and, if asked for, chromatin, of the same cells.

    A quarter of the perturbations each: nothing, RNA alone, proteins alone, all views.

    Parameters
    ----------
    n_cells
        Half as many again for every perturbation are controls.
    n_perturbations, n_genes, n_proteins, n_regions, n_batches
        Numbers of these; no chromatin without regions.
    times
        Times of measurement after perturbation; effects on RNA set in with a time constant of 1.
    lag
        Time constant with which proteins follow RNA; 0: at once.
    without_protein
        Share of cells that have no proteins.
    seed
        The same seed gives the same screen.

    Returns
    -------
    MuData with modalities "rna", "prot" and "atac": raw counts (CSR), `.obs` perturbation, batch
    and time. `.uns["truth"]` of each modality is a table of effects (perturbations × features),
    natural log, of the final state: of proteins those on their foreground.
    """
    rng = np.random.default_rng(seed)
    names = [f"P{k:02d}" for k in range(n_perturbations)]
    kind = np.arange(n_perturbations) % 4
    label = rng.choice([*range(n_perturbations), -1, -1, -1], n_cells)
    batch = rng.integers(0, n_batches, n_cells)
    when = rng.choice(times, n_cells) if times else np.full(n_cells, 1e6)
    z = rng.normal(size=(n_cells, _AXES))
    obs = pd.DataFrame(
        {"perturbation": np.array([*names, "control"])[label], "batch": [f"b{b}" for b in batch]},
        index=[f"cell{i}" for i in range(n_cells)],
    )
    if times:
        obs["time"] = when

    def level(n: int, moved: np.ndarray, share: np.ndarray, base: np.ndarray) -> tuple:
        """Log levels (cells, n) and effects (K, n), of which `share` (cells,) has set in."""
        effect = rng.normal(0, 0.6, (n_perturbations, n))
        effect *= (rng.random(effect.shape) < 0.25) * moved[:, None]
        eta = rng.normal(0, 0.15, (n_batches, n))
        along = rng.normal(0, 0.35, (_AXES, n))
        both = np.vstack([effect, np.zeros(n)])
        out = base + share[:, None] * both[label] + (eta - eta.mean(0))[batch] + z @ along
        return out, pd.DataFrame(effect, names)

    def modality(
        counts: np.ndarray,
        prefix: str,
        truth: pd.DataFrame,
        cells: np.ndarray | None = None,
    ) -> ad.AnnData:
        out = ad.AnnData(sp.csr_matrix(counts.astype(np.float32)), obs=obs.copy())
        out = out if cells is None else out[cells].copy()
        truth.columns = pd.Index([f"{prefix}{i}" for i in range(counts.shape[1])])
        out.var_names = truth.columns.to_list()
        out.uns["truth"] = truth
        return out

    after = torch.as_tensor(when)
    fast = -np.expm1(-when)
    slow = fast if lag <= 0 else onset_curve(torch.ones(()), torch.tensor(1 / lag), after).numpy()
    logits, truth = level(n_genes, np.isin(kind, [1, 3]), fast, rng.normal(0, 1.0, n_genes))
    depth = np.exp(rng.normal(np.log(10.0 * n_genes), 0.3, n_cells))
    noise = rng.gamma(4.0, 1 / 4.0, logits.shape)
    rna = rng.poisson(depth[:, None] * softmax(logits, 1) * noise)
    parts = {"rna": modality(rna, "gene", truth)}
    log_fore, truth = level(n_proteins, kind >= 2, slow, rng.normal(3.3, 0.8, n_proteins))
    low = np.exp(rng.normal(1.8, 0.5, n_proteins) + rng.normal(0, 0.25, (n_batches, n_proteins)))
    mean = low[batch] + (rng.random(log_fore.shape) >= _DEAD) * np.exp(log_fore)
    counts = rng.poisson(mean * rng.gamma(8.0, 1 / 8.0, mean.shape))
    parts["prot"] = modality(counts, "protein", truth, rng.random(n_cells) >= without_protein)
    if n_regions:
        logits, truth = level(n_regions, kind == 3, fast, rng.normal(0, 0.8, n_regions))
        number = np.exp(rng.normal(np.log(1.5 * n_regions), 0.3, n_cells))
        fragments = rng.poisson(number[:, None] * softmax(logits, 1))
        parts["atac"] = modality(fragments, "region", truth, fragments.sum(1) > 0)
    return MuData(parts)
