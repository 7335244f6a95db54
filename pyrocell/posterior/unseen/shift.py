"""Unseen perturbations in requested conditions: what they add to log means, draw by draw."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from torch import Tensor

from pyrocell.errors import ProtocolError, ScreenError
from pyrocell.operators import Perturb, Protocol
from pyrocell.posterior.fitted_screen import FittedScreen
from pyrocell.posterior.requests import requested
from pyrocell.posterior.unseen.place import Place
from pyrocell.posterior.unseen.requests import Asked, KnowledgeOrNone, asked_for, sources_of
from pyrocell.screen.events import EVENTS

__all__ = ["UnseenShift", "without_unseen"]


class UnseenShift:
    """What unseen perturbations add to the logits of conditions.

    Parameters
    ----------
    fit
        The fitted model.
    knowledge
        Sources, or "population".
    frame
        Requested conditions, as `without_unseen` leaves them.
    asked
        The parts of each row's label.
    n_samples
        Joint draws.
    """

    def __init__(
        self,
        fit: FittedScreen,
        knowledge: KnowledgeOrNone,
        frame: pd.DataFrame,
        asked: Sequence[Asked],
        n_samples: int,
    ):
        self._fit, self._asked = fit, list(asked)
        self.unseen = np.array([bool(a.unseen) for a in asked])
        if self.unseen.any() and fit.screen.times and "time" not in frame:
            frame = frame.assign(time=fit.screen.times[-1])
        self._places, self._draws = _places(frame, fit), {}
        for place in dict.fromkeys(p for p, new in zip(self._places, self.unseen) if new):
            here = [a for p, a in zip(self._places, asked) if p == place]
            genes = list(dict.fromkeys(gene for a in here for gene in a.unseen))
            found = Place(fit, sources_of(knowledge), *place, n_samples).draws(genes)
            for i, gene in enumerate(genes):
                self._draws[place, gene] = found[:, i]

    def named(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The conditions with their labels as they were asked for."""
        if "perturbation" not in frame:
            return frame
        control = self._fit.screen.control
        labels = [
            "+".join([*(() if a.measured == control and a.unseen else (a.measured,)), *a.unseen])
            for a in self._asked
        ]
        return frame.assign(perturbation=labels)

    def __call__(self, draw: int, first: int, like: Tensor) -> Tensor:
        """What draw number `draw` adds to the logits (n, G) of n rows that begin at `first`."""
        added = np.zeros(like.shape, np.float32)
        for i, (asked, place) in enumerate(
            zip(self._asked[first : first + len(added)], self._places[first:], strict=False)
        ):
            for gene in asked.unseen:
                added[i] += self._draws[place, gene][draw]
        out = like.new_tensor(added)
        # Effects are changes of log means, on which a logit acts by `slope`.
        return out if self._fit.gene_level is None else out / self._fit.gene_level.slope.to(out)


def _places(frame: pd.DataFrame, fit: FittedScreen) -> list[tuple[str, float | None]]:
    """Medium and time of every row."""
    screen = fit.screen
    media = frame["media"] if "media" in frame else [screen.baseline_media] * len(frame)
    if not screen.times:
        return [(str(m), None) for m in media]
    return [(str(m), float(t)) for m, t in zip(media, frame["time"], strict=True)]


def without_unseen(
    fit: FittedScreen, conditions: Protocol | pd.DataFrame, knowledge: KnowledgeOrNone
) -> tuple[pd.DataFrame, list[Asked], Protocol | None]:
    """Conditions without what was never measured, and what each row asked for.

    Returns
    -------
    Table of conditions in the words of the screen, the parts of each row's label, and the protocol
    where its order is not the screen's own.

    Raises
    ------
    ProtocolError
        If an unseen perturbation comes in another order than the screen's own.
    ScreenError
        If it is asked for with a time at which it was perturbed.
    """
    screen = fit.screen
    if isinstance(conditions, Protocol):
        steps = conditions.steps
        genes = [step.gene for step in steps if isinstance(step, Perturb)]
        new = [g for g, a in asked_for(screen, genes, knowledge).items() if a.unseen]
        kept = [s for s in steps if not (isinstance(s, Perturb) and s.gene in new)]
        frame, order = requested(Protocol(kept), screen)
        if new and requested(_named(conditions, new, screen.perturbations), screen)[1] is not None:
            raise ProtocolError(
                f"{conditions}: a perturbation that was never measured can only come first, as in "
                "Protocol([Perturb(...), Media(...), Wait(...)])"
            )
        return frame, [Asked(str(frame["perturbation"].iloc[0]), tuple(new))], order
    frame, order = requested(conditions, screen)
    if "perturbation" not in frame:
        return frame, [Asked(screen.control, ())] * len(frame), order
    found = asked_for(screen, frame["perturbation"].astype(str).unique().tolist(), knowledge)
    asked = [found[str(label)] for label in frame["perturbation"]]
    late = [c for c in EVENTS if c in frame and c.startswith("perturbed")]
    if late and any(a.unseen for a in asked):
        raise ScreenError(
            f'column "{late[0]}" cannot be given for perturbations that were never measured'
        )
    return frame.assign(perturbation=[a.measured for a in asked]), asked, order


def _named(protocol: Protocol, new: Sequence[str], known: Sequence[str]) -> Protocol:
    """The protocol with its unseen perturbations called by one that the screen has."""
    taken = {step.gene for step in protocol.steps if isinstance(step, Perturb)}
    free = [name for name in known if name not in taken]
    names = dict(zip(new, free * len(new), strict=False))
    steps = [
        Perturb(names[s.gene], s.type) if isinstance(s, Perturb) and s.gene in names else s
        for s in protocol.steps
    ]
    return Protocol(steps)
