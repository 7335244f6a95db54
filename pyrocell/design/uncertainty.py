"""Posterior covariance of every contrast of a planned screen, in closed form.

Per gene the log mean of condition (p, a) in batch b is measured as

    y_pab = μ_a + [p perturbed] (c_a + u_pa) + η_b + ε,    Var ε = cell_variance / n_pab,

with μ the controls' level in arm a (a medium at a time), c what all perturbations do, u_p what p
does itself, η batch noise (eq. 15). All have normal priors (`Noise`), but the level of the first
arm, which is free; with it, priors of η with and without a sum of zero give the same contrasts.

Given θ = (μ, c, η), perturbations are independent. Each u_p is eliminated by a solve as large as
there are arms; what is left, θ, has arms + batches unknowns. Perturbations with the same cells
share one elimination, so hundreds of them cost no more than a few. Everything is linear algebra of
torch tensors, for its derivatives with respect to the numbers of cells.

The mean squared error of the posterior mean is the posterior variance, whatever the shape of the
effects' distribution, as long as its mean and covariance are those stated: it is the best linear
predictor. The Jacobian of a fitted F (eqs. 20-22) is in `error_analysis`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pyrocell.design.noise import Noise
from pyrocell.design.questions import Arm, Kind

__all__ = ["Prior", "batch_loading", "prior_variances", "variances"]


@dataclass(frozen=True)
class Prior:
    """Stated noise as loadings of independent standard normals; Q classes of genes, A arms.

    Attributes
    ----------
    control, perturbed
        (Q, A, q) loading of the log mean of unperturbed and of perturbed cells on the levels that
        all perturbations share: column 0 is the free level, the others have unit priors.
    effect
        (Q, A, A) covariance of u_p over arms.
    cell_variance, batch_sd, content_sd, share
        (Q,) as in `Noise`.
    """

    control: Tensor
    perturbed: Tensor
    effect: Tensor
    cell_variance: Tensor
    batch_sd: Tensor
    content_sd: Tensor
    share: Tensor

    @classmethod
    def of(cls, noise: Noise, arms: Sequence[Arm], baseline: str) -> Prior:
        """Loadings of arms under stated noise."""
        media = [m for m in dict.fromkeys(arm.media for arm in arms) if m != baseline]
        first = {m: min(a.time for a in arms if a.media == m) for m in {a.media for a in arms}}
        of_medium = np.array([[arm.media == m for m in media] for arm in arms], float)
        later = [a for a, arm in enumerate(arms) if arm.time > first[arm.media]]
        of_time = np.eye(len(arms))[:, later]  # change in one medium tells nothing of another
        everywhere = np.ones((len(arms), 1))

        def loading(
            *parts: tuple[float | Sequence[float] | np.ndarray, np.ndarray],
        ) -> np.ndarray:
            each = [np.asarray(sd)[:, None, None] * part for sd, part in parts]
            return np.concatenate(each, -1)

        free = loading((np.ones(len(noise)), everywhere))
        level = loading((noise.media_sd, of_medium), (noise.drift_sd, of_time))
        effect = loading(
            (noise.effect_sd, everywhere), (noise.gain_sd, of_medium), (noise.change_sd, of_time)
        )
        ratio = np.asarray(noise.common_sd) / np.asarray(noise.effect_sd)
        common = effect * ratio[:, None, None]
        tensor = torch.from_numpy
        return cls(
            control=tensor(np.concatenate([free, level, 0 * common], -1)),
            perturbed=tensor(np.concatenate([free, level, common], -1)),
            effect=tensor(effect @ effect.transpose(0, 2, 1)),
            cell_variance=tensor(noise.cell_variance),
            batch_sd=tensor(noise.batch_sd),
            content_sd=tensor(noise.content_sd),
            share=tensor(noise.share),
        )


def batch_loading(prior: Prior, lanes: Tensor) -> Tensor:
    """Loading (Q, B, B) of η on independent standard normals.

    `lanes` (B,) says for how many lanes of like content each column stands: their mean η has a
    variance that much smaller, and their differences tell nothing.
    """
    return torch.diag_embed(prior.batch_sd[:, None] / lanes.sqrt())


def variances(
    prior: Prior,
    kinds: Sequence[Kind],
    control: Tensor,
    perturbed: Tensor,
    copies: Tensor,
    eta: Tensor,
) -> dict[str, Tensor]:
    """Posterior variance of every contrast.

    Parameters
    ----------
    control
        (A, B) unperturbed cells.
    perturbed
        (P, A, B) cells of one perturbation in each of P groups of perturbations with like cells.
    copies
        (P,) perturbations in each group.
    eta
        (Q, B, E) loading of η on standard normals; E = 0 where batches are known.

    Returns
    -------
    For each kind (Q, P, n), or (Q, 1, n) if it is asked of control alone.
    """
    v = prior.cell_variance[:, None, None]
    arm_cells = perturbed.sum(-1)  # (P, A)
    total = torch.einsum("p,pab->ab", copies, perturbed)
    information = _information(prior.control, control, eta)
    information = (information + _information(prior.perturbed, total, eta)) / v
    seen = (
        torch.cat(
            [
                arm_cells[None, ..., None] * prior.perturbed[:, None],
                torch.einsum("pab,qbe->qpae", perturbed, eta),
            ],
            -1,
        )
        / v[..., None]
    )  # (Q, P, A, θ)
    scaled = prior.effect[:, None] * (arm_cells / v)[:, :, None]
    identity = torch.eye(scaled.shape[-1], dtype=scaled.dtype)
    left = torch.linalg.solve(identity + scaled, prior.effect[:, None].expand_as(scaled))
    known = left @ seen  # (Q, P, A, θ)
    information = information - torch.einsum("p,qpai,qpaj->qij", copies, seen, known)
    precision = torch.ones(information.shape[-1], dtype=information.dtype)
    precision[0] = 0.0
    covariance = torch.linalg.inv(information + torch.diag(precision))
    n_levels = prior.control.shape[-1]
    common = torch.nn.functional.pad(prior.perturbed - prior.control, (0, eta.shape[-1]))
    share = common[:, None] - known
    effects = left + share @ covariance[:, None] @ share.mT  # (Q, P, A, A)
    levels = prior.control @ covariance[:, :n_levels, :n_levels] @ prior.control.mT
    return _asked(kinds, effects, levels[:, None])


def prior_variances(prior: Prior, kinds: Sequence[Kind]) -> dict[str, Tensor]:
    """Variance of every contrast before any cell is seen, (Q, 1, n) by kind."""
    common = prior.perturbed - prior.control
    level = prior.control[..., 1:]
    effects = prior.effect + common @ common.mT
    return _asked(kinds, effects[:, None], (level @ level.mT)[:, None])


def _information(loading: Tensor, cells: Tensor, eta: Tensor) -> Tensor:
    """Σ n x x' over pairs of arm and batch, (Q, θ, θ), for unit variance per cell."""
    of_levels = loading.mT @ (cells.sum(-1)[:, None] * loading)
    cross = loading.mT @ cells @ eta
    of_batches = eta.mT @ (cells.sum(-2)[:, None] * eta)
    return torch.cat([torch.cat([of_levels, cross], -1), torch.cat([cross.mT, of_batches], -1)], -2)


def _asked(kinds: Sequence[Kind], effects: Tensor, levels: Tensor) -> dict[str, Tensor]:
    """Variances of questions from covariances over arms, (Q, P, A, A) and (Q, 1, A, A)."""
    found = {}
    for kind in kinds:
        weights = torch.from_numpy(kind.weights)
        covariance = effects if kind.perturbed else levels
        found[kind.name] = torch.einsum("na,qpab,nb->qpn", weights, covariance, weights)
    return found
