"""The assumptions that a screen rests on: what they say, and what a user holds of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import nextafter
from typing import Protocol

import pandas as pd

from pyrocell._core.messages import did_you_mean
from pyrocell.errors import ScreenError, UnknownLabelError

__all__ = ["ASSUMPTIONS", "Assume", "Assumption", "check_assumed"]


@dataclass(frozen=True)
class Assumption:
    """One kind of assumption.

    Attributes
    ----------
    name, source
        Its name in tables, and where the paper states it.
    says
        What holds if it holds.
    parameter
        What of the model carries it.
    tested_by
        What a layout needs to test it.
    """

    name: str
    source: str
    says: str
    parameter: str
    tested_by: str


ASSUMPTIONS = {
    a.name: a
    for a in (
        Assumption(
            "necessary",
            "section 2.3.1",
            "unedited cells in baseline medium do not change with time",
            "W.drift",
            "control in baseline medium at two times that batches link",
        ),
        Assumption(
            "steady",
            "section 2.3.2, optional I, eq. 9",
            "the condition has arrived: it does not change between the last times",
            "P.effect, W.log_rate, P.residual",
            "the condition at two times that batches link",
        ),
        Assumption(
            "steady_vs_control",
            "section 2.3.2, App. E",
            "the condition moves only as its control moves",
            "P.effect, W.log_rate, P.residual",
            "condition and control at two times, placed so that batch noise cancels",
        ),
        Assumption(
            "silent_at_baseline",
            "section 2.3.2, optional II, App. A",
            "the perturbation changes nothing in baseline medium",
            "P.effect, P.residual",
            "perturbation and control in baseline medium at one time",
        ),
        Assumption(
            "no_response",
            "App. A",
            "the perturbation blocks the medium: less than half of the response is left",
            "M.gain",
            "perturbation and control, each with and without the medium, at one time",
        ),
        Assumption(
            "memory",
            "section 2.2",
            "a response that has begun outlives the loss of its pathway",
            "M.turnover",
            "both orders of perturbation and medium",
        ),
        Assumption(
            "guides_agree",
            "section 2.2, P acts on a gene whichever guide is used",
            "the guides of the perturbation do the same, but for how strongly: none has an effect "
            "of its own beside",
            "P.guide_efficacy, P.guide_escapers",
            "two guides of the perturbation, ten cells each, in one medium at one time",
        ),
    )
}


class _Row(Protocol):
    @property
    def assumption(self) -> str: ...
    @property
    def perturbation(self) -> str: ...
    @property
    def media(self) -> str: ...
    @property
    def testable(self) -> bool: ...


@dataclass(frozen=True)
class Assume:
    """What is held of an assumption before the screen, for all conditions or for chosen ones.

    Parameters
    ----------
    assumption
        One of `pyrocell.ASSUMPTIONS`.
    perturbation, media
        Where; all of them when None.
    probability
        That it holds. Of a row of `PyroCell.assumptions`: its prior; 1 takes it as given, 0 as
        excluded. Of a model (``PyroCell(adata, assume=...)``), besides: 1 imposes it, whatever the
        cells say (the loss terms of eqs. 9 and 14); between 0 and 1 they enter as a mixture, with
        this probability of holding and a scale that is learned, and cells can refute it; 0 adds
        nothing.

    Examples
    --------
    >>> Assume.steady("POU5F1", media="baseline", probability=0.9).probability
    0.9
    """

    assumption: str
    perturbation: str | None = None
    media: str | None = None
    probability: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what is no assumption and no probability."""
        if self.assumption not in ASSUMPTIONS:
            raise UnknownLabelError(
                f'there is no assumption "{self.assumption}"'
                f"{did_you_mean(self.assumption, ASSUMPTIONS)}; one of {', '.join(ASSUMPTIONS)}"
            )
        if not 0 <= self.probability <= 1:
            raise ScreenError(f"probability={self.probability} must lie between 0 and 1")

    def covers(self, row: _Row) -> bool:
        """Whether a row of the table is meant."""
        return (
            row.assumption == self.assumption
            and self.perturbation in (None, row.perturbation)
            and self.media in (None, row.media)
        )

    @classmethod
    def from_table(
        cls, table: pd.DataFrame, assumptions: Iterable[str] | None = None
    ) -> list[Assume]:
        """What a table of `PyroCell.assumptions` concluded, as what to hold of another screen.

        Use the table of **another replicate**. The posterior of the same cells, given to a model of
        these cells, counts them twice: for these, give the prior (the table's column `prior`, or
        what you know from elsewhere) and let the model conclude. Rows that the layout could not
        test have posterior = prior, so nothing is concluded from them.

        Parameters
        ----------
        table
            With columns assumption, perturbation, media, prior, posterior.
        assumptions
            Those to take, of `pyrocell.ASSUMPTIONS`; default: all in the table.

        Raises
        ------
        ScreenError
            If a column is missing, or a posterior is.

        Notes
        -----
        Evidence never imposes or excludes: a posterior that is 1 (or 0) only by rounding becomes
        the nearest number below (above). What had prior 1 or 0 keeps it.
        """
        columns = ["assumption", "perturbation", "media", "prior", "posterior"]
        if missing := [name for name in columns if name not in table]:
            raise ScreenError(f"the table has no column {', '.join(missing)}; use assumptions()")
        out = []
        for assumption, perturbation, media, prior, posterior in table[columns].itertuples(False):
            if assumptions is not None and assumption not in set(assumptions):
                continue
            if 0 < prior < 1:
                posterior = min(max(posterior, nextafter(0.0, 1.0)), nextafter(1.0, 0.0))
            out.append(cls(assumption, perturbation, media, float(posterior)))
        return out

    @classmethod
    def necessary(cls, probability: float = 1.0) -> Assume:
        """Unedited cells in baseline medium do not change with time."""
        return cls("necessary", probability=probability)

    @classmethod
    def steady(
        cls, perturbation: str | None = None, media: str | None = None, probability: float = 1.0
    ) -> Assume:
        """A condition does not change between the last times."""
        return cls("steady", perturbation, media, probability)

    @classmethod
    def steady_vs_control(
        cls, perturbation: str | None = None, media: str | None = None, probability: float = 1.0
    ) -> Assume:
        """A condition moves only as its control moves."""
        return cls("steady_vs_control", perturbation, media, probability)

    @classmethod
    def silent_at_baseline(
        cls, perturbation: str | None = None, probability: float = 1.0
    ) -> Assume:
        """A perturbation changes nothing in baseline medium."""
        return cls("silent_at_baseline", perturbation, None, probability)

    @classmethod
    def no_response(
        cls, perturbation: str | None = None, media: str | None = None, probability: float = 1.0
    ) -> Assume:
        """A perturbation blocks a medium."""
        return cls("no_response", perturbation, media, probability)


def check_assumed(assume: Iterable[Assume], rows: Iterable[_Row]) -> None:
    """Raise UnknownLabelError where something is assumed of a condition that the screen lacks."""
    rows = list(rows)
    for a in assume:
        mine = [row for row in rows if row.assumption == a.assumption]
        if any(a.covers(row) for row in mine):
            continue
        for name in ("perturbation", "media"):
            wanted, known = getattr(a, name), {getattr(row, name) for row in mine}
            if wanted is not None and wanted not in known:
                raise UnknownLabelError(
                    f'{a.assumption} speaks of no {name} "{wanted}"{did_you_mean(wanted, known)}'
                )
        raise UnknownLabelError(f"no condition of the screen is meant by {a}")
