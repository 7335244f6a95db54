"""Do effects hold on this screen: against the counts alone, against controls, with labels shuffled.

Three standing checks of a fit. What the posterior says of well-counted genes has to lie within
what the counts alone allow. What all perturbations do alike may be the controls' own difference
(handled, sampled or labelled otherwise). And labels that mean nothing must have no effects.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.stats import norm

from pyrocell._compat import obs_table, var_table
from pyrocell.errors import UnknownLabelError
from pyrocell.screen.screen import Screen

__all__ = [
    "FEW_TO_JUDGE",
    "common_effect",
    "disagreement",
    "disagreements",
    "effect_checks",
    "of_all_cells",
    "shuffle_table",
    "shuffled",
    "shuffled_cells",
]

Ask = Callable[..., pd.DataFrame]  # `PyroCell.perturbation_effects` of a fitted model

_WELL_COUNTED = 50  # counts in both groups of cells
FEW_TO_JUDGE = 25  # well-counted genes of a condition, below which it is not judged
_GENES = 400  # best counted, in which a common effect is judged
_OUTSIDE = 0.99  # mass of the counts' own interval
_MOST_OUTSIDE = 0.03
_MOST_COMMON = 0.05  # natural-log fold change
_CHANCE = 1.5  # times what perturbations that do different things have in common by chance
_MOST_EXCLUDING, _MOST_LISTED = 0.1, 0.002
_FEW_PAIRS = 3  # that may be listed by chance in a small table
_LIST = 0.1  # expected share of wrong signs in a list


def _outside(effects: pd.DataFrame, counts_alone: pd.DataFrame) -> pd.DataFrame:
    """Well-counted pairs: what the counts alone say of the posterior means.

    `outside`: whether they speak against one; `agreement` over `weight`, summed over pairs, is the
    slope of the counts' own effects on the posterior means, weighted by precision.
    """
    keys = ["perturbation", "media", "time", "gene"]
    both = effects.merge(counts_alone, on=keys, suffixes=("", "_alone"))
    well = (both["count"] >= _WELL_COUNTED) & (both["count_control"] >= _WELL_COUNTED)
    both = both[well]
    # counts are set against those of all genes, effects against untouched ones
    shift = (both["mean"] - both["mean_alone"]).groupby(both["perturbation"]).transform("median")
    away = (both["mean"] - both["mean_alone"] - shift).abs()
    width = norm.ppf(0.5 + _OUTSIDE / 2) * np.hypot(both["sd_alone"], 0.02)
    weight = 1 / (both["sd_alone"] ** 2 + 0.02**2)
    return both[["perturbation", "media", "time"]].assign(
        outside=away > width,
        weight=weight * both["mean"] ** 2,
        agreement=weight * both["mean"] * (both["mean_alone"] + shift),
    )


def disagreement(effects: pd.DataFrame, counts_alone: pd.DataFrame) -> float:
    """Share of well-counted pairs whose posterior mean is outside the counts' own 99% interval.

    Parameters
    ----------
    effects, counts_alone
        Tables of :meth:`pyrocell.PyroCell.perturbation_effects`, shrunken and not; NaN if no
        perturbation and gene with 50 counts in both groups of cells is in both.
    """
    both = _outside(effects, counts_alone)
    return float(both["outside"].mean()) if len(both) else np.nan


def of_all_cells(effects: pd.DataFrame, share: pd.Series | None) -> pd.DataFrame:
    """Effects of cells that responded as means over all cells of their label.

    Parameters
    ----------
    share
        Of the cells of each label that responded; None: all.
    """
    if share is None:
        return effects
    part = effects["perturbation"].map(share).astype(float).fillna(1.0)
    mean = np.log1p(part * np.expm1(effects["mean"].astype(float)))
    return effects.assign(mean=mean)


def disagreements(ask: Ask, effects: pd.DataFrame, share: pd.Series | None = None) -> pd.DataFrame:
    """What the counts alone say of each condition of a table of effects, wherever they can.

    `share` of the cells of each label responded (all by default): the counts are those of all.

    Returns
    -------
    DataFrame with perturbation, media, time; outside, the share of `disagreement`; n_genes, of the
    well-counted ones; slope and slope_se, of the counts' own effects on the posterior means. A
    posterior that shrinks has a slope of 1 or more; effects that are too large, of another sign or
    of another perturbation have less.
    """
    found = []
    effects = of_all_cells(effects, share)
    places = effects.groupby(["media", "time"], sort=False, dropna=False)
    for (media, time), mine in places:
        when = None if np.isnan(float(cast("Any", time))) else time
        singles = list(dict.fromkeys(mine["perturbation"]))
        try:
            alone = ask(singles, media=media, time=when, shrunken=False)
        except UnknownLabelError:  # no controls, or no perturbation alone, there and then
            continue
        both = _outside(mine, alone)
        groups = both.groupby(["perturbation", "media", "time"], sort=False, dropna=False)
        table = groups["outside"].agg(outside="mean", n_genes="size")
        sums = groups[["agreement", "weight"]].sum()
        table["slope"] = sums["agreement"] / sums["weight"].clip(lower=1e-12)
        table["slope_se"] = 1 / np.sqrt(sums["weight"].clip(lower=1e-12))
        found.append(table.reset_index())
    columns = ["perturbation", "media", "time", "outside", "n_genes", "slope", "slope_se"]
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=columns)


def common_effect(effects: pd.DataFrame) -> float:
    """Root mean square, over the best-counted genes, of the median effect of all perturbations.

    The median, since what a few perturbations do is not what all of them do.
    """
    counted = effects.groupby("gene", observed=True)["count_control"].first()
    counted = counted + effects.groupby("gene", observed=True)["count"].sum()
    best = counted.nlargest(_GENES).index
    middle = effects.groupby("gene", observed=True)["mean"].median()[best]
    return float(np.sqrt((middle**2).mean()))


def common_by_chance(effects: pd.DataFrame) -> float:
    """What `common_effect` comes to by chance, where perturbations do different things.

    The median over n perturbations of effects with standard deviation s has one of 1.25 s / √n.
    s is a robust one (of deviations from the gene's median), so that what a few perturbations do
    does not hide what all of them do.
    """
    middle = effects.groupby("gene", observed=True)["mean"].transform("median")
    away = (effects["mean"] - middle).abs().groupby(effects["gene"], observed=True).median()
    counted = effects.groupby("gene", observed=True)["count_control"].first()
    counted = counted + effects.groupby("gene", observed=True)["count"].sum()
    spread = 1.4826 * away[counted.nlargest(_GENES).index]
    n = max(1, effects["perturbation"].nunique())
    return float(1.2533 * np.sqrt((spread**2).mean() / n))


def effect_checks(
    ask: Ask,
    screen: Screen,
    effects: pd.DataFrame | None = None,
    share: pd.Series | None = None,
) -> pd.DataFrame:
    """See :meth:`pyrocell.PyroCell.effect_checks`; `effects` of a report, if there are any.

    `share` of the cells of each label responded; all by default.
    """
    baseline, columns, rows = screen.baseline_media, ["check", "value", "verdict", "reason"], []
    if not screen.perturbations:
        return pd.DataFrame(rows, columns=columns)
    if effects is None:
        effects = ask(n_samples=50)
    here = of_all_cells(effects[effects["media"] == baseline], share)
    try:
        alone = ask(shrunken=False, time=None if not screen.times else here["time"].iloc[0])
        outside = disagreement(here, alone)
    except UnknownLabelError:  # no perturbation was measured alone in the baseline medium
        outside = np.nan
    if not np.isnan(outside):
        good = outside <= _MOST_OUTSIDE
        rows.append(
            (
                "effects outside what counts alone allow",
                outside,
                "good" if good else "poor",
                "share of well-counted genes whose posterior mean is outside the 99% interval of "
                "shrunken=False",
            )
        )
    if here["perturbation"].nunique() > 1:
        common = common_effect(here)
        most = max(_MOST_COMMON, _CHANCE * common_by_chance(here))
        rows.append(
            (
                "effect common to all perturbations",
                common,
                "good" if common <= most else "controls differ",
                "root mean square, natural log, of the median over perturbations in the best "
                "counted genes; where it is large ask whether controls were handled as others were",
            )
        )
    return pd.DataFrame(rows, columns=columns)


# ---------------------------------------------------------------------- shuffled labels
def shuffled(adata: AnnData, arguments: dict[str, Any], seed: int) -> AnnData:
    """The cells with their labels permuted within batch, medium and time: every effect is zero.

    Parameters
    ----------
    arguments
        Those of `setup_anndata`.
    """
    named = lambda *keys: [arguments[k] for k in keys if arguments.get(k)]  # noqa: E731
    within = [
        column
        for column in named("batch_key", "media_key", "time_key", "laboratory_key")
        if column in adata.obs
    ]
    labels = named(
        *("perturbation_key", "perturbation_type_key", "guide_key"),
        *("perturbation_time_key", "media_time_key"),
    )
    rng, order = np.random.default_rng(seed), np.arange(adata.n_obs)
    codes = [pd.factorize(adata.obs[column])[0] for column in within]
    together = [order.copy()]
    if codes:
        groups = pd.DataFrame(dict(enumerate(codes)), index=order)
        together = list(groups.groupby(list(groups)).indices.values())
    for rows in together:
        order[rows] = rng.permutation(rows)
    if (matrix := arguments.get("guide_matrix_key")) is not None:
        guides = adata.obsm[matrix]
        table = isinstance(guides, pd.DataFrame)
        moved = guides.iloc[order].set_axis(guides.index) if table else guides[order]
        adata.obsm[matrix] = moved
    for column in labels:
        adata.obs[column] = adata.obs[column].to_numpy()[order]
    return adata


def shuffled_cells(adata: AnnData, arguments: dict[str, Any], n_cells: int, seed: int) -> AnnData:
    """Some of the cells in memory, their counts and the columns that were registered, shuffled.

    Parameters
    ----------
    arguments
        Those of `setup_anndata`.
    n_cells
        At most; drawn at random.
    """
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.permutation(adata.n_obs)[:n_cells])
    some = adata[rows].to_memory() if adata.isbacked else adata[rows].copy()
    layer = arguments.get("layer")
    counts = some.layers[layer] if layer else some.X
    columns = [v for k, v in arguments.items() if k.endswith("_key") and v in some.obs]
    columns += [c for k, v in arguments.items() if k.endswith("_keys") for c in v or ()]
    obs = obs_table(some)[list(dict.fromkeys(columns))].copy()
    plain = AnnData(counts, obs=obs, var=var_table(some).copy())
    if (matrix := arguments.get("guide_matrix_key")) is not None:
        plain.obsm[matrix] = some.obsm[matrix]
        named = (matrix, arguments.get("guide_targets"))
        plain.uns.update({n: some.uns[n] for n in named if isinstance(n, str) and n in some.uns})
    return shuffled(plain, arguments, seed)


def shuffle_table(ask: Ask, screen: Screen, n_samples: int) -> pd.DataFrame:
    """What a model of shuffled cells says; see :meth:`pyrocell.PyroCell.shuffle_check`."""
    found = []
    for media in (screen.baseline_media, *screen.media):
        for time in screen.times or (None,):
            if not (screen.conditions["media"] == media).any():
                continue
            table = ask(media=media, time=time, n_samples=n_samples)
            excluding = float(((table["lower"] > 0) | (table["upper"] < 0)).mean())
            listed = float((table["fdr"] <= _LIST).mean())
            common = common_effect(table)
            few = listed <= max(_MOST_LISTED, _FEW_PAIRS / len(table))
            good = excluding <= _MOST_EXCLUDING and few
            good = good and common <= _MOST_COMMON
            found.append(
                {
                    "media": media,
                    "time": np.nan if time is None else float(time),
                    "excluding_zero": excluding,
                    "listed": listed,
                    "common": common,
                    "p_below_5": _share_of_small_p(ask, media, time),
                    "verdict": "good" if good else "poor",
                }
            )
    return pd.DataFrame(found)


def _share_of_small_p(ask: Ask, media: str, time: float | None) -> float:
    """Share of p below .05 in the counts alone, among genes with counts enough to tell."""
    try:
        table = ask(media=media, time=time, shrunken=False)
    except UnknownLabelError:  # no controls, or no perturbation alone, there and then
        return np.nan
    seen = table["count"] + table["count_control"] >= _WELL_COUNTED
    return float((table["p"] < 0.05)[seen].mean()) if seen.any() else np.nan
