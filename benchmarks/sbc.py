"""Simulation-based calibration: screens drawn from the model's own prior, fitted as a user would.

Two layouts of 20 perturbations, 50 genes, 40 cells per condition and 3 batches: one medium beyond
baseline and one time; and no medium and three times. Three axes of cell state and three of the
response: a low-rank model where it is one. Axes of state and learned widths, which have no prior,
are the starting values. Printed for effects, gains, rates and η: coverage of 90% intervals, and
whether ranks stay in the 95% band of the ECDF.

Default priors are wide so as not to get in the way of a fit. Screens drawn from them are unlike any
laboratory's: a medium changes genes by e⁶, and their expression spreads over e⁴.
`--priors typical` draws and fits with widths that real screens show, `--priors default` as is;
`--axes 10 8` takes the default number of axes, nearly as many as there are perturbations.

    python benchmarks/sbc.py --jobs 2
"""

from __future__ import annotations

import argparse

import pandas as pd
from code_state import FIT
from common import part_of, quiet, write_results

import pyrocell
from pyrocell.diagnostics.calibration import (
    coverage_table,
    ecdf_difference,
    simulation_based_calibration,
)

ROOMS = (*FIT, "diagnostics")  # that the figures depend on
SCREEN = {
    "n_perturbations": 20,
    "n_genes": 50,
    "n_cells_per_condition": 40,
    "n_controls": 200,
    "n_batches": 3,
    "batch_sd": 0.2,
    "effect_rms": 0.2,
}
LAYOUTS = {"media": {"media": 1}, "times": {"times": (0.5, 1.0, 2.0)}}
SEED = 1300
PRIORS = {
    "default": pyrocell.Priors(),
    "typical": pyrocell.Priors(
        baseline_sd=0.5, media_effect_sd=0.15, dispersion_sd=0.5, effect_sd=0.15, drift_sd=0.05
    ),
}


def calibrate(
    layout: str, priors: str, axes: list[int], replicates: int, jobs: int, seed: int
) -> pd.DataFrame:
    """Ranks over replicates of one layout."""
    adata = pyrocell.simulate.screen(seed=seed, **SCREEN, **LAYOUTS[layout])
    keys = {f"{key}_key": key for key in ("media", "time") if key in adata.obs}
    pyrocell.PyroCell.setup_anndata(adata, **keys)
    n_latent, n_response = axes
    model = pyrocell.PyroCell(
        adata, n_latent=n_latent, n_response=n_response, priors=PRIORS[priors]
    )
    return simulation_based_calibration(model, replicates, seed=seed, n_jobs=jobs)


def main() -> None:
    """Run the layouts and print coverage and bands."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--replicates", type=int, default=10)
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    parser.add_argument("--priors", choices=PRIORS, default="typical")
    parser.add_argument("--axes", type=int, nargs=2, default=[3, 3])
    parser.add_argument("--seed", type=int, default=SEED)
    args = parser.parse_args()
    quiet()
    figures = {}
    for layout in args.layouts:
        ranks = calibrate(layout, args.priors, args.axes, args.replicates, args.jobs, args.seed)
        cover = coverage_table(ranks)
        band = ecdf_difference(ranks).groupby("quantity", sort=False)
        inside = band["inside"].all()
        print(layout)
        print(cover.round(3).to_string())
        print(
            pd.DataFrame(
                {
                    "in_band": inside,
                    "largest": band["difference"].agg(lambda d: d.abs().max()),
                    "n_effective": band["n_effective"].first(),
                }
            )
            .round(3)
            .to_string(),
            flush=True,
        )
        nine = cover[cover.level == 0.9].set_index("quantity")
        figures[layout] = {
            name: {
                "coverage_90": nine.share[name],
                "standard_error": nine.standard_error[name],
                "in_band_95": bool(inside[name]),
            }
            for name in nine.index
        }
    write_results(
        "sbc",
        {
            part_of(parser, args): {
                "priors": args.priors,
                "axes": args.axes,
                "replicates": args.replicates,
                "seed": args.seed,
                **figures,
            }
        },
        [args.seed],
        rooms=ROOMS,
    )


if __name__ == "__main__":
    main()
