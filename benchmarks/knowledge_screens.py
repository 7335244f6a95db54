"""Unseen perturbations of 11 public screens, from their E-distances: GO and Reactome, or nothing.

An E-distance matrix gives the inner products of effects in the space of principal components, which
is all that the package's formulas need. Perturbations are left out in five folds (one by one where
there are at most thirty); the squared error of the predictions is set against that of the mean of
the others, in the same folds. `shuffled` is the same with names permuted; the p of shuffled
knowledge should be uniform.

Shares are learned from effects at the square root of their size, which was chosen on these screens
(with folds of other seeds); the kernels and the grid were not.

    python benchmarks/knowledge_screens.py
"""

from __future__ import annotations

import argparse

import numpy as np
from common import part_of, quiet, shared_file, write_results
from scipy.stats import kstest, spearmanr, wilcoxon

from pyrocell import Knowledge
from pyrocell.knowledge import EffectRegression, damped, permutation_evidence

ROOMS = ("knowledge", "errors")
CONTROLS = ("control", "ctrl", "non-targeting")
FOLDS, FEW = 5, 30


def screens() -> dict[str, tuple[np.ndarray, list[str]]]:
    """Inner products of effects and genes of every screen, single perturbations alone."""
    data = np.load(shared_file("edistances_11_screens.npz"))
    out = {}
    for name in sorted(n for n in data.files if not n.endswith("_names")):
        labels = [str(label) for label in data[f"{name}_names"]]
        control = next((i for i, x in enumerate(labels) if x.lower() in CONTROLS), None)
        if control is None:
            continue
        genes = [x.split("_")[0].replace("+ctrl", "").replace("ctrl+", "") for x in labels]
        first = {}
        for i, gene in enumerate(genes):
            if labels[i].lower() not in CONTROLS and "+" not in gene:
                first.setdefault(gene, i)
        rows = np.array(list(first.values()))
        d = (data[name] + data[name].T).astype(float) / 2
        away = d[rows, control]
        out[name] = (away[:, None] + away - d[np.ix_(rows, rows)]) / 2, list(first)
    return out


def gene_sets() -> Knowledge:
    files = [shared_file(f"knowledge/{name}.gmt.gz") for name in ("GO_BP_2021", "Reactome")]
    return Knowledge.from_gene_sets(*files, names=["GO", "Reactome"])


def folds_of(n: int, seed: int) -> list[np.ndarray]:
    order = np.random.default_rng(seed).permutation(n)
    return np.array_split(order, FOLDS if n > FEW else n)


def squared_errors(weights: np.ndarray, gram: np.ndarray, held, rest) -> np.ndarray:
    """Squared length of effects of `held` off weighted sums of those of `rest`."""
    cross, within = gram[np.ix_(held, rest)], gram[np.ix_(rest, rest)]
    found = np.diag(gram)[held] - 2 * (weights * cross).sum(1)
    return found + np.einsum("ij,jk,ik->i", weights, within, weights)


def left_out(gram: np.ndarray, names: list[str], knowledge: Knowledge, seed: int) -> dict:
    """Errors of the model and of the mean, perturbation by perturbation."""
    n = len(gram)
    error, mean, stated, shares = np.zeros(n), np.zeros(n), np.zeros(n), []
    for held in folds_of(n, seed):
        rest = np.setdiff1d(np.arange(n), held)
        fit = EffectRegression(gram[np.ix_(rest, rest)], [names[i] for i in rest], knowledge)
        found = fit.predict([names[i] for i in held])
        shares.append(fit.fit.mean_share().sum())
        error[held] = squared_errors(found.weights, gram, held, rest)
        equal = np.full((len(held), len(rest)), 1 / len(rest))
        mean[held] = squared_errors(equal, gram, held, rest)
        stated[held] = found.error
    differs = np.abs(error - mean).max() > 1e-12
    return {
        "ratio_to_mean": error.sum() / mean.sum(),
        "mean_over_no_change": mean.sum() / np.diag(gram).sum(),
        "share": np.mean(shares),
        "better_than_mean": (error < mean).mean(),
        "p": wilcoxon(error, mean).pvalue if differs else 1.0,
        "error_over_stated": error.mean() / stated.mean(),
        "rank_of_errors": spearmanr(stated, error)[0],
    }


def null_p(gram, names, knowledge, n_shuffles: int, n_permutations: int, seed: int) -> dict:
    """p of each source with names shuffled, among the genes that it covers."""
    rng, gram = np.random.default_rng(seed), damped(gram)
    found = knowledge.kernel(names)
    out: dict[str, list[float]] = {name: [] for name in knowledge.sources}
    for name, kernel, covered in zip(knowledge.sources, *found, strict=True):
        some = np.flatnonzero(covered)
        for _ in range(n_shuffles):
            order = np.arange(len(names))
            order[some] = rng.permutation(some)
            mixed = kernel[np.ix_(order, order)]
            e = permutation_evidence(gram, mixed, covered, 0.0, n_permutations, rng)
            out[name].append(e.p)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--screens", nargs="*")
    parser.add_argument("--seeds", nargs="+", type=int, default=[31, 32, 33])
    parser.add_argument("--shuffles", type=int, default=20)
    parser.add_argument("--permutations", type=int, default=99)
    arguments = parser.parse_args()
    quiet()
    knowledge, pooled = gene_sets(), []
    for name, (gram, genes) in screens().items():
        if arguments.screens and name not in arguments.screens:
            continue
        runs = [left_out(gram, genes, knowledge, seed) for seed in arguments.seeds]
        found = {key: np.mean([run[key] for run in runs]) for key in runs[0]}
        found["ratio_by_seed"] = [run["ratio_to_mean"] for run in runs]
        off = {"ratio_to_mean": [], "share": []}
        for seed in arguments.seeds:
            order = np.random.default_rng(seed).permutation(len(genes))
            run = left_out(gram, [genes[i] for i in order], knowledge, seed)
            off = {key: [*values, run[key]] for key, values in off.items()}
        p = null_p(
            gram, genes, knowledge, arguments.shuffles, arguments.permutations, arguments.seeds[0]
        )
        every = [value for values in p.values() for value in values]
        pooled += every
        found |= {
            "perturbations": len(genes),
            "shuffled_ratio": np.mean(off["ratio_to_mean"]),
            "shuffled_share": np.mean(off["share"]),
            "shuffled_share_by_seed": off["share"],
            "null_p_ks": {source: kstest(v, "uniform").pvalue for source, v in p.items()},
        }
        print(name, {k: np.round(v, 3) for k, v in found.items() if k != "null_p_ks"}, flush=True)
        print("   ", found["null_p_ks"], flush=True)
        part = part_of(parser, arguments, name, but=["screens"])
        write_results("knowledge_screens", {part: found}, arguments.seeds, rooms=ROOMS)
    if not arguments.screens:
        every_p = {"n": len(pooled), "ks_p": kstest(pooled, "uniform").pvalue}
        part = part_of(parser, arguments, "all shuffles", but=["screens"])
        write_results("knowledge_screens", {part: every_p}, arguments.seeds, rooms=ROOMS)


if __name__ == "__main__":
    main()
