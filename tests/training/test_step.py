"""A training step is fast in how it computes, not in what: loss and gradients of the plain way."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyrocell._core.threading import few_threads
from pyrocell.distributions.counts import likelihood_path
from pyrocell.guide.encoder import fisher_weight
from pyrocell.training.fit import ElboPlan, TrainingConfig

SEED = 5
SCREENS = {
    "one time": ({}, {}, {}),
    "one batch": ({"n_batches": 1}, {}, {"decoder": "linear"}),
    "negative binomial": ({}, {}, {"likelihood": "nb"}),
    "dropout by cell": ({"media": 1}, {}, {"dropout": "cell", "content_dependent_noise": True}),
    "covariate": ({}, {"continuous_covariate_keys": ["age"]}, {}),
    "pairs, media, times": (
        {"media": 1, "times": (1.0, 2.0), "combinations": True},
        {},
        {"interactions": True},
    ),
    "field": ({"media": 1, "times": (1.0, 2.0)}, {}, {"dynamics": "node"}),
    "no residual": ({"times": (1.0, 2.0)}, {}, {"gene_residual": False}),
}


@pytest.fixture(scope="module", params=SCREENS)
def model(request, make_screen, build):
    """A model whose parameters have left their start, so that no gradient is zero by symmetry."""
    screen, setup, options = SCREENS[request.param]
    adata = make_screen(**screen)
    adata.obs["age"] = np.random.default_rng(0).normal(size=adata.n_obs)
    model = build(adata, {"batch_key": "batch", **setup}, **options)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.module.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    model.module.model.kl_weight.fill_(0.7)
    return model


def minibatch(model) -> dict[str, torch.Tensor]:
    return model.module_arguments(np.arange(0, model.adata.n_obs, 2))


def gradients(model) -> dict[str, torch.Tensor]:
    found = {n: p.grad for n, p in model.module.named_parameters() if p.grad is not None}
    model.module.zero_grad()
    return found


def plain_logits(model, values, batch) -> torch.Tensor:
    """Log-mean shift of each cell, written cell by cell."""
    net = model.module.model
    shift = net.shift(values, net.conditions)[batch["condition"]]
    if net.n_batches > 1:
        shift = shift + values["eta"][batch["batch"]]
    if "covariates" in batch:
        shift = shift + batch["covariates"] @ values["V.covariate"]
    return shift


def plain_loss(model, batch) -> torch.Tensor:
    """Negative ELBO per cell with dense counts and logits, and the textbook likelihood."""
    net, guide = model.module.model, model.module.guide
    torch.manual_seed(SEED)
    q = poutine.trace(guide.globals).get_trace()
    p = poutine.trace(poutine.replay(net.globals, q)).get_trace()
    values = {name: node["value"] for name, node in p.nodes.items() if node["type"] == "sample"}
    values.setdefault("eta", net.loading.new_zeros(1, net.n_genes))
    if net.n_batches > 1:
        values["eta"] = net.noise.eta(values)
    if net.has_rates:
        values["W.log_decay"] = net.log_decay(values)
    x, shift = batch["x"].to_dense(), plain_logits(model, values, batch)
    loc, log_scale = guide.encoder.body(torch.log1p(x)).chunk(2, -1)
    loading = net.loading.detach()
    weighted = loading * fisher_weight(guide.mean_count, values["V.dispersion"].detach())
    depth = x.sum(1) / guide.mean_count.sum()
    inner = depth[:, None, None] * (weighted @ loading.T) + torch.eye(len(loading))
    read = (shift + values["V.baseline"] - guide.baseline_loc) @ weighted.T
    moved = torch.linalg.solve(inner, depth[:, None] * read)
    encoded = dist.Normal(loc - moved, log_scale.clamp(-5, 1).exp())
    z = encoded.rsample()
    with likelihood_path("reference"):
        logits = net.resting_logits(values, z) + shift
        cells = net.view(values, logits, batch["log_size"], z).log_prob(x)
    cells = cells + (dist.Normal(0.0, 1.0).log_prob(z) - encoded.log_prob(z)).sum(1)
    elbo = net.n_cells / len(cells) * cells.sum()
    for trace, sign in ((p, 1.0), (q, -1.0)):
        for node in trace.nodes.values():
            if node["type"] == "sample" and not isinstance(node["fn"], dist.Delta):
                term = node["scale"] * node["fn"].log_prob(node["value"].clone()).sum()
                elbo = elbo + sign * term
    return -elbo / net.n_cells


@pytest.mark.parametrize("threads", [1, 2])
def test_loss_and_gradients_of_a_step_are_those_of_the_plain_formulas(model, threads, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", str(threads))
    batch, net = minibatch(model), model.module.model
    plan = ElboPlan(net, model.module.guide, net.n_cells, 100, TrainingConfig())
    settings = pyro.settings.context(module_local_params=True)
    with settings, pyro.validation_enabled(False), few_threads(net.n_genes):
        torch.manual_seed(SEED)
        loss = plan._finite_loss(batch)
        loss.backward()
        found = gradients(model)
        expected_loss = plain_loss(model, batch)
        expected_loss.backward()
        expected = gradients(model)
    torch.testing.assert_close(loss, expected_loss, rtol=2e-6, atol=0.0)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        largest = float(gradient.abs().max())
        torch.testing.assert_close(
            found[name], gradient, rtol=1e-4, atol=1e-4 * largest + 1e-7, msg=name
        )
