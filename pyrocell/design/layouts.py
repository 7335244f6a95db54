"""A layout: how many cells of each condition are in each batch, measured or planned (eq. 16)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from pyrocell._core.messages import did_you_mean, join_names
from pyrocell.design.questions import Arm, Kind, kinds_of
from pyrocell.errors import DesignError, ScreenWarning
from pyrocell.screen.aliasing import LayoutComponent, layout_components
from pyrocell.screen.screen import Screen

__all__ = ["Layout"]

LIBRARY = "library"  # name of the pool of guides, where there is one
_COLUMNS = ("perturbation", "media", "time", "batch", "cells")


@dataclass(frozen=True, eq=False)
class Layout:
    """Expected numbers of cells by condition and batch; the graph of Fig. 6 with its weights.

    Numbers need not be whole: nobody counts out the cells of a pooled library.

    Attributes
    ----------
    cells
        (1 + K, A, B): control first, then perturbations, by arm (medium and time) and batch.
    perturbations, arms, batches
        Names; `arms` are (media, time), time NaN where the screen has none.
    control, baseline_media
        Labels of unperturbed cells and of the medium without stimulus.
    libraries
        (K,) sub-library of guides that each perturbation belongs to.

    Raises
    ------
    DesignError
        If shapes do not fit, a number is negative or not finite, or there are no cells at all.
    """

    cells: np.ndarray
    perturbations: tuple[str, ...]
    arms: tuple[Arm, ...]
    batches: tuple[str, ...]
    control: str = "control"
    baseline_media: str = "baseline"
    libraries: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check shapes and numbers."""
        cells = np.asarray(self.cells, float)
        object.__setattr__(self, "cells", cells)
        shape = (1 + len(self.perturbations), len(self.arms), len(self.batches))
        if cells.shape != shape:
            raise DesignError(
                f"cells has the shape {cells.shape}; {shape[0] - 1} perturbations and control in "
                f"{shape[1]} arms and {shape[2]} batches need {shape}"
            )
        if not np.isfinite(cells).all() or (cells < 0).any():
            raise DesignError("cells: numbers of cells must be finite and at least 0")
        if not cells.any():
            raise DesignError("the layout holds no cells")
        if not self.libraries:
            object.__setattr__(self, "libraries", (LIBRARY,) * len(self.perturbations))

    @classmethod
    def from_frame(
        cls,
        frame: pd.DataFrame,
        control: str = "control",
        baseline_media: str = "baseline",
        libraries: Mapping[str, str] | None = None,
    ) -> Layout:
        """Read a layout from a table with a row per condition and batch.

        Parameters
        ----------
        frame
            Columns perturbation, batch, cells, and media and time if there are several. Rows of
            the same condition and batch are added up.
        control, baseline_media
            Labels of unperturbed cells and of the medium without stimulus.
        libraries
            Sub-library of each perturbation.

        Raises
        ------
        DesignError
            If a column is missing or unknown, or no row is control.
        """
        for column in frame.columns:
            if column not in _COLUMNS:
                hint = did_you_mean(column, _COLUMNS)
                raise DesignError(f'layout: column "{column}" is not understood{hint}')
        missing = [c for c in ("perturbation", "batch", "cells") if c not in frame]
        if missing:
            raise DesignError(f"layout: the table needs the column {join_names(missing)}")
        table = frame.assign(
            media=frame["media"].astype(str) if "media" in frame else baseline_media,
            time=frame["time"].astype(float) if "time" in frame else np.nan,
        )
        labels = table["perturbation"].astype(str)
        perturbations = tuple(label for label in dict.fromkeys(labels) if label != control)
        if len(perturbations) == labels.nunique():
            raise DesignError(f'layout: no row has control="{control}"')
        media = [m for m in dict.fromkeys(table["media"]) if m != baseline_media]
        order = {m: i for i, m in enumerate([baseline_media, *media])}
        keys = [Arm(*row) for row in table[["media", "time"]].itertuples(index=False)]
        named = {_key(arm): arm for arm in keys}  # NaN is not equal to itself
        arms = sorted(named.values(), key=lambda a: (order[a.media], np.nan_to_num(a.time)))
        batches = tuple(dict.fromkeys(table["batch"].astype(str)))
        shape = (1 + len(perturbations), len(arms), len(batches))
        index = (
            pd.Index([control, *perturbations]).get_indexer(pd.Index(labels)),
            pd.Index([_key(a) for a in arms]).get_indexer([_key(a) for a in keys]),
            pd.Index(batches).get_indexer(pd.Index(table["batch"].astype(str))),
        )
        cells = np.zeros(shape)
        np.add.at(cells, index, table["cells"].to_numpy(float))
        of = tuple((libraries or {}).get(p, LIBRARY) for p in perturbations)
        return cls(cells, perturbations, tuple(arms), batches, control, baseline_media, of)

    @classmethod
    def from_screen(cls, screen: Screen) -> Layout:
        """The layout of a registered screen; a combination counts as a perturbation of its own."""
        long = screen.layout.reset_index(drop=True).stack()
        row = long.index.get_level_values(0)
        rows = screen.conditions[["perturbation", "media"]].iloc[row]
        frame = rows.reset_index(drop=True).assign(
            time=screen.conditions["time"].to_numpy()[row],
            batch=long.index.get_level_values(1),
            cells=long.to_numpy(),
        )
        return cls.from_frame(frame, screen.control, screen.baseline_media)

    def to_frame(self) -> pd.DataFrame:
        """Return a row per condition and batch with cells: what `from_frame` reads."""
        p, a, b = np.nonzero(self.cells)
        names = np.array([self.control, *self.perturbations], object)
        media, time = zip(*self.arms, strict=True)
        return pd.DataFrame(
            {
                "perturbation": names[p],
                "media": np.array(media, object)[a],
                "time": np.array(time, float)[a],
                "batch": np.array(self.batches, object)[b],
                "cells": self.cells[p, a, b],
            }
        )

    @cached_property
    def kinds(self) -> list[Kind]:
        """Questions that the arms allow."""
        return kinds_of(self.arms, self.baseline_media)

    @cached_property
    def conditions(self) -> pd.DataFrame:
        """Conditions × batches: numbers of cells; index perturbation, media, time."""
        names = [self.control, *self.perturbations]
        index = pd.MultiIndex.from_tuples(
            [(p, *arm) for p in names for arm in self.arms],
            names=["perturbation", "media", "time"],
        )
        return pd.DataFrame(self.cells.reshape(len(index), -1), index, list(self.batches))

    def components(self) -> list[LayoutComponent]:
        """Return the connected components of the layout graph that hold cells, largest first.

        `conditions` of a component are rows of `conditions`.
        """
        found = layout_components(self.conditions)
        return [part for part in found if part.batches and len(part.conditions)]

    def to_screen(self, genes: Sequence[str] = ("gene",)) -> Screen:
        """The screen as it would be registered: its `aliased` and `testability` before any cell.

        One row stands for the cells of a condition in a batch.
        """
        frame = self.to_frame()
        timed = frame["time"].notna().all()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ScreenWarning)
            return Screen.from_labels(
                list(genes),
                frame["perturbation"],
                control=self.control,
                media=frame["media"],
                baseline_media=self.baseline_media,
                time=frame["time"] if timed else None,
                batch=frame["batch"],
            )

    def in_order(self, batches: Sequence[str]) -> Layout:
        """Return the same layout with its batches in another order."""
        order = pd.Index(self.batches).get_indexer(pd.Index(list(batches)))
        if sorted(order) != list(range(len(self.batches))):
            raise DesignError(f"batches={list(batches)!r}: not those of the layout, once each")
        return Layout(
            self.cells[..., order], self.perturbations, self.arms, tuple(batches), self.control,
            self.baseline_media, self.libraries,
        )  # fmt: skip

    def __repr__(self) -> str:
        """How large it is."""
        return (
            f"Layout: {len(self.perturbations)} perturbations, {len(self.arms)} arms, "
            f"{len(self.batches)} batches, {self.cells.sum():,.0f} cells"
        )


def _key(arm: Arm) -> tuple[str, str]:
    return arm.media, repr(float(arm.time))
