"""Networks of direct effects: against true edges, simpler rankings, shuffled labels, RENGE's own.

    python benchmarks/mechanism_network.py

Screens of `network_screens.py` with known edges, of both simulators; the same with labels
shuffled within each time; and the embedded hiPSC screen against the network that RENGE's authors
published of it, which is not a truth but another fit to the same cells.
"""

from __future__ import annotations

import argparse

import numpy as np
import pandas as pd
from anndata import AnnData
from common import SHARED, part_of, run_all, write_results
from network_peers import coexpression, knockout_z, renge, trees
from network_screens import SIMULATORS, network_screen
from scipy.stats import wilcoxon
from sklearn.metrics import average_precision_score

import pyrocell
from pyrocell.metrics import expected_calibration_error

EPOCHS = 5  # of the gradient phase, which single genes hardly depend on
HARISSA = 4  # networks of the first seeds; its cells take a minute and more to simulate
SHUFFLED = 1  # of each simulator
AT_ONCE = 4  # networks, after which figures are written
DRAWS = 100
FOLDS = 3
REAL = ("hipsc", "generalisation")
RENGE_Q = 0.01  # q-value of the published edges


def fitted(adata: AnnData, **columns: str | None) -> pyrocell.PyroCell:
    """A trained model."""
    usual = {"perturbation_key": "perturbation", "control": "control", "time_key": "time"}
    pyrocell.PyroCell.setup_anndata(adata, **(usual | {"batch_key": None} | columns))
    model = pyrocell.PyroCell(adata)
    model.train(max_epochs=EPOCHS, progress_bar=False)
    return model


def of_pairs(table: pd.DataFrame, knockouts: list[str], genes: pd.Index) -> pd.DataFrame:
    """Probability of every edge, knockouts × genes; 0 where it is not a row."""
    wide = table.pivot(index="regulator", columns="target", values="probability")
    return wide.reindex(index=knockouts, columns=genes).fillna(0.0)


def one_network(simulator: str, seed: int, cells: int) -> dict:
    """AUPRC of every ranking on one network, and probabilities beside the truth."""
    adata, edges = network_screen(simulator, seed, cells)
    knockouts, genes = list(edges.index), adata.var_names
    other = np.array(knockouts)[:, None] != np.array(genes)
    truth = edges.to_numpy()[other]
    probability = of_pairs(fitted(adata).network(n_samples=DRAWS), knockouts, genes)
    scores = {
        "pyrocell": probability,
        "|z| of the knockout": knockout_z(adata, knockouts),
        "co-expression": coexpression(adata, knockouts),
        "trees": trees(adata, knockouts, seed),
        "RENGE 0.0.5": renge(adata, knockouts),
    }
    auprc = {
        name: float(average_precision_score(truth, score.to_numpy()[other]))
        for name, score in scores.items()
        if score is not None
    }
    return {
        "simulator": simulator,
        "seed": seed,
        "auprc": auprc | {"base rate": float(truth.mean())},
        "probability": probability.to_numpy()[other],
        "truth": truth,
    }


def shuffled(simulator: str, seed: int, cells: int) -> dict:
    """Share of edges that are likely where labels mean nothing."""
    adata, _ = network_screen(simulator, seed, cells)
    rng = np.random.default_rng(seed)
    label = adata.obs["perturbation"].to_numpy().copy()
    for time in np.unique(adata.obs["time"]):
        here = np.flatnonzero(adata.obs["time"] == time)
        label[here] = rng.permutation(label[here])
    adata.obs["perturbation"] = label
    likely = fitted(adata).network(n_samples=DRAWS)["probability"] > 0.5
    return {"simulator": simulator, "seed": seed, "likely": float(likely.mean())}


def hipsc() -> dict:
    """The embedded screen against the network published of it."""
    adata = pyrocell.datasets.hipsc_timecourse()
    model = fitted(adata, batch_key="batch", size_factor_key="size_factor")
    table = model.network(n_samples=DRAWS)
    knockouts = list(model.screen.perturbations)
    genes = adata.var_names
    size, q = (
        pd.read_csv(SHARED / f"{name}.csv.gz", index_col=0).T
        for name in ("a_renge", "a_renge_qval")
    )
    published = ((q < RENGE_Q) & (size != 0)).astype(int)
    other = np.array(knockouts)[:, None] != np.array(genes)
    truth = published.reindex(index=knockouts, columns=genes).to_numpy()[other]
    every = published.reindex(index=genes, columns=genes).to_numpy()
    off = ~np.eye(len(genes), dtype=bool)
    figures = {}
    for name, score in {
        "pyrocell": of_pairs(table, knockouts, genes),
        "|z| of the knockout": knockout_z(adata, knockouts),
        "co-expression": coexpression(adata, knockouts),
    }.items():
        whole = score.reindex(genes).fillna(0.0).to_numpy()
        figures[name] = {
            "perturbed regulators": float(average_precision_score(truth, score.to_numpy()[other])),
            "all pairs": float(average_precision_score(every[off], whole[off])),
        }
    figures["base rate"] = {"perturbed regulators": truth.mean(), "all pairs": every[off].mean()}
    rng = np.random.default_rng(0)
    label = adata.obs["perturbation"].to_numpy().astype(object)
    for time in np.unique(adata.obs["time"]):
        here = np.flatnonzero(adata.obs["time"] == time)
        label[here] = rng.permutation(label[here])
    adata.obs["perturbation"] = label
    null = fitted(adata, batch_key="batch", size_factor_key="size_factor").network(n_samples=DRAWS)
    figures["likely edges"] = {
        "share": float((table["probability"] > 0.5).mean()),
        "labels shuffled": float((null["probability"] > 0.5).mean()),
    }
    return {"figures": figures}


