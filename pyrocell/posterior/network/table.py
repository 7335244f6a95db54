"""Directed edges between genes as a table, and what each rests on."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from pyrocell._core.messages import did_you_mean
from pyrocell.errors import ScreenError, UnknownLabelError
from pyrocell.posterior.draws import check_draws, check_level
from pyrocell.posterior.effects import effect_draws
from pyrocell.posterior.fitted_screen import FittedScreen
from pyrocell.posterior.gene_level.counts import LevelCounts
from pyrocell.posterior.network.edges import sample_edges
from pyrocell.posterior.network.readings import measured_effects

__all__ = ["network_table", "regulator_table"]

_LOSSES = 60  # draws of how far regulators are lost
_COLUMNS = (
    *("regulator", "target", "mean", "sd", "lower", "upper", "probability", "p_size"),
    *("total", "total_lower", "total_upper", "rests_on", "identified"),
)


def network_table(
    fit: FittedScreen,
    counts: LevelCounts,
    regulators: str | Sequence[str] | None,
    targets: str | Sequence[str] | None,
    media: str,
    region: float,
    credible_level: float,
    n_samples: int,
    seed: int,
    virtual: bool = False,
) -> pd.DataFrame:
    """One row per regulator and target; see `PyroCell.network`."""
    check_draws(n_samples)
    check_level(credible_level)
    if not region >= 0:
        raise ScreenError(f"region={region} must not be below 0: it is a natural-log fold change")
    screen = fit.screen
    effects, names = measured_effects(fit, counts, media, min(n_samples, _LOSSES))
    genes = list(screen.genes)
    asked = names if regulators is None else _listed(regulators)
    if virtual:  # genes that are no measured perturbation's own
        perturbed = {genes[g] for g in effects.own if g >= 0}
        asked = [*asked, *(g for g in genes if g not in perturbed and g not in names)]
    places = _positions(genes if targets is None else _listed(targets), genes, "target")
    _positions(asked, [*names, *genes], "regulator")
    found = sample_edges(effects, n_samples, seed)
    time = screen.times[-1] if screen.times else None
    total = effect_draws(fit, names, media, time, n_samples)
    ends = [(1 - credible_level) / 2, (1 + credible_level) / 2]
    known = [name for name in asked if name in names]
    rows = np.array([names.index(name) for name in known], dtype=int)
    some = np.ix_(rows, places)
    table = _summary(found.size[:, rows][:, :, places], region, ends)
    table |= {"probability": found.probability[some]}
    table |= dict(zip(("total_lower", "total_upper"), np.quantile(total, ends, axis=0)))
    table |= {"total": total.mean(0)}
    for name in ("total", "total_lower", "total_upper"):
        table[name] = table[name][some]
    basis = "timed" if len(effects.times) > 1 else "measured"
    parts = [_long(table, known, screen.genes[places], basis, True)]
    parts[0] = parts[0][np.ravel(effects.own[rows][:, None] != places)]
    if others := [name for name in asked if name not in names]:
        size = _clamped(fit, np.array([genes.index(name) for name in others]), n_samples)
        table = _summary(size[:, :, places], region, ends)
        nothing = np.full((len(others), len(places)), np.nan)
        table |= {name: nothing for name in ("total", "total_lower", "total_upper")}
        table |= {"probability": np.full(nothing.shape, found.share.mean())}
        rest = _long(table, others, screen.genes[places], "virtual", False)
        parts.append(rest[(rest["regulator"] != rest["target"]).to_numpy()])
    kept = [part for part in parts if len(part)] or parts[:1]
    with warnings.catch_warnings():  # totals of what was not perturbed are all missing
        warnings.simplefilter("ignore", FutureWarning)
        out = pd.concat(kept, ignore_index=True)
    out.attrs = {"media": media, "region": region, "credible_level": credible_level}
    return out


def regulator_table(table: pd.DataFrame) -> pd.DataFrame:
    """Edges of one target, the likeliest first and what is not identified last."""
    order = ["identified", "probability", "p_size"]
    return table.sort_values(order, ascending=False, kind="stable").reset_index(drop=True)


def _listed(names: str | Sequence[str]) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


def _positions(names: Sequence[str], known: Sequence[str], what: str) -> np.ndarray:
    """Positions of names, (n,)."""
    where = {name: i for i, name in reversed(list(enumerate(known)))}
    for name in names:
        if name not in where:
            raise UnknownLabelError(
                f'{what} "{name}" is not in the screen{did_you_mean(str(name), list(known))}'
            )
    return np.array([where[name] for name in names], dtype=int)


def _summary(size: np.ndarray, region: float, ends: Sequence[float]) -> dict[str, np.ndarray]:
    """Columns of sizes (S, n, G)."""
    lower, upper = np.quantile(size, ends, axis=0)
    return {
        "mean": size.mean(0),
        "sd": size.std(0),
        "lower": lower,
        "upper": upper,
        "p_size": (np.abs(size) > region).mean(0),
    }


def _long(
    columns: dict[str, np.ndarray], regulators: list[str], genes: pd.Index, basis: str, sure: bool
) -> pd.DataFrame:
    """Columns (regulators, genes) as one row per pair."""
    index = pd.MultiIndex.from_product([regulators, genes], names=["regulator", "target"])
    out = pd.DataFrame({k: np.ravel(v) for k, v in columns.items()}, index=index).reset_index()
    return out.assign(rests_on=basis, identified=sure)[list(_COLUMNS)]


def _clamped(fit: FittedScreen, genes: np.ndarray, n_samples: int) -> np.ndarray:
    """Draws of what other genes are where one is a natural-log unit lower, (S, genes, G).

    One gene is held in the posterior of the resting state, the state is conditioned on it and
    decoded: with loadings D and overdispersion 1/θ of its own, −D_r·D_g / (D_r·D_r + 1/θ_r).
    """
    view, d = fit.model.measurement, fit.model.config.n_latent
    draws = fit.posterior.samples(n_samples, ["V.loading", "V.baseline", "V.dispersion"])
    out = []
    for loading, baseline, theta in zip(*draws.values(), strict=True):
        axes = view.gauge(torch.as_tensor(loading[:d]), torch.as_tensor(baseline)).numpy()
        own = axes[:, genes]
        width = (own**2).sum(0) + 1 / theta[genes]
        out.append(-(own.T @ axes) / width[:, None])
    return np.stack(out)
