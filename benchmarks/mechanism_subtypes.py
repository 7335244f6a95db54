"""Rare subtypes: planted ones found, and how often one is claimed where there is none.

Parts: `states`, matrices of states with and without a planted cluster, given to the rule of the
package and to the published one (share under 10%, Jaccard index of .60 or more over seeds), with
Leiden where igraph is installed and with k-means; `counts`, screens of counts, fitted, from end to
end. Seeds below 100 are for development.

Heterogeneous cells: ten axes of unequal width, turned at random, one heavy-tailed, one skewed, and
two kinds of cells in the proportion 65 : 35. A planted cluster lies at a distance from the first
kind, in its standard deviations, in a random direction; its own standard deviation is 0.7 of that.
"""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from common import part_of, quiet, run_all, write_results
from scipy.special import softmax
from sklearn.cluster import KMeans

import pyrocell
from pyrocell.diagnostics.rare_clusters import jaccard
from pyrocell.diagnostics.subtypes import Subtypes, subtypes_of_states

N_AXES, N_CELLS = 10, 1_000
TIGHT, DISTANCE = 0.7, 5.0
N_NULL = 39
NULLS = ("normal", "heavy tails", "heavy tails, all axes at once", "skewed", "log-normal", "mixed")
PLANTED = {
    "2%": (0.02, DISTANCE),
    "5%": (0.05, DISTANCE),
    "7%": (0.07, DISTANCE),
    "5%, 4 sd away": (0.05, 4.0),
    "5%, 6 sd away": (0.05, 6.0),
}


def bulk(rng: np.random.Generator, kind: str, n: int, d: int) -> np.ndarray:
    """States (n, d) without a rare cluster, axes of unit scale."""
    if kind == "normal":
        return rng.standard_normal((n, d))
    if kind == "heavy tails":
        return rng.standard_t(3, (n, d))
    if kind == "heavy tails, all axes at once":
        return rng.standard_normal((n, d)) / np.sqrt(rng.chisquare(4, (n, 1)) / 4)
    if kind == "skewed":
        return (rng.gamma(1.5, 1, (n, d)) - 1.5) / np.sqrt(1.5)
    if kind == "log-normal":
        x = np.exp(0.8 * rng.standard_normal((n, d)))
        return (x - x.mean(0)) / x.std(0)
    x = rng.standard_normal((n, d))
    x[:, 0] = rng.standard_t(4, n)
    x[:, 1] = (rng.gamma(2, 1, n) - 2) / np.sqrt(2)
    x[rng.random(n) < 0.35, d - 1 if d < 4 else 3] += 4
    return x


def states(
    seed: int, kind: str, share: float = 0.0, distance: float = DISTANCE, d: int = N_AXES
) -> tuple[np.ndarray, np.ndarray]:
    """States of cells (n, d), and which are in the planted cluster."""
    rng = np.random.default_rng(seed)
    x = bulk(rng, kind, N_CELLS, d)
    member = np.arange(N_CELLS) < round(share * N_CELLS)
    way = rng.standard_normal(d)
    way *= distance / np.linalg.norm(way)
    x[member] = way + TIGHT * rng.standard_normal((member.sum(), d))
    turn = np.linalg.qr(rng.standard_normal((d, d)))[0]
    return x * np.linspace(1.5, 0.4, d) @ turn, member


def scored(found: Subtypes, member: np.ndarray) -> dict[str, Any]:
    """Whether the planted cluster is claimed, and how many others are."""
    claimed = found.table["cluster"][found.table["stable"]] if len(found.table) else []
    index = [jaccard((found.cells == name).to_numpy(), member) for name in claimed]
    hit = max(index, default=0.0) >= 0.5
    return {"found": hit, "others": len(index) - hit, "jaccard": max(index, default=0.0)}


def kmeans(x: np.ndarray, seed: int) -> np.ndarray:
    return KMeans(10, n_init=1, random_state=seed).fit_predict(x)


def of_states(seed: int, name: str, with_anchor: bool) -> dict[str, Any]:
    """One matrix, by every rule."""
    kind, share, distance = (name, 0.0, 0.0) if name in NULLS else ("mixed", *PLANTED[name])
    x, member = states(seed, kind, share, distance)
    out: dict[str, Any] = {"name": name, "seed": seed}
    found = subtypes_of_states(x, n_null=N_NULL, n_draws=5, seed=seed)
    out["pyrocell"] = scored(found, member)
    if with_anchor:
        out["k-means"] = scored(
            subtypes_of_states(x, rule="jaccard", clustering=kmeans, n_draws=5, seed=seed), member
        )
        if find_spec("igraph") is not None:
            out["leiden"] = scored(
                subtypes_of_states(x, rule="jaccard", n_draws=5, seed=seed), member
            )
    return out