def generalisation() -> dict:
    """Regulators and genes of the embedded screen left out, against the published network."""
    adata = pyrocell.datasets.hipsc_timecourse()
    model = fitted(adata, batch_key="batch", size_factor_key="size_factor")
    size, q = (
        pd.read_csv(SHARED / f"{name}.csv.gz", index_col=0).T
        for name in ("a_renge", "a_renge_qval")
    )
    rows = np.argwhere(((q < RENGE_Q) & (size != 0)).to_numpy())
    truth = pd.DataFrame({"regulator": size.index[rows[:, 0]], "target": size.columns[rows[:, 1]]})
    files = [SHARED / "knowledge" / f"{name}.gmt.gz" for name in ("GO_BP_2021", "Reactome")]
    known = pyrocell.Knowledge.from_gene_sets(*files, names=["GO", "Reactome"])
    figures = {}
    for kind, knowledge in (("genes", None), ("regulators", known)):
        table = pyrocell.metrics.network_generalisation(
            model, truth, kind, knowledge=knowledge, n_folds=FOLDS, n_samples=DRAWS
        )
        kept = table.set_index("method")[["auprc", "ece"]]
        figures[kind] = {m: row.dropna().to_dict() for m, row in kept.iterrows()}
    return {"figures": figures}


def summary(found: list[dict]) -> dict:
    """Means, paired tests, calibration over all networks."""
    table = pd.DataFrame([one["auprc"] for one in found])
    probability = np.concatenate([one["probability"] for one in found])
    truth = np.concatenate([one["truth"] for one in found])
    some = probability >= 0.2
    paired = {
        name: {
            "better in": int((table["pyrocell"] > table[name]).sum()),
            "p": float(wilcoxon(table["pyrocell"], table[name], alternative="greater").pvalue),
        }
        for name in table.columns.drop(["pyrocell", "base rate"])
    }
    likely = probability > 0.5
    return {
        "networks": len(found),
        "auprc": table.mean().to_dict(),
        "auprc by network": [one["auprc"] | {"of": one["simulator"]} for one in found],
        "paired": paired,
        "ece": expected_calibration_error(truth, probability),
        "ece of P >= .2": expected_calibration_error(truth[some], probability[some]),
        "P > .5": {
            "edges": int(likely.sum()),
            "true": float(truth[likely].mean()),
            "expected": float(probability[likely].mean()),
        },
    }


def main() -> None:
    """Run and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(301, 309)))
    parser.add_argument("--cells", type=int, default=100)
    parser.add_argument("--parts", nargs="+", default=["networks", "shuffled", *REAL])
    parser.add_argument("--jobs", type=int, default=1)
    args = parser.parse_args()
    pairs = [
        (simulator, seed, args.cells)
        for seed in args.seeds
        for simulator in SIMULATORS
        if simulator == "grnlab" or args.seeds.index(seed) < HARISSA
    ]
    if "networks" in args.parts:
        found = []
        for i in range(0, len(pairs), AT_ONCE):
            found += run_all(one_network, pairs[i : i + AT_ONCE], args.jobs)
            part = part_of(parser, args, "networks")
            seeds = sorted({one["seed"] for one in found})
            write_results("mechanism_network", {part: summary(found)}, seeds)
    if "shuffled" in args.parts:
        null = run_all(shuffled, pairs[: SHUFFLED * len(SIMULATORS)], args.jobs)
        part = part_of(parser, args, "shuffled")
        figures = {"P > .5": [one["likely"] for one in null]}
        write_results("mechanism_network", {part: figures}, args.seeds[:SHUFFLED])
    for name, function in zip(REAL, (hipsc, generalisation)):
        if name in args.parts:
            (one,) = run_all(function, [()], args.jobs)
            write_results("mechanism_network", {name: one["figures"]})


if __name__ == "__main__":
    main()
