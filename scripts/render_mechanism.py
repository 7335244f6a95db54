"""Tables of the pages on mechanism, from rows that their benchmarks wrote.

A part of `benchmarks/results/mechanism_*.json` has `rows`: what, the figure of pyrocell, that of
the anchor named in brackets, and that of the null; parts of another kind have a function of their
own here. Rendered by `render_record.py`.
"""

from __future__ import annotations

from collections.abc import Callable

from sources import number, of_record, origin, parts_of, table

HEAD = ["what (anchor; null)", "pyrocell", "anchor", "null"]


def block(name: str) -> Callable[[], str]:
    """Renderer of the table of a benchmark; empty where it has no results."""

    def rendered() -> str:
        parts = of_record(parts_of(name))
        rows = [row for part in parts.values() for row in part["figures"].get("rows", [])]
        if not rows:
            return ""
        text = [[row[0], *("" if v is None else number(v) for v in row[1:])] for row in rows]
        made = origin([f"{name}.py"], [part["from"] for part in parts.values()])
        return f"{table(HEAD, text)}\n\n{made}"

    return rendered


def explained() -> str:
    """Which step a knockout acts at: the model, and two rankings of plain log ratios."""
    parts = of_record(parts_of("mechanism_explain"))
    (part,) = parts.values()
    who, rows = ("model", "plain", "halves"), []
    for world, figures in part["figures"].items():
        counts = [f"{v:g} {k}" for k, v in figures.items() if ": " not in k]
        names = dict.fromkeys(k.rpartition(": ")[0] for k in figures if ": " in k)
        for name in names:
            values = [number(figures[f"{name}: {w}"]) for w in who]
            rows.append([f"{world} ({', '.join(counts)}): {name}", *values])
    made = table(["share of knockouts", "`explain`", "log ratios", "halves of cells"], rows)
    return f"{made}\n\n{origin(['mechanism_explain.py'], [part['from']])}"


def network() -> str:
    """Networks: true edges, shuffled labels, the embedded screen, what was left out."""
    parts = of_record(parts_of("mechanism_network"))
    if not parts:
        return ""
    rows, figure = [], lambda name: parts[name]["figures"]
    if "networks" in parts:
        found = figure("networks")
        mine, n = found["auprc"]["pyrocell"], found["networks"]
        for name, value in found["auprc"].items():
            if name == "pyrocell":
                continue
            what = f"direct edges of {n} networks, AUPRC ({name}"
            if name in found["paired"]:
                test = found["paired"][name]
                what += f"; better in {test['better in']}, p {number(test['p'])}"
            rows.append([f"{what})", number(mine), number(value)])
        rows.append(["P(edge): expected calibration error", number(found["ece"]), ""])
        what = "the same, of edges with P ≥ .2"
        rows.append([what, number(found["ece of P >= .2"]), ""])
        likely = found["P > .5"]
        what = f"true among the {likely['edges']} edges with P > .5 (expected by P)"
        rows.append([what, number(likely["true"]), number(likely["expected"])])
    if "shuffled" in parts:
        found = ", ".join(number(x) for x in figure("shuffled")["P > .5"])
        rows.append(["labels shuffled: edges with P > .5, by screen", found, ""])
    if "hipsc" in parts:
        found = figure("hipsc")
        for which in ("perturbed regulators", "all pairs"):
            for name in ("|z| of the knockout", "co-expression", "base rate"):
                what = f"hiPSC, edges published by RENGE, {which}, AUPRC ({name})"
                anchor = number(found[name][which])
                rows.append([what, number(found["pyrocell"][which]), anchor])
        what = "hiPSC: edges with P > .5 (labels shuffled)"
        likely = found["likely edges"]
        rows.append([what, number(likely["share"]), number(likely["labels shuffled"])])
    if "generalisation" in parts:
        for kind, found in figure("generalisation").items():
            for name, score in found.items():
                if name != "model":
                    what = f"hiPSC, {kind} left out, AUPRC ({name})"
                    pair = found["model"]["auprc"], score["auprc"]
                    rows.append([what, *map(number, pair)])
            ece = number(found["model"]["ece"])
            rows.append([f"hiPSC, {kind} left out: expected calibration error", ece, ""])
    rows = [[what.replace("|", "\\|"), *rest] for what, *rest in rows]
    made = table(["what", "pyrocell", "anchor"], rows)
    sources = [part["from"] for part in parts.values()]
    return f"{made}\n\n{origin(['mechanism_network.py'], sources)}"


def mechanism_subtypes() -> str:
    """Rare subtypes planted and not."""
    parts = of_record(parts_of("mechanism_subtypes"))
    if not parts:
        return ""
    rows = []
    for name, found in parts.get("states", {"figures": {}})["figures"].items():
        for key, what in (
            ("found", f"planted, {name}: found"),
            ("false", f"{name}: any other claimed"),
        ):
            if key in found["pyrocell"]:
                values = (
                    found.get(rule, {}).get(key) for rule in ("pyrocell", "leiden", "k-means")
                )
                rows.append([what, *map(number, values)])
    fits = parts.get("counts", {"figures": {"fits": []}})["figures"]["fits"]
    for name in dict.fromkeys(each["name"] for each in fits):
        mine = [each for each in fits if each["name"] == name]
        key = "others" if name.endswith(" 0%") else "found"
        claimed = "any claimed" if key == "others" else "found"
        hits = sum(each[key] > 0 for each in mine)
        rows.append([f"counts, {name}: {claimed}", f"{hits} of {len(mine)}", "", ""])
    made = table(["share of trials", "pyrocell", "published rule, Leiden", "k-means"], rows)
    sources = [part["from"] for part in parts.values()]
    return f"{made}\n\n{origin(['mechanism_subtypes.py'], sources)}"


def mechanism_shift() -> str:
    """Delays of differentiation."""
    parts = of_record(parts_of("mechanism_shift"))
    if not parts:
        return ""
    columns = ("rmse", "rmse_nearest", "cover", "cover_nearest", "claimed", "claimed_nearest")
    rows = []
    for part, label in (("shifts", ""), ("shuffled", "labels shuffled: ")):
        mean = parts[part]["figures"]["mean"] if part in parts else {}
        for name, found in mean.items():
            if not isinstance(found, dict) or (label and name == "screens"):
                continue
            known = columns if name != "blocked" and not label else columns[4:]
            values = [number(found.get(c)) if c in known else "" for c in columns]
            rest = [number(found[c]) for c in ("explained", "other")]
            rows.append([f"{label}{name}", *values, *rest])
    head = ["delay", "error", "(anchor)", "90% intervals hold", "(anchor)"]
    head += ["claimed", "(anchor)", "explained", "other"]
    overall = parts.get("shifts", {"figures": {"mean": {}}})["figures"]["mean"]
    text = ""
    if "cover" in overall:
        text = (
            f"\n\nAll delays together: 90% intervals hold {number(overall['cover'])}, those of the "
            f"anchor {number(overall['cover_nearest'])}."
        )
    sources = [part["from"] for part in parts.values()]
    return f"{table(head, rows)}{text}\n\n{origin(['mechanism_shift.py'], sources)}"


BLOCKS = {
    f"mechanism {part}": block(f"mechanism_{part}")
    for part in ("embeddings", "signature", "sparse")
} | {
    "explained": explained,
    "network": network,
    "mechanism_subtypes": mechanism_subtypes,
    "mechanism_shift": mechanism_shift,
}
