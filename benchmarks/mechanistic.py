"""Screens with known truth from mechanistic simulators that were not written here.

Networks are drawn at random (`networks.py`); cells come from harissa's bursty promoters or grnlab's
Hill kinetics; batch noise and depth are added to the counts. What holds and what does not is read
from expected expression (`mechanistic_truth.py`). Network and truth depend on the seed only,
not on the number of cells.

    python benchmarks/mechanistic.py

prints how many conditions hold in each layout, how many are near the border, and how well estimates
without a model tell them apart.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anchors import anchors
from anndata import AnnData
from common import part_of, write_results
from joblib import Parallel, delayed
from mechanistic_grnlab import Grnlab
from mechanistic_harissa import Harissa
from mechanistic_truth import BLOCKED, REGION, truth_table
from networks import CASCADE, REGULATORS, draw_network

from pyrocell.metrics import auroc

ROOMS = ("contrasts", "metrics")  # that the figures depend on
__all__ = ["LAYOUTS", "SIMULATORS", "Layout", "screens"]

SIMULATORS = {"harissa": Harissa, "grnlab": Grnlab}
N_FILLER = 84  # genes outside the network: the rest of the transcriptome
MEAN_COUNT, SPREAD = 2.0, 0.7  # counts per gene and cell, and sd of their log over genes
DEPTH_SD = 0.35  # of log sequencing depth
ETA_SD = 0.15  # of log batch noise per gene and batch


@dataclass(frozen=True)
class Layout:
    """What is measured.

    Attributes
    ----------
    knockouts
        Genes lost at time 0.
    times
        Of measurement, in mRNA lifetimes.
    stimulus
        When the other medium starts; None without one.
    batches
        Over which the cells of every condition are spread.
    controls
        Control cells for each cell of a knockout.
    drift
        Whether unedited cells may drift from time 0: in half of the seeds, little or much.
    """

    knockouts: tuple[str, ...]
    times: tuple[float, ...]
    stimulus: float | None = None
    batches: int = 4
    controls: int = 4
    drift: bool = False

    @property
    def media(self) -> dict[str, float | None]:
        """Media and when they start."""
        other = {} if self.stimulus is None else {"stimulus": self.stimulus}
        return {"baseline": None} | other


MANY = ("R1", *CASCADE, *REGULATORS, "T1", "T3", "V1", "V2", "V3")
SOME = ("R1", "A1", "A3", "B1", *REGULATORS[:5], "T1", "V1", "V2", "V3")
LAYOUTS = {
    "silent": Layout(MANY, (10.0,)),
    "media": Layout(MANY, (16.0,), stimulus=5.0),
    "time": Layout(SOME, (2.0, 3.0, 4.5, 11.0), stimulus=1.0),
    "late": Layout(SOME, (7.5, 9.0, 11.5, 16.0), stimulus=6.0),
    "drift": Layout(("U2", "U4", "V1", "V2"), (2.0, 5.0, 10.0), controls=6, drift=True),
}


def screens(simulator: str, layout: str, seed: int, cells: int) -> tuple[AnnData, pd.DataFrame]:
    """Draw a screen and its truth.

    Parameters
    ----------
    simulator
        "harissa" or "grnlab".
    layout
        One of `LAYOUTS`: "silent" (one time, baseline medium), "media" (one time, both media),
        "time" (four times, both media, the stimulus soon after the knockouts), "late" (the stimulus
        when most effects of the knockouts have settled), "drift" (three times, baseline medium).
    seed
        Of the network; the same seed has the same truth with any number of cells.
    cells
        Of a knockout, medium and time.

    Returns
    -------
    tuple
        Raw counts with `.obs` perturbation, media, time, batch, the batch noise in `.uns["eta"]`
        and expected counts at the last time in `.uns["expected"]`; and `truth_table`, with
        `.attrs["drift"]`, how strong the drift is (0 to 1).
    """
    plan = LAYOUTS[layout]
    rng = np.random.default_rng([seed, list(LAYOUTS).index(layout)])
    network = draw_network(rng)
    strength = rng.uniform(0.4, 1.0) if plan.drift and rng.random() < 0.5 else 0.0
    world = SIMULATORS[simulator](network, rng, strength)
    genes = [*network.genes, *(f"F{i + 1}" for i in range(N_FILLER))]

    mrna = {
        (name or "control", medium): world.expected(name, start, plan.times)
        for name in (None, *plan.knockouts)
        for medium, start in plan.media.items()
    }
    usual = np.mean([mrna["control", medium].mean(axis=(0, 1)) for medium in plan.media], axis=0)
    target = np.exp(rng.normal(np.log(MEAN_COUNT), SPREAD, len(genes)))
    scale = target[: len(usual)] / usual
    shape = np.exp(rng.normal(np.log(0.8), 0.5, N_FILLER))  # of filler genes, mRNA being gamma
    filler = target[len(usual) :]
    expected = {
        key: np.concatenate([x * scale, np.broadcast_to(filler, (*x.shape[:2], N_FILLER))], axis=-1)
        for key, x in mrna.items()
    }
    truth = truth_table(expected, genes, plan.times, plan.drift)
    truth.attrs["drift"] = strength

    def draw(name: str | None, start: float | None, time: float, n: int) -> np.ndarray:
        """(n, genes) expected counts of cells, batch noise and depth aside."""
        own = world.cells(name, start, time, n) * scale
        return np.hstack([own, filler * rng.gamma(shape, 1 / shape, (n, N_FILLER))])

    means, obs = _cells(plan, cells, rng, draw)
    eta = rng.normal(0, ETA_SD, (plan.batches, len(genes)))
    depth = np.exp(rng.normal(-(DEPTH_SD**2) / 2, DEPTH_SD, len(obs)))
    counts = rng.poisson(means * depth[:, None] * np.exp(eta[obs["batch"]]))
    obs["batch"] = "b" + obs["batch"].astype(str)
    obs.index = obs.index.astype(str)
    adata = AnnData(sp.csr_matrix(counts.astype(np.float32)), obs=obs)
    adata.var_names = genes
    adata.uns["eta"] = pd.DataFrame(eta, [f"b{i}" for i in range(plan.batches)], genes)
    last = {f"{name} in {medium}": x.mean(axis=0)[-1] for (name, medium), x in expected.items()}
    adata.uns["expected"] = pd.DataFrame(last, genes).T
    return adata, truth


def _cells(plan: Layout, cells: int, rng: np.random.Generator, draw) -> tuple:
    """Means of the cells of all conditions, and their labels; a cell is measured once."""
    means, labels = [], []
    for name in (None, *plan.knockouts):
        n = cells if name else cells * plan.controls
        for medium, start in plan.media.items():
            for time in plan.times:
                means.append(draw(name, start, time, n))
                batch = rng.permutation(np.arange(n) % plan.batches)
                label = {"perturbation": name or "control", "media": medium, "time": time}
                labels.append(pd.DataFrame(label | {"batch": batch}))
    return np.concatenate(means), pd.concat(labels, ignore_index=True)


def anchored(simulator: str, layout: str, seed: int, cells: int) -> dict:
    """Truth of a screen beside estimates without a model."""
    adata, truth = screens(simulator, layout, seed, cells)
    table = truth[truth["last"]].merge(anchors(adata), how="left")
    return {"simulator": simulator, "layout": layout, "seed": seed, "table": table}


def summary(tables: list[dict]) -> pd.DataFrame:
    """Conditions that hold or do not, pooled over seeds, and what anchors make of them."""
    table = pd.concat(
        [t["table"].assign(simulator=t["simulator"], layout=t["layout"]) for t in tables]
    )
    rows = []
    for key, part in table.groupby(["simulator", "layout", "assumption", "media"], sort=False):
        limit = BLOCKED if key[2] == "no_response" else REGION
        rows.append(
            dict(zip(["simulator", "layout", "assumption", "media"], key))
            | {
                "holds": int(part["holds"].sum()),
                "fails": int((~part["holds"]).sum()),
                "near": int(part["size"].between(0.7 * limit, 1.4 * limit).sum()),
                "auroc": auroc(part["holds"], -part["estimate"]),
                "errors": float(((part["estimate"] < limit) != part["holds"]).mean()),
                "rmse": float(
                    np.sqrt(((part["estimate"].clip(lower=0) - part["size"]) ** 2).mean())
                ),
            }
        )
    return pd.DataFrame(rows)


def main() -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=1, help="networks; eight times as many drift")
    parser.add_argument("--cells", type=int, default=100)
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    jobs = [
        (simulator, layout, seed, args.cells)
        for simulator in SIMULATORS
        for layout, plan in LAYOUTS.items()
        for seed in range(args.seeds * (8 if plan.drift else 1))
    ]
    found = summary(Parallel(n_jobs=args.jobs)(delayed(anchored)(*job) for job in jobs))
    print(found.round(3).to_string(index=False))
    figures: dict[str, dict] = {name: {} for name in SIMULATORS}
    for row in found.to_dict("records"):
        name = f"{row['layout']}, {row['assumption']}, {row['media']}"
        figures[row["simulator"]][name] = {k: row[k] for k in ("holds", "fails", "auroc", "errors")}
    write_results(
        "mechanistic",
        {part_of(parser, args): {"cells": args.cells, **figures}},
        range(args.seeds),
        rooms=ROOMS,
    )


if __name__ == "__main__":
    main()
