"""How often a default fit gets a red line where nothing is wrong, and none where something is.

python benchmarks/verdicts.py

Simulated screens of several kinds and two real ones, each fitted with `train()`. Then each fit is
spoilt: effects three times as large or of the other sign, labels of the two strongest perturbations
swapped after the fit, and control cells handled otherwise (a fifth of the genes at 60%, fitted
again).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from code_state import FIT
from common import quiet, run_all, shared, write_results

import pyrocell
from pyrocell.report.tables import collect
from pyrocell.report.verdicts import verdicts

ROOMS = (*FIT, "report")  # that the figures depend on
SEEDS = (301, 302)
GENES = {"n_genes": 300, "n_perturbations": 20}
KINDS: dict[str, dict[str, Any]] = {
    "30 cells": {"n_cells_per_condition": 30, "effect_rms": 0.15},
    "100 cells": {"n_cells_per_condition": 100},
    "strong effects": {"n_cells_per_condition": 100, "effect_rms": 0.4, "silent_fraction": 0.2},
    "few counts": {"n_cells_per_condition": 60, "mean_library": 100.0, "n_controls": 60},
    "eight batches": {"n_cells_per_condition": 100, "n_batches": 8, "batch_sd": 0.3},
    "two media": {"n_cells_per_condition": 60, "media": 1},
}
AGAINST, COMMON = "effects against the counts alone", "effect common to all perturbations"


def simulated(kind: str, seed: int):
    """A screen with the columns it has."""
    return pyrocell.simulate.screen(seed=seed, **(GENES | KINDS[kind]))


def registered(cells) -> pyrocell.PyroCell:
    """An untrained model."""
    simulated_media = "media" in cells.obs and cells.obs["media"].nunique() > 1
    pyrocell.PyroCell.setup_anndata(cells, media_key="media" if simulated_media else None)
    return pyrocell.PyroCell(cells)


def judged(name: str, seed: int) -> dict[str, Any]:
    """Red lines of a fit as it is, and whether each way of spoiling it is seen."""
    real = {"THP-1": "papalexi2021_thp1_eccite.h5ad", "K562": "norman2019_k562_crispra.h5ad"}
    cells = shared(real[name]) if name in real else simulated(name, seed)
    if name in real:
        some = np.random.default_rng(seed).permutation(cells.n_obs)[:8_000]
        cells = cells[np.sort(some)].copy()
        cells = cells[:, np.asarray(cells.X.sum(0)).ravel() > 0].copy()
    model = registered(cells)
    model.train(seed=seed, progress_bar=False)
    tables = collect(model, 50)
    red = tables["verdicts"].query("level == 'bad'")["check"].tolist()
    found: dict[str, Any] = {"screen": name, "seed": seed, "red": red, "seen": {}}
    found["not tested"] = tables["verdicts"].query("level == 'not tested'")["check"].tolist()
    effects = tables["perturbation_effects"]
    strong = effects.groupby("perturbation")["mean"].std().nlargest(2).index.tolist()
    spoilt = {
        "three times as large": effects.assign(mean=3 * effects["mean"]),
        "other sign": effects.assign(mean=-effects["mean"]),
        "swapped": effects.assign(
            perturbation=effects["perturbation"].replace(dict(zip(strong, strong[::-1])))
        ),
    }
    rest = {k: v for k, v in tables.items() if k not in ("disagreement", "combination_effects")}
    for how, table in spoilt.items():
        levels = verdicts(model, rest | {"perturbation_effects": table}).set_index("check")["level"]
        found["seen"][how] = levels[AGAINST]
    found["seen"]["controls handled otherwise"] = _handled(cells, seed)
    return found


def _handled(cells, seed: int) -> str:
    """Level of the common effect where controls lose counts of a fifth of the genes."""
    rng = np.random.default_rng(seed)
    other = cells.copy()
    counts = other.X.toarray() if hasattr(other.X, "toarray") else other.X.copy()
    rows = np.flatnonzero(other.obs["perturbation"] == "control")
    genes = rng.permutation(other.n_vars)[: other.n_vars // 5]
    block = counts[np.ix_(rows, genes)].astype(int)
    counts[np.ix_(rows, genes)] = rng.binomial(block, 0.6)
    other.X = counts
    model = registered(other)
    model.train(seed=seed, progress_bar=False)
    return collect(model, 50)["verdicts"].set_index("check")["level"][COMMON]


def main() -> None:
    """Judge all, and write what was found."""
    quiet()
    jobs = [(kind, seed) for kind in KINDS for seed in SEEDS]
    jobs += [("THP-1", SEEDS[0]), ("K562", SEEDS[0])]
    rows = run_all(judged, jobs, 1)
    ways = list(rows[0]["seen"])
    figures = {
        "fits": len(rows),
        "red without reason": sum(bool(row["red"]) for row in rows),
        "seen": {how: [sum(r["seen"][how] == "bad" for r in rows), len(rows)] for how in ways},
        "rows": rows,
    }
    write_results("verdicts", {"verdicts": figures}, SEEDS, rooms=ROOMS)


if __name__ == "__main__":
    main()
