"""Which conditions are held out, and which cells have to go so that nothing of them is seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import pandas as pd
from anndata import AnnData

from pyrocell._core.messages import did_you_mean, join_names
from pyrocell.errors import ScreenError, UnknownLabelError
from pyrocell.model import PyroCell

if TYPE_CHECKING:
    from pyrocell.screen.screen import Screen

__all__ = ["HeldOut", "Split", "as_splits", "held_out_of", "screen_of", "splits"]

KINDS = ("perturbation", "combination", "media", "time")
_COLUMNS = ("perturbation", "media", "time")
Split = Mapping[str, Sequence[Any]]


class HeldOut(NamedTuple):
    """Conditions of a screen that a split takes away.

    Attributes
    ----------
    asked
        (C,) bool, conditions to predict.
    removed
        (C,) bool, conditions whose cells are not seen: those asked for and, in the same media and
        at the same times, those whose perturbations include all of an asked one's.
    """

    asked: np.ndarray
    removed: np.ndarray


def screen_of(model: PyroCell | AnnData | Screen) -> Screen:
    """The screen of a model, or of an AnnData that was registered.

    Raises
    ------
    ScreenError
        If the AnnData was not registered.
    """
    if isinstance(model, AnnData):
        manager = PyroCell._get_most_recent_anndata_manager(model)
        if manager is None:
            raise ScreenError(
                "adata is not registered; call pyrocell.PyroCell.setup_anndata(adata, ...) first"
            )
        return cast("Any", manager).screen
    return model.screen if isinstance(model, PyroCell) else model


def splits(
    model: PyroCell | AnnData | Screen,
    by: str = "perturbation",
    n_folds: int = 5,
    seed: int = 0,
    at: Sequence[Any] | None = None,
) -> list[dict[str, list]]:
    """Splits of a registered screen that leak nothing: each is an argument of `evaluate`.

    Parameters
    ----------
    model
        A model, or an AnnData registered with `PyroCell.setup_anndata`; nothing is trained.
    by
        - "perturbation": single perturbations in `n_folds` folds, each gone from every medium, time
          and combination.
        - "combination": measured combinations whose perturbations were all measured alone, in
          `n_folds` folds.
        - "media": for each medium, `n_folds` folds of the perturbations measured there and in
          another; their cells in that medium are held out, others and controls stay.
        - "time": the same for times.
    n_folds
        At most; fewer where there are fewer labels.
    seed
        Of the folds.
    at
        Media or times to hold out; default: every medium beside the baseline, and the last time.

    Returns
    -------
    list of dicts with keys "perturbation" or "combination", and "media" or "time".

    Raises
    ------
    ScreenError
        If the screen has nothing of that kind to hold out.
    """
    screen = screen_of(model)
    if by not in KINDS:
        raise ScreenError(f'by="{by}" is not one of {", ".join(KINDS)}{did_you_mean(by, KINDS)}')
    if n_folds < 2:
        raise ScreenError(f"n_folds={n_folds} must be at least 2: something has to stay")
    rng = np.random.default_rng(seed)
    n_drivers = np.diff(screen.membership.indptr)
    labels = screen.conditions["perturbation"]
    if by in ("perturbation", "combination"):
        several = by == "combination"
        found = sorted(set(labels[(n_drivers > 1) if several else (n_drivers == 1)]))
        if several:
            alone = set(labels[n_drivers == 1])
            found = [name for name in found if _singles(screen, name) <= alone]
        if len(found) < 2:
            raise ScreenError(
                f"the screen has {len(found)} "
                + ("combinations whose perturbations were measured alone" if several else "singles")
                + "; two are needed to hold one out"
            )
        return [{by: fold} for fold in _folds(found, n_folds, rng)]
    if by == "media":
        places, column = list(screen.media if at is None else at), "media"
    else:
        places, column = list(screen.times[-1:] if at is None else at), "time"
    out: list[dict[str, list]] = []
    for place in places:
        here = screen.at(place, None) if by == "media" else _at_times(screen, [place])
        inside = set(labels[here & (n_drivers > 0)])
        elsewhere = set(labels[~here & (n_drivers > 0)])
        both = sorted(inside & elsewhere)
        if len(both) > 1:
            out += [{"label": fold, column: [place]} for fold in _folds(both, n_folds, rng)]
    if not out:
        raise ScreenError(
            f'by="{by}": no two perturbations were measured in one of {join_names(places)} and '
            f"elsewhere; register a {column}_key with at least two"
        )
    return [{_kind(screen, s["label"]): s["label"], column: s[column]} for s in out]


def _kind(screen: Screen, labels: Sequence[str]) -> str:
    return "perturbation" if all(len(screen.indices(n)) < 2 for n in labels) else "combination"


def _singles(screen: Screen, label: str) -> set[str]:
    return {screen.perturbations[k] for k in screen.indices(label)}


def _folds(names: list, n_folds: int, rng: np.random.Generator) -> list[list]:
    order = rng.permutation(len(names))
    parts = np.array_split(order, min(n_folds, len(names)))
    return [[names[i] for i in sorted(part)] for part in parts]


def _at_times(screen: Screen, times: Sequence[float]) -> np.ndarray:
    """(C,) bool: conditions at one of the times."""
    known = np.asarray(screen.times, float)
    for time in times:
        if not np.isclose(known, float(time)).any():
            raise UnknownLabelError(
                f"time {time} is not in the screen: {join_names(screen.times) or 'it has none'}"
            )
    mine = screen.conditions["time"].to_numpy(float)
    return np.asarray(np.isclose(mine[:, None], np.asarray(times, float)).any(1))


def as_splits(held_out: Any) -> list[list[dict[str, Any]]]:
    """What `evaluate` was given, as a list of splits, each a list of patterns of conditions.

    A pattern has some of "perturbation" (a list of labels), "media" and "time" (lists).

    Raises
    ------
    ScreenError
        If it is empty, or a key or column is not one of those that are known.
    """
    if isinstance(held_out, str):
        held_out = [held_out]
    if isinstance(held_out, Mapping | pd.DataFrame):
        held_out = [held_out]
    held_out = list(held_out)
    if not held_out:
        raise ScreenError("held_out is empty; name perturbations, or use metrics.splits(model)")
    if all(isinstance(name, str) for name in held_out):
        held_out = [{"perturbation": held_out}]
    return [_patterns(split) for split in held_out]


def _patterns(split: Any) -> list[dict[str, Any]]:
    if isinstance(split, pd.DataFrame):
        if split.empty or not set(split) <= set(_COLUMNS):
            raise ScreenError(
                f"a table of held-out conditions has a row or more, and columns among "
                f"{join_names(_COLUMNS)}; this one has {len(split)} rows and {join_names(split)}"
            )
        rows = split.to_dict("records")
        return [{str(k): [v] for k, v in row.items() if not pd.isna(v)} for row in rows]
    if not isinstance(split, Mapping):
        split = {"perturbation": list(split)}
    unknown = [key for key in split if key not in KINDS]
    if unknown or not split:
        what = f'"{unknown[0]}"{did_you_mean(str(unknown[0]), KINDS)}' if unknown else "nothing"
        raise ScreenError(f"held_out names {what}; its keys are {join_names(KINDS)}")
    listed = {k: [v] if isinstance(v, str) or np.isscalar(v) else list(v) for k, v in split.items()}
    empty = [key for key, values in listed.items() if not values]
    if empty:
        raise ScreenError(f'held_out["{empty[0]}"] is empty; leave it out for all of them')
    labels = [*listed.pop("perturbation", []), *listed.pop("combination", [])]
    return [listed | ({"perturbation": labels} if labels else {})]


def held_out_of(screen: Screen, patterns: Sequence[Mapping[str, Any]]) -> HeldOut:
    """Conditions that patterns ask for, and those that have to go with them.

    Control cells are never removed.

    Raises
    ------
    UnknownLabelError
        If a perturbation, medium or time is not in the screen.
    ScreenError
        If no measured condition fits, or no perturbed cell would be left.
    """
    perturbed = ~screen.is_control
    asked, removed = np.zeros(len(perturbed), bool), np.zeros(len(perturbed), bool)
    for pattern in patterns:
        place = perturbed.copy()
        if "media" in pattern:
            for medium in pattern["media"]:
                screen.media_index(medium)
            place &= screen.conditions["media"].isin(pattern["media"]).to_numpy()
        if "time" in pattern:
            place &= _at_times(screen, pattern["time"])
        if "perturbation" not in pattern:
            asked |= place
            removed |= place
            continue
        for label in pattern["perturbation"]:
            carried = screen.indices(label)
            if not carried:
                raise ScreenError(f'"{label}" is the control, which always stays')
            inside = screen.genotype[:, carried].all(1) & place
            removed |= inside
            asked |= inside & (np.diff(screen.membership.indptr) == len(carried))
    if not asked.any():
        raise ScreenError(
            f"no measured condition fits {list(patterns)!r}; screen.conditions has those that do"
        )
    if not (perturbed & ~removed).any():
        raise ScreenError(
            "every perturbed cell would be held out, so there is nothing to learn from; hold out "
            "fewer, or use metrics.splits(model, by=...)"
        )
    return HeldOut(asked, removed)
