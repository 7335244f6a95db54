"""Strength of guides and cells that escaped: simulated with known truth, and a real screen.

python benchmarks/guides.py [--parts simulated plain real] [--jobs 1]

`simulated`: guides of efficacy 1, .9, .6, .3 and a fifth of the cells that did not respond, 100
cells a guide. Efficacies in units of the perturbation's average responding cell; perturbations
whose effects have a root mean square of .1 or more. Cells called beside Mixscape of pertpy, if it
is installed, and beside the anchor without a model: the projection of a cell's log-normalised
counts, less the controls' mean, on the mean difference of its label. `plain`: no escapers, equal
guides: is anything lost. `real`: THP-1 cells with guides of IFNGR1, IFNGR2, JAK2 and STAT1; half
of the genes of the interferon response are left out of every fit, and tell afterwards who
responded. And the guides of each perturbation shuffled among its cells.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import warnings
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
from code_state import FIT
from common import covered, quiet, run_all, shared, write_results
from effect_screens import screen
from sklearn.metrics import roc_auc_score

import pyrocell

ROOMS = FIT
SEEDS = (301, 302)
SIZE: dict[str, Any] = {"n_perturbations": 20, "n": 300}
LEAST = 0.1  # root mean square of effects that are judged
SLACK = 0.03  # truths of untouched genes are not exactly zero, and a spike is
PATHWAY = ("IFNGR1", "IFNGR2", "JAK2", "STAT1")
BESIDE = ("CAV1", "CD86", "ETV7", "UBE2L6", "CMTM6")


def fitted(cells: ad.AnnData, guides: bool, seed: int) -> pyrocell.PyroCell:
    """A default fit, with guides or all cells of a label alike."""
    pyrocell.PyroCell.setup_anndata(cells, guide_key="guide" if guides else None)
    model = pyrocell.PyroCell(cells)
    model.train(seed=seed, progress_bar=False)
    return model


def calibration_error(p: np.ndarray, truth: np.ndarray, bins: int = 10) -> float:
    """Mean distance of stated and seen frequencies, in ten equal bins."""
    place = np.clip((p * bins).astype(int), 0, bins - 1)
    parts = [place == b for b in range(bins) if (place == b).any()]
    return float(sum(abs(p[b].mean() - truth[b].mean()) * b.mean() for b in parts))


# ---------------------------------------------------------------------- others
def logged(cells: ad.AnnData) -> ad.AnnData:
    """Log-normalised counts."""
    out = cells.copy()
    sc.pp.normalize_total(out)
    sc.pp.log1p(out)
    return out


def mixscape(cells: ad.AnnData) -> np.ndarray | None:
    """Posterior of Mixscape, as its documentation advises; NaN where it gives none."""
    if importlib.util.find_spec("pertpy") is None:
        return None
    import pertpy

    out = logged(cells)
    out.obs["perturbation"] = out.obs["perturbation"].astype(str)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        sc.pp.pca(out)
        tool = pertpy.tl.Mixscape()
        tool.perturbation_signature(out, "perturbation", "control", split_by="batch")
        tool.mixscape(out, "perturbation", "control", split_by=None)
    column = next(c for c in out.obs if str(c).startswith("mixscape_class_p_"))
    return out.obs[column].astype(float).to_numpy()


def projected(cells: ad.AnnData) -> np.ndarray:
    """Projection of each cell on the mean difference of its label."""
    out = logged(cells)
    values, label = out.X.toarray(), out.obs["perturbation"].astype(str).to_numpy()
    batch = out.obs["batch"].astype(str).to_numpy()
    found = np.zeros(len(label))
    for b in np.unique(batch):
        values[batch == b] -= values[(batch == b) & (label == "control")].mean(0)
    for p in np.unique(label):
        mine = label == p
        found[mine] = values[mine] @ values[mine].mean(0)
    return found


# ---------------------------------------------------------------------- known truth
def truth_of(cells: ad.AnnData, escape: float) -> dict[str, np.ndarray]:
    """(P, G) log fold changes of the average responding cell, and of all cells."""
    obs, names = cells.obs, cells.uns["perturbations"]
    effects = cells.varm["implanted"].T
    responding = np.zeros_like(effects)
    for i, name in enumerate(names):
        mine = obs[obs["perturbation"] == name].groupby("guide", observed=True)["efficacy"].first()
        responding[i] = np.log(np.mean([np.exp(a * effects[i]) for a in mine], 0))
    return {"responding": responding, "all": np.log(escape + (1 - escape) * np.exp(responding))}


def scored(model: pyrocell.PyroCell, cells: ad.AnnData, truth: np.ndarray) -> dict[str, float]:
    """Error and coverage of a table of effects."""
    table = model.perturbation_effects()
    wide = {
        c: table.pivot(index="perturbation", columns="gene", values=c)
        .loc[cells.uns["perturbations"], cells.var_names]
        .to_numpy()
        for c in ("mean", "lower", "upper", "fdr")
    }
    active = cells.varm["implanted"].T != 0
    lower, upper = wide["lower"] - SLACK, wide["upper"] + SLACK
    called = wide["fdr"] <= 0.1
    return {
        "rmse": float(np.sqrt(((wide["mean"] - truth) ** 2).mean())),
        "inside": covered(lower, upper, truth),
        "inside, moved": covered(lower[active], upper[active], truth[active]),
        "false at 10%": float((~active)[called].mean()) if called.any() else 0.0,
        "power": float(called[active].mean()),
    }


def simulated(seed: int) -> dict[str, Any]:
    """Guides that differ, and cells that escape."""
    cells = screen(seed, guides=True, escape=0.2, **SIZE)
    model, alike = fitted(cells, True, seed), fitted(cells, False, seed)
    truth = truth_of(cells, 0.2)
    found = model.guides()
    own = cells.obs.groupby("guide", observed=True)[["efficacy", "responded"]]
    found = found.join(
        own.agg({"efficacy": "first", "responded": "mean"}), "guide", rsuffix="_true"
    )
    share = found["n_cells"] * found["responded"]
    weighted = (found["efficacy_true"] * share).groupby(found["perturbation"]).transform("sum")
    usual = weighted / share.groupby(found["perturbation"]).transform("sum")
    found["relative"] = found["efficacy_true"] / usual
    size = pd.Series(np.sqrt((cells.varm["implanted"] ** 2).mean(0)), cells.uns["perturbations"])
    strong = set(size.index[size >= LEAST])
    seen = found[found["perturbation"].isin(strong)]
    silent = found[~found["perturbation"].isin(strong)]
    judged = cells.obs["perturbation"].isin(strong).to_numpy()
    p = model.response_probability().to_numpy()[judged]
    responded = cells.obs["responded"].to_numpy()[judged]
    other = mixscape(cells)
    out = {
        "seed": seed,
        "efficacy r": float(np.corrcoef(seen["efficacy"], seen["relative"])[0, 1]),
        "efficacy inside": covered(seen["lower"], seen["upper"], seen["relative"]),
        "escapers, mean error": float((seen["responded"] - seen["response_share"]).abs().mean()),
        "escapers inside": covered(
            seen["response_lower"], seen["response_upper"], seen["responded"]
        ),
        "calibration error": calibration_error(p, responded),
        "auroc": float(roc_auc_score(responded, p)),
        "auroc, projection": float(roc_auc_score(responded, projected(cells)[judged])),
        "auroc, mixscape": None,
        "calibration error, mixscape": None,
        "silent: efficacy of 1 inside": covered(
            silent["lower"], silent["upper"], np.ones(len(silent))
        ),
        "agree, least": float(found["agree"].min()),
        "effects with guides": scored(model, cells, truth["responding"]),
        "effects, labels alike": scored(alike, cells, truth["responding"]),
        "effects, labels alike, of all cells": scored(alike, cells, truth["all"]),
    }
    if other is not None:
        other = np.nan_to_num(other[judged], nan=0.0)
        out["auroc, mixscape"] = float(roc_auc_score(responded, other))
        out["calibration error, mixscape"] = calibration_error(other, responded)
    return out


def plain(seed: int) -> dict[str, Any]:
    """No escapers and equal guides."""
    cells = screen(seed, **SIZE)
    truth = truth_of(cells, 0.0)["responding"]
    model, alike = fitted(cells, True, seed), fitted(cells, False, seed)
    found = model.guides()
    with_guides, without = scored(model, cells, truth), scored(alike, cells, truth)
    return {
        "seed": seed,
        "effects with guides": with_guides,
        "effects, labels alike": without,
        "rmse ratio": with_guides["rmse"] / without["rmse"],
        "efficacy of 1 inside": covered(found["lower"], found["upper"], np.ones(len(found))),
        "response share, mean": float(found["response_share"].mean()),
        "agree, least": float(found["agree"].min()),
    }


# ---------------------------------------------------------------------- a real screen
def thp1(seed: int) -> tuple[ad.AnnData, ad.AnnData]:
    """Cells of the pathway's perturbations and some others, and the genes that are held out."""
    cells = shared("papalexi2021_thp1_eccite.h5ad")
    label = cells.obs["perturbation"].astype(str)
    cells = cells[label.isin(["control", *PATHWAY, *BESIDE])].copy()
    cells.obs["guide"] = cells.obs["guide"].astype(str).replace({"nan": "", "None": ""})
    mean = logged(cells)
    label = mean.obs["perturbation"].astype(str).to_numpy()
    moved = np.mean(
        [
            np.asarray(mean.X[label == p].mean(0) - mean.X[label == "control"].mean(0)).ravel()
            for p in PATHWAY
        ],
        0,
    )
    genes = np.argsort(moved)[:40]  # that the interferon response rests on
    held = np.random.default_rng(seed).permutation(genes)[:20]
    own = [g for g, name in enumerate(cells.var_names) if name in PATHWAY]
    kept = np.setdiff1d(np.arange(cells.n_vars), [*held, *own])
    return cells[:, kept].copy(), mean[:, np.setdiff1d(held, own)].copy()


