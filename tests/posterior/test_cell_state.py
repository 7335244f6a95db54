"""What is known of single cells: better than the encoder says, as wide as on a grid."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pyrocell.posterior.cell_state import drawn_loading, resting_posterior


@pytest.fixture(scope="module", params=["curved", "linear"])
def fitted(request, make_screen, build):
    model = build(make_screen(n_genes=60, mean_library=600), n_latent=2, decoder=request.param)
    model.train(max_epochs=15, progress_bar=False)
    return model


def of_cells(model, n: int = 12) -> tuple:
    module = model.module.model
    values = {k: v.detach() for k, v in model.posterior.mean().items()}
    cells = model._cells.rows(np.arange(n))
    labels = (cells["condition"], cells["batch"])
    start, _ = model.module.guide.encode(values, cells["x"], *labels)
    shift = module.cell_shift(values, *labels)
    x = cells["x"].to_dense() if cells["x"].layout != torch.strided else cells["x"]
    return module, values, start.detach(), shift.detach(), x, cells["log_size"]


def density(arguments: tuple, z: torch.Tensor) -> torch.Tensor:
    module, values, _, shift, x, log_size = arguments
    with torch.no_grad():
        counts = module.view(values, module.resting_logits(values, z) + shift, log_size, z)
        return counts.log_prob(x) - 0.5 * z.square().sum(-1)


def test_the_mode_is_one_and_never_below_the_encoder(fitted):
    arguments = of_cells(fitted)
    mode, _ = resting_posterior(*arguments)
    at_mode = density(arguments, mode)
    assert (at_mode >= density(arguments, arguments[2]) - 1e-3).all()
    for step in torch.eye(2) * 0.1:
        assert (at_mode > density(arguments, mode + step) - 0.03).all()
        assert (at_mode > density(arguments, mode - step) - 0.03).all()


def test_mean_and_spread_are_those_of_the_posterior_on_a_grid(fitted):
    arguments = of_cells(fitted)
    mode, root = resting_posterior(*arguments)
    covariance = torch.cholesky_inverse(root)
    sd = covariance.diagonal(dim1=1, dim2=2).sqrt()
    steps = torch.linspace(-5, 5, 41)
    grid = torch.cartesian_prod(steps, steps)  # in standard deviations
    log = torch.stack([density(arguments, mode + g * sd) for g in grid])
    p = torch.softmax(log, 0)[..., None]
    mean = (p * grid[:, None]).sum(0)
    width = ((p * grid[:, None].square()).sum(0) - mean.square()).sqrt()
    assert mean.abs().max() < 0.4  # skewed where counts are few
    assert width.median() == pytest.approx(1, abs=0.1)
    assert np.quantile(width, 0.9) < 1.4 and width.min() > 0.75


def test_a_drawn_loading_is_put_back_whatever_happens(fitted):
    module = fitted.module.model
    before = module.loading.detach().clone()
    theta = torch.full((module.n_genes,), 100.0)
    with pytest.raises(RuntimeError, match="inside"):
        with drawn_loading(module, theta, theta, seed=0):
            assert not torch.equal(module.loading.detach(), before)
            raise RuntimeError("inside")
    assert torch.equal(module.loading.detach(), before)
