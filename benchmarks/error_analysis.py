"""Appendix B.2 on simulated truth: ε of eq. 20, its terms, and the paper's three conclusions.

Screens of 12 perturbations, 60 genes, 6 batches, batch noise of sd .2, three axes of cell state.
The map is that of a `PyroCell` with true values in place of fitted ones (first three tables), or
adds to the source what counts, averaged over batches, show between conditions ("realised"), or is
a fitted model's, whose terms are set against those of the truth (last tables).

1. Source and conditions in one batch: ε is the square of (∇F - 1) η, zero only if ∇F = 1.
2. More batches with controls reduce ε.
3. Noise of a condition's own batches is irreducible: the first term of the last line of eq. 22,
   which is only an upper bound; and a Lipschitz gradient bounds what is beyond the first order.

Anchors: RMS of the batch noise itself; the error of saying "nothing changes".

Seeds 0 to 99 (truth) and 7000 on (fits); nothing was chosen by their figures.

    python benchmarks/error_analysis.py
"""

from __future__ import annotations

import argparse

import numpy as np
import pandas as pd
import torch
from code_state import FIT
from common import part_of, quiet, write_results

import pyrocell
from pyrocell import simulate
from pyrocell.design.error_analysis import TERMS, error_analysis, error_terms
from pyrocell.guide.encoder import state_shift

ROOMS = (*FIT, "design")  # that the figures depend on
K, GENES, BATCHES, SD = 12, 60, 6, 0.2
SETTINGS = {"n_perturbations": K, "n_genes": GENES, "n_batches": BATCHES, "batch_sd": SD}
SETTINGS["effect_rms"] = 0.2


