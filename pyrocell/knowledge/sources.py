"""Prior knowledge of genes: what a user brings, as kernels over the genes that are asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp

from pyrocell._core.messages import did_you_mean, facts_html, join_names
from pyrocell.errors import KnowledgeError, warn
from pyrocell.knowledge.gene_sets import read_gmt
from pyrocell.knowledge.kernels import Embedding, GeneSets, Graph, Matrix, Source

__all__ = ["GeneKernels", "Knowledge"]

_NEGATIVE = 1e-6  # an eigenvalue below minus this share of the largest is no rounding error


class GeneKernels(NamedTuple):
    """Kernels of S sources over n genes.

    Attributes
    ----------
    kernels
        (S, n, n), unit diagonal, positive semidefinite; a gene that a source does not know is like
        no other.
    covered
        (S, n) whether the source knows the gene.
    """

    kernels: np.ndarray
    covered: np.ndarray


class Knowledge:
    """What is known of genes before the screen: sources, each of which says how alike genes are.

    Made by :meth:`from_gene_sets`, :meth:`from_edges`, :meth:`from_embedding` or
    :meth:`from_kernel`; sources add with ``+``. Nothing is downloaded, and nothing is taken for
    true: how much of the effects each source explains is learned, and may be nothing.

    Parameters
    ----------
    sources
        Sources by name.

    Examples
    --------
    >>> go = pyrocell.Knowledge.from_gene_sets("GO_BP_2021.gmt.gz")
    >>> ppi = pyrocell.Knowledge.from_edges(edges, source="a", target="b")
    >>> model.knowledge(go + ppi)
    """

    def __init__(self, sources: Mapping[str, Source]):
        self._sources = dict(sources)

    # ------------------------------------------------------------------ making
    @classmethod
    def from_gene_sets(
        cls,
        *sets: str | Path | Mapping[str, Sequence[str]],
        names: str | Sequence[str] | None = None,
        min_size: int = 3,
        max_size: int = 300,
    ) -> Knowledge:
        """Genes are alike by the sets that they share; every file is a source of its own.

        Parameters
        ----------
        *sets
            Files (.gmt, .gmt.gz; also with members joined by commas in the third column), or sets
            as a dictionary of lists of genes.
        names
            Names of the sources; default: those of the files, "gene sets" for a dictionary.
        min_size, max_size
            Genes that a set must and may have: large sets say little of any two genes.

        Raises
        ------
        KnowledgeError
            If a file cannot be read or no set has the size asked for.
        """
        if not sets:
            raise KnowledgeError("name a .gmt file, or give sets as a dictionary")
        names = [names] if isinstance(names, str) else names
        if names is not None and len(names) != len(sets):
            raise KnowledgeError(f"names={list(names)!r} must be {len(sets)}, one for each file")
        out: dict[str, Source] = {}
        for i, each in enumerate(sets):
            is_file = not isinstance(each, Mapping)
            found = read_gmt(each) if is_file else each
            usual = Path(each).name.split(".gmt")[0] if is_file else "gene sets"
            members = {k: list(dict.fromkeys(map(str, v))) for k, v in found.items()}
            kept = {k: v for k, v in members.items() if min_size <= len(v) <= max_size}
            if not kept:
                raise KnowledgeError(
                    f"none of {len(members)} sets of {each if is_file else usual} has {min_size} "
                    f"to {max_size} genes; change min_size= or max_size="
                )
            out[_free(usual if names is None else names[i], out)] = GeneSets(kept)
        return cls(out)

    @classmethod
    def from_edges(
        cls,
        edges: pd.DataFrame,
        source: str = "source",
        target: str = "target",
        weight: str | None = None,
        name: str = "edges",
    ) -> Knowledge:
        """Genes are alike by paths between them: the regularised Laplacian kernel of a graph.

        Parameters
        ----------
        edges
            A row per edge; directions are ignored, edges named twice count once, at the larger
            weight.
        source, target, weight
            Columns of the two genes, and of weights above 0; None: all alike.
        name
            Of the source.

        Raises
        ------
        KnowledgeError
            If a column is missing, a weight is not above 0, or there is no edge between two genes.
        """
        for column in (source, target, *(() if weight is None else (weight,))):
            if column not in edges:
                raise KnowledgeError(f'no column "{column}"{did_you_mean(column, edges.columns)}')
        values = np.ones(len(edges)) if weight is None else edges[weight].to_numpy(float)
        if not (np.isfinite(values).all() and (values > 0).all()):
            raise KnowledgeError(f'column "{weight}" must hold numbers above 0')
        pairs = edges[[source, target]].astype(str).to_numpy()
        two = (pairs[:, 0] != pairs[:, 1]) & edges[[source, target]].notna().all(axis=1).to_numpy()
        if not two.any():
            raise KnowledgeError(f'"{source}" and "{target}" hold no edge between two genes')
        codes, nodes = pd.factorize(pairs[two].ravel(), sort=True)
        a, b = codes.reshape(-1, 2).T
        table = pd.DataFrame({"a": np.minimum(a, b), "b": np.maximum(a, b), "w": values[two]})
        table = table.groupby(["a", "b"], as_index=False)["w"].max()
        shape = (len(nodes), len(nodes))
        half = sp.csr_array((table["w"].to_numpy(), (table["a"], table["b"])), shape)
        return cls({name: Graph(tuple(map(str, nodes)), sp.csr_array(half + half.T))})

    @classmethod
    def from_embedding(cls, embedding: pd.DataFrame, name: str = "embedding") -> Knowledge:
        """Genes are alike by the cosine of their vectors, off the mean of all.

        Parameters
        ----------
        embedding
            Genes × dimensions, named by genes.
        name
            Of the source.

        Raises
        ------
        KnowledgeError
            If a gene is named twice, a value is not a number, or a gene has no direction.
        """
        names, values = _table(embedding, "the embedding")
        off = np.linalg.norm(values - values.mean(0), axis=1)
        if len(values) < 2 or not off.max() > 0:
            raise KnowledgeError("all vectors of the embedding are the same")
        some = off > 1e-12 * off.max()
        kept = tuple(n for n, keep in zip(names, some, strict=True) if keep)
        return cls({name: Embedding(kept, values[some])})

    @classmethod
    def from_kernel(cls, kernel: pd.DataFrame, name: str = "kernel") -> Knowledge:
        """How alike genes are, as a table of all pairs; brought to unit diagonal.

        Parameters
        ----------
        kernel
            Genes × genes, symmetric and positive semidefinite, rows and columns named alike.
        name
            Of the source.

        Raises
        ------
        KnowledgeError
            If it is not.
        """
        names, values = _table(kernel, "the kernel")
        if names != tuple(map(str, kernel.columns)):
            raise KnowledgeError("rows and columns of the kernel must have the same names in order")
        if not np.allclose(values, values.T, atol=1e-6 * np.abs(values).max()):
            raise KnowledgeError("the kernel must be symmetric: (kernel + kernel.T) / 2")
        if not (np.diag(values) > 0).all():
            bad = names[int(np.argmin(np.diag(values)))]
            raise KnowledgeError(f'the kernel of "{bad}" with itself must be above 0')
        low, *_, high = np.linalg.eigvalsh(values) if len(values) > 1 else (1.0, 1.0)
        if low < -_NEGATIVE * high:
            raise KnowledgeError(
                f"the kernel is not positive semidefinite (lowest eigenvalue {low:.3g}): a table "
                "of distances or of correlations with gaps is none"
            )
        return cls({name: Matrix(names, (values + values.T) / 2)})

    def __add__(self, other: Knowledge) -> Knowledge:
        """Both sources' knowledge; a name that both have gets a number."""
        if not isinstance(other, Knowledge):
            return NotImplemented
        out = dict(self._sources)
        for name, source in other._sources.items():
            out[_free(name, out)] = source
        return Knowledge(out)

    # ------------------------------------------------------------------ asking
    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the sources."""
        return tuple(self._sources)

    def matched(self, genes: Sequence[str]) -> pd.DataFrame:
        """What each gene is called in each source: genes × sources; missing where it is not there.

        Names are compared exactly, then without regard to case where just one name fits.
        """
        out = {}
        for name, source in self._sources.items():
            folded: dict[str, str | None] = {}
            for known in source.genes:
                key = known.casefold()
                folded[key] = None if key in folded else known
            out[name] = [g if g in source.genes else folded.get(g.casefold()) for g in genes]
        index = pd.Index(list(genes), name="gene")
        return pd.DataFrame(out, index=index, columns=list(self._sources), dtype=object)

    def kernel(self, genes: Sequence[str]) -> GeneKernels:
        """Kernels over genes, and which each source covers.

        Parameters
        ----------
        genes
            (n,) names.

        Raises
        ------
        KnowledgeError
            If no source knows any of the genes.

        Warns
        -----
        ScreenWarning
            If genes were found only without regard to case.
        """
        genes = [str(g) for g in genes]
        matched = self.matched(genes)
        known = matched.notna().to_numpy().T.reshape(len(self._sources), len(genes))
        if not known.any():
            raise KnowledgeError(
                f"none of {len(genes)} genes ({join_names(genes)}) is in {join_names(self.sources)}"
                f"; genes there are called such as {join_names(self._some_genes())}"
            )
        of_case = matched.ne(matched.index.to_numpy()[:, None]) & matched.notna()
        if of_case.any(axis=None):
            names = matched.index[of_case.any(axis=1)]
            warn(f"found without regard to case: {join_names(names)}")
        kernels = np.tile(np.eye(len(genes)), (len(self._sources), 1, 1))
        for s, (name, source) in enumerate(self._sources.items()):
            rows = np.flatnonzero(known[s])
            own = matched[name].to_numpy()[rows]
            unique, inverse = np.unique(own.astype(str), return_inverse=True)
            if len(rows):
                found = source.kernel(list(unique))
                kernels[s][np.ix_(rows, rows)] = found[np.ix_(inverse, inverse)]
        return GeneKernels(kernels, known)

    def _some_genes(self) -> list[str]:
        return sorted(next(iter(self._sources.values())).genes)[:3] if self._sources else []

    def _facts(self) -> list[tuple[str, str]]:
        return [(n, f"{s.kind}, {len(s.genes):,} genes") for n, s in self._sources.items()]

    def __repr__(self) -> str:
        return "\n".join(["Knowledge", *(f"  {name}: {value}" for name, value in self._facts())])

    def _repr_html_(self) -> str:
        return facts_html("Knowledge", self._facts())


def _free(name: str, taken: Mapping[str, object]) -> str:
    """The name, with a number behind it if it is taken."""
    numbered = (name if i == 1 else f"{name} {i}" for i in range(1, len(taken) + 2))
    return next(n for n in numbered if n not in taken)


def _table(frame: pd.DataFrame, what: str) -> tuple[tuple[str, ...], np.ndarray]:
    """Names and finite numbers of a table."""
    names = tuple(map(str, frame.index))
    double = frame.index[frame.index.duplicated()]
    if len(double):
        raise KnowledgeError(f'{what} names "{double[0]}" twice')
    try:
        values = frame.to_numpy(float)
    except (TypeError, ValueError) as error:
        raise KnowledgeError(f"{what} must hold numbers alone: {error}") from error
    if not values.size or not np.isfinite(values).all():
        raise KnowledgeError(f"{what} is empty or has values that are no finite numbers")
    return names, values
