"""Draw every function of `pyrocell.pl` into docs/figures/pl/, and list them on docs/figures.md.

python scripts/draw_figures.py            # all; about two minutes
python scripts/draw_figures.py effects    # those whose name begins so
"""

from __future__ import annotations

import ast
import inspect
import io
import sys
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from PIL import Image

import pyrocell
from pyrocell import PyroCell, arrayed, design, pl, pseudotime, simulate

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from effect_screens import screen

DOCS = Path(__file__).parents[1] / "docs"
FOLDER, PAGE = DOCS / "figures" / "pl", DOCS / "figures.md"
BEGIN, END = "<!-- figures: begin -->\n", "<!-- figures: end -->\n"
NAMES = {
    "explained": 'model.explain("target05", "gene04", media="medium0")',
    "explained_steps": 'model.explain("target05", media="medium0", by="step")',
    "hipsc_effects": "model.perturbation_effects()",
    "hipsc_course": "pd.concat(model.perturbation_effects(time=t) for t in model.screen.times)",
    "hipsc_assumptions": "model.assumptions()",
    "hipsc_shifts": "model.temporal_shift()",
    "hipsc": "model",
    "stimulus": "model",
    "confounded": "model",
    "wells": "model",
    "recommendation": "found",
    "edges": "edges",
    "differentiation": "adata",
    "ranks": "ranks",
    "forecasts": "table",
    "curves": "histories",
    "predicted": "predicted",
    "guided": "model",
    "held_out": "found",
}  # on the page, of the functions of this script
DPI = 80
COLOURS = 128  # of a PNG: the figures are flat, and files stay small

# In the order of the page: what one looks at when.
CHAPTERS = {
    "The screen": ("layout", "layout_graph", "lane_map", "cost_curve"),
    "The fit": ("history", "predictive_check", "latent"),
    "What perturbations do": (
        "effects",
        "volcano",
        "effect_intervals",
        "similarity",
        "time_course",
        "temporal_shift",
        "gains",
        "explain",
        "network",
        "guides",
        "signature",
    ),
    "Conditions that were not measured": ("prediction",),
    "Batches and wells": (
        "batch_effects",
        "error_analysis",
        "noise_sensitivity",
        "plate_map",
        "edge_effects",
    ),
    "Assumptions": ("assumption_map", "prior_posterior", "response_curves", "steady_screen"),
    "Cells that differentiate": ("trajectory", "retention"),
    "Whether posteriors mean what they say": (
        "rank_histogram",
        "ecdf_difference",
        "reliability",
        "learning_curves",
        "evaluation",
    ),
}


# ---------------------------------------------------------------------- fits
@cache
def hipsc() -> PyroCell:
    """The embedded screen, every fourth cell, a short fit."""
    adata = pyrocell.datasets.hipsc_timecourse()[::4].copy()
    PyroCell.setup_anndata(
        adata,
        batch_key="batch",
        perturbation_key="perturbation",
        control="control",
        time_key="time",
        size_factor_key="size_factor",
    )
    model = PyroCell(adata)
    model.train(max_epochs=60, progress_bar=False)
    return model


@cache
def stimulus() -> PyroCell:
    """A simulated screen with a medium; a tenth of the perturbations block it."""
    adata = simulate.screen(
        n_perturbations=12,
        n_genes=40,
        n_cells_per_condition=60,
        n_batches=4,
        balanced=False,
        media=1,
        blocked_fraction=0.25,
        effect_rms=0.3,
        mean_library=800.0,
        seed=5,
    )
    PyroCell.setup_anndata(adata, media_key="media")
    model = PyroCell(adata, n_latent=4, n_response=4, n_hidden=32)
    model.train(max_epochs=40, progress_bar=False)
    return model


