# ruff: noqa: E501  (cells of a table)
"""Rows of README's table of further figures.

A row says how its cells come from the results file of its script. Until that script has been run
with its defaults, or with the options that the row names, it shows what was recorded by hand, and
at which commit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from sources import number, parts_of, unchanged

DAGGER = " †"


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes
    ----------
    what
        What was measured.
    benchmark
        Script, without its ending.
    parts
        Parts of its results file that are needed.
    cells
        From the figures of these parts to the cells of pyrocell and of the anchor.
    recorded
        The two cells as they were written down, and the commit that they are of.
    options
        Options of the script beyond its defaults; `None` where the row above names the script.
    note
        What is said of the recorded figures alone.
    """

    what: str
    benchmark: str
    parts: tuple[str, ...]
    cells: Callable[..., tuple[str, str]]
    recorded: tuple[str, str, str]
    options: str | None = None
    note: str = ""

    @property
    def script(self) -> str:
        """Script and options, where they are named."""
        return "" if self.options is None else f"{self.benchmark}.py {self.options}".strip()

    def rendered(self, found: dict[str, Any] | None = None) -> list[str]:
        """What, pyrocell, anchor, script, commit; the commit with a dagger if code has changed.

        `found` are the parts of the results file, which is read where they are not given.
        """
        found = parts_of(self.benchmark) if found is None else found
        script = f"`{self.script}`" if self.script else ""
        if any(part not in found for part in self.parts):
            ours, anchor, commit = self.recorded
            what = f"{self.what} ({self.note})" if self.note else self.what
            return [what, ours, anchor, script, commit + DAGGER]
        ours, anchor = self.cells(*(found[part]["figures"] for part in self.parts))
        made = [found[part]["from"] for part in self.parts]
        commits = ", ".join(dict.fromkeys(source["commit"] for source in made))
        return [self.what, ours, anchor, script, commits + ("" if unchanged(made) else DAGGER)]


def error(value: float) -> str:
    """Two significant digits, no leading zero."""
    text = f"{value:.2g}" if value >= 1e-4 else f"{value:.1e}"
    return text.removeprefix("0") if text.startswith("0.") else text


def thousandths(value: float) -> str:
    """Three decimals, no leading zero."""
    return f"{value:.3f}".removeprefix("0")


def span(values: Iterable[float]) -> str:
    """Smallest and largest."""
    low, high = (number(f(list(values))) for f in (min, max))
    return low if low == high else f"{low}-{high}"


def percent(value: float) -> str:
    """Of a share."""
    return f"{100 * value:.3g}%"


def _day_5(split: str) -> Callable[[dict], tuple[str, str]]:
    def cells(figures: dict) -> tuple[str, str]:
        row = figures["splits"][f"{split}, relaxation"]
        without = ("control", "carry_forward", "own_plus_control_change", "own_plus_others_change")
        best = error(min(row[name] for name in without))
        return f"{error(row['mse'])}; {number(row['coverage'])}", best

    return cells


def _on_target(figures: dict) -> tuple[str, str]:
    return str(figures["on_target_below_zero"]), ""


def _pathway(figures: dict) -> tuple[str, str]:
    ours = f"{figures['pairs_down']}; {figures['cav1_down']}"
    return ours, str(figures["anchor_pairs_negative"])


def _predictive(figures: dict) -> tuple[str, str]:
    return number(figures["genes_inside"]), ""


def _doubles(figures: dict) -> tuple[str, str]:
    ours = f"{number(figures['pearson'])}; {number(figures['coverage'])}"
    return ours, number(figures["additive"])


def _held_out(figures: dict) -> tuple[str, str]:
    def gain(screen: str) -> str:
        rows = [row for row in figures["results"] if row["screen"] == screen]
        mean, se = (np.mean([r[k] for r in rows]) for k in ("difference", "standard_error"))
        return f"{'+' if mean > 0 else ''}{number(mean)} ± {number(se)}"

    return f"{gain('norman')}, {gain('papalexi')}", "0"


