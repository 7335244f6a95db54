"""A random gene network with a signalling cascade, for simulators that were not written here.

Genes by role: receptor R, needed for the stimulus to be felt; cascade A1 → A2 → A3; its branches B;
responders T; regulators U, active at rest (U1 also drives R1); terminal genes V, some regulated by
U. T and V regulate nothing. Two more that are not genes and not counted: the stimulus, and a
signal through which cells drift where a layout asks for it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = [
    "CASCADE",
    "DRIFT",
    "REGULATORS",
    "RESPONDERS",
    "SIGNALS",
    "STIMULUS",
    "Network",
    "draw_network",
]

STIMULUS, DRIFT = "stimulus", "drift"
SIGNALS = 2  # the first names of a network, which are not genes
CASCADE = ("A1", "A2", "A3", "B1", "B2")  # off without the stimulus
RESPONDERS = tuple(f"T{i + 1}" for i in range(6))
REGULATORS = tuple(f"U{i + 1}" for i in range(6))
TERMINAL = tuple(f"V{i + 1}" for i in range(8))


@dataclass(frozen=True)
class Network:
    """Who regulates whom.

    Attributes
    ----------
    names
        The two signals, then the genes.
    strength
        (n, n), regulator by target: signed, in (0.5, 1) in magnitude; 0 without an edge.
    """

    names: tuple[str, ...]
    strength: np.ndarray

    @property
    def genes(self) -> tuple[str, ...]:
        """Names of the genes."""
        return self.names[SIGNALS:]

    def at(self, *names: str) -> list[int]:
        """Indices of names."""
        return [self.names.index(name) for name in names]

    def reached_from(self, name: str) -> np.ndarray:
        """(n,) whether a change of `name` can reach a gene; `name` itself included."""
        reached = np.array(self.names) == name
        for _ in self.names:
            reached = reached | (self.strength[reached] != 0).any(axis=0)
        return reached


def draw_network(rng: np.random.Generator) -> Network:
    """Draw a network; the cascade is always the same, what is around it is not."""
    names = (STIMULUS, DRIFT, "R1", *CASCADE, *RESPONDERS, *REGULATORS, *TERMINAL)
    at = {name: i for i, name in enumerate(names)}
    strength = np.zeros((len(names), len(names)))

    def edge(regulator: str, target: str, sign: float = 1.0) -> None:
        strength[at[regulator], at[target]] = sign * rng.uniform(0.5, 1.0)

    chain = [(STIMULUS, "A1"), ("R1", "A1"), ("A1", "A2"), ("A2", "A3"), ("A3", "B1"), ("A3", "B2")]
    for pair in [*chain, ("U1", "R1")]:
        edge(*pair)
    for gene in RESPONDERS:
        sign = rng.choice([1.0, -1.0], p=[0.75, 0.25])
        for branch in rng.choice(["B1", "B2"], rng.choice([1, 2], p=[0.7, 0.3]), replace=False):
            edge(branch, gene, sign)
    for i, gene in enumerate(REGULATORS):
        below = [*REGULATORS[i + 1 :], *TERMINAL, *RESPONDERS[:2]]
        for target in rng.choice(below, rng.integers(2, 7), replace=False):
            edge(gene, target, rng.choice([1.0, -1.0]))
    for target in rng.choice([*REGULATORS[1:], *TERMINAL], 8, replace=False):
        edge(DRIFT, target, rng.choice([1.0, -1.0]))
    return Network(names, strength)
