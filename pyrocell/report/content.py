"""What the page shows, as plain lists and numbers, small enough for one file.

Of each perturbation the page holds the genes that it changes most: all genes of a small screen, the
surest of a large one. The tables on disk hold all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pyrocell._compat import SETUP_ARGS
from pyrocell.data.setup import resembling_columns
from pyrocell.plotting._style import together
from pyrocell.report import sentences
from pyrocell.report.explanations import steps_in_words
from pyrocell.report.perturbations import (
    cells_by_label,
    labels_of,
    last_places,
    measured_effects,
    part_of,
)
from pyrocell.report.quality import convergence

if TYPE_CHECKING:
    from pyrocell.model import PyroCell

__all__ = ["content"]

_PAIRS = 120_000  # perturbations × genes that the page holds, all media together
_FEWEST, _MOST_ROWS, _MOST_COLUMNS = 15, 60, 80
_TIMES = 8  # genes whose course is shown, for each perturbation
_NOTHING_SURE = 1e-4  # smallest rate that is told from 0, on the axis of the volcano


def content(
    model: PyroCell,
    tables: dict[str, pd.DataFrame],
    verdicts: pd.DataFrame,
    overall: tuple[str, str],
    *,
    title: str,
    command: str = "",
    steps: pd.DataFrame | None = None,
) -> dict[str, Any]:
    """Everything that the page shows, as JSON.

    Parameters
    ----------
    model, tables
        A trained model, and the tables of its report.
    verdicts, overall
        Whether it can be believed: `quality.verdicts`, `quality.overall`.
    title, command
        Heading, and what was typed.
    steps
        What was done to the counts before: step, rule, before, after.
    """
    screen = model.screen
    effects, summary = measured_effects(screen, tables), tables.get("perturbations")
    return {
        "title": title,
        "overall": {"level": overall[0], "sentence": overall[1]},
        "verdicts": _records(verdicts),
        "answers": sentences.answers(model, summary),
        "read": _read(model),
        "steps": [] if steps is None else _records(steps),
        "media": [screen.baseline_media, *screen.media],
        "perturbations": [] if summary is None else _records(summary),
        "effects": None if effects is None else _effects(screen, effects),
        "words": {} if effects is None else _words(model, effects),
        "courses": _courses(tables.get("effects_over_time"), effects),
        "heat": None if effects is None else _heat(screen, effects),
        "sets": _by(tables["gene_sets"], "perturbation") if "gene_sets" in tables else {},
        "genes": [] if effects is None else _genes(effects),
        "media_effects": _media_effects(tables.get("media_effects")),
        "assumptions": sentences.assumption_sections(tables.get("assumptions", _NONE)),
        "batches": _batches(model, tables),
        "training": _training(model),
        "methods": sentences.methods(model, tables),
        "citations": list(sentences.CITATIONS),
        "command": command,
    }


_NONE = pd.DataFrame({"assumption": []})


def _number(value: Any) -> Any:
    """A number of four digits, or None where there is none."""
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        return float(f"{value:.4g}") if math.isfinite(value) else None
    return value if value is None else str(value)


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    columns = [str(name) for name in table]
    return [
        dict(zip(columns, map(_number, row))) for row in table.itertuples(index=False, name=None)
    ]


def _by(table: pd.DataFrame, key: str) -> dict[str, list[dict[str, Any]]]:
    return {str(k): _records(part.drop(columns=key)) for k, part in table.groupby(key, sort=False)}


# ---------------------------------------------------------------------- what was read
def _read(model: PyroCell) -> dict[str, Any]:
    """Columns that were used and that look as if they should have been, cells by batch."""
    screen, arguments = model.screen, model.adata_manager.registry[SETUP_ARGS]
    used = {
        name: value
        for name, value in arguments.items()
        if name.endswith(("_key", "_keys")) and value
    }
    ignored = resembling_columns([str(c) for c in model.adata.obs], arguments)
    labels = list(dict.fromkeys(screen.conditions["perturbation"]))
    if screen.many_sets:
        labels = labels_of(screen)
    cells = cells_by_label(screen, labels).astype(int)
    cells = cells.iloc[np.argsort(-cells.to_numpy().sum(1), kind="stable")]
    return {
        "n_cells": screen.n_cells,
        "n_genes": len(screen.genes),
        "n_perturbations": len(screen.perturbations),
        "control": screen.control,
        "n_control": int(screen.conditions["n_cells"][screen.is_control].sum()),
        "media": [screen.baseline_media, *screen.media],
        "times": [_number(float(t)) for t in screen.times],
        "used": [
            {"argument": k, "column": v if isinstance(v, str) else ", ".join(v)}
            for k, v in used.items()
        ],
        "ignored": [{"argument": k, "column": ", ".join(v)} for k, v in ignored.items()],
        "batches": [str(b) for b in screen.batches],
        "cells": [[str(k), *map(int, row)] for k, row in zip(cells.index, cells.to_numpy())],
    }


# ---------------------------------------------------------------------- effects
def _effects(screen: Any, effects: pd.DataFrame) -> dict[str, Any]:
    """Of each place and perturbation its genes: index, log2 change, interval, rates, counts."""
    genes = {str(g): i for i, g in enumerate(screen.genes)}
    places = last_places(effects)
    names = list(dict.fromkeys(effects["perturbation"]))
    most = max(_FEWEST, min(len(genes), _PAIRS // max(1, len(places) * len(names))))
    own = {k: int(g) for k, g in zip(screen.perturbations, screen.target) if g >= 0}
    found = []
    for place in places:
        part = part_of(effects, place)
        shown = {}
        control = part.drop_duplicates("gene").set_index("gene")["count_control"]
        blocks = part.groupby("perturbation", sort=False, observed=True).indices
        columns = {
            name: part[name].to_numpy()
            for name in ("mean", "sd", "lower", "upper", "lfsr", "fdr", "count")
        }
        index = part["gene"].astype(str).map(genes).to_numpy()
        for name, rows in blocks.items():
            some = rows
            if len(rows) > most:
                sure = np.abs(columns["mean"][rows]) / columns["sd"][rows]
                keep = np.argpartition(-sure, most)[:most]
                mine = np.flatnonzero(index[rows] == own.get(name, -1))
                some = rows[np.union1d(keep, mine)]
            shown[str(name)] = {
                "g": index[some].tolist(),
                "m": _short(columns["mean"][some] / np.log(2)),
                "l": _short(columns["lower"][some] / np.log(2)),
                "u": _short(columns["upper"][some] / np.log(2)),
                "s": _rate(columns["lfsr"][some]),
                "f": _rate(columns["fdr"][some]),
                "c": columns["count"][some].astype(int).tolist(),
            }
        media, time = place
        found.append(
            {
                "media": str(media),
                "time": _number(float(time)),
                "control": [int(control[g]) for g in map(str, screen.genes)],
                "of": shown,
            }
        )
    return {
        "genes": list(genes),
        "own": own,
        "places": found,
        "all_genes": most >= len(genes),
        "most": most,
        "smallest_rate": _NOTHING_SURE,
    }


def _short(values: np.ndarray) -> list[float]:
    return np.round(values.astype(float), 3).tolist()


def _rate(values: np.ndarray) -> list[float]:
    return [float(f"{v:.2g}") for v in values.astype(float)]


def _words(model: PyroCell, effects: pd.DataFrame) -> dict[str, dict[str, str]]:
    """Of each medium and perturbation the genes that change, and which steps they change by."""
    steps = steps_in_words(model, effects)
    found = {
        str(media): sentences.changed_genes(part_of(effects, (media, time)))
        for media, time in last_places(effects)
    }
    for media, said in steps.items():
        for name, text in said.items():
            found[media][name] = f"{found[media].get(name, '')} {text}".strip()
    return found


def _courses(over_time: pd.DataFrame | None, effects: pd.DataFrame | None) -> dict[str, Any]:
    """Of each perturbation and medium the genes it changes most, at every time."""
    if over_time is None or effects is None:
        return {}
    found: dict[str, Any] = {}
    at_end = effects.assign(z=(effects["mean"] / effects["sd"]).abs())
    for (name, media), mine in at_end.groupby(["perturbation", "media"], sort=False):
        genes = set(mine.nlargest(_TIMES, "z")["gene"].astype(str))
        found.setdefault(str(media), {})[str(name)] = genes
    rows: dict[str, Any] = {}
    for (name, media), mine in over_time.groupby(["perturbation", "media"], sort=False):
        keep = mine[mine["gene"].astype(str).isin(found.get(str(media), {}).get(str(name), ()))]
        rows.setdefault(str(media), {})[str(name)] = [
            {"gene": str(g), "time": _number(t), "log2fc": m, "lower": lo, "upper": up}
            for g, t, m, lo, up in zip(
                keep["gene"],
                keep["time"].astype(float),
                _short(keep["log2fc"].to_numpy()),
                _short(keep["lower"].to_numpy() / np.log(2)),
                _short(keep["upper"].to_numpy() / np.log(2)),
            )
        ]
    return rows


def _heat(screen: Any, effects: pd.DataFrame) -> dict[str, Any]:
    """The strongest perturbations and genes of the last medium, clustered; their similarity."""
    media, time = last_places(effects)[-1]
    part = part_of(effects, (media, time))
    n_genes = len(screen.genes)
    names = list(dict.fromkeys(part["perturbation"]))
    mean = part["mean"].to_numpy().reshape(len(names), n_genes) / np.log(2)
    listed = part["fdr"].to_numpy().reshape(mean.shape) <= sentences.LISTED
    shown = np.where(listed, mean, 0)
    strength = (shown**2).sum(1)
    rows = np.argsort(-strength, kind="stable")[:_MOST_ROWS]
    columns = np.argsort(-(shown[rows] ** 2).sum(0), kind="stable")[:_MOST_COLUMNS]
    block = together(pd.DataFrame(mean[np.ix_(rows, columns)], index=rows, columns=columns))
    rows, columns = block.index.to_numpy(), block.columns.to_numpy()
    genes = [str(g) for g in screen.genes]
    own = dict(zip(screen.perturbations, screen.target))
    cells = [
        {
            "perturbation": str(names[i]),
            "gene": genes[j],
            "value": round(float(mean[i, j]), 3),
            "own": bool(own.get(names[i], -1) == j),
        }
        for i in rows
        for j in columns
    ]
    with np.errstate(invalid="ignore"):
        alike = np.nan_to_num(np.corrcoef(mean[rows])) if len(rows) > 1 else np.ones((1, 1))
    pairs = [
        {
            "perturbation": str(names[i]),
            "other": str(names[j]),
            "value": round(float(alike[a, b]), 3),
            "own": False,
        }
        for a, i in enumerate(rows)
        for b, j in enumerate(rows)
    ]
    return {
        "media": str(media),
        "cells": cells,
        "pairs": pairs,
        "n_rows": len(rows),
        "n_columns": len(columns),
        "of_rows": len(names),
        "of_columns": n_genes,
    }


def _genes(effects: pd.DataFrame) -> list[list[Any]]:
    """Of each gene: counts in control, how many perturbations move it, and which most."""
    first = part_of(effects, last_places(effects)[0])
    genes = list(dict.fromkeys(first["gene"]))
    shape = (first["perturbation"].nunique(), len(genes))
    mean, sd, fdr = (first[c].to_numpy().reshape(shape) for c in ("mean", "sd", "fdr"))
    names = list(dict.fromkeys(first["perturbation"]))
    control = first["count_control"].to_numpy().reshape(shape)[0]
    listed = fdr <= sentences.LISTED
    best = np.argmax(np.abs(mean) / sd, axis=0)
    return [
        [
            str(g),
            int(control[j]),
            int((listed & (mean > 0))[:, j].sum()),
            int((listed & (mean < 0))[:, j].sum()),
            str(names[best[j]]),
            round(float(mean[best[j], j] / np.log(2)), 3),
        ]
        for j, g in enumerate(genes)
    ]


def _media_effects(table: pd.DataFrame | None) -> list[list[Any]]:
    """What each medium does to control cells, the listed genes."""
    if table is None:
        return []
    listed = table[table["fdr"] <= sentences.LISTED]
    listed = listed.assign(z=(listed["mean"] / listed["sd"]).abs()).nlargest(2_000, "z")
    numbers = [_short(listed[column].to_numpy()) for column in ("log2fc", "lower", "upper")]
    labels = listed["media"].astype(str), listed["gene"].astype(str)
    return [list(row) for row in zip(*labels, *numbers, listed["count"].astype(int).tolist())]


# ---------------------------------------------------------------------- batches and training
def _batches(model: PyroCell, tables: dict[str, pd.DataFrame]) -> dict[str, Any]:
    """Size of each batch's noise, and what the layout cannot tell."""
    mixed = tables["aliased"][~tables["aliased"]["estimable"]]
    rows = []
    if "batch_effects" in tables:
        for name, mine in tables["batch_effects"].groupby("batch", sort=False):
            top = mine.iloc[int(mine["mean"].abs().to_numpy().argmax())]
            rows.append(
                [
                    str(name),
                    _number(float(np.sqrt((mine["mean"] ** 2).mean()))),
                    str(top["gene"]),
                    _number(float(top["mean"] / np.log(2))),
                ]
            )
    return {
        "noise": rows,
        "aliased": list(dict.fromkeys(map(str, mixed["reason"]))),
        "n_contrasts": len(tables["aliased"]),
    }


def _training(model: PyroCell) -> dict[str, Any]:
    history = model.history
    rows: list[dict[str, Any]] = []
    curves: Sequence[tuple[str, str, float]] = (
        ("validation_elbo", "held out", 1.0),
        ("train_loss", "training", -1.0),
    )
    for column, cells, sign in curves:
        if column in history:
            curve = (sign * history[column]).dropna()
            curve = curve[curve.ne(curve.shift())] if column == "validation_elbo" else curve
            rows += [
                {"epoch": int(e), "nats": _number(float(v)), "cells": cells}
                for e, v in curve.items()
            ]
    return {"rows": rows, "verdict": convergence(history).verdict}
