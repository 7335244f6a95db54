"""Write README's table of further figures and docs/measured.md, which says when each was measured.

python scripts/render_record.py

Rows of README's table were measured before results files were kept; they are in
benchmarks/results/recorded.json, each with the commit it is from.
"""

from __future__ import annotations

import json
import re

from sources import CHANGED, RESULTS, ROOT, origin, parts_of, table, unchanged

README, PAGE = ROOT / "README.md", ROOT / "docs" / "measured.md"


def recorded() -> str:
    """Rows that were written down by hand, with their commits."""
    rows = json.loads((RESULTS / "recorded.json").read_text(encoding="utf-8"))["rows"]
    cells = [
        [
            row["what"],
            row["pyrocell"],
            row["anchor"],
            f"`{row['script']}`" if row["script"] else "",
            row["commit"],
        ]
        for row in rows
    ]
    return table(["what", "pyrocell", "anchor", "script", "commit"], cells)


def of_record() -> str:
    """A line for each script: pages that quote it, and of which commit its figures are."""
    pages = [README, *sorted((ROOT / "docs").glob("*.md"))]
    texts = {p.name: p.read_text(encoding="utf-8") for p in pages if p != PAGE}
    rows = json.loads((RESULTS / "recorded.json").read_text(encoding="utf-8"))["rows"]
    lines = []
    for path in sorted((ROOT / "benchmarks").glob("*.py")):
        text = path.read_text(encoding="utf-8")
        if "report(" not in text.replace("def report(", "") and "write_results(" not in text:
            continue
        if path.name == "common.py":
            continue
        quoted = [name for name, page in texts.items() if re.search(rf"\b{path.name}", page)]
        parts = parts_of(path.stem)
        if parts:
            sources = [part["from"] for part in parts.values()]
            commits = ", ".join(dict.fromkeys(source["commit"] for source in sources))
            date = max(source["date"] for source in sources)
            state = "as it is" if unchanged(sources) else CHANGED
            lines.append([f"`{path.name}`", ", ".join(quoted), commits, date, state])
        else:
            old = [row["commit"] for row in rows if row["script"].startswith(path.name)]
            commits = ", ".join(dict.fromkeys(old)) or "before 63a1b1d"
            lines.append([f"`{path.name}`", ", ".join(quoted), commits, "", CHANGED])
    return table(["script", "quoted in", "commit", "date", "code"], lines)


def known_truth() -> str:
    """How often good fits get a red line, and what spoils a fit is seen."""
    parts = parts_of("verdicts")
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
    return origin(["own_code.py"], [part["from"] for part in parts_of("own_code").values()])


def report_cost() -> str:
    """Seconds and size of the report."""
    parts = parts_of("report")
    names = {"embedded": "embedded screen", "thp1": "THP-1 screen", "many": "5,000 perturbations"}
    rows = [
        [names[key], f"{part['figures']['seconds']:.0f} s", f"{part['figures']['page_MB']:.1f} MB"]
        for key, part in parts.items()
    ]
    sources = [part["from"] for part in parts.values()]
    return (
        f"{table(['screen', 'beyond the fit', 'page'], rows)}\n\n{origin(['report.py'], sources)}"
    )


BLOCKS = {
    "record": recorded,
    "of record": of_record,
    "verdicts": known_truth,
    "own code": own_code,
    "report": report_cost,
}


def rendered(text: str) -> str:
    """A page with its blocks made anew."""
    for name, make in BLOCKS.items():
        between = rf"(<!-- {name}: begin -->\n).*?(<!-- {name}: end -->)"
        if re.search(between, text, flags=re.DOTALL):
            new = make()
            put = lambda m, new=new: f"{m[1]}\n{new}\n\n{m[2]}"  # noqa: E731
            text = re.sub(between, put, text, flags=re.DOTALL)
    return text


def pages() -> list:
    """Every page that holds a block."""
    found = [README, *sorted((ROOT / "docs").glob("*.md"))]
    return [p for p in found if any(f"<!-- {b}: begin" in p.read_text("utf-8") for b in BLOCKS)]


def main() -> None:
    """Render all pages."""
    for path in sorted(pages(), key=lambda path: path == PAGE):  # which looks into the others
        path.write_text(rendered(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