def _gains(figures: list) -> tuple[str, str]:
    genes = ("ZAP70", "LCK", "LAT")
    means = [number(np.mean([row["gains"][gene][0] for row in figures])) for gene in genes]
    worst = max(rank for row in figures for rank in row["ranks"].values())
    lowest = "" if worst == len(genes) else f"; largest rank {worst}"
    return ", ".join(means) + lowest, "same three"


def _media_gains(figures: dict) -> tuple[str, str]:
    rows = list(figures.values())
    held = span(row[k] for row in rows for k in ("blocked_coverage", "open_coverage"))
    ours = f"{held}; {span(row['rmse'] for row in rows)}"
    return ours, span(row["anchor_rmse"] for row in rows)


def _many_small(figures: dict) -> tuple[str, str]:
    keys = ("eta_r", "eta_coverage", "active_coverage", "silent_coverage")
    return "; ".join(number(figures[key]) for key in keys), ""


def _many_small_errors(figures: dict) -> tuple[str, str]:
    keys = ("active_rmse", "common_silent_rms"), ("pseudobulk_rmse", "pseudobulk_common_silent_rms")
    ours, anchor = ("; ".join(number(figures[key]) for key in names) for names in keys)
    return ours, anchor


def _pairs(figures: dict) -> tuple[str, str]:
    ours = f"{number(figures['covered'])}; {number(figures['error'])}"
    return ours, number(figures["other cells' mean"])


def _calibration(figures: dict) -> tuple[str, str]:
    layouts = [figures[name] for name in ("media", "times")]
    spans = [
        span(row[name]["coverage_90"] for row in layouts if name in row)
        for name in ("effect", "eta", "gain", "log_rate")
    ]
    return "; ".join(spans), ""


def _layouts(figures: dict) -> tuple[str, str]:
    wins = [percent(figures["wins"][name]) for name in ("random", "controls in one lane")]
    return f"{thousandths(figures['correlation'])}; {', '.join(wins)}", ""


def _plates(figures: dict) -> tuple[str, str]:
    real, null = 2 * figures["plates_each"], figures["null_plates"]

    def counts(found: float, false: float) -> str:
        return f"{found * real:.0f} of {real}; {false * null:.0f}"

    anchor = counts(figures["anchor_called"], figures["anchor_false_on_null"])
    return counts(figures["found"], figures["false_on_null"]), anchor.replace(f" of {real}", "")


def _order(figures: dict) -> tuple[str, str]:
    rmse = figures["blocking, none seen"]["rmse"]
    ours, blind, locked = (
        thousandths(rmse[name]) for name in ("model", "fit, blind to order", "fit, gain locked")
    )
    best = min(value for name, value in rmse.items() if name.startswith("counts"))
    return f"{ours} ({blind}, {locked})", thousandths(best)


def _fates(figures: dict) -> tuple[str, str]:
    flow, sde = (
        [thousandths(figures[name][key]) for key in ("measured", "held")]
        for name in ("flow", "sde")
    )
    best = min(figures["flow"][name] for name in ("held_own_last", "held_control"))
    anchor = f"{thousandths(figures['flow']['measured_cells'])} (the cells themselves); {thousandths(best)}"
    return f"{'; '.join(flow)} ({'; '.join(sde)})", anchor


def _content(figures: dict) -> tuple[str, str]:
    ours = f"{thousandths(figures['eta_r'])}; {number(figures['eta_coverage'])}; "
    return ours + f"{figures['rmse_ratio']:.3f} ×", ""


def _guides(figures: list) -> tuple[str, str]:
    (row,) = figures
    keys = ("unshrunken_excluding_zero", "excluding_zero")
    return "; ".join(f"{100 * row[k]:.1f}%" for k in keys), f"{100 * row['anchor_poisson']:.1f}%"


