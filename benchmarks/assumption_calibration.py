"""Are the posteriors of the assumptions calibrated? On screens whose truth is known.

Truth comes from this project's simulator and from two mechanistic ones that were not written here
(`mechanistic.py`). The evidence was developed on seeds 901-943 and 1000-1002; the seeds below are
others. Each screen is fitted as a user would (`train()` without arguments), each row of
`model.assumptions()` compared with the truth, and a score without a model (`anchors.py`) printed
beside it. False alarms are silent perturbations with a posterior below .1.

    python benchmarks/assumption_calibration.py --jobs 2
"""

from __future__ import annotations

import argparse

import numpy as np
import pandas as pd
from anchors import anchors
from code_state import FIT
from common import part_of, quiet, run_all, write_results
from mechanistic import screens

import pyrocell
from pyrocell.metrics import auroc, brier, expected_calibration_error

ROOMS = (*FIT, "metrics")  # that the figures depend on
REGION = 0.05
OWN = {  # layout: cells of a condition, and seed
    "silent": [(20, 331), (100, 333), (100, 334), (500, 336)],
    "time": [(100, 341), (100, 342)],
    "drift": [(100, seed) for seed in range(351, 359)],
}
MECHANISTIC = {
    "silent": [(100, 101), (100, 102), (20, 104)],
    "time": [(100, 101), (100, 102)],
    "late": [(100, 101), (100, 102)],
    "drift": [(100, seed) for seed in range(101, 107)],
}
COLUMNS = ["simulator", "layout", "cells", "seed"]


def own(layout: str, seed: int, cells: int) -> tuple:
    """A screen of this project's simulator, and what holds in it."""
    settings = {"n_cells_per_condition": cells, "batch_sd": 0.2, "seed": seed}
    if layout == "silent":
        adata = pyrocell.simulate.screen(n_batches=3, effect_rms=0.1 + 0.1 * (seed % 2), **settings)
    elif layout == "time":
        adata = pyrocell.simulate.screen(
            n_perturbations=16, n_genes=120, n_batches=3, effect_rms=0.5, media=1, media_rms=0.5,
            times=(0.5, 1.0, 2.0, 4.0), rate=0.7, blocked_fraction=0.2, **settings,
        )  # fmt: skip
    else:
        adata = pyrocell.simulate.screen(
            n_perturbations=4, n_genes=120, n_batches=3, effect_rms=0.2, times=(1.0, 2.0, 4.0),
            drift_rms=0.3 * (seed % 2), rate=0.7, n_controls=600, **settings,
        )  # fmt: skip
    return adata, own_truth(adata)


def own_truth(adata) -> pd.DataFrame:
    """Sizes and what holds, from the shifts that cells were drawn with."""
    truth = adata.uns["truth"]
    table = truth["conditions"].copy()
    if "media" not in table:
        table["media"] = "baseline"
    shift = np.asarray(truth["shift"], dtype=float)
    share = np.asarray(truth["expression"], dtype=float).ravel()
    level = shift - shift @ (share / share.sum())[:, None]
    table["time"] = table["time"] if "time" in table else 0.0
    times = sorted(table["time"].unique())
    at = {k: level[i] for i, k in enumerate(zip(table.perturbation, table.media, table.time))}
    rms = lambda x: float(np.sqrt((x**2).mean()))  # noqa: E731
    rows = []
    for perturbation, media in dict.fromkeys(zip(table.perturbation, table.media)):
        control = perturbation == "control"
        if len(times) > 1:
            change, other = (
                at[p, media, times[-1]] - at[p, media, times[-2]] for p in (perturbation, "control")
            )
            name = "necessary" if control and media == "baseline" else "steady"
            rows.append((name, perturbation, media, rms(change)))
            if not control:
                rows.append(("steady_vs_control", perturbation, media, rms(change - other)))
        if control:
            continue
        if media == "baseline":
            effect = at[perturbation, media, times[-1]] - at["control", media, times[-1]]
            rows.append(("silent_at_baseline", perturbation, media, rms(effect)))
        else:
            gain = truth["gain"].loc[perturbation, media]
            rows.append(("no_response", perturbation, media, float(gain)))
    frame = pd.DataFrame(rows, columns=["assumption", "perturbation", "media", "size"])
    limit = np.where(frame["assumption"] == "no_response", 0.5, REGION)
    return frame.assign(holds=frame["size"] < limit)


