"""Protocols: what is done to cells, P, M and W composed in any order."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor

from pyrocell._core.messages import did_you_mean
from pyrocell.errors import ConflictingTypesError, ProtocolError, ScreenError, UnknownLabelError
from pyrocell.operators.medium import expose, gain_limit
from pyrocell.operators.perturbation import perturb
from pyrocell.operators.response import ResponseParameters, let_wait
from pyrocell.operators.state import State
from pyrocell.screen.labels import perturbation_type, split_label

__all__ = ["Media", "Perturb", "Protocol", "Step", "Wait", "run"]


@dataclass(frozen=True)
class Perturb:
    """P: perturb one gene.

    Parameters
    ----------
    gene
        Name of the gene, as in the screen.
    type
        "knockout", "CRISPRi" or "CRISPRa"; other usual spellings ("KO") become one of these.

    Raises
    ------
    ProtocolError
        If the gene is not a name or the type is none of the three.
    """

    gene: str
    type: str = "knockout"

    def __post_init__(self) -> None:
        """Refuse what is no gene or no type; keep the canonical spelling of the type."""
        _require_name(self.gene, 'Perturb("STAT1")')
        try:
            canonical = perturbation_type(self.type, column=f"the type of Perturb({self.gene!r})")
        except ScreenError as error:
            raise ProtocolError(str(error)) from None
        object.__setattr__(self, "type", canonical)

    def __repr__(self) -> str:
        """Python that makes the same step."""
        return f"Perturb({self.gene!r}, {self.type!r})"


@dataclass(frozen=True)
class Media:
    """M: add a medium; what was added before stays.

    Parameters
    ----------
    name
        Name of the medium, as in the screen.

    Raises
    ------
    ProtocolError
        If it is not a name.
    """

    name: str

    def __post_init__(self) -> None:
        """Refuse what is no name."""
        _require_name(self.name, 'Media("IFNG")')

    def __repr__(self) -> str:
        """Python that makes the same step."""
        return f"Media({self.name!r})"


@dataclass(frozen=True)
class Wait:
    """W: leave the cells for a time, in the screen's unit of time.

    Parameters
    ----------
    time
        Finite and not negative.

    Raises
    ------
    ProtocolError
        If it is not.
    """

    time: float

    def __post_init__(self) -> None:
        """Refuse what is no duration; keep a plain float."""
        number = isinstance(self.time, Real) and not isinstance(self.time, bool)
        if not (number and math.isfinite(self.time) and self.time >= 0):
            raise ProtocolError(
                f"Wait({self.time!r}): the time must be a finite number, zero or more, "
                "in the unit of the screen's times"
            )
        object.__setattr__(self, "time", float(self.time))

    def __repr__(self) -> str:
        """Python that makes the same step."""
        return f"Wait({self.time:.12g})"


Step = Perturb | Media | Wait


@dataclass(frozen=True)
class Protocol:
    """What is done to cells, step by step, in any order.

    Parameters
    ----------
    steps
        `Perturb`, `Media` and `Wait` objects. The default screen is P, M, W (eq. 4).

    Raises
    ------
    ProtocolError
        If a step is something else.
    ConflictingTypesError
        If one gene is perturbed with two types.

    Examples
    --------
    >>> Protocol([Perturb("TGFBR1"), Media("TGFB1"), Wait(3)])
    Protocol([Perturb('TGFBR1', 'knockout'), Media('TGFB1'), Wait(3)])
    """

    steps: tuple[Step, ...]

    def __post_init__(self) -> None:
        """Keep a tuple, so that a protocol can be hashed; refuse steps that cannot be done."""
        if isinstance(self.steps, Step):
            raise ProtocolError(f"Protocol takes a list of steps: Protocol([{self.steps!r}])")
        object.__setattr__(self, "steps", tuple(self.steps))
        types: dict[str, str] = {}
        for number, step in enumerate(self.steps, start=1):
            if not isinstance(step, Step):
                raise ProtocolError(
                    f"step {number} of the protocol is {step!r}; a step is a Perturb, Media or "
                    'Wait object, such as Perturb("STAT1"), Media("IFNG") or Wait(3)'
                )
            if isinstance(step, Perturb) and types.setdefault(step.gene, step.type) != step.type:
                raise ConflictingTypesError(
                    f"step {number} of the protocol is {step!r}, but an earlier step perturbs "
                    f"the same gene with type {types[step.gene]!r}; keep one type per gene"
                )

    def __repr__(self) -> str:
        """Python that makes the same protocol."""
        return f"Protocol([{', '.join(map(repr, self.steps))}])"

    @property
    def perturbations(self) -> tuple[Perturb, ...]:
        """The perturbations made, each once, in order."""
        return tuple(dict.fromkeys(step for step in self.steps if isinstance(step, Perturb)))

    @property
    def media(self) -> tuple[str, ...]:
        """Names of the media added, each once, in order."""
        return tuple(dict.fromkeys(step.name for step in self.steps if isinstance(step, Media)))

    @property
    def duration(self) -> float:
        """Time waited in all."""
        return sum(step.time for step in self.steps if isinstance(step, Wait))


def run(
    protocol: Protocol,
    params: ResponseParameters,
    perturbations: Mapping[str, int],
    media: Mapping[str, int],
    state: State | None = None,
    *,
    types: Sequence[str] | None = None,
    z: Tensor | None = None,
) -> State:
    """Carry out a protocol, step by step, in its own order.

    Parameters
    ----------
    protocol
        The steps.
    params
        The biology.
    perturbations
        Position of each perturbation, by the screen's names: the gene, or "GENE (type)".
    media
        Position of each medium.
    state
        Cells at the start; one condition at rest when None.
    types
        Type of each of the K perturbations. When given, a step of another type is refused.
    z
        Resting states of cells at the start, (1, n, d), where no `state` is given; they move where
        `params` has a motion.

    Raises
    ------
    UnknownLabelError
        If the screen has no such perturbation or medium.
    ConflictingTypesError
        If a gene ends up with two types.
    """
    effect = params.effect
    n_perturbations, n_axes = effect.shape[-2:]
    n_media = params.media_effect.shape[-2]
    if state is None:
        state = State.rest(
            1, n_perturbations, n_media, n_axes, z, dtype=effect.dtype, device=effect.device
        )
    genes = _gene_numbers(perturbations).to(effect.device)
    for step in protocol.steps:
        match step:
            case Perturb():
                position = _find_perturbation(step, perturbations, types)
                state = perturb(state, _one_hot(position, n_perturbations, effect), genes)
            case Media():
                position = _find(step.name, media, "medium")
                limit = gain_limit(state.genotype, params.gain)
                state = expose(state, _one_hot(position, n_media, effect), limit)
            case Wait():
                duration = state.y.new_full(state.genotype.shape[:-1], step.time)
                state = let_wait(state, duration, params)
    return state


def _require_name(name: object, example: str) -> None:
    if not (isinstance(name, str) and name.strip()):
        raise ProtocolError(f"{name!r} is not a name; write {example}")


def _find(name: str, known: Mapping[str, int], kind: str) -> int:
    if name not in known:
        raise UnknownLabelError(f'the screen has no {kind} "{name}"{did_you_mean(name, known)}')
    return known[name]


def _find_perturbation(step: Perturb, known: Mapping[str, int], types: Sequence[str] | None) -> int:
    named_with_type = f"{step.gene} ({step.type})"
    if named_with_type in known:
        return known[named_with_type]
    position = _find(step.gene, known, "perturbation")
    if types is not None and types[position] != step.type:
        raise UnknownLabelError(
            f'the screen perturbs "{step.gene}" by {types[position]}, not by {step.type}; '
            f"write Perturb({step.gene!r}, {types[position]!r})"
        )
    return position


def _gene_numbers(perturbations: Mapping[str, int]) -> Tensor:
    """Give each perturbation the number of its gene, shared by types of one gene; shape (K,)."""
    ordered = sorted(perturbations, key=perturbations.__getitem__)
    genes = [split_label(name, control="")[0][0] for name in ordered]
    numbers = {gene: number for number, gene in enumerate(dict.fromkeys(genes))}
    return torch.tensor([numbers[gene] for gene in genes], dtype=torch.long)


def _one_hot(position: int, length: int, like: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(torch.tensor(position), length).to(like)
