"""Screens whose effects are known, and what a table of effects is scored by.

`screen` draws counts (negative binomial, batch noise, cell state, sparse effects; guides of unequal
efficacy, escapers and shared programs on request). `thinned` takes real THP-1 cells, draws labels
at random and implants effects by binomial thinning: nothing else about its counts is simulated.
`shuffled` permutes the labels of a real screen within batch, medium and time, `kinds` draws labels
for cells of three kinds: there every effect is zero. `replicated` has batches between which effects
vary. Truth is in `.varm["truth"]`, log ratio of expected shares; `.varm["implanted"]` says which
genes were touched.
"""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from sklearn.metrics import average_precision_score

# knockouts of the THP-1 screen that do little
WEAK = "control CD86 MARCH8 CAV1 ETV7 CMTM6 TNFRSF14 ATF2 PDCD1LG2 UBE2L6".split()


def sparse_effects(
    rng: np.random.Generator, n: int, n_genes: int, silent: float, share: float, programs: bool
) -> np.ndarray:
    """(n, G) log-fold changes of .2 to 1, for the first `silent` share of perturbations none."""
    out = np.zeros((n, n_genes))
    active = np.flatnonzero(np.arange(n) >= round(silent * n))
    if programs:
        size = rng.uniform(0.2, 1, (6, n_genes)) * rng.choice([-1, 1], (6, n_genes))
        size *= rng.random((6, n_genes)) < share
    for p in active:
        if programs:
            first, second = rng.choice(6, 2, replace=False)
            mixed = size[first] * rng.choice([-1, 1]) + 0.5 * size[second] * rng.choice([-1, 1])
            out[p] = np.clip(mixed, -1, 1)
        else:
            hit = rng.random(n_genes) < share
            out[p, hit] = rng.uniform(0.2, 1, hit.sum()) * rng.choice([-1, 1], hit.sum())
    return out


