"""What became of each perturbation: one row that says what it did, and what to be careful about."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.stats import false_discovery_control, norm

from pyrocell.posterior.guides import response_share
from pyrocell.screen.screen import Screen

if TYPE_CHECKING:
    from pyrocell.model import PyroCell

__all__ = [
    "LISTED",
    "cells_by_label",
    "labels_of",
    "last_places",
    "measured_effects",
    "part_of",
    "perturbation_table",
]

LISTED = 0.1  # expected share of wrong signs among the genes that are called changed
_FEW_CELLS = 20
_SURE = 0.9  # posterior of an assumption from which it is said to hold; below 1 - _SURE, to fail
_ENOUGH = 8  # gains whose median says what the others do
_SPREAD = 1.4  # largest sd of z-scores of gains over screens with shuffled labels


def labels_of(screen: Screen) -> list[str]:
    """Every label that cells have beside the control: single perturbations, then combinations."""
    if screen.many_sets:  # sets of few cells are the sums of their members
        whole = screen.conditions["perturbation"][~screen.additive]
        return list(dict.fromkeys([*screen.perturbations, *whole[whole != screen.control]]))
    seen = dict.fromkeys(screen.conditions["perturbation"])
    singles = [name for name in screen.perturbations if name in seen]
    return singles + [n for n in seen if n != screen.control and n not in set(singles)]


def last_places(effects: pd.DataFrame) -> list[tuple[str, float]]:
    """Medium and time of each part of a table of effects, in its order."""
    places = effects[["media", "time"]].drop_duplicates()
    return list(places.itertuples(index=False, name=None))


def measured_effects(screen: Screen, tables: dict[str, pd.DataFrame]) -> pd.DataFrame | None:
    """Effects of single perturbations and of combinations where each was measured."""
    names = ("perturbation_effects", "combination_effects")
    parts = [tables[name] for name in names if name in tables]
    if not parts:
        return None
    effects = pd.concat(parts, ignore_index=True)
    if screen.many_sets:
        return effects
    seen = pd.MultiIndex.from_frame(screen.conditions[["perturbation", "media"]])
    blocks = effects[["perturbation", "media"]]
    # Long tables have each label once for every gene: look once for each run of them.
    starts = (blocks != blocks.shift()).any(axis=1)
    here = pd.MultiIndex.from_frame(blocks[starts].astype(str)).isin(seen)
    return effects[here[starts.cumsum().to_numpy() - 1]]


def perturbation_table(model: PyroCell, tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """One row for each perturbation, from the tables of a report.

    Returns
    -------
    Table with `perturbation`, `n_cells`, `n_batches`, `own_log2fc`, `own_lower`, `own_upper`,
    `own_percent` (change of the perturbation's own transcript in the first medium; NaN where it was
    not measured), `up`, `down` (genes listed with 10% wrong signs expected, first medium),
    `changed <medium>` for every further medium, `silent` (posterior that the perturbation does
    nothing at baseline), `gain <medium>`, with `gain_lower`, `gain_upper` and the verdict
    `response <medium>`, `steady` (posterior that it had arrived relative to control), `n_guides`,
    `response_share` (of its cells that responded), `guides_agree` (posterior that its guides do the
    same), and `flags`, a sentence. NaN or empty where the screen cannot tell.
    """
    screen = model.screen
    effects = measured_effects(screen, tables)
    assert effects is not None
    names = list(dict.fromkeys(effects["perturbation"]))
    out = pd.DataFrame({"perturbation": names}).set_index("perturbation", drop=False)
    cells = cells_by_label(screen, names).to_numpy()
    out["n_cells"] = cells.sum(1).astype(int)
    out["n_batches"] = (cells > 0).sum(1)
    first, *others = last_places(effects)
    at = {place: part_of(effects, place) for place in (first, *others)}
    own = _own(screen, at[first]).reindex(names)
    for column in ("log2fc", "lower", "upper"):
        out[f"own_{column}"] = own[column] / (1 if column == "log2fc" else np.log(2))
    out["own_percent"] = 100 * (2 ** out["own_log2fc"] - 1)
    listed = at[first][at[first]["fdr"] <= LISTED]
    out["up"] = _count(listed[listed["mean"] > 0], names)
    out["down"] = _count(listed[listed["mean"] < 0], names)
    for media, time in others:
        part = at[media, time]
        out[f"changed {media}"] = _count(part[part["fdr"] <= LISTED], names)
    found = tables.get("assumptions", pd.DataFrame())
    out["silent"] = _posterior(found, "silent_at_baseline", names)
    for medium in screen.media:
        _gain(out, tables.get("media_gains"), found, medium)
    out["steady"] = _posterior(found, "steady_vs_control", names)
    out["n_guides"] = _guides(screen, names)
    share = response_share(model.fitted)
    out["response_share"] = np.nan if share is None else share.reindex(names)
    out["guides_agree"] = _posterior(found, "guides_agree", names)
    out["flags"] = [_flags(row, screen) for _, row in out.iterrows()]
    return out.reset_index(drop=True)


def cells_by_label(screen: Screen, names: list[str]) -> pd.DataFrame:
    """Cells that stand for each label, by batch; 0 where there are none."""
    layout = screen.layout.set_axis(screen.conditions.index)
    if screen.many_sets:
        rows = [layout[screen.carriers(name)].sum() for name in names]
        return pd.DataFrame(rows, index=names)
    found = layout.groupby(screen.conditions["perturbation"].to_numpy()).sum()
    return found.reindex(names).fillna(0)


def part_of(effects: pd.DataFrame, place: tuple[str, float]) -> pd.DataFrame:
    """Rows of a table of effects in one medium at one time."""
    media, time = place
    when = effects["time"].isna() if pd.isna(time) else effects["time"] == time
    return effects[(effects["media"] == media) & when]


def _own(screen: Screen, effects: pd.DataFrame) -> pd.DataFrame:
    """The row of each perturbation's own gene."""
    gene = dict(zip(screen.perturbations, screen.target))
    own = {k: str(screen.genes[g]) for k, g in gene.items() if g >= 0}
    mine = effects[effects["gene"].astype(str) == effects["perturbation"].map(own)]
    return mine.drop_duplicates("perturbation").set_index("perturbation")


