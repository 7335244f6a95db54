"""The posterior of one cell's resting state given the globals, beyond what the encoder says.

The encoder answers for all cells at once, so its mean is off for each by some part of a standard
deviation. Where single cells are asked about, a few Newton steps from there find the mode of
log p(x | z) + log p(z), and the curvature at the mode the spread (Laplace's approximation).
The loading of z is estimated without a posterior: its sampling error, which single cells feel and
means of many do not, is that of the Fisher information.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from pyrocell._core.random import generator
from pyrocell.generative.model import GenerativeModel
from pyrocell.guide.encoder import fisher_weight
from pyrocell.guide.guide import Guide
from pyrocell.screen.conditions import Conditions

__all__ = ["draw_own_state", "drawn_loading", "resting_posterior"]

STEPS = 4
Prior = Callable[[Tensor], Tensor]


def resting_posterior(
    model: GenerativeModel,
    values: dict[str, Tensor],
    start: Tensor,
    shift: Tensor,
    x: Tensor,
    log_size: Tensor,
    prior: Prior | None = None,
) -> tuple[Tensor, Tensor]:
    """Mode of X.z of each cell and the Cholesky factor of its precision, (n, d) and (n, d, d).

    Parameters
    ----------
    model, values
        The model, and its global sites.
    start
        (n, d) where to start, such as the encoder's mean.
    shift
        (n, G) log-mean shift of each cell.
    x, log_size
        (n, G) counts and (n,) log size factors.
    prior
        Log prior density (n,) of states (n, d); standard normal when None. The curvature of any is
        taken as that of a standard normal.

    Notes
    -----
    Steps use the Fisher information of the counts, which is never negative, and a cell moves only
    where its log joint density rises.
    """
    z = start
    cells = (shift, x, log_size, prior or _standard)
    density, gradient, precision = _at(model, values, z, *cells)
    for _ in range(STEPS):
        step = torch.linalg.solve(precision, gradient[..., None])[..., 0]
        tried = _at(model, values, z + step, *cells)
        better = tried[0] > density
        z = torch.where(better[:, None], z + step, z)
        density = torch.where(better, tried[0], density)
        gradient = torch.where(better[:, None], tried[1], 0.3 * gradient)  # shorter, if it was not
        precision = torch.where(better[:, None, None], tried[2], precision)
    return z, torch.linalg.cholesky(precision)


def draw_own_state(
    guide: Guide,
    values: dict[str, Tensor],
    cells: dict[str, Tensor],
    seed: int,
    table: Conditions | None = None,
) -> Tensor:
    """One draw of X.z of every cell of a minibatch given the globals, (n, d).

    `table` is what the cells' conditions refer to; default: the screen's own.
    """
    labels = (cells["condition"], cells["batch"], cells.get("covariates"), table)
    start, scale = guide.encode(values, cells["x"], *labels, log_size=cells["log_size"])
    stream = generator(start.device, "state", seed)
    noise = torch.randn(start.shape, generator=stream, device=start.device)
    if guide.model.dynamics.noisy:  # no density to climb: what the encoder says
        return start + scale * noise
    shift = guide.model.cell_shift(values, *labels)
    x = cells["x"].to_dense() if cells["x"].layout != torch.strided else cells["x"]

    def prior(z: Tensor) -> Tensor:
        return guide.model.state_log_prob(values, z, cells["condition"], table)

    mode, root = resting_posterior(guide.model, values, start, shift, x, cells["log_size"], prior)
    return mode + torch.linalg.solve_triangular(root.mT, noise[..., None], upper=True)[..., 0]


@contextmanager
def drawn_loading(model: GenerativeModel, mean: Tensor, theta: Tensor, seed: int) -> Iterator[None]:
    """The model with a loading of z drawn around its estimate, (d, G), within the block.

    Each gene's row has the error of a regression on N known states z ~ N(0, I): 1 / (N w_g), w_g
    the Fisher information of a cell with mean count `mean` (G,) and inverse dispersion `theta`.
    """
    estimate = model.loading.data
    error = (model.n_cells * fisher_weight(mean, theta)).clamp_min(1.0).rsqrt()
    stream = generator(estimate.device, "loading", seed)
    noise = torch.randn(estimate.shape, generator=stream, device=estimate.device)
    used = estimate.square().mean(1, keepdim=True) > error.square().mean()  # the rest is pruned
    model.loading.data = estimate + used * error * noise
    try:
        yield
    finally:
        model.loading.data = estimate


def _standard(z: Tensor) -> Tensor:
    return -0.5 * z.square().sum(1)


def _at(
    model: GenerativeModel,
    values: dict[str, Tensor],
    z: Tensor,
    shift: Tensor,
    x: Tensor,
    log_size: Tensor,
    prior: Prior,
) -> tuple[Tensor, Tensor, Tensor]:
    """Log joint density (n,), its gradient (n, d) and its expected curvature (n, d, d)."""
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        counts = model.view(values, model.resting_logits(values, z) + shift, log_size, z)
        density = counts.log_prob(x) + prior(z)
        (gradient,) = torch.autograd.grad(density.sum(), z)
    with torch.no_grad():
        mean = counts.mean
        # what dropout hides tells nothing
        weight = model.measurement.information(values, mean, log_size)
        slope = model.measurement.gauge(_slope(model, values, z), mean.log()[:, None])
        precision = (slope * weight[:, None]) @ slope.mT
        return density.detach(), gradient, precision + torch.eye(z.shape[1], device=z.device)


def _slope(model: GenerativeModel, values: dict[str, Tensor], z: Tensor) -> Tensor:
    """Slope of log expression in z, (n, d, G) or (1, d, G)."""
    if model.config.decoder != "curved":
        return model.loading[None]
    return model.loading + model.curvature.slope(z) @ values["V.curvature"]
