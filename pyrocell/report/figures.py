"""The figures of a fitted model as files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from pyrocell import plotting
from pyrocell._compat import SETUP_ARGS

if TYPE_CHECKING:
    from pyrocell.model import PyroCell

__all__ = ["FIGURES", "write_figures"]

FIGURES = (
    "history",
    "layout",
    "effects",
    "effect_intervals",
    "batch_effects",
    "gains",
    "predictive_check",
    "latent",
)
_DPI = 150
_MOST_PERTURBATIONS = 60  # rows of the heat map: those with the strongest effects


def write_figures(
    model: PyroCell,
    tables: dict[str, pd.DataFrame],
    directory: Path,
    color: str | None = None,
    say: Callable[[str], None] = lambda message: None,
) -> list[Path]:
    """Draw every figure that applies as PNG; return the files. One that fails is said, no more."""
    directory.mkdir(parents=True, exist_ok=True)
    draw: dict[str, Callable[[], Axes | np.ndarray]] = {
        "layout": lambda: plotting.layout(model.screen),
        "predictive_check": lambda: plotting.predictive_check(tables["predictive_check"]),
        "latent": lambda: plotting.latent(model, color=color or _batch_column(model)),
    }
    if "perturbation_effects" in tables:
        effects = tables["perturbation_effects"]
        # Where there is a stimulus, effects are mostly seen with it.
        effects = _strongest_rows(effects[effects["media"] == effects["media"].iloc[-1]])
        draw["effects"] = lambda: plotting.effects(effects)
        draw["effect_intervals"] = lambda: plotting.effect_intervals(effects)
    if len(tables["history"]):
        draw["history"] = lambda: plotting.history(model)
    if "batch_effects" in tables:
        draw["batch_effects"] = lambda: plotting.batch_effects(tables["batch_effects"])
    if "media_gains" in tables:
        draw["gains"] = lambda: _gains(tables["media_gains"])
    files = []
    with plt.rc_context({"text.parse_math": False}):  # a "$" in a label is a "$"
        for name, function in draw.items():
            before = set(plt.get_fignums())
            try:
                axes = np.atleast_1d(function())
                file = directory / f"{name}.png"
                axes[0].figure.savefig(file, dpi=_DPI)
                files.append(file)
            except Exception as error:  # a figure is not worth the report
                say(f"the figure {name} could not be drawn: {error}")
            finally:
                for number in set(plt.get_fignums()) - before:
                    plt.close(number)
    return files


def _gains(table: pd.DataFrame) -> np.ndarray:
    """One panel for each medium."""
    media = list(table["media"].unique())
    rows = table["perturbation"].nunique()
    size = (min(4.5 * len(media), 8.0), min(1.4 + 0.2 * rows, 10.0))  # of a page
    _, axes = plt.subplots(1, len(media), figsize=size, squeeze=False, layout="constrained")
    for ax, name in zip(axes[0], media):
        plotting.gains(table, name, ax=ax)
    return axes[0]


def _strongest_rows(effects: pd.DataFrame) -> pd.DataFrame:
    """Effects of the perturbations that do most, in the order of the table."""
    bound = pd.Series(np.maximum(effects["lower"], -effects["upper"]))
    best = bound.groupby(effects["perturbation"], sort=False).max()
    return effects[effects["perturbation"].isin(best.nlargest(_MOST_PERTURBATIONS).index)]


def _batch_column(model: PyroCell) -> str | None:
    return model.adata_manager.registry[SETUP_ARGS]["batch_key"]
