"""What the planner promises against what simulated screens deliver.

Each screen draws its size, noise, media and constraints at random. Three layouts of it are planned:
the recommended one, a random legal one, and the recommended one with all controls in one lane.
Counts are drawn for each from the same biology and the same batch noise, three times over; the
realised error is the root mean square over the three, and of single draws the wins are printed too.
Error: log pseudobulk of every condition and lane, weighted by the variance that its cells show, put
through a linear mixed model gene by gene (written here, not the planner's formulas), posterior
means of all contrasts against the truth. The planner knows the noise levels as a pilot would tell
them: expression and spread of genes, sizes of effects and batches. What it loses by knowing nothing
and taking the default noise is printed as well (expected errors).

Then the gain of having controls in every lane (App. B.2), the planner's own time, and anchors: the
error of saying "nothing changes", and of pooled pseudobulk that ignores batches.

    python benchmarks/design_value.py                # reported: screens 9600 to 9799
    python benchmarks/design_value.py --first 100 --screens 20     # development
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import pandas as pd
import scipy.sparse as sp
from code_state import FIT
from common import part_of, quiet, write_results
from scipy.stats import spearmanr

import pyrocell
from pyrocell import design
from pyrocell.design.questions import target_weights

ROOMS = (*FIT, "design")  # that the figures depend on
FIRST, SCREENS, DRAWS = 9600, 200, 3
CONTROL_SEEDS = range(9900, 9920)
GENES, LIBRARY = 160, 3200.0
BLOCKED, MEDIA_RMS, DISPERSION = 0.25, 0.3, 2.0
LIBRARY_SPREAD = 1.094  # 1 + squared coefficient of variation of library sizes
FLAT = 10.0  # sd of the free level


def settings_of(seed: int) -> tuple[dict, design.Plan]:
    """A random screen: what is simulated, and what is planned."""
    rng = np.random.default_rng(seed)
    media = int(rng.integers(0, 3))
    k = int(rng.integers(6, 17))
    hashing = bool(rng.random() < 0.5)
    cells = float(rng.integers(20, 60) * k)
    lanes = int(rng.integers(max(3, 2 * (media + 1)), 9))  # two of each medium, if need be
    simulated = dict(
        n_perturbations=k, n_genes=GENES, n_batches=lanes, media=media, mean_library=LIBRARY,
        batch_sd=float(rng.uniform(0.05, 0.3)), effect_rms=float(rng.uniform(0.1, 0.3)),
        common_rms=float(rng.uniform(0.03, 0.15)), silent_fraction=0.5, media_rms=MEDIA_RMS,
        blocked_fraction=BLOCKED, dispersion=DISPERSION,
    )  # fmt: skip
    names = ["baseline", *(f"medium{j}" for j in range(media))]
    plan = design.Plan(
        k, names, lanes=lanes, cells_per_lane=cells, hashing=hashing,
        arms_per_lane=int(rng.integers(1, media + 2)) if hashing else None,
        min_controls=round(cells * float(rng.choice([0.0, 0.02, 0.05]))),
        min_cells=5,
    )  # fmt: skip
    return simulated, plan


def noise_of(simulated: dict, seeds: list[int]) -> design.Noise:
    """Noise as a pilot of the same genes would tell it."""
    variances = []
    for seed in seeds:
        truth = pyrocell.simulate.screen(seed=seed, cells=_few(simulated), **simulated).uns["truth"]
        state = (np.asarray(truth["resting_loading"]) ** 2).sum(0)
        extra = ((1 + 1 / DISPERSION) * np.exp(state) - 1) * LIBRARY_SPREAD
        variances.append(1 / (LIBRARY * np.asarray(truth["expression"])) + extra)
    variance = np.sort(np.concatenate(variances))
    return design.Noise(
        cell_variance=[part.mean() for part in np.array_split(variance, 6)],
        batch_sd=simulated["batch_sd"],
        effect_sd=simulated["effect_rms"] * (1 - simulated["silent_fraction"]) ** 0.5,
        common_sd=simulated["common_rms"],
        gain_sd=MEDIA_RMS * BLOCKED**0.5,
        media_sd=MEDIA_RMS,
    )


def _few(simulated: dict) -> np.ndarray:
    shape = (simulated["media"] + 1, simulated["n_perturbations"] + 1, 1, simulated["n_batches"])
    return np.ones(shape, int)


def realised(layout: design.Layout, noise: design.Noise, simulated: dict, seed: int) -> dict:
    """Errors on simulated counts of a layout: the mixed model, pooled pseudobulk, and none."""
    rng = np.random.default_rng([seed, 1])
    whole = _whole(layout.cells, rng)
    cells = whole.transpose(1, 0, 2)[:, :, None]
    adata = pyrocell.simulate.screen(seed=seed, cells=cells, **simulated)
    truth = adata.uns["truth"]
    n_media, n_rows = len(layout.arms), 1 + len(layout.perturbations)
    shift = truth["shift"].to_numpy().reshape(n_media, n_rows, -1).transpose(1, 0, 2)
    counts, depth, squares = _pseudobulk(adata, layout, whole.shape)
    expression = np.asarray(truth["expression"])
    weights = target_weights(layout.kinds, None)
    found = {
        "realised": _posterior_mean(counts, depth, squares, adata, noise, layout),
        "pooled": _pooled(counts, depth),
        "nothing": np.zeros_like(shift),
    }
    errors = {}
    for name, levels in found.items():
        total = 0.0
        for kind in layout.kinds:
            difference = np.einsum("na,pag->png", kind.weights, levels - shift)
            difference = difference[1:] - difference[:1] if kind.perturbed else difference[:1]
            difference -= (difference @ expression)[..., None]
            total += weights[kind.name] * (difference**2).mean()
        errors[name] = float(np.sqrt(total))
    return errors


def _whole(cells: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Whole numbers with these means and the same totals per lane, as a lane would yield them."""
    out = np.zeros(cells.shape, int)
    for b in range(cells.shape[-1]):
        total = cells[..., b].sum()
        if total > 0:
            share = (cells[..., b] / total).ravel()
            out[..., b] = rng.multinomial(round(total), share).reshape(cells.shape[:-1])
    return out


