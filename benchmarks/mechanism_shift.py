"""Delays of differentiation: shifts in time of known size, with and without other effects.

Screens of a simulator of its own: cells move along one course at five times, each somewhat ahead or
behind; genes switch along it. Perturbations delay it by 0, .1 or .3 of the range of times, with or
without sparse effects of other kinds, or stop half of the genes where they are at the second time
(a blocked fate). Anchors, on pseudobulks: the shift at which the perturbed levels are nearest to
the controls' (linear between times), with an interval from resampled cells, and the shift of the
largest correlation. Null: labels permuted within times and batches. Seeds below 100 are for
development.
"""

from __future__ import annotations

import argparse
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from common import part_of, quiet, run_all, write_results
from scipy.special import expit, softmax

import pyrocell

TIMES = np.arange(1.0, 6.0)
RANGE = float(np.ptp(TIMES))
# delay as a share of the range, RMS of other effects, whether half of the genes are stopped
KINDS = {
    "none": (0.0, 0.0, False),
    "none, others": (0.0, 0.3, False),
    "late .1": (0.1, 0.0, False),
    "late .1, others": (0.1, 0.3, False),
    "late .3": (0.3, 0.0, False),
    "late .3, others": (0.3, 0.3, False),
    "early .1, others": (-0.1, 0.3, False),
    "blocked": (0.0, 0.0, True),
}
N_GENES, N_CONTROLS, N_CELLS = 60, 120, 50
PACE_SD, SWITCH_WIDTH = 0.5, 0.5  # of cells, and of genes along the course; units of time
GRID = np.linspace(-0.6, 0.6, 97) * RANGE
RESAMPLES = 20
EPOCHS = 10  # of a fit, of which nothing but the width of batch noise is used


def screen(seed: int) -> ad.AnnData:
    """Counts of a screen with every kind of perturbation."""
    rng = np.random.default_rng(seed)
    switch = rng.uniform(0, 6, N_GENES)
    size = 1.5 * rng.standard_normal(N_GENES)
    base = rng.normal(0, 0.7, N_GENES)
    axes = 0.2 * rng.standard_normal((2, N_GENES))
    eta = 0.1 * rng.standard_normal((2, N_GENES))
    stopped = rng.random(N_GENES) < 0.5
    x, rows = [], []
    for name, (delay, rms, blocked) in {"control": (0.0, 0.0, False), **KINDS}.items():
        effect = rng.standard_normal(N_GENES) * (rng.random(N_GENES) < 0.3)
        effect *= rms / np.sqrt(0.3)
        for time in TIMES:
            n = N_CONTROLS if name == "control" else N_CELLS
            progress = time - delay * RANGE + PACE_SD * rng.standard_normal(n)
            held = np.minimum(progress, TIMES[1]) if blocked else progress
            at = np.where(stopped, held[:, None], progress[:, None])
            logits = base + size * expit((at - switch) / SWITCH_WIDTH)
            logits += rng.standard_normal((n, 2)) @ axes + effect * min(1.0, time / 3)
            batch = rng.integers(0, 2, n)
            depth = 2_000 * np.exp(0.3 * rng.standard_normal(n))
            mean = depth[:, None] * softmax(logits + eta[batch], axis=1)
            x.append(rng.poisson(mean * rng.gamma(8, 1 / 8, mean.shape)))
            rows.append(pd.DataFrame({"perturbation": name, "time": time, "batch": batch}))
    obs = pd.concat(rows, ignore_index=True)
    obs["batch"] = "b" + obs["batch"].astype(str)
    obs.index = [f"cell{i}" for i in range(len(obs))]
    genes = pd.DataFrame(index=[f"gene{g}" for g in range(N_GENES)])
    return ad.AnnData(sp.csr_matrix(np.concatenate(x).astype(np.float32)), obs, genes)


def fitted(adata: ad.AnnData, seed: int) -> pyrocell.PyroCell:
    pyrocell.PyroCell.setup_anndata(
        adata,
        batch_key="batch",
        perturbation_key="perturbation",
        control="control",
        time_key="time",
    )
    model = pyrocell.PyroCell(adata, n_latent=5)
    model.train(
        max_epochs=EPOCHS, seed=seed, accelerator="cpu", progress_bar=False, gene_level=False
    )
    return model


def pseudobulks(adata: ad.AnnData, name: str, rng: np.random.Generator | None) -> np.ndarray:
    """Log mean shares at every time, (T, G); of resampled cells with `rng`."""
    out = []
    for time in TIMES:
        rows = np.flatnonzero((adata.obs["perturbation"] == name) & (adata.obs["time"] == time))
        rows = rows if rng is None else rng.choice(rows, len(rows))
        total = np.asarray(adata.X[rows].sum(0)).ravel() + 0.5
        out.append(np.log(total / total.sum()))
    return np.array(out)


