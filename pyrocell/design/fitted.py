"""What a fitted model says of the noise of the next screen, and of its own layout."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from pyrocell.contrasts.pseudobulk import Cells, Variance, rates
from pyrocell.errors import DesignError
from pyrocell.posterior.effects import effect_draws

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyrocell.model import PyroCell

__all__ = ["CLASSES", "fitted_noise"]

CLASSES = 6  # of genes, by variance per cell
_LEAST = 1e-3  # log-fold change: the smallest sd that a fit is taken to state
_AT_ONCE = 20  # perturbations whose draws are held at a time


def fitted_noise(model: PyroCell, n_samples: int, stated: frozenset[str]) -> dict[str, object]:
    """Fields of `Noise` as a fitted model shows them, but for those that are stated."""
    variance = cell_variance(model)
    order = np.array_split(np.argsort(variance), min(CLASSES, len(variance)))

    def rms(squares: np.ndarray) -> np.ndarray:
        by_gene = squares.reshape(-1, len(variance)).mean(0)
        return np.maximum([np.sqrt(by_gene[rows].mean()) for rows in order], _LEAST)

    read: dict[str, object] = {
        "cell_variance": [variance[rows].mean() for rows in order],
        "share": [float(len(rows)) for rows in order],
    }
    if "batch_sd" not in stated:
        read["batch_sd"] = rms(_eta_squares(model, n_samples))
    return read | _effects(model, n_samples, rms) | _responses(model, n_samples, rms)


def cell_variance(model: PyroCell) -> np.ndarray:
    """(G,) f/μ + k: what one cell leaves of a gene's log mean, by moments of the counts."""
    data = model._cells
    cells = Cells(data.counts, data.size, data.batch)
    moments = Variance.of(cells[data.condition == c] for c in np.unique(data.condition))
    mean = np.maximum(rates(cells) * cells.size.mean(), 1 / len(cells))
    return moments.poisson / mean + np.maximum(moments.extra, 0)


def _eta_squares(model: PyroCell, n_samples: int) -> np.ndarray:
    """(B, G) posterior mean of η², per free contrast."""
    n_batches = len(model.screen.batches)
    if n_batches == 1:
        raise DesignError(
            "the model was fitted to one batch, so it does not know batch noise; state it, as in "
            "Noise.from_model(model, batch_sd=0.1)"
        )
    table = model.batch_effects(n_samples)
    squares = (table["mean"] ** 2 + table["sd"] ** 2).to_numpy().reshape(n_batches, -1)
    return squares * n_batches / (n_batches - 1)


def _effects(model: PyroCell, n_samples: int, rms: Callable) -> dict[str, object]:
    """Sizes of effects in baseline medium at the last time, and of what media and time change."""
    screen, fit = model.screen, model.fitted
    last, first = (screen.times[-1], screen.times[0]) if screen.times else (None, None)
    arms = [(screen.baseline_media, last), *((m, last) for m in screen.media)]
    arms += [(screen.baseline_media, first)] if first != last else []
    n = len(screen.perturbations)
    squares = np.zeros((len(arms), len(screen.genes)))
    total = np.zeros((n_samples, len(screen.genes)))
    for start in range(0, n, _AT_ONCE):
        names = list(screen.perturbations[start : start + _AT_ONCE])
        draws = [effect_draws(fit, names, m, t, n_samples) for m, t in arms]  # joint
        total += draws[0].sum(1)
        differences = [draws[0], *(other - draws[0] for other in draws[1:])]
        squares += np.stack([(d.astype(float) ** 2).mean(0).sum(0) / n for d in differences])
    common = ((total / n) ** 2).mean(0)
    read: dict[str, object] = {"effect_sd": rms(squares[0])}
    if n > 1:
        own = np.maximum(squares[0] - common, 0) * n / (n - 1)
        read = {"effect_sd": rms(own), "common_sd": rms(common)}
    n_media = len(screen.media)
    if n_media:
        read["gain_sd"] = rms(squares[1 : 1 + n_media])
    if first != last:
        read["change_sd"] = rms(squares[1 + n_media :])
    return read


def _responses(model: PyroCell, n_samples: int, rms: Callable) -> dict[str, object]:
    """Sizes of what media and time do to unperturbed cells."""
    screen = model.screen
    last = screen.times[-1] if screen.times else None
    arms = [(screen.baseline_media, last), *((m, last) for m in screen.media)]
    arms += [(screen.baseline_media, t) for t in screen.times[:-1]]
    if len(arms) == 1:
        return {}
    frame = pd.DataFrame(arms, columns=["media", "time"]).assign(perturbation=screen.control)
    if last is None:
        frame = frame.drop(columns="time")
    draws = model.predict(frame, n_samples=n_samples, return_draws=True).to_numpy()
    log = np.log(np.maximum(draws, 1e-12))
    squares = ((log - log[:, :1]) ** 2).mean(0)  # (arms, G)
    n_media = len(screen.media)
    read: dict[str, object] = {}
    if n_media:
        read["media_sd"] = rms(squares[1 : 1 + n_media])
    times = screen.aliased[screen.aliased["contrast"] == "time"]
    if len(times) and times["estimable"].all():  # else the fit knows nothing of drift
        read["drift_sd"] = rms(squares[1 + n_media :])
    return read
