"""Which step a knockout acts at, by `model.explain`, on cells of harissa's and grnlab's networks.

Seventeen knockouts in two media (`mechanistic.py`, layout "media"). From expected counts a knockout
acts on the response to the stimulus, by itself at rest, or on its own transcript alone: the largest
root mean square over genes is its step. The model says the same with its three sizes; the anchor
ranks plain log ratios of pseudobulks; with labels shuffled within batch and medium no step should
be seen. Seeds below 100 are for development.

    python benchmarks/mechanism_explain.py --jobs 2
"""

from __future__ import annotations

import argparse

import numpy as np
import pandas as pd
from anndata import AnnData
from common import part_of, run_all, write_results
from mechanistic import LAYOUTS, screens
from mechanistic_truth import BLOCKED, PSEUDOCOUNT, REGION

import pyrocell

SEEDS = (301, 302, 303)
STEPS = ("own transcript", "by itself", "response to the medium")
CLEAR = 1.5  # how much larger the first true step is than the second, to be scored as the one
SURE = 0.9


def sizes(levels: dict[tuple[str, str], np.ndarray], name: str, genes: list[str]) -> np.ndarray:
    """Size of each of `STEPS` from log levels (genes,) by perturbation and medium."""
    rest = levels[name, "baseline"] - levels["control", "baseline"]
    met = levels[name, "stimulus"] - levels["control", "stimulus"]
    own = np.array(genes) == name
    by_itself, response = np.where(own, 0.0, rest), np.where(own, 0.0, met - rest)
    alone = np.where(own, met, 0.0)
    return np.array([np.sqrt((x**2).mean()) for x in (alone, by_itself, response)])


def true_levels(adata: AnnData) -> dict[tuple[str, str], np.ndarray]:
    """Log of expected counts of a cell of average depth; a tenth of a count is added, as there."""
    counts = adata.uns["expected"]
    depth = counts.loc["control in baseline"].sum()
    share = counts.div(counts.sum(axis=1), axis=0)
    levels = np.log(depth * share + PSEUDOCOUNT)
    return {tuple(key.split(" in ")): row.to_numpy() for key, row in levels.iterrows()}


def log_levels(adata: AnnData) -> dict[tuple[str, str], np.ndarray]:
    """Log shares of pseudobulks; half a count is added."""
    found = {}
    for key, cells in adata.obs.groupby(["perturbation", "media"], observed=True).indices.items():
        total = np.asarray(adata.X[cells].sum(0)).ravel() + 0.5
        found[key] = np.log(total / total.sum())
    return found


def shuffled(adata: AnnData, seed: int) -> AnnData:
    """The same cells with labels shuffled within batch and medium, the controls' among them."""
    out, rng = adata.copy(), np.random.default_rng(seed)
    labels = out.obs["perturbation"].to_numpy().astype(object)
    for cells in out.obs.groupby(["batch", "media"], observed=True).indices.values():
        labels[cells] = rng.permutation(labels[cells])
    out.obs["perturbation"] = labels
    return out


def steps_of(adata: AnnData, n_samples: int) -> pd.DataFrame:
    """Size and `prob_seen` of each step of each knockout, and the gain, by the model."""
    keys = {"media_key": "media", "baseline_media": "baseline"}
    pyrocell.PyroCell.setup_anndata(adata, **keys)
    model = pyrocell.PyroCell(adata)
    model.train(seed=0, progress_bar=False)
    tables = []
    for name in model.screen.perturbations:
        table = model.explain(
            name,
            media="stimulus",
            against={"media": "stimulus"},
            by="step",
            n_samples=n_samples,
        )
        tables.append(table.assign(perturbation=name))
    return pd.concat(tables, ignore_index=True)


def scored(simulator: str, seed: int, cells: int, shuffle: bool, n_samples: int) -> dict:
    """One screen: true step, model's and anchor's first step of every knockout."""
    adata, truth = screens(simulator, "media", seed, cells)
    expected = true_levels(adata)
    genes = list(adata.var_names)
    adata.obs = adata.obs.drop(columns="time")
    if shuffle:
        adata = shuffled(adata, seed)
    plain = log_levels(adata)
    found = steps_of(adata, n_samples)
    slope = truth[truth["assumption"] == "no_response"].set_index("perturbation")["size"]
    rows = []
    for name in LAYOUTS["media"].knockouts:
        mine = found[found["perturbation"] == name].set_index("step")
        model = mine["size"].reindex(STEPS).fillna(0.0).to_numpy()
        seen = mine["prob_seen"].reindex(STEPS).fillna(0.0).to_numpy()
        true, anchor = (sizes(x, name, genes) for x in (expected, plain))
        order = np.sort(true)[::-1]
        rows.append(
            {
                "perturbation": name,
                "slope": float(slope[name]),
                "true": STEPS[int(true.argmax())],
                "clear": bool(order[0] > CLEAR * order[1] and order[0] > REGION),
                "model": STEPS[int(model.argmax())],
                "anchor": STEPS[int(anchor.argmax())],
                "seen": bool((seen >= SURE).any()),
                "sizes": {"true": true, "model": model, "anchor": anchor},
            }
        )
    return {"simulator": simulator, "seed": seed, "shuffled": shuffle, "rows": rows}


def figures_of(table: pd.DataFrame) -> dict[str, float]:
    """Shares of knockouts whose step is ranked first, by the model and by the anchor."""
    blocking = table[table["slope"] < BLOCKED]
    clear = table[table["clear"]]
    out: dict[str, float] = {"blocking knockouts": len(blocking)}
    for who in ("model", "anchor"):
        out[f"blocking, response ranked first: {who}"] = float((blocking[who] == STEPS[2]).mean())
    out["knockouts with a clear step"] = len(clear)
    for who in ("model", "anchor"):
        out[f"clear step ranked first: {who}"] = float((clear[who] == clear["true"]).mean())
        for step in STEPS:
            some = clear[clear["true"] == step]
            if len(some):
                out[f"{step} ({len(some)}): {who}"] = float((some[who] == step).mean())
    out["a step is seen"] = float(table["seen"].mean())
    return out


def main() -> None:
    """Run all screens and pool."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seeds", type=int, nargs="*", default=list(SEEDS))
    parser.add_argument("--cells", type=int, default=100)
    parser.add_argument("--samples", type=int, default=200)
    args = parser.parse_args()
    jobs = [
        (simulator, seed, args.cells, shuffle, args.samples)
        for simulator in ("harissa", "grnlab")
        for seed in args.seeds
        for shuffle in ((False, True) if seed == args.seeds[0] else (False,))
    ]
    found = run_all(scored, jobs, args.jobs)
    figures = {}
    for simulator in ("harissa", "grnlab"):
        for shuffle in (False, True):
            rows = [
                row
                for one in found
                if one["simulator"] == simulator and one["shuffled"] == shuffle
                for row in one["rows"]
            ]
            table = pd.DataFrame(rows)
            if shuffle:
                first = {
                    f"{who} ranks the response first": (table[who] == STEPS[2]).mean()
                    for who in ("model", "anchor")
                }
                figures[f"{simulator}, shuffled"] = {
                    "knockouts": len(table),
                    "a step is seen": table["seen"].mean(),
                    **first,
                }
            else:
                figures[simulator] = figures_of(table)
    print(pd.DataFrame(figures).round(3).to_string())
    write_results("mechanism_explain", {part_of(parser, args): figures}, args.seeds)


if __name__ == "__main__":
    main()
