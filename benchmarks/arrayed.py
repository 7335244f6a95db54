"""Edge effects on simulated 384-well plates: found where they are, and not where they are not.

A plate holds 60 perturbations in 5 wells each and 84 control wells in random positions, 20 cells in
a well, 100 genes. Half of the perturbations do something (RMS .3). Wells have noise of sd .1 per
gene, half of its variance shared along two directions; cells vary along three axes. Effects have
RMS `size` over genes along a random direction: a ring, or one that fades from the rim. Null plates
are of three kinds: nothing; a trend over columns of the same size; rim wells with half of the cells
and twice the noise variance.

Anchor: difference of the means of outer and inner wells, a t-test per gene, called if any gene has
p < 5% after Bonferroni; its size is the RMS of the differences.

Seeds from 5000 on; 0 to 60 and 1000 to 1249 were seen before: they led to levels centred as
η is, and to a truth stated for the mean of many cells (`realised`).

    python benchmarks/arrayed.py --plates 50
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import pandas as pd
import scipy.sparse as sp
from common import part_of, quiet, write_results
from scipy.special import softmax
from scipy.stats import ttest_ind

from pyrocell.arrayed.edge_effects import edge_effects, well_levels
from pyrocell.arrayed.plates import parse_wells, position_features, well_names

ROOMS = ("arrayed", "contrasts", "noise")  # that the figures depend on
GENES, CELLS, REPLICATES, PERTURBATIONS = 100, 20, 5, 60
WELL_SD, EFFECT_RMS, SIZE, THETA, LIBRARY = 0.1, 0.3, 0.2, 5.0, 1500.0
WELLS = well_names(384)
FEATURES = position_features(parse_wells(WELLS, 384))
RIM = FEATURES["ring"].to_numpy() == 1
KINDS = ("ring", "smooth", "null", "null, trend", "null, poor rim")
FIRST_SEED = 5000


def unit(values: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Rows in the gauge that counts can show, of unit root mean square."""
    values = values - (values @ share)[:, None]
    return values / np.sqrt((values**2).mean(1, keepdims=True))


