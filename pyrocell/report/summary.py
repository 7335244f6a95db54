"""A page of text that says what was fitted, whether the fit is good, and what it found."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from pyrocell.report.quality import strongest
from pyrocell.report.sentences import assumption_sections
from pyrocell.report.verdicts import overall

if TYPE_CHECKING:
    from pyrocell.model import PyroCell

__all__ = ["summary_text"]

_REASONS = 10  # for aliasing that are spelt out
_WIDTH = 100
_DRIFT = (
    "Times that cannot be told apart from batches lend η the control's own change with time: read "
    "η there as batch and day together."
)


def summary_text(model: PyroCell, tables: dict[str, pd.DataFrame], n_effects: int = 10) -> str:
    """The summary as Markdown that also reads well on a terminal."""
    size = f"{model.screen.n_cells:,} cells, {len(model.screen.genes):,} genes."
    parts = ["# Summary", size, _verdicts(tables["verdicts"])]
    mixed = tables["aliased"][~tables["aliased"]["estimable"]]
    if len(mixed):
        parts += ["## What this layout cannot tell apart", _reasons(mixed)]
    if "perturbations" in tables:
        parts += ["## Perturbations", _perturbations(tables["perturbations"], model)]
    name = "perturbation_effects" if model.screen.perturbations else "media_effects"
    if name in tables:
        effects = tables[name]
        place = "" if not model.screen.times else f" at time {effects['time'].iloc[0]:g}"
        what = "effects" if model.screen.perturbations else "effects of media"
        parts += [f"## Strongest {what}{place}", _effects(effects, model, n_effects)]
    if "media_gains" in tables:
        parts += ["## Lowest gains on a medium's response", _gains(tables["media_gains"])]
    if "assumptions" in tables:
        parts += ["## Assumptions", _assumptions(tables["assumptions"])]
    if "batch_effects" in tables:
        parts += ["## Batch effects", _batches(tables["batch_effects"])]
        if (mixed["contrast"] == "time").any():
            parts += [textwrap.fill(_DRIFT, _WIDTH)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _verdicts(found: pd.DataFrame) -> str:
    """The sentence that sums up, and a line for each check."""
    shown = found[["check", "value", "level"]].rename(columns={"level": "verdict"})
    named = found["verdict"].where(found["verdict"] != "", found["level"])
    shown["verdict"] = [a if a == b else f"{a}: {b}" for a, b in zip(found["level"], named)]
    wrap = {"width": _WIDTH, "initial_indent": "- ", "subsequent_indent": "  "}
    lines = [
        textwrap.fill(f"{row.check}: {row.reason} {row.remedy}".strip(), **wrap)
        for row in found.itertuples()
        if row.level in ("bad", "look")
    ]
    _, sentence = overall(found)
    parts = [textwrap.fill(sentence, _WIDTH), _aligned(shown), "\n".join(lines)]
    return "\n\n".join(part for part in parts if part)


def _reasons(mixed: pd.DataFrame) -> str:
    reasons = list(dict.fromkeys(mixed["reason"]))
    wrap = {"width": _WIDTH, "initial_indent": "- ", "subsequent_indent": "  "}
    lines = [textwrap.fill(reason, **wrap) for reason in reasons[:_REASONS]]
    if len(reasons) > _REASONS:
        lines.append(f"- and {len(reasons) - _REASONS} more: tables/aliased")
    return "\n".join(lines)


def _perturbations(table: pd.DataFrame, model: PyroCell, n: int = 15) -> str:
    """What each perturbation did, those that change most genes first."""
    screen = model.screen
    changed = table["up"] + table["down"]
    others = [f"changed {m}" for m in screen.media if f"changed {m}" in table]
    order = (changed + table[others].sum(axis=1)).sort_values(ascending=False, kind="stable").index
    top = table.loc[order[:n]]
    shown = pd.DataFrame({"perturbation": top["perturbation"], "cells": top["n_cells"]})
    if top["own_log2fc"].notna().any():
        shown["own transcript"] = [
            "" if np.isnan(x) else f"{x:+.0f}% (log2 {y:+z.2f})"
            for x, y in zip(top["own_percent"], top["own_log2fc"])
        ]
    shown["up"], shown["down"] = top["up"], top["down"]
    for name in others:
        shown[name] = top[name]
    for medium in screen.media:
        if f"gain {medium}" in top:
            gain = top[f"gain {medium}"].map(lambda g: "" if np.isnan(g) else f"{g:.2f}")
            shown[f"response left, {medium}"] = gain + " " + top[f"response {medium}"]
    shown["be careful"] = top["flags"]
    lines = [_aligned(shown), "Up, down: genes in a list with 10% wrong signs expected."]
    if len(table) > n:
        lines.append(f"{len(table) - n:,} more: tables/perturbations.")
    return "\n\n".join(lines)


def _assumptions(found: pd.DataFrame) -> str:
    """What holds, what does not, and what the layout cannot test."""
    wrap = {"width": _WIDTH, "initial_indent": "- ", "subsequent_indent": "  "}
    lines = []
    for section in assumption_sections(found):
        said = " ".join(section["lines"])
        rest = section["n_all"] - section["n_tested"]
        if rest:
            first = section["untested"][0]
            said += f" Cannot be tested for {rest:,} of {section['n_all']:,}: {first['reason']}."
            said += f" Next screen: {first['remedy']}." if first["remedy"] else ""
        lines.append(textwrap.fill(f"{section['title']} {said.strip()}", **wrap))
    return "\n".join(lines)


def _effects(effects: pd.DataFrame, model: PyroCell, n: int) -> str:
    top = strongest(effects, n)
    columns = ["perturbation", "gene", "log2", "change", "interval", "probability"]
    shown = pd.DataFrame(
        {
            "perturbation": top["perturbation"],
            "media": top["media"],
            "gene": top["gene"],
            "log2": (top["mean"] / np.log(2)).map("{:+z.2f}".format),
            "change": (100 * (np.exp(1) ** top["mean"] - 1)).map("{:+.0f}%".format),
            "interval": _interval(top[["lower", "upper"]] / np.log(2)),
            "probability": top["prob_direction"].map("{:.3f}".format),
        }
    )
    if model.screen.media:
        columns.insert(1, "media")
    return _aligned(shown[columns]) + "\n\nAgainst control; intervals of log2, 90%."


def _gains(table: pd.DataFrame) -> str:
    low = table.nsmallest(10, "upper")
    shown = low[["perturbation", "media"]].assign(
        gain=low["mean"].map("{:z.2f}".format), interval=_interval(low, "{:z.2f}")
    )
    return _aligned(shown) + "\n\ngain: 1 untouched, 0 blocked."


def _batches(table: pd.DataFrame) -> str:
    by_batch = table.groupby("batch", sort=False)
    largest = table.loc[by_batch["mean"].apply(lambda eta: eta.abs().idxmax())]
    shown = pd.DataFrame(
        {
            "batch": largest["batch"].to_numpy(),
            "rms": by_batch["mean"].apply(lambda eta: np.sqrt((eta**2).mean())).map("{:.3f}".format)
            .to_numpy(),
            "largest": (largest["gene"] + " " + largest["mean"].map("{:+z.2f}".format)).to_numpy(),
            "interval": _interval(largest).to_numpy(),
        }
    )  # fmt: skip
    return _aligned(shown) + "\n\nη of each gene, natural log; the sum over batches is zero."


def _interval(table: pd.DataFrame, form: str = "{:+z.2f}") -> pd.Series:
    return table["lower"].map(form.format) + " to " + table["upper"].map(form.format)


def _aligned(table: pd.DataFrame) -> str:
    """A Markdown table with columns of even width."""
    cells = [[str(name) for name in table.columns], *table.astype(str).to_numpy().tolist()]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths)) + " |" for row in cells]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(lines)
