"""What batch noise must not be taken for: media in lanes of their own, guides that do nothing.

lanes: simulated screens in which every medium has lanes of its own. The response c to the medium
and the noise Δη of its lanes are aliased. Told their sum S, the posterior of c is its prior given
S, N(C (C + E)⁻¹ S, C − C (C + E)⁻¹ C), C the prior covariance of c over genes, E that of Δη; S has
an error of its own. Figures: its sd in the fit over that of this law; the share of true responses
inside 90% intervals, of the fit and of the law; of genes with a direction at 95% those with the
wrong one; rows of the table of assumptions that are not testable and not at their prior. Anchor:
the intervals that sampling noise alone would give.

counts: simulated screens of known effects, half of them silent: share of true effects inside 90%
intervals of the counts alone (`shrunken=False`, no fit needed: batch noise has its prior's width),
and silent ones outside 95% intervals. Seeds 121 to 124 were for development.

lines: simulated screens in two cell lines, registered as media; a quarter of the perturbations is
measured in one of them only. Their effects in the other are independent ("own"), or the same
("same"). RMSE of `transfer_effects`, of the fit (which adds effects), of no change.

papalexi: half of the non-targeting guides are given labels of their own, beside up to 120 cells of
each knockout. Share of pseudo-effects (gene level) whose 95% interval leaves out 0, also by the
counts to expect in the guide's cells, and the share of effects of real knockouts: of the posterior,
and of what the counts alone say (`shrunken=False`). "shuffled": the latter with the guides' labels
shuffled within replicates, over 12 shuffles, so that no guide can differ. "allowed": what a
posterior just as the prior has it would show, were all effects zero; with an estimate of error v
and a prior of width s it is P(|z| > 1.96 / √w), w = s² / (s² + v). Also for other widths of the
prior, and what one learned guide by guide (what squares of estimates have beyond v) shows. Anchor:
Wald intervals of pooled log ratios with Poisson errors. The other half of the guides is for
development (`--parts development`). `mixed` fits the model to
shuffled labels, twice.

    python benchmarks/batch_honesty.py --parts lanes counts lines papalexi mixed
"""

from __future__ import annotations

import argparse
import warnings

import numpy as np
import pandas as pd
from batch_recovery import gauge
from code_state import FIT
from common import covered, quiet, run_all, shared, write_results
from real_screens import usable
from scipy.stats import norm

import pyrocell
from pyrocell.contrasts.levels import condition_levels
from pyrocell.posterior.effects import effect_draws
from pyrocell.transfer import transfer_effects

ROOMS = (*FIT, "transfer")  # that the figures depend on
# lanes per medium, seed
LANES = [(1, 401), (3, 402)]
# batches, sd of η, cells per perturbation, balanced, effects in rank, seed
COUNTS = [
    (3, 0.2, 20, True, False, 421),
    (3, 0.1, 100, False, False, 422),
    (6, 0.3, 50, False, True, 423),
    (12, 0.2, 100, False, False, 424),
]
SETTINGS = {"n_perturbations": 10, "n_genes": 100, "media": 1, "batch_sd": 0.2, "media_rms": 0.4}
PER_KNOCKOUT = 120
LEVELS = ("0-5", "5-50", "50-500", "500 or more")  # counts to expect
WIDTHS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0)  # of other priors of effects
SHUFFLES = 12


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
    draws = model.fitted.posterior.draws(400)
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


