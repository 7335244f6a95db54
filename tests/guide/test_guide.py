"""The variational family: complete, honest about what was not seen, and aware of every shift."""

from __future__ import annotations

import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO

from pyrocell.noise.content import condition_cells
from pyrocell.posterior.draws import Posterior

SCREENS = {
    "everything": ({"media": 1, "times": (1.0, 2.0, 4.0), "combinations": True}, {}),
    "no times": ({"media": 2, "combinations": True}, {}),
    "no media": ({"times": (1.0, 2.0)}, {}),
    "uneven batches": ({"n_batches": 4, "balanced": False, "media": 1}, {}),
    "interactions": ({"media": 1, "combinations": True}, {"interactions": True}),
    "no residual": ({"media": 1, "combinations": True}, {"gene_residual": False}),
    "no residual, interactions": (
        {"media": 1, "combinations": True},
        {"gene_residual": False, "interactions": True},
    ),
    "no own axes": ({"media": 1, "times": (1.0, 2.0)}, {"n_response": 0}),
    "negative binomial": ({"media": 1}, {"likelihood": "nb"}),
    "dropout free per cell": ({}, {"dropout": "cell"}),
    "noise by content": (
        {"n_batches": 4, "balanced": False, "media": 1},
        {"content_dependent_noise": True},
    ),
}


@pytest.fixture(params=SCREENS)
def any_model(request, make_screen, build):
    screen, options = SCREENS[request.param]
    torch.manual_seed(0)
    return build(make_screen(**screen), **options)


def latent_sites(callable_, arguments) -> dict[str, torch.Tensor]:
    trace = poutine.trace(callable_).get_trace(**arguments)
    return {
        name: node["value"]
        for name, node in trace.nodes.items()
        if node["type"] == "sample" and name not in ("cells", "x", "eta", "W.log_decay")
    }


def test_the_guide_has_every_latent_site_of_the_model_in_its_shape(any_model):
    module, arguments = any_model.module, any_model.module_arguments()
    model, guide = (latent_sites(f, arguments) for f in (module.model, module.guide))
    assert {k: v.shape for k, v in model.items()} == {k: v.shape for k, v in guide.items()}


def test_globals_agree_in_names_and_shapes_between_model_guide_and_mean(any_model):
    module = any_model.module
    model, guide = module.model.globals(), module.guide.globals()
    mean = Posterior(module.model, module.guide).mean()
    shapes = [{k: v.shape for k, v in values.items()} for values in (model, guide, mean)]
    assert shapes[0] == shapes[1] == shapes[2]


def test_the_mean_of_the_globals_is_that_of_their_draws(any_model):
    posterior = Posterior(any_model.module.model, any_model.module.guide)
    mean = posterior.mean()
    for name, values in posterior.samples(150).items():
        draws = torch.from_numpy(values)
        if draws.numel():
            # products of sites have a mean of their own, small against the spread
            off = (draws.mean(0) - mean[name]).abs()
            assert (off < 0.75 * draws.std(0) + 1e-5).all(), name


def test_gradients_reach_every_parameter(any_model):
    module, arguments = any_model.module, any_model.module_arguments()
    Trace_ELBO().differentiable_loss(module.model, module.guide, **arguments).backward()
    for name, parameter in module.named_parameters():
        if module.model.has_time or not name.endswith("_phi"):  # correlates times
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name


def test_the_encoder_knows_every_shift_of_a_cell(fitted):
    """z must not absorb what η or an effect explains: its mean moves against a sampled shift."""
    module, arguments = fitted.module, fitted.module_arguments()
    guide, values = module.guide, Posterior(module.model, module.guide).mean()
    rest = [arguments[name] for name in ("x", "condition", "batch")]
    loading = module.model.loading.detach()
    with torch.no_grad():
        before, scale = guide.encode(values, *rest)
        direction = torch.tensor([0.3, -0.2])
        moved = values | {
            "eta": values["eta"] + torch.tensor([[1.0], [-1.0]]) * (direction @ loading)
        }
        after, same = guide.encode(moved, *rest)
    torch.testing.assert_close(scale, same)
    sign = 1.0 - 2.0 * arguments["batch"][:, None]
    change = ((before - after) * sign).mean(0)
    # a shift along the loading is taken out of z but for the ridge
    kept = (1 - scale.square()).mean(0)
    torch.testing.assert_close(change, direction * kept, rtol=0.2, atol=0.02)


