"""What a fitted screen says, in sentences made of its tables."""

from __future__ import annotations

import platform
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import pandas as pd

from pyrocell.assumptions.spec import ASSUMPTIONS
from pyrocell.report.perturbations import LISTED

if TYPE_CHECKING:
    from pyrocell.model import PyroCell

__all__ = ["CITATIONS", "answers", "assumption_sections", "changed_genes", "methods"]

_SURE = 0.9
_NAMES = 8  # that are written out
_TITLES = {
    "necessary": "Do control cells stay as they are?",
    "steady": "Had each condition arrived at its steady state?",
    "steady_vs_control": "Had each perturbation arrived, relative to control?",
    "silent_at_baseline": "Does each perturbation leave unstimulated cells alone?",
    "no_response": "Does each perturbation block the response to the medium?",
    "memory": "Does a response outlive the loss of its pathway?",
}
CITATIONS = (
    "Bingham et al. (2019). Pyro: deep universal probabilistic programming. JMLR 20:28.",
    "Gayoso et al. (2022). A Python library for probabilistic analysis of single-cell omics data. "
    "Nature Biotechnology 40:163-166.",
    "Virshup et al. (2023). The scverse project provides a computational ecosystem for "
    "single-cell omics data analysis. Nature Biotechnology 41:604-606.",
)


