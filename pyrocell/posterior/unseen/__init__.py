"""Perturbations that are not in the screen, asked of a fitted model by what is known of genes."""

from __future__ import annotations

from pyrocell.posterior.unseen.place import Place, place_of
from pyrocell.posterior.unseen.requests import POPULATION, Asked, asked_for
from pyrocell.posterior.unseen.shift import UnseenShift, without_unseen
from pyrocell.posterior.unseen.tables import effects_with_unseen, knowledge_table, neighbours

__all__ = [
    "POPULATION",
    "Asked",
    "Place",
    "UnseenShift",
    "asked_for",
    "effects_with_unseen",
    "knowledge_table",
    "neighbours",
    "place_of",
    "without_unseen",
]
