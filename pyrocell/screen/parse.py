"""Columns of labels, one entry per cell, read into the arrays of a screen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from pyrocell._core.messages import did_you_mean, join_names
from pyrocell.errors import ScreenError, UnknownLabelError, warn
from pyrocell.screen.conditions import condition_arrays
from pyrocell.screen.events import read_events, read_times
from pyrocell.screen.labels import control_suggestion, encode_labels, genotype_of, single_names
from pyrocell.screen.laboratories import read_laboratories
from pyrocell.screen.sets import LEAST_CELLS, MANY_SETS, GuideSets, genotypes_of_sets
from pyrocell.screen.vocabulary import Vocabulary

__all__ = [
    "CellLabels",
    "group_cells",
    "read_labels",
]

_WHOLE_SCREEN = "all"  # name of the only batch where no batch column is given


@dataclass(frozen=True)
class CellLabels:
    """Labels of all cells as codes, and the names that the codes stand for.

    Attributes
    ----------
    genotypes
        Per genotype code, the sorted indices of its perturbations.
    genotype, medium, moment, batch, guide
        (N,) int64 codes; medium -1 for the baseline; guide None where there is none.
    events
        Those of `EVENTS` that were registered, (N,) float64 times.
    """

    names: dict[str, Any]
    genotypes: list[tuple[int, ...]]
    genotype: np.ndarray
    medium: np.ndarray
    moment: np.ndarray
    moments: np.ndarray
    batch: np.ndarray
    guide: np.ndarray | None
    events: dict[str, np.ndarray]


def _read_genotypes(
    perturbation: Any, control: str, types: Any, columns: Mapping[str, str]
) -> tuple[np.ndarray, list[frozenset[tuple[str, str]]]]:
    """Codes (N,) and the genotype, a set of (gene, type), that each code stands for."""
    column = columns.get("perturbation", "perturbation")
    type_column = columns.get("perturbation_type", "perturbation_type")
    if isinstance(perturbation, GuideSets):
        return genotypes_of_sets(perturbation, control, types, type_column)
    codes, labels = encode_labels(perturbation, column)
    if isinstance(types, str):
        kinds: list[str | None] = [types]
        pairs = codes
    else:
        kind, stated = encode_labels(types, type_column, allow_missing=True)
        kinds = [*stated, None]
        pairs = codes * len(kinds) + np.where(kind < 0, len(stated), kind)
    used, code = np.unique(pairs, return_inverse=True)
    found: dict[frozenset[tuple[str, str]], int] = {}
    merged = np.array(
        [
            found.setdefault(
                genotype_of(labels[p // len(kinds)], control, kinds[p % len(kinds)], type_column),
                len(found),
            )
            for p in used
        ],
        dtype=np.int64,
    )
    return merged[code], list(found)


def _all_control(control: str, others: tuple[Any, ...]) -> np.ndarray:
    """Labels of cells of which none was perturbed, (N,); raise if nothing else tells them apart."""
    known = [values for values in others if values is not None]
    if not known:
        raise ScreenError(
            "without perturbation_key, media_key, time_key and batch_key no two cells differ; name "
            "the columns of adata.obs that the screen has"
        )
    return np.full(len(known[0]), control, dtype=object)


def _check_control(
    labels: Any, n_control: int, n_perturbed: int, control: str, column: str
) -> None:
    """Raise unless there are both controls and perturbed cells."""
    if not n_control:
        labels = list(pd.Categorical(labels).remove_unused_categories().categories.astype(str))
        raise UnknownLabelError(
            f'{column} has {len(labels)} labels but none equals control="{control}"'
            f"{control_suggestion(control, labels)}"
        )
    if not n_perturbed:
        raise ScreenError(
            f'{column}: every cell is control="{control}"; a screen needs at least one '
            "perturbation beside the control"
        )


def _check_sets(
    sets: GuideSets,
    code: np.ndarray,
    genotypes: Sequence[frozenset],
    control: str,
    column: str,
) -> None:
    """Raise unless there are perturbed cells, and controls where these have to be there.

    Where cells have many guides each, the level of unperturbed cells follows from cells that lack
    one target after the other; with few sets of targets it does not.
    """
    targets = list(dict.fromkeys(map(str, sets.targets)))
    suggested = "" if control in targets else control_suggestion(control, targets)
    if "did you mean" in suggested or "begin with it" in suggested:
        raise UnknownLabelError(
            f'{column}: guides have {len(targets)} targets but none equals control="{control}"'
            f"{suggested}"
        )
    cells = np.bincount(code, minlength=len(genotypes))
    size = np.array([len(genotype) for genotype in genotypes])
    if not size.any():
        raise ScreenError(
            f'{column}: every guide found in a cell targets control="{control}"; a screen needs '
            "at least one perturbation beside the control"
        )
    if cells[size == 0].sum():
        return
    if int(((size > 1) & (cells < LEAST_CELLS)).sum()) > MANY_SETS:
        warn(
            f"{column}: no cell has control guides alone, so the level of unperturbed cells is "
            "what the sum of effects leaves: it holds as far as effects add up"
        )
        return
    raise UnknownLabelError(
        f'{column}: no cell has guides of control="{control}" alone, and few sets of targets tell '
        "what unperturbed cells are like; say in guide_targets= which guides target nothing, or "
        "add cells with such guides alone"
    )


def _read_media(
    media: Any, n: int, baseline: str | None, column: str, like: Vocabulary | None
) -> tuple[np.ndarray, dict[str, Any]]:
    """Medium codes (N,), -1 for the baseline, and the names."""
    if media is None:
        names = like.media if like is not None else ()
        called = "baseline" if baseline is None else baseline
        kept = {"media": names, "baseline_media": called, "baseline_observed": True}
        return np.full(n, -1, dtype=np.int64), kept
    codes, labels = encode_labels(media, column)
    observed = baseline in labels
    if like is not None:
        order, observed = list(like.media), like.baseline_observed
        unknown = [label for label in labels if label not in (baseline, *order)]
        if unknown:
            raise UnknownLabelError(
                f'{column} has the value "{unknown[0]}", which the model never saw'
                f"{did_you_mean(unknown[0], [baseline, *order])}"
            )
    elif baseline is None and len(labels) == 1:
        baseline, order = labels[0], []
    elif not observed:
        many = f"{len(labels)} media" if len(labels) > 1 else f'the medium "{labels[0]}" alone'
        none = "none equals" if len(labels) > 1 else "not"
        nothing = "; baseline_media=None if that is a stimulus" if len(labels) == 1 else ""
        raise UnknownLabelError(
            f"{column} has {many} but {none} baseline_media={_quoted(baseline)}"
            f"{did_you_mean(baseline or '', labels)}; name the medium without stimulus, or the one "
            f'to compare with: baseline_media="{labels[0]}"{nothing}'
        )
    else:
        order = [label for label in labels if label != baseline]
    index = {label: j for j, label in enumerate(order)} | {baseline: -1}
    kept = {"media": tuple(order), "baseline_media": baseline, "baseline_observed": observed}
    return np.array([index[label] for label in labels], dtype=np.int64)[codes], kept


def _quoted(label: str | None) -> str:
    return "None" if label is None else f'"{label}"'


def _read_batches(
    batch: Any, n: int, column: str, like: Vocabulary | None
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Batch codes (N,) and names."""
    if batch is None:
        if like is not None and len(like.batches) > 1:
            raise UnknownLabelError(f"{column} is needed; the model has {join_names(like.batches)}")
        return np.zeros(n, np.int64), (_WHOLE_SCREEN,) if like is None else like.batches
    codes, labels = encode_labels(batch, column)
    if like is None:
        return codes, tuple(labels)
    index = {label: b for b, label in enumerate(like.batches)}
    unknown = [label for label in labels if label not in index]
    if unknown:
        raise UnknownLabelError(
            f'{column} has the value "{unknown[0]}", a batch that the model never saw'
            f"{did_you_mean(unknown[0], like.batches)}"
        )
    return np.array([index[label] for label in labels], dtype=np.int64)[codes], like.batches


