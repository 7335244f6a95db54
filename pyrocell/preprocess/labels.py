"""From guides to perturbations: targets of guides, labels of cells."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from pyrocell._core.messages import did_you_mean, join_names
from pyrocell.errors import PyrocellError
from pyrocell.preprocess.guides import SEPARATOR, GuideCalls
from pyrocell.preprocess.steps import Step, add_step

__all__ = ["CONTROL", "guide_matrix", "guide_targets", "label_cells"]

CONTROL = "control"
# A word at the beginning of a name, whole or with a number; the first two also within a name.
_CONTROL_NAME = re.compile(
    r"(non[-_. ]?target|negative[-_. ]?(control|ctrl))"
    r"|^(sg|g)?[-_. ]?(ntc?|neg|negctrl|control|ctrl|safe|safe[-_. ]?(targeting|harbou?r)"
    r"|scrambled?|scr)(g?\d+)?($|[-_. ])",
    flags=re.IGNORECASE,
)
_PREFIX = re.compile(r"^(sg|sgRNA[-_. ])(?=[A-Z0-9])")
_SUFFIX = re.compile(r"[-_. ](sgRNA|gRNA|guide|sg|g)?[-_]?\d+$|(?<=[A-Za-z0-9])(sg|g)\d+$")
_STRAND = re.compile(r"_[+-]_.*$")  # AARS_+_58128442.23-P1P2, as libraries of CRISPRi have it
_MULTIPLETS = ("drop", "combine")


def guide_targets(
    guides: Iterable[str] | pd.DataFrame,
    table: pd.DataFrame | None = None,
    *,
    genes: Iterable[str] = (),
    controls: Sequence[str] | None = None,
) -> pd.Series:
    """The gene that each guide targets, "control" for guides that target none.

    Parameters
    ----------
    guides
        Names; or `.uns["guides"]` as `read_10x` made it, of which a column `target_gene_name` of
        Cell Ranger's feature reference is used where it is filled.
    table
        Columns `guide` and `gene`, which decides for the guides that it names. All have to be
        there.
    genes
        Names of measured genes, against which names of guides are read.
    controls
        Patterns of control guides or of their targets, with * and ?, in the place of the rule
        below.

    Returns
    -------
    Series of names of genes, indexed by guide.

    Raises
    ------
    PyrocellError
        If the table lacks a column or a guide, or names one twice, or if a pattern fits no guide.

    Notes
    -----
    Of a name the target is what remains without a beginning `sg` and without a number at the end
    that follows a separator (-, _, a dot or a space), `g` or `sg`: STAT1_1, STAT1-g2, STAT1g2 and
    sgSTAT1_2 target STAT1. What follows `_+_` or `_-_` is left out. Where the name, or the name
    without its beginning, is that of a measured gene, such as NKX2-5, it is taken whole.

    A guide is a control if its name or its target holds "non-targeting" or "negative control", or
    begins with one of the words NT, NTC, neg, control, ctrl, safe, scramble, scrambled or scr,
    alone or followed by a number or a separator, in capitals or not.
    """
    frame = guides if isinstance(guides, pd.DataFrame) else pd.DataFrame(index=list(guides))
    names = [str(name) for name in frame.index]
    measured = {str(gene) for gene in genes}
    target = {name: _parsed(name, measured) for name in names}
    if "target_gene_name" in frame:
        stated = frame["target_gene_name"].fillna("").astype(str)
        target |= {name: gene for name, gene in zip(names, stated) if gene.strip()}
    if table is not None:
        target |= _from_table(names, table)
    if controls is None:
        is_control = {n: bool(_CONTROL_NAME.search(n) or _CONTROL_NAME.search(target[n]))
                      for n in names}  # fmt: skip
        if table is not None:  # which says itself which are controls
            is_control = {n: bool(_CONTROL_NAME.search(target[n])) for n in names}
    else:
        for pattern in controls:
            if not any(fnmatchcase(n, pattern) or fnmatchcase(target[n], pattern) for n in names):
                raise PyrocellError(
                    f'control guides "{pattern}" fit no guide{did_you_mean(pattern, names)}'
                )
        is_control = {
            n: any(fnmatchcase(n, p) or fnmatchcase(target[n], p) for p in controls) for n in names
        }
    found = [CONTROL if is_control[name] else target[name] for name in names]
    return pd.Series(found, index=pd.Index(names, name="guide"), name="gene", dtype=object)


def _parsed(name: str, measured: set[str]) -> str:
    """The target by the name of a guide."""
    bare = _PREFIX.sub("", name)
    for whole in (name, bare):
        if whole in measured:
            return whole
    bare = _STRAND.sub("", bare)
    shorter = _SUFFIX.sub("", bare)
    again = _SUFFIX.sub("", shorter)
    if shorter not in measured and again in measured:  # STAT1_g1_2
        return again
    return shorter or name


def _from_table(names: list[str], table: pd.DataFrame) -> dict[str, str]:
    missing = [column for column in ("guide", "gene") if column not in table]
    if missing:
        raise PyrocellError(
            f'the table of guides lacks the column "{missing[0]}"; it has {join_names(table)}'
        )
    if table[["guide", "gene"]].isna().any(axis=None):
        raise PyrocellError('the table of guides has empty cells in "guide" or "gene"; fill them')
    guide = table["guide"].astype(str)
    if guide.duplicated().any():
        twice = guide[guide.duplicated()].unique()
        raise PyrocellError(f"the table of guides names {join_names(twice)} more than once")
    absent = sorted(set(names) - set(guide))
    if absent:
        raise PyrocellError(
            f"the table of guides lacks {len(absent)} that were counted: {join_names(absent)}"
        )
    return dict(zip(guide, table["gene"].astype(str)))


def label_cells(
    adata: AnnData,
    calls: GuideCalls,
    targets: pd.Series,
    *,
    multiplets: str = "drop",
) -> AnnData:
    """Keep the cells whose guides say what was done to them, with that as their label.

    Parameters
    ----------
    adata
        Counts of genes; it stays as it is.
    calls
        From `assign_guides`, of the same cells.
    targets
        Gene of each guide, "control" for guides that target none, from `guide_targets`.
    multiplets
        What becomes of cells with guides of several genes, or of genes and controls. "drop": such
        cells are left out, since in a screen with one guide per cell they are droplets with two
        cells. "combine": they are labelled with the genes, as "A+B", control guides beside; for
        screens in which cells were given several guides.

    Returns
    -------
    AnnData
        Cells with a label: `.obs["perturbation"]`, `.obs["guide"]` (all of a cell, joined by +),
        `.obs["n_guides"]` and `.obs["call_probability"]`. Cells without a guide are left out.

    Raises
    ------
    PyrocellError
        If the cells differ, no cell is left, or no control is.
    """
    if multiplets not in _MULTIPLETS:
        raise PyrocellError(f'multiplets="{multiplets}" is neither "drop" nor "combine"')
    if list(calls.cells.index) != list(adata.obs_names):
        raise PyrocellError("guides were called for other cells; call them for these")
    label = perturbations(calls, targets, multiplets)
    kept = label.notna().to_numpy()
    none = int((calls.cells["n_guides"] == 0).sum())
    dropped = len(kept) - int(kept.sum()) - none
    if not kept.any():
        raise PyrocellError(
            f"no cell is left: {none:,} without a guide, {dropped:,} with several; look at the "
            "counts of guides, or lower the probability of a call"
        )
    if not (label[kept] == CONTROL).any():
        raise PyrocellError(
            f"no cell with a control guide alone; targets of guides are "
            f"{join_names(sorted(set(targets)))}; name the control guides"
        )
    found = adata[kept].copy()
    found.obs["perturbation"] = pd.Categorical(label[kept])
    found.obs["guide"] = pd.Categorical(calls.cells["guides"][kept])
    found.obs["n_guides"] = calls.cells["n_guides"][kept].to_numpy()
    found.obs["call_probability"] = calls.cells["probability"][kept].to_numpy()
    what = "dropped" if multiplets == "drop" else "labelled with all their genes"
    rule = f"cells with guides of several targets are {what}; left out: {none:,} without a guide"
    rule += f", {dropped:,} with several" if multiplets == "drop" else ""
    return add_step(found, Step("combine guides", rule, adata.n_obs, found.n_obs))


def guide_matrix(
    adata: AnnData, calls: GuideCalls, targets: pd.Series, *, key: str = "guides"
) -> AnnData:
    """Keep the cells that have a guide, with all guides of each, for screens of many per cell.

    Parameters
    ----------
    adata
        Counts of genes; it stays as it is.
    calls
        From `assign_guides`, of the same cells.
    targets
        Gene of each guide, "control" for guides that target none, from `guide_targets`.
    key
        Name of the entries of `.obsm` and `.uns`.

    Returns
    -------
    AnnData
        Cells with a guide: `.obsm[key]`, cells × guides, CSR of 0 and 1; `.uns[key]`, a row for
        each guide with its target; `.obs["n_guides"]` and `.obs["call_probability"]`. They are
        registered by ``PyroCell.setup_anndata(adata, guide_matrix_key=key)``.

    Raises
    ------
    PyrocellError
        If the cells differ, a guide has no target, or no cell has a guide.
    """
    if list(calls.cells.index) != list(adata.obs_names):
        raise PyrocellError("guides were called for other cells; call them for these")
    names = list(dict.fromkeys(calls.guides["guide"]))
    missing = [name for name in names if name not in targets.index]
    if missing:
        raise PyrocellError(
            f"targets lack {len(missing)} guides that were called: {join_names(missing)}"
        )
    kept = (calls.cells["n_guides"] > 0).to_numpy()
    if not kept.any():
        raise PyrocellError(
            "no cell has a guide; look at the counts of guides, or lower the probability of a call"
        )
    found = adata[kept].copy()
    found.obsm[key] = sp.csr_matrix(calls.called[np.flatnonzero(kept)], dtype=np.int8)
    found.uns[key] = pd.DataFrame({"target": targets.loc[names].astype(str)}, index=names)
    found.obs["n_guides"] = calls.cells["n_guides"][kept].to_numpy()
    found.obs["call_probability"] = calls.cells["probability"][kept].to_numpy()
    mean = float(found.obs["n_guides"].mean())
    rule = f"cells with a guide are kept with all of theirs, {mean:.1f} on average"
    return add_step(found, Step("guides of cells", rule, adata.n_obs, found.n_obs))


def perturbations(calls: GuideCalls, targets: pd.Series, multiplets: str = "drop") -> pd.Series:
    """The label of each cell, missing for those that have none."""

    def label(guides: str) -> object:
        if guides not in known:
            known[guides] = _label(members[guides], targets, multiplets)
        return known[guides]

    names = np.asarray(targets.index)
    called, known, members = calls.called, {}, {}
    for cell, guides in enumerate(calls.cells["guides"]):
        if guides not in members:
            columns = called.indices[called.indptr[cell] : called.indptr[cell + 1]]
            members[guides] = list(names[columns])
    return pd.Series(
        [label(guides) for guides in calls.cells["guides"]], calls.cells.index, dtype=object
    )


def _label(guides: list[str], targets: pd.Series, multiplets: str) -> object:
    genes = {targets[guide] for guide in guides}
    if not genes or (len(genes) > 1 and multiplets == "drop"):
        return np.nan
    return SEPARATOR.join(sorted(genes - {CONTROL})) or CONTROL