def _count(listed: pd.DataFrame, names: list[str]) -> pd.Series:
    return listed.groupby("perturbation").size().reindex(names).fillna(0).astype(int)


def _posterior(found: pd.DataFrame, assumption: str, names: list[str]) -> pd.Series:
    """Lowest posterior of an assumption over media, where the layout can test it."""
    if not len(found):
        return pd.Series(np.nan, names)
    mine = found[(found["assumption"] == assumption) & found["testable"]]
    return mine.groupby("perturbation")["posterior"].min().reindex(names)


def _gain(out: pd.DataFrame, gains: pd.DataFrame | None, found: pd.DataFrame, medium: str) -> None:
    """Add what a perturbation leaves of the response to a medium, and the verdict in a word."""
    if gains is None:
        return
    mine = gains[gains["media"] == medium].set_index("perturbation").reindex(out.index)
    out[f"gain {medium}"] = mine["mean"]
    out[f"gain_lower {medium}"], out[f"gain_upper {medium}"] = mine["lower"], mine["upper"]
    tested = found
    if len(found):
        tested = found[(found["assumption"] == "no_response") & (found["media"] == medium)]
        tested = tested[tested["testable"]].set_index("perturbation")
    verdict = pd.Series("not tested", out.index, dtype=object)
    if len(tested):
        blocked = tested["posterior"].reindex(out.index)
        listed, centre = _differs(mine, blocked.notna() & mine["mean"].notna())
        low, high = listed & (mine["mean"] < centre), listed & (mine["mean"] > centre)
        verdict[blocked.notna() & mine["mean"].notna()] = "as control"
        verdict[blocked.notna() & high] = "stronger"
        verdict[blocked.notna() & low] = "weakened"
        verdict[blocked > _SURE] = "blocked"
    out[f"response {medium}"] = verdict


def _differs(gains: pd.DataFrame, tested: pd.Series) -> tuple[pd.Series, float]:
    """Which gains differ from the others', in a list with 10% false ones expected; the others'.

    The common scale of all gains is the least certain of them, so where there are enough they are
    judged against their median. With shuffled labels z-scores had sd up to 1.4, which is what they
    are divided by. The list is Benjamini and Hochberg's.
    """
    tested_mean = gains["mean"][tested]
    centre = tested_mean.median() if len(tested_mean) >= _ENOUGH else 1.0
    z = (tested_mean - centre) / (_SPREAD * gains["sd"][tested])
    out = pd.Series(False, gains.index)
    if len(z):
        out[z.index] = false_discovery_control(2 * norm.sf(z.abs())) <= LISTED
    return out, centre


def _guides(screen: Screen, names: list[str]) -> pd.Series:
    """How many guides each label has; NaN where guides were not registered."""
    if screen.cell_guide is None:
        return pd.Series(np.nan, names)
    label = screen.conditions["perturbation"].to_numpy()[screen.cell_condition]
    seen = pd.DataFrame({"label": label, "guide": screen.cell_guide})
    return seen[seen["guide"] >= 0].groupby("label")["guide"].nunique().reindex(names)


def _flags(row: pd.Series, screen: Screen) -> str:
    """What to be careful about, in words; empty where there is nothing."""
    said = []
    if row["n_cells"] < _FEW_CELLS:
        said.append(f"only {row['n_cells']} cells")
    if row["n_batches"] == 1 < len(screen.batches):
        said.append("in one batch only")
    if np.isfinite(row["own_lower"]) and row["own_upper"] > 0 and row["own_percent"] > -20:
        said.append("own transcript not seen to fall")
    if row["n_guides"] == 1:
        said.append("one guide")
    return "; ".join(said)
