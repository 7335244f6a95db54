"""Sets of genes that a perturbation's effects are enriched in, of sets that the user gives."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd

from pyrocell.errors import PyrocellError
from pyrocell.knowledge.gene_sets import read_gmt
from pyrocell.report.perturbations import LISTED

__all__ = ["enrichment", "read_sets"]

_SMALLEST, _LARGEST = 5, 1_000  # genes of a set that the screen measured
_PERMUTATIONS, _SEED = 1_000, 0
_MOST_PERTURBATIONS, _SHOWN = 300, 20


def read_sets(paths: Sequence[str | Path]) -> dict[str, list[str]]:
    """Sets of genes from .gmt files: a line is name, description, genes, with tabs between.

    Raises
    ------
    PyrocellError
        If a file cannot be read, holds no set, or gseapy is not installed.
    """
    if paths and importlib.util.find_spec("gseapy") is None:
        raise PyrocellError(
            "sets of genes need gseapy, which is not installed: pip install 'pyrocell[gene-sets]'"
        )
    sets: dict[str, list[str]] = {}
    for path in paths:
        sets |= read_gmt(path)
    return sets


def enrichment(effects: pd.DataFrame, sets: dict[str, list[str]]) -> pd.DataFrame:
    """Enrichment of sets in the ranked effects of each perturbation that changes a gene.

    Genes are ranked by posterior mean over sd, and gseapy's `prerank` permutes them. That takes
    genes as independent; those of one set move together, so p are too small for a set of
    co-regulated genes and the order of sets says more than their p. Perturbations without a listed
    gene are left out.

    Parameters
    ----------
    effects
        Of one medium and time: perturbation, gene, mean, sd, fdr.
    sets
        Genes of each set.

    Returns
    -------
    Table with `perturbation`, `set`, `score` (normalised enrichment, above 0: up), `p`, `fdr`, `n`
    (genes of the set that were measured), the twenty first for each perturbation.

    Raises
    ------
    PyrocellError
        If no set has five genes of the screen.
    """
    import gseapy

    genes = set(effects["gene"].astype(str).unique())
    size = {name: len(genes & set(members)) for name, members in sets.items()}
    usable = {name: sets[name] for name, n in size.items() if _SMALLEST <= n <= _LARGEST}
    if not usable:
        raise PyrocellError(
            f"none of {len(sets)} sets has {_SMALLEST} genes of the screen; are they named by the "
            f"same symbols, such as {next(iter(sorted(genes)))}?"
        )
    listed = effects[effects["fdr"] <= LISTED].groupby("perturbation", sort=False).size()
    rows = []
    for name in listed.nlargest(_MOST_PERTURBATIONS).index:
        mine = effects[effects["perturbation"] == name]
        ranks = pd.Series((mine["mean"] / mine["sd"]).to_numpy(), mine["gene"].astype(str))
        found: Any = gseapy.prerank(
            rnk=ranks[np.isfinite(ranks)],
            gene_sets=cast("Any", usable),
            min_size=_SMALLEST,
            max_size=_LARGEST,
            permutation_num=_PERMUTATIONS,
            outdir=None,
            no_plot=True,
            seed=_SEED,
            threads=1,
        ).res2d
        found = pd.DataFrame(
            {
                "perturbation": name,
                "set": found["Term"].astype(str),
                "score": found["NES"].astype(float),
                "p": found["NOM p-val"].astype(float),
                "fdr": found["FDR q-val"].astype(float),
                "n": [size[str(term)] for term in found["Term"]],
            }
        )
        rows.append(found.sort_values("score", key=np.abs, ascending=False).head(_SHOWN))
    columns = ["perturbation", "set", "score", "p", "fdr", "n"]
    return pd.concat(rows, ignore_index=True) if rows else pd.DataFrame(columns=columns)
