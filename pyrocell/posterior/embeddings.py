"""Genes and perturbations as points: coordinates along the principal axes of the response.

Axes of a low-rank model are known up to a rotation, which differs between joint draws, and the mean
over draws of a loading means nothing. So the axes are fixed first, as the singular vectors of the
posterior mean of effects E (perturbations × genes), u_a over perturbations and v_a over genes, and
then every draw is read along them: E' u_a for genes, E v_a for perturbations. Both are linear in
the effects, so that their draws have the posterior of a quantity that is the same in all of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import anndata as ad
import numpy as np
import pandas as pd

from pyrocell._core.messages import did_you_mean
from pyrocell.errors import ScreenError, UnknownLabelError
from pyrocell.posterior.draws import check_draws
from pyrocell.posterior.effects import each_with_direction
from pyrocell.posterior.fitted_screen import FittedScreen

__all__ = ["AXES", "OF", "embeddings"]

OF, AXES = ("genes", "perturbations"), ("response", "state", "both")


def embeddings(
    fit: FittedScreen,
    of: str,
    perturbations: Sequence[str],
    media: str,
    time: float | None,
    n_axes: int,
    axes: str,
    n_samples: int,
    features: slice,
) -> ad.AnnData:
    """Coordinates of genes or of perturbations; see `PyroCell.embeddings`."""
    for name, value, known in (("of", of, OF), ("axes", axes, AXES)):
        if value not in known:
            said = did_you_mean(value, known)
            raise UnknownLabelError(f'{name}="{value}" is not one of {", ".join(known)}{said}')
    if n_axes < 1 or n_axes != int(n_axes):
        raise ScreenError(f"n_axes={n_axes} must be a whole number, 1 or more")
    if of == "perturbations" and axes != "response":
        raise ScreenError(
            f'axes="{axes}" are axes along which resting cells differ, and perturbations have no '
            'coordinates there; ask for axes="response", or of="genes"'
        )
    genes = fit.screen.genes[features]
    names = list(genes) if of == "genes" else list(perturbations)
    parts = []
    if axes != "state":
        where = perturbations, media, time
        parts.append(_of_response(fit, of, where, n_axes, n_samples, features))
    if axes != "response":
        parts.append(_of_state(fit, n_axes, features))
    mean, sd = (np.concatenate([p[i] for p in parts], 1) for i in (0, 1))
    kind = "symbol" if of == "genes" else "perturbation"
    rows = pd.DataFrame(index=pd.Index([str(n) for n in names], name=kind))
    columns = pd.DataFrame(index=[a for p in parts for a in p[2]])
    out = ad.AnnData(np.asarray(mean, np.float32), obs=rows, var=columns)
    out.layers["sd"] = np.asarray(sd, np.float32)
    out.var["share"] = np.concatenate([p[3] for p in parts])
    with np.errstate(invalid="ignore"):
        square, noise = np.square(mean).mean(0), np.square(sd).mean(0)
    out.var["signal"] = square / np.maximum(square + noise, 1e-30)
    return out


Part = tuple[np.ndarray, np.ndarray, list[str], np.ndarray]  # mean, sd, names and shares of axes


def _of_response(
    fit: FittedScreen,
    of: str,
    where: tuple[Sequence[str], str, float | None],
    n_axes: int,
    n_samples: int,
    features: slice,
) -> Part:
    """Coordinates along principal axes of what perturbations do."""
    check_draws(n_samples)
    names, genes = where[0], fit.screen.genes[features]
    if not len(names):
        raise ScreenError("the screen has no perturbation, so there are no axes of a response")
    mean = np.stack(
        [d[:, features].mean(0) for d, _ in each_with_direction(fit, *where, n_samples)]
    )
    left, size, right = np.linalg.svd(mean.astype(float), full_matrices=False)
    some = slice(0, min(n_axes, len(size)))
    left, right = left[:, some], right[some].T
    # signs of singular vectors are free: the gene that an axis moves most goes up along it
    sign = np.sign(right[np.abs(right).argmax(0), np.arange(right.shape[1])])
    left, right = left * sign, right * sign
    share = size[some] ** 2 / max(float((size**2).sum()), 1e-30)
    axis_names = [f"response{a + 1}" for a in range(right.shape[1])]
    each = each_with_direction(fit, *where, n_samples)
    if of == "genes":
        draws = np.zeros((n_samples, len(genes), right.shape[1]))
        for k, (effect, _) in enumerate(each):
            draws += effect[:, features, None] * left[k]
        draws /= np.sqrt(len(names))
    else:
        draws = np.stack([effect[:, features] @ right for effect, _ in each], 1)
        draws /= np.sqrt(len(genes))
    sd = draws.std(0, ddof=1) if n_samples > 1 else np.zeros(draws.shape[1:])
    return draws.mean(0), sd, axis_names, share


def _of_state(fit: FittedScreen, n_axes: int, features: slice) -> Part:
    """Coordinates of genes along principal axes of resting cells; loadings are points, no sd."""
    loading = fit.axes_of_state()[:, features]  # of z, which is N(0, I)
    _, size, right = np.linalg.svd(loading, full_matrices=False)
    some = slice(0, min(n_axes, len(size)))
    mean = right[some].T * size[some]
    mean = mean * np.sign(mean[np.abs(mean).argmax(0), np.arange(mean.shape[1])])
    share = size[some] ** 2 / max(float((size**2).sum()), 1e-30)
    names = [f"state{a + 1}" for a in range(mean.shape[1])]
    return mean, np.full(mean.shape, np.nan), names, share
