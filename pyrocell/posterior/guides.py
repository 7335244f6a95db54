"""What each guide does: how far it goes, how many of its cells responded, whether it agrees."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pandas as pd
import scipy.sparse as sp

from pyrocell.assumptions.guide_agreement import (
    AGREE,
    Found,
    GuideContrast,
    OffTarget,
    guide_contrasts,
    guide_groups,
    one_is_off,
)
from pyrocell.contrasts.levels import condition_levels
from pyrocell.data.loader import CellDataset
from pyrocell.errors import ScreenError
from pyrocell.posterior.draws import check_level
from pyrocell.posterior.effects import effect_draws
from pyrocell.posterior.fitted_screen import FittedScreen
from pyrocell.posterior.gene_level.states import GeneLevel
from pyrocell.posterior.strength.cell_evidence import EffectPath, log_evidence
from pyrocell.posterior.strength.mixture import response_of

__all__ = ["agreement", "guide_table", "response_probability", "response_share"]

_DRAWS = 16  # of effects, for their mean


def _kept(fit: FittedScreen) -> GeneLevel:
    kept = fit.gene_level
    if kept is None or "guide_efficacy" not in kept.tensors:
        raise ScreenError(
            "the model does not know guides: register them by setup_anndata(adata, guide_key=...) "
            "and train(guides=True); models without a gene-level posterior have no guides"
        )
    return kept


def _labels(fit: FittedScreen) -> np.ndarray:
    """Names of the sets of perturbations that pairs of a kept posterior count on."""
    screen = fit.screen
    return np.unique(screen.conditions["perturbation"].astype(str)[~screen.is_control])


def guide_names(fit: FittedScreen) -> list[str]:
    """Names of the pairs that sites of guides have, "A | guide"; none where guides are unknown."""
    kept = fit.gene_level
    if kept is None or "guide_label" not in kept.tensors:
        return []
    labels, guides = _labels(fit), [*fit.screen.guides, "not known"]
    pairs = zip(kept.array("guide_label"), kept.array("guide_number"), strict=True)
    return [f"{labels[k]} | {guides[g]}" for k, g in pairs]


def efficacies(kept: GeneLevel) -> tuple[np.ndarray, np.ndarray]:
    """Draws of a and of ρ, (draws, pairs): a cell that responded has 1 on average."""
    n_pairs = len(kept.guide_label)
    a = kept.array("guide_efficacy").reshape(-1, n_pairs).astype(float)
    escapers = kept.array("guide_escapers").reshape(-1, n_pairs).astype(float)
    label, cells = kept.array("guide_label"), kept.array("guide_cells")
    member = sp.csr_array((np.ones(n_pairs), (np.arange(n_pairs), label)))
    weight = cells * (1 - escapers)
    usual = ((a * weight) @ member) / np.maximum(weight @ member, 1e-12)
    return a / usual[:, label], escapers


def guide_table(fit: FittedScreen, credible_level: float, region: float) -> pd.DataFrame:
    """One row per perturbation and guide; see `PyroCell.guides`."""
    check_level(credible_level)
    kept, screen = _kept(fit), fit.screen
    a, escapers = efficacies(kept)
    label, number = kept.array("guide_label"), kept.array("guide_number")
    tails = [(1 - credible_level) / 2, (1 + credible_level) / 2]
    names = np.array([*screen.guides, ""], dtype=object)
    low, high = np.quantile(a, tails, axis=0)
    share_low, share_high = np.quantile(1 - escapers, tails, axis=0)
    out = pd.DataFrame(
        {
            "perturbation": _labels(fit)[label],
            "guide": names[number],
            "n_cells": kept.array("guide_cells"),
            "efficacy": a.mean(0),
            "lower": low,
            "upper": high,
            "response_share": 1 - escapers.mean(0),
            "response_lower": share_low,
            "response_upper": share_high,
        }
    )
    out = out[number >= 0].reset_index(drop=True)
    keys = list(zip(out["perturbation"], out["guide"], strict=True))
    own: dict[tuple, list[tuple[float, float]]] = {}
    for contrast, found, agrees in _of_guides(fit, region):
        key = contrast.perturbation, screen.guides[contrast.guide]
        own.setdefault(key, []).append((agrees, float(np.asarray(found["size"]))))
    out["off_target"] = [max((s for _, s in own.get(k, [])), default=np.nan) for k in keys]
    out["agree"] = [min((p for p, _ in own.get(k, [])), default=np.nan) for k in keys]
    return out


def _of_guides(fit: FittedScreen, region: float) -> list[tuple[GuideContrast, Found, float]]:
    """Every guide that could be compared, what was found, and the probability that it agrees."""
    out = []
    for mine in agreement(fit, region, 5.0, 1)[0].values():
        agrees = one_is_off([np.asarray(f["against"]) for _, f in mine], AGREE)[1]
        out += [(c, f, float(p)) for (c, f), p in zip(mine, agrees, strict=True)]
    return out


def agreement(
    fit: FittedScreen, region: float, min_count: float, n_samples: int
) -> list[dict[tuple[str, str], list[tuple[GuideContrast, Found]]]]:
    """For draws of the width of batch noise: guides of each perturbation in each medium."""
    screen, data = fit.screen, fit.data
    if screen.cell_guide is None or data.conditions is not None:
        return []
    groups = guide_groups(screen)
    contrasts = guide_contrasts(screen, groups)
    if not contrasts:
        return []
    size, loading = data.size, fit.axes_of_state()
    effect = _effects(fit, {c for each in contrasts for c in each.conditions})
    out = []
    for scale in _scales(fit, n_samples):
        levels = condition_levels(data.counts, size, groups.of_cell, data.batch, scale)
        judge = OffTarget(levels, effect, loading, region, min_count)
        found: dict[tuple[str, str], list[tuple[GuideContrast, Found]]] = {}
        for contrast in contrasts:
            key = contrast.perturbation, contrast.media
            found.setdefault(key, []).append((contrast, judge.of(screen, contrast)))
        out.append(found)
    return out


def _scales(fit: FittedScreen, n_samples: int) -> list[np.ndarray]:
    """Draws of the standard deviation of batch noise, both levels of it together."""
    screen = fit.screen
    if len(screen.batches) < 2:
        return [np.ones(len(screen.genes))]
    sites = ["eta.scale", *["eta.laboratory_scale"] * fit.model.noise.has_laboratories]
    draws = fit.posterior.samples(n_samples, sites)
    squares = [np.asarray(d, float) ** 2 for d in draws.values()]
    return list(np.sqrt(np.sum(squares, 0)))


def _effects(fit: FittedScreen, conditions: set[int]) -> np.ndarray:
    """(C, G) posterior means of effects, of the conditions asked for."""
    screen, kept = fit.screen, fit.gene_level
    if kept is not None and "guide_effect" in kept.tensors:
        return kept.array("guide_effect").astype(float)
    out = np.zeros((len(screen.conditions), len(screen.genes)))
    table = screen.conditions.loc[sorted(conditions)]
    for (media, time), mine in table.groupby(["media", "time"], dropna=False):
        when = None if np.isnan(float(cast("Any", time))) else float(cast("Any", time))
        draws = effect_draws(fit, mine["perturbation"].tolist(), str(media), when, _DRAWS)
        out[mine.index] = draws.mean(0)
    return out


# ---------------------------------------------------------------------- cells
def response_share(fit: FittedScreen) -> pd.Series | None:
    """Share of the cells of every label that responded, by label; None where guides are unknown."""
    kept = fit.gene_level
    if kept is None or "guide_escapers" not in kept.tensors:
        return None
    share = 1 - kept.array("guide_escapers").mean((0, 1))
    cells, label = kept.array("guide_cells"), kept.array("guide_label")
    mean = np.bincount(label, share * cells) / np.maximum(np.bincount(label, cells), 1)
    return pd.Series(mean, _labels(fit)[: len(mean)])


def response_probability(
    fit: FittedScreen, cells: CellDataset, guide: np.ndarray | None
) -> np.ndarray:
    """Probability that each cell responded, (n,); see `PyroCell.response_probability`.

    Parameters
    ----------
    cells, guide
        The cells, and the guide of each, -1 where it is not known.
    """
    kept, screen = _kept(fit), fit.screen
    if cells.conditions is not None:
        raise ScreenError("the cells have conditions that this model was not built for")
    names, labels = _labels(fit), screen.conditions["perturbation"].astype(str).to_numpy()
    label = np.searchsorted(names, labels[cells.condition])
    guide = np.full(len(cells), -1) if guide is None else guide
    known = {
        pair: i for i, pair in enumerate(zip(kept.array("guide_label"), kept.array("guide_number")))
    }
    perturbed = ~screen.is_control[cells.condition]
    pair = np.array([known.get((k, g), -1) for k, g in zip(label, guide)])
    if (perturbed & (pair < 0)).any():
        row = int(np.flatnonzero(perturbed & (pair < 0))[0])
        raise ScreenError(
            f"cell {row} has a guide of {names[label[row]]} that the model did not see with it"
        )
    rows = np.flatnonzero(perturbed)
    out = np.zeros(len(cells))
    most = kept.array("guide_most")
    path = _path(fit, kept)
    draws = [kept.array(f"guide_{n}").reshape(-1, len(known)) for n in ("efficacy", "escapers")]
    for first in range(0, len(rows), 4096):
        mine = rows[first : first + 4096]
        held = sp.csr_matrix(cells.counts[mine])
        held.data = np.minimum(held.data, most[held.indices])
        told = log_evidence(
            held, cells.log_size[mine], cells.condition[mine], cells.batch[mine], path
        )
        out[mine] = response_of(told, *(each[:, pair[mine]] for each in draws))
    return out


def _path(fit: FittedScreen, kept: GeneLevel) -> EffectPath:
    """Mean path of cells from rest to each condition; noise by batch, the mean of its groups."""
    theta = np.exp(kept.array("log_theta").mean(0)) / kept.array("guide_scale")
    eta, home = kept.array("eta").mean(0), kept.array("batch_of_group")
    eta = np.stack([eta[home == b].mean(0) for b in range(int(home.max()) + 1)])
    level, effect = kept.array("guide_level"), kept.array("guide_effect")
    shares = fit.model.config.composition
    return EffectPath(level, effect, eta, fit.axes_of_state(), theta, shares)
