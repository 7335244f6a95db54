"""Write README's table of further figures, docs/measured.md, and notes on figures in the text.

python scripts/render_record.py

A note stands next to figures that were written into a page by hand:

    <!-- source SCRIPT @ COMMIT DATE: begin -->
    <!-- source SCRIPT @ COMMIT DATE: end -->

with the commit that the figures are of. It says so, and whether the script has been run since. A
note on other than default options, or on one part, names it: `SCRIPT, PART @ COMMIT DATE`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import render_mechanism
from readme_rows import ROWS
from sources import (
    CHANGED,
    ROOT,
    number,
    of_record,
    origin,
    parts_of,
    table,
    unchanged,
    with_blocks,
)

README, PAGE = ROOT / "README.md", ROOT / "docs" / "measured.md"
_NOTE = re.compile(r"<!-- (source (\w+)(?:, ([^@\n]+))? @ (\w+) (\S+)): begin -->")


def recorded() -> str:
    """Rows of the README, from results files or as they were written down."""
    head = ["what", "pyrocell", "anchor", "script", "commit"]
    rows = table(head, [row.rendered() for row in ROWS])
    return f"{rows}\n\n† {CHANGED}."


def note(script: str, part: str | None, commit: str, date: str) -> str:
    """One line on where figures in the text come from."""
    parts = parts_of(script)
    parts = of_record(parts) if part is None else {k: v for k, v in parts.items() if k == part}
    made = f"Figures of `{script}.py` as recorded at commit {commit}, {date}"
    if not parts:
        return f"*{made}; {CHANGED}.*"
    sources = [found["from"] for found in parts.values()]
    again = origin([f"{script}.py"], sources)
    if {source["commit"] for source in sources} == {commit}:
        return again
    return f"*{made}. Measured again since, in `benchmarks/results/{script}.json`:* {again}"


def notes(text: str) -> dict[str, Callable[[], str]]:
    """The notes that a page asks for, by the names of their blocks."""
    return {name: partial(note, *about) for name, *about in _NOTE.findall(text)}


def of_scripts() -> str:
    """A line for each script: pages that quote it, and of which commit its figures are."""
    pages = [README, *sorted((ROOT / "docs").glob("*.md"))]
    texts = {p.name: p.read_text(encoding="utf-8") for p in pages if p != PAGE}
    lines = []
    for path in sorted((ROOT / "benchmarks").glob("*.py")):
        if path.name == "common.py" or "write_results(" not in path.read_text(encoding="utf-8"):
            continue
        quoted = [name for name, page in texts.items() if re.search(rf"\b{path.name}", page)]
        parts = of_record(parts_of(path.stem))
        if parts:
            sources = [part["from"] for part in parts.values()]
            commits = dict.fromkeys(source["commit"] for source in sources)
            date = max(source["date"] for source in sources)
            state = "as it is" if unchanged(sources) else CHANGED
        else:
            commits = [row.recorded[2] for row in ROWS if row.benchmark == path.stem]
            for page in texts.values():
                commits += [at for _, name, _, at, _ in _NOTE.findall(page) if name == path.stem]
            commits, date, state = dict.fromkeys(commits), "", CHANGED if commits else ""
        lines.append([f"`{path.name}`", ", ".join(quoted), ", ".join(commits), date, state])
    return table(["script", "quoted in", "commit", "date", "code"], lines)


def known_truth() -> str:
    """How often good fits get a red line, and what spoils a fit is seen."""
    parts = of_record(parts_of("verdicts"))
    if not parts:
        return ""
    (part,) = parts.values()
    figures = part["figures"]
    rows = [["nothing", f"{figures['red without reason']} of {figures['fits']}"]]
    rows += [[how, f"{seen} of {n}"] for how, (seen, n) in figures["seen"].items()]
    made = table(["what was spoilt", "fits with a red line"], rows)
    return f"{made}\n\n{origin(['verdicts.py'], [part['from']])}"


def own_code() -> str:
    """Source of the figures on what a library could have done."""
    return origin(
        ["own_code.py"], [part["from"] for part in of_record(parts_of("own_code")).values()]
    )


def report_cost() -> str:
    """Seconds and size of the report."""
    parts = of_record(parts_of("report"))
    names = {"embedded": "embedded screen", "thp1": "THP-1 screen", "many": "5,000 perturbations"}
    rows = [
        [names[key], f"{part['figures']['seconds']:.0f} s", f"{part['figures']['page_MB']:.1f} MB"]
        for key, part in parts.items()
    ]
    sources = [part["from"] for part in parts.values()]
    return (
        f"{table(['screen', 'beyond the fit', 'page'], rows)}\n\n{origin(['report.py'], sources)}"
    )


def guides() -> str:
    """Strength of guides, cells that escaped, and what that does to effects."""
    parts = of_record(parts_of("guides"))
    if not parts:
        return ""
    sources = [part["from"] for part in parts.values()]
    rows = []

    def line(what: str, part: str, read: Callable[[dict[str, Any]], float | None]) -> None:
        each = [read(row) for row in parts[part]["figures"]] if part in parts else []
        if each and all(value is not None for value in each):
            rows.append([what, ", ".join(number(value) for value in each)])

    own, alike = "effects with guides", "effects, labels alike"
    some = "simulated"
    line("efficacy: correlation with the truth", some, lambda r: r["efficacy r"])
    line("efficacy: 90% intervals hold", some, lambda r: r["efficacy inside"])
    line("share of escapers: mean absolute error", some, lambda r: r["escapers, mean error"])
    line("share of escapers: 90% intervals hold", some, lambda r: r["escapers inside"])
    line("P(responded): calibration error", some, lambda r: r["calibration error"])
    for name, key in (
        ("pyrocell", "auroc"),
        ("Mixscape", "auroc, mixscape"),
        ("projection", "auroc, projection"),
    ):
        line(f"cells that responded, AUROC: {name}", some, lambda r, key=key: r[key])
    line("effects of responding cells, RMSE: with guides", some, lambda r: r[own]["rmse"])
    line("the same, all cells of a label alike", some, lambda r: r[alike]["rmse"])
    line("90% intervals hold: with guides", some, lambda r: r[own]["inside"])
    line("false in a list at 10%: with guides", some, lambda r: r[own]["false at 10%"])
    line(
        "guides of silent perturbations: intervals hold 1",
        some,
        lambda r: r["silent: efficacy of 1 inside"],
    )
    line(
        "no escapers, equal guides: RMSE over that of labels alike",
        "plain",
        lambda r: r["rmse ratio"],
    )
    line("the same: share of cells that responded", "plain", lambda r: r["response share, mean"])
    for name in ("pyrocell", "mixscape", "projection"):
        if all(name in row["auroc"] for row in parts.get("real", {"figures": []})["figures"]):
            what = f"THP-1, who responded by genes that no fit saw, AUROC: {name}"
            line(what, "real", lambda r, name=name: r["auroc"][name]["mean"])
    shuffled = "THP-1, guides shuffled within perturbations: "
    line(f"{shuffled}efficacy of 1 inside", "real", lambda r: r["shuffled"]["efficacy of 1 inside"])
    line(f"{shuffled}`guides_agree`, mean", "real", lambda r: r["shuffled"]["guides_agree, mean"])
    line(f"{shuffled}`guides_agree`, least", "real", lambda r: r["shuffled"]["guides_agree, least"])
    return f"{table(['figure, by seed', ''], rows)}\n\n{origin(['guides.py'], sources)}"


def unseen() -> str:
    """Perturbations left out of real screens."""
    parts = of_record(parts_of("unseen"))
    if not parts:
        return ""
    names = {"thp1": "THP-1", "k562": "K562, single activations", "hipsc": "hiPSC, day 5"}
    names["stimulation"] = "stimulated T cells"
    rows = []
    for screen, part in parts.items():
        for kind in ("GO and Reactome", "shuffled", "population"):
            found = part["figures"][kind]
            columns = ("ratio_to_mean", "coverage", "coverage_lowest", "directions_ece")
            rows.append([names[screen], kind, *(number(found[c]) for c in columns)])
    head = ["screen", "knowledge", "error over that of the mean", "90% intervals hold", "lowest"]
    made = table([*head, "calibration error of directions"], rows)
    return f"{made}\n\n{origin(['unseen.py'], [part['from'] for part in parts.values()])}"


def views() -> str:
    """Several views of one state."""
    every = parts_of("views")
    parts = of_record(every)
    if not parts:
        return ""
    for name, part in every.items():  # TOTALVI takes its time: of fewer seeds, and said so
        if name.startswith("missing"):
            parts.setdefault("missing", part)
    rows = []

    def line(part: str, what: str, mine: str, anchor: str = "") -> None:
        if part not in parts:
            return
        found = parts[part]["figures"]["mean"]
        rows.append([what, *(read(found, path) for path in (mine, anchor))])

    def read(found: dict[str, Any], path: str) -> str:
        if not path:
            return ""
        for key in path.split("/"):
            found = found[key]
        return number(found)

    line(
        "effects",
        "effects on proteins, RMSE (log ratio of mean counts)",
        "protein/rmse",
        "plain_protein",
    )
    line("effects", "effects on RNA, RMSE (RNA fitted alone)", "rna/rmse", "rna_alone/rmse")
    for view in ("protein", "rna"):
        name = {"protein": "proteins", "rna": "RNA"}[view]
        line("effects", f"{name}: 90% intervals hold, pairs with lfsr < .5", f"{view}/cover_sure")
        line("effects", f"{name}: the same, effects above .05", f"{view}/cover_active")
        line("effects", f"{name}: the same, of no effect", f"{view}/cover_silent")
        line("effects", f"{name}: false among those listed at 10%", f"{view}/false_at_10")
        line("effects", f"{name}: silent at baseline, AUROC", f"silent/{view}/auroc")
        line("effects", f"{name}: silent at baseline, Brier score", f"silent/{view}/brier")
        line("shuffled", f"{name}, labels shuffled: listed", f"{view}/listed")
        line("shuffled", f"{name}, labels shuffled: intervals without 0", f"{view}/excluding_zero")
        line("shuffled", f"{name}, labels shuffled: called active", f"{view}/called_active")
    line("lag", "proteins without a lag: said to have one (share of screens)", "0/said")
    for true in ("0.3", "1", "2"):
        what = f"proteins that follow RNA with a lag of {number(float(true))}"
        line("lag", f"{what}: found (share of screens)", f"{true}/said")
        line("lag", f"{what}: 90% intervals hold", f"{true}/cover")
    for part, name in (("at_random", "a third of the cells"), ("whole_batch", "a batch")):
        seeds = len(parts["missing"]["from"]["seeds"]) if "missing" in parts else 0
        what = f"proteins of {name} without them ({seeds} of 3 seeds)"
        line(
            "missing",
            f"{what}, log scale, RMSE of counts (TOTALVI)",
            f"{part}/pyrocell/rmse_counts",
            f"{part}/totalvi/rmse_counts",
        )
        line(
            "missing",
            f"{what}: the same (mean of the others)",
            f"{part}/pyrocell/rmse_counts",
            f"{part}/mean/rmse_counts",
        )
        line("missing", f"{what}: 90% intervals hold", f"{part}/cover")
    for view in ("rna", "chromatin"):
        line(
            "unpaired",
            f"{view}, and the other in other cells: RMSE over that of the same cells",
            f"{view}/ratio",
        )
    for name, what in (("true", "true"), ("shuffled", "shuffled")):
        line(
            "links",
            f"regions linked to genes, {what} links: RMSE of effects (without links)",
            f"{name}/rmse",
            "none/rmse",
        )
        line("links", "the same: 90% intervals hold, pairs with lfsr < .5", f"{name}/cover_sure")
    line(
        "citeseq",
        "CITE-seq, held-out cells, log p of proteins (TOTALVI)",
        "protein_by_itself",
        "protein_by_itself_totalvi",
    )
    line(
        "citeseq",
        "the same of proteins given RNA (TOTALVI)",
        "protein",
        "protein_totalvi",
    )
    line("citeseq", "the same of RNA (RNA fitted alone)", "rna", "rna_alone")
    line("citeseq", "the same of RNA (TOTALVI)", "rna", "rna_totalvi")
    line(
        "multiome",
        "regions, held-out cells, log p: negative binomial (POISSONVI)",
        "fragments",
        "POISSONVI",
    )
    line("multiome", "the same: Poisson (POISSONVI)", "poisson fragments", "POISSONVI")
    line("multiome", "the same of binary data (PEAKVI)", "binary fragments", "PEAKVI")
    for view, name in (("protein", "proteins"), ("rna", "RNA")):
        what = f"cells of grnlab, effects on {name}"
        anchor = "log ratio of means" if view == "protein" else "RNA fitted alone"
        other = "plain_protein" if view == "protein" else "rna_alone/rmse"
        line("two stages", f"{what}, RMSE ({anchor})", f"{view}/rmse", other)
        line("two stages", f"{what}: 90% intervals hold, lfsr < .5", f"{view}/cover_sure")
        line("two stages", f"{what}: the same, of no effect", f"{view}/cover_silent")
    line("step", "a training step with 200 proteins, over that of 2,000 genes", "ratio")
    if "time" in parts:
        (found,) = parts["time"]["figures"]["of_seeds"]
        what = "training until held-out cells are as likely as under TOTALVI when it ends"
        rows.append([what, f"{number(found['ratio'])} ×", "1"])
    made = table(["what", "pyrocell", "anchor"], rows)
    return f"{made}\n\n{origin(['views.py'], [part['from'] for part in parts.values()])}"


BLOCKS = render_mechanism.BLOCKS | {
    "views": views,
    "unseen": unseen,
    "guides": guides,
    "record": recorded,
    "of record": of_scripts,
    "verdicts": known_truth,
    "own code": own_code,
    "report": report_cost,
}


def rendered(text: str) -> str:
    """A page with its blocks made anew."""
    return with_blocks(text, BLOCKS | notes(text))


def pages() -> list[Path]:
    """Every page that holds a block, last the one that looks into the others."""
    found = [README, *sorted((ROOT / "docs").glob("*.md"))]
    named = [f"<!-- {name}: begin" for name in BLOCKS]
    texts = {page: page.read_text(encoding="utf-8") for page in found}
    mine = [p for p, text in texts.items() if _NOTE.search(text) or any(n in text for n in named)]
    return sorted(mine, key=lambda page: page == PAGE)


def main() -> None:
    """Render all pages."""
    for path in pages():
        path.write_text(rendered(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
