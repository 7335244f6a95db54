"""Which contrasts a layout can tell from batch noise, by name and by how much.

With free condition means and free η the estimate of a contrast Σ a_c μ_c has the variance

    v (Σ a_c²/n_c + w' S⁺ w),    w_b = Σ_c a_c n_cb / n_c,    S = diag(n_b) − Σ_c n_c. n_c.' / n_c,

per unit of variance of a cell; the first term alone if batches were known. Their ratio is the
variance inflation. S is the Laplacian of the graph of batches that conditions link, so its null
vectors are the components of the layout graph: where weights do not sum to zero in each, the
contrast is aliased with a difference of batches, and the inflation is infinite.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from pyrocell._core.messages import join_names
from pyrocell.design.layouts import Layout
from pyrocell.posterior.levels import levels
from pyrocell.screen.screen import Screen

if TYPE_CHECKING:
    from pyrocell.model import PyroCell

__all__ = ["aliasing", "condition_rows", "contrast_weights", "inflation"]

_NAMED = 4  # batches that a reason spells out


def contrast_weights(layout: Layout) -> tuple[pd.DataFrame, sp.csr_array]:
    """Every contrast of a layout by name, and its weights on `Layout.conditions`.

    Returns
    -------
    DataFrame with contrast (its kind), perturbation (control's label where it is about control),
    media, time; and (n, conditions) CSR.
    """
    n = len(layout.perturbations)
    against = sp.csr_array(np.hstack([-np.ones((n, 1)), np.eye(n)]))
    alone = sp.csr_array(np.eye(1, 1 + n))
    tables, blocks = [], []
    for kind in layout.kinds:
        rows = against if kind.perturbed else alone
        names = layout.perturbations if kind.perturbed else (layout.control,)
        blocks.append(sp.kron(rows, sp.csr_array(kind.weights), format="csr"))
        media, time = zip(*kind.arms, strict=True)
        tables.append(
            pd.DataFrame(
                {
                    "contrast": kind.name,
                    "perturbation": np.repeat(np.array(names, object), len(media)),
                    "media": np.tile(np.array(media, object), len(names)),
                    "time": np.tile(np.array(time, float), len(names)),
                }
            )
        )
    return pd.concat(tables, ignore_index=True), sp.csr_array(sp.vstack(blocks, format="csr"))


def inflation(layout: Layout, weights: sp.csr_array) -> np.ndarray:
    """Variance inflation of contrasts, ≥ 1; infinite where aliased, NaN where not measured."""
    cells = layout.conditions.to_numpy()
    held = cells.sum(1)
    label = _component_of(layout)  # (conditions,), -1 for those without cells
    measured = held > 0
    missing = abs(weights) @ (~measured).astype(float) > 0
    in_part = np.zeros((len(held), label.max() + 1))
    in_part[measured, label[measured]] = 1.0
    aliased = (np.abs(weights @ in_part) > 1e-9).any(1)
    share = np.divide(cells, held[:, None], out=np.zeros_like(cells), where=measured[:, None])
    laplacian = np.diag(cells.sum(0)) - cells.T @ share
    batch_part = in_part.T @ cells > 0  # (parts, B)
    grounded = laplacian + batch_part.T @ (batch_part * cells.sum() / cells.shape[1])
    grounded += np.diag((cells.sum(0) == 0).astype(float))
    shift = weights @ share  # w
    extra = (shift * np.linalg.solve(grounded, shift.T).T).sum(1)
    known = weights.power(2) @ np.divide(1, held, out=np.zeros_like(held), where=measured)
    out = 1 + np.maximum(extra, 0) / np.where(known > 0, known, 1)
    out[aliased] = np.inf
    out[missing] = np.nan
    return out


def _component_of(layout: Layout) -> np.ndarray:
    label = np.full(len(layout.conditions), -1)
    for i, part in enumerate(layout.components()):
        label[part.conditions] = i
    return label


def aliasing(source: Layout | Screen | PyroCell, n_samples: int = 4) -> pd.DataFrame:
    """Say for every contrast whether it can be told from batch noise, and how much that costs.

    Parameters
    ----------
    source
        A planned `Layout`, a registered `Screen`, or a trained `PyroCell`.
    n_samples
        Draws of the width of batch noise, for a model.

    Returns
    -------
    DataFrame with a row per contrast: contrast (its kind), perturbation, media, time, estimable,
    inflation (of the variance by not knowing batch noise, nothing being assumed of it; infinite if
    aliased, NaN if never measured), aliased_with (batches), reason (what to add).

    After a fit also sampling_sd and batch_sd, the root mean square over genes of the errors that
    sampling and batch noise leave in the log-fold change, given how wide batch noise was found to
    be, and inflation_fitted, the median over genes of the ratio of variances. It is finite where
    `inflation` is not: batch noise is as large as it was found to be elsewhere.
    """
    screen = source if isinstance(source, Screen) else getattr(source, "screen", None)
    layout = source if isinstance(source, Layout) else Layout.from_screen(screen)
    table, weights = contrast_weights(layout)
    table["inflation"] = inflation(layout, weights)
    table.insert(4, "estimable", np.isfinite(table["inflation"]))
    table[["aliased_with", "reason"]] = _explained(layout, weights, table)
    if isinstance(source, Layout | Screen):
        return table
    return table.join(_after_fit(source, layout, weights, n_samples))


def _explained(layout: Layout, weights: sp.csr_array, table: pd.DataFrame) -> pd.DataFrame:
    """Batches that a contrast is mixed with, and why."""
    label, parts = _component_of(layout), layout.components()
    cells = layout.conditions.to_numpy()
    names = [
        f"{p} in {layout.baseline_media if not m else m}" + ("" if np.isnan(t) else f" at {t:g}")
        for p, m, t in layout.conditions.index
    ]
    out = []
    for row, estimable in enumerate(table["estimable"]):
        if estimable:
            out.append(("", ""))
            continue
        span = slice(*weights.indptr[row : row + 2])
        order = np.argsort(-weights.data[span], kind="stable")
        conditions = [c for c in weights.indices[span][order] if weights[row, c]]
        absent = [names[c] for c in conditions if label[c] < 0]
        if absent:
            out.append(("", f"never measured: {join_names(absent)}; add such cells"))
            continue
        touched = dict.fromkeys(label[conditions])
        mixed = " against ".join(join_names(parts[i].batches, _NAMED) for i in touched)
        seen = "; ".join(
            f"{names[c]} in {join_names(np.array(layout.batches)[cells[c] > 0], _NAMED)}"
            for c in conditions
        )
        out.append((mixed, f"no condition links these batches ({seen}): put them in one batch"))
    return pd.DataFrame(out, columns=["aliased_with", "reason"], index=table.index)


def _after_fit(
    model: PyroCell, layout: Layout, weights: sp.csr_array, n_samples: int
) -> pd.DataFrame:
    """Errors that batch noise and sampling leave, given the fitted width of batch noise."""
    position = condition_rows(model.screen, Layout.from_screen(model.screen))
    draws = levels(model.fitted, n_samples)
    columns = ("sampling_sd", "batch_sd", "inflation_fitted")
    out = np.full((weights.shape[0], 3), np.nan)
    for row in range(len(out)):
        span = slice(*weights.indptr[row : row + 2])
        used = {
            position[c]: a
            for c, a in zip(weights.indices[span], weights.data[span], strict=True)
            if a
        }
        if -1 in used:
            continue
        sampling = np.mean([level.contrast(used).variance for level in draws], 0)
        batch = np.mean([level.batch_variance(used) for level in draws], 0)
        ratio = np.median(1 + batch / sampling)
        out[row] = np.sqrt(sampling.mean()), np.sqrt(batch.mean()), ratio
    return pd.DataFrame(out, columns=list(columns))


def condition_rows(screen: Screen, layout: Layout) -> list[int]:
    """Row of `Screen.conditions` of each of the layout's conditions, -1 where it has none."""
    found = layout.conditions.index
    rows = {_plain(key): i for i, key in enumerate(screen.conditions[list(found.names)].values)}
    return [rows.get(_plain(key), -1) for key in found]


def _plain(key: Iterable[Any]) -> tuple[str, str, str]:
    perturbation, media, time = key
    return str(perturbation), str(media), repr(float(time))
