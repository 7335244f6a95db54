"""Which step a knockout acts at, by `model.explain`, on cells of harissa's and grnlab's networks.

Seventeen knockouts in two media (`mechanistic.py`, layout "media"). From expected counts a knockout
acts by itself at rest, on the response to the stimulus, or, where both root mean squares over the
other genes are below .05, on its own transcript alone. The model says the same where it sees the
larger of the two steps. Anchors: the sizes of plain log ratios of pseudobulks, and of products of
halves of the cells, which have no bias from sampling noise. With labels shuffled within batch and
medium no step should be seen. Seeds below 100 are for development.

    python benchmarks/mechanism_explain.py
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

SEEDS = (301, 302)
STEPS = ("by itself", "response to the medium")
ALONE = "own transcript alone"
CLEAR = 1.5  # how much larger the first true step is than the second, to be scored as the one
WHO = ("model", "plain", "halves")
SURE = 0.9


def sizes(halves: list[dict], name: str, genes: list[str]) -> np.ndarray:
    """Size of each of `STEPS` from two tables of log levels by perturbation and medium.

    Squares are products of the two, which may be the same.
    """
    found = []
    for levels in halves:
        rest = levels[name, "baseline"] - levels["control", "baseline"]
        met = levels[name, "stimulus"] - levels["control", "stimulus"]
        other = np.array(genes) != name
        found.append([rest[other], (met - rest)[other]])
    return np.array([np.sqrt(max((x * y).mean(), 0.0)) for x, y in zip(*found)])


def said(size: np.ndarray, seen: bool) -> str:
    """The step that is ranked first."""
    return STEPS[int(size.argmax())] if seen else ALONE


def true_levels(adata: AnnData) -> dict[tuple[str, str], np.ndarray]:
    """Log of expected counts of a cell of average depth; a tenth of a count is added, as there."""
    counts = adata.uns["expected"]
    depth = counts.loc["control in baseline"].sum()
    share = counts.div(counts.sum(axis=1), axis=0)
    levels = np.log(depth * share + PSEUDOCOUNT)
    return {tuple(key.split(" in ")): row.to_numpy() for key, row in levels.iterrows()}


def log_levels(adata: AnnData, rows: np.ndarray) -> dict[tuple[str, str], np.ndarray]:
    """Log shares of pseudobulks of some cells; half a count is added."""
    found, some = {}, adata[rows]
    for key, cells in some.obs.groupby(["perturbation", "media"], observed=True).indices.items():
        total = np.asarray(some.X[cells].sum(0)).ravel() + 0.5
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
    half = np.random.default_rng(seed).permutation(adata.n_obs) % 2 == 0
    whole = log_levels(adata, np.ones(adata.n_obs, bool))
    halves = [log_levels(adata, half), log_levels(adata, ~half)]
    found = steps_of(adata, n_samples)
    slope = truth[truth["assumption"] == "no_response"].set_index("perturbation")["size"]
    rows = []
    for name in LAYOUTS["media"].knockouts:
        mine = found[found["perturbation"] == name].set_index("step")
        size = {"model": mine["size"].reindex(STEPS).fillna(0.0).to_numpy()}
        chance = mine["prob_seen"].reindex(STEPS).fillna(0.0).to_numpy()
        size["true"] = sizes([expected, expected], name, genes)
        size["plain"] = sizes([whole, whole], name, genes)
        size["halves"] = sizes(halves, name, genes)
        if shuffle:
            size["true"] = np.zeros(2)
        order = np.sort(size["true"])
        seen = {who: x.max() > REGION for who, x in size.items()}
        seen["model"] = chance[size["model"].argmax()] >= SURE
        rows.append(
            {
                "perturbation": name,
                "slope": float(slope[name]),
                "clear": bool(order[1] > CLEAR * order[0]) or bool(order[1] < REGION),
                "seen": bool((chance >= SURE).any()),
                **{who: said(x, bool(seen[who])) for who, x in size.items()},
                **{f"first {who}": STEPS[int(size[who].argmax())] for who in WHO},
                **{f"error {who}": float(((size[who] - size["true"]) ** 2).mean()) for who in WHO},
                "sizes": {who: x.round(3).tolist() for who, x in size.items()},
            }
        )
    return {"simulator": simulator, "seed": seed, "shuffled": shuffle, "rows": rows}


def figures_of(table: pd.DataFrame) -> dict[str, float]:
    """Shares of knockouts whose step is ranked first, by the model and by the anchors."""
    blocking, clear = table[table["slope"] < BLOCKED], table[table["clear"]]
    out: dict[str, float] = {"blocking knockouts": len(blocking), "clear knockouts": len(clear)}
    for who in WHO:
        out[f"blocking, response first: {who}"] = float(
            (blocking[f"first {who}"] == STEPS[1]).mean()
        )
        out[f"clear, right: {who}"] = float((clear[who] == clear["true"]).mean())
        for step in (*STEPS, ALONE):
            some = clear[clear["true"] == step]
            if len(some):
                out[f"{step} ({len(some)}): {who}"] = float((some[who] == step).mean())
        out[f"RMSE of sizes: {who}"] = float(np.sqrt(table[f"error {who}"].mean()))
    return out


def main() -> None:
    """Run all screens and pool."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seeds", type=int, nargs="*", default=list(SEEDS))
    parser.add_argument("--cells", type=int, default=50)
    parser.add_argument("--samples", type=int, default=60)
    args = parser.parse_args()
    size = args.cells, args.samples
    jobs = [
        (simulator, seed, size[0], False, size[1])
        for seed in args.seeds
        for simulator in ("harissa", "grnlab")
    ]
    jobs.insert(2, ("harissa", args.seeds[0], size[0], True, size[1]))
    found = run_all(scored, jobs, args.jobs)
    figures: dict[str, dict] = {}
    for simulator in ("harissa", "grnlab"):
        mine = [f for f in found if f["simulator"] == simulator and not f["shuffled"]]
        figures[simulator] = figures_of(pd.DataFrame([row for f in mine for row in f["rows"]]))
    null = pd.DataFrame([row for f in found if f["shuffled"] for row in f["rows"]])
    figures["shuffled"] = {"knockouts": len(null)} | {
        f"a step is seen: {who}": float((null[who] != ALONE).mean()) for who in WHO
    }
    print(pd.DataFrame(figures).round(3).to_string())
    write_results("mechanism_explain", {part_of(parser, args): figures}, args.seeds)


if __name__ == "__main__":
    main()
