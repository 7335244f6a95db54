"""What batch noise must not be taken for: media in lanes of their own, guides that do nothing.

lanes: simulated screens in which every medium has lanes of its own. The response c to the medium
and the noise Δη of its lanes are aliased. Told their sum S, the posterior of c is its prior given
S, N(C (C + E)⁻¹ S, C − C (C + E)⁻¹ C), C the prior covariance of c over genes, E that of Δη; S has
an error of its own. Figures: its sd in the fit over that of this law; the share of true responses
inside 90% intervals, of the fit and of the law; of genes with a direction at 95% those with the
wrong one; rows of the table of assumptions that are not testable and not at their prior. Anchor:
the intervals that sampling noise alone would give.

lines: simulated screens in two cell lines, registered as media; a quarter of the perturbations is
measured in one of them only. Their effects in the other are independent ("own"), or the same
("same"). RMSE of `transfer_effects`, of the fit (which adds effects), of no change.

papalexi: half of the non-targeting guides are given labels of their own, beside up to 120 cells of
each knockout. Share of pseudo-effects (gene level) whose 95% interval leaves out 0, and of genes of
real knockouts; anchor: the same of Wald intervals of pooled log ratios, Poisson errors.

    python benchmarks/batch_honesty.py --parts lanes lines papalexi
"""

from __future__ import annotations

import argparse
import warnings

import numpy as np
import pandas as pd
from batch_recovery import gauge
from common import covered, quiet, report, run_all, shared
from real_screens import usable

import pyrocell
from pyrocell.transfer import transfer_effects

# lanes per medium, seed
LANES = [(1, 401), (3, 402)]
SETTINGS = {"n_perturbations": 10, "n_genes": 100, "media": 1, "batch_sd": 0.2, "media_rms": 0.4}
PER_KNOCKOUT = 120


def lanes(per_medium: int, seed: int) -> dict:
    """A medium in lanes of its own."""
    quiet()
    cells = np.zeros((2, 11, 1, 2 * per_medium), int)
    for m in range(2):
        mine = slice(m * per_medium, (m + 1) * per_medium)
        cells[m, 0, 0, mine], cells[m, 1:, 0, mine] = 300 // per_medium, 45 // per_medium
    adata = pyrocell.simulate.screen(
        **SETTINGS, n_batches=2 * per_medium, cells=cells, blocked_fraction=0.0, seed=seed
    )
    truth = adata.uns["truth"]
    weights = np.asarray(truth["expression"], float).ravel()
    pyrocell.PyroCell.setup_anndata(adata, media_key="media")
    model = pyrocell.PyroCell(adata)
    model.train(progress_bar=False, seed=seed)
    draws = model._queries.posterior.draws(400)
    generative, n = model.module.model, per_medium
    response, noise = [], []
    for values in draws:
        shift = generative.shift(values, generative.conditions).detach().numpy()
        table = model.screen.conditions
        rows = [model.screen.condition_of("control", m) for m in ("baseline", "medium0")]
        assert table["perturbation"].iloc[rows].eq("control").all()
        response.append(shift[rows[1]] - shift[rows[0]])
        eta = values["eta"].detach().numpy()
        noise.append(eta[n:].mean(0) - eta[:n].mean(0))
    response, noise = (gauge(np.array(x, float), weights) for x in (response, noise))
    mean = prior_widths(model)
    prior, error = mean["prior"], 2 / n * np.diag(mean["eta_sd"] ** 2)
    gain = prior @ np.linalg.inv(prior + error)
    law_mean = gauge(gain @ (response + noise).mean(0), weights)
    centre = np.eye(len(weights)) - np.outer(np.ones(len(weights)), weights / weights.sum())
    law = prior - gain @ prior + gain @ np.cov((response + noise).T) @ gain.T
    law_sd = np.sqrt(np.diag(centre @ law @ centre.T))
    true = gauge(np.asarray(truth["media_effect"], float), weights)[0]
    lower, upper = np.percentile(response, [5, 95], axis=0)
    direction = np.maximum((response > 0).mean(0), (response < 0).mean(0)) >= 0.95
    wrong = np.sign(response.mean(0)) != np.sign(true)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assumed = model.assumptions(n_samples=2)
    untold = assumed[~assumed.testable]
    summed = (response + noise).std(0)
    total = (response + noise).mean(0)
    return {
        "part": "lanes",
        "per_medium": n,
        "seed": seed,
        "named": bool((model.screen.aliased_contrasts["name"] == "medium0").any()),
        "sd": float(np.sqrt(np.mean(response.var(0)))),
        "sd_over_law": float(np.sqrt(np.mean(response.var(0)) / np.mean(law_sd**2))),
        "sd_of_sum": float(np.sqrt(np.mean(summed**2))),
        "eta_sd": float(mean["eta_sd"].mean()),
        "coverage": covered(lower, upper, true),
        "coverage_law": covered(law_mean - 1.645 * law_sd, law_mean + 1.645 * law_sd, true),
        "coverage_sampling": covered(total - 1.645 * summed, total + 1.645 * summed, true),
        "directions": int(direction.sum()),
        "wrong_directions": int((direction & wrong).sum()),
        "rows_off_prior": int((untold.posterior != untold.prior).sum()),
    }


