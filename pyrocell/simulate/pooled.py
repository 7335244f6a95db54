"""A pooled screen drawn from the generative model, or from just outside it, with its truth."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from anndata import AnnData
from scipy.special import expit, softmax

from pyrocell.simulate.biology import RESTING_AXES, Biology, Genes, draw_biology, draw_genes
from pyrocell.simulate.layout import Layout, draw_eta, draw_layout, one_hot
from pyrocell.simulate.settings import ScreenSettings
from pyrocell.views.rna import dropout_logits

__all__ = ["screen"]

CONTROL, BASELINE = "control", "baseline"
LIBRARY_SD = 0.3  # of log library sizes
CELLS_AT_ONCE = 4096


def screen(
    settings: ScreenSettings | None = None,
    *,
    seed: int = 0,
    cells: np.ndarray | None = None,
    **changes: Any,
) -> AnnData:
    """Draw a pooled screen: counts as a laboratory would get them, and the truth behind them.

    Parameters
    ----------
    settings
        What the screen should look like; the defaults of :class:`ScreenSettings` when None.
    seed
        The same seed and settings give the same screen.
    cells
        Whole numbers of cells, (1 + media, 1 + perturbations, times, batches), baseline and control
        first, in place of the numbers of cells and `balanced` of the settings.
    **changes
        Any field of :class:`ScreenSettings`, as in ``screen(n_batches=6, balanced=False)``.

    Returns
    -------
    AnnData
        Raw counts (CSR, integers); `.obs`: perturbation, perturbation_type, media, time (if any),
        batch, laboratory (if any). `.uns["truth"]` holds, ready for h5ad, `effect` (K × G) at
        `reference_time`, `silent`, `on_target`, `gain` (K × J), `blocked`, `media_effect` (J × G),
        `eta` (B × G), `omega`, `drift`, `loading` of the programmes, `log_rate` (perturbations,
        then media),
        `log_decay` where set, `base_log_rate`, `dispersion`, the `conditions` with the `shift` of
        each against rest (C × G, own genes included), and of the cells `bias`, `resting_loading`,
        `expression`, `z`, `library`.

    Raises
    ------
    ValueError
        If a setting is out of its range, or `cells` do not fit them.

    Notes
    -----
    Softmax cannot see a constant added to all genes. `effect`, `media_effect`, `drift` and `eta`
    are stated in its gauge, mean zero weighted with `expression`; compare an estimate after
    centring it with the same weights. `eta` sums to zero over batches.
    """
    if settings is None or changes:
        settings = ScreenSettings(**{**(vars(settings) if settings else {}), **changes})
    rng = np.random.default_rng(seed)
    genes = draw_genes(rng, settings)
    biology = draw_biology(rng, settings, genes)
    layout = draw_layout(rng, settings, cells)
    eta, omega = draw_eta(rng, settings, genes, layout)
    shift = biology.shift(
        one_hot(layout.perturbation, settings.n_perturbations),
        one_hot(layout.medium, settings.media),
        layout.duration,
    )
    n_cells = len(layout.batch)
    spread = LIBRARY_SD * rng.standard_normal(n_cells) - LIBRARY_SD**2 / 2
    library = settings.mean_library * np.exp(spread)
    z = rng.standard_normal((n_cells, RESTING_AXES))
    counts = []
    for start in range(0, n_cells, CELLS_AT_ONCE):
        i = slice(start, start + CELLS_AT_ONCE)
        logits = genes.bias + z[i] @ genes.resting_loading
        logits += shift[layout.condition[i]] + eta[layout.batch[i]]
        counts.append(_counts(rng, settings, library[i], logits))
    names = _names(settings, biology)
    adata = AnnData(sp.vstack(counts, format="csr"), obs=_obs(settings, layout, names))
    adata.var_names = names["gene"]
    adata.uns["truth"] = {
        **_truth(settings, genes, biology, layout, names),
        "eta": pd.DataFrame(eta, names["batch"], names["gene"]),
        "omega": omega,
        "shift": pd.DataFrame(shift, _condition_names(len(shift)), names["gene"]),
        "library": library,
        "z": z,
    }
    return adata


def _counts(
    rng: np.random.Generator, settings: ScreenSettings, library: np.ndarray, logits: np.ndarray
) -> sp.csr_matrix:
    """Counts of some cells from their library and logits of gene shares; (n, G)."""
    mean = library[:, None] * softmax(logits, axis=-1)
    rate = mean
    if np.isfinite(settings.dispersion):
        rate = mean * rng.gamma(settings.dispersion, 1 / settings.dispersion, mean.shape)
    counts = rng.poisson(rate)
    if settings.dropout is not None:
        gate = dropout_logits(torch.from_numpy(np.log(mean)), *settings.dropout).numpy()
        counts[rng.random(mean.shape) < expit(gate)] = 0
    return sp.csr_matrix(counts.astype(np.int32))


def _names(settings: ScreenSettings, biology: Biology) -> dict[str, list[str]]:
    def numbered(prefix: str, n: int) -> list[str]:
        return [f"{prefix}{i:0{len(str(n - 1))}d}" for i in range(n)]

    genes = numbered("gene", settings.n_genes)
    own = [genes[i] for i in biology.target if i >= 0]
    return {
        "gene": genes,
        "perturbation": own or numbered("target", settings.n_perturbations),
        "media": numbered("medium", settings.media),
        "batch": numbered("batch", settings.n_batches),
    }


def _condition_names(n: int) -> list[str]:
    return [str(i) for i in range(n)]


def _conditions(
    settings: ScreenSettings, layout: Layout, names: dict[str, list[str]]
) -> pd.DataFrame:
    """Perturbation, media and time (if any) of each condition."""
    table = pd.DataFrame(
        {
            "perturbation": np.array([*names["perturbation"], CONTROL])[layout.perturbation],
            "media": np.array([*names["media"], BASELINE])[layout.medium],
        },
        index=_condition_names(len(layout.duration)),
    )
    return table if settings.times is None else table.assign(time=layout.duration)


def _obs(settings: ScreenSettings, layout: Layout, names: dict[str, list[str]]) -> pd.DataFrame:
    obs = _conditions(settings, layout, names).iloc[layout.condition]
    obs.insert(1, "perturbation_type", "knockout")
    obs["batch"] = np.array(names["batch"])[layout.batch]
    labels = ["perturbation", "perturbation_type", "media", "batch"]
    if settings.laboratories is not None:
        home = np.repeat(np.arange(len(settings.laboratories)), settings.laboratories)
        obs["laboratory"] = np.char.add("laboratory", home[layout.batch].astype(str))
        labels.append("laboratory")
    obs.index = [f"cell{i}" for i in range(len(obs))]
    return obs.astype(dict.fromkeys(labels, "category"))


def _truth(
    settings: ScreenSettings,
    genes: Genes,
    biology: Biology,
    layout: Layout,
    names: dict[str, list[str]],
) -> dict[str, Any]:
    params = biology.params

    def table(values: torch.Tensor, rows: str, columns: str) -> pd.DataFrame:
        return pd.DataFrame(values.numpy(), names[rows], names[columns])

    decays = {} if params.log_decay is None else {"log_decay": params.log_decay.numpy()}
    return decays | {
        "effect": table(params.effect, "perturbation", "gene"),
        "media_effect": table(params.media_effect, "media", "gene"),
        "gain": table(params.gain, "perturbation", "media"),
        "log_rate": params.log_rate.numpy(),
        "base_log_rate": float(params.base_log_rate),
        "reference_time": params.reference_time,
        "silent": biology.silent,
        "blocked": biology.blocked,
        "drift": biology.drift,
        "on_target": biology.on_target,
        "dispersion": settings.dispersion,
        "bias": genes.bias,
        "resting_loading": genes.resting_loading,
        "loading": genes.loading,
        "expression": genes.expression,
        "conditions": _conditions(settings, layout, names).assign(n_cells=layout.cells.sum(1)),
    }
