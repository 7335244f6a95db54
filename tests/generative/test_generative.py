"""The generative model: its sites, its ELBO, and that anyone's own inference runs on it."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoNormal, init_to_median

N_AXES, N_GENES = 4, 12  # d + r, G

# Section 3 of the design on the screen of `everything`: 3 perturbations, 1 medium, 2 times and
# 2 batches.
CONTRACT = {
    "P.effect": (3, N_AXES),
    "V.loading": (2, N_GENES),
    "P.on_target": (3,),
    "M.effect": (1, N_AXES),
    "M.gain": (3, 1),
    "W.log_rate": (4,),
    "W.decay_ratio": (3,),
    "W.log_decay": (3,),
    "W.drift": (2,),
    "eta.free": (1, N_GENES),
    "eta": (2, N_GENES),
    "V.dispersion": (N_GENES,),
    "V.gate": (N_GENES, 2),
}
DETERMINISTIC = ("eta", "W.log_decay")


@pytest.fixture(autouse=True)
def _module_local_params():
    before = pyro.settings.get("module_local_params")
    pyro.settings.set(module_local_params=True)
    pyro.set_rng_seed(0)
    yield
    pyro.settings.set(module_local_params=before)


@pytest.fixture
def everything(make_screen, build):
    return build(make_screen(media=1, times=(1.0, 2.0), combinations=True), interactions=True)


@pytest.fixture
def minute(make_screen, build):
    """The smallest screen with everything, for samplers."""
    adata = make_screen(
        n_perturbations=2, n_genes=6, n_cells_per_condition=2, n_controls=4, media=1, times=(1, 2)
    )
    return build(adata, n_response=1)


def sample_sites(trace: poutine.Trace) -> dict[str, dict]:
    return {
        name: node
        for name, node in trace.nodes.items()
        if node["type"] == "sample" and not pyro.poutine.util.site_is_subsample(node)
    }


def test_sites_have_the_names_and_shapes_of_the_contract(everything):
    trace = poutine.trace(everything.module.model).get_trace(**everything.module_arguments())
    shapes = {name: tuple(node["value"].shape) for name, node in sample_sites(trace).items()}
    n_cells = everything.adata.n_obs
    assert shapes["X.z"] == (n_cells, 2) and shapes["x"] == (n_cells, N_GENES)
    assert {name: shapes[name] for name in CONTRACT} == CONTRACT
    assert [name for name in trace.nodes if name == "cells"] == ["cells"]


def test_only_cells_are_in_a_plate_and_only_x_is_observed(everything):
    trace = poutine.trace(everything.module.model).get_trace(**everything.module_arguments())
    for name, node in sample_sites(trace).items():
        plates = [frame.name for frame in node["cond_indep_stack"]]
        assert plates == (["cells"] if name in ("X.z", "x") else []), name
        deterministic = isinstance(node["fn"], dist.Delta) or name in DETERMINISTIC
        assert node["is_observed"] == (name == "x" or deterministic), name


@pytest.mark.parametrize(
    ("options", "absent"),
    [
        ({"likelihood": "nb"}, {"V.gate"}),
        ({"gene_residual": False}, {"P.residual", "M.residual", "P.interaction", "W.gene_scale"}),
        ({"interactions": False}, {"P.interaction"}),
    ],
)
def test_options_leave_out_their_sites(make_screen, build, options, absent):
    model = build(make_screen(media=1, times=(1.0, 2.0), combinations=True), **options)
    trace = poutine.trace(model.module.model).get_trace(**model.module_arguments())
    assert not absent & set(sample_sites(trace))


@pytest.mark.filterwarnings("ignore::pyrocell.errors.ScreenWarning")
def test_a_plain_screen_has_no_sites_of_media_time_or_batch(make_screen, build):
    model = build(make_screen(n_batches=1))
    trace = poutine.trace(model.module.model).get_trace(**model.module_arguments())
    assert not [name for name in sample_sites(trace) if name.startswith(("M.", "W.", "eta"))]


def test_eta_sums_to_zero_over_batches_in_every_draw(make_screen, build):
    model = build(make_screen(n_batches=5, n_controls=50))
    for _ in range(3):
        values = model.module.model.globals()
        assert values["eta"].abs().max() > 0.01
        torch.testing.assert_close(values["eta"].sum(0), torch.zeros(N_GENES), atol=1e-6, rtol=0)


def test_effects_are_in_units_of_log_fold_change(everything):
    model = everything.module.model
    values = model.globals()
    own = model.axes(values)[model.config.n_latent :]
    torch.testing.assert_close(own.square().mean(1), torch.ones(2))


def test_controls_at_rest_have_no_shift_but_the_drift(everything):
    model = everything.module.model
    values = model.globals()
    values["W.drift"] = torch.zeros(2)
    shift = model.shift(values, model.conditions)
    rest = (model.genotype.sum(1) == 0) & (model.exposure.sum(1) == 0)
    assert rest.sum() == 2 and (shift[rest] == 0).all()
    assert (shift[~rest] != 0).any(1).all()


def test_a_pair_is_the_sum_of_its_parts_and_its_interaction(make_screen, build):
    model = build(make_screen(combinations=True), interactions=True).module.model
    values = model.globals()
    shift = model.shift(values, model.conditions)
    pair = int((model.genotype.sum(1) == 2).nonzero())
    first, second = model.genotype[pair].nonzero()[:, 0].tolist()
    single = [
        int(((model.genotype.sum(1) == 1) & (model.genotype[:, k] == 1)).nonzero())
        for k in (first, second)
    ]
    expected = shift[single].sum(0) + values["P.interaction"][model.interaction[pair]]
    torch.testing.assert_close(shift[pair], expected)


def test_sparse_and_dense_counts_give_the_same_elbo(everything):
    values = []
    for dense in (False, True):
        pyro.set_rng_seed(1)
        arguments = everything.module_arguments(dense=dense)
        values.append(
            Trace_ELBO().loss(everything.module.model, everything.module.guide, **arguments)
        )
    assert values[0] == pytest.approx(values[1], rel=1e-6)


def elbo_of(module, trace: poutine.Trace, arguments: dict, rows: torch.Tensor) -> float:
    """Pyro's ELBO of some cells, with the globals and cell states of a trace of all cells."""
    replayed = trace.copy()
    replayed.nodes.pop("cells")
    replayed.nodes["X.z"] = {**trace.nodes["X.z"], "value": trace.nodes["X.z"]["value"][rows]}
    guide = poutine.trace(poutine.replay(module.guide, trace=replayed)).get_trace(**arguments)
    model = poutine.trace(poutine.replay(module.model, trace=guide)).get_trace(**arguments)
    return float(model.log_prob_sum() - guide.log_prob_sum())


