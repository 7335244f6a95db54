"""Labels of pairs of genes (perturbed, read out), learned from other pairs and prior knowledge.

The supervised form of PerturbQA's tasks (Wu et al. 2025): pairs of some perturbations have labels,
those of others are to be predicted, and nothing is known of the new ones but what prior knowledge
says of their genes. A label is the readout gene's own rate, plus a function of both genes with the
prior covariance

    k((p, g), (q, h)) = K(p, q) · [c_all + c_known K(g, h) + c_own 1(g = h)],

K the kernel of prior knowledge: a ridge regression of labels on products of what is known of both
genes. Its parts: how much a perturbation does to all genes, to genes like this one, to this one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numba
import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import ArrayLike
from scipy.sparse.linalg import LinearOperator, cg, eigsh
from scipy.special import logit
from sklearn.linear_model import LogisticRegression

from pyrocell._core.messages import did_you_mean
from pyrocell.errors import ScreenError, UnknownLabelError
from pyrocell.metrics.forecasts import auroc

__all__ = ["auroc_by_gene", "pair_columns", "predict_pairs"]

# Relative to the variance of the noise: parts of the covariance among which folds choose.
_ALL = (0.03, 0.1)
_KNOWN = (0.1, 0.3, 1.0)
_OWN = (0.3, 1.0, 3.0)
_PSEUDO_PAIRS = 5.0  # of the common rate, in the rate of a gene
_STEPS = 40  # of conjugate gradients
_TOLERANCE = 1e-3
_FEWEST = 20  # perturbations with labels
_PENALTY = 1.0  # of the logistic regression that makes probabilities


def auroc_by_gene(pairs: pd.DataFrame, score: ArrayLike) -> float:
    """Mean over readout genes of the AUROC over perturbations, as PerturbQA scores its tasks.

    Parameters
    ----------
    pairs
        Columns gene and label (0 or 1), a row per pair.
    score
        (n,) the larger, the likelier is 1.

    Returns
    -------
    NaN if no gene has both labels.
    """
    score = np.asarray(score, float)
    label = pairs["label"].to_numpy()
    found = [
        auroc(label[rows], score[rows])
        for rows in pairs.groupby("gene", observed=True).indices.values()
    ]
    return float(np.nanmean(found)) if np.isfinite(found).any() else float("nan")


def predict_pairs(
    train: pd.DataFrame,
    test: pd.DataFrame,
    knowledge: Any,
    *,
    rank: int = 200,
    n_folds: int = 3,
    seed: int = 0,
) -> pd.DataFrame:
    """Probability that the label of a pair is 1, from labelled pairs of other perturbations.

    For the two tasks of PerturbQA: label 1 is "differentially expressed", or among such pairs "up".

    Parameters
    ----------
    train
        Columns perturbation (or "pert"), gene and label (0 or 1), a row per pair.
    test
        The same without labels; others are kept as they are.
    knowledge
        A :class:`pyrocell.Knowledge`, or anything with ``kernel(genes)``, an array (n, n) of how
        alike genes are, 1 on the diagonal; several in a list, or a dict by name, are averaged.
    rank
        Most directions of the kernel that are kept.
    n_folds
        Folds of the training perturbations in which the parts of the covariance are chosen and
        scores are made for the calibration of probabilities.
    seed
        Of the folds.

    Returns
    -------
    DataFrame
        `test` with known (whether the knowledge says anything of the perturbation), score (how far
        above the gene's own rate) and probability. A pair with nothing known has the gene's rate.
        `.attrs`: covariance, the parts chosen, and auroc, the mean by gene in the folds, with that
        of the rates alone being .5.

    Raises
    ------
    UnknownLabelError
        If a column is not there.
    ScreenError
        If labels are not 0 and 1, there are fewer than 20 training perturbations, a kernel is not
        square in the genes, or the knowledge covers none of them.
    """
    train, test = pair_columns(train, label=True), pair_columns(test)
    folds = _fold_of(train["perturbation"], n_folds, seed)
    names = {name for t in (train, test) for c in ("perturbation", "gene") for name in t[c]}
    genes = pd.Index(sorted(names))
    features, known = _features(knowledge, genes, rank)
    pairs, asked = (_Pairs.of(table, genes) for table in (train, test))
    label = train["label"].to_numpy(float)
    chosen, out_of_fold, rates = _choose(pairs, label, folds, features)
    by_fold = auroc_by_gene(train, out_of_fold)
    rate = _rates(pairs, label, len(genes))
    fit = _Ridge.fit(pairs, label - rate[pairs.gene], features, chosen)
    table = test.assign(known=known[asked.perturbation], score=fit.predict(asked, features))
    calibration = LogisticRegression(C=_PENALTY).fit(_inputs(rates, out_of_fold), label)
    inputs = _inputs(rate[asked.gene], table["score"].to_numpy())
    table["probability"] = calibration.predict_proba(inputs)[:, 1]
    parts = dict(zip(("all", "known", "own"), chosen))
    table.attrs = {"covariance": parts, "auroc": by_fold}
    return table


def pair_columns(table: pd.DataFrame, label: bool = False) -> pd.DataFrame:
    """Pairs with columns perturbation and gene as text, and labels that are 0 or 1."""
    if "perturbation" not in table and "pert" in table:
        table = table.rename(columns={"pert": "perturbation"})
    for column in ("perturbation", "gene", *(["label"] if label else [])):
        if column not in table:
            raise UnknownLabelError(
                f'pairs need a column "{column}"{did_you_mean(column, [str(c) for c in table])}'
            )
    if table.empty:
        raise ScreenError("there are no pairs")
    if label and not table["label"].isin((0, 1)).all():
        raise ScreenError('column "label" must be 0 or 1 in every pair')
    text = {c: table[c].astype(str) for c in ("perturbation", "gene")}
    return table.assign(**text).reset_index(drop=True)


def _fold_of(perturbation: pd.Series, n_folds: int, seed: int) -> np.ndarray:
    code, names = pd.factorize(perturbation)
    if len(names) < _FEWEST or not 2 <= n_folds <= len(names):
        raise ScreenError(
            f"{len(names)} perturbations with labels and n_folds={n_folds}; at least {_FEWEST} "
            "perturbations and 2 folds are needed"
        )
    return (np.random.default_rng(seed).permutation(len(names)) % n_folds)[code]


# ---------------------------------------------------------------------- knowledge
def _features(knowledge: Any, genes: pd.Index, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Features (n, r) whose products are the kernel's leading part, and which genes have any."""
    sources = list(knowledge.values()) if isinstance(knowledge, Mapping) else knowledge
    sources = list(sources) if isinstance(sources, Sequence) else [sources]
    total, n = np.zeros((len(genes), len(genes)), np.float32), 0
    for source in sources:
        found = source.kernel(list(genes))
        found = np.asarray(getattr(found, "kernels", found), np.float32)
        for kernel in found[None] if found.ndim == 2 else found:
            if kernel.shape != total.shape:
                raise ScreenError(
                    f"a kernel of {len(genes)} genes has shape {kernel.shape}; kernel(genes) must "
                    "have a row and a column for each"
                )
            total += kernel
            n += 1
    total /= max(n, 1)
    alone = np.abs(total).sum(1) - np.abs(np.diag(total)) < 1e-9
    if alone.all():
        raise ScreenError("the knowledge says nothing of these genes; are they named alike?")
    some = np.flatnonzero(~alone)
    inner = total[np.ix_(some, some)]
    if rank < len(some) - 1:
        start = np.random.default_rng(0).normal(size=len(some)).astype(np.float32)
        values, vectors = eigsh(inner, k=rank, which="LA", v0=start)
    else:
        values, vectors = np.linalg.eigh(inner)
    keep = values > 1e-6
    out = np.zeros((len(genes), int(keep.sum())), np.float32)
    out[some] = vectors[:, keep] * np.sqrt(values[keep])
    return out, ~alone


# ---------------------------------------------------------------------- regression
@dataclass(frozen=True, eq=False)
class _Pairs:
    """Pairs as positions in the genes, (n,) each."""

    perturbation: np.ndarray
    gene: np.ndarray

    @classmethod
    def of(cls, table: pd.DataFrame, genes: pd.Index) -> _Pairs:
        return cls(*(genes.get_indexer(pd.Index(table[c])) for c in ("perturbation", "gene")))

    def __getitem__(self, rows: np.ndarray) -> _Pairs:
        return _Pairs(self.perturbation[rows], self.gene[rows])


@numba.njit(cache=True, fastmath=True)
def _products(
    a: np.ndarray, i: np.ndarray, b: np.ndarray, j: np.ndarray
) -> np.ndarray:  # pragma: no cover (compiled)
    """Products of rows a[i] and b[j], (n,)."""
    out = np.empty(len(i), np.float64)
    for n in range(len(i)):
        total = np.float32(0.0)
        for r in range(a.shape[1]):
            total += a[i[n], r] * b[j[n], r]
        out[n] = total
    return out


@dataclass(frozen=True, eq=False)
class _Ridge:
    """Dual coefficients of pairs, gathered by what they do to new ones.

    Attributes
    ----------
    all_genes, like_genes, own_gene
        (r,), (r, r) and (n genes, r): products of features of the perturbation with these, with
        those of the gene, and with the gene's own row, are added up.
    """

    all_genes: np.ndarray
    like_genes: np.ndarray
    own_gene: np.ndarray

    @classmethod
    def gather(
        cls, pairs: _Pairs, dual: np.ndarray, features: np.ndarray, parts: Sequence[float]
    ) -> _Ridge:
        """From dual coefficients (n,), with the parts of the covariance."""
        n = len(features)
        where = (pairs.perturbation, pairs.gene)
        table = sp.csr_matrix((dual.astype(np.float32), where), shape=(n, n))
        by_gene = np.asarray(table.T @ features)  # (genes, r)
        whole = np.float32(parts[0]) * by_gene.sum(0)
        alike = np.float32(parts[1]) * (by_gene.T @ features)
        return cls(whole, alike, np.float32(parts[2]) * by_gene)

    def predict(self, pairs: _Pairs, features: np.ndarray) -> np.ndarray:
        """(n,) values of pairs."""
        carried = features @ self.like_genes
        rows = np.ascontiguousarray(features)
        out = (features @ self.all_genes)[pairs.perturbation].astype(float)
        out += _products(carried, pairs.perturbation, rows, pairs.gene)
        return out + _products(rows, pairs.perturbation, self.own_gene, pairs.gene)

    @classmethod
    def fit(
        cls, pairs: _Pairs, value: np.ndarray, features: np.ndarray, parts: Sequence[float]
    ) -> _Ridge:
        """Ridge regression of values with unit noise, by conjugate gradients in the pairs."""

        def product_of(dual: np.ndarray) -> np.ndarray:
            return cls.gather(pairs, dual, features, parts).predict(pairs, features) + dual

        system = cast("Any", LinearOperator)((len(value),) * 2, matvec=product_of, dtype=float)
        dual, _ = cg(system, value, maxiter=_STEPS, rtol=_TOLERANCE)
        return cls.gather(pairs, dual, features, parts)


def _rates(pairs: _Pairs, label: np.ndarray, n_genes: int) -> np.ndarray:
    """(n genes,) share of label 1, drawn to the common one where a gene has few pairs."""
    total = np.bincount(pairs.gene, label, n_genes)
    n = np.bincount(pairs.gene, minlength=n_genes)
    return (total + _PSEUDO_PAIRS * label.mean()) / (n + _PSEUDO_PAIRS)


def _choose(
    pairs: _Pairs, label: np.ndarray, folds: np.ndarray, features: np.ndarray
) -> tuple[tuple[float, float, float], np.ndarray, np.ndarray]:
    """Parts of the covariance with the least squared error in the folds.

    One part after the other. Also returns scores (n,) and rates (n,) of pairs whose perturbation
    was left out.
    """
    rates, inside = np.empty(len(label)), []
    for fold in np.unique(folds):
        out, rest = folds == fold, folds != fold
        rate = _rates(pairs[rest], label[rest], len(features))
        rates[out] = rate[pairs.gene[out]]
        inside.append((out, rest, rate))
    tried: dict[tuple[float, ...], tuple[float, np.ndarray]] = {}

    def error(parts: tuple[float, ...]) -> float:
        if parts not in tried:
            score = np.empty(len(label))
            for out, rest, rate in inside:
                value = label[rest] - rate[pairs.gene[rest]]
                fit = _Ridge.fit(pairs[rest], value, features, parts)
                score[out] = fit.predict(pairs[out], features)
            # a scale is left to the calibration
            away = label - rates
            slope = float(score @ away / max(score @ score, 1e-12))
            tried[parts] = float(np.mean((away - slope * score) ** 2)), score
        return tried[parts][0]

    best = (_ALL[1], _KNOWN[1], _OWN[1])
    for axis in (2, 1, 0):
        grid = (_ALL, _KNOWN, _OWN)[axis]
        best = min((tuple(np.where(np.arange(3) == axis, v, best)) for v in grid), key=error)
    return best, tried[best][1], rates


def _inputs(rate: np.ndarray, score: np.ndarray) -> np.ndarray:
    """What probabilities are made from: the gene's rate and the score, (n, 3)."""
    base = logit(np.clip(rate, 1e-3, 1 - 1e-3))
    return np.column_stack([base, score, score * base])