@cache
def confounded() -> PyroCell:
    """The same with a medium mostly in lanes of its own."""
    adata = stimulus().adata.copy()
    late = adata.obs["batch"].isin(["batch2", "batch3"])
    treated = adata.obs["media"] != "baseline"
    few = np.arange(len(adata)) % 12 == 0
    adata = adata[(late == treated) | few].copy()
    PyroCell.setup_anndata(adata, media_key="media")
    model = PyroCell(adata, n_latent=4, n_response=4, n_hidden=32)
    model.train(max_epochs=20, progress_bar=False)
    return model


def explained() -> pd.DataFrame:
    """Terms of the gene that the medium moves most, in cells with the lowest gain."""
    name, medium = _lowest_gain()
    table = stimulus().explain(name, media=medium, n_samples=200)
    medium = table[table["term"] == "medium"]
    gene = medium["gene"].iloc[int(medium["mean"].abs().to_numpy().argmax())]
    return table[table["gene"] == gene]


def explained_steps() -> pd.DataFrame:
    """Steps of the same perturbation over all genes."""
    name, medium = _lowest_gain()
    return stimulus().explain(name, media=medium, by="step", n_samples=200)


def _lowest_gain() -> tuple[str, str]:
    gains = stimulus().media_gains(n_samples=100)
    return tuple(gains.sort_values("mean")[["perturbation", "media"]].iloc[0])


@cache
def guided() -> PyroCell:
    """A simulated screen with guides of unequal efficacy; a fifth of the cells escape."""
    adata = screen(6, n_perturbations=7, n=200, n_genes=150, guides=True, escape=0.2, silent=0.3)
    PyroCell.setup_anndata(adata, guide_key="guide")
    model = PyroCell(adata, n_latent=4, n_response=4, n_hidden=32)
    model.train(max_epochs=30, progress_bar=False)
    return model


@cache
def hipsc_effects() -> pd.DataFrame:
    return hipsc().perturbation_effects(n_samples=100)


@cache
def hipsc_course() -> pd.DataFrame:
    model = hipsc()
    return pd.concat(model.perturbation_effects(time=t, n_samples=100) for t in model.screen.times)


@cache
def hipsc_assumptions() -> pd.DataFrame:
    return hipsc().assumptions()


@cache
def hipsc_shifts() -> pd.DataFrame:
    return hipsc().temporal_shift(["POU5F1", "SOX2", "PRDM14"])


@cache
def recommendation() -> design.Recommendation:
    plan = design.Plan(
        60, ["baseline", "IFNG"], lanes=8, cells_per_lane=10_000, hashing=False, min_controls=100
    )
    return design.recommend(plan, seconds=5)


@cache
def plate() -> AnnData:
    """A plate of 96 wells with a ring effect."""
    rng = np.random.default_rng(3)
    effect = 0.4 * rng.permutation(np.tile([-1.0, 1.0, 0.5], 5))
    wells = arrayed.well_names(96)
    rim = arrayed.position_features(arrayed.parse_wells(wells))["ring"].to_numpy()
    level = np.log(20.0) + 0.05 * rng.normal(size=(96, 15)) + rim[:, None] * effect
    well = np.repeat(np.arange(96), 6)
    label = np.array(["control", "A", "B"])[rng.permutation(96) % 3][well]
    obs = pd.DataFrame({"well": np.array(wells)[well], "perturbation": label})
    genes = pd.DataFrame(index=[f"gene{g}" for g in range(15)])
    counts = rng.poisson(np.exp(level[well])).astype(np.int32)
    return AnnData(sp.csr_matrix(counts), obs.set_index(obs.index.astype(str)), genes)


@cache
def edges() -> pd.DataFrame:
    cells = plate()
    return arrayed.edge_effects(
        arrayed.well_levels(
            cells.X, cells.obs["well"], cells.obs["perturbation"], genes=cells.var_names
        )
    )


@cache
def wells() -> PyroCell:
    cells = plate()
    PyroCell.setup_anndata(cells, batch_key="well")
    model = PyroCell(cells, n_latent=2, n_response=2, n_hidden=16)
    model.train(max_epochs=20, progress_bar=False)
    return model