def test_the_minibatch_elbo_is_unbiased_against_the_full_batch(everything):
    module, n_cells = everything.module, everything.adata.n_obs
    with torch.no_grad():
        whole = everything.module_arguments()
        trace = poutine.trace(module.guide).get_trace(**whole)
        full = elbo_of(module, trace, whole, torch.arange(n_cells))
        parts = torch.randperm(n_cells)[: n_cells // 4 * 4].view(4, -1)
        assert parts.numel() == n_cells
        batches = [
            elbo_of(module, trace, everything.module_arguments(rows.numpy()), rows)
            for rows in parts
        ]
    assert sum(batches) / 4 == pytest.approx(full, rel=1e-5)
    assert max(batches) - min(batches) > 1e-4 * abs(full)


def test_predictive_draws_latents_and_counts(everything):
    module = everything.module
    arguments = everything.module_arguments(dense=True)
    latent = Predictive(module.model, guide=module.guide, num_samples=3)(**arguments)
    assert latent["eta"].shape[-2:] == (2, N_GENES) and latent["x"].shape[0] == 3
    posterior = {k: v for k, v in latent.items() if k not in ("x", *DETERMINISTIC)}
    drawn = Predictive(module.model, posterior)(**(arguments | {"x": None}))["x"]
    assert drawn.shape == (3, everything.adata.n_obs, N_GENES)
    assert (drawn >= 0).all() and (drawn == drawn.round()).all()
    assert drawn.mean() == pytest.approx(everything.adata.X.mean(), rel=0.3)
    prior = Predictive(module.model, num_samples=2)(**(arguments | {"x": None}))
    assert prior["x"].shape == (2, everything.adata.n_obs, N_GENES)


def test_predictive_takes_sparse_counts_when_they_are_not_asked_back(everything):
    module = everything.module
    sites = ["P.effect", "eta"]
    predictive = Predictive(module.model, guide=module.guide, num_samples=2, return_sites=sites)
    assert set(predictive(**everything.module_arguments())) == set(sites)


def test_nuts_runs_on_a_tiny_screen(minute):
    kernel = NUTS(minute.module.model, max_tree_depth=3, init_strategy=init_to_median)
    sampler = MCMC(kernel, num_samples=3, warmup_steps=15, disable_progbar=True)
    sampler.run(**minute.module_arguments())
    draws = sampler.get_samples()
    assert draws["X.z"].shape == (3, minute.adata.n_obs, 2)
    assert draws["M.gain"].shape == (3, 2, 1) and draws["P.effect"].shape == (3, 2, 3)
    for name, values in draws.items():
        assert torch.isfinite(values).all(), name
    assert len(draws["P.effect"].unique(dim=0)) > 1


def test_a_guide_of_one_s_own_trains_on_minibatches(minute):
    model = minute.module.model

    def create_plates(x, index, *args, **kwargs):
        return pyro.plate("cells", model.n_cells, subsample=index)

    guide = AutoNormal(model, create_plates=create_plates)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    rows = torch.arange(minute.adata.n_obs).view(2, -1)
    first = [svi.step(**minute.module_arguments(rows[i % 2].numpy())) for i in range(60)]
    assert sum(first[-10:]) < sum(first[:10])
    median = guide.median(**minute.module_arguments())
    assert median["X.z"].shape == (minute.adata.n_obs, 2)
    assert (median["X.z"] != 0).any(1).all()  # both minibatches moved their own cells


def test_training_does_not_change_the_prior(make_screen, build):
    model = build(make_screen(media=1, times=(1.0, 2.0), combinations=True))
    generative = model.module.model
    before = {name: value.clone() for name, value in generative.named_buffers()}
    model.train(max_epochs=3, progress_bar=False)
    assert {"baseline_centre", "noise.contrast", "kl_weight"} <= set(before)
    for name, value in generative.named_buffers():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0, msg=name)


def test_two_models_in_one_process_do_not_touch_each_other(make_screen, build):
    store = set(pyro.get_param_store().keys())  # what a user's own guide may have left there
    one, other = (build(make_screen(seed=seed, media=1), n_latent=2) for seed in (0, 1))
    one.train(max_epochs=2, progress_bar=False)
    state = {name: value.clone() for name, value in one.module.state_dict().items()}
    answer = one.perturbation_effects(n_samples=5)
    other.train(max_epochs=2, progress_bar=False)
    assert other.perturbation_effects(n_samples=5)["mean"].ne(answer["mean"]).any()
    for name, value in one.module.state_dict().items():
        torch.testing.assert_close(value, state[name], rtol=0, atol=0, msg=name)
    assert one.perturbation_effects(n_samples=5).equals(answer)
    assert set(pyro.get_param_store().keys()) == store
