"""Knockouts at times they were not measured at, in cells of harissa's bursty gene networks.

Eight genes of a random network (`networks.py`) are knocked out at time 0, when half of the cells
meet a stimulus that runs down a cascade. Six times; of every knockout, in both media, one time
between others and the last one are held out: 4 of 6 are seen, of controls all. With
`--controls-too` controls are held out as well, and nobody was measured then. Time is in mRNA
lifetimes.

Scores are on log1p of the mean count at a common depth, over all genes, and over those of the
network alone (the others never respond). Two floors stand beside them: a replicate, as many other
cells of the same conditions and batches, errs by its own noise and by that of the held-out cells;
who knows the expected counts errs by the latter only, half of the replicate's square.

    python benchmarks/harissa_timecourse.py             # reported networks
    python benchmarks/harissa_timecourse.py --develop   # those it was developed on
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from common import covered, part_of, run_all, write_results
from hipsc_day5 import crps
from mechanistic_harissa import Harissa
from networks import draw_network

import pyrocell

DEVELOPMENT, REPORTED = (0,), (100, 101)
TIMES = (1.0, 2.0, 3.5, 5.5, 8.0, 12.0)
ASKED = {3.5: "interpolation", 12.0: "extrapolation"}
KNOCKOUTS = ("R1", "A1", "A3", "B1", "U1", "U2", "U3", "T1")
MEDIA = ("baseline", "stimulus")
N_CELLS, CONTROLS, BATCHES = 100, 3, 2  # cells of a knockout; controls for each of them
N_FILLER, MEAN_COUNT, SPREAD = 62, 2.0, 0.7  # other genes; counts; sd of their log over genes
DEPTH_SD, ETA_SD, DISPERSION = 0.35, 0.15, 10.0  # of log depth, of log batch noise; 1/θ
QUIET = {"process_noise_sd": 5e-3, "process_noise_effect": 2e-2, "process_noise_spread": 0.01}
LATE = 0.01  # knocked out after the stimulus: the product is still there when it comes
STEP = (TIMES[-1] - TIMES[0]) / (len(TIMES) - 1)  # mean step between times
FITS = {  # options of the model; "late" and "unit" say how its screen is registered
    "relaxation": {},
    "node": {"dynamics": "node"},
    "relaxation, no process noise": {"priors": pyrocell.Priors(**QUIET)},
    "none": {"dynamics": "none"},
    "interactions": {"interactions": True},
    "media genes": {"priors": pyrocell.Priors(media_residual_sd=0.3)},
    "late": {"late": LATE},
    "unit": {"unit": STEP},
    "late, unit": {"late": LATE, "unit": STEP},
    "late, unit, interactions": {"late": LATE, "unit": STEP, "interactions": True},
}
USUAL = ["relaxation", "relaxation, no process noise", "late, unit", "node"]
EPOCHS = 50  # a run of all networks has to end in minutes


@dataclass(frozen=True)
class Course:
    """A screen, and a replicate of what is held out; counts of cells, in the same batches."""

    adata: AnnData
    replicate: AnnData
    network: np.ndarray  # (genes,) whether a gene is part of the network


def simulate(seed: int) -> Course:
    """All conditions of a random network; the knockouts at times asked for, twice."""
    rng = np.random.default_rng([seed, 4])
    cells = Harissa(draw_network(rng), rng)
    genes = [*cells.network.genes, *(f"F{i + 1}" for i in range(N_FILLER))]
    inside = np.arange(len(genes)) < len(cells.network.genes)
    level = np.exp(rng.normal(np.log(MEAN_COUNT), SPREAD, len(genes)))
    usual = np.mean([cells.cells(None, s, TIMES[-1], 400).mean(0) for s in (None, 0.0)], axis=0)
    scale = level[inside] / usual
    shape = np.exp(rng.normal(np.log(0.8), 0.5, N_FILLER))
    eta = rng.normal(0, ETA_SD, (BATCHES, len(genes)))

    def counts(name: str, media: str, time: float, n: int) -> tuple[np.ndarray, np.ndarray]:
        own = cells.cells(
            None if name == "control" else name, 0.0 if media == "stimulus" else None, time, n
        )
        filler = level[~inside] * rng.gamma(shape, 1 / shape, (n, N_FILLER))
        batch = rng.permutation(np.arange(n) % BATCHES)
        depth = np.exp(rng.normal(-(DEPTH_SD**2) / 2, DEPTH_SD, (n, 1)))
        mean = np.hstack([own * scale, filler]) * depth * np.exp(eta[batch])
        return rng.poisson(mean * rng.gamma(DISPERSION, 1 / DISPERSION, mean.shape)), batch

    def screen(arms: list[tuple[str, str, float]]) -> AnnData:
        parts, obs = [], []
        for name, media, time in arms:
            x, batch = counts(name, media, time, N_CELLS * (CONTROLS if name == "control" else 1))
            parts.append(x)
            label = {"perturbation": name, "media": media, "time": time}
            obs.append(pd.DataFrame(label | {"batch": batch.astype(str)}))
        table = pd.concat(obs, ignore_index=True)
        table.index = table.index.astype(str)
        x = sp.csr_matrix(np.vstack(parts).astype(np.float32))
        return AnnData(x, obs=table, var=pd.DataFrame(index=genes))

    names = ("control", *KNOCKOUTS)
    return Course(
        screen([(p, m, t) for p in names for m in MEDIA for t in TIMES]),
        screen([(p, m, t) for p in KNOCKOUTS for m in MEDIA for t in ASKED]),
        inside,
    )


def levels(adata: AnnData, depth: float) -> pd.DataFrame:
    """log1p of the mean count at a depth; a row per perturbation, media and time."""
    keys = [adata.obs[c] for c in ("perturbation", "media", "time")]
    counts = pd.DataFrame(adata.X.toarray(), adata.obs_names, adata.var_names)
    counts = counts.groupby(keys, observed=True).sum()
    return np.log1p(depth * counts.div(counts.sum(axis=1), axis=0))


def asked_for(held: AnnData) -> pd.DataFrame:
    """Conditions held out, by batch, with their numbers of cells."""
    columns = ["perturbation", "media", "time", "batch"]
    return held.obs.groupby(columns, observed=True).size().rename("n_cells").reset_index()


def predicted(model: pyrocell.PyroCell, request: pd.DataFrame, depth: float) -> np.ndarray:
    """Draws of log1p of the mean count of the held-out cells, (draws, conditions, genes)."""
    draws = model.predict(request, n_samples=100, size_factor=depth, return_draws=True).to_numpy()
    weight = request["n_cells"].to_numpy()[:, None]
    condition = request.groupby(["perturbation", "media", "time"], sort=True).ngroup().to_numpy()
    total = np.zeros((len(draws), condition.max() + 1, draws.shape[2]))
    np.add.at(total, (slice(None), condition), draws * weight)
    cells = np.bincount(condition, weight[:, 0])[:, None]
    return np.log1p(total / cells)


def anchors(seen: pd.DataFrame, asked: pd.MultiIndex) -> dict[str, np.ndarray]:
    """Predictors without a model, from log1p of mean counts."""

    def line(name: str, media: str, time: float) -> np.ndarray:
        own = seen.xs((name, media))
        own = own.drop(index=list(ASKED), errors="ignore")
        after = np.searchsorted(own.index, time).clip(1, len(own) - 1)
        (t0, a), (t1, b) = ((own.index[i], own.iloc[i].to_numpy()) for i in (after - 1, after))
        return a + (b - a) * (time - t0) / (t1 - t0)

    def carried(name: str, media: str, time: float) -> np.ndarray:
        own = seen.xs((name, media)).drop(index=list(ASKED), errors="ignore")
        return own.loc[own.index < time].iloc[-1].to_numpy()

    out: dict[str, list] = {"linear": [], "carry forward": []}
    for name, media, time in asked:
        out["linear"].append(line(name, media, time))
        out["carry forward"].append(carried(name, media, time))
        if ("control", media, time) in seen.index:
            control = seen.loc[("control", media, time)].to_numpy()
            for way, of in (("linear", line), ("carry forward", carried)):
                change = control - of("control", media, time)
                out.setdefault(f"{way} + control's change", []).append(out[way][-1] + change)
            out.setdefault("control", []).append(control)
    return {way: np.stack(rows) for way, rows in out.items()}


def network(seed: int, fits: list[str], controls_too: bool) -> dict:
    """Fit to one network without the conditions asked for, and score what the fits say of them."""
    course = simulate(seed)
    obs = course.adata.obs
    late = obs["time"].isin(list(ASKED)).to_numpy()
    held = late & (obs["perturbation"] != "control").to_numpy()
    seen = course.adata[~(late if controls_too else held)].copy()
    unseen = course.adata[held]
    depth = float(np.median(np.asarray(seen.X.sum(1))))
    truth, replicate = levels(unseen, depth), levels(course.replicate, depth)
    ways = {"replicate": replicate.loc[truth.index].to_numpy()}
    ways |= anchors(levels(seen, depth), truth.index)
    times = truth.index.get_level_values("time").map(ASKED).to_numpy()
    rows, crps_of = [], {}
    for fit in fits:
        model, request = fitted(seen, asked_for(unseen), seed, **FITS[fit])
        draws = predicted(model, request, depth)
        scored, crps_of[fit] = scores(draws, truth.to_numpy(), ways, times, course.network)
        rows += [{"seed": seed, "fit": fit} | row for row in scored]
    return {"seed": seed, "rows": rows} | crps_of


def fitted(
    seen: AnnData,
    request: pd.DataFrame,
    seed: int,
    late: float = 0.0,
    unit: float = 1.0,
    **options,
) -> tuple[pyrocell.PyroCell, pd.DataFrame]:
    """A trained model, and the request in its unit of time."""
    screen = seen.copy()
    for table in (screen.obs, request):
        table["time"], table["perturbed_at"] = table["time"] / unit, late / unit
    pyrocell.PyroCell.setup_anndata(
        screen, time_key="time", media_key="media", perturbation_time_key="perturbed_at"
    )
    model = pyrocell.PyroCell(screen, **options)
    model.train(seed=seed, progress_bar=False, max_epochs=EPOCHS)
    return model, request


def scores(
    draws: np.ndarray, truth: np.ndarray, ways: dict, times: np.ndarray, inside: np.ndarray
) -> tuple[list[dict], np.ndarray]:
    """Mean square errors by kind and genes; CRPS by condition."""
    error = {way: (found - truth) ** 2 for way, found in {"model": draws.mean(0), **ways}.items()}
    each, spread = crps(draws, truth), np.percentile(draws, [5, 95], axis=0)
    rows = []
    for kind in ASKED.values():
        at = times == kind
        for genes, of in (("all", slice(None)), ("network", inside)):
            row = {"kind": kind, "genes": genes}
            row |= {way: float(e[at][:, of].mean()) for way, e in error.items()}
            lower, upper = spread[:, at][..., of]
            row["crps"] = float(each[at][:, of].mean())
            row["coverage"] = covered(lower, upper, truth[at][:, of])
            rows.append(row)
    return rows, each.mean(1)


def summary(table: pd.DataFrame) -> dict:
    """Print and return errors by kind, genes and fit: MSE, and RMSE against the floors."""
    ways = [c for c in table.columns if c not in ("seed", "fit", "kind", "genes")]
    means = table.groupby(["kind", "genes", "fit"], sort=False)[ways].mean()
    means["rmse / replicate"] = np.sqrt(means["model"] / means["replicate"])
    means["mse / replicate"] = means["model"] / means["replicate"]
    means["mse / noise of truth"] = 2 * means["mse / replicate"]
    print(means.round(4).T.to_string())
    return {f"{k}, {g} genes, {f}": row for (k, g, f), row in means.to_dict("index").items()}


def paired(results: list[dict], first: str, other: str) -> dict | None:
    """CRPS of two fits, condition by condition; its standard error is that over networks."""
    if any(fit not in results[0] for fit in (first, other)):
        return None
    less = np.stack([r[first] - r[other] for r in results])  # (networks, conditions)
    each = less.mean(1)
    return {
        "difference": float(each.mean()),
        "standard_error": float(each.std(ddof=1) / len(each) ** 0.5) if len(each) > 1 else None,
        "conditions_better": float((less < 0).mean()),
    }


def main() -> None:
    """Print the tables of all networks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--develop", action="store_true")
    parser.add_argument("--controls-too", action="store_true")
    parser.add_argument("--fits", nargs="+", default=USUAL, choices=list(FITS))
    parser.add_argument("--seeds", nargs="+", type=int)
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    seeds = args.seeds or (DEVELOPMENT if args.develop else REPORTED)
    jobs = [(seed, args.fits, args.controls_too) for seed in seeds]
    results = run_all(network, jobs, args.jobs)
    figures = summary(pd.DataFrame([row for r in results for row in r["rows"]]))
    crps_less = paired(results, "relaxation", "relaxation, no process noise")
    print("CRPS, with process noise less without:", crps_less)
    write_results(
        "harissa_timecourse",
        {
            part_of(parser, args): {
                "controls_too": args.controls_too,
                "figures": figures,
                "process_noise": crps_less,
            }
        },
        seeds,
    )


if __name__ == "__main__":
    main()
