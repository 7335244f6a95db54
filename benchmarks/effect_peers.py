"""What other tools say of the effects of a screen, in the columns of `effect_screens.score`.

Each is run as its documentation advises for perturbation screens: pydeseq2 on sums of counts by
perturbation and batch, scanpy's Wilcoxon test of every perturbation against controls on
log-normalised counts, pysceptre's low-multiplicity analysis against control cells. A tool that is
not installed is left out with a word.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import warnings
from collections.abc import Callable

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
from scipy.stats import false_discovery_control


def table(names, genes, mean, p, lower=None, upper=None) -> pd.DataFrame:
    """Long table from (P, G) arrays; p-values rank, lists by Benjamini and Hochberg."""
    p = np.where(np.isfinite(p), p, 1.0)
    q = false_discovery_control(p.ravel()).reshape(p.shape)
    index = pd.MultiIndex.from_product([names, genes], names=["perturbation", "gene"])
    columns = {"mean": mean.ravel(), "rank": p.ravel()}
    columns |= {"listed_5": (q <= 0.05).ravel(), "listed_10": (q <= 0.1).ravel()}
    if lower is not None:
        columns |= {"lower": lower.ravel(), "upper": upper.ravel()}
    return pd.DataFrame(columns, index=index).reset_index()


def deseq(adata: ad.AnnData) -> pd.DataFrame:
    """pydeseq2, pseudobulk by perturbation and batch, design ~ batch + perturbation."""
    from pydeseq2.dds import DeseqDataSet
    from pydeseq2.ds import DeseqStats

    groups = adata.obs.groupby(["perturbation", "batch"], observed=True).indices
    counts = np.stack([np.asarray(adata.X[rows].sum(0)).ravel() for rows in groups.values()])
    frame = pd.DataFrame(list(groups), columns=["perturbation", "batch"])
    frame.index = [f"s{i}" for i in range(len(frame))]
    names = adata.uns["perturbations"]
    design = "~batch + perturbation" if frame["batch"].nunique() > 1 else "~perturbation"
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        data = pd.DataFrame(counts.astype(int), index=frame.index, columns=adata.var_names)
        dds = DeseqDataSet(counts=data, metadata=frame, design=design, quiet=True)
        dds.deseq2()
        mean, p, error = (np.zeros((len(names), adata.n_vars)) for _ in range(3))
        for i, name in enumerate(names):
            contrast = ["perturbation", name, "control"]
            found = DeseqStats(dds, contrast=contrast, quiet=True)
            found.summary()
            result = found.results_df
            mean[i] = result["log2FoldChange"].fillna(0) * np.log(2)
            error[i] = result["lfcSE"].fillna(10) * np.log(2)
            p[i] = result["pvalue"]
    return table(names, adata.var_names, mean, p, mean - 1.645 * error, mean + 1.645 * error)


def wilcoxon(adata: ad.AnnData) -> pd.DataFrame:
    """scanpy's Wilcoxon rank-sum test on log-normalised counts, against controls."""
    data, names = adata.copy(), adata.uns["perturbations"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sc.pp.normalize_total(data)
        sc.pp.log1p(data)
        sc.tl.rank_genes_groups(
            data, "perturbation", groups=names, reference="control", method="wilcoxon"
        )
        mean, p = (np.zeros((len(names), adata.n_vars)) for _ in range(2))
        for i, name in enumerate(names):
            found = sc.get.rank_genes_groups_df(data, name).set_index("names")
            found = found.reindex(adata.var_names)
            mean[i] = np.clip(found["logfoldchanges"] * np.log(2), -5, 5)
            p[i] = found["pvals"]
    return table(names, adata.var_names, mean, p)


def sceptre(adata: ad.AnnData) -> pd.DataFrame:
    """pysceptre, low multiplicity, against control cells; depth and batch as covariates."""
    import pysceptre

    logging.getLogger("pysceptre").setLevel(logging.ERROR)
    names = adata.uns["perturbations"]
    label = adata.obs["perturbation"].astype(str).to_numpy()
    total = np.asarray(adata.X.sum(1)).ravel()
    detected = np.asarray((adata.X > 0).sum(1)).ravel()
    batches = pd.get_dummies(adata.obs["batch"].astype(str), drop_first=True).to_numpy(float)
    covariates = np.column_stack(
        [np.ones(adata.n_obs), np.log(total), np.log(detected + 1), batches]
    )
    pairs = pd.MultiIndex.from_product(
        [adata.var_names, names], names=["response_id", "grna_target"]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = pysceptre.run_discovery_analysis(
            adata.X.T.tocsr().astype(float),
            list(adata.var_names),
            covariates,
            {name: np.flatnonzero(label == name) for name in names},
            pairs.to_frame(index=False),
            moi="low",
            ntc_grna_cells={"control": np.flatnonzero(label == "control")},
            seed=0,
        )
    found = found.set_index(["grna_target", "response_id"])
    index = pd.MultiIndex.from_product([names, adata.var_names])
    found = found.reindex(index)
    change = next(c for c in ("log_2_fold_change", "log2_fold_change", "fold_change") if c in found)
    shape = len(names), adata.n_vars
    mean = np.nan_to_num(found[change].to_numpy(dtype=float).reshape(shape)) * np.log(2)
    p = found["p_value"].to_numpy(dtype=float).reshape(shape)
    return table(names, adata.var_names, np.clip(mean, -5, 5), p)


def installed() -> dict[str, Callable[[ad.AnnData], pd.DataFrame]]:
    """The peers that can be run here, by name."""
    out = {"wilcoxon": wilcoxon}
    for package, name, function in (
        ("pydeseq2", "deseq", deseq),
        ("pysceptre", "sceptre", sceptre),
    ):
        if importlib.util.find_spec(package) is None:
            print(f"{package} is not installed: left out")
        else:
            out[name] = function
    return out
