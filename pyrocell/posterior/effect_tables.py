"""Effects in the forms of scverse: an AnnData, scvi-tools' table, scanpy's ranked genes.

All three hold what :meth:`pyrocell.PyroCell.perturbation_effects` says, under the names that other
tools look for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from pyrocell.errors import ScreenError
from pyrocell.posterior.counts_alone import FEWEST_COUNTS
from pyrocell.posterior.draws import check_draws
from pyrocell.posterior.effects import (
    counts_by_label,
    draws_and_direction,
    each_with_direction,
    expected_false_signs,
)
from pyrocell.posterior.fitted_screen import FittedScreen
from pyrocell.posterior.media_effects import media_draws

__all__ = ["differential_expression", "effects_adata", "media_expression", "ranked_genes"]

_LAYERS = ("lfc", "log2fc", "sd", "lower", "upper", "lfsr", "fdr", "count")
_CELLS = 4096  # looked at at once
_EPS = 1e-8  # of scvi-tools, where a probability is 0 or 1


def effects_adata(effects: pd.DataFrame, fit: FittedScreen) -> AnnData:
    """A table of effects as perturbations × genes; see `PyroCell.effects_adata`."""
    names = list(dict.fromkeys(effects["perturbation"]))
    genes = fit.screen.genes
    shape = len(names), len(genes)
    columns = effects.rename(columns={"mean": "lfc"})
    layers = {name: columns[name].to_numpy().reshape(shape) for name in _LAYERS}
    layers = {k: v.astype(np.int64 if k == "count" else np.float32) for k, v in layers.items()}
    media, time = effects["media"].iloc[0], effects["time"].iloc[0]
    cells = _cells_of(fit, names, str(media), float(time))
    labels = [str(name) for name in names]
    obs = pd.DataFrame({"perturbation": pd.Categorical(labels, labels)}, index=labels)
    obs["n_cells"] = cells
    listed = layers["fdr"] <= 0.1
    obs["n_up"], obs["n_down"] = (
        (listed & (layers["lfc"] > 0)).sum(1),
        (listed & (layers["lfc"] < 0)).sum(1),
    )
    obs["media"] = str(media)
    var = pd.DataFrame(index=genes.astype(str).rename(None))
    var["count_control"] = effects["count_control"].to_numpy()[: shape[1]]
    uns = {"pyrocell": {"media": str(media), "time": float(time), "unit_of_X": "natural log"}}
    return AnnData(layers["lfc"].copy(), obs=obs, var=var, layers=layers, uns=uns)


def _cells_of(fit: FittedScreen, names: list[str], media: str, time: float) -> np.ndarray:
    """(n,) cells that stand for each label in a medium at a time."""
    here = fit.screen.at(media, time)
    if fit.screen.many_sets:
        cells = fit.screen.conditions["n_cells"].to_numpy()
        return np.array([int(cells[here & fit.screen.carriers(n)].sum()) for n in names])
    measured = fit.screen.conditions[here]
    found = measured.groupby("perturbation")["n_cells"].sum()
    return found.reindex(names).fillna(0).astype(int).to_numpy()


def differential_expression(
    fit: FittedScreen,
    groups: Sequence[str],
    reference: str,
    media: str,
    time: float | None,
    delta: float,
    fdr_target: float,
    n_samples: int,
    mean_library: float,
) -> pd.DataFrame:
    """scvi-tools' table of perturbations against control or another; see `PyroCell`."""
    _check(groups, n_samples, delta, fdr_target)
    screen, tables = fit.screen, []
    label = {g: g if g == screen.control else screen.label_of(screen.indices(g)) for g in groups}
    label[reference] = (
        reference if reference == screen.control else screen.label_of(screen.indices(reference))
    )
    counted, detected = counts_by_label(fit, media, time), _detected(fit, media, time)
    other = _Cells(counted(label[reference]), *detected(label[reference]))
    where = media, time, n_samples
    if reference == screen.control:
        found = each_with_direction(fit, list(groups), *where)
    else:
        pairs = ([name, reference] for name in groups)
        found = (_difference(*draws_and_direction(fit, pair, *where)) for pair in pairs)
    for name, (change, sure) in zip(groups, found):
        cells = _Cells(counted(label[name]), *detected(label[name]))
        names = name, reference
        options = delta, fdr_target, mean_library
        tables.append(_table(screen.genes, change, sure, names, (cells, other), *options))
    return pd.concat(tables)


def media_expression(
    fit: FittedScreen,
    groups: Sequence[str],
    reference: str | None,
    where: str | None,
    time: float | None,
    delta: float,
    fdr_target: float,
    n_samples: int,
    mean_library: float,
) -> pd.DataFrame:
    """scvi-tools' table of control cells in media against the baseline; see `PyroCell`.

    `reference` is the baseline or None, and `where`, a medium in which perturbations would be
    compared, is None.
    """
    _check(groups, n_samples, delta, fdr_target)
    screen = fit.screen
    if reference not in (None, screen.baseline_media) or screen.baseline_media in groups:
        raise ScreenError(
            f'media are compared with the baseline, group2="{screen.baseline_media}"; of two '
            "others predict() gives the counts"
        )
    if where is not None:
        raise ScreenError(
            f'media="{where}" cannot be asked for where media are compared; use group1='
        )
    cells = {
        medium: _Cells(
            counts_by_label(fit, medium, time)(screen.control),
            *_detected(fit, medium, time)(screen.control),
        )
        for medium in (*groups, screen.baseline_media)
    }
    tables = []
    for medium in groups:
        names = medium, screen.baseline_media
        sides = cells[medium], cells[screen.baseline_media]
        found = media_draws(fit, medium, time, n_samples)
        options = delta, fdr_target, mean_library
        tables.append(_table(screen.genes, *found, names, sides, *options))
    return pd.concat(tables)


