"""Write the figures of benchmarks/results/effects.json into the README and docs/effects.md.

python scripts/render_effects.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import sources
from sources import number, of_record, table, with_blocks

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "effects.json"
PAGES = ("README.md", "docs/effects.md")
KINDS = {
    "30": "30 cells",
    "100": "100 cells",
    "300": "300 cells",
    "programs": "shared programs",
    "guides": "guides and escapers",
    "thinned": "real cells, thinned",
}
TOOLS = {
    "posterior": "pyrocell",
    "counts_alone": "pyrocell, `shrunken=False`",
    "deseq": "pydeseq2",
    "sceptre": "pysceptre",
    "wilcoxon": "Wilcoxon",
}
MEDIA = {
    "shuffled": "stimulation screen, media shuffled within label and batch (worst)",
    "kinds 250": "250 cells of three kinds, media at random (worst)",
    "kinds 2000": "2,000 cells of three kinds, media at random (worst)",
    "donors": "five donors, effects that vary between them by .3",
}
ZERO = "all zero"


def mean(rows: list[dict], *path: str) -> float:
    """Mean over rows of a nested figure."""
    return float(np.mean([_get(row, path) for row in rows]))


def worst(rows: list[dict], *path: str) -> float:
    """Largest over rows."""
    return float(np.max([_get(row, path) for row in rows]))


def _get(row: Any, path: tuple[str, ...]) -> float:
    for name in path:
        row = row[name]
    return np.nan if row is None else row


def known(results: dict) -> str:
    """Screens of known truth: lists, ranking, size, intervals, beside other tools."""
    found = results["ordinary"]["figures"]
    kinds = [k for k in KINDS if any(row["kind"] == k for row in found)]
    of = {k: [row for row in found if row["kind"] == k] for k in kinds}
    names = [KINDS[k] for k in kinds]
    rows = []
    for level in (5, 10):
        values = [
            f"{number(mean(of[k], 'posterior', f'fdr_{level}'))} "
            f"({number(worst(of[k], 'posterior', f'fdr_{level}'))})"
            for k in kinds
        ]
        rows.append([f"false among `fdr <= {level / 100:g}`", *values])
    for what, key in (
        ("effects found at 10% false", "power_at_observed_10"),
        ("AUPRC", "auprc"),
        ("RMSE of means", "rmse"),
    ):
        for tool, label in TOOLS.items():
            if all(tool in row for k in kinds for row in of[k]):
                values = [number(mean(of[k], tool, key)) for k in kinds]
                rows.append([f"{what}: {label}", *values])
        if key == "rmse":
            values = [number(mean(of[k], "posterior", "rmse_of_zero")) for k in kinds]
            rows.append([f"{what}: {ZERO}", *values])
    for what, key in (
        ("90% intervals hold, all pairs", "cover"),
        ("the same against untouched genes", "cover_in_gauge"),
        ("`lfsr < .5`", "cover_below_0.5"),
        ("`lfsr < .05`", "cover_below_0.05"),
    ):
        rows.append([what, *(number(mean(of[k], "posterior", key)) for k in kinds)])
    for what, key in (
        ("`shrunken=False` holds, no effect", "cover_null"),
        ("effects of .2-.4", "cover_0.2_0.4"),
        (".4-.7", "cover_0.4_0.7"),
        (".7-1.1", "cover_0.7_1.1"),
    ):
        rows.append([what, *(number(mean(of[k], "counts_alone", key)) for k in kinds)])
    return table(["screens of known truth", *names], rows)


def nothing(results: dict) -> str:
    """Labels that mean nothing."""
    found = results["shuffled"]["figures"]
    rows = []
    for screen in dict.fromkeys(row["screen"] for row in found):
        mine = [row for row in found if row["screen"] == screen]
        keys = ("excluding_zero", "listed", "common", "p_below_5")
        rows.append([f"{screen}, labels shuffled", *(number(worst(mine, k)) for k in keys)])
    mixed = results["kinds"]["figures"]
    for times in (False, True):
        mine = [row for row in mixed if row["times"] == times]
        what = f"cells of three kinds, random labels, {'three times' if times else 'one time'}"
        rows.append(
            [what, number(worst(mine, "excluding_zero")), number(worst(mine, "listed")), "", ""]
        )
    head = ["nothing to be found (worst of the fits)", "90% intervals without 0", "pairs listed"]
    return table([*head, "common, RMS", "p < .05"], rows)


def others(results: dict) -> str:
    """The remaining figures, a line each."""
    figures = {k: v["figures"] for k, v in results.items() if isinstance(v, dict)}
    rows = []
    for kind, label in (("sparse", "40% silent"), ("sparse_silent", "all silent")):
        mine = [row for row in figures["sparse"] if row["kind"] == kind]
        said = [mean(mine, "posterior", k) for k in ("fdr_10", "rmse", "rmse_of_zero")]
        null = mean(mine, "posterior", "cover_null")
        text = f"{number(said[0])}; {number(said[1])} ({number(said[2])}); {number(null)}"
        what = "99.5% zeros: false at 10%; RMSE (all zero); 90% intervals of no effect hold"
        rows.append([f"{what}, {label}", text])
    for n in dict.fromkeys(row["cells"] for row in figures.get("dense", ())):
        mine = [row for row in figures["dense"] if row["cells"] == n]
        keys = ("cover", "cover_silent", "rmse", "rmse_of_zero")
        held, silent, error, zero = (mean(mine, k) for k in keys)
        what = f"perturbations that move every gene by a normal of sd .1, {n} cells each: 90% "
        what += "intervals hold; those of silent ones; RMSE (all zero); listed at 10%, false"
        text = f"{number(held)}; {number(silent)}; {number(error)} ({number(zero)}); "
        text += f"{sum(r['listed'] for r in mine):,}, {number(worst(mine, 'false'))}"
        rows.append([what, text])
    for kind in dict.fromkeys(row["kind"] for row in figures.get("media", ())):
        mine = [row for row in figures["media"] if row["kind"] == kind]
        what = f"`media_effects`, {MEDIA.get(kind, kind)}: 90% intervals without 0, listed at 10%"
        text = f"{number(worst(mine, 'excluding_zero'))}; {worst(mine, 'listed'):.0f}"
        if "cover" in mine[0]:
            keys = ("cover", "rmse", "rmse_of_zero")
            held, error, zero = (number(mean(mine, k)) for k in keys)
            what = f"`media_effects`, {MEDIA.get(kind, kind)}: listed at 10%, false (worst); "
            what += "90% intervals hold; RMSE (all zero)"
            text = f"{sum(row['listed'] for row in mine)}, {number(mean(mine, 'false'))} "
            text += f"({number(worst(mine, 'false'))}); {held}; {error} ({zero})"
        rows.append([what, text])
    mine = figures["replicates"]
    text = f"{number(mean(mine, 'mean_effect'))}; {number(mean(mine, 'new_batch'))}"
    rows.append(["effects that vary between batches: 90% intervals of mean; of a new batch", text])
    for screen in ("thp1", "k562") if "halves" in figures else ():
        mine = [row for row in figures["halves"] if row["screen"] == screen]
        keys = ("pearson", "pearson_well_counted", "pearson_of_shares", "same_sign")
        text = "; ".join(number(mean(mine, k)) for k in keys)
        what = (
            f"halves of the {screen} screen, Pearson of effects; the same where controls have 20 "
        )
        what += "counts or more; of shares of expression; same sign in a list at 10%"
        rows.append([what, text])
    mine = figures["guides"]
    said = f"{number(mean(mine, 'p_below_5'))}; {sum(r['listed'] for r in mine)} of "
    said += f"{sum(r['pairs'] for r in mine):,}"
    rows.append(["non-targeting guides as perturbations: p < .05; pairs listed at 10%", said])
    mine = figures.get("stimulation", [])
    for gene in mine[0]["gains"] if mine else ():
        gain = number(float(np.mean([row["gains"][gene][0] for row in mine])))
        ranks = ", ".join(str(row["ranks"][gene]) for row in mine)
        rows.append(
            [f"stimulation screen: gain of {gene}; its rank of 20, by seed", f"{gain}; {ranks}"]
        )
    if "cost" in figures:
        cost = figures["cost"][0]
        what = f"{cost['perturbations']} perturbations × {cost['genes']:,} genes, two cores: "
        what += "seconds of the gene-level phase; of `perturbation_effects()`"
        rows.append([what, f"{cost['phase_seconds']:.0f}; {cost['effects_seconds']:.0f}"])
    return table(["further", "figure"], rows)


def short(results: dict) -> str:
    """The README's lines."""
    found = results["ordinary"]["figures"]
    kinds = [k for k in KINDS if any(row["kind"] == k for row in found)]
    of = {k: [row for row in found if row["kind"] == k] for k in kinds}
    peers = [t for t in ("deseq", "sceptre", "wilcoxon") if t in found[0]]

    def each(tool: str, key: str) -> str:
        return ", ".join(number(mean(of[k], tool, key)) for k in kinds)

    best = [max(mean(of[k], t, "auprc") for t in peers) for k in kinds] if peers else []
    shuffles = results["shuffled"]["figures"]
    replicated = results["replicates"]["figures"]
    listed = number(worst(shuffles, "listed"))
    rows = [
        ["false among effects listed at 10%", each("posterior", "fdr_10"), ""],
        [
            "AUPRC (best of " + ", ".join(TOOLS[t] for t in peers) + ")",
            each("posterior", "auprc"),
            ", ".join(map(number, best)),
        ],
        ["RMSE of means (all zero)", each("posterior", "rmse"), each("posterior", "rmse_of_zero")],
        ["90% intervals, pairs with lfsr < .5", each("posterior", "cover_below_0.5"), ""],
        [
            "labels shuffled in four real screens: 90% intervals without 0; pairs listed (worst)",
            f"{number(worst(shuffles, 'excluding_zero'))}; {listed}",
            "",
        ],
        [
            "effects that vary between batches: intervals of their mean; of a new batch",
            f"{number(mean(replicated, 'mean_effect'))}; {number(mean(replicated, 'new_batch'))}",
            "",
        ],
    ]
    head = "effects (screens of known truth: " + ", ".join(KINDS[k] for k in kinds) + ")"
    return table([head, "pyrocell", "anchor"], rows) + "\n\n" + origin(results)


def origin(results: dict) -> str:
    """Script, seeds, commits and dates of the figures."""
    return sources.origin(
        ["effects.py"], [part["from"] for part in results.values() if isinstance(part, dict)]
    )


def block(results: dict) -> str:
    """What stands between the markers."""
    parts = [known(results), nothing(results), others(results), origin(results)]
    return "\n\n".join(parts)


def rendered(text: str, results: dict) -> str:
    """A page with its block made anew."""
    results = of_record(results)
    blocks = {"effects": lambda: block(results), "effects, short": lambda: short(results)}
    return with_blocks(text, blocks)


def main() -> None:
    """Render all pages."""
    results = json.loads(RESULTS.read_text())
    for name in PAGES:
        path = ROOT / name
        path.write_text(rendered(path.read_text(encoding="utf-8"), results), encoding="utf-8")


if __name__ == "__main__":
    main()