def judge(simulator: str, layout: str, cells: int, seed: int) -> dict:
    """Fit one screen and set its table against the truth."""
    quiet()
    if simulator == "own":
        adata, truth = own(layout, seed, cells)
    else:
        adata, truth = screens(simulator, layout, seed, cells)
        truth = truth[truth["last"]]
    has = lambda name: name in adata.obs and adata.obs[name].nunique() > 1  # noqa: E731
    pyrocell.PyroCell.setup_anndata(
        adata,
        media_key="media" if has("media") else None,
        time_key="time" if has("time") else None,
    )
    model = pyrocell.PyroCell(adata)
    model.train(progress_bar=False, seed=seed)
    keys = ["assumption", "perturbation", "media"]
    table = model.assumptions(region=REGION)
    table = table[table.testable].merge(
        truth[[*keys, "size", "holds"]], on=keys, suffixes=("", "_true")
    )
    plain = adata.copy()
    plain.obs = plain.obs.assign(**{"media": "baseline", "time": 0.0} | dict(plain.obs))
    table = table.merge(anchors(plain)[[*keys, "estimate"]], on=keys, how="left")
    kept = [*keys, "prior", "posterior", "log_bayes_factor", "size", "lower", "upper", "n_genes"]
    return {
        "simulator": simulator,
        "layout": layout,
        "cells": cells,
        "seed": seed,
        "brier": float(brier(table.holds, table.posterior)),
        "table": table[[*kept, "size_true", "holds", "estimate"]].to_numpy(),
        "columns": np.array([*kept, "size_true", "holds", "estimate"]),
    }


def ece_floor(posterior: pd.Series, n: int = 200) -> float:
    """Calibration error that perfectly calibrated posteriors would have with so few rows."""
    rng = np.random.default_rng(0)
    drawn = rng.random((n, len(posterior))) < posterior.to_numpy()
    return float(np.mean([expected_calibration_error(holds, posterior) for holds in drawn]))


def scores(table: pd.DataFrame) -> dict:
    """AUROC, Brier score, calibration error and its floor, the anchor's AUROC on the same rows."""
    holds, posterior = table["holds"].astype(bool), table["posterior"].astype(float)
    both = holds.any() and not holds.all()
    anchor = table["estimate"].astype(float)
    seen = anchor.notna()
    real = table[table["size_true"].astype(float) > REGION]
    return {
        "rows": len(table),
        "holds": float(holds.mean()),
        "auroc": auroc(holds, posterior) if both else np.nan,
        "brier": brier(holds, posterior),
        "ece": expected_calibration_error(holds, posterior),
        "ece_floor": ece_floor(posterior),
        "anchor_auroc": auroc(holds[seen], -anchor[seen]) if both else np.nan,
        "covered_90": float(
            ((real.lower <= real.size_true) & (real.size_true <= real.upper)).mean()
        ),
    }


def main() -> None:
    """Fit all screens and print the scores."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--simulators", nargs="+", default=["own", "harissa", "grnlab"])
    parser.add_argument("--layouts", nargs="+", default=["silent", "time", "late", "drift"])
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    jobs = [
        (simulator, layout, cells, seed)
        for layout in args.layouts
        for simulator in args.simulators
        for cells, seed in (OWN if simulator == "own" else MECHANISTIC).get(layout, [])
    ]
    found = run_all(judge, jobs, args.jobs)
    table = pd.concat(
        [pd.DataFrame(f["table"], columns=f["columns"]).assign(**{c: f[c] for c in COLUMNS})
         for f in found], ignore_index=True,
    )  # fmt: skip
    figures: dict = {}
    main_cells = table[(table.cells == 100)]
    for (simulator, assumption), part in main_cells.groupby(["simulator", "assumption"]):
        if assumption == "silent_at_baseline" and (part.layout == "silent").any():
            part = part[part.layout == "silent"]
        figures.setdefault(simulator, {})[assumption] = scores(part)
    for (simulator, assumption, layout), part in main_cells.groupby(
        ["simulator", "assumption", "layout"]
    ):
        figures[simulator][f"{assumption}, {layout}"] = scores(part)
    silent = table[(table.assumption == "silent_at_baseline") & (table.layout == "silent")]
    for (simulator, cells), part in silent.groupby(["simulator", "cells"]):
        still = part[part.holds.astype(bool)]
        figures[simulator][f"false alarms, {cells} cells"] = float((still.posterior < 0.1).mean())
        figures[simulator][f"mean posterior, {cells} cells"] = float(part.posterior.mean())
    for simulator, rows in figures.items():
        print(simulator)
        wide = {k: v for k, v in rows.items() if isinstance(v, dict)}
        print(pd.DataFrame(wide).T.round(3).to_string())
        print({k: round(v, 3) for k, v in rows.items() if not isinstance(v, dict)})
    write_results(
        "assumption_calibration",
        {part_of(parser, args): {"region": REGION, **figures}},
        sorted({job[3] for job in jobs}),
        rooms=ROOMS,
    )


if __name__ == "__main__":
    main()
