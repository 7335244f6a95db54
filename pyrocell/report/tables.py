"""Every answer of a fitted model as a table, in memory and on disk."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from pyrocell._core.messages import join_names
from pyrocell.errors import PyrocellError
from pyrocell.posterior.effect_checks import disagreements, effect_checks
from pyrocell.posterior.guides import response_share
from pyrocell.report.perturbations import labels_of, measured_effects, perturbation_table
from pyrocell.report.verdicts import verdicts
from pyrocell.screen.screen import Screen

if TYPE_CHECKING:
    from pyrocell.model import PyroCell

__all__ = ["FORMATS", "TABLES", "check_format", "collect", "write_tables"]

FORMATS = ("csv", "parquet")
# Counts that the predictive check simulates in each draw, and the cells that this may come to.
_SIMULATED, _FEWEST, _MOST = 2_000_000, 500, 5_000
TABLES = (
    "perturbation_effects",
    "combination_effects",
    "effects_over_time",
    "perturbations",
    "assumptions",
    "gene_sets",
    "batch_effects",
    "media_effects",
    "media_gains",
    "predictive_check",
    "effect_checks",
    "disagreement",
    "verdicts",
    "shuffle_check",
    "conditions",
    "layout",
    "aliased",
    "history",
)


def check_format(name: str) -> None:
    """Raise unless tables can be written in this format."""
    if name not in FORMATS:
        raise PyrocellError(f'tables="{name}" is not a format of tables; use "csv" or "parquet"')
    if name == "parquet" and importlib.util.find_spec("pyarrow") is None:
        raise PyrocellError(
            'tables="parquet" needs pyarrow, which is not installed: '
            "pip install 'pyrocell[parquet]', or use csv"
        )


def collect(
    model: PyroCell, n_samples: int, say: Callable[[str], None] = lambda message: None
) -> dict[str, pd.DataFrame]:
    """Tables of everything that the model can say, by name; those in `TABLES` that apply.

    Effects of single perturbations and of combinations are at the last time, in the baseline medium
    and in every other; `effects_over_time` has every measured time.
    """
    screen = model.screen
    tables: dict[str, pd.DataFrame] = {}
    places = [screen.baseline_media, *screen.media]
    if screen.perturbations:
        say(f"effects in {join_names(places)}")
        tables["perturbation_effects"] = pd.concat(
            [model.perturbation_effects(media=media, n_samples=n_samples) for media in places],
            ignore_index=True,
        )
        combinations = [name for name in labels_of(screen) if name not in screen.perturbations]
        if combinations:
            say("effects of combinations")
            tables["combination_effects"] = pd.concat(
                [
                    model.perturbation_effects(combinations, media=media, n_samples=n_samples)
                    for media in places
                ],
                ignore_index=True,
            )
        if len(screen.times) > 1:
            say("effects over time")
            tables["effects_over_time"] = pd.concat(
                [
                    model.perturbation_effects(media=media, time=time, n_samples=n_samples)
                    for media, time in _measured(screen)
                ],
                ignore_index=True,
            )
    if len(screen.batches) > 1:
        say("batch effects")
        tables["batch_effects"] = model.batch_effects(n_samples=n_samples)
    if screen.media:
        say("effects of media on control cells")
        tables["media_effects"] = model.media_effects(n_samples=n_samples)
    if screen.media and screen.perturbations:
        say("gains on the response to media")
        tables["media_gains"] = model.media_gains(n_samples=n_samples)
    share = response_share(model.fitted)
    if share is not None:
        say("guides")
        tables["guides"] = model.guides()
    say("assumptions")
    tables["assumptions"] = model.assumptions()
    if screen.perturbations:
        tables["perturbations"] = perturbation_table(model, tables)
    say("posterior predictive check")
    n_cells = max(_FEWEST, min(_MOST, _SIMULATED // len(screen.genes)))
    tables["predictive_check"] = model.posterior_predictive_check(n_cells=n_cells)
    tables["effect_checks"] = effect_checks(
        model.perturbation_effects, model.screen, tables.get("perturbation_effects"), share
    )
    measured = measured_effects(screen, tables)
    if measured is not None:
        tables["disagreement"] = disagreements(model.perturbation_effects, measured, share)
    if model.shuffle_check_ is not None:
        tables["shuffle_check"] = model.shuffle_check_
    tables["conditions"] = screen.conditions
    tables["layout"] = _named_layout(model)
    tables["aliased"] = screen.aliased
    tables["history"] = model.history.reset_index()
    tables["verdicts"] = verdicts(model, tables)
    return tables


def _measured(screen: Screen) -> list[tuple[str, float]]:
    """Medium and time of perturbed cells."""
    perturbed = screen.conditions[~screen.is_control]
    places = perturbed[["media", "time"]].drop_duplicates().sort_values(["media", "time"])
    return [(str(media), float(time)) for media, time in places.itertuples(index=False)]


def _named_layout(model: PyroCell) -> pd.DataFrame:
    """Cells by condition and batch, with what each condition is."""
    conditions = model.screen.conditions.drop(columns="n_cells")
    counts = model.screen.layout.set_axis(conditions.index)
    return pd.concat([conditions, counts.rename(columns=str)], axis=1)


def write_tables(tables: dict[str, pd.DataFrame], directory: Path, kind: str) -> list[Path]:
    """Write tables as `<name>.csv` or `<name>.parquet`; return the files."""
    directory.mkdir(parents=True, exist_ok=True)
    files = []
    for name, table in tables.items():
        file = directory / f"{name}.{kind}"
        if kind == "parquet":
            table.to_parquet(file, index=False)
        else:
            table.to_csv(file, index=False, float_format="%.6g")
        files.append(file)
    return files