def _pseudobulk(adata, layout: design.Layout, shape: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    """Counts (P, A, B, G), depths (P, A, B) and sums of squared depths."""
    truth = adata.uns["truth"]
    rows = {name: i for i, name in enumerate([layout.control, *truth["effect"].index])}
    media = {arm.media: a for a, arm in enumerate(layout.arms)}
    batches = {name: b for b, name in enumerate(truth["eta"].index)}
    columns = zip(("perturbation", "media", "batch"), (rows, media, batches))
    index = [adata.obs[name].astype(str).map(of).to_numpy() for name, of in columns]
    group = np.ravel_multi_index(index, shape)
    adata.uns["group"] = group
    n, size = int(np.prod(shape)), np.asarray(adata.X.sum(1)).ravel().astype(float)
    member = sp.csr_matrix((np.ones(len(group)), (group, np.arange(len(group)))), (n, len(group)))
    counts = (member @ adata.X).toarray().astype(float)
    depth, squares = member @ size, member @ size**2
    return counts.reshape(*shape, -1), depth.reshape(shape), squares.reshape(shape)


def _pooled(counts: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """Log expression of conditions, batches ignored."""
    return np.log((counts.sum(2) + 0.5) / (depth.sum(2)[..., None] + 0.5))


def _posterior_mean(counts, depth, squares, adata, noise, layout) -> np.ndarray:
    """Levels (P, A, G) by a linear mixed model of the log pseudobulk of conditions and lanes."""
    p, a, b = np.nonzero(depth)
    y = np.log((counts[p, a, b] + 0.5) / depth[p, a, b][:, None])  # (n, G)
    rate = counts.sum((0, 1, 2)) / depth.sum()
    spread = squares[p, a, b] / depth[p, a, b] ** 2
    poisson, extra = _moments(adata, counts, depth, squares)
    variance = poisson / (rate * depth[p, a, b][:, None]) + extra * spread[:, None]
    n_levels, n_batches = depth.shape[0] * depth.shape[1], depth.shape[2]
    x = np.zeros((len(y), n_levels + n_batches))
    x[np.arange(len(y)), np.ravel_multi_index((p, a), depth.shape[:2])] = 1
    x[np.arange(len(y)), n_levels + b] = 1
    prior = np.zeros((x.shape[1],) * 2)
    prior[:n_levels, :n_levels] = np.linalg.inv(_prior(layout, noise))
    prior[n_levels:, n_levels:] = np.eye(n_batches) / noise.batch_sd[0] ** 2
    weight = 1 / variance
    information = prior + np.einsum("ni,ng,nj->gij", x, weight, x, optimize=True)
    solved = np.linalg.solve(information, (x.T @ (weight * (y - y.mean(0)))).T[..., None])
    return solved[:, :n_levels, 0].T.reshape(*depth.shape[:2], -1)


def _moments(adata, counts, depth, squares) -> tuple[np.ndarray, np.ndarray]:
    """f and k of the variance f μ + k μ² of counts within conditions and lanes, (G,) each."""
    group, size = adata.uns["group"], np.asarray(adata.X.sum(1)).ravel().astype(float)
    n, weighted = np.bincount(group, minlength=depth.size), sp.diags(size) @ adata.X
    member = sp.csr_matrix(
        (np.ones(len(group)), (group, np.arange(len(group)))), (len(n), len(group))
    )
    square, cross = (np.asarray((member @ m).todense()) for m in (adata.X.power(2), weighted))
    some = n > 1
    rate = counts.reshape(len(n), -1)[some] / depth.ravel()[some, None]
    left, of = (1 - 1 / n[some])[:, None], squares.ravel()[some, None]
    seen = (square[some] - 2 * rate * cross[some] + rate**2 * of).sum(0)
    first, second = (rate * depth.ravel()[some, None] * left).sum(0), (rate**2 * of * left).sum(0)
    return np.clip(seen / first, 0.05, 1), np.maximum((seen - first) / second, 0)


def _prior(layout: design.Layout, noise: design.Noise) -> np.ndarray:
    """Covariance of the levels of all conditions, from the stated sizes, condition by condition."""
    n, arms = 1 + len(layout.perturbations), layout.arms
    p = np.repeat(np.arange(n), len(arms))
    medium = np.tile([layout.arms.index(arm) for arm in arms], n)
    stimulated = (medium[:, None] == medium) & (medium != 0)
    cut = (p[:, None] > 0) & (p > 0)
    own = cut & (p[:, None] == p)
    one = {k: getattr(noise, k)[0] for k in ("effect_sd", "gain_sd", "common_sd", "media_sd")}
    effect = one["effect_sd"] ** 2 + stimulated * one["gain_sd"] ** 2
    ratio = (one["common_sd"] / one["effect_sd"]) ** 2
    cov = FLAT**2 + stimulated * one["media_sd"] ** 2 + (own + ratio * cut) * effect
    return cov


def one_screen(seed: int) -> list[dict]:
    """All layouts of a random screen, each over the same draws of biology and batch noise."""
    simulated, plan = settings_of(seed)
    draws = [DRAWS * seed + i for i in range(DRAWS)]
    noise = noise_of(simulated, draws)
    started = time.process_time()
    found = design.recommend(plan, noise, compared=False)
    seconds = time.process_time() - started
    typical = design.score(design.recommend(plan, compared=False).layout, noise).error
    layouts = {
        "recommended": found.layout,
        "random": design.random_layout(plan, seed),
        "controls in one lane": design.controls_in_one_lane(plan, found.layout),
    }
    rows = []
    for name, layout in layouts.items():
        every = pd.DataFrame([realised(layout, noise, simulated, draw) for draw in draws])
        rows.append({
            "seed": seed, "layout": name, "predicted": design.score(layout, noise).error,
            **np.sqrt((every**2).mean()), "first": every["realised"].iloc[0],
            "typical": typical / found.score.error, "seconds": seconds, "gap": found.gap,
            "hashing": plan.hashing, "media": len(plan.media),
        })  # fmt: skip
    return rows


def lanes_with_controls(seed: int) -> list[dict]:
    """The same controls in one, two, three or all six lanes; perturbed cells stay where they are.

    "pooled": every perturbation is in every lane. "split": a third of the perturbations in each
    pair of lanes, so that only controls link the pairs.
    """
    simulated = dict(
        n_perturbations=12, n_genes=GENES, n_batches=6, media=0, mean_library=LIBRARY,
        batch_sd=0.2, effect_rms=0.2, common_rms=0.1, silent_fraction=0.5, dispersion=DISPERSION,
    )  # fmt: skip
    noise = noise_of(simulated, [seed])
    plan = design.Plan(12, lanes=6, cells_per_lane=800.0, libraries=3)
    rows = []
    for how in ("pooled", "split"):
        for k in (1, 2, 3, 6):
            cells = np.zeros((13, 1, 6))
            for b in range(6):
                mine = (
                    np.arange(12) if how == "pooled" else np.flatnonzero(plan.library_of == b // 2)
                )
                cells[1 + mine, 0, b] = 360.0 / len(mine)
            cells[0, 0, np.arange(6) % (6 // k) == 0] = 360.0 / k
            layout = plan.layout(cells)
            found = realised(layout, noise, simulated, seed)
            rows.append({
                "how": how, "lanes with controls": k, **found, "plain": plain_error(layout, noise),
                "predicted": design.score(layout, noise).error,
            })  # fmt: skip
    return rows


def plain_error(layout: design.Layout, noise: design.Noise) -> float:
    """Expected error of pooled pseudobulk: eq. 22 with a unit Jacobian before Jensen, and sampling.

    Its batch part is the variance of the difference of mean η over the cells of either condition.
    """
    share = layout.cells[:, 0] / layout.cells[:, 0].sum(-1, keepdims=True)
    apart = ((share[1:] - share[:1]) ** 2).sum(-1)  # η has no sum in it: weights sum to zero
    sampling = 1 / layout.cells[1:, 0].sum(-1) + 1 / layout.cells[0, 0].sum()
    v = (noise.cell_variance * noise.share).sum()
    return float(np.sqrt((noise.batch_sd[0] ** 2 * apart + v * sampling).mean()))


def large_plan() -> dict:
    """Time of a recommendation for 500 perturbations, 2 media and 24 lanes, one thread."""
    rows = {}
    for hashing in (True, False):
        plan = design.Plan(500, ["baseline", "stimulus"], lanes=24, hashing=hashing,
                           min_controls=200, min_cells=50)  # fmt: skip
        started = time.perf_counter()
        found = design.recommend(plan)
        rows["hashing" if hashing else "no hashing"] = {
            "seconds": time.perf_counter() - started, "gap": found.gap, "error": found.score.error,
            "random legal": found.comparison.loc["random legal", "ratio"],
            "controls in one lane": found.comparison.loc["controls in one lane", "ratio"],
        }  # fmt: skip
    return rows


def summarise(table: pd.DataFrame) -> dict:
    """Correlations, calibration and wins over all screens."""
    wide = table.pivot(index="seed", columns="layout", values="realised")
    first = table.pivot(index="seed", columns="layout", values="first")
    best = wide["recommended"]
    others = [name for name in wide if name != "recommended"]
    ratio = table["realised"] / table["predicted"]
    return {
        "correlation": np.corrcoef(table["predicted"], table["realised"])[0, 1],
        "rank_correlation": spearmanr(table["predicted"], table["realised"])[0],
        "correlation_by_layout": {
            name: np.corrcoef(part["predicted"], part["realised"])[0, 1]
            for name, part in table.groupby("layout")
        },
        "realised_over_predicted": {"mean": ratio.mean(), "sd": ratio.std()},
        "wins": {name: (best < wide[name]).mean() for name in others},
        "wins_single_draw": {n: (first["recommended"] < first[n]).mean() for n in others},
        "error_ratio_median": {name: (wide[name] / best).median() for name in others},
        "anchors_error_median": {
            name: table[table["layout"] == "recommended"][name].median()
            for name in ("realised", "pooled", "nothing")
        },
        "default_noise_error_ratio": {
            "median": table["typical"].median(),
            "most": table["typical"].max(),
        },
        "seconds_mean": table["seconds"].mean(),
        "gap_max": table["gap"].max(),
    }


def main() -> None:
    """Run everything and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first", type=int, default=FIRST)
    parser.add_argument("--screens", type=int, default=SCREENS)
    args = parser.parse_args()
    quiet()
    seeds = range(args.first, args.first + args.screens)
    table = pd.DataFrame([row for seed in seeds for row in one_screen(seed)])
    columns = ["predicted", "realised", "pooled", "nothing"]
    print(table.groupby(["layout", "hashing", "media"])[columns].mean().round(4).to_string())
    control_seeds = CONTROL_SEEDS if args.first == FIRST else range(300, 305)
    placed = pd.DataFrame([row for s in control_seeds for row in lanes_with_controls(s)])
    placed = placed.groupby(["how", "lanes with controls"]).mean()
    print(placed.round(4).to_string())
    large = large_plan()
    print(pd.DataFrame(large).round(4).to_string())
    write_results(
        "design_value",
        {
            part_of(parser, args): {
                **summarise(table),
                "controls_placed": {
                    " ".join(map(str, k)): row.to_dict() for k, row in placed.iterrows()
                },
                "large_plan": large,
            }
        },
        seeds,
        rooms=ROOMS,
    )


if __name__ == "__main__":
    main()
