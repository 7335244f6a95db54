"""Resting state to log expression: curved away from rest, linear at rest, effects additive."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pyro import poutine

from pyrocell import PyroCell
from pyrocell.posterior.draws import Posterior
from pyrocell.training.fit import TrainingConfig

FAST = TrainingConfig(lr=1e-2, global_lr=3e-2)


@pytest.fixture
def model(make_screen, build):
    return build(make_screen(media=1), decoder="curved")


def states(n: int = 30) -> torch.Tensor:
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(2))


def test_the_decoder_starts_linear(model):
    module, z = model.module.model, states()
    values = Posterior(module, model.module.guide).mean()
    linear = values["V.baseline"] + z @ module.loading
    torch.testing.assert_close(module.resting_logits(values, z), linear)


def test_a_cell_at_rest_has_the_baseline_and_the_slope_of_the_loading(model):
    module = model.module.model
    torch.manual_seed(1)
    values, rest = module.globals(), torch.zeros(2)
    logits = lambda z: module.resting_logits(values, z[None])[0]  # noqa: E731
    torch.testing.assert_close(logits(rest), values["V.baseline"])
    torch.testing.assert_close(torch.func.jacrev(logits)(rest).T, module.loading)
    assert (module.curvature(states()) @ values["V.curvature"]).abs().max() > 0.1


def test_effects_and_batch_noise_are_additive_whatever_the_state_of_the_cell(model):
    module, arguments = model.module.model, model.module_arguments()
    z = states(model.adata.n_obs)
    with torch.no_grad():
        values = module.globals()
        latent = {k: value for k, value in values.items() if k not in ("eta", "W.log_decay")}
        fixed = poutine.condition(module, data=latent | {"X.z": z})
        logits = poutine.trace(fixed).get_trace(**arguments).nodes["x"]["fn"].logits
        shift = module.cell_shift(values, arguments["condition"], arguments["batch"])
        torch.testing.assert_close(logits - shift, module.resting_logits(values, z))


@pytest.mark.parametrize("decoder", ["curved", "linear"])
def test_the_decoder_survives_the_file(make_screen, build, tmp_path, decoder):
    model = build(make_screen(), decoder=decoder)
    model.train(max_epochs=3, progress_bar=False)
    assert ("V.curvature" in model.posterior_samples(2)) == (decoder == "curved")
    model.save(tmp_path / "model")
    loaded = PyroCell.load(tmp_path / "model", model.adata)
    np.testing.assert_allclose(
        loaded.get_normalized_expression(), model.get_normalized_expression(), rtol=1e-5
    )


@pytest.mark.filterwarnings("ignore::pyrocell.errors.ScreenWarning")
def test_training_finds_a_curve_where_a_line_cannot_follow(make_screen, build):
    """Some genes rise on one side of rest and others on the other; one axis of state."""
    adata = make_screen(n_controls=600, n_batches=1)
    rng = np.random.default_rng(0)
    state = rng.normal(size=(adata.n_obs, 1))
    sides = 1.5 * np.repeat([1.0, -1.0, 0.0], 4)
    log_mean = np.log(20.0) + np.maximum(state * sides, 0)
    adata.X = type(adata.X)(rng.poisson(np.exp(log_mean)).astype(np.int32))
    evidence = {}
    for decoder in ("curved", "linear"):
        model = build(adata.copy(), decoder=decoder, n_latent=1, n_response=0)
        model.train(max_epochs=40, batch_size=64, progress_bar=False, config=FAST)
        evidence[decoder] = model.get_marginal_ll(n_mc_samples=20).mean()
    assert evidence["curved"] > evidence["linear"] + 0.5