def nearest(control: np.ndarray, levels: np.ndarray) -> tuple[float, float]:
    """Shift of least squares and of largest correlation, the controls' course linear."""
    moved = np.stack([[np.interp(TIMES - d, TIMES, g) for g in control.T] for d in GRID]).transpose(
        0, 2, 1
    )
    least = GRID[np.argmin(((moved - levels) ** 2).sum((1, 2)))]
    centred = [m - m.mean(0) for m in (*moved, levels)]
    scores = [(m * centred[-1]).sum() / np.linalg.norm(m) for m in centred[:-1]]
    return float(least), float(GRID[np.argmax(scores)])


def anchors(adata: ad.AnnData, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    control = pseudobulks(adata, "control", None)
    again = [pseudobulks(adata, "control", rng) for _ in range(RESAMPLES)]
    out = {}
    for name in KINDS:
        least, most = nearest(control, pseudobulks(adata, name, None))
        values = [nearest(c, pseudobulks(adata, name, rng))[0] for c in again]
        ends = np.quantile(values, [0.05, 0.95])
        out[name] = {"nearest": least, "correlation": most, "ends": ends.tolist()}
    return out


def shifts(seed: int) -> dict[str, Any]:
    """A screen and its shifts, by the model and by the anchors."""
    adata = screen(seed)
    table = fitted(adata, seed).temporal_shift(n_samples=100, seed=seed)
    table = table.set_index("perturbation")
    return {"seed": seed, "table": table.to_dict("index"), "anchors": anchors(adata, seed)}


def shuffled(seed: int) -> dict[str, Any]:
    """The same with labels permuted within times and batches."""
    adata = screen(seed)
    rng = np.random.default_rng(seed)
    label = adata.obs["perturbation"].to_numpy().copy()
    for rows in adata.obs.groupby(["time", "batch"], observed=True).indices.values():
        label[rows] = label[rng.permutation(rows)]
    adata.obs["perturbation"] = label
    table = fitted(adata, seed).temporal_shift(n_samples=100, seed=seed)
    return {"seed": seed, "table": table.set_index("perturbation").to_dict("index")}


def summary(found: list[dict[str, Any]]) -> dict[str, Any]:
    """By kind: errors as shares of the range, coverage, claims, what is explained."""
    out: dict[str, Any] = {}
    for name, (delay, _, _) in KINDS.items():
        rows = pd.DataFrame([each["table"][name] for each in found])
        truth = delay * RANGE
        out[name] = {
            "rmse": float(np.sqrt(((rows["shift"] - truth) ** 2).mean()) / RANGE),
            "sd": float(rows["sd"].mean() / RANGE),
            "bias": float((rows["shift"] - truth).mean() / RANGE),
            "cover": float(((rows["lower"] <= truth) & (truth <= rows["upper"])).mean()),
            "claimed": float((rows["p_none"] < 0.05).mean()),
            "explained": float(rows["explained"].mean()),
            "explained_upper": float(rows["explained_upper"].mean()),
            "other": float(rows["other"].mean()),
            "screens": len(rows),
        }
        if "anchors" in found[0]:
            each = [f["anchors"][name] for f in found]
            for kind in ("nearest", "correlation"):
                error = np.array([a[kind] for a in each]) - truth
                out[name][f"rmse_{kind}"] = float(np.sqrt((error**2).mean()) / RANGE)
            ends = np.array([a["ends"] for a in each])
            inside = (ends[:, 0] <= truth) & (truth <= ends[:, 1])
            out[name]["cover_nearest"] = float(inside.mean())
            without = (ends[:, 0] > 0) | (ends[:, 1] < 0)
            out[name]["claimed_nearest"] = float(without.mean())
    timed = [name for name, (_, _, blocked) in KINDS.items() if not blocked]
    for key in ("cover", "cover_nearest"):
        if all(key in out[name] for name in timed):
            out[key] = float(np.mean([out[name][key] for name in timed]))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="+", default=["shifts", "shuffled"])
    parser.add_argument("--first", type=int, default=301, help="seed")
    parser.add_argument("--screens", type=int, default=6)
    parser.add_argument("--shuffles", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=1)
    arguments = parser.parse_args()
    quiet()
    for part, function, n in (
        ("shifts", shifts, arguments.screens),
        ("shuffled", shuffled, arguments.shuffles),
    ):
        if part in arguments.parts:
            seeds = range(arguments.first, arguments.first + n)
            found = run_all(function, [(seed,) for seed in seeds], arguments.jobs)
            figures = {"mean": summary(found), "of_seeds": found}
            write_results("mechanism_shift", {part_of(parser, arguments, part): figures}, seeds)


if __name__ == "__main__":
    main()