def _name_singles(
    genotypes: Sequence[frozenset[tuple[str, str]]], like: Vocabulary | None, column: str
) -> tuple[list[tuple[int, ...]], dict[str, Any]]:
    """Index the perturbations of each genotype, and name them."""
    if like is not None:
        names = ("perturbations", "perturbation_genes", "perturbation_types")
        kept = {name: getattr(like, name) for name in names}
        where = zip(like.perturbation_genes, like.perturbation_types, strict=True)
        index = {single: k for k, single in enumerate(where)}
        for gene, kind in (single for genotype in genotypes for single in genotype):
            if (gene, kind) not in index:
                raise UnknownLabelError(
                    f'{column} has "{gene}" ({kind}), which the model never saw'
                    f"{did_you_mean(gene, like.perturbations)}"
                )
    else:
        named = single_names(single for genotype in genotypes for single in genotype)
        index = {single: k for k, single in enumerate(named)}
        kept = {
            "perturbations": tuple(named.values()),
            "perturbation_genes": tuple(gene for gene, _ in named),
            "perturbation_types": tuple(kind for _, kind in named),
        }
    return [tuple(sorted(index[single] for single in g)) for g in genotypes], kept


def read_labels(
    *,
    perturbation: Any,
    control: str,
    perturbation_type: Any,
    media: Any,
    baseline_media: str | None,
    time: Any,
    perturbation_time: Any,
    media_time: Any,
    batch: Any,
    guide: Any,
    laboratory: Any,
    columns: Mapping[str, str],
    like: Vocabulary | None,
) -> CellLabels:
    """Read the columns of `Screen.from_labels`; see there for arguments and errors."""
    control, given = str(control).strip(), perturbation is not None
    if not given:
        perturbation = _all_control(control, (media, time, batch))
    code, sets = _read_genotypes(perturbation, control, perturbation_type, columns)
    n = len(code)
    column = columns.get("perturbation", "perturbation")
    if like is None and isinstance(perturbation, GuideSets):
        _check_sets(perturbation, code, sets, control, column)
    elif like is None and given:
        n_control = int(np.isin(code, [i for i, s in enumerate(sets) if not s]).sum())
        _check_control(perturbation, n_control, n - n_control, control, column)
    genotypes, names = _name_singles(sets, like, column)
    baseline = None if baseline_media is None else str(baseline_media).strip()
    medium, media_names = _read_media(media, n, baseline, columns.get("media", "media"), like)
    moment, moments, values = np.zeros(n, np.int64), np.zeros(0), None
    if time is not None:
        values = read_times(time, columns.get("time", "time"))
        moments, moment = np.unique(values, return_inverse=True)
    elif like is not None and len(like.times):
        raise UnknownLabelError(
            f"{columns.get('time', 'time')} is needed: the model has times {join_names(like.times)}"
        )
    perturbed = np.array([bool(g) for g in genotypes])[code]
    told = {
        "perturbed_at": ("perturbation_time", perturbation_time, perturbed),
        "exposed_at": ("media_time", media_time, medium >= 0),
    }
    harvest_column = columns.get("time", "time")
    events = {
        event: read_events(at, event, where, values, columns.get(role, role), harvest_column)
        for event, (role, at, where) in told.items()
        if at is not None
    }
    batches, batch_names = _read_batches(batch, n, columns.get("batch", "batch"), like)
    nested = read_laboratories(laboratory, batch is not None, batches, batch_names, columns, like)
    guides, guide_names = None, []
    if guide is not None:
        guides, guide_names = encode_labels(
            guide, columns.get("guide", "guide"), allow_missing=True
        )
    names |= {**media_names, **nested} | {
        "control": control,
        "times": tuple(moments.tolist()) if like is None else like.times,
        "batches": batch_names,
        "guides": tuple(guide_names),
    }
    return CellLabels(names, genotypes, code, medium, moment, moments, batches, guides, events)