def plate(kind: str, seed: int, size: float = SIZE) -> tuple:
    """Counts (N, G), well and condition of each cell, and the size of the edge effect."""
    rng = np.random.default_rng(seed)
    bias = rng.normal(0, 1, GENES)
    share = np.exp(bias) / np.exp(bias).sum()
    names = [f"p{k:02d}" for k in range(PERTURBATIONS)]
    condition = np.repeat([*names, "control"], [REPLICATES] * PERTURBATIONS + [84])
    condition = rng.permutation(condition)
    effect = EFFECT_RMS * unit(rng.normal(size=(PERTURBATIONS, GENES)), share)
    effect[rng.permutation(PERTURBATIONS)[: PERTURBATIONS // 2]] = 0
    shift = pd.DataFrame(np.vstack([effect, np.zeros(GENES)]), [*names, "control"])
    shared = rng.normal(size=(len(WELLS), 2)) @ unit(rng.normal(size=(2, GENES)), share) / 2**0.5
    noise = WELL_SD * (rng.normal(size=(len(WELLS), GENES)) + shared) / 2**0.5
    cells = np.full(len(WELLS), CELLS)
    if kind == "null, poor rim":
        noise[RIM] *= 2**0.5
        cells[RIM] //= 2
    level = bias + shift.loc[condition].to_numpy() + noise
    direction = unit(rng.normal(size=(1, GENES)), share)
    feature = {"ring": "ring", "smooth": "smooth", "null, trend": "column"}.get(kind)
    if feature:
        level = level + size * FEATURES[feature].to_numpy()[:, None] * direction
    well = np.repeat(np.arange(len(WELLS)), rng.poisson(cells).clip(2))
    loading = 0.3 * unit(rng.normal(size=(3, GENES)), share)
    logits = level[well] + rng.normal(size=(len(well), 3)) @ loading
    mean = np.exp(logits - logits.max(1, keepdims=True))
    mean *= LIBRARY * rng.lognormal(0, 0.3, (len(well), 1)) / mean.sum(1, keepdims=True)
    counts = rng.poisson(mean * rng.gamma(THETA, 1 / THETA, mean.shape))
    usual = softmax(level + (loading**2).sum(0) / 2, axis=1).mean(0)  # of the whole plate
    truth = realised(bias, loading, size * direction, usual) if kind in ("ring", "smooth") else 0.0
    return sp.csr_matrix(counts), np.asarray(WELLS)[well], condition[well], truth


def realised(bias: np.ndarray, loading: np.ndarray, effect: np.ndarray, usual: np.ndarray) -> float:
    """Size of an effect on the mean of many cells, in the gauge of counts.

    Cells differ in state, so that the log of their mean moves by a little less or more than each.
    """
    z = np.random.default_rng(0).normal(size=(4000, len(loading))) @ loading
    at_rest, moved = (softmax(bias + z + e, axis=1).mean(0) for e in (0, effect))
    change = np.log(moved / at_rest)
    return float(np.sqrt(((change - change @ usual) ** 2).mean()))


def judge(kind: str, seed: int) -> dict:
    """One plate."""
    counts, well, condition, truth = plate(kind, seed)
    levels = well_levels(counts, well, condition)
    found = edge_effects(levels, plate_size=384).set_index("effect")
    edge = found.loc["edge"]
    inside = dict(zip(WELLS, RIM, strict=True))
    rim = np.array([inside[name] for name in levels.value.index])
    value = levels.value.to_numpy()
    p = ttest_ind(value[rim], value[~rim]).pvalue
    difference = value[rim].mean(0) - value[~rim].mean(0)
    return {
        "kind": kind,
        "posterior": edge["posterior"],
        "size": edge["size"],
        "covered": edge["lower"] <= truth <= edge["upper"],
        "truth": truth,
        "right_shape": found.loc["ring", "posterior"] > found.loc["smooth", "posterior"],
        "trend": found.loc["column", "posterior"],
        "anchor_called": p.min() < 0.05 / len(p),
        "anchor_size": np.sqrt((difference**2).mean()),
    }


def main() -> None:
    """Judge all plates."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plates", type=int, default=50, help="of each kind")
    parser.add_argument("--seed", type=int, default=FIRST_SEED)
    args = parser.parse_args()
    quiet()
    start, rows = time.process_time(), []
    for k, kind in enumerate(KINDS):
        rows += [judge(kind, args.seed + k * args.plates + i) for i in range(args.plates)]
    table = pd.DataFrame(rows)
    table["found"] = table["posterior"] > 0.95
    table["within_20%"] = (table["size"] / SIZE - 1).abs() < 0.2
    columns = "found posterior truth size within_20% covered right_shape trend".split()
    columns += ["anchor_called", "anchor_size"]
    print(table.groupby("kind", sort=False)[columns].mean().round(3).to_string())
    null = table["kind"].str.startswith("null")
    real = table[~null]
    shape = np.where(real["kind"] == "ring", real["right_shape"], ~real["right_shape"])
    write_results(
        "arrayed",
        {
            part_of(parser, args): {
                "plates_each": args.plates,
                "found": real["found"].mean(),
                "within_20_percent": real["within_20%"].mean(),
                "worst_size_error": (real["size"] / SIZE - 1).abs().max(),
                "covered_90": real["covered"].mean(),
                "right_shape": shape.mean(),
                "null_plates": int(null.sum()),
                "false_on_null": table.loc[null, "found"].mean(),
                "largest_null_posterior": table.loc[null, "posterior"].max(),
                "anchor_called": real["anchor_called"].mean(),
                "anchor_false_on_null": table.loc[null, "anchor_called"].mean(),
                "anchor_size": real["anchor_size"].mean(),
                "cpu_seconds": time.process_time() - start,
            }
        },
        range(args.seed, args.seed + len(table)),
        rooms=ROOMS,
    )


if __name__ == "__main__":
    main()