def prior_widths(model) -> dict[str, np.ndarray]:
    """Prior covariance of the response over genes, loadings free, and sd of η, (G,)."""
    generative, priors = model.module.model, model.module.priors
    loading = generative.loading.detach().numpy().astype(float)
    variance = priors.media_effect_sd**2 * ((loading**2).sum(0) + generative.config.n_response)
    sd = model.posterior_samples(50, ["eta.scale"])["eta.scale"].astype(float)
    return {"prior": np.diag(variance), "eta_sd": np.sqrt((sd**2).mean(0))}


def papalexi(seed: int) -> dict:
    """Guides that do nothing, as perturbations."""
    quiet()
    adata = usable(shared("papalexi2021_thp1_eccite.h5ad"))
    rng = np.random.default_rng(seed)
    labels = adata.obs["perturbation"].astype(str).to_numpy().copy()
    guides = adata.obs["guide"].astype(str).to_numpy()
    numbers = pd.Series(guides[labels == "control"]).value_counts()
    kinds = list(numbers.index[numbers >= 50][::2])
    rows = (labels == "control") & np.isin(guides, kinds)
    labels[rows] = guides[rows]
    keep = np.concatenate(
        [
            found if name in ("control", *kinds) else rng.permutation(found)[:PER_KNOCKOUT]
            for name, found in pd.Series(labels).groupby(labels).indices.items()
        ]
    )
    keep = np.sort(keep)
    adata, labels = adata[keep].copy(), labels[keep]
    adata.obs["perturbation"] = pd.Categorical(labels)
    pyrocell.PyroCell.setup_anndata(adata)
    model = pyrocell.PyroCell(adata)
    model.train(seed=seed, progress_bar=False)
    table = model.perturbation_effects(n_samples=1000, credible_level=0.95)
    out = (table.lower > 0) | (table.upper < 0)
    null = table.perturbation.isin(kinds)
    by_guide = out[null].groupby(table.perturbation[null]).mean()
    return {
        "part": "papalexi",
        "seed": seed,
        "cells": len(adata),
        "guides": len(kinds),
        "excluding_zero": float(out[null].mean()),
        "by_guide": by_guide.round(4).to_dict(),
        "real_excluding_zero": float(out[~null].mean()),
        "anchor_poisson": wald(adata, labels, kinds),
    }


def wald(adata, labels: np.ndarray, kinds: list[str]) -> float:
    """Share of pooled log ratios to the controls beyond 1.96 Poisson standard errors."""

    def pooled(name: str) -> np.ndarray:
        return np.asarray(adata.X[labels == name].sum(0), float).ravel() + 0.5

    control, outside = pooled("control"), []
    for kind in kinds:
        mine = pooled(kind)
        ratio = np.log(mine / mine.sum()) - np.log(control / control.sum())
        outside.append(np.abs(ratio) > 1.96 * np.sqrt(1 / mine + 1 / control))
    return float(np.mean(outside))


def lines(kind: str, seed: int) -> dict:
    """Two cell lines; effects of the second are its own, or those of the first."""
    quiet()
    k, held = 24, 6
    changes = {"n_perturbations": 2 * k if kind == "own" else k, "n_cells_per_condition": 60}
    changes |= {"n_genes": 100, "n_controls": 600, "effect_rms": 0.2, "silent_fraction": 0.25}
    adata = pyrocell.simulate.screen(**changes, seed=seed)
    truth = adata.uns["truth"]
    names = list(truth["effect"].index)
    label = adata.obs["perturbation"].astype(str).to_numpy().copy()
    first = np.random.default_rng(seed).random(len(label)) < 0.5
    line = np.where(first, "one", "two")
    if kind == "own":
        for a, b in zip(names[:k], names[k:], strict=True):
            line[label == a], line[label == b] = "one", "two"
            label[label == b] = a
    keep = ~((line == "two") & np.isin(label, names[:held]))
    adata.obs["perturbation"], adata.obs["line"] = label, line
    adata = adata[keep].copy()
    pyrocell.PyroCell.setup_anndata(adata, media_key="line", baseline_media="one")
    model = pyrocell.PyroCell(adata)
    model.train(progress_bar=False, seed=seed)
    weights = np.asarray(truth["expression"], float).ravel()
    every = gauge(truth["effect"].to_numpy(float), weights)
    true = every[k : k + held] if kind == "own" else every[:held]
    table = transfer_effects(model, "two", perturbations=names[:held])
    wide = lambda column: table[column].to_numpy().reshape(held, -1)  # noqa: E731
    fit = gauge(model._queries.effect_draws(names[:held], "two", None, 200).mean(0), weights)
    judged = np.isfinite(wide("mean"))
    error = lambda x: float(np.sqrt(np.mean((x - true)[judged] ** 2)))  # noqa: E731
    return {
        "part": "lines",
        "kind": kind,
        "seed": seed,
        "shared": float(table["shared"].iloc[0]),
        "rmse": error(wide("mean")),
        "rmse_fit": error(fit),
        "rmse_no_change": error(0 * true),
        "coverage": covered(wide("lower")[judged], wide("upper")[judged], true[judged]),
    }


def main() -> None:
    """Run the parts asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="+", default=["lanes", "lines", "papalexi"])
    parser.add_argument("--jobs", type=int, default=1)
    args = parser.parse_args()
    found = []
    if "lanes" in args.parts:
        found += run_all(lanes, LANES, args.jobs)
    if "lines" in args.parts:
        found += run_all(lines, [("own", 411), ("own", 412), ("same", 413)], args.jobs)
    if "papalexi" in args.parts:
        found += run_all(papalexi, [(0,)], args.jobs)
    report("batch_honesty", results=found)


if __name__ == "__main__":
    main()