def group_cells(cells: CellLabels) -> dict[str, Any]:
    """Gather cells into conditions: the fields of a `Screen` that follow from its labels."""
    names = cells.names
    perturbations, media = names["perturbations"], names["media"]
    n_media, n_moments = len(media) + 1, max(1, len(cells.moments))
    ways, way = np.zeros((1, len(cells.events))), 0  # when events happened, all cells alike
    if cells.events:
        ways, way = np.unique(
            np.column_stack([*cells.events.values()]), axis=0, return_inverse=True
        )
    key = (cells.genotype * n_media + cells.medium + 1) * n_moments + cells.moment
    used, condition = np.unique(key * len(ways) + np.ravel(way), return_inverse=True)
    used, way = used // len(ways), used % len(ways)
    moment, medium = used % n_moments, used // n_moments % n_media - 1
    genotypes = [cells.genotypes[i] for i in used // n_moments // n_media]
    labels = ["+".join(perturbations[k] for k in g) or names["control"] for g in genotypes]
    order = sorted(
        range(len(used)),
        key=lambda c: (bool(genotypes[c]), labels[c], medium[c], moment[c], way[c]),
    )
    rank = np.empty(len(used), dtype=np.int64)
    rank[order] = np.arange(len(used))
    condition, medium = rank[condition], medium[order]
    time = cells.moments[moment[order]] if len(cells.moments) else np.full(len(used), np.nan)
    n_batches = len(names["batches"])
    counts = np.bincount(condition * n_batches + cells.batch, minlength=len(used) * n_batches)
    counts = counts.reshape(len(used), n_batches)
    media_labels = np.array([*media, names["baseline_media"]], dtype=object)
    table = pd.DataFrame(
        {
            "perturbation": [labels[c] for c in order],
            "media": media_labels[medium],
            "time": time,
            **dict(zip(cells.events, ways[way[order]].T, strict=True)),
            "n_cells": counts.sum(axis=1),
        }
    )
    return {
        **names,
        **condition_arrays(
            [genotypes[c] for c in order],
            medium,
            time,
            len(perturbations),
            len(media),
            names["times"],
        ),
        "conditions": table,
        "layout": pd.DataFrame(counts, columns=list(names["batches"])),
        "cell_condition": condition,
        "cell_batch": cells.batch,
        "cell_guide": cells.guide,
    }