def papalexi(seed: int, first: int = 0, mixed: bool = False) -> dict:
    """Guides that do nothing, as perturbations: every second, from the first or from the second.

    `mixed`: their labels shuffled within replicates.
    """
    quiet()
    adata = usable(shared("papalexi2021_thp1_eccite.h5ad"))
    rng = np.random.default_rng(seed)
    labels = adata.obs["perturbation"].astype(str).to_numpy().copy()
    guides = adata.obs["guide"].astype(str).to_numpy()
    numbers = pd.Series(guides[labels == "control"]).value_counts()
    kinds = list(numbers.index[numbers >= 50][first::2])
    rows = (labels == "control") & np.isin(guides, kinds)
    labels[rows] = guides[rows]
    if mixed:
        labels = mix(labels, adata.obs["batch"].to_numpy(), kinds, rng)
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
    free = model.perturbation_effects(credible_level=0.95, shrunken=False)
    null = table.perturbation.isin(kinds).to_numpy()
    expected = expected_counts(adata, labels, table[null])
    out, out_free = ((t.lower > 0) | (t.upper < 0) for t in (table, free))
    by_guide = out[null].groupby(table.perturbation[null]).mean()
    width = model.module.priors.residual_sd
    return {
        "part": "mixed" if mixed else "papalexi" if first == 0 else "development",
        "seed": seed,
        "cells": len(adata),
        "guides": len(kinds),
        "excluding_zero": float(out[null].mean()),
        "by_counts": by_counts(out[null], expected),
        "by_guide": by_guide.round(4).to_dict(),
        "allowed": float(allowed(free[null], width).mean()),
        "allowed_by_counts": by_counts(allowed(free[null], width), expected),
        "allowed_by_width": {s: float(allowed(free[null], s).mean()) for s in WIDTHS},
        "width_per_guide": learned_widths(free[null]),
        "unshrunken_excluding_zero": float(out_free[null].mean()),
        "unshrunken_by_counts": by_counts(out_free[null], expected),
        "unshrunken_by_guide": out_free[null]
        .groupby(table.perturbation[null])
        .mean()
        .round(4)
        .to_dict(),
        "effects_by_counts": pd.Series(expected).pipe(level_of).value_counts().to_dict(),
        "real_excluding_zero": float(out[~null].mean()),
        "unshrunken_real_excluding_zero": float(out_free[~null].mean()),
        **shuffled(adata, labels, kinds, rng),
        "anchor_poisson": wald(adata, labels, kinds),
    }


def expected_counts(adata, labels: np.ndarray, table: pd.DataFrame) -> np.ndarray:
    """Counts of the pooled rate in the cells of each row's perturbation."""
    rate = pd.Series(np.asarray(adata.X.sum(0), float).ravel() / len(adata), adata.var_names)
    cells = pd.Series(labels).value_counts()[table.perturbation].to_numpy()
    return cells * rate[table.gene].to_numpy()


def level_of(expected: np.ndarray) -> pd.Series:
    """Name of the level of counts."""
    return pd.Series(np.array(LEVELS)[np.digitize(expected, [5, 50, 500])])


def by_counts(values, expected: np.ndarray) -> dict[str, float]:
    """Means by level of counts."""
    level = level_of(expected).to_numpy()
    return pd.Series(np.asarray(values, float)).groupby(level).mean().round(4).to_dict()


def allowed(free: pd.DataFrame, width: float) -> np.ndarray:
    """Probability that a posterior with this prior leaves out 0 where nothing happens."""
    weight = width**2 / (width**2 + free.sd.to_numpy() ** 2)
    return 2 * norm.sf(1.96 / np.sqrt(weight))


def learned_widths(free: pd.DataFrame) -> float:
    """Share leaving out 0 with a prior as wide as each guide's own estimates say."""
    found = []
    for _, rows in free.groupby("perturbation"):
        value, variance = rows["mean"].to_numpy(), rows.sd.to_numpy() ** 2
        known = variance < 0.25
        excess = np.average((value**2 - variance)[known], weights=variance[known] ** -2.0)
        weight = max(excess, 1e-6) / (max(excess, 1e-6) + variance)
        found.append(np.abs(value) / np.sqrt(variance) > 1.96 / np.sqrt(weight))
    return float(np.mean(found))


def mix(
    labels: np.ndarray, batch: np.ndarray, kinds: list[str], rng: np.random.Generator
) -> np.ndarray:
    """Labels of unedited cells shuffled within replicates."""
    unedited, out = np.isin(labels, ["control", *kinds]), labels.copy()
    for b in np.unique(batch):
        rows = np.flatnonzero(unedited & (batch == b))
        out[rows] = labels[rng.permutation(rows)]
    return out


