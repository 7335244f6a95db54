"""Labels taken apart into perturbations that were measured and those that were not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from pyrocell._core.messages import did_you_mean, join_names
from pyrocell.errors import KnowledgeError, UnknownLabelError
from pyrocell.knowledge import Knowledge
from pyrocell.screen.labels import split_label
from pyrocell.screen.vocabulary import Vocabulary

__all__ = ["POPULATION", "Asked", "KnowledgeOrNone", "asked_for", "sources_of"]

POPULATION = "population"  # nothing is known of a perturbation but that it is one of these
KnowledgeOrNone = Knowledge | Literal["population"]


class Asked(NamedTuple):
    """A label as the screen sees it.

    Attributes
    ----------
    measured
        What of the label was measured; the control's label where nothing was.
    unseen
        Genes that are not perturbed in the screen.
    """

    measured: str
    unseen: tuple[str, ...]


def sources_of(knowledge: KnowledgeOrNone) -> Knowledge | None:
    """Knowledge, or None for the population of perturbations.

    Raises
    ------
    KnowledgeError
        If it is neither.
    """
    if isinstance(knowledge, Knowledge):
        return knowledge
    if isinstance(knowledge, str) and knowledge == POPULATION:
        return None
    raise KnowledgeError(
        f'knowledge={knowledge!r} must be a pyrocell.Knowledge, or "{POPULATION}" for what a '
        "perturbation of which nothing is known does"
    )


def asked_for(
    screen: Vocabulary, labels: Sequence[str], knowledge: KnowledgeOrNone
) -> dict[str, Asked]:
    """Labels, each with its measured and unseen parts.

    Raises
    ------
    UnknownLabelError
        If a gene is neither in the screen nor known to a source.
    """
    sources = sources_of(knowledge)
    out: dict[str, Asked] = {}
    for label in dict.fromkeys(map(str, labels)):
        parts = split_label(label, screen.control)
        new = [gene for gene, _ in parts if gene not in screen.perturbation_genes]
        rest = [gene if kind is None else f"{gene} ({kind})" for gene, kind in parts]
        rest = [part for part, (gene, _) in zip(rest, parts, strict=True) if gene not in new]
        out[label] = Asked("+".join(rest) or screen.control, tuple(dict.fromkeys(new)))
    every = list(dict.fromkeys(gene for asked in out.values() for gene in asked.unseen))
    if sources is not None and every:
        known = sources.matched(every).notna().any(axis=1).to_numpy()
        for gene in (g for g, k in zip(every, known, strict=True) if not k):
            raise UnknownLabelError(
                f'perturbation "{gene}" is neither in the screen'
                f"{did_you_mean(gene, screen.perturbations)} nor known to "
                f'{join_names(sources.sources)}; knowledge="{POPULATION}" says what a perturbation '
                "of which nothing is known does"
            )
    return out