@cache
def differentiation() -> AnnData:
    adata = simulate.differentiation(n_lineages=2, seed=1)
    pseudotime.assign_pseudotime(adata, root=("stage", "early"), inplace=True)
    return adata


@cache
def ranks() -> pd.DataFrame:
    """Ranks as a calibrated posterior and one that is too narrow would give them."""
    rng = np.random.default_rng(0)
    names = {"effect": rng.integers(0, 100, 400), "gain": 99 * rng.beta(0.5, 0.5, 400) // 1}
    return pd.concat(
        pd.DataFrame(
            {
                "quantity": name,
                "rank": rank.astype(int),
                "n_draws": 99,
                "replicate": np.arange(400) // 20,
            }
        )
        for name, rank in names.items()
    )


def forecasts() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    probability = rng.beta(0.6, 0.6, 400)
    return pyrocell.metrics.reliability_table(rng.random(400) < probability, probability)


def curves() -> dict[str, pd.DataFrame]:
    adata = pyrocell.datasets.hipsc_timecourse()
    adata = adata[:, :40].copy()
    held_out = pd.DataFrame({"perturbation": ["POU5F1", "SOX2"], "time": 5.0})
    ode = pyrocell.PseudobulkODE(adata, size_factor_key="size_factor")
    return {
        name: ode.fit(seeds=range(4), held_out=held_out, max_epochs=80, steady_state_weight=weight)
        for name, weight in (("eq. 5", 0.0), ("with eq. 9", 1.0))
    }


def held_out() -> pyrocell.metrics.Evaluation:
    labels = ["POU5F1", "SOX2", "MYC", "PRDM14", "RUNX1T1", "ZIC2"]
    return pyrocell.metrics.evaluate(
        hipsc(),
        {"perturbation": labels, "time": [5.0]},
        train={"max_epochs": 40},
        n_samples=60,
        external=(),
    )


def predicted() -> AnnData:
    labels = ["control", "POU5F1", "SOX2"]
    table = pd.DataFrame([(p, t) for p in labels for t in np.linspace(2, 6, 9)])
    return hipsc().predict(table.set_axis(["perturbation", "time"], axis=1), n_samples=60)


# ---------------------------------------------------------------------- figures
FIGURES: dict[str, Callable[[], object]] = {
    "layout": lambda: pl.layout(hipsc()),
    "layout_graph": lambda: pl.layout_graph(stimulus().screen),
    "lane_map": lambda: pl.lane_map(recommendation().layout),
    "cost_curve": lambda: pl.cost_curve(design.cost_curve(recommendation().plan)),
    "history": lambda: pl.history(hipsc()),
    "predictive_check": lambda: pl.predictive_check(
        hipsc().posterior_predictive_check(n_samples=50)
    ),
    "latent": lambda: pl.latent(hipsc()),
    "latent-batch": lambda: pl.latent(hipsc(), color="batch"),
    "effects": lambda: pl.effects(hipsc_effects()),
    "volcano": lambda: pl.volcano(hipsc_effects(), "POU5F1"),
    "effect_intervals": lambda: pl.effect_intervals(hipsc_effects()),
    "effect_intervals-gene": lambda: pl.effect_intervals(hipsc_effects(), genes="NANOG"),
    "similarity": lambda: pl.similarity(hipsc_effects()),
    "time_course": lambda: pl.time_course(hipsc_course(), "NANOG"),
    "temporal_shift": lambda: pl.temporal_shift(hipsc(), hipsc_shifts()),
    "gains": lambda: pl.gains(stimulus().media_gains(n_samples=100)),
    "explain": lambda: pl.explain(explained()),
    "explain-step": lambda: pl.explain(explained_steps()),
    "network": lambda: pl.network(hipsc().network(n_samples=100)),
    "guides": lambda: pl.guides(guided().guides()),
    "guides-share": lambda: pl.guides(guided().guides(), share=True),
    "signature": lambda: pl.signature(hipsc().signature("PRDM14", time=3.0)),
    "prediction": lambda: pl.prediction(predicted()[[4, 13, 22]]),
    "prediction-time": lambda: pl.prediction(predicted(), "NANOG", over_time=True),
    "batch_effects": lambda: pl.batch_effects(stimulus().batch_effects(n_samples=100)),
    "error_analysis": lambda: pl.error_analysis(design.error_analysis(stimulus())),
    "noise_sensitivity": lambda: pl.noise_sensitivity(design.noise_sensitivity(confounded())),
    "plate_map": lambda: pl.plate_map(wells(), edges=edges()),
    "edge_effects": lambda: pl.edge_effects(edges()),
    "assumption_map": lambda: pl.assumption_map(hipsc_assumptions()),
    "prior_posterior": lambda: pl.prior_posterior(hipsc_assumptions(), "steady_vs_control"),
    "response_curves": lambda: pl.response_curves(
        hipsc(), "POU5F1", table=hipsc_assumptions(), n_samples=50
    ),
    "steady_screen": lambda: pl.steady_screen(hipsc().steady_state_screen(n_draws=50, n_splits=20)),
    "trajectory": lambda: pl.trajectory(pseudotime.trajectory_distribution(differentiation())),
    "retention": lambda: pl.retention(pseudotime.retention(differentiation())),
    "rank_histogram": lambda: pl.rank_histogram(ranks()),
    "ecdf_difference": lambda: pl.ecdf_difference(ranks()),
    "reliability": lambda: pl.reliability(forecasts()),
    "learning_curves": lambda: pl.learning_curves(curves()),
    "evaluation": lambda: pl.evaluation(held_out()),
}


def draw(name: str) -> None:
    """Write a figure as a small PNG."""
    axes = np.atleast_1d(np.asarray(FIGURES[name](), dtype=object))
    buffer = io.BytesIO()
    axes[0].figure.savefig(buffer, dpi=DPI)
    plt.close("all")
    picture = Image.open(buffer).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    picture.save(FOLDER / f"{name}.png", optimize=True)


def calls() -> dict[str, str]:
    """The code of every figure, with the fits of this script by the names of the other pages."""
    tree = ast.parse(Path(__file__).read_text(encoding="utf-8"))
    (figures,) = (
        node.value
        for node in tree.body
        if isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") == "FIGURES"
    )
    found = {}
    for key, value in zip(figures.keys, figures.values):
        text = ast.unparse(value.body)
        for name, shown in NAMES.items():
            text = text.replace(f"{name}()", shown)
        found[key.value] = "pyrocell." + text.replace("'", '"')
    return found


def listing() -> str:
    """The part of the page that follows from the functions."""
    code = calls()
    parts = []
    for chapter, names in CHAPTERS.items():
        parts.append(f"## {chapter}\n")
        for name in names:
            summary = inspect.getdoc(getattr(pl, name)).split("\n\n")[0].replace("\n", " ")
            parts.append(f"### {name}\n\n{summary} {{py:func}}`~pyrocell.pl.{name}`\n")
            for figure in (f for f in FIGURES if f.split("-")[0] == name):
                parts.append(f"```{{code-block}} python\n{code[figure]}\n```\n")
                parts.append(f"![{summary}](figures/pl/{figure}.png)\n")
    return "\n".join(parts)


def rendered(text: str) -> str:
    """The page with its list as the code has it now."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + "\n" + listing() + "\n" + END + rest.split(END)[1]


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore")
    for figure in FIGURES:
        if figure.startswith(tuple(sys.argv[1:] or [""])):
            try:
                draw(figure)
            except Exception as error:
                print(figure, type(error).__name__, error)
    if PAGE.exists():
        PAGE.write_text(rendered(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
