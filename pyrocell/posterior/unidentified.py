"""What the layout cannot tell is drawn from the prior, given the sum that it can.

A screen whose every medium has lanes of its own measures c + Δη, the response and the noise of its
lanes, and nothing in it tells one from the other. A variational posterior picks some split and is
sure of it. Along such a direction v of (η, effects of media, effects of perturbations) the
likelihood is flat, so the conditional posterior is that of the priors alone, and Normal:

    t ~ exp(−½ Σ_j (f_j + t h_j)² / D_j − ½ Σ_d (e_d + t v_d)² / τ_d²),    h = H'v over batches,

with f the contrasts of η, D their prior variances, e the effects and τ their prior width. A draw of
t moves a joint draw along v: a Gibbs step, gene by gene. Where no contrast of batches is measured
within a condition, the width of batch noise is the prior's as well.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyrocell.generative.response import ScreenMap

__all__ = ["resample_unidentified"]

_BLOCK = 2**24  # numbers held at once


def resample_unidentified(
    model: ScreenMap, values: dict[str, Tensor], noise: bool = True
) -> dict[str, Tensor]:
    """Move a joint draw along every direction that the layout cannot tell, by its conditional.

    Parameters
    ----------
    model
        The generative model.
    values
        Global sites, a draw or their means.
    noise
        Draw the conditional; else take its mean.
    """
    direction, n_batches = model.noise.unidentified, model.n_batches
    n_media = model.n_media
    of_batch, of_media = direction[:, :n_batches], direction[:, n_batches : n_batches + n_media]
    of_gene = direction[:, n_batches + n_media :]
    values = dict(values)
    if len(direction) == n_batches - 1:
        values |= _prior_scales(model, values, noise)
    turned = of_batch @ model.noise.contrast  # h, (Q, B − 1)
    width = model.noise.scale(values).square().expand_as(values["eta.free"])
    drivers = torch.cat([of_media, of_gene], 1)  # (Q, J + K)
    effect, variance = _effects(model, values)
    loading = torch.cat([turned, drivers], 1)  # (Q, B − 1 + J + K)
    known = torch.cat([width, variance]).reciprocal()
    pull = loading @ (known * torch.cat([values["eta.free"], effect]))  # (Q, G)
    at_once = max(1, _BLOCK // loading.numel())
    t = torch.cat(
        [
            _conditional(loading, *part, noise)
            for part in zip(known.split(at_once, 1), pull.split(at_once, 1), strict=True)
        ],
        1,
    )  # (Q, G)
    values["eta.free"] = values["eta.free"] + turned.T @ t
    values["eta"] = model.noise.eta(values)
    if model.noise.has_laboratories:
        values["eta.laboratory"] = model.noise.laboratory_offset(values)
    values["V.baseline"] = values["V.baseline"] + of_batch.mean(1) @ t
    if n_media:
        values["M.residual"] = values["M.residual"] + (of_media.T @ t)[:, None]
    moved = of_gene.T @ t  # (K, G)
    values["P.residual"] = values["P.residual"] + moved[:, None]
    own = moved.gather(1, model.target.clamp_min(0)[:, None])[:, 0] * (model.target >= 0)
    values["P.on_target"] = values["P.on_target"] + own
    return values


def _conditional(loading: Tensor, known: Tensor, pull: Tensor, noise: bool) -> Tensor:
    """t of some genes, (Q, g), from the prior precisions of what it moves, (n, g)."""
    precision = (loading * known.T[:, None]) @ loading.T  # (g, Q, Q)
    root = torch.linalg.cholesky(precision)
    t = -torch.cholesky_solve(pull.T[..., None], root)
    if noise:
        t = t + torch.linalg.solve_triangular(root.mT, torch.randn_like(t), upper=True)
    return t[..., 0].T


def _prior_scales(model: ScreenMap, values: dict[str, Tensor], noise: bool) -> dict[str, Tensor]:
    """Widths of batch noise from their priors, (G,) each."""
    medians = {"eta.scale": model.priors.eta_sd, "eta.laboratory_scale": model.priors.laboratory_sd}
    spread = model.priors.eta_spread if noise else 0.0
    return {
        site: median * (spread * torch.randn_like(values[site])).exp()
        for site, median in medians.items()
        if site in values
    }


def _effects(model: ScreenMap, values: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Effects of media, then perturbations, over genes, and their prior variances, (J + K, G)."""
    axes = model.loading.square()  # (d, G)
    d = model.config.n_latent

    def part(operator: str, scale: Tensor, residual: Tensor | float) -> tuple[Tensor, Tensor]:
        effect = model.low_rank(values, operator).mean(1) + values[f"{operator}.residual"].mean(1)
        width = scale[:d].square() @ axes + scale[d:].square().sum()
        return effect, (width + torch.as_tensor(residual).square()).expand_as(effect)

    scale = model.log_effect_scale.exp()
    parts = [part("P", scale, model.residual_scale(values))]
    if model.n_media:
        wide = torch.full_like(scale, model.priors.media_effect_sd)
        parts.insert(0, part("M", wide, model.media_residual_sd))
    effect, variance = (torch.cat(each) for each in zip(*parts, strict=True))
    return effect, variance
