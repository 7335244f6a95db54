r"""How far batch noise carries a learned map from the truth: ε(x, t) of eqs. 20-22.

A fitted model maps a source cell of log expression x, measured in batch b' as x + η^b', to its
condition in batch b by

    F_L(x, c, b' → b) = E(S (x - η^b' - β)) + s_c + η^b,

S the Gauss-Newton answer of the resting state z to a shift of log expression (`encoder.py`: that is
how batch noise gets into z), E(z) the log expression of a cell in state z, s_c the condition's
shift. It obeys eq. 18. A clean x = E(z) then comes out wrong by

    F - F_L = -η^b + [E(z) - E(z - S η^b')] = -η^b + ∇F η^b' + remainder,    ∇F = E'(z) S,

and F_* averages over the batches b that hold the condition and those b' that hold unperturbed cells
in baseline medium (eq. 17; eq. 18 can be learned in no other b). The response is added to log
expression whatever z, so ∇F is the same for all conditions and exact: E' is the loading plus
the slope of the decoder's features, no numerical derivative. All is in the gauge of `eta`, where
softmax is linear.

The average over b and b' stands *inside* the square of eq. 20. The last line of eq. 22 has it
outside, which is an upper bound (Jensen), not an equality: it is returned as the term `bound`.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pyrocell.errors import DesignError, warn
from pyrocell.generative.model import GenerativeModel
from pyrocell.guide.encoder import state_shift
from pyrocell.posterior.draws import summarise
from pyrocell.posterior.populations import resting_cells, resting_states

if TYPE_CHECKING:
    from pyrocell.model import PyroCell

__all__ = ["TERMS", "carried_noise", "error_analysis", "error_terms"]

TERMS = ("own", "propagated", "cross", "remainder", "total", "bound", "own_bound", "same_batch")
ALL = "all"


def error_analysis(
    model: PyroCell,
    n_samples: int = 200,
    *,
    n_states: int = 32,
    depth: float = 1.0,
    remaining: bool = False,
    credible_level: float = 0.9,
) -> pd.DataFrame:
    """ε of eq. 20 for a fitted model, by the terms of eq. 22.

    Parameters
    ----------
    model
        A trained `PyroCell` of at least two batches.
    n_samples
        Posterior draws, of η and of all that the map is made of.
    n_states
        Unperturbed cells x over whose resting states each draw is averaged.
    depth
        Counts of the source relative to an average cell: 100 for the sum of 100 cells. The deeper
        it is, the closer ∇F comes to 1 along the axes of cell state.
    remaining
        False: batch noise as it is, the error of a map that averages over batches and subtracts
        nothing (eq. 17). True: what the posterior leaves open of it, η - E[η], the error of
        this model, which subtracts what it has learned.
    credible_level
        Mass of the intervals, over posterior draws.

    Returns
    -------
    DataFrame with a row per condition and term, and with perturbation and media "all" the mean over
    conditions at each time, which is ε(x, t): perturbation, media, time, n_batches, term, mean, sd,
    lower, upper; squares of natural-log fold changes, averaged over genes. Terms:

    - `own`: noise of the condition's own batches, averaged over them;
    - `propagated`: noise of the source's batches through ∇F;
    - `cross`: twice their product; they have opposite signs, so it is negative where the source is
      in the condition's batches;
    - `remainder`: all that is beyond the first order in η, with its products;
    - `total`: the sum of these, ε;
    - `bound`: the last line of eq. 22; at least `total`, by Jensen's inequality;
    - `own_bound`: the first term of the bound, which averaging over batches does not reduce;
    - `same_batch`: what ε would be, had source and condition been measured in one batch, the mean
      over the condition's batches; zero only where ∇F = 1.

    Raises
    ------
    DesignError
        If there is one batch, or no batch with unperturbed cells in baseline medium.

    Notes
    -----
    What the fit takes for an effect it does not count as noise: with controls in few batches errors
    are understated even where nothing is aliased (docs/design.md has figures).

    Warns
    -----
    ScreenWarning
        If the layout cannot tell some contrasts from batch noise: what passes for an effect is not
        in the posterior of η, and errors are understated.
    """
    screen, generative = model.screen, model.module.model
    held, source = _held(model)
    if n_states < 1 or not depth > 0:
        raise DesignError(f"n_states={n_states} must be at least 1, depth={depth} above 0")
    fit, guide = model.fitted, model.module.guide
    population = resting_cells(fit.data, generative, fit.posterior.seed)
    expected = fit.posterior.mean()["eta"] if remaining else 0.0
    draws = []
    for s, values in enumerate(fit.posterior.draws(n_samples)):
        with torch.no_grad():
            z = resting_states(guide, values, population, s, fit.data.conditions)[:n_states]
            eta = values["eta"] - expected
            gauge = partial(generative.measurement.gauge, log_weight=values["V.baseline"])
            eta = gauge(eta)
            first, rest = carried_noise(generative, values, eta, z, guide.mean_count, depth)
            first, rest = gauge(first), gauge(rest)
            eta, first, rest = (a.cpu().numpy().astype(float) for a in (eta, first, rest))
        draws.append(error_terms(eta, first, rest, held, source))
    return _table(draws, screen.conditions, held, credible_level)


def carried_noise(
    generative: GenerativeModel,
    values: dict[str, Tensor],
    eta: Tensor,
    z: Tensor,
    mean: Tensor,
    depth: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """∇F η of every batch at every state, and what E(z) - E(z - S η) has beyond it.

    Parameters
    ----------
    generative, values
        The generative model and its global sites.
    eta
        (B, G) log-mean shift of each batch.
    z
        (n, d) resting states.
    mean
        (G,) mean counts of an average cell.
    depth
        Of the source, relative to it.

    Returns
    -------
    Two tensors (n, B, G).
    """
    depths = eta.new_full((len(eta),), depth)
    moved = state_shift(
        eta, depths, generative.loading, mean, generative.measurement.theta(values)
    )  # (B, d)
    slope = generative.loading[None]
    if generative.config.decoder == "curved":
        slope = slope + generative.curvature.slope(z) @ values["V.curvature"]
    first = moved @ slope  # (n | 1, B, G)
    before = generative.resting_logits(values, z)
    after = (z[:, None] - moved).reshape(-1, z.shape[1])
    after = generative.resting_logits(values, after).reshape(len(z), len(eta), -1)
    return first.expand_as(after), before[:, None] - after - first


def error_terms(
    eta: np.ndarray, first: np.ndarray, rest: np.ndarray, held: np.ndarray, source: np.ndarray
) -> dict[str, np.ndarray]:
    """Terms of ε of each condition, (C,) each; see `error_analysis`.

    Parameters
    ----------
    eta
        (B, G) batch noise.
    first, rest
        (n, B, G) from `carried_noise`.
    held
        (C, B) whether a batch holds the condition.
    source
        (B,) whether it holds unperturbed cells in baseline medium.
    """
    share = held / held.sum(1, keepdims=True)
    own = -share @ eta  # (C, G)
    propagated, beyond = first[:, source].mean(1), rest[:, source].mean(1)  # (n, G)
    whole = propagated + beyond
    carried = first + rest

    def product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return a @ b.mean(0) / eta.shape[1]

    terms = {
        "own": (own**2).mean(1),
        "propagated": np.full(len(held), (propagated**2).mean()),
        "cross": 2 * product(own, propagated),
    }
    total = terms["own"] + (whole**2).mean() + 2 * product(own, whole)
    total = np.maximum(total, 0.0)  # rounding, where all cancels
    terms["remainder"] = total - sum(terms.values())
    terms["total"] = total
    terms["own_bound"] = share @ (eta**2).mean(1)
    spread = (carried[:, source] ** 2).mean()
    terms["bound"] = terms["own_bound"] + spread + 2 * product(own, whole)
    terms["same_batch"] = share @ ((carried - eta) ** 2).mean((0, 2))
    return terms


def _held(model: PyroCell) -> tuple[np.ndarray, np.ndarray]:
    """Batches that hold each condition (C, B), and the source (B,)."""
    screen = model.screen
    if len(screen.batches) < 2:
        raise DesignError("the model has one batch; batch noise is the difference between batches")
    held = screen.layout.to_numpy() > 0
    conditions = screen.conditions
    resting = conditions["perturbation"].astype(str) == screen.control
    resting &= conditions["media"].astype(str) == screen.baseline_media
    if not resting.any():
        raise DesignError(
            f'no cell is unperturbed ("{screen.control}") in baseline medium '
            f'("{screen.baseline_media}"): the map has no source'
        )
    hidden = int((~screen.aliased["estimable"].astype(bool)).sum())
    if hidden:
        warn(
            f"{hidden} of {len(screen.aliased)} contrasts cannot be told from batch noise in this "
            "layout: part of it passes for effects there, and is missing from the errors here; see "
            "screen.aliased_contrasts"
        )
    return held, np.any(held[resting.to_numpy()], 0)


def _table(
    draws: list[dict[str, np.ndarray]],
    conditions: pd.DataFrame,
    held: np.ndarray,
    credible_level: float,
) -> pd.DataFrame:
    labels = conditions[["perturbation", "media", "time"]].reset_index(drop=True)
    labels["n_batches"] = held.sum(1)
    times = labels["time"].fillna(np.inf)
    average = np.stack([(times == t) / (times == t).sum() for t in sorted(set(times))])
    totals = pd.DataFrame(
        {
            "perturbation": ALL,
            "media": ALL,
            "time": [labels["time"][row > 0].iloc[0] for row in average],
            "n_batches": [int(held[row > 0].any(0).sum()) for row in average],
        }
    )
    labels = pd.concat([labels.astype({"perturbation": str, "media": str}), totals])
    parts = []
    for term in TERMS:
        values = np.stack([draw[term] for draw in draws])  # (S, C)
        summary = summarise(np.concatenate([values, values @ average.T], 1), credible_level)
        summary.pop("prob_direction")
        parts.append(labels.assign(term=term, **summary))
    return pd.concat(parts, ignore_index=True)
