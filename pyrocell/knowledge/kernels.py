"""How alike genes are, by each kind of prior knowledge: kernels with unit diagonal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import scipy.sparse as sp
import scipy.sparse.linalg as spl

__all__ = ["Embedding", "GeneSets", "Graph", "Matrix", "Source"]

_UNIVERSE = 20_000  # genes that a set could have; protein-coding genes of a mammal
_DIFFUSION = 1.0  # weight of the Laplacian


class Source(Protocol):
    """One kind of knowledge of genes."""

    @property
    def genes(self) -> frozenset[str]:
        """Genes that it knows something of."""
        ...

    @property
    def kind(self) -> str:
        """What it is, in words."""
        ...

    def kernel(self, genes: Sequence[str]) -> np.ndarray:
        """How alike known genes are, (n, n), unit diagonal and positive semidefinite."""
        ...


def _normalised(rows: np.ndarray | sp.csr_array) -> np.ndarray:
    """Inner products of rows at length one, (n, n)."""
    products = rows @ rows.T
    dense = products.toarray() if sp.issparse(products) else np.asarray(products)
    return unit_diagonal(dense)


def unit_diagonal(kernel: np.ndarray) -> np.ndarray:
    """A kernel divided so that its diagonal is one."""
    size = np.sqrt(np.diag(kernel).clip(1e-300))
    out = kernel / np.outer(size, size)
    np.fill_diagonal(out, 1.0)
    return (out + out.T) / 2


@dataclass(frozen=True, eq=False)
class GeneSets:
    """Genes are alike by the sets that they share: cosine of memberships, small sets weigh more.

    A set of m genes weighs log(20,000 / m), squared in inner products, as terms of documents do.
    """

    sets: Mapping[str, Sequence[str]]

    @cached_property
    def genes(self) -> frozenset[str]:
        """Genes in a set."""
        return frozenset(g for members in self.sets.values() for g in members)

    @property
    def kind(self) -> str:
        """What it is, in words."""
        return f"{len(self.sets):,} sets"

    def kernel(self, genes: Sequence[str]) -> np.ndarray:
        """See `Source`."""
        place = {gene: i for i, gene in enumerate(genes)}
        rows, columns, values = [], [], []
        for j, members in enumerate(self.sets.values()):
            weight = np.log(_UNIVERSE / min(len(members), _UNIVERSE / 2))
            for i in (place[g] for g in members if g in place):
                rows.append(i)
                columns.append(j)
                values.append(weight)
        shape = (len(genes), len(self.sets))
        return _normalised(sp.csr_array((values, (rows, columns)), shape))


@dataclass(frozen=True, eq=False)
class Graph:
    """Genes are alike by paths in a graph: regularised Laplacian (I + L)⁻¹, L normalised.

    Smola and Kondor (2003).
    """

    nodes: tuple[str, ...]
    adjacency: sp.csr_array

    @cached_property
    def genes(self) -> frozenset[str]:
        """Genes with an edge."""
        return frozenset(self.nodes)

    @property
    def kind(self) -> str:
        """What it is, in words."""
        return f"{self.adjacency.nnz // 2:,} edges"

    @cached_property
    def _factor(self) -> spl.SuperLU:
        degree = np.asarray(self.adjacency.sum(1)).ravel()
        root = sp.diags_array(1 / np.sqrt(degree))
        one = sp.eye_array(len(self.nodes))
        return spl.splu((one + _DIFFUSION * (one - root @ self.adjacency @ root)).tocsc())

    def kernel(self, genes: Sequence[str]) -> np.ndarray:
        """See `Source`."""
        place = {node: i for i, node in enumerate(self.nodes)}
        rows = np.array([place[g] for g in genes], dtype=np.int64)
        chosen = np.zeros((len(self.nodes), len(rows)))
        chosen[rows, np.arange(len(rows))] = 1.0
        return unit_diagonal(self._factor.solve(chosen)[rows])


@dataclass(frozen=True, eq=False)
class Embedding:
    """Genes are alike by the cosine of their vectors, off the mean of all genes embedded."""

    names: tuple[str, ...]
    vectors: np.ndarray

    @cached_property
    def genes(self) -> frozenset[str]:
        """Genes with a vector."""
        return frozenset(self.names)

    @property
    def kind(self) -> str:
        """What it is, in words."""
        return f"vectors of {self.vectors.shape[1]:,} dimensions"

    def kernel(self, genes: Sequence[str]) -> np.ndarray:
        """See `Source`."""
        place = {name: i for i, name in enumerate(self.names)}
        off = self.vectors - self.vectors.mean(0)
        return _normalised(off[[place[g] for g in genes]])


@dataclass(frozen=True, eq=False)
class Matrix:
    """A kernel as it was given."""

    names: tuple[str, ...]
    values: np.ndarray

    @cached_property
    def genes(self) -> frozenset[str]:
        """Genes of the table."""
        return frozenset(self.names)

    @property
    def kind(self) -> str:
        """What it is, in words."""
        return "a kernel"

    def kernel(self, genes: Sequence[str]) -> np.ndarray:
        """See `Source`."""
        place = {name: i for i, name in enumerate(self.names)}
        rows = [place[g] for g in genes]
        return unit_diagonal(self.values[np.ix_(rows, rows)])