def balanced(rng: np.random.Generator, effects: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Signs redrawn so that each row leaves the total of expression about where it was."""
    out = effects.copy()
    for row in out:
        if row.any():
            signs = rng.choice([-1, 1], (400, len(row)))
            gained = np.abs(np.log((share * np.exp(signs * row)).sum(1)))
            row *= signs[gained.argmin()]
    return out


def as_adata(
    counts: np.ndarray,
    label: np.ndarray,
    batch: np.ndarray,
    implanted: np.ndarray,
    truth: np.ndarray,
    genes: list[str],
    **obs: np.ndarray,
) -> ad.AnnData:
    """AnnData of cells with counts, label −1 for controls."""
    names = np.array(["control", *(f"P{p:02d}" for p in range(len(truth)))])
    columns = {"perturbation": pd.Categorical(names[label + 1]), "batch": pd.Categorical(batch)}
    frame = pd.DataFrame(columns | obs, index=[f"c{i}" for i in range(len(label))])
    out = ad.AnnData(sp.csr_matrix(counts.astype(np.float32)), obs=frame)
    out.var_names = genes
    out.varm["implanted"], out.varm["truth"] = implanted.T, truth.T
    out.uns["perturbations"] = list(names[1:])
    kept = np.asarray(out.X.sum(0)).ravel() > 0
    return out[np.asarray(out.X.sum(1)).ravel() > 0][:, kept].copy()


def screen(
    seed: int,
    n_perturbations: int = 40,
    n: int = 100,
    n_controls: int = 800,
    n_genes: int = 400,
    depth: float = 500.0,
    theta: float = 4.0,
    n_batches: int = 3,
    escape: float = 0.0,
    guides: bool = False,
    programs: bool = False,
    silent: float = 0.4,
) -> ad.AnnData:
    """A simulated screen; depth 60 and theta .01 are those of combinatorial indexing."""
    rng = np.random.default_rng(seed)
    base = rng.normal(0, 1.5, n_genes)
    base -= np.log(np.exp(base).sum())
    own_theta = np.exp(rng.normal(np.log(theta), 0.5, n_genes))
    eta = rng.normal(0, 0.15, (n_batches, n_genes))
    eta -= eta.mean(0)
    loading = rng.normal(0, 0.25, (3, n_genes)) * (rng.random((3, n_genes)) < 0.5)
    effects = sparse_effects(rng, n_perturbations, n_genes, silent, 0.08, programs)
    if not programs:
        effects = balanced(rng, effects, np.exp(base))
    label = np.r_[np.full(n_controls, -1), np.repeat(np.arange(n_perturbations), n)]
    cells = len(label)
    batch, guide = rng.integers(0, n_batches, cells), rng.integers(0, 3, cells)
    state = rng.normal(0, 1, (cells, 3))
    efficacy = np.ones((n_perturbations, 3))
    if guides:
        efficacy = rng.choice([1.0, 0.9, 0.6, 0.3], (n_perturbations, 3), p=[0.4, 0.3, 0.2, 0.1])
    strength = np.where(label >= 0, efficacy[label, guide], 0.0) * (rng.random(cells) >= escape)
    size = np.exp(rng.normal(np.log(depth), 0.35, cells))
    counts = np.empty((cells, n_genes), np.float32)
    for start in range(0, cells, 2000):
        s = slice(start, start + 2000)
        level = base + eta[batch[s]] + state[s] @ loading
        level += np.where(label[s, None] >= 0, effects[label[s]] * strength[s, None], 0)
        share = np.exp(level)
        share /= share.sum(1, keepdims=True)
        bursts = rng.gamma(own_theta, 1 / own_theta, share.shape)
        counts[s] = rng.poisson(size[s, None] * share * bursts)
    truth = np.zeros((n_perturbations, n_genes))
    for p, rates in enumerate(efficacy):  # averaged over guides and escapers
        mean = np.zeros(n_genes)
        for rate in rates:
            for on, weight in ((rate, 1 - escape), (0.0, escape)):
                expression = np.exp(base + on * effects[p])
                mean += weight * expression / expression.sum() / 3
        truth[p] = np.log(mean / np.exp(base))
    genes = [f"g{g:04d}" for g in range(n_genes)]
    names = [f"b{b}" for b in batch]
    more = {
        "guide": [f"{x}_{g}" for x, g in zip(label, guide)],
        "efficacy": np.where(label >= 0, efficacy[label, guide], 0.0),
        "responded": strength > 0,
    }
    return as_adata(counts, label, names, effects, truth, genes, **more)


def thinned(seed: int, source: ad.AnnData, n_perturbations: int = 40, n: int = 90) -> ad.AnnData:
    """Real cells of weak perturbations with labels drawn at random and effects implanted."""
    rng, n_controls = np.random.default_rng(seed), 1800
    source = source[source.obs["perturbation"].isin(WEAK)].copy()
    source = source[rng.permutation(source.n_obs)[: n_perturbations * n + n_controls]].copy()
    label = np.r_[np.full(n_controls, -1), np.repeat(np.arange(n_perturbations), n)]
    label = label[rng.permutation(len(label))]
    mean = np.asarray(source.X.mean(0)).ravel()
    effects = sparse_effects(rng, n_perturbations, source.n_vars, 0.4, 0.08, False)
    effects = balanced(rng, effects, mean / mean.sum())
    counts = np.asarray(source.X.todense()).astype(int)
    kept = np.exp(np.where(label[:, None] >= 0, effects[label], 0) - np.maximum(0, effects.max(0)))
    counts = rng.binomial(counts, kept)
    control = counts[label < 0].mean(0)
    truth = effects - np.log((control / control.sum() * np.exp(effects)).sum(1))[:, None]
    batch = source.obs["batch"].astype(str).to_numpy()
    return as_adata(counts, label, batch, effects, truth, list(source.var_names))


def shuffled(seed: int, source: ad.AnnData, within: list[str]) -> ad.AnnData:
    """The same cells with their labels permuted within groups: every effect is zero."""
    out, rng = source.copy(), np.random.default_rng(seed)
    label = out.obs["perturbation"].astype(str).to_numpy().copy()
    for rows in out.obs.groupby(within, observed=True).indices.values():
        label[rows] = label[rng.permutation(rows)]
    out.obs["perturbation"] = pd.Categorical(label)
    return out


def kinds(seed: int, n: int, times: bool, n_genes: int = 200, n_labels: int = 5) -> ad.AnnData:
    """Cells of three kinds with labels, batches and times drawn at random: no effect at all."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 3, n)
    base = rng.normal(0, 1.5, n_genes)
    markers = rng.normal(0, 1, (3, n_genes)) * (rng.random((3, n_genes)) < 0.3)
    share = np.exp(base + markers[kind])
    share /= share.sum(1, keepdims=True)
    size = np.exp(rng.normal(np.log(2000), 0.4, n))
    counts = rng.poisson(size[:, None] * share * rng.gamma(4, 0.25, share.shape))
    label = rng.choice(np.arange(-1, n_labels), n, p=[0.3, *[0.7 / n_labels] * n_labels])
    zeros = np.zeros((n_labels, n_genes))
    batch = rng.choice(["a", "b"], n)
    more = {"time": rng.choice([1.0, 2.0, 4.0], n)} if times else {}
    genes = [f"g{g:03d}" for g in range(n_genes)]
    return as_adata(counts, label, batch, zeros, zeros, genes, **more)


def replicated(
    seed: int, n_perturbations: int = 10, n: int = 60, n_genes: int = 300, n_batches: int = 5
) -> ad.AnnData:
    """Effects that vary between batches with a standard deviation of .1 to .5, gene by gene.

    `.varm["new"]`: what they are in a batch that is not in the screen. Means are dense, normal.
    """
    rng = np.random.default_rng(seed)
    base = rng.normal(0, 1.0, n_genes)
    base -= np.log(np.exp(base).sum())
    mean = rng.normal(0, 0.4, (n_perturbations, n_genes))
    mean *= rng.random(mean.shape) < 0.5
    spread = rng.uniform(0.1, 0.5, n_genes)
    each = mean + spread * rng.normal(0, 1, (n_batches + 1, *mean.shape))
    eta = rng.normal(0, 0.2, (n_batches, n_genes))
    label = np.tile(np.r_[np.full(4 * n, -1), np.repeat(np.arange(n_perturbations), n)], n_batches)
    batch = np.repeat(np.arange(n_batches), len(label) // n_batches)
    size = np.exp(rng.normal(np.log(3000), 0.3, len(label)))
    level = base + eta[batch]
    level += np.where(label[:, None] >= 0, each[batch, label], 0)
    share = np.exp(level)
    share /= share.sum(1, keepdims=True)
    counts = rng.poisson(size[:, None] * share * rng.gamma(3, 1 / 3, share.shape))
    genes = [f"g{g:03d}" for g in range(n_genes)]
    names = np.array([f"patient{b}" for b in batch])
    out = as_adata(counts, label, names, mean, mean, genes)
    kept = [int(g[1:]) for g in out.var_names]
    out.varm["new"] = each[-1].T[kept]
    return out


def dense(
    seed: int, n: int, n_perturbations: int = 20, n_genes: int = 500, n_batches: int = 2
) -> ad.AnnData:
    """Half of the perturbations move every gene by a normal of sd .1, the others none."""
    rng = np.random.default_rng(seed)
    base = rng.normal(0, 1.0, n_genes)
    effect = rng.normal(0, 0.1, (n_perturbations, n_genes))
    effect[n_perturbations // 2 :] = 0
    eta = rng.normal(0, 0.1, (n_batches, n_genes))
    label = np.r_[np.full(600, -1), np.repeat(np.arange(n_perturbations), n)]
    batch = rng.integers(0, n_batches, len(label))
    size = np.exp(rng.normal(np.log(1500), 0.3, len(label)))
    level = base + eta[batch] + np.where(label[:, None] >= 0, effect[label], 0)
    share = np.exp(level)
    share /= share.sum(1, keepdims=True)
    counts = rng.poisson(size[:, None] * share * rng.gamma(3, 1 / 3, share.shape))
    genes = [f"g{g:03d}" for g in range(n_genes)]
    names = np.array([f"batch{b}" for b in batch])
    return as_adata(counts, label, names, effect, effect, genes)


def donors(seed: int, n: int = 80, n_genes: int = 300, n_batches: int = 5) -> ad.AnnData:
    """Cells of some donors, half of each with a drug, whose effect varies between them by .3."""
    rng = np.random.default_rng(seed)
    mean = rng.normal(0, 0.4, n_genes) * (rng.random(n_genes) < 0.5)
    each = mean + 0.3 * rng.normal(size=(n_batches, n_genes))
    eta = rng.normal(0, 0.2, (n_batches, n_genes))
    donor = np.repeat(np.arange(n_batches), 2 * n)
    treated = np.tile(np.repeat([False, True], n), n_batches)
    level = rng.normal(0, 1, n_genes) + eta[donor] + np.where(treated[:, None], each[donor], 0)
    share = np.exp(level)
    share /= share.sum(1, keepdims=True)
    size = np.exp(rng.normal(np.log(3000), 0.3, len(donor)))
    counts = rng.poisson(size[:, None] * share * rng.gamma(3, 1 / 3, share.shape))
    obs = pd.DataFrame({"batch": [f"donor{b}" for b in donor]}).set_index(
        np.arange(len(donor)).astype(str)
    )
    obs["media"] = np.where(treated, "drug", "baseline")
    out = ad.AnnData(sp.csr_matrix(counts.astype(np.float32)), obs)
    out.var["truth"] = mean
    return out


def in_gauge(truth: np.ndarray, implanted: np.ndarray) -> np.ndarray:
    """Truth (P, G) against the genes that a perturbation does not touch."""
    free = np.where(implanted == 0, truth, np.nan)
    shift = np.nan_to_num(np.nanmedian(np.where(np.isnan(free).all(1, keepdims=True), 0, free), 1))
    return truth - shift[:, None]


def score(table: pd.DataFrame, adata: ad.AnnData, slack: float = 0.03) -> dict[str, float]:
    """Figures of a table with perturbation, gene, mean, lower, upper, rank and listed_5, listed_10.

    `rank`: the smaller, the surer. `slack`: by how much a 90% interval may miss: shares sum to one,
    so truths of untouched genes are not exactly zero, and a spike is.
    """
    names = adata.uns["perturbations"]
    index = pd.MultiIndex.from_product([names, adata.var_names])
    table = table.set_index(["perturbation", "gene"]).reindex(index)
    implanted = adata.varm["implanted"].T
    active = implanted.ravel() != 0
    rank, mean = table["rank"].fillna(np.inf).to_numpy(), table["mean"].fillna(0).to_numpy()
    rank = np.where(np.isfinite(rank), rank, 1e9)
    order = np.lexsort((-np.abs(mean), rank))
    false = np.cumsum(~active[order]) / np.arange(1, len(order) + 1)
    last = np.flatnonzero(false <= 0.1)
    out = {}
    if active.any():
        out["auprc"] = float(average_precision_score(active, -rank))
        out["power_at_observed_10"] = (
            float(active[order][: last[-1] + 1].sum() / active.sum()) if len(last) else 0.0
        )
    for level in (5, 10):
        listed = table[f"listed_{level}"].fillna(False).to_numpy(dtype=bool)
        out[f"fdr_{level}"] = float((~active)[listed].mean()) if listed.any() else 0.0
        out[f"listed_{level}"] = int(listed.sum())
    truth = adata.varm["truth"].T.ravel()
    out["rmse"] = float(np.sqrt(np.mean((mean - truth) ** 2)))
    out["rmse_of_zero"] = float(np.sqrt(np.mean(truth**2)))
    if "lower" not in table:
        return out
    lower, upper = table["lower"].to_numpy(), table["upper"].to_numpy()
    own = in_gauge(adata.varm["truth"].T, implanted).ravel()
    for name, known in (("", truth), ("_in_gauge", own)):
        inside = (lower <= known + slack) & (known - slack <= upper)
        out[f"cover{name}"] = float(inside.mean())
        out[f"cover_null{name}"] = float(inside[~active].mean())
        for most in (0.5, 0.05):
            some = rank < most
            out[f"cover{name}_below_{most}"] = float(inside[some].mean()) if some.any() else np.nan
        size = np.abs(known)
        for low, high in ((0.2, 0.4), (0.4, 0.7), (0.7, 1.1)):
            some = active & (size >= low) & (size < high)
            if some.any():
                out[f"cover{name}_{low}_{high}"] = float(inside[some].mean())
    out["null_excludes_zero"] = float(((lower > 0) | (upper < 0))[~active].mean())
    return out
