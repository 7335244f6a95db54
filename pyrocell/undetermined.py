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

from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from pyrocell.aliasing import null_space
from pyrocell.screen import Screen

if TYPE_CHECKING:
    from pyrocell.mapping import ScreenMap

__all__ = ["redraw", "undetermined"]

_TOUCHED = 1e-6  # a direction moves what has an entry above this


def undetermined(screen: Screen) -> Tensor:
    """Directions of (batches, media, perturbations) that no cell sees, (Q, B + J + K).

    Those that move η; a response that is the same at all times is what a direction changes.
    """
    n_batches = len(screen.batches)
    n = n_batches + len(screen.media) + len(screen.perturbations)
    table = screen.aliased
    main = table["contrast"].isin(["perturbation", "media"])
    if n_batches == 1 or table["estimable"][main].all():
        return torch.zeros(0, n)
    condition, batch = np.nonzero(screen.layout.to_numpy())
    vectors = _null_directions(
        batch, n_batches, screen.exposure[condition], screen.membership[condition]
    )
    inside = vectors[:n_batches] - vectors[:n_batches].mean(0)
    _, size, mixed = np.linalg.svd(inside, full_matrices=False)
    vectors = vectors @ mixed[size > _TOUCHED].T
    return torch.as_tensor(vectors.T, dtype=torch.float32)


def _null_directions(
    batch: np.ndarray, n_batches: int, exposure: np.ndarray, genotype: sp.csr_array
) -> np.ndarray:
    """Null space of batches, media and perturbations, no gains and no times, (B + J + K, d).

    Parameters
    ----------
    batch, exposure, genotype
        Of every pair of condition and batch that has cells: code (pairs,), 0/1 (pairs, J) and
        (pairs, K).
    """
    rows = np.arange(len(batch))
    batches = sp.csc_array((np.ones(len(rows)), (rows, batch)), shape=(len(rows), n_batches))
    blocks = [b for b in (batches, sp.csc_array(exposure), genotype.tocsc()) if b.shape[1]]
    design = sp.csc_array(sp.hstack(blocks, format="csc").astype(float))
    basis, _ = null_space(design)
    norms = np.sqrt(design.power(2).sum(axis=0))
    basis = np.where(np.abs(basis) > _TOUCHED, basis, 0.0)
    return basis / np.where(norms > 0, norms, 1.0)[:, None]


def redraw(model: ScreenMap, values: dict[str, Tensor], noise: bool = True) -> dict[str, Tensor]:
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
    direction, n_batches = model.undetermined, model.n_batches
    n_media = model.n_media
    of_batch, of_media = direction[:, :n_batches], direction[:, n_batches : n_batches + n_media]
    of_gene = direction[:, n_batches + n_media :]
    values = dict(values)
    if len(direction) == n_batches - 1:
        values |= _prior_scales(model, values, noise)
    turned = of_batch @ model.contrast  # h, (Q, B − 1)
    width = model.eta_scale(values).square().expand_as(values["eta.free"])
    drivers = torch.cat([of_media, of_gene], 1)  # (Q, J + K)
    effect, variance = _effects(model, values)
    precision = torch.einsum("qj,jg,rj->gqr", turned, width.reciprocal(), turned)
    precision = precision + torch.einsum("qd,dg,rd->gqr", drivers, 1 / variance, drivers)
    pull = turned @ (values["eta.free"] / width) + drivers @ (effect / variance)  # (Q, G)
    root = torch.linalg.cholesky(precision)
    t = -torch.cholesky_solve(pull.T[..., None], root)
    if noise:
        t = t + torch.linalg.solve_triangular(root.mT, torch.randn_like(t), upper=True)
    t = t[..., 0].T  # (Q, G)
    values["eta.free"] = values["eta.free"] + turned.T @ t
    values["eta"] = model.eta(values)
    if model.has_laboratories:
        values["eta.laboratory"] = model.laboratory_offset(values)
    values["V.baseline"] = values["V.baseline"] + of_batch.mean(1) @ t
    if n_media:
        values["M.residual"] = values["M.residual"] + (of_media.T @ t)[:, None]
    moved = of_gene.T @ t  # (K, G)
    values["P.residual"] = values["P.residual"] + moved[:, None]
    values["P.on_target"] = values["P.on_target"] + (moved * model.own_gene).sum(1)
    return values


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
