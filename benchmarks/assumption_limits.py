"""Where the posterior of "silent at baseline" is right about its contrast and wrong about the gene.

Screens of eight knockouts, four of them silent, the others with an effect of .08 RMS, 1,000 genes.
Of one active knockout half of the cells are escapers: edited cells are replaced by controls under
its label. In one silent knockout a single gene is made twice as high. Prints the posteriors of
these two, of the other active and the other silent ones, and what `perturbation_effects` says of
the doubled gene: `python benchmarks/assumption_limits.py --seeds 5`.
"""

from __future__ import annotations

import argparse

import numpy as np
import scipy.sparse as sp
from anndata import AnnData
from common import part_of, run_all, write_results

import pyrocell

CELLS, RMS, RANK = 200, 0.08, 200  # the doubled gene is this far down the list by expression


def escape(adata: AnnData, label: str, rng: np.random.Generator) -> AnnData:
    """Replace half of a knockout's cells by controls that carry its label."""
    names = adata.obs["perturbation"].astype(str).to_numpy()
    own, control = np.flatnonzero(names == label), np.flatnonzero(names == "control")
    lost = rng.choice(own, len(own) // 2, replace=False)
    names[rng.choice(control, len(lost), replace=False)] = label
    adata.obs["perturbation"] = names
    return adata[np.setdiff1d(np.arange(adata.n_obs), lost)].copy()


def double(adata: AnnData, label: str, rng: np.random.Generator) -> str:
    """Make one gene of one knockout's cells twice as high; return its name."""
    counts = adata.X.tolil()
    gene = int(np.argsort(-np.asarray(adata.X.sum(0)).ravel())[RANK])
    for row in np.flatnonzero(adata.obs["perturbation"] == label):
        counts[row, gene] += rng.poisson(counts[row, gene])
    adata.X = sp.csr_matrix(counts)
    return str(adata.var_names[gene])


def one_seed(seed: int, n_samples: int) -> dict:
    adata = pyrocell.simulate.screen(
        n_perturbations=8,
        n_genes=1000,
        n_cells_per_condition=CELLS,
        n_batches=2,
        effect_rms=RMS,
        mean_library=5000.0,
        seed=seed,
    )
    truth, rng = adata.uns.pop("truth"), np.random.default_rng(seed)
    labels, silent = np.array(truth["effect"].index), np.asarray(truth["silent"], bool).ravel()
    escaped, focused = labels[~silent][0], labels[silent][0]
    gene = double(adata, focused, rng)
    adata = escape(adata, escaped, rng)
    pyrocell.PyroCell.setup_anndata(adata)
    model = pyrocell.PyroCell(adata)
    model.train(max_epochs=30, progress_bar=False)
    table = model.assumptions().query("assumption == 'silent_at_baseline'")
    posterior = table.set_index("perturbation")["posterior"]
    effects = model.perturbation_effects([focused], n_samples=n_samples).set_index("gene")
    return {
        "seed": seed,
        "escapers": posterior[escaped],
        "other_active": posterior[labels[~silent][1:]].median(),
        "one_gene": posterior[focused],
        "other_silent": posterior[labels[silent][1:]].median(),
        "gene_lower": float(effects.at[gene, "lower"]),
        "gene_upper": float(effects.at[gene, "upper"]),
        "genes_above": int((effects["mean"].abs() > abs(effects.at[gene, "mean"])).sum()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    jobs = [(1000 + seed, options.samples) for seed in range(options.seeds)]
    rows = run_all(one_seed, jobs, options.jobs)
    figures = {k: [row[k] for row in rows] for k in rows[0] if k not in ("seed", "seconds")}
    write_results(
        "assumption_limits",
        {
            part_of(parser, options): {
                **{f"{k}_median": float(np.median(v)) for k, v in figures.items()},
                **{f"{k}_range": [min(v), max(v)] for k, v in figures.items()},
            }
        },
        [job[0] for job in jobs],
    )


if __name__ == "__main__":
    main()
