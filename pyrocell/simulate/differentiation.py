"""A screen in which cells differentiate, each at its own pace, and some perturbations hold them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from scipy.special import expit, softmax

__all__ = ["differentiation"]

CONTROL = "control"
SWITCH_SD, SWITCH_WIDTH = 1.5, 0.1  # log-fold change of a gene that switches, in progress units
CELL_STATE_SD = 0.2  # of log expression, along two axes that have nothing to do with progress
LIBRARY_SD, INVERSE_DISPERSION = 0.3, 5.0
BRANCH_AT = 0.5


def differentiation(
    held: Mapping[str, float] | None = None,
    *,
    n_cells: int = 150,
    n_controls: int = 600,
    n_genes: int = 100,
    n_lineages: int = 1,
    checkpoint: float = 0.35,
    effect_rms: float = 0.0,
    mean_library: float = 1000.0,
    seed: int = 0,
) -> AnnData:
    """Draw counts of cells caught on their way from progress 0 to 1 (App. C.1, eq. 24).

    All cells start together and move at their own pace, so one harvest holds every stage. Genes
    switch on or off, each at a progress of its own. A perturbation holds a share of its cells: had
    they passed the checkpoint, they are found somewhere before it.

    Parameters
    ----------
    held
        Share of the cells that each perturbation holds. None: ``{"HOLDS": .8, "LEAKY": .4,
        "INERT_A": 0, "INERT_B": 0}``.
    n_cells, n_controls
        Cells of each perturbation, and control cells.
    n_genes
        G.
    n_lineages
        1, or 2 that part half way.
    checkpoint
        Progress before which cells are held.
    effect_rms
        RMS log-fold change of each perturbation that has nothing to do with progress.
    mean_library
        Mean counts of a cell.
    seed
        The same seed and settings give the same screen.

    Returns
    -------
    AnnData
        Counts (CSR); `.obs`: perturbation, and stage ("early" below a progress of 0.1, else
        "later": what a sorted marker would tell). `.uns["truth"]`: progress and lineage of each
        cell, the share `held` of each perturbation, checkpoint.

    Raises
    ------
    ValueError
        If a setting is out of its range.
    """
    default = {"HOLDS": 0.8, "LEAKY": 0.4, "INERT_A": 0.0, "INERT_B": 0.0}
    held = dict(default if held is None else held)
    if n_lineages not in (1, 2) or not 0 < checkpoint < 1:
        raise ValueError(
            f"n_lineages={n_lineages} must be 1 or 2, and checkpoint={checkpoint} lie in (0, 1)"
        )
    if any(not 0 <= share <= 1 for share in held.values()) or CONTROL in held:
        raise ValueError(f'held={held} must be shares in [0, 1], and "{CONTROL}" is held by none')
    rng = np.random.default_rng(seed)
    names = [CONTROL, *held]
    code = np.repeat(np.arange(len(names)), [n_controls] + [n_cells] * len(held))
    n = len(code)
    progress = rng.random(n)
    stays = (rng.random(n) < np.array([0.0, *held.values()])[code]) & (progress > checkpoint)
    progress = np.where(stays, checkpoint * rng.random(n), progress)
    lineage = np.where(progress > BRANCH_AT, rng.integers(n_lineages, size=n), -1)
    logits = _expression(rng, progress, lineage, n_genes, n_lineages)
    logits += CELL_STATE_SD * rng.standard_normal((n, 2)) @ rng.standard_normal((2, n_genes))
    effect = effect_rms * rng.standard_normal((len(names), n_genes))
    effect[0] = 0
    library = mean_library * np.exp(LIBRARY_SD * rng.standard_normal(n) - LIBRARY_SD**2 / 2)
    mean = library[:, None] * softmax(logits + effect[code], axis=1)
    burst = rng.gamma(INVERSE_DISPERSION, 1 / INVERSE_DISPERSION, mean.shape)
    obs = pd.DataFrame(
        {
            "perturbation": pd.Categorical.from_codes(code, pd.Index(names)),
            "stage": pd.Categorical(np.where(progress < 0.1, "early", "later")),
        },
        index=[f"cell{i}" for i in range(n)],
    )
    genes = [f"gene{g}" for g in range(n_genes)]
    adata = AnnData(sp.csr_matrix(rng.poisson(mean * burst)), obs, pd.DataFrame(index=genes))
    truth = {"progress": progress, "lineage": lineage, "checkpoint": checkpoint}
    adata.uns["truth"] = truth | {"held": held, "n_lineages": n_lineages}
    return adata


def _expression(
    rng: np.random.Generator,
    progress: np.ndarray,
    lineage: np.ndarray,
    n_genes: int,
    n_lineages: int,
) -> np.ndarray:
    """Log relative expression of cells (N, G): every gene has its switch, late ones a lineage."""
    switch = rng.random(n_genes)
    size = SWITCH_SD * rng.standard_normal(n_genes)
    on = expit((progress[:, None] - switch) / SWITCH_WIDTH)
    of = rng.integers(n_lineages, size=n_genes)
    everywhere = (switch < BRANCH_AT) | (n_lineages == 1)
    on = on * (everywhere | (lineage[:, None] == of))
    return rng.normal(0.0, 1.0, n_genes) + size * on