def real(seed: int) -> dict[str, Any]:
    """Who responded, judged by genes that no fit saw."""
    cells, held = thp1(seed)
    label, batch = (cells.obs[c].astype(str).to_numpy() for c in ("perturbation", "batch"))
    score = np.asarray(held.X.mean(1)).ravel()
    for b in np.unique(batch):
        score[batch == b] -= score[(batch == b) & (label == "control")].mean()
    model = fitted(cells, True, seed)
    p = model.response_probability().to_numpy()
    methods = {"pyrocell": p, "projection": projected(cells), "mixscape": mixscape(cells)}
    out: dict[str, Any] = {"seed": seed, "auroc": {}}
    middle = score[label == "control"]
    for name, value in methods.items():
        if value is None:
            continue
        each = []
        for k in PATHWAY:
            mine = label == k
            # held-out genes below nearly all controls: the pathway is off in this cell
            off = score[mine] < np.quantile(middle, 0.05)
            each.append(roc_auc_score(off, np.nan_to_num(value[mine], nan=0.0)))
        out["auroc"][name] = dict(zip(PATHWAY, map(float, each)), mean=float(np.mean(each)))
    table = model.guides()
    found = table[table["perturbation"].isin(PATHWAY)]
    columns = "perturbation guide n_cells efficacy lower upper response_share agree".split()
    out["guides"] = found[columns].round(3).to_dict("records")
    out["shuffled"] = _shuffled(cells, seed)
    return out


