"""Embeddings of genes, scored on membership of gene sets, beside anchors and nulls.

On the embedded screen and on the K562 screen: coordinates along the axes of the response, of
resting cells, and both; anchors from control cells without a model (log mean expression, PCA);
as nulls names of genes shuffled, and a fit of the same cells with shuffled labels. Gene sets are
hallmarks, Reactome pathways and GO processes with 10 or more genes of the screen. Seeds below 100
are for development.
"""

from __future__ import annotations

import argparse
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from common import part_of, quiet, run_all, shared, shared_file, write_results
from scipy.stats import wilcoxon

import pyrocell
from pyrocell.knowledge.gene_sets import read_gmt
from pyrocell.metrics import embedding_score, expression_anchors

GROUPS = {"hallmarks": ("hallmark",), "Reactome and GO": ("Reactome", "GO_BP_2021")}
MOST_SETS = 20  # of a group, the largest that are not nearly the same as another
ALIKE = 0.6  # Jaccard


def screen(name: str) -> tuple[ad.AnnData, dict[str, Any]]:
    """Cells, and how they are registered."""
    if name == "embedded":
        adata = pyrocell.datasets.hipsc_timecourse()
        setup = {"time_key": "time", "size_factor_key": "size_factor"}
        return adata[::4].copy(), setup
    return shared("norman2019_k562_crispra.h5ad"), {"perturbation_type": "CRISPRa"}


def gene_sets(genes: pd.Index, files: tuple[str, ...], least: int = 10) -> dict[str, list[str]]:
    """Sets with enough genes of a screen, large ones first, without near copies."""
    every: dict[str, set[str]] = {}
    for name in files:
        path = shared_file("knowledge") / f"{name}.gmt.gz"
        every |= {f"{name}: {k}": set(v) & set(genes) for k, v in read_gmt(path).items()}
    out: dict[str, set[str]] = {}
    for name, members in sorted(every.items(), key=lambda kv: -len(kv[1])):
        if not least <= len(members) <= 0.5 * len(genes) or len(out) == MOST_SETS:
            continue
        if all(len(members & m) < ALIKE * len(members | m) for m in out.values()):
            out[name] = members
    return {name: sorted(members) for name, members in out.items()}


def fitted(adata: ad.AnnData, setup: dict[str, Any], seed: int) -> pyrocell.PyroCell:
    pyrocell.PyroCell.setup_anndata(adata, **setup)
    model = pyrocell.PyroCell(adata)
    model.train(max_epochs=40, seed=seed, accelerator="cpu", progress_bar=False)
    return model


def of_model(model: pyrocell.PyroCell) -> dict[str, pd.DataFrame]:
    return {axes: model.embeddings(axes=axes).to_df() for axes in ("response", "state", "both")}


def one(name: str, seed: int) -> dict[str, Any]:
    """Mean AUROC over sets, of all embeddings."""
    adata, setup = screen(name)
    found = of_model(fitted(adata, setup, seed))
    other = adata.copy()
    rng = np.random.default_rng(seed)
    keys = [k for k in ("batch", "time") if k in other.obs]
    label = other.obs["perturbation"].astype(str).to_numpy().copy()
    for rows in other.obs.groupby(keys, observed=True).indices.values():
        label[rows] = rng.permutation(label[rows])
    other.obs["perturbation"] = label
    null = fitted(other, setup, seed).embeddings().to_df()
    anchors = expression_anchors(adata[adata.obs["perturbation"].astype(str) == "control"])
    anchors |= {k: v for k, v in found.items() if k != "response"}
    anchors["response, labels shuffled"] = null
    out: dict[str, Any] = {"seed": seed, "n_genes": adata.n_vars}
    for base, files in GROUPS.items():
        if sets := gene_sets(adata.var_names, files):
            out[base] = scored(found["response"], sets, anchors, seed)
    return out


def scored(
    response: pd.DataFrame, sets: dict[str, list[str]], anchors: dict[str, pd.DataFrame], seed: int
) -> dict[str, Any]:
    table = embedding_score(response, sets, anchors=anchors, n_shuffles=3, seed=seed)
    table["embedding"] = table["embedding"].replace("embeddings", "response")
    out: dict[str, Any] = {"n_sets": len(sets)}
    for classifier, part in table.groupby("classifier"):
        wide = part.pivot(index="gene_set", columns="embedding", values="auroc")
        beside = {"state": "PCA of controls", "response": "response, labels shuffled"}
        out[str(classifier)] = {
            "auroc": wide.mean().to_dict(),
            "names shuffled": float(part["shuffled"].mean()),
            **{f"p, {a} above {b}": _p(wide[a], wide[b]) for a, b in beside.items()},
        }
    return out


def _p(first: pd.Series, second: pd.Series) -> float:
    """One-sided, paired over gene sets."""
    return float(wilcoxon(first, second, alternative="greater").pvalue)


def rows_of(name: str, runs: list[dict[str, Any]]) -> list[list[Any]]:
    """Rows of the table on the page: what, pyrocell, anchor, null."""
    rows = []
    for base in [k for k in runs[0] if k in GROUPS]:
        for classifier in ("logistic regression", "nearest neighbours"):
            found = [r[base][classifier] for r in runs]
            mean = pd.DataFrame([f["auroc"] for f in found]).mean()
            shuffled = float(np.mean([f["names shuffled"] for f in found]))
            head = f"{name}, {runs[0][base]['n_sets']} sets of {base}, {classifier}"
            for axes in ("response", "state", "both"):
                what = f"{head}: {axes} (PCA of controls; names of genes shuffled)"
                rows.append([what, mean[axes], mean["PCA of controls"], shuffled])
            what = f"{head}: response (log mean expression; labels of cells shuffled)"
            null = mean["response, labels shuffled"]
            rows.append([what, mean["response"], mean["log mean expression"], null])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--parts", nargs="+", default=["embedded", "k562"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[301])
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--no-write", action="store_true")
    arguments = parser.parse_args()
    quiet()
    for name in arguments.parts:
        runs = run_all(one, [(name, seed) for seed in arguments.seeds], arguments.jobs)
        figures = {"rows": rows_of(name, runs), "of_seeds": runs}
        for row in figures["rows"]:
            print(row)
        if not arguments.no_write:
            part = part_of(parser, arguments, name, ("parts", "no_write"))
            rooms = ("posterior", "model", "evaluation", "generative", "guide", "training")
            write_results("mechanism_embeddings", {part: figures}, arguments.seeds, rooms=rooms)


if __name__ == "__main__":
    main()