def counts(seed: int, kind: str, share: float, n_genes: int = 80, d: int = 4) -> ad.AnnData:
    """A screen of five perturbations in cells with such states, two batches."""
    x, member = states(seed, kind, share, 6.0, d)
    x /= x[~member].std()
    rng = np.random.default_rng(seed + 10_000)
    n = len(x)
    code = rng.integers(0, 6, n)
    batch = rng.integers(0, 2, n)
    effect = 0.3 * rng.standard_normal((6, n_genes)) * (rng.random((6, n_genes)) < 0.2)
    effect[0] = 0
    logits = rng.normal(0, 0.8, n_genes) + x @ (0.35 * rng.standard_normal((d, n_genes)))
    logits += effect[code] + (0.1 * rng.standard_normal((2, n_genes)))[batch]
    depth = 3_000 * np.exp(0.3 * rng.standard_normal(n))
    mean = depth[:, None] * softmax(logits, axis=1) * rng.gamma(8, 1 / 8, (n, n_genes))
    obs = pd.DataFrame(
        {
            "perturbation": np.array(["control", *[f"P{k}" for k in range(1, 6)]])[code],
            "batch": np.array(["b0", "b1"])[batch],
            "planted": member,
        },
        index=[f"cell{i}" for i in range(n)],
    )
    genes = pd.DataFrame(index=[f"gene{g}" for g in range(n_genes)])
    return ad.AnnData(sp.csr_matrix(rng.poisson(mean).astype(np.float32)), obs, genes)


def of_counts(seed: int, kind: str, share: float) -> dict[str, Any]:
    """A screen, fitted, and its subtypes."""
    adata = counts(seed, kind, share)
    pyrocell.PyroCell.setup_anndata(
        adata, batch_key="batch", perturbation_key="perturbation", control="control"
    )
    model = pyrocell.PyroCell(adata, n_latent=6)
    model.train(seed=seed, accelerator="cpu", progress_bar=False, gene_level=False)
    found = pyrocell.subtypes(model, n_draws=10, n_null=N_NULL, seed=seed)
    return {"name": f"{kind}, {share:.0%}", "seed": seed} | scored(
        found, adata.obs["planted"].to_numpy()
    )


def summary(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Shares of trials, by setting and rule."""
    out: dict[str, Any] = {}
    for name in dict.fromkeys(each["name"] for each in found):
        mine = [each for each in found if each["name"] == name]
        out[name] = {}
        for rule in ("pyrocell", "leiden", "k-means"):
            rows = [each[rule] for each in mine if rule in each]
            if rows:
                others = float(np.mean([row["others"] > 0 for row in rows]))
                out[name][rule] = {"trials": len(rows), "false": others}
                if name in PLANTED:
                    out[name][rule]["found"] = float(np.mean([row["found"] for row in rows]))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="+", default=["states", "counts"])
    parser.add_argument("--first", type=int, default=301, help="seed")
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--anchored", type=int, default=20, help="trials with the published rule")
    parser.add_argument("--fits", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1)
    arguments = parser.parse_args()
    quiet()
    seeds = range(arguments.first, arguments.first + arguments.trials)
    rooms = ("diagnostics",)
    if "states" in arguments.parts:
        jobs = [
            (seed, name, i < arguments.anchored and "away" not in name)
            for name in (*PLANTED, *NULLS)
            for i, seed in enumerate(seeds)
            if i < arguments.anchored or "away" not in name
        ]
        found = run_all(of_states, jobs, arguments.jobs)
        part = {part_of(parser, arguments, "states"): summary(found)}
        write_results("mechanism_subtypes", part, seeds, rooms=rooms)
    if "counts" in arguments.parts:
        jobs = [
            (seed, kind, share)
            for kind, share in (("mixed", 0.05), ("mixed", 0.0), ("heavy tails", 0.0))
            for seed in seeds[: arguments.fits]
        ]
        found = run_all(of_counts, jobs, arguments.jobs)
        part = {part_of(parser, arguments, "counts"): {"fits": found}}
        write_results("mechanism_subtypes", part, seeds[: arguments.fits])


if __name__ == "__main__":
    main()