def layout(source: int, spread: int, cells: int = 40, controls: int = 150) -> np.ndarray:
    """Cells (1, 1 + K, 1, B): controls in the first batches, perturbations in `spread` each."""
    table = np.zeros((1, 1 + K, 1, BATCHES), int)
    table[0, 0, 0, :source] = controls
    for k in range(K):
        table[0, 1 + k, 0, (k + np.arange(spread) * max(1, BATCHES // spread)) % BATCHES] = cells
    return table


def terms(
    truth: dict, held: np.ndarray, depth: float | None, eta: np.ndarray | None = None
) -> dict:
    """Terms of ε under the truth; `depth` None: ∇F = 1."""
    eta = np.asarray(truth["eta"], float) if eta is None else eta
    first = eta
    if depth is not None:
        mean = 1000 * np.asarray(truth["expression"], float).ravel()
        mean = mean / mean.sum() * 1000
        loading = np.asarray(truth["resting_loading"], float)
        arrays = (eta, np.full(len(eta), depth), loading, mean, np.full(GENES, 2.0))
        moved = state_shift(*(torch.as_tensor(a, dtype=torch.float64) for a in arrays))
        first = moved.numpy() @ loading
        share = mean / mean.sum()
        first = first - (first @ share)[:, None]
    return error_terms(eta, first[None], np.zeros_like(first)[None], held, held[0])


def truths(n: int) -> list[dict]:
    """Biology and batch noise of n screens."""
    few = layout(BATCHES, BATCHES, 1, 1)
    return [simulate.screen(seed=s, cells=few, **SETTINGS).uns["truth"] for s in range(n)]


def first_conclusion(screens: list[dict]) -> pd.DataFrame:
    """ε of one batch that holds everything, as a share of the noise's own mean square."""
    rows = []
    held = np.zeros((1 + K, BATCHES), bool)
    held[:, 0] = True
    rng = np.random.default_rng(0)
    for truth in screens:
        loading = np.asarray(truth["resting_loading"], float)
        along = rng.normal(size=(BATCHES, len(loading))) @ loading
        for name, noise in {"any": np.asarray(truth["eta"], float), "of cell state": along}.items():
            for depth in (1.0, 10.0, 100.0, None):
                found = terms(truth, held, depth, noise)["total"].mean()
                gradient = "1" if depth is None else f"source of {depth:g} cells"
                rows.append((name, gradient, found / (noise[0] ** 2).mean()))
    table = pd.DataFrame(rows, columns=["noise", "gradient", "share"])
    return table.pivot_table(index="gradient", columns="noise", values="share", sort=False)


def second_conclusion(screens: list[dict]) -> pd.DataFrame:
    """RMS error by the number of batches with controls."""
    rows = []
    for source in (1, 2, 3, BATCHES):
        for name, held in {
            "perturbations in 1 of 6 batches": layout(source, 1)[0, :, 0] > 0,
            "in 2": layout(source, 2)[0, :, 0] > 0,
            "all in the first batch": layout(source, 1)[0, :, 0] > 0,
        }.items():
            if name.startswith("all"):
                held[1:] = np.arange(BATCHES) == 0
            for depth in (None, 100.0):
                error = np.mean([terms(t, held, depth)["total"][1:].mean() for t in screens])
                gradient = "∇F = 1" if depth is None else "100 cells"
                rows.append((f"{name}, {gradient}", source, np.sqrt(error)))
    table = pd.DataFrame(rows, columns=["perturbations", "controls in", "error"])
    return table.pivot_table(
        index="perturbations", columns="controls in", values="error", sort=False
    )


def third_conclusion(screens: list[dict]) -> pd.DataFrame:
    """Own-batch term and ε against their bounds, RMS, by batches per perturbation."""
    rows = []
    for spread in (1, 2, 3, BATCHES):
        held = layout(BATCHES, spread)[0, :, 0] > 0
        found = [terms(t, held, None) for t in screens]
        row = {name: np.sqrt(np.mean([f[name][1:].mean() for f in found]))
               for name in ("own", "own_bound", "total", "bound")}  # fmt: skip
        row["expected own"] = SD * np.sqrt(1 / spread - 1 / BATCHES)
        assert all((f["bound"] >= f["total"] - 1e-12).all() for f in found)
        rows.append({"batches": spread, **row})
    return pd.DataFrame(rows).set_index("batches")


def realised(n: int) -> pd.DataFrame:
    """ε of a map learned from counts (∇F = 1) against what eq. 20 says before any cell is seen."""
    rows = []
    for s in range(n):
        source, spread = ((1, 1), (1, 3), (3, 2), (6, 1), (6, 2))[s % 5]
        cells = layout(source, spread, 150, 300)
        adata = simulate.screen(seed=s, cells=cells, **SETTINGS)
        truth, held = adata.uns["truth"], cells[0, :, 0] > 0
        share = np.asarray(truth["expression"], float).ravel()
        label = adata.obs["perturbation"].astype(str).to_numpy()
        batch = adata.obs["batch"].astype(str).to_numpy()

        def level(name: str, adata=adata, label=label, batch=batch, share=share) -> tuple:
            """Mean over batches of log pseudobulk, and the variance of its sampling error."""
            groups = [(label == name) & (batch == b) for b in sorted(set(batch[label == name]))]
            cells = [adata.X[g].toarray() for g in groups]
            logs = np.mean([np.log(x.sum(0) + 0.5) - np.log(len(x)) for x in cells], 0)
            each = [x.var(0) / x.mean(0).clip(1e-3) ** 2 / len(x) for x in cells]
            return logs - logs @ share / share.sum(), np.mean(each) / len(each)

        effect = truth["effect"]
        control, sampling = level("control")
        levels = [level(p) for p in effect.index]
        learned = np.array([value for value, _ in levels]) - control
        sampling += np.mean([variance for _, variance in levels])
        error = ((learned - effect.to_numpy(float)) ** 2).mean()
        nothing = (effect.to_numpy(float) ** 2).mean()
        epsilon = terms(truth, held, None)["total"][1:].mean()
        rows.append((source, spread, epsilon, sampling, epsilon + sampling, error, nothing))
    columns = "controls_in spread epsilon sampling expected realised nothing".split()
    return pd.DataFrame(rows, columns=columns)


def fitted(source: int, spread: int, seed: int) -> pd.DataFrame:
    """Terms of a fitted model's ε beside the truth's, mean over conditions."""
    cells = layout(source, spread)
    adata = simulate.screen(seed=seed, cells=cells, **SETTINGS)
    pyrocell.PyroCell.setup_anndata(adata)
    model = pyrocell.PyroCell(adata, n_latent=3, n_response=3, n_hidden=32)
    model.train(progress_bar=False, seed=seed)
    table = error_analysis(model, 200)
    table = table[table["perturbation"] == "all"].set_index("term")
    left = error_analysis(model, 200, remaining=True)
    left = left[left["perturbation"] == "all"].set_index("term")["mean"]
    truth, held = adata.uns["truth"], cells[0, :, 0] > 0
    true = terms(truth, held, 1.0)
    known = model.batch_effects(200).pivot(index="batch", columns="gene", values="mean")
    unknown = truth["eta"] - known.reindex_like(truth["eta"])
    true_left = terms(truth, held, 1.0, unknown.to_numpy(float))
    return pd.DataFrame(
        {
            "controls in": source,
            "spread": spread,
            "true": [true[t].mean() for t in TERMS],
            **{name: table.loc[list(TERMS), name] for name in ("mean", "lower", "upper")},
            "true left": [true_left[t].mean() for t in TERMS],
            "left by this model": left.loc[list(TERMS)],
        },
        index=list(TERMS),
    )


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--screens", type=int, default=100)
    parser.add_argument("--realised", type=int, default=40)
    parser.add_argument("--fits", type=int, default=3)
    args = parser.parse_args()
    quiet()
    screens = truths(args.screens)
    one, two, three = (
        first_conclusion(screens),
        second_conclusion(screens),
        third_conclusion(screens),
    )
    seen = realised(args.realised)
    for title, table in {
        "1. one batch: ε as a share of the noise": one,
        "2. RMS error by batches with controls": two,
        "3. RMS of terms and bounds, ∇F = 1, controls everywhere": three,
        "ε from counts (mean square)": seen.groupby(["controls_in", "spread"]).mean(),
    }.items():
        print(f"\n{title}\n{table.round(4).to_string()}")
    fits = [fitted(*((1, 1), (6, 2), (2, 3))[i % 3], 7000 + i) for i in range(args.fits)]
    inside = [((f["lower"] <= f["true"]) & (f["true"] <= f["upper"]))
              [["own", "total", "bound", "own_bound", "same_batch"]] for f in fits]  # fmt: skip
    for table in fits:
        print(f"\nfitted\n{table.round(5).to_string()}")
    write_results(
        "error_analysis",
        {
            part_of(parser, args): {
                "noise_rms": SD * np.sqrt(1 - 1 / BATCHES),
                "one_batch_share": {c: one[c].to_dict() for c in one},
                "error_by_batches_with_controls": {r: two.loc[r].to_dict() for r in two.index},
                "own_rms": three["own"].to_dict(),
                "own_bound_rms": three["own_bound"].to_dict(),
                "realised_expected_r": np.corrcoef(seen["expected"], seen["realised"])[0, 1],
                "realised_over_expected": seen["realised"].sum() / seen["expected"].sum(),
                "nothing_changes": seen["nothing"].mean(),
                "fitted_terms_inside": [float(x.mean()) for x in inside],
                "fitted_total": [f["mean"]["total"] for f in fits],
                "true_total": [f["true"]["total"] for f in fits],
            }
        },
        [*range(args.screens), *range(7000, 7000 + args.fits)],
        rooms=ROOMS,
    )


if __name__ == "__main__":
    main()