def shuffled(adata, labels: np.ndarray, kinds: list[str], rng: np.random.Generator) -> dict:
    """Intervals of the counts alone, guides' labels shuffled within replicates."""
    batch = adata.obs["batch"].astype("category").cat.codes.to_numpy()
    size = np.asarray(adata.X.sum(1), float).ravel()
    sd = np.full(adata.n_vars, pyrocell.Priors().eta_sd)
    out, expected, highest = [], [], []
    for _ in range(SHUFFLES):
        mixed = mix(labels, batch, kinds, rng)
        names, condition = np.unique(mixed, return_inverse=True)
        levels = condition_levels(adata.X.tocsr(), size, condition, batch, sd)
        row = {name: i for i, name in enumerate(names)}
        for kind in kinds:
            weights = {row[kind]: 1.0, row["control"]: -1.0}
            part = levels.contrast(weights)
            error = np.sqrt(part.variance + levels.batch_variance(weights))
            out.append(np.abs(part.value) > 1.96 * error)
            expected.append(levels.expected[row[kind]])
        last = slice(-len(kinds), None)
        many = np.concatenate(expected[last]) >= 500
        highest.append(np.concatenate(out[last])[many].mean())
    out = np.concatenate(out)
    return {
        "unshrunken_shuffled": float(out.mean()),
        "unshrunken_shuffled_by_counts": by_counts(out, np.concatenate(expected)),
        "unshrunken_shuffled_500_or_more": np.round(np.sort(highest), 3).tolist(),
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


def counts(
    n_batches: int, sd: float, n_cells: int, balanced: bool, in_rank: bool, seed: int
) -> dict:
    """Effects as the counts alone tell them, on simulated truth."""
    quiet()
    adata = pyrocell.simulate.screen(
        n_batches=n_batches,
        batch_sd=sd,
        n_cells_per_condition=n_cells,
        n_controls=1000,
        balanced=balanced,
        in_rank=in_rank,
        seed=seed,
    )
    truth = adata.uns["truth"]
    pyrocell.PyroCell.setup_anndata(adata)
    table = pyrocell.PyroCell(adata).perturbation_effects(
        list(truth["effect"].index), shrunken=False
    )
    weights = np.asarray(truth["expression"], float).ravel()
    true = gauge(truth["effect"].to_numpy(float), weights)
    value, error = (table[name].to_numpy().reshape(true.shape) for name in ("mean", "sd"))
    value = gauge(value, weights)
    lower, upper = value - 1.645 * error, value + 1.645 * error
    silent = np.asarray(truth["silent"]).astype(bool).ravel()
    return {
        "part": "counts",
        "batches": n_batches,
        "sd": sd,
        "cells": n_cells,
        "seed": seed,
        "active_coverage": covered(lower[~silent], upper[~silent], true[~silent]),
        "silent_coverage": covered(lower[silent], upper[silent], true[silent]),
        "silent_excluding_zero": float((np.abs(value) > 1.96 * error)[silent].mean()),
        "active_rmse": float(np.sqrt(np.mean((value - true)[~silent] ** 2))),
        "active_rms": float(np.sqrt(np.mean(true[~silent] ** 2))),
    }


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
    fit = gauge(effect_draws(model.fitted, names[:held], "two", None, 200).mean(0), weights)
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
    parser.add_argument(
        "--parts", nargs="+", default=["lanes", "counts", "lines", "papalexi", "mixed"]
    )
    parser.add_argument("--jobs", type=int, default=1)
    args = parser.parse_args()
    jobs = {
        "lanes": (lanes, LANES),
        "counts": (counts, COUNTS),
        "lines": (lines, [("own", 411), ("own", 412), ("same", 413)]),
        "papalexi": (papalexi, [(0,)]),
        "mixed": (papalexi, [(31, 0, True), (32, 0, True)]),
        "development": (papalexi, [(11, 1)]),
    }
    for part in args.parts:
        function, work = jobs[part]
        seeds = [job[0] if function is papalexi else job[-1] for job in work]
        found = run_all(function, work, args.jobs)
        write_results("batch_honesty", {part: found}, seeds, rooms=ROOMS)


if __name__ == "__main__":
    main()
