"""What a screen can tell and what a fit of it will cost, in text; no fit."""

from __future__ import annotations

import textwrap
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from pyrocell.assumptions.testability import testability
from pyrocell.cli.options import counted, number_of
from pyrocell.data.validation import count_matrix
from pyrocell.screen.screen import Screen
from pyrocell.training.fit import TrainingConfig

__all__ = ["sections", "shuffle_text"]

_WIDTH = 96
_FEW = 20  # cells, below which a perturbation says little
_MOST = 5  # reasons that are written out
# Measured on two cores of a small server: seconds of a step at no gene, of each gene in it, and of
# each level (condition and gene) in the phase after; GiB of Python and its libraries, bytes of a
# count and of a level.
_STEP, _STEP_GENE, _LEVEL = 0.012, 2.7e-5, 4.5e-5
_CARRIED = 5e-7  # of a guide of a cell and a gene, all sweeps together
_PROGRAM, _COUNT, _LEVEL_BYTES = 0.8, 24, 120


def sections(adata: AnnData, screen: Screen, layer: str | None) -> list[str]:
    """What there is, what is mixed, which assumptions are testable, and the cost."""
    parts = ["# The screen", _numbers(screen)]
    mixed = screen.aliased[~screen.aliased["estimable"]]
    parts += ["## What this layout cannot tell apart"]
    parts += [_list(mixed["reason"]) if len(mixed) else "Nothing: every contrast is estimable."]
    parts += ["## Which assumptions it can test (docs/assumptions.md)", _assumptions(screen)]
    parts += ["## What a fit will cost, about", _cost(count_matrix(adata, layer), screen)]
    return parts


def _numbers(screen: Screen) -> str:
    """Sizes, and cells of the perturbations with least."""
    control = screen.conditions["n_cells"][screen.is_control]
    smallest = f", {int(control.min()):,} in the smallest" if len(control) > 1 else ""
    where = f"{number_of(len(control), 'condition')}{smallest}"
    lines = [counted(screen), f"controls: {int(control.sum()):,} cells in {where}"]
    if screen.perturbations:
        member = (screen.membership > 0).astype(int)
        cells = pd.Series(
            np.asarray(member.T @ screen.conditions["n_cells"].to_numpy()).ravel(),
            list(screen.perturbations),
        ).sort_values()
        few = int((cells < _FEW).sum())
        lines.append(
            f"cells of a perturbation: {int(cells.iloc[0])} ({cells.index[0]}) to "
            f"{int(cells.iloc[-1]):,}, median {cells.median():,.0f}"
            + (f"; {few} have fewer than {_FEW}, of which little can be said" if few else "")
        )
        own = int((screen.target >= 0).sum())
        lines.append(f"own transcript measured: {own:,} of {len(screen.perturbations):,}")
    return "\n".join(f"- {line}" for line in lines)


def _assumptions(screen: Screen) -> str:
    table = testability(screen)
    lines = []
    for name, mine in table.groupby("assumption", sort=False):
        line = f"{name}: {int(mine['testable'].sum()):,} of {len(mine):,}"
        reasons = mine.loc[~mine["testable"], "reason"]
        if len(reasons):
            line += f"; {reasons.iloc[0]}"
            line += f" (and {len(reasons) - 1:,} more)" if len(reasons) > 1 else ""
        lines.append(line)
    return _list(pd.Series(lines), most=len(lines))


def _cost(counts: Any, screen: Screen) -> str:
    """Time and memory by what was measured on two cores."""
    config = TrainingConfig()
    n_cells, n_genes = round(0.9 * screen.n_cells), len(screen.genes)
    steps = config.epochs(n_cells) * max(1, n_cells // config.minibatch(n_cells))
    levels = 0 if screen.many_sets else len(screen.conditions) * n_genes
    seconds = steps * (_STEP + _STEP_GENE * n_genes) + _LEVEL * levels
    if screen.many_sets:  # effects are drawn from the cells themselves
        carried = int(np.diff(screen.membership.indptr)[screen.cell_condition].sum())
        seconds += _CARRIED * n_genes * (screen.n_cells + carried)
    stored = getattr(counts, "nnz", None)
    bytes_ = _COUNT * (stored if stored is not None else counts.shape[0] * counts.shape[1])
    memory = _PROGRAM + (bytes_ + _LEVEL_BYTES * levels) / 2**30
    minutes = seconds / 60
    time = f"{seconds:.0f} seconds" if minutes < 2 else f"{minutes:.0f} minutes"
    return f"- {time} on two cores ({steps:,} steps), {memory:.1f} GiB of memory"


def _list(reasons: pd.Series, most: int = _MOST) -> str:
    """Lines of a list, the same reason once."""
    unique = list(dict.fromkeys(reasons))
    wrap = {"width": _WIDTH, "initial_indent": "- ", "subsequent_indent": "  "}
    lines = [textwrap.fill(reason, **wrap) for reason in unique[:most]]
    if len(unique) > most:
        lines.append(f"- and {len(unique) - most} more: `pyrocell fit` writes tables/aliased")
    return "\n".join(lines)


def shuffle_text(found: pd.DataFrame) -> str:
    """What was found where labels mean nothing, and whether that is too much."""
    lines = []
    for row, time in zip(found.itertuples(), found["time"].to_numpy(float)):
        when = "" if np.isnan(time) else f" at time {time:g}"
        lines.append(
            f"{row.media}{when}: {row.verdict}; {row.excluding_zero:.1%} of 90% intervals exclude "
            f"zero, {row.listed:.2%} of the pairs are listed, all labels have {row.common:.3f} in "
            "common (root mean square, natural log)"
        )
    if (found["verdict"] != "good").any():
        lines.append(
            "effects of this screen would be falsely certain: name batches, donors and cell types "
            "that were not named"
        )
    title = "## What is found with labels shuffled, where nothing is"
    return f"{title}\n\n{_list(pd.Series(lines), most=len(lines))}"
