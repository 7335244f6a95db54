"""Conditions asked for, as a table or as a protocol."""

from __future__ import annotations

import pandas as pd

from pyrocell.errors import ProtocolError, ScreenError
from pyrocell.operators import Media, Perturb, Protocol, Wait
from pyrocell.screen.screen import Screen

__all__ = ["protocol_frame", "requested"]


def protocol_frame(protocol: Protocol, screen: Screen) -> pd.DataFrame:
    """The condition that a protocol ends in: perturbations, medium, and time waited in all.

    Raises
    ------
    ProtocolError
        If the protocol adds several media, which no condition of a screen has.
    """
    media = protocol.media
    if len(media) > 1:
        raise ProtocolError(
            f"{protocol} adds {len(media)} media; the screen measured one at a time"
        )
    names = [
        screen.perturbations[i]
        for step in protocol.perturbations
        for i in screen.indices(step.gene)
    ]
    row = {
        "perturbation": "+".join(sorted(names)) or screen.control,
        "media": media[0] if media else screen.baseline_media,
    }
    if screen.times:
        row |= {"time": protocol.duration} | _event_times(protocol)
    return pd.DataFrame([row])


def _event_times(protocol: Protocol) -> dict[str, float]:
    """When a protocol first perturbs, and first changes the medium, where not at its start."""
    found: dict[str, float] = {}
    clock = 0.0
    for step in protocol.steps:
        if isinstance(step, Wait):
            clock += step.time
        else:
            found.setdefault("perturbed_at" if isinstance(step, Perturb) else "exposed_at", clock)
    return {event: time for event, time in found.items() if time > 0}


def _usual_order(protocol: Protocol) -> bool:
    """Whether a protocol is the screen's own: perturb, then media, then wait (eq. 4)."""
    order = [{Perturb: 0, Media: 1, Wait: 2}[type(step)] for step in protocol.steps]
    return order == sorted(order)


def requested(
    conditions: Protocol | pd.DataFrame, screen: Screen
) -> tuple[pd.DataFrame, Protocol | None]:
    """A table of conditions, and the protocol where its order is not the screen's own."""
    order = None
    if isinstance(conditions, Protocol):
        order = None if _usual_order(conditions) else conditions
        conditions = protocol_frame(conditions, screen)
    if not isinstance(conditions, pd.DataFrame) or conditions.empty:
        what = "an empty one" if isinstance(conditions, pd.DataFrame) else repr(conditions)
        raise ScreenError(
            "conditions must be a Protocol, or a table with a row per condition and a column "
            f'"perturbation", not {what}'
        )
    return conditions.reset_index(drop=True), order
