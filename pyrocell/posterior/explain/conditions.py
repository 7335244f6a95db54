"""What is to be explained, and against what: one condition each, as labels, table or protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from pyrocell._core.messages import did_you_mean
from pyrocell.errors import ScreenError, UnknownLabelError
from pyrocell.operators import Perturb, Protocol, Wait
from pyrocell.posterior.fitted_screen import FittedScreen
from pyrocell.posterior.requests import protocol_frame, requested
from pyrocell.posterior.unseen import UnseenShift, without_unseen
from pyrocell.posterior.unseen.requests import KnowledgeOrNone
from pyrocell.screen.conditions import Conditions
from pyrocell.screen.screen import Screen

__all__ = ["Asked", "Given", "gene_places", "read_asked"]

Given = str | Mapping[str, Any] | pd.DataFrame | Protocol


@dataclass(frozen=True)
class Asked:
    """One condition in the words of the screen.

    Attributes
    ----------
    frame
        Its row: perturbation, media, time and so on, unseen perturbations left out.
    name
        How it is called, unseen perturbations included.
    perturbations, medium
        Positions of what it carries, in the order of the experiment, and of its medium (-1: the
        baseline).
    order
        Its protocol, where that is not the screen's own order.
    unseen
        What perturbations that were never measured add; None where there are none.
    unseen_genes
        Their names.
    """

    frame: pd.DataFrame
    name: str
    perturbations: tuple[int, ...]
    medium: int
    order: Protocol | None
    unseen: UnseenShift | None
    unseen_genes: tuple[str, ...]

    def rows(self, fit: FittedScreen) -> tuple[Conditions, list[Protocol] | None]:
        """Unperturbed cells, what has one driver each, and the whole, with their protocols.

        Rows: no driver; each perturbation alone; the medium alone, if there is one; the condition.
        """
        whole, _ = fit.conditions(self.frame)
        drivers = len(self.perturbations) + (self.medium >= 0)
        rows = whole.select(whole.duration.new_zeros(drivers + 2).long())
        genotype, exposure = rows.genotype.clone(), rows.exposure.clone()
        genotype[:-1], exposure[:-1] = 0.0, 0.0
        for i, k in enumerate(self.perturbations, start=1):
            genotype[i, k] = 1.0
        if self.medium >= 0:
            exposure[drivers, self.medium] = 1.0
        interaction = rows.interaction.clone()
        interaction[:-1] = -1
        found = rows._replace(genotype=genotype, exposure=exposure, interaction=interaction)
        return found, None if self.order is None else self._protocols(fit.screen)

    def _protocols(self, screen: Screen) -> list[Protocol]:
        """The protocol with all steps but waits left out, with one of them each, and the whole."""
        assert self.order is not None
        steps = self.order.steps

        def only(kept: int | None, medium: bool = False) -> Protocol:
            mine = [
                step
                for step in steps
                if isinstance(step, Wait)
                or (screen.indices(step.gene)[0] == kept if isinstance(step, Perturb) else medium)
            ]
            return Protocol(tuple(mine))

        alone = [only(k) for k in self.perturbations]
        if self.medium >= 0:
            alone.append(only(None, medium=True))
        return [only(None), *alone, self.order]


def read_asked(
    fit: FittedScreen,
    given: Given,
    media: str | None,
    time: float | None,
    batch: str | None,
    n_samples: int,
    knowledge: KnowledgeOrNone | None,
) -> Asked:
    """The condition asked for, by its label, as a table of one row, a mapping or a protocol.

    Raises
    ------
    ScreenError
        If it is more than one condition, or stated twice.
    UnknownLabelError
        If the screen does not have a label, and no knowledge of it is given.
    """
    frame = _frame(fit.screen, given, media, time, batch)
    if knowledge is None:
        table, order = requested(frame, fit.screen)
        measured, label, unseen, genes = table, None, None, ()
    else:
        measured, parts, order = without_unseen(fit, frame, knowledge)
        genes = parts[0].unseen
        unseen = UnseenShift(fit, knowledge, measured, parts, n_samples) if genes else None
        label = None if unseen is None else str(unseen.named(measured)["perturbation"].iloc[0])
    if isinstance(given, Protocol) and batch is not None:
        measured = measured.assign(batch=batch)
    genotype, exposure, duration, _ = fit.screen.encode(measured)
    members = np.flatnonzero(genotype[0]).tolist()
    if order is not None:  # as they come in the experiment
        steps = [fit.screen.indices(p.gene)[0] for p in order.perturbations]
        members = sorted(members, key=steps.index)
    medium = int(np.flatnonzero(exposure[0])[0]) if exposure[0].any() else -1
    label = label or fit.screen.label_of(members)
    where = [f"in {fit.screen.media[medium]}"] if medium >= 0 else []
    where += [f"at {duration[0]:g}"] if fit.screen.times else []
    where += [f"in batch {measured['batch'].iloc[0]}"] if "batch" in measured else []
    name = " ".join([label, *where])
    return Asked(measured, name, tuple(members), medium, order, unseen, tuple(genes))


def _frame(
    screen: Screen,
    given: Given,
    media: str | None,
    time: float | None,
    batch: str | None,
) -> pd.DataFrame | Protocol:
    said = {"media": media, "time": time, "batch": batch}
    if isinstance(given, Protocol):
        for name in ("media", "time"):
            if said[name] is not None:
                raise ScreenError(
                    f"{name}={said[name]!r} was given beside a protocol, which says it itself"
                )
        protocol_frame(given, screen)  # says what is wrong with it
        return given
    if isinstance(given, Mapping):
        given = pd.DataFrame([dict(given)])
    if isinstance(given, pd.DataFrame):
        if len(given) != 1:
            raise ScreenError(
                f"the table has {len(given)} rows, and one condition is explained at a time; "
                "take one row, such as table.iloc[[0]]"
            )
        for name, value in said.items():
            if value is not None and name in given:
                raise ScreenError(
                    f'{name}={value!r} was given, and the table has a column "{name}"'
                )
        frame = given.reset_index(drop=True)
        if "n_cells" in frame:
            raise ScreenError(
                'column "n_cells" is of predictions; sampling noise has no term, leave it out'
            )
    elif isinstance(given, str):
        frame = pd.DataFrame({"perturbation": [given]})
    else:
        raise ScreenError(
            f"{given!r} is no condition; name a perturbation, or give a Protocol or a table with "
            "one row"
        )
    for name, value in said.items():
        if value is not None:
            frame[name] = value
    if "media" not in frame:
        frame["media"] = screen.baseline_media
    if screen.times and "time" not in frame:
        frame["time"] = screen.times[-1]
    return frame


def gene_places(screen: Screen, gene: str | Sequence[str] | None, part: slice) -> np.ndarray:
    """Columns of genes, by name, among those of a view; None: all of them.

    Raises
    ------
    UnknownLabelError
        If a gene is not among them.
    """
    places = np.arange(len(screen.genes))[part]
    if gene is None:
        return places
    names = screen.genes[part].astype(str)
    wanted = [gene] if isinstance(gene, str) else list(gene)
    found = names.get_indexer(pd.Index(wanted))
    for name, at in zip(wanted, found, strict=True):
        if at < 0:
            raise UnknownLabelError(
                f'gene "{name}" is not in the screen{did_you_mean(str(name), list(names))}'
            )
    return places[found]