def _new_batches(screens: list, left_out: list) -> tuple[str, str]:
    batches = [row for row in screens if row["screen"] == "batches"]
    (laboratories,) = (row for row in screens if row["screen"] == "laboratories")
    held = [np.mean([row["coverage"] for row in batches]), laboratories["coverage"]]
    held.append(left_out[0]["coverage"])
    without = [span(row["average_coverage"] for row in batches)]
    without += [number(row["average_coverage"]) for row in (laboratories, left_out[0])]
    return "; ".join(number(value) for value in held), "; ".join(without) + " (η = 0)"


def _lanes(figures: list) -> tuple[str, str]:
    return "; ".join(number(row["coverage"]) for row in figures), ""


def _fig_4(figures: dict) -> tuple[str, str]:
    row = figures["comparison"]["final epoch"]
    best = min(value for name, value in figures["anchors"].items() if name != "sampling_noise")
    ours = ", ".join(f"{row[loss]:.4f}".removeprefix("0") for loss in ("eq. 5", "eq. 5 + eq. 9"))
    return ours, f"{best:.4f}".removeprefix("0")


def _steady(figures: dict) -> tuple[str, str]:
    found = figures["correlation_with_inverse_n"]
    return number(found["rms"][0]), number(found["raw"][0])


def _assumptions(figures: dict) -> tuple[str, str]:
    simulators = ("own", "harissa", "grnlab")
    names = ("silent_at_baseline", "steady", "steady_vs_control", "no_response")

    def cells(key: str) -> str:
        each = [[number(figures[s][name][key]) for s in simulators] for name in names]
        return "; ".join(", ".join(values) for values in each)

    return cells("auroc"), cells("anchor_auroc")


def _shuffled(figures: dict) -> tuple[str, str]:
    screens = ("hipsc", "datlinger", "papalexi")
    active = [error(figures[s]["shuffled"]["silent_at_baseline < .1"]) for s in screens]
    blocked = figures["datlinger"]["shuffled"]["no_response > .5"]
    return f"{', '.join(active)}; {error(blocked)}", ""


def _training(figures: dict) -> tuple[str, str]:
    curved, linear = (
        [f"{figures[n][f'pyrocell, {d} decoder']['against_scvi']['wall']:.1f}" for n in figures]
        for d in ("curved", "linear")
    )
    return f"{', '.join(curved)} × ({', '.join(linear)})", "1"


def _quality(figures: dict) -> tuple[str, str]:
    def ratio(value: float | None) -> str:
        return "never" if value is None else f"{error(value)} ×"

    def reached(screen: str) -> str:
        end, best = (figures[screen]["ratio"][k] for k in ("end", "best"))
        return f"{ratio(end)} ({ratio(best).removesuffix(' ×')})"

    return "; ".join(reached(screen) for screen in ("simulated", "papalexi")), "1"


def _ten_thousand(figures: dict) -> tuple[str, str]:
    return f"{figures['ratio']['wall']:.2f} ×", ""


def _million(figures: dict) -> tuple[str, str]:
    found = figures["cells"]["1000000"]
    ours = f"{number(found['ratio']['wall'])} ×; {found['file']['peak']:.2f} GiB"
    return ours, f"{found['memory']['peak']:.1f} GiB"


def _likelihood(figures: dict) -> tuple[str, str]:
    (row,) = (row for row in figures["results"] if row["cells"] == 512)
    return f"{row['speedup_csr_over_function']:.1f} ×", "1"


