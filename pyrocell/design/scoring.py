"""How well a layout answers: expected error and posterior uncertainty of every contrast."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pyrocell.design.inflation import contrast_weights, inflation
from pyrocell.design.layouts import Layout
from pyrocell.design.noise import Noise
from pyrocell.design.questions import target_weights
from pyrocell.design.uncertainty import Prior, batch_loading, prior_variances, variances
from pyrocell.errors import DesignError

__all__ = ["Score", "compare", "score"]

Targets = Mapping[str, float] | Sequence[str] | str | None


@dataclass(frozen=True)
class Score:
    """What a layout can be expected to tell; see `score`.

    Attributes
    ----------
    error
        Overall expected error: root of the weighted mean over kinds of the mean squared error,
        natural-log fold change.
    kinds
        A row per kind of question: n, error (root mean square), worst, prior_sd, known_sd, learned,
        inflation (median of those estimable), aliased and missing (how many).
    contrasts
        A row per contrast: contrast, perturbation, media, time; estimable and inflation as in
        `aliasing`; prior_sd; posterior_sd; known_sd, were batches known; learned, the share of the
        prior variance that the screen removes.
    """

    error: float
    kinds: pd.DataFrame
    contrasts: pd.DataFrame


def score(layout: Layout, noise: Noise | None = None, targets: Targets = None) -> Score:
    """Score a layout: what error each contrast can be expected to have, and why.

    Parameters
    ----------
    layout
        Measured or planned.
    noise
        Stated, or `Noise.from_model(model)`; typical values if None.
    targets
        Kinds of question that count, as names or as weights; all that the arms allow if None,
        equally. "perturbation", "media", "gain", "time", "change": see `contrast_weights`.

    Returns
    -------
    Score. Errors are root mean squares over genes. The expected error of a posterior mean and the
    posterior's standard deviation are one number, if the noise is as stated.

    Notes
    -----
    In closed form (`uncertainty.py`): no draws, no fit. `inflation` assumes nothing of effects and
    batches; `posterior_sd` assumes their sizes, so it stays finite where a contrast is aliased.
    """
    noise = noise or Noise()
    weights = target_weights(layout.kinds, targets)
    prior = Prior.of(noise, layout.arms, layout.baseline_media)
    rows, inverse, copies = np.unique(
        layout.cells[1:].reshape(len(layout.perturbations), -1),
        axis=0,
        return_inverse=True,
        return_counts=True,
    )
    perturbed = torch.from_numpy(rows.reshape(-1, *layout.cells.shape[1:]))
    data = (torch.from_numpy(layout.cells[0]), perturbed, torch.from_numpy(copies.astype(float)))
    eta = batch_loading(prior, torch.ones(len(layout.batches), dtype=torch.float64))
    eta = torch.cat([eta, prior.content_sd[:, None, None] * _content(layout)], -1)
    posterior = variances(prior, layout.kinds, *data, eta)
    known = variances(prior, layout.kinds, *data, eta[..., :0])
    before = prior_variances(prior, layout.kinds)
    table, sparse = contrast_weights(layout)
    ratio = inflation(layout, sparse)
    table["estimable"], table["inflation"] = np.isfinite(ratio), ratio

    def by_row(found: dict[str, Tensor]) -> np.ndarray:
        """Mean variances over genes, in the order of the table."""
        parts = []
        for kind in layout.kinds:
            mean = torch.einsum("q,qpn->pn", prior.share, found[kind.name]).numpy()
            if kind.perturbed:
                mean = mean[inverse.ravel()] if len(mean) > 1 else np.repeat(
                    mean, len(layout.perturbations), 0
                )  # fmt: skip
            parts.append(mean.ravel())
        return np.maximum(np.concatenate(parts), 0)

    squares = {"prior_sd": by_row(before), "posterior_sd": by_row(posterior)}
    squares["known_sd"] = by_row(known)
    table = table.assign(**{name: np.sqrt(value) for name, value in squares.items()})
    table["learned"] = 1 - squares["posterior_sd"] / np.maximum(squares["prior_sd"], 1e-300)
    kinds = _by_kind(table)
    errors = kinds["error"]
    error = sum(w * errors[name] ** 2 for name, w in weights.items())
    return Score(float(np.sqrt(error)), kinds, table)


def _content(layout: Layout) -> Tensor:
    """What batches contain (eq. 19), (B, F): fractions of controls and of media, centred."""
    total = np.maximum(layout.cells.sum((0, 1)), 1e-12)
    media = np.array([arm.media for arm in layout.arms])
    by_arm = layout.cells.sum(0)
    features = [layout.cells[0].sum(0)]
    features += [by_arm[media == m].sum(0) for m in dict.fromkeys(media)][1:]
    fractions = np.stack([f / total for f in features], -1)
    return torch.from_numpy(fractions - fractions.mean(0))


def _by_kind(table: pd.DataFrame) -> pd.DataFrame:
    """Summarise contrasts by kind."""
    rows = {}
    for name, part in table.groupby("contrast", sort=False):
        finite = part.loc[part["estimable"], "inflation"]
        rows[name] = {
            "n": len(part),
            "error": _rms(part["posterior_sd"]),
            "worst": part["posterior_sd"].max(),
            "prior_sd": _rms(part["prior_sd"]),
            "known_sd": _rms(part["known_sd"]),
            "learned": 1 - (part["posterior_sd"] ** 2).mean() / (part["prior_sd"] ** 2).mean(),
            "inflation": finite.median() if len(finite) else np.inf,
            "aliased": int(np.isinf(part["inflation"]).sum()),
            "missing": int(part["inflation"].isna().sum()),
        }
    return pd.DataFrame(rows).T.astype({"n": int, "aliased": int, "missing": int})


def _rms(values: pd.Series) -> float:
    return float(np.sqrt((values**2).mean()))


def compare(
    layouts: Mapping[str, Layout], noise: Noise | None = None, targets: Targets = None
) -> pd.DataFrame:
    """Score several layouts side by side.

    Returns
    -------
    DataFrame with a row per layout, best first: error, its ratio to the best, cells, controls
    (share), the error of every kind, how many contrasts are aliased.

    Raises
    ------
    DesignError
        If there is no layout.
    """
    if not layouts:
        raise DesignError("no layouts to compare")
    rows = {}
    for name, layout in layouts.items():
        found = score(layout, noise, targets)
        rows[name] = {
            "error": found.error,
            "cells": tidy(layout.cells.sum()),
            "controls": tidy(layout.cells[0].sum() / layout.cells.sum()),
            **found.kinds["error"].to_dict(),
            "aliased": found.kinds["aliased"].sum(),
        }
    table = pd.DataFrame(rows).T.sort_values("error", kind="stable")
    table.insert(1, "ratio", table["error"] / table["error"].iloc[0])
    return table.astype({"aliased": int})


def tidy(value: float) -> float:
    """A number without the noise of its last bits, such as .3 for .30000000000000004."""
    return float(f"{value:.9g}")