def test_networks_and_globals_are_trained_at_two_rates(fitted):
    guide = fitted.module.guide
    fast = {id(p) for p in guide.fast_parameters()}
    slow = {name for name, p in guide.named_parameters() if id(p) not in fast}
    assert slow and all(name.startswith("encoder.") for name in slow)


def test_times_after_the_last_seen_one_follow_the_prior(make_screen, build):
    adata = make_screen(times=(1.0, 2.0, 4.0))
    name = sorted(set(adata.obs["perturbation"]) - {"control"})[0]
    keep = (adata.obs["perturbation"] != name) | (adata.obs["time"] < 4.0)
    module = build(adata[keep].copy()).module
    k = 0  # perturbations are sorted
    assert module.guide.P_unseen.tolist() == [[False, False, True], *[[False] * 3] * 2]
    with torch.no_grad():
        steps = []
        for _ in range(200):
            values = module.guide.globals()
            step = module.model.step_scale(values, "P")[k, 1]
            walk = values["P.residual"][k]
            steps.append((walk[2] - module.model.persistence()[1] * walk[1]) / step)
    standard = torch.stack(steps)
    assert standard.mean().abs() < 0.1
    assert standard.std() == pytest.approx(1.0, abs=0.1)


def test_the_width_of_an_axis_is_for_the_counts_to_say(make_screen, build):
    """The KL of the effects does not depend on the prior's width."""
    module, terms = build(make_screen(times=(1.0, 2.0))).module, []
    none = torch.zeros(module.model.n_batches, module.model.config.n_latent)
    module.guide._along_state = lambda drawn: none  # what is given back has units of its own
    for width in (0.3, 0.03):
        module.model.log_effect_scale.data.fill_(width).log_()
        torch.manual_seed(1)
        q = poutine.trace(module.guide.globals).get_trace()
        p = poutine.trace(poutine.replay(module.model.globals, q)).get_trace()
        nodes = [trace.nodes["P.effect"] for trace in (q, p)]
        terms.append(sum(s * n["fn"].log_prob(n["value"]) for s, n in zip((1, -1), nodes)))
    torch.testing.assert_close(terms[0].sum(), terms[1].sum(), rtol=1e-4, atol=1e-3)


def test_effects_give_back_what_was_drawn_along_the_axes_of_state(make_screen, build):
    """Cells measure the sum: a baseline drawn along z is no news about a perturbation."""
    module = build(make_screen()).module
    model, guide = module.model, module.guide
    values = {"V.baseline": guide.baseline_loc, "eta.free": guide.eta_loc}
    assert guide._drawn(values).abs().max() < 1e-5
    moved = torch.linspace(-1.0, 1.0, model.config.n_latent)
    values["V.baseline"] = guide.baseline_loc + moved @ model.loading
    along = guide._along_state(guide._drawn(values)) @ model.loading
    expected = (moved @ model.loading).expand_as(along)
    assert (along - expected).norm() < 0.05 * expected.norm()


def test_effects_of_a_combination_share_what_they_give_back(make_screen, build):
    """The ridge regression of what was drawn on the genotypes of all cells."""
    built = build(make_screen(combinations=True, n_cells_per_condition=40))
    model, guide = built.module.model, built.module.guide
    d = model.config.n_latent
    along = torch.randn(model.n_batches, d)
    guide._along_state = lambda drawn: along
    guide.effect_loc.data.zero_()
    guide.effect_log_scale.data.fill_(-20.0)
    drawn = guide._effect(along, {})[:, :d]
    cells = torch.as_tensor(condition_cells(built.screen))  # (C, B)
    genotype, width = model.genotype, model.log_effect_scale[0].exp()
    shared = genotype.T @ (cells.sum(1, keepdim=True) * genotype)
    ridge = torch.eye(len(shared)) / width**2
    expected = -torch.linalg.solve(shared + ridge, genotype.T @ cells @ along)
    torch.testing.assert_close(drawn, expected, rtol=1e-3, atol=1e-4)
