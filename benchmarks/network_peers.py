"""What else ranks edges of a network: effects alone, co-expression, trees, and RENGE.

RENGE 0.0.5 is run from its public code where that can be imported (`pip install renge`, with jax
and optuna). Its objective is a sum of squares over cells that depends on the cells of a condition
through their mean alone, so it is given the mean log expression of each condition: the same
minimum, in less time. Its hyperparameters, which it would search by cross-validation over some
hundred fits, are the best of the four settings tried against the true edges of one development
network, knowledge that none of the other rankings has.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from sklearn.ensemble import ExtraTreesRegressor

__all__ = ["coexpression", "knockout_z", "log_expression", "renge", "trees"]

RENGE_OPTIONS = {"C": 1e-2, "A_l1_ratio": 0.5, "n_k": 2}  # best of the four tried
TREES, CELLS = 30, 1000


def log_expression(adata: AnnData) -> np.ndarray:
    """(N, G) log(1 + counts at the usual depth)."""
    counts = np.asarray(adata.X.todense() if hasattr(adata.X, "todense") else adata.X, float)
    depth = counts.sum(1, keepdims=True)
    return np.log1p(counts / depth * np.median(depth))


def knockout_z(adata: AnnData, knockouts: list[str], key: str = "time") -> pd.DataFrame:
    """Root mean square over times of z of each knockout's pseudobulk against the controls'."""
    x, label, times = log_expression(adata), adata.obs["perturbation"].to_numpy(), adata.obs[key]
    out = np.zeros((len(knockouts), adata.n_vars))
    for time in np.unique(times):
        here = (times == time).to_numpy()
        rest = x[here & (label == "control")]
        for i, name in enumerate(knockouts):
            mine = x[here & (label == name)]
            if len(mine) > 1:
                error = mine.var(0, ddof=1) / len(mine) + rest.var(0, ddof=1) / len(rest)
                out[i] += (mine.mean(0) - rest.mean(0)) ** 2 / np.maximum(error, 1e-12)
    return pd.DataFrame(np.sqrt(out), knockouts, adata.var_names)


def coexpression(adata: AnnData, knockouts: list[str]) -> pd.DataFrame:
    """Size of the correlation over control cells."""
    rest = log_expression(adata[adata.obs["perturbation"] == "control"])
    value = np.abs(np.nan_to_num(np.corrcoef(rest.T)))
    return pd.DataFrame(value, adata.var_names, adata.var_names).reindex(knockouts).fillna(0.0)


def trees(adata: AnnData, knockouts: list[str], seed: int) -> pd.DataFrame:
    """GENIE3's question: how much a regulator helps to predict a gene over all cells."""
    rng = np.random.default_rng(seed)
    rows = rng.choice(adata.n_obs, min(CELLS, adata.n_obs), replace=False)
    x = log_expression(adata)[rows]
    names = [name for name in knockouts if name in adata.var_names]
    columns = adata.var_names.get_indexer(names)
    out = pd.DataFrame(0.0, knockouts, adata.var_names)
    for g, gene in enumerate(adata.var_names):
        use = [c for c in columns if c != g]
        y = x[:, g] / max(x[:, g].std(), 1e-12)
        forest = ExtraTreesRegressor(TREES, max_features="sqrt", random_state=seed, n_jobs=1)
        found = forest.fit(x[:, use], y).feature_importances_
        out.loc[[n for n, c in zip(names, columns) if c != g], gene] = found
    return out


def _with_newshape(reshape: Callable) -> Callable:
    def wrapped(a: Any, shape: Any = None, newshape: Any = None, **rest: Any) -> Any:
        return reshape(a, newshape if shape is None else shape, **rest)

    wrapped.takes_newshape = True
    return wrapped


def renge(adata: AnnData, knockouts: list[str], options: dict | None = None) -> pd.DataFrame | None:
    """|A| of RENGE 0.0.5, regulator by target; None where its code cannot be imported."""
    try:
        import jax.numpy as jnp
        from renge import Renge
    except ImportError:
        return None
    if not hasattr(jnp.reshape, "takes_newshape"):  # an argument that newer releases of jax lack
        jnp.reshape = _with_newshape(jnp.reshape)
    x = pd.DataFrame(log_expression(adata), columns=adata.var_names)
    obs = adata.obs[["perturbation", "time"]].astype({"perturbation": str}).reset_index(drop=True)
    mean = x.groupby([obs["perturbation"], obs["time"]]).mean()
    labels, times = (mean.index.get_level_values(i) for i in (0, 1))
    lost = pd.DataFrame(0.0, range(len(mean)), [*adata.var_names, "t"])
    for i, (name, time) in enumerate(zip(labels, times)):
        lost.loc[i, "t"] = time
        if name in adata.var_names:
            lost.loc[i, name] = 1.0
    np.random.seed(0)
    model = Renge()
    model.preprocess_X(lost, mean.reset_index(drop=True))
    model.fit(**(options or RENGE_OPTIONS))
    value = np.abs(model.A.to_numpy()).T
    return pd.DataFrame(value, adata.var_names, adata.var_names).reindex(knockouts).fillna(0.0)
