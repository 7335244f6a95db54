"""A screen as plain lists and strings, and back, without its cells."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from pyrocell.screen.conditions import condition_arrays

__all__ = ["screen_fields", "screen_to_dict"]

_LISTS = "perturbations perturbation_genes perturbation_types media times batches guides".split()


def screen_to_dict(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a screen, without its cells, as plain lists and strings, for JSON."""
    conditions = fields["conditions"].astype({"time": object})
    conditions["time"] = conditions["time"].where(fields["conditions"]["time"].notna(), None)
    nested = {}
    if fields["laboratories"]:  # a screen without has the dictionary it always had
        nested = {
            "laboratories": list(fields["laboratories"]),
            "batch_laboratory": fields["batch_laboratory"].tolist(),
        }
    if fields["own_columns"] is not None:
        nested["own_columns"] = fields["own_columns"].tolist()
    plain = {name: fields[name] for name in ("control", "baseline_media", "baseline_observed")}
    return {
        **nested,
        **{name: list(fields[name]) for name in _LISTS},
        **plain,
        "genes": [str(gene) for gene in fields["genes"]],
        "conditions": conditions.to_dict("list"),
        "layout": fields["layout"].to_numpy().tolist(),
        "aliased": fields["aliased"].to_dict("list"),
    }


def screen_fields(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of the screen that `screen_to_dict` wrote, without its cells."""
    names = ("perturbations", "perturbation_genes", "perturbation_types")
    conditions = pd.DataFrame(saved["conditions"]).astype({"time": float})
    media = {name: j for j, name in enumerate(saved["media"])} | {saved["baseline_media"]: -1}
    arrays = condition_arrays(
        _split_conditions(conditions["perturbation"], saved["perturbations"]),
        conditions["media"].map(media).to_numpy(np.int64),
        conditions["time"].to_numpy(),
        len(saved["perturbations"]),
        len(saved["media"]),
        saved["times"],
    )
    return dict(
        genes=pd.Index(saved["genes"], dtype=object),
        **{name: tuple(saved[name]) for name in names},
        control=saved["control"],
        media=tuple(saved["media"]),
        baseline_media=saved["baseline_media"],
        times=tuple(saved["times"]),
        batches=tuple(saved["batches"]),
        guides=tuple(saved["guides"]),
        baseline_observed=saved["baseline_observed"],
        laboratories=tuple(saved.get("laboratories", ())),
        batch_laboratory=np.array(
            saved.get("batch_laboratory", [0] * len(saved["batches"])), dtype=np.int64
        ),
        own_columns=None
        if "own_columns" not in saved
        else np.array(saved["own_columns"], dtype=np.int64),
        conditions=conditions,
        layout=pd.DataFrame(saved["layout"], columns=list(saved["batches"])),
        aliased=pd.DataFrame(saved["aliased"]).astype({"estimable": bool}),
        **arrays,
    )


def _split_conditions(labels: Iterable[str], perturbations: Sequence[str]) -> list[list[int]]:
    """Indices of the perturbations in canonical labels, as `Screen.conditions` has them."""
    index = {name: k for k, name in enumerate(perturbations)}
    return [[index[part] for part in label.split("+") if part in index] for label in labels]
