"""Four seeded fits and everything they say, to be compared before and after code is rearranged.

    python benchmarks/fixed_answers.py before.npz
    python benchmarks/fixed_answers.py after.npz --against before.npz

Exits with 1 where a number differs by more than `--rtol` of the largest of its column.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from common import quiet
from joblib import Parallel, delayed

import pyrocell
from pyrocell import simulate

SMALL = {"n_latent": 3, "n_response": 4, "n_hidden": 32}


def stimulation() -> tuple[ad.AnnData, dict, dict]:
    """Two media, one time, guides of eight knockouts."""
    adata = simulate.screen(
        seed=5, n_perturbations=8, n_genes=80, n_cells_per_condition=40, media=1, n_batches=2
    )
    return adata, {"media_key": "media"}, {}


def hipsc() -> tuple[ad.AnnData, dict, dict]:
    """Every third cell of the embedded time course."""
    adata = pyrocell.datasets.hipsc_timecourse()[::3].copy()
    return adata, {"time_key": "time", "size_factor_key": "size_factor"}, {}


def flow() -> tuple[ad.AnnData, dict, dict]:
    """Three times under a velocity field."""
    adata = simulate.screen(
        seed=6, n_perturbations=4, n_genes=40, n_cells_per_condition=20, times=(1.0, 2.0, 4.0)
    )
    return adata, {"time_key": "time"}, {"dynamics": "flow"}


def arms() -> tuple[ad.AnnData, dict, dict]:
    """Combinations, and cells that met the medium before or after they were perturbed."""
    adata = simulate.screen(
        seed=7, n_perturbations=4, n_genes=40, n_cells_per_condition=40, media=1, times=(2.0, 4.0)
    )
    rng = np.random.default_rng(7)
    label = adata.obs["perturbation"].astype(str).to_numpy(copy=True)
    first, second = sorted(set(label) - {"control"})[:2]
    both = np.flatnonzero(label == second)[::2]
    label[both] = f"{first}+{second}"
    adata.obs["perturbation"] = label
    late = rng.integers(0, 2, (adata.n_obs, 2))
    adata.obs["perturbed_at"] = np.where(late[:, 0] & (label != "control"), 1.0, 0.0)
    exposed = adata.obs["media"] != "baseline"
    adata.obs["exposed_at"] = np.where(late[:, 1] & ~late[:, 0] & exposed, 1.0, 0.0)
    keys = {"perturbation_time_key": "perturbed_at", "media_time_key": "exposed_at"}
    return adata, {"time_key": "time", "media_key": "media"} | keys, {"interactions": True}


SCREENS = {"hipsc": hipsc, "stimulation": stimulation, "flow": flow, "arms": arms}


def answers(name: str) -> dict[str, np.ndarray]:
    """History, draws and tables of one fit, as named arrays."""
    quiet()
    adata, setup, options = SCREENS[name]()
    pyrocell.PyroCell.setup_anndata(adata, **setup)
    model = pyrocell.PyroCell(adata, **SMALL | options)
    model.train(max_epochs=6, progress_bar=False, seed=3)
    screen = model.screen
    where = {"time": screen.times[-1]} if screen.times else {}
    conditions = pd.DataFrame(
        [
            {"perturbation": p, "batch": b, **where}
            for p in screen.perturbations[:2]
            for b in (screen.batches[0], "new")
        ]
    )
    asked = {
        "history": lambda: model.history,
        "testability": model.testability,
        "assumptions": model.assumptions,
        "effects": lambda: model.perturbation_effects(**where, n_samples=40),
        "unshrunken": lambda: model.perturbation_effects(**where, shrunken=False),
        "checks": model.effect_checks,
        "batch_effects": lambda: model.batch_effects(n_samples=40),
        "gains": lambda: model.media_gains(n_samples=40),
        "predict": lambda: model.predict(conditions, n_samples=40),
        "latent": model.get_latent_representation,
        "expression": model.get_normalized_expression,
        "predictive_check": lambda: model.posterior_predictive_check(n_samples=20),
        "steady_state": lambda: model.steady_state_screen(n_draws=40, n_splits=5),
        "marginal_ll": lambda: model.get_marginal_ll(n_mc_samples=5),
        "simulate_cells": lambda: model.simulate_cells(conditions[:1], n_cells=20),
    }
    out = {f"draws/{site}": v for site, v in model.posterior_samples(10).items()}
    for question, ask in asked.items():
        try:
            out |= numbers(question, ask())
        except pyrocell.errors.PyrocellError as refusal:
            out[f"{question}/refused"] = np.array(str(refusal))
    return {f"{name}/{key}": value for key, value in out.items()}


def numbers(question: str, answer: object) -> dict[str, np.ndarray]:
    """Columns of a table, arrays, or one number."""
    if isinstance(answer, ad.AnnData):
        layers = {"X": answer.X, **answer.layers}
        columns = {k: v.toarray() if hasattr(v, "toarray") else v for k, v in layers.items()}
    elif isinstance(answer, pd.DataFrame):
        columns = {str(c): answer[c].to_numpy() for c in answer.columns}
    elif hasattr(answer, "data_vars"):
        columns = {str(c): np.asarray(v) for c, v in answer.data_vars.items()}
    else:
        columns = {"": np.asarray(answer)}
    text = {c: v.astype(str) if v.dtype == object else v for c, v in columns.items()}
    return {f"{question}/{c}": v for c, v in text.items()}


def compared(after: dict, before: dict, rtol: float) -> list[str]:
    """What differs, one line each."""
    out = [f"{key}: only in one" for key in sorted(set(before) ^ set(after))]
    for key in sorted(set(before) & set(after)):
        a, b = np.asarray(after[key]), np.asarray(before[key])
        if a.shape != b.shape:
            out.append(f"{key}: shape {a.shape}, was {b.shape}")
        elif a.dtype.kind in "US" or b.dtype.kind in "US":
            if not (a == b).all():
                where = np.flatnonzero((a != b).ravel())[0]
                out.append(f"{key}: {a.ravel()[where]!r}, was {b.ravel()[where]!r}")
        else:
            a, b = a.astype(float), b.astype(float)
            finite = np.isfinite(b)
            scale = np.abs(b[finite]).max(initial=0.0)
            same = np.array_equal(np.isfinite(a), finite)
            worst = np.abs(a - b)[finite].max(initial=0.0) if same else np.inf
            if worst > rtol * scale:
                out.append(f"{key}: off by {worst:.3g}, largest {scale:.3g}")
    return out


def main() -> int:
    """Record, and compare if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--against", type=Path)
    parser.add_argument("--rtol", type=float, default=1e-6)
    parser.add_argument("--screens", nargs="+", default=list(SCREENS))
    args = parser.parse_args()
    after: dict = {}
    for found in Parallel(n_jobs=2)(delayed(answers)(name) for name in args.screens):
        after |= found
    np.savez_compressed(args.output, **after)
    if args.against is None:
        return 0
    with np.load(args.against) as stored:
        before = {k: stored[k] for k in stored.files if k.split("/")[0] in args.screens}
    differences = compared(after, before, args.rtol)
    print(f"{len(after)} arrays, {len(differences)} differ")
    print("\n".join(differences))
    return int(bool(differences))


if __name__ == "__main__":
    raise SystemExit(main())
