"""Shifts of cells kept as rows of small tables: one row per condition, one per batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["CellShift", "shared_shift", "shifts_shared"]

_DERIVED = {"eta", "W.log_decay"}  # functions of other sites, computed by guide and model anew
_last: ContextVar[list[tuple[dict[str, Tensor], Tensor, Tensor]] | None] = ContextVar(
    "shared_shift", default=None
)


@contextmanager
def shifts_shared() -> Iterator[None]:
    """Within the block, the model takes up the shifts that the guide has computed for its draw."""
    token = _last.set([])
    try:
        yield
    finally:
        _last.reset(token)


def shared_shift(
    values: dict[str, Tensor], condition: Tensor, compute: Callable[[], Tensor]
) -> Tensor:
    """What `compute` returns, or returned for the very same draws and cells."""
    kept = _last.get()
    if kept is None:
        return compute()
    draws = {name: value for name, value in values.items() if name not in _DERIVED}
    for before, cells, shift in kept:
        same = cells is condition and before.keys() == draws.keys()
        if same and all(before[name] is value for name, value in draws.items()):
            return shift
    shift = compute()
    kept[:] = [(draws, condition, shift)]
    return shift


class CellShift(NamedTuple):
    """Log-mean shift of each cell, (cells, G), as a sum that is not carried out unless asked for.

    Cells of a condition, and of a batch, share a shift. Their number is a tenth of the cells' in a
    minibatch, and a table of cells by genes costs as much to write as the likelihood to evaluate.
    """

    tables: tuple[Tensor, ...]  # (R_i, G) each
    rows: tuple[Tensor, ...]  # (cells,) each, rows of the tables
    covariates: Tensor | None = None  # (cells, n)
    per_covariate: Tensor | None = None  # (n, G)

    def dense(self) -> Tensor:
        """The sum, (cells, G)."""
        out = self.tables[0][self.rows[0]]
        for table, rows in zip(self.tables[1:], self.rows[1:], strict=True):
            out = out + table[rows]
        if self.covariates is None or self.per_covariate is None:
            return out
        return torch.addmm(out, self.covariates, self.per_covariate)

    def along(self, axes: Tensor) -> Tensor:
        """The sum projected on axes (d, G), (cells, d): tables are projected, then looked up."""
        out = (self.tables[0] @ axes.T)[self.rows[0]]
        for table, rows in zip(self.tables[1:], self.rows[1:], strict=True):
            out = out + (table @ axes.T)[rows]
        if self.covariates is None or self.per_covariate is None:
            return out
        return out + self.covariates @ (self.per_covariate @ axes.T)

    def of_cells(self, cells: Tensor) -> CellShift:
        """Shifts of some of the cells, by position."""
        covariates = None if self.covariates is None else self.covariates[cells]
        return self._replace(rows=tuple(r[cells] for r in self.rows), covariates=covariates)

    def plus(self, row: Tensor) -> CellShift:
        """With a row (G,) added to every cell: to the table that has the fewest rows."""
        short = min(range(len(self.tables)), key=lambda i: len(self.tables[i]))
        tables = (t + row if i == short else t for i, t in enumerate(self.tables))
        return self._replace(tables=tuple(tables))

    def decoded(self, features: Tensor, weight: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Logits features @ weight + shift in the two parts that the count families take.

        Parameters
        ----------
        features, weight
            (cells, H) of the state of each cell, and (H, G).

        Returns
        -------
        logits
            (cells, G) without the tables.
        offset
            The tables, (R, G), and the rows to be added to each cell, (cells, number of tables).
        """
        if self.covariates is not None and self.per_covariate is not None:
            features = torch.cat([features, self.covariates], 1)
            weight = torch.cat([weight, self.per_covariate])
        starts = torch.tensor([0, *(len(t) for t in self.tables[:-1])]).cumsum(0).tolist()
        rows = [r + start for r, start in zip(self.rows, starts, strict=True)]
        return features @ weight, (torch.cat(self.tables), torch.stack(rows, 1))