ALL = ("all",)
ROWS = (
    Row(
        "day 5 of 11 held-out knockouts, MSE of log1p mean counts (5 seeds); 90% intervals cover",
        "hipsc_day5",
        ALL,
        _day_5("A"),
        (".0064; .90", ".0086", "c526564"),
        options="",
    ),
    Row(
        "the same for the 12 others",
        "hipsc_day5",
        ALL,
        _day_5("B"),
        (".0021; .93", ".0039", "63a1b1d"),
    ),
    Row(
        "the same, each of the 23 held out alone",
        "hipsc_day5",
        ALL,
        _day_5("L"),
        (".0039; .93", ".0056", "63a1b1d"),
    ),
    Row(
        "THP-1 screen: knockouts whose own transcript is down (95% interval), of 9",
        "real_screens",
        ("papalexi",),
        _on_target,
        ("9", "", "63a1b1d"),
        options="",
    ),
    Row(
        "STAT1, UBE2L6, TNFRSF14, JAK2 down in four interferon-pathway knockouts, of 16 pairs; in the CAV1 knockout, of 4",
        "real_screens",
        ("papalexi",),
        _pathway,
        ("16; 0", "16", "63a1b1d"),
    ),
    Row(
        "genes with zero fraction and variance inside the 99% predictive band",
        "real_screens",
        ("papalexi",),
        _predictive,
        (".97", "", "63a1b1d"),
    ),
    Row(
        "K562 doubles held out, Pearson of deltas; 90% intervals cover",
        "real_screens",
        ("norman",),
        _doubles,
        (".82; .90", ".76", "5858c60"),
    ),
    Row(
        "held-out cells, nats per cell above scvi-tools' SCVI: K562, THP-1",
        "heldout_likelihood",
        ALL,
        _held_out,
        ("+1.62 ± .16, -.07 ± .05", "0", "63a1b1d"),
        options="",
    ),
    Row(
        "stimulation screen: gains of ZAP70, LCK, LAT, the lowest three of 20 (three seeds)",
        "effects",
        ("stimulation",),
        _gains,
        (".60, .67, .68", "same three", "5858c60"),
        options="",
    ),
    Row(
        "simulated media gains, 20 and 200 control cells per arm: 90% intervals cover; RMSE",
        "media_gains",
        ALL,
        _media_gains,
        (".44-.89; .06-.07", ".12", "5858c60"),
        options="",
        note="before gene-level effects were drawn: .86-1.00; .04-.06",
    ),
    Row(
        "simulated screens of many small effects, 3-12 batches: η r; 90% intervals of η, of active, of silent effects cover",
        "batch_recovery",
        ALL,
        _many_small,
        (".95; .87; .85; 1.00", "", "5858c60"),
        options="",
        note="before: .96; .88; .93; .94",
    ),
    Row(
        "the same: RMSE of active effects; effect common to silent ones, RMS (log-fold change)",
        "batch_recovery",
        ALL,
        _many_small_errors,
        (".076; .003", ".21; .069", "5858c60"),
    ),
    Row(
        "simulated pairs, the same cell under two treatments: genes inside 90% intervals; MSE of log share",
        "counterfactual_pairs",
        ALL,
        _pairs,
        (".88; .067", ".23", "63a1b1d"),
        options="",
    ),
    Row(
        "simulation-based calibration, 90% intervals: effects; η; gains; rates",
        "sbc",
        ALL,
        _calibration,
        (".88-.91; .88-.90; .88; .53", "", "63a1b1d"),
        options="",
    ),
    Row(
        "layouts of 200 simulated plans: expected against realised error, r; recommended better than random, than controls in one lane",
        "design_value",
        ALL,
        _layouts,
        (".975; 96.5%, 99%", "", "63a1b1d"),
        options="",
    ),
    Row(
        "384-well plates, edge effect of .2 found; false edges on 150 plates without",
        "arrayed",
        ALL,
        _plates,
        ("100 of 100; 0", "100; 16", "63a1b1d"),
        options="",
    ),
    Row(
        "order of operations, harissa: stimulus then knockout never run, RMSE (blind to order, gain locked)",
        "order_of_operations",
        ALL,
        _order,
        (".109 (.145, .239)", ".199", "63a1b1d"),
        options="",
    ),
    Row(
        'simulated branching, shares of fates, largest error: measured conditions; a knockout one time ahead (`dynamics="flow"`; `"sde"`)',
        "branching",
        ALL,
        _fates,
        (".031; .072 (.049; .108)", ".019 (the cells themselves); .168", "63a1b1d"),
        options="",
    ),
    Row(
        "batch noise that follows content, 2-24 unbalanced batches: η r; 90% intervals of η cover; RMSE of effects against a screen without batch noise",
        "batch_recovery",
        ("content: train-size 1",),
        _content,
        (".955; .88; 1.005 ×", "", "63a1b1d"),
        options="--content --train-size 1",
    ),
    Row(
        "guides that do nothing (THP-1 screen), 95% intervals without 0: counts alone; posterior",
        "batch_honesty",
        ("papalexi",),
        _guides,
        ("2.9%; 2.1%", "8.4%", "63a1b1d"),
        options="--parts papalexi",
    ),
    Row(
        "unseen pseudobulks of batches, of laboratories never measured, of laboratories left out inside 90% intervals",
        "new_batches",
        ("screens", "left_out"),
        _new_batches,
        (".90; .90; .91", ".82-.87; .68; .74 (η = 0)", "63a1b1d"),
        options="",
    ),
    Row(
        "a medium in lanes of its own: 90% intervals of its response cover, one lane each; three",
        "batch_honesty",
        ("lanes",),
        _lanes,
        (".95; .86", "", "63a1b1d"),
        options="",
    ),
    Row(
        "the paper's Fig. 4, 100 seeds: final test error with eq. 5, with eq. 9 added",
        "fig4",
        ALL,
        _fig_4,
        (".0130, .0129", ".0086", "63a1b1d"),
        options="",
    ),
    Row(
        "steady-state screen of the paper's App. E: correlation with 1/n, corrected",
        "steady_screen",
        ALL,
        _steady,
        (".14", ".87", "63a1b1d"),
        options="",
    ),
    Row(
        "simulated and mechanistic screens (own, harissa, grnlab), AUROC of the posterior: silent; steady; steady relative to control; blocked",
        "assumption_calibration",
        ALL,
        _assumptions,
        (
            "1.0, .95, 1.0; .87, .95, .92; .92, .88, .96; 1.0, 1.0, .98",
            ".95, .93, .85; .75, .92, .87; .73, .83, .89; 1.0, 1.0, 1.0",
            "63a1b1d",
        ),
        options="",
    ),
    Row(
        "assumptions, labels shuffled ten times (hiPSC, Jurkat, THP-1 screens): perturbations called active; blocked",
        "assumption_shuffles",
        ALL,
        _shuffled,
        ("0, .035, 0; 0", "", "63a1b1d"),
        options="",
    ),
    Row(
        "training against scvi-tools' SCVI, one thread, 2,000 genes, batch 512 and 1,024 (linear decoder)",
        "throughput",
        ("training: threads 1",),
        _training,
        ("3.3, 4.6 × (3.7, 5.0)", "1", "63a1b1d"),
        options="",
    ),
    Row(
        "time to the held-out evidence at which SCVI ends (its best): simulated screen of 2,000 genes; THP-1 screen",
        "throughput",
        ("quality",),
        _quality,
        (".005 × (.03); .05 × (.05)", "1", "63a1b1d"),
    ),
    Row(
        "step with 10,000 perturbations against 100, same cells",
        "throughput",
        ("perturbations: threads 1",),
        _ten_thousand,
        ("1.24 ×", "", "63a1b1d"),
    ),
    Row(
        "10⁶ cells from zarr against memory: speed; peak memory",
        "scale",
        ALL,
        _million,
        (".87 ×; 1.05 GiB", "6.2 GiB", "63a1b1d"),
        options="",
    ),
    Row(
        "ZINB likelihood and gradient, 512 cells × 2,000 genes, against scvi-tools' `log_zinb_positive` with the same dropout curve",
        "likelihood_speed",
        ALL,
        _likelihood,
        ("6.5 ×", "1", "63a1b1d"),
        options="",
    ),
)