def _check(groups: Sequence[str], n_samples: int, delta: float, fdr_target: float) -> None:
    """Raise ScreenError for what cannot be compared."""
    if not groups:
        raise ScreenError("there is nothing to compare; name perturbations or media in group1=")
    check_draws(n_samples)
    if not 0 < fdr_target < 1:
        raise ScreenError(f"fdr_target={fdr_target!r} must be between 0 and 1, such as 0.05")
    if not delta >= 0:
        raise ScreenError(f"delta={delta!r} must be a log2 fold change of at least 0")


@dataclass(frozen=True)
class _Cells:
    """Counts of some cells (G,), how many cells there are, and in how many a gene was seen (G,)."""

    counts: np.ndarray
    n: int
    seen: np.ndarray

    @property
    def share(self) -> np.ndarray:
        """Of all counts."""
        return self.counts / max(float(self.counts.sum()), 1.0)


def _difference(draws: np.ndarray, sure: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Draws (S, G) and probabilities of direction (G,) of one perturbation against another.

    Two differ where one has an effect: the probability is not above that of the surer of the two.
    """
    change = draws[:, 0] - draws[:, 1]
    direction = np.maximum((change > 0).mean(0), (change < 0).mean(0))
    return change, np.minimum(direction, sure.max(0))


def _table(
    genes: pd.Index,
    change: np.ndarray,
    sure: np.ndarray,
    names: tuple[str, str],
    cells: tuple[_Cells, _Cells],
    delta: float,
    fdr_target: float,
    mean_library: float,
) -> pd.DataFrame:
    """Genes of one comparison, from draws (S, G) in natural logs and probabilities of direction.

    Draws move even where nothing is known to: a change that may be no effect at all is not one
    beyond delta either, so that its probability is at most that of an effect in one direction.
    """
    change, (mine, other) = change / np.log(2), cells
    changed = np.minimum((np.abs(change) > delta).mean(0), sure)
    usable = np.maximum(mine.counts, other.counts) >= FEWEST_COUNTS
    listed = expected_false_signs(1 - changed, usable) <= fdr_target
    table = pd.DataFrame(
        {
            "proba_de": changed,
            "proba_not_de": 1 - changed,
            "bayes_factor": np.log(changed + _EPS) - np.log(1 - changed + _EPS),
            "scale1": other.share * 2 ** change.mean(0),
            "scale2": other.share,
            "pseudocounts": 0.0,
            "delta": delta,
            "lfc_mean": change.mean(0),
            "lfc_median": np.median(change, 0),
            "lfc_std": change.std(0),
            "lfc_min": change.min(0),
            "lfc_max": change.max(0),
            "raw_mean1": mine.counts / max(mine.n, 1),
            "raw_mean2": other.counts / max(other.n, 1),
            "non_zeros_proportion1": mine.seen / max(mine.n, 1),
            "non_zeros_proportion2": other.seen / max(other.n, 1),
            "raw_normalized_mean1": mean_library * mine.share,
            "raw_normalized_mean2": mean_library * other.share,
            f"is_de_fdr_{fdr_target}": listed,
            "comparison": f"{names[0]} vs {names[1]}",
            "group1": names[0],
            "group2": names[1],
        },
        index=pd.Index(genes.astype(str)),
    )
    return table.sort_values("bayes_factor", ascending=False, kind="stable")


def _detected(fit: FittedScreen, media: str, time: float | None) -> Any:
    """Cells of a label in a medium at a time, and in how many each gene was seen (G,)."""
    screen = fit.screen
    here = screen.at(media, screen.times[-1] if screen.times and time is None else time)

    def of(label: str) -> tuple[int, np.ndarray]:
        cells = np.flatnonzero((here & screen.carriers(label))[fit.data.condition])
        seen = np.zeros(len(screen.genes))
        for first in range(0, len(cells), _CELLS):
            rows = fit.data.counts[cells[first : first + _CELLS]]
            seen += np.bincount(rows.indices[rows.data > 0], minlength=len(seen))
        return len(cells), seen

    return of


def ranked_genes(effects: pd.DataFrame, reference: str) -> dict[str, Any]:
    """A table of effects as scanpy's `rank_genes_groups` leaves it in `.uns`.

    Genes of each perturbation are ordered by posterior mean over standard deviation, which are the
    scores. `pvals` holds the local false sign rate and `pvals_adj` the expected share of wrong
    signs in the list that ends at the gene: neither is a p-value, and `params` says so.
    """
    names = list(dict.fromkeys(effects["perturbation"]))
    parts = {}
    for name in names:
        mine = effects[effects["perturbation"] == name]
        score = (mine["mean"] / mine["sd"].clip(lower=1e-12)).to_numpy()
        order = np.argsort(-score, kind="stable")
        parts[str(name)] = (mine.iloc[order], score[order])

    def records(column: str, dtype: str) -> np.recarray:
        values = [part[column].to_numpy() for part, _ in parts.values()]
        if dtype == "O":
            values = [v.astype(str).astype(object) for v in values]
        return np.rec.fromarrays(values, dtype=[(name, dtype) for name in parts])

    scores = np.rec.fromarrays(
        [score for _, score in parts.values()], dtype=[(name, "f4") for name in parts]
    )
    return {
        "params": {
            "groupby": "perturbation",
            "reference": reference,
            "method": "pyrocell",
            "use_raw": False,
            "layer": None,
            "corr_method": "expected share of wrong signs; pvals: local false sign rate",
        },
        "names": records("gene", "O"),
        "scores": scores,
        "logfoldchanges": records("log2fc", "f4"),
        "pvals": records("lfsr", "f8"),
        "pvals_adj": records("fdr", "f8"),
    }