def _shuffled(cells: ad.AnnData, seed: int) -> dict[str, Any]:
    """Guides shuffled among the cells of a perturbation: all agree, and none is stronger."""
    other, rng = cells.copy(), np.random.default_rng(seed)
    guide = other.obs["guide"].to_numpy().copy()
    groups = other.obs.groupby(["perturbation", "batch"], observed=True).indices
    for rows in groups.values():
        guide[rows] = guide[rng.permutation(rows)]
    other.obs["guide"] = guide
    model = fitted(other, True, seed)
    found = model.guides()
    table = model.assumptions()
    agree = table[(table["assumption"] == "guides_agree") & table["testable"]]["posterior"]
    return {
        "efficacy of 1 inside": covered(found["lower"], found["upper"], np.ones(len(found))),
        "guides_agree, mean": float(agree.mean()),
        "guides_agree, least": float(agree.min()),
        "perturbations": len(agree),
    }


PARTS = {"simulated": simulated, "plain": plain, "real": real}


def main() -> None:
    """Run the parts asked for, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    asked = parser.parse_args()
    quiet()
    for part in asked.parts:
        seeds = asked.seeds[:1] if part == "real" else asked.seeds
        rows = run_all(PARTS[part], [(seed,) for seed in seeds], asked.jobs)
        write_results("guides", {part: rows}, asked.seeds, rooms=ROOMS)


if __name__ == "__main__":
    main()