def some(names: list[str], most: int = _NAMES) -> str:
    """Names, the first few written out."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(map(str, names[:most])) + more


def answers(model: PyroCell, perturbations: pd.DataFrame | None) -> list[dict[str, str]]:
    """The questions that a lab asks first, each with its answer: question, answer."""
    found: list[dict[str, str]] = []
    screen = model.screen
    if perturbations is None:
        return found
    table = perturbations.set_index("perturbation")
    n_genes = table["up"] + table["down"]
    active = n_genes[n_genes > 0].sort_values(ascending=False)
    share = f"with {LISTED:.0%} wrong signs expected among them"
    text = f"None of {len(table):,} changes a gene, {share}."
    if len(active):
        names = [f"{k} ({n:,} {'gene' if n == 1 else 'genes'})" for k, n in active.items()]
        text = (
            f"{len(active):,} of {len(table):,} change at least one gene, {share}: {some(names)}."
        )
    where = f" in {screen.baseline_media}" if screen.media else ""
    found.append({"question": f"Which perturbations do something{where}?", "answer": text})
    own = table[table["own_log2fc"].notna()]
    if len(own):
        down = own[own["own_upper"] < 0]
        text = f"Down in {len(down):,} of {len(own):,} whose own gene was measured"
        rest = [k for k in own.index if k not in set(down.index)]
        text += f"; not seen to fall: {some(rest)}." if rest else "."
        if "CRISPRa" in screen.perturbation_types:
            up = own[own["own_lower"] > 0]
            text = (
                f"Changed in {len(down) + len(up):,} of {len(own):,} whose own gene was measured."
            )
        found.append({"question": "Is the perturbed gene's own transcript down?", "answer": text})
    for medium in screen.media:
        if f"response {medium}" in table:
            found.append(_response(table, medium))
    return found


def _response(table: pd.DataFrame, medium: str) -> dict[str, str]:
    """Who blocks the response to a medium."""
    verdict = table[f"response {medium}"]
    gain, low, high = (table[f"{name} {medium}"] for name in ("gain", "gain_lower", "gain_upper"))
    parts = []
    for word, said in (("blocked", "Blocked by"), ("weakened", "weakened by")):
        mine = gain[verdict == word].sort_values().index
        sizes = zip(mine, gain[mine], low[mine], high[mine])
        names = [f"{k} (leaves {v:.2f}, {lo:.2f} to {hi:.2f})" for k, v, lo, hi in sizes]
        parts.append(f"{said} {some(names)}" if names else f"{said} none")
    text = "; ".join(parts)
    text += f"; as control in {int((verdict == 'as control').sum()):,}"
    if (more := list(table.index[verdict == "stronger"])) and len(more):
        text += f"; stronger in {some(more)}"
    if (untested := list(table.index[verdict == "not tested"])) and len(untested):
        text += f". The layout cannot test {some(untested)}"
    text += (
        ". 1 leaves all of the response, 0 none. Weakened or stronger: in a list with 10% false "
        "ones expected, judged against the median of all; intervals of single gains are too narrow "
        "on simulated screens."
    )
    return {"question": f"Which perturbations block the response to {medium}?", "answer": text}


def assumption_sections(found: pd.DataFrame) -> list[dict[str, Any]]:
    """For each assumption, the tested first: what it says, was found, and cannot be tested."""
    sections = []
    for name, mine in found.groupby("assumption", sort=False):
        name = str(name)
        spec = ASSUMPTIONS[name]
        tested = mine[mine["testable"]]
        lines = []
        if len(tested):
            holds, fails = tested["posterior"] > _SURE, tested["posterior"] < 1 - _SURE
            for word, which in (
                ("Holds", holds),
                ("Does not hold", fails),
                ("Undecided", ~holds & ~fails),
            ):
                if which.any():
                    names = _places(tested[which])
                    lines.append(f"{word} for {len(names):,} of {len(tested):,}: {some(names)}.")
        reasons: dict[tuple[str, str], list[tuple[str, str]]] = {}
        for row in mine[~mine["testable"]].itertuples():
            # The same reason is said once, whoever it is about.
            reason, _, remedy = str(row.reason).partition(". Next screen: ")
            key = reason.removeprefix(f"{row.perturbation} "), remedy
            who = _place(row.perturbation, row.media, mine), reason
            reasons.setdefault(key, []).append(who)
        untested = [
            {
                "who": some([place for place, _ in all_of]),
                "reason": all_of[0][1] if len(all_of) == 1 else f"each of them {reason}",
                "remedy": remedy,
            }
            for (reason, remedy), all_of in reasons.items()
        ]
        sections.append(
            {
                "name": name,
                "title": _TITLES.get(name, name),
                "says": f"The assumption: {spec.says} ({spec.source}).",
                "lines": lines,
                "n_tested": len(tested),
                "n_all": len(mine),
                "untested": untested[:_NAMES],
                "untested_more": max(0, len(untested) - _NAMES),
            }
        )
    return sorted(sections, key=lambda section: section["n_tested"] == 0)


def _places(rows: pd.DataFrame) -> list[str]:
    return [_place(k, m, rows) for k, m in zip(rows["perturbation"], rows["media"])]


def _place(perturbation: Any, media: Any, rows: pd.DataFrame) -> str:
    return f"{perturbation} in {media}" if rows["media"].nunique() > 1 else str(perturbation)


def changed_genes(effects: pd.DataFrame) -> dict[str, str]:
    """Of each perturbation the genes it changes, in words; `effects` of one medium and time."""
    listed = effects[effects["fdr"] <= LISTED]
    found = {}
    for name, mine in listed.groupby("perturbation", sort=False):
        parts = []
        for word, some_ in (("up", mine[mine["mean"] > 0]), ("down", mine[mine["mean"] < 0])):
            sure = some_.assign(z=(some_["mean"] / some_["sd"]).abs()).nlargest(12, "z")
            change = 2 ** sure["log2fc"]
            names = [f"{g} ({_fold(c)})" for g, c in zip(sure["gene"].astype(str), change)]
            more = f" and {len(some_) - len(names):,} more" if len(some_) > len(names) else ""
            if names:
                parts.append(f"{len(some_):,} {word}: {', '.join(names)}{more}")
        found[str(name)] = ". ".join(p[0].upper() + p[1:] for p in parts) + "."
    return found


def _fold(change: float) -> str:
    """A ratio as people say it."""
    return f"× {change:.2g}" if change >= 2 else f"{100 * (change - 1):+.0f}%"


def methods(model: PyroCell, tables: dict[str, pd.DataFrame]) -> str:
    """A paragraph for a methods section."""
    screen, config = model.screen, model.module.config
    n_batches, batch = len(screen.batches), "batches" if len(screen.batches) != 1 else "batch"
    what = f"{len(screen.perturbations):,} perturbations"
    if screen.media:
        what += f", {1 + len(screen.media)} media"
    if screen.times:
        what += f", {len(screen.times)} times"
    likelihood = {
        "zinb": "zero-inflated negative binomial",
        "nb": "negative binomial",
        "poisson": "Poisson",
    }.get(str(config.likelihood), str(config.likelihood))
    dynamics = {
        "relaxation": "each response relaxing exponentially towards its end",
        "none": "responses taken as complete",
    }.get(str(config.dynamics), f"responses unfolding by {config.dynamics}")
    return (
        f"Raw counts of {screen.n_cells:,} cells and {len(screen.genes):,} genes ({what}, "
        f"{n_batches} {batch}) were analysed with pyrocell {version('pyrocell')} "
        f"(Python {platform.python_version()}, PyTorch {version('torch').split('+')[0]}, Pyro "
        f"{version('pyro-ppl')}, scvi-tools {version('scvi-tools')}). Counts were modelled as "
        f"{likelihood} with {config.n_latent} axes of resting cell state, {dynamics}, and a batch "
        "term per gene whose sum over batches is zero. The model was fitted by stochastic "
        f"variational inference on {_share(model)} for {len(model.history)} epochs. Effects are "
        "posterior means of natural-log fold changes against control cells of the same medium and "
        "time, reported as log2 fold changes with 90% credible intervals; genes are called changed "
        f"where the expected share of wrong signs in the list is at most {LISTED:.0%}."
    )


def _share(model: PyroCell) -> str:
    held = getattr(model, "validation_indices_", None)
    n, total = 0 if held is None else len(held), model.screen.n_cells
    return f"{total - n:,} cells, {n:,} being held out" if n else f"{total:,} cells"
