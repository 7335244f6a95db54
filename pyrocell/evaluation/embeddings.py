"""What coordinates of genes know of what genes do: membership of gene sets by simple classifiers.

The question of benchmarks of gene embeddings (Kan-Tor et al. 2024, gene-benchmark): whether a
classifier that sees the coordinates of some genes tells which others are in the same set. In a
screen the answer needs two things beside it: the same with names of genes shuffled, and what
expression of unperturbed cells says without any model.
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from pyrocell._core.messages import did_you_mean
from pyrocell.errors import ScreenError, UnknownLabelError
from pyrocell.knowledge.gene_sets import read_gmt

__all__ = ["embedding_score", "expression_anchors"]

CLASSIFIERS = ("logistic regression", "nearest neighbours")
_NEIGHBOURS = 10
_FEWEST = 5  # members, and genes outside


def _classifier(name: str, n_train: int) -> Pipeline:
    if name == "logistic regression":
        model = LogisticRegression(class_weight="balanced", max_iter=1000)
    else:
        near = min(_NEIGHBOURS, n_train)
        model = KNeighborsClassifier(near, weights="distance")
    return make_pipeline(StandardScaler(), model)


def expression_anchors(controls: ad.AnnData, n_axes: int = 10) -> dict[str, pd.DataFrame]:
    """What expression of unperturbed cells says of each gene, without a model.

    Parameters
    ----------
    controls
        (n, G) raw counts of control cells.
    n_axes
        Principal axes.

    Returns
    -------
    dict of two DataFrames, genes × coordinates: "log mean expression", of counts at equal depth,
    and "PCA of controls", the loadings of genes (times the standard deviation of their axis) of
    log1p of counts at equal depth.
    """
    if controls.n_obs < 2:
        raise ScreenError(f"{controls.n_obs} control cells are too few for anchors; give 2 or more")
    counts = sp.csr_matrix(controls.X, dtype=float)
    depth = np.maximum(np.asarray(counts.sum(1)).ravel(), 1)
    level = sp.csr_matrix(counts.multiply((np.median(depth) / depth)[:, None]))
    mean = np.log(np.asarray(level.mean(0)).ravel() + 1e-3)
    n_axes = min(n_axes, controls.n_vars, controls.n_obs - 1)
    pca = PCA(n_axes, random_state=0).fit(np.log1p(level.toarray()))
    axes = np.asarray(pca.components_).T * np.sqrt(np.asarray(pca.explained_variance_))
    return {
        "log mean expression": pd.DataFrame({"mean": mean}, index=controls.var_names),
        "PCA of controls": pd.DataFrame(axes, index=controls.var_names),
    }


def embedding_score(
    embeddings: ad.AnnData | pd.DataFrame,
    gene_sets: Mapping[str, Sequence[str]] | str | PathLike[str],
    controls: ad.AnnData | None = None,
    anchors: Mapping[str, pd.DataFrame] | None = None,
    classifiers: Sequence[str] = CLASSIFIERS,
    min_genes: int = 10,
    max_share: float = 0.5,
    n_folds: int = 5,
    n_shuffles: int = 20,
    seed: int = 0,
) -> pd.DataFrame:
    """How well coordinates of genes tell the members of gene sets from the other genes.

    A classifier is trained on some genes and asked about the others (stratified cross-validation,
    the same folds for all). AUROC is that of the members against the other genes of the screen.

    Parameters
    ----------
    embeddings
        (G, axes), genes by name; such as from :meth:`pyrocell.PyroCell.embeddings`.
    gene_sets
        Names of sets and their genes, or a .gmt file.
    controls
        (n, G) raw counts of control cells; anchors are then scored beside: log mean expression, and
        PCA of those cells with as many axes.
    anchors
        Further embeddings to score beside, by name.
    classifiers
        "logistic regression" (standardised coordinates, balanced classes) and "nearest neighbours"
        (10, weighted by distance).
    min_genes
        Sets with fewer members among these genes are left out.
    max_share
        And those with more than this share of them.
    n_folds
        Of the cross-validation.
    n_shuffles
        How often names of genes are shuffled, for the null.
    seed
        Of folds and shuffles.

    Returns
    -------
    DataFrame with a row per gene set, embedding and classifier: gene_set, n_genes; embedding
    ("embeddings", or the name of an anchor), classifier; auroc, the mean over folds; shuffled, the
    mean over shuffles of the names of genes, and p, how likely such a shuffle reaches the auroc.

    Raises
    ------
    ScreenError
        If no set has enough members among the genes.
    UnknownLabelError
        If a classifier is not known.
    """
    for name in classifiers:
        if name not in CLASSIFIERS:
            raise UnknownLabelError(
                f'classifiers: "{name}" is not one of {", ".join(CLASSIFIERS)}'
                f"{did_you_mean(name, CLASSIFIERS)}"
            )
    if n_folds < 2 or n_shuffles < 1:
        raise ScreenError(f"n_folds={n_folds} must be at least 2, n_shuffles={n_shuffles} 1")
    table = embeddings.to_df() if isinstance(embeddings, ad.AnnData) else embeddings
    table = table.loc[:, table.notna().all()]
    if isinstance(gene_sets, str | PathLike):
        gene_sets = read_gmt(Path(gene_sets))
    every: dict[str, pd.DataFrame] = {"embeddings": table}
    if controls is not None:
        every |= expression_anchors(controls, table.shape[1])
    every |= dict(anchors or {})
    genes = table.index.astype(str)
    genes = genes[np.all([genes.isin(t.index.astype(str)) for t in every.values()], axis=0)]
    values = {}
    for name, each in every.items():
        values[name] = each.set_axis(each.index.astype(str)).loc[genes].to_numpy(float)
    least = max(min_genes, n_folds, _FEWEST)
    rows = []
    for name, members in gene_sets.items():
        inside = genes.isin([str(m) for m in members])
        if not least <= inside.sum() <= max_share * len(genes):
            continue
        rng = np.random.default_rng([seed, zlib.crc32(str(name).encode())])
        folds = StratifiedKFold(n_folds, shuffle=True, random_state=int(rng.integers(2**31)))
        split = list(folds.split(np.zeros((len(genes), 1)), inside))
        orders = [rng.permutation(len(genes)) for _ in range(n_shuffles)]
        for embedding, x in values.items():
            for classifier in classifiers:
                found = _auroc(x, inside, split, classifier)
                null = np.array([_auroc(x[o], inside, split, classifier) for o in orders])
                rows.append(
                    {
                        "gene_set": name,
                        "n_genes": int(inside.sum()),
                        "embedding": embedding,
                        "classifier": classifier,
                        "auroc": found,
                        "shuffled": float(null.mean()),
                        "p": float((1 + (null >= found).sum()) / (1 + n_shuffles)),
                    }
                )
    if not rows:
        raise ScreenError(
            f"no gene set has {least} or more members, and at most {max_share:.0%}, of these "
            f"{len(genes)} genes; give larger sets, a lower min_genes=, or names as in the "
            f"embeddings, such as {', '.join(genes[:3])}"
        )
    return pd.DataFrame(rows)


def _auroc(
    x: np.ndarray, inside: np.ndarray, split: list[tuple[np.ndarray, np.ndarray]], classifier: str
) -> float:
    """Mean over folds of the AUROC of genes that the classifier did not see."""
    found = []
    for train, test in split:
        model = _classifier(classifier, len(train))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of convergence: the scores are what they are
            score = model.fit(x[train], inside[train]).predict_proba(x[test])[:, 1]
        found.append(roc_auc_score(inside[test], score))
    return float(np.mean(found))
